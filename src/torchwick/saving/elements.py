"""The bytes of a tensor as a file has them: one element behind the other, of another dtype if need be."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchwick.checkpoint.buffers import writable_bytes

__all__ = ["elements"]

_SLICE = 16 << 20
"""Bytes of the copy that a cast or a strided tensor takes: large enough for the calls not to count."""


def elements(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    r"""Yield a tensor's elements as bytes, the last dimension innermost, each stretch valid until the next.

    Args:
        tensor: on the CPU, of any strides; not changed.
        dtype: what its elements are cast to.

    Example:
        >>> matrix = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
        >>> [bytes(part) for part in elements(matrix.t(), torch.uint8)]
        [b'\x01\x03\x02\x04']
    """
    width = max(tensor.dtype.itemsize, dtype.itemsize)
    for part in _slices(tensor, _SLICE // width):
        plain = part.detach().to(dtype).resolve_conj().resolve_neg().contiguous()
        yield writable_bytes(plain)


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
