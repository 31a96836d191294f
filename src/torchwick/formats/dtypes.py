"""One table of element types: what safetensors, torch and torch's pickles call them, and their bits."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DTYPES",
    "FLOATS",
    "SAFETENSORS_BITS",
    "DType",
    "element_size",
    "of_storage",
    "of_torch",
    "parse_dtype",
]


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: as safetensors spells it, ``"BF16"``; in the same manner where safetensors has none, ``"C128"``.
        bits: of one element.
        torch: the attribute of the module torch, or an empty text where torch has none.
        storage: what torch's pickles call a storage of it, without ``Storage``; empty where none is its own.
    """

    name: str
    bits: int
    torch: str = ""
    storage: str = ""


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("BOOL", 8, "bool", "Bool"),
        DType("U8", 8, "uint8", "Byte"),
        DType("I8", 8, "int8", "Char"),
        DType("I16", 16, "int16", "Short"),
        DType("U16", 16, "uint16"),
        DType("I32", 32, "int32", "Int"),
        DType("U32", 32, "uint32"),
        DType("I64", 64, "int64", "Long"),
        DType("U64", 64, "uint64"),
        DType("F16", 16, "float16", "Half"),
        DType("BF16", 16, "bfloat16", "BFloat16"),
        DType("F32", 32, "float32", "Float"),
        DType("F64", 64, "float64", "Double"),
        DType("C32", 32, "complex32"),
        DType("C64", 64, "complex64", "ComplexFloat"),
        DType("C128", 128, "complex128", "ComplexDouble"),
        DType("F4", 4, "float4_e2m1fn_x2"),  # torch's holds two of them
        DType("F6_E2M3", 6),
        DType("F6_E3M2", 6),
        DType("F8_E4M3", 8, "float8_e4m3fn"),
        DType("F8_E5M2", 8, "float8_e5m2"),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
        DType("F8_E8M0", 8, "float8_e8m0fnu"),
    )
}
"""By name, as far as the formats that are read have them."""

SAFETENSORS_BITS = {name: dtype.bits for name, dtype in DTYPES.items() if name not in ("C32", "C128")}
"""Bits of one element, by the names of the reference implementation's ``Dtype``."""

_OF_STORAGE = {dtype.storage: dtype for dtype in DTYPES.values() if dtype.storage}
_OF_TORCH = {dtype.torch: dtype for dtype in DTYPES.values() if dtype.torch}
_ALIASES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "chalf": "complex32",
    "cfloat": "complex64",
    "cdouble": "complex128",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}
FLOATS = tuple(
    name
    for name, dtype in DTYPES.items()
    if dtype.torch.startswith(("float", "bfloat")) and dtype.bits >= 8  # smaller ones torch does not convert
)
"""Those that torch casts to and from."""
_SHORT = {"fp16": "F16", "fp32": "F32", "fp64": "F64"}
_OTHER_SIZES = {"Untyped": 1, "QInt8": 1, "QUInt8": 1, "QUInt4x2": 1, "QUInt2x4": 1, "QInt32": 4}


def of_torch(name: str) -> DType | None:
    """Return a type by torch's name for it, or None where it is not known.

    Example:
        >>> of_torch("bfloat16").name, of_torch("half").name
        ('BF16', 'F16')
    """
    return _OF_TORCH.get(_ALIASES.get(name, name))


def of_storage(type_name: str) -> DType | None:
    """Return the type of a storage's elements by the storage's class, or None where it does not say.

    Example:
        >>> of_storage("HalfStorage").name
        'F16'
    """
    return _OF_STORAGE.get(type_name.removesuffix("Storage"))


def element_size(type_name: str) -> int | None:
    """Return the bytes of one element of a storage class, or None for a class that is not known.

    Example:
        >>> element_size("HalfStorage"), element_size("UntypedStorage")
        (2, 1)
    """
    kind = type_name.removesuffix("Storage")
    dtype = _OF_STORAGE.get(kind)
    return dtype.bits // 8 if dtype else _OTHER_SIZES.get(kind)


def parse_dtype(given: object) -> str:
    """Return safetensors' name for a floating-point dtype, given by that, by torch's or a usual short one.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_dtype("bf16"), parse_dtype("torch.float16"), parse_dtype("float8_e4m3fn")
        ('BF16', 'F16', 'F8_E4M3')
    """
    text = str(given).strip().lower().removeprefix("torch.")
    known = of_torch(text)
    name = known.name if known else _SHORT.get(text, text.upper())
    if name not in FLOATS:
        choice = ", ".join(DTYPES[name].torch for name in FLOATS)
        raise ValueError(f"{given!r} is no floating-point dtype to cast to: choose one of {choice}")
    return name
