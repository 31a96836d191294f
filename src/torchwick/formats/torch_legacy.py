"""Reads the format of torch before 1.6: pickles one behind the other, then the storages.

As torch/serialization.py writes it (``_legacy_save``): a magic number, a protocol version, facts about the
machine, the object, and the list of storage keys, each a pickle of its own; then, for each key in that
order, 8 bytes that count elements and the elements themselves.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass

from torchwick.errors import FormatError
from torchwick.formats.pickles import PickleFacts, StorageFact, look_into

__all__ = ["COUNT_BYTES", "LegacyFile", "StoragePlace", "element_size", "read_legacy"]

COUNT_BYTES = 8
_FIRST_LOOK = 256 << 10

_ELEMENT_SIZES = {
    "BFloat16": 2, "Bool": 1, "Byte": 1, "Char": 1, "ComplexDouble": 16, "ComplexFloat": 8, "Double": 8,
    "Float": 4, "Half": 2, "Int": 4, "Long": 8, "QInt32": 4, "QInt8": 1, "QUInt2x4": 1, "QUInt4x2": 1,
    "QUInt8": 1, "Short": 2, "Untyped": 1,
}  # fmt: skip


def element_size(type_name: str) -> int | None:
    """Return the bytes of one element of a storage class, or None for a class that is not known.

    Example:
        >>> element_size("HalfStorage")
        2
    """
    return _ELEMENT_SIZES.get(type_name.removesuffix("Storage"))


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
    """What the pickles say."""

    facts: PickleFacts
    storages: tuple[StoragePlace, ...]


def read_legacy(read: Callable[[int, int], memoryview], size: int | None, uri: object) -> LegacyFile | None:
    """Read the pickles at the start of the file, and from them where the storages are.

    Args:
        read: returns the bytes of a half-open range.
        size: the object's bytes; None where the server does not say.
        uri: the object, for messages.

    Returns:
        What they say, or None where stand-ins cannot follow the pickles and torch itself has to.

    Raises:
        FormatError: the file ends before its storages do.
    """
    length = _FIRST_LOOK
    while True:
        data = bytes(read(0, length if size is None else min(length, size)))
        try:
            return _look(data, size, uri)
        except (EOFError, pickle.UnpicklingError):
            if len(data) < length:  # it is all there is
                return None
            length *= 4
        except FormatError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, UnicodeError):
            return None


def _look(data: bytes, size: int | None, uri: object) -> LegacyFile | None:
    file = io.BytesIO(data)
    for _ in ("magic number", "protocol version", "facts about the machine"):
        look_into(file)
    facts = look_into(file)
    keys = look_into(file).value
    if not isinstance(keys, list):
        return None
    places, position = list[StoragePlace](), file.tell()
    for key in keys:
        fact = facts.storages[str(key)]
        width = element_size(fact.type_name)
        if width is None:
            return None
        places.append(StoragePlace(fact, position, fact.numel * width))
        position = places[-1].data + places[-1].size
    if size is not None and position > size:
        hint = "It was cut short: upload it again, whole."
        raise FormatError(f"its storages end at byte {position}, the object at {size}", uri=uri, hint=hint)
    return LegacyFile(facts, tuple(places))
