"""What one rank found out when it opened a checkpoint, as bytes for the others: they ask the store nothing.

The bytes are a pickle of plain data. It comes from a rank of the same job; even so, it is read by an
unpickler that knows only the classes below.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchwick.checkpoint.objects import Objects
from torchwick.config import TransferConfig
from torchwick.formats.catalog import Catalog
from torchwick.store import ObjectInfo, Store, StoredChecksum
from torchwick.transfer import RangeCache
from torchwick.uri import URI

__all__ = ["Opened", "from_bytes", "to_bytes"]

_PLAIN = {
    "functools": ("partial",),
    "torchwick.formats.catalog": ("Catalog", "Landmark", "Packed", "Piece", "TensorEntry"),
    "torchwick.formats.torch_catalog": ("is_count",),
    "torchwick.formats.torch_zip": ("Record", "header_agrees"),
    "torchwick.store.base": ("ObjectInfo", "StoredChecksum"),
    "torchwick.uri": ("URI",),
    "torchwick.distributed.sharing": ("_Known", "_Told"),
}


@dataclass(frozen=True)
class Opened:
    """A checkpoint as the rank that opened it saw it.

    Attributes:
        catalog: where the tensors are.
        objects: where that is, each pinned to one version.
        checksums: what the store keeps of each, or None.
    """

    catalog: Catalog
    objects: Objects
    checksums: Mapping[str, StoredChecksum | None]


@dataclass(frozen=True)
class _Known:
    """What is known of one object."""

    info: ObjectInfo
    pieces: list[tuple[int, bytes]]
    checksum: StoredChecksum | None


@dataclass(frozen=True)
class _Told:
    """All that is told."""

    uri: URI
    catalog: Catalog
    objects: dict[str, _Known]


def to_bytes(opened: Opened) -> bytes:
    """Return all there is to know."""
    objects = opened.objects
    known = {
        name: _Known(
            objects[name].info,
            [(at, bytes(data)) for at, data in objects[name].pieces],
            opened.checksums[name],
        )
        for name in objects.names
    }
    return pickle.dumps(_Told(objects.uri, opened.catalog, known), pickle.HIGHEST_PROTOCOL)


def from_bytes(data: bytes, store: Store, config: TransferConfig) -> Opened:
    """Return the same for this rank, which reads from its own store.

    Raises:
        pickle.UnpicklingError: they are no such bytes.
    """
    told: _Told = _Plain(io.BytesIO(data)).load()
    caches = {
        name: RangeCache(store, known.info.uri, config, info=known.info, known=known.pieces)
        for name, known in told.objects.items()
    }
    checksums = {name: known.checksum for name, known in told.objects.items()}
    return Opened(told.catalog, Objects(told.uri, store, config, caches), checksums)


class _Plain(pickle.Unpickler):
    """Makes nothing but the classes above."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _PLAIN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into what ranks tell each other")
        return super().find_class(module, name)
