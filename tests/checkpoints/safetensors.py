"""Safetensors files that are odd but valid: every dtype, shape, order and padding the format permits."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from checkpoints.tensors import every_bit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def framed(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file of exactly this header, valid or not."""
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor's line in the header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _saved(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return safetensors.torch.save(dict(tensors), metadata)


def _every_dtype() -> bytes:
    return _saved({code: every_bit(getattr(torch, name)) for code, name in _DTYPE_NAMES.items()})


def _one_dtype(code: str) -> Callable[[], bytes]:
    return lambda: _saved({"t": every_bit(getattr(torch, _DTYPE_NAMES[code]))})


def _empties() -> bytes:
    shapes = {"0": (0,), "0x3": (0, 3), "3x0": (3, 0)}
    return _saved({**{name: torch.empty(shape) for name, shape in shapes.items()}, "full": torch.ones(2)})


def _padded() -> bytes:
    """Spaces after the header: how writers align the data, here by far more than they need."""
    plain = _saved({"a": torch.arange(4.0), "b": torch.arange(3)})
    (length,) = struct.unpack("<Q", plain[:8])
    return framed(plain[8 : 8 + length] + b" " * 1000, plain[8 + length :])


def _scrambled() -> bytes:
    """Tensors that lie in another order than the header lists them, or than their names sort."""
    header = {
        "b": entry("F32", [2], 4, 12),
        "__metadata__": {"order": "scrambled"},
        "c": entry("U8", [4], 0, 4),
        "a": entry("I16", [3], 12, 18),
    }
    return framed(json.dumps(header).encode(), bytes(range(18)))


def _unaligned() -> bytes:
    """Odd sizes first, so that wider elements begin at odd offsets."""
    header = {
        "bytes": entry("U8", [3], 0, 3),
        "floats": entry("F32", [2], 3, 11),
        "doubles": entry("F64", [1], 11, 19),
        "halves": entry("BF16", [3], 19, 25),
        "last": entry("I64", [2], 25, 41),
    }
    return framed(json.dumps(header).encode(), bytes(range(41)))


def _escaped() -> bytes:
    header = {'quote"\\/☃\t': entry("U8", [1], 0, 1), "": entry("U8", [1], 1, 2)}
    return framed(json.dumps(header).encode(), b"\1\2")


def _many() -> bytes:
    return _saved({f"layer.{n}.weight": torch.full((2,), n, dtype=torch.int32) for n in range(5000)})


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "every_dtype": _every_dtype,
    **{f"dtype_{code}": _one_dtype(code) for code in _DTYPE_NAMES},
    "empties": _empties,
    "scalars": lambda: _saved({"f": torch.tensor(1.5), "b": torch.tensor(True), "i": torch.tensor(-1)}),
    "no_tensors": lambda: _saved({}),
    "only_metadata": lambda: framed(b'{"__metadata__":{"format":"pt","note":"nothing else"}}'),
    "metadata": lambda: _saved({"t": torch.ones(2)}, {"format": "pt", "epoch": "3", "text": "naïve ☃"}),
    "empty_metadata": lambda: _saved({"t": torch.ones(2)}, {}),
    "padded_header": _padded,
    "scrambled": _scrambled,
    "unaligned": _unaligned,
    "escaped_names": _escaped,
    "many": _many,
    "deep_shape": lambda: _saved({"t": torch.arange(4.0).reshape((1,) * 12 + (4,))}),
    "nan_payloads": lambda: _saved({"t": torch.tensor([0x7FC00001, -0x3FFFFF]).int().view(torch.float32)}),
    "big_tensor": lambda: _saved({"t": torch.arange(300_000.0), "u": torch.ones(3)}),
}
"""Builders of the file's bytes, by name; safetensors.torch.load says what they hold."""
