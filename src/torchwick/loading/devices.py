"""Where torch.load would put a storage: the part of ``map_location`` that can be known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

__all__ = ["MapLocation", "is_faking", "is_meta", "settle", "stays_on_cpu"]

MapLocation = (
    str
    | bytes
    | torch.device
    | Mapping[str, str]
    | Callable[[torch.UntypedStorage, str], torch.UntypedStorage | None]
    | None
)


def stays_on_cpu(map_location: MapLocation, saved_on: Iterable[str]) -> bool:
    """Whether every storage, given the device tags they were saved under, will end up on the CPU.

    Raises:
        RuntimeError: as torch.load would, before any bytes are moved: a device is not there.
    """
    if callable(map_location):
        return False
    targets = {_target(map_location, tag) for tag in saved_on}
    for target in targets - {"cpu"}:
        restore: Any = torch.serialization.default_restore_location
        restore(torch.empty(0).untyped_storage(), target)
    return targets <= {"cpu"}


def is_meta(map_location: MapLocation) -> bool:
    """Whether only shapes are asked for."""
    return isinstance(map_location, str | torch.device) and torch.device(map_location).type == "meta"


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
