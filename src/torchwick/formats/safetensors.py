"""Reads a safetensors header into a `Catalog`, believing nothing before it is checked; and writes headers.

The format, from its specification (github.com/huggingface/safetensors, "Format"): 8 bytes of header length
N as a little-endian integer, N bytes of JSON that start with ``{`` and may be padded with spaces, then the
tensors' bytes, without holes or overlaps. ``data_offsets`` count from the end of the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from torchwick.errors import FormatError
from torchwick.formats.catalog import Catalog, Piece, TensorEntry, contiguous
from torchwick.formats.dtypes import SAFETENSORS_BITS

__all__ = ["header", "header_length", "looks_like", "read_catalog"]

_LENGTH_BYTES = 8
_MOST_COUNT, _MOST_DIGITS = (1 << 63) - 1, 20  # what torch can count to
_MOST_SHOWN = 16  # dimensions of a shape in a message
_LONGEST = 200  # characters of the header's own in a message
_MOST_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_METADATA = "__metadata__"
_ALIGNMENT = 8  # bytes, to a multiple of which the reference implementation pads a header


def looks_like(head: memoryview) -> bool:
    """Whether an object that begins so is meant to be safetensors."""
    return len(head) > _LENGTH_BYTES and head[_LENGTH_BYTES] == ord("{")


def header_length(head: memoryview) -> int:
    """Return the bytes of the JSON header, from an object's first 8 bytes."""
    return int.from_bytes(head[:_LENGTH_BYTES], "little")


def read_catalog(read: Callable[[int, int], memoryview], size: int | None, uri: object) -> Catalog:
    """Read and check the header.

    Args:
        read: returns the bytes of a half-open range.
        size: the object's bytes; None where the server does not say.
        uri: the object, for messages.

    Raises:
        FormatError: the header is absurd, or does not agree with itself or with the object's size.
    """
    length = header_length(read(0, _LENGTH_BYTES))
    first = _LENGTH_BYTES + length
    if length > _MOST_HEADER or (size is not None and first > size):
        _refuse(uri, f"the header claims {length} bytes, the object has {size}")
    header = _parse(bytes(read(_LENGTH_BYTES, first)), uri)
    metadata = header.pop(_METADATA, None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(uri, "the header's __metadata__ is no map of texts")
    entries = {name: _entry(name, said, first, uri) for name, said in header.items()}
    ordered = dict(sorted(entries.items(), key=_place))
    _check_gapless(ordered, first, size, uri)
    return Catalog("safetensors", ordered, metadata)


def _parse(raw: bytes, uri: object) -> dict[str, Any]:
    """Return the JSON object, of which nothing is taken that the format's own reader would not take."""
    try:
        text = raw.decode("utf-8")  # json would guess at others
        header = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_int=_count, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        reason = str(error)[:_LONGEST]
        raise FormatError(
            f"the safetensors header cannot be read: {reason}", uri=uri, hint=_CORRUPT
        ) from error
    if not isinstance(header, dict):
        _refuse(uri, "the header is no JSON object")
    return header


def _count(digits: str) -> int:
    """Return what can count bytes or elements; Python's own integers have no end."""
    number = int(digits) if len(digits) < _MOST_DIGITS else _MOST_COUNT + 1
    if number > _MOST_COUNT or digits.startswith("-"):
        raise ValueError(f"{digits[:_MOST_DIGITS]} counts neither bytes nor elements")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_CORRUPT = "The file is corrupt or was cut short: upload it again."


def _refuse(uri: object, message: str) -> NoReturn:
    raise FormatError(f"corrupt safetensors: {message}", uri=uri, hint=_CORRUPT)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    for name in found:
        name.encode()  # JSON can write half a character, which is no name in any file system or log
    return found


def _entry(name: str, said: Any, first: int, uri: object) -> TensorEntry:
    shown = repr(name[:_LONGEST])
    match said:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]} if _all_counts(
            (start, stop)
        ):
            pass
        case _:
            _refuse(uri, f"the header's entry for {shown} lacks its dtype, shape or offsets")
    if dtype not in SAFETENSORS_BITS:
        _refuse(uri, f"tensor {shown} has the unknown dtype {dtype[:_LONGEST]!r}")
    numel = _product(shape) if _all_counts(shape) else None
    described = f"tensor {shown} is {dtype} of shape {str(shape[:_MOST_SHOWN])[:_LONGEST]}"
    if numel is None:
        _refuse(uri, f"{described}, which is no shape")
    if (stop - start) * 8 != numel * SAFETENSORS_BITS[dtype]:
        _refuse(uri, f"{described} in {stop - start} bytes")
    lengths = tuple(shape)
    piece = Piece("", first + start, lengths, contiguous(lengths), first + start)
    return TensorEntry(dtype, lengths, (piece,))


def _place(item: tuple[str, TensorEntry]) -> tuple[int, int]:
    entry = item[1]
    return entry.pieces[0].start, entry.nbytes


def _all_counts(values: Sequence[object]) -> bool:
    return all(type(value) is int for value in values)  # True is an int as well


def _product(shape: list[int]) -> int | None:
    """Return how many elements there are, or None beyond what can be counted, even if a 0 comes later."""
    numel = 1
    for length in shape:
        numel *= length
        if numel > _MOST_COUNT:
            return None
    return numel


def _check_gapless(ordered: dict[str, TensorEntry], first: int, size: int | None, uri: object) -> None:
    position = first
    for name, entry in ordered.items():
        start = entry.pieces[0].start
        if start != position:
            _refuse(uri, f"tensor {name[:_LONGEST]!r} begins at byte {start}, where {position} was due")
        position = start + entry.nbytes
    if size is not None and position != size:
        kind = "cut short" if size < position else "too long"
        _refuse(uri, f"the header accounts for {position} bytes, the object has {size}: it is {kind}")


def header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str], uri: object
) -> bytes:
    """Return what stands in a file before the tensors' bytes: the length, and the JSON padded with spaces.

    Args:
        tensors: dtype, as safetensors spells it, and shape by name, in the order in which their bytes follow.
        metadata: texts by name.
        uri: the file, for messages.

    Raises:
        FormatError: the format has no way to say it.

    Example:
        >>> header({"w": ("I16", (3,))}, {"format": "pt"}, "new.safetensors")[8:].decode().rstrip()
        '{"__metadata__":{"format":"pt"},"w":{"dtype":"I16","shape":[3],"data_offsets":[0,6]}}'
    """
    said: dict[str, Any] = {_METADATA: dict(metadata)}
    stop = 0
    for name, (dtype, shape) in tensors.items():
        if name == _METADATA:
            raise _inexpressible(f"no tensor can be called {name}", uri)
        start, stop = stop, stop + _nbytes(name, dtype, shape, uri)
        said[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, stop)}
    try:
        text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise _inexpressible(f"{error.object[:_LONGEST]!a} is no text in UTF-8", uri) from None
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > _MOST_HEADER:
        raise _inexpressible(f"the header would take {len(text)} bytes, and {_MOST_HEADER} is the most", uri)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _nbytes(name: str, dtype: str, shape: tuple[int, ...], uri: object) -> int:
    if dtype not in SAFETENSORS_BITS:
        raise _inexpressible(f"tensor {name[:_LONGEST]!r} is {dtype}, a dtype that safetensors has not", uri)
    bits = math.prod(shape) * SAFETENSORS_BITS[dtype]
    if bits % 8:
        raise _inexpressible(f"tensor {name[:_LONGEST]!r}, of {dtype}, does not end with a whole byte", uri)
    return bits // 8


def _inexpressible(message: str, uri: object) -> FormatError:
    hint = "Name the tensors that can be written, keys=[…], or give others names, rename={…}."
    return FormatError(message, uri=uri, hint=hint)
