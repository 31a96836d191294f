"""Where torch.load would put a storage: the part of ``map_location`` that can be known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["MapLocation", "Placement", "is_faking", "is_meta", "on_host", "places", "settle"]

MapLocation = (
    str
    | bytes
    | torch.device
    | Mapping[str, str]
    | Callable[[torch.UntypedStorage, str], torch.UntypedStorage | None]
    | None
)


def places(map_location: MapLocation, saved_on: Iterable[str]) -> dict[str, torch.device] | None:
    """Return where storages will end up, by the device tags that they were saved under.

    None where no one knows, and for some of them the place is ``meta``, which takes no bytes.

    Raises:
        RuntimeError: as torch.load would, before any bytes are moved: a device is not there.
    """
    if callable(map_location):
        return None
    restore: Any = torch.serialization.default_restore_location
    nothing = torch.empty(0, device="cpu").untyped_storage()
    where = {tag: restore(nothing, _target(map_location, tag)).device for tag in saved_on}
    return None if any(device.type == "meta" for device in where.values()) else where


def on_host(device: torch.device) -> bool:
    """Whether the network can read into its memory."""
    return device.type == "cpu"


def is_meta(map_location: MapLocation) -> bool:
    """Whether only shapes are asked for."""
    return isinstance(map_location, str | torch.device) and torch.device(map_location).type == "meta"


@dataclass(frozen=True)
class Placement:
    """Where tensors are to be, and as what.

    Attributes:
        map_location: as for torch.load.
        dtype: what floating-point tensors are cast to; None: they stay what they are.
    """

    map_location: MapLocation = None
    dtype: torch.dtype | None = None

    @property
    def is_meta(self) -> bool:
        """Whether only shapes are asked for."""
        return is_meta(self.map_location)


def is_faking() -> bool:
    """Whether a mode such as ``FakeTensorMode`` stands in for real tensors: torch.load then reads none."""
    return type(torch.empty(0)) is not torch.Tensor


def _target(map_location: Any, tag: str) -> str:
    if map_location is None:
        return tag
    if isinstance(map_location, Mapping):
        return str(map_location.get(tag, tag))
    return map_location.decode() if isinstance(map_location, bytes) else str(map_location)


def settle(map_location: MapLocation, uri: object) -> torch.device:
    """Return the one device named, for a format that knows no device tags.

    Raises:
        ValueError: it is a mapping or a function of such tags.
    """
    if map_location is None:
        return torch.device("cpu")
    if isinstance(map_location, bytes):
        map_location = map_location.decode()
    if isinstance(map_location, str | torch.device):
        return torch.device(map_location)
    raise ValueError(
        f"{uri}: nothing says where its tensors were saved, so that map_location must be one device, not "
        f"{type(map_location).__name__}"
    )
