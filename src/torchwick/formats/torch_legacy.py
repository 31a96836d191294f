"""Reads the format of torch before 1.6: pickles one behind the other, then the storages.

As torch/serialization.py writes it (``_legacy_save``): a magic number, a protocol version, facts about the
machine, the object, and the list of storage keys, each a pickle of its own; then, for each key in that
order, 8 bytes that count elements and the elements themselves.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from torchwick.errors import FormatError
from torchwick.formats.dtypes import element_size
from torchwick.formats.pickles import PickleFacts, StorageFact, look_into

__all__ = ["COUNT_BYTES", "LegacyFile", "StoragePlace", "read_legacy"]

COUNT_BYTES = 8
_FIRST_LOOK = 256 << 10


@dataclass(frozen=True)
class StoragePlace:
    """Where one storage is: `start` of the 8 bytes that count its elements, and bytes of the data behind."""

    fact: StorageFact
    start: int
    size: int

    @property
    def data(self) -> int:
        """Offset of the first element."""
        return self.start + COUNT_BYTES


@dataclass(frozen=True)
class LegacyFile:
    """What the pickles say; the places of storages are None where torch itself has to find them."""

    facts: PickleFacts
    storages: tuple[StoragePlace, ...] | None


def read_legacy(read: Callable[[int, int], memoryview], size: int | None, uri: object) -> LegacyFile:
    """Read the pickles at the start of the file, and from them where the storages are.

    Args:
        read: returns the bytes of a half-open range.
        size: the object's bytes; None where the server does not say.
        uri: the object, for messages.

    Raises:
        FormatError: the pickles are damaged, or do not agree with the file on its storages.
    """
    length = _FIRST_LOOK
    while True:
        data = bytes(read(0, length if size is None else min(length, size)))
        try:
            return _look(data, size, uri)
        except EOFError:
            if len(data) < length:  # it is all there is
                raise _corrupt(
                    uri, f"its pickles do not end before byte {len(data)}, where it does"
                ) from None
            length *= 4


def _look(data: bytes, size: int | None, uri: object) -> LegacyFile:
    file = io.BytesIO(data)
    for _ in ("magic number", "protocol version", "facts about the machine"):
        look_into(file, limit=size, uri=uri)
    facts = look_into(file, limit=size, uri=uri)
    keys = look_into(file, limit=size, uri=uri).value
    if not facts.followed:
        return LegacyFile(facts, None)
    places, position = list[StoragePlace](), file.tell()
    for fact in _listed(keys, facts, uri):
        width = element_size(fact.type_name)
        if width is None:
            return LegacyFile(facts, None)
        places.append(StoragePlace(fact, position, fact.numel * width))
        position = places[-1].data + places[-1].size
    if size is not None and position > size:
        raise _corrupt(uri, f"its storages end at byte {position}, the object at {size}")
    return LegacyFile(facts, tuple(places))


def _listed(keys: object, facts: PickleFacts, uri: object) -> list[StorageFact]:
    """Return the storages in the order of the file, if they are those that the object asks for."""
    names = [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else None
    if names is None or not isinstance(keys, list) or len(names) != len(keys):
        raise _corrupt(uri, "no list of its storages follows the object's pickle")
    if len(set(names)) != len(names):
        raise _corrupt(uri, "its list of storages names one twice")
    if set(names) != facts.storages.keys():
        odd = min(set(names) ^ facts.storages.keys())[:100]
        raise _corrupt(uri, f"storage {odd!r} is only in one of its pickle and its list of storages")
    return [facts.storages[name] for name in names]


def _corrupt(uri: object, message: str) -> FormatError:
    hint = "It is corrupt or was cut short: upload it again, whole."
    return FormatError(f"the legacy file cannot be read: {message}", uri=uri, hint=hint)
