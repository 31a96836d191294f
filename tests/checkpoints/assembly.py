"""Pickles written instruction by instruction, and files around them: what no honest writer would write."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any

from checkpoints.zipcraft import Record, under, write_zip

_MAGIC = 0x1950A86A20F9469CFC6C
_SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


@dataclass(frozen=True)
class Code:
    """Instructions that push one value."""

    raw: bytes


def push(value: Any) -> bytes:
    """The instructions that push `value`."""
    match value:
        case Code(raw):
            return raw
        case tuple(items):
            return b"(" + b"".join(map(push, items)) + b"t"
        case list(items):
            return b"](" + b"".join(map(push, items)) + b"e"
        case str(text):
            return b"X" + struct.pack("<I", len(text.encode())) + text.encode()
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int(number):
            return _integer(number)
    raise TypeError(type(value).__name__)


def _integer(number: int) -> bytes:
    if -(2**31) <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def program(*values: Any, protocol: int = 2) -> bytes:
    """A pickle that pushes these values and returns the last."""
    return b"\x80" + bytes([protocol]) + b"".join(map(push, values)) + b"."


def name(module: str, attribute: str) -> Code:
    """A global."""
    return Code(f"c{module}\n{attribute}\n".encode())


def call(function: Code, *arguments: Any) -> Code:
    """The call of a global."""
    return Code(function.raw + push(arguments) + b"R")


def storage(numel: Any = 6, key: Any = "0", kind: str = "FloatStorage", location: Any = "cpu") -> Code:
    """What the pickle says of a storage that lies elsewhere in the file."""
    return Code(push(("storage", name("torch", kind), key, location, numel)) + b"Q")


def old_storage(
    numel: Any = 6, key: Any = "0", kind: str = "FloatStorage", location: Any = "cpu", view: Any = None
) -> Code:
    """The same in the legacy format, where it may be a part of another."""
    return Code(push(("storage", name("torch", kind), key, location, numel, view)) + b"Q")


def tensor(
    on: Code, offset: Any = 0, size: tuple[Any, ...] = (2, 3), stride: tuple[Any, ...] = (3, 1)
) -> Code:
    """A tensor over a storage."""
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), on, offset, size, stride, False, hooks)


def zip_records(data_pkl: bytes, *extra: Record, **storages: bytes) -> list[Record]:
    """The records of a checkpoint with this pickle; storages as ``s0=…``, else six floats in ``data/0``."""
    held = {f"data/{key[1:]}": data for key, data in (storages or {"s0": bytes(24)}).items()}
    records = [Record("data.pkl", data_pkl), Record("byteorder", b"little")]
    records += [Record(path, data) for path, data in held.items()]
    return under("archive", [*records, Record("version", b"3\n"), *extra])


def zip_of(data_pkl: bytes, **storages: bytes) -> bytes:
    """The checkpoint with this pickle, as torch has written it since 1.6."""
    return write_zip(zip_records(data_pkl, **storages))


def legacy_of(object_pkl: bytes, keys: Any = ("0",), data: bytes | None = None) -> bytes:
    """The checkpoint with this pickle, as torch wrote it before 1.6."""
    begin = b"".join(pickle.dumps(part, protocol=2) for part in (_MAGIC, 1001, _SYSTEM))
    listed = pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, protocol=2)
    return begin + object_pkl + listed + (struct.pack("<q", 6) + bytes(24) if data is None else data)
