"""The bytes of a tensor as a file has them: from its own memory where they lie so, else from copies.

A sink may hold on to what it is given until that is sent, and bounds how much that is. So every stretch keeps
alive what it is a view of, and copies are made slice by slice, each when the one before it was taken.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

import torch

__all__ = ["elements", "snapshot"]

_SLICE = 16 << 20
"""Bytes of one stretch: large enough for the calls not to count, and about a part of an upload."""
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MAPPED = 1 << 20  # bytes of memory for which the system is asked


def elements(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    r"""Yield a tensor's elements as bytes, the last dimension innermost.

    They are the tensor's own memory where it holds them so, which then has to stay as it is, and otherwise
    copies: of what is on another device, strided, conjugated or cast.

    Args:
        tensor: on any device, of any strides; not changed.
        dtype: what its elements are cast to.

    Example:
        >>> matrix = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
        >>> [bytes(part) for part in elements(matrix.t(), torch.uint8)]
        [b'\x01\x03\x02\x04']
    """
    if not _lies_so(tensor, dtype):
        yield from snapshot(tensor, dtype)
        return
    for part in _slices(tensor.detach(), _SLICE // dtype.itemsize):
        yield _bytes(part)


def snapshot(tensor: torch.Tensor, dtype: torch.dtype, most: int = _SLICE) -> Iterator[memoryview]:
    """Yield the same as `elements`, all of it copied.

    Args:
        tensor: on any device, of any strides; not changed.
        dtype: what its elements are cast to.
        most: bytes of one copy; one element at least.
    """
    for part in _slices(tensor.detach(), max(1, most // max(tensor.dtype.itemsize, dtype.itemsize))):
        yield _copied(part, dtype)


def _copied(part: torch.Tensor, dtype: torch.dtype) -> memoryview:
    size = part.numel() * dtype.itemsize
    # Not from the heap: in one that is cut to pieces meanwhile, no slice would fit where the last one was.
    memory = mmap.mmap(-1, size, flags=_PRIVATE) if size >= _MAPPED else bytearray(size)
    torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(part.shape).copy_(part)
    return memoryview(memory).toreadonly()


def _lies_so(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == dtype
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, shared, not copied; they keep the tensor alive."""
    size = tensor.numel() * tensor.element_size()
    exporter = (ctypes.c_ubyte * size).from_address(tensor.data_ptr())
    exporter.owner = tensor  # type: ignore[attr-defined]
    return memoryview(exporter).cast("B").toreadonly()


def _slices(tensor: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Cut a tensor into slices of so many elements that follow one another in it."""
    if not tensor.numel():
        return
    if tensor.numel() <= most:
        yield tensor
        return
    row = tensor.numel() // len(tensor)
    if row <= most:
        rows = most // row
        yield from (tensor[first : first + rows] for first in range(0, len(tensor), rows))
        return
    for index in range(len(tensor)):
        yield from _slices(tensor[index], most)
