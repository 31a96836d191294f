"""The memory of a tensor, as a buffer that bytes can be read into."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["writable_bytes"]


def writable_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, shared, not copied.

    The view does not keep the tensor alive: whoever holds it must.

    Example:
        >>> tensor = torch.zeros(2, dtype=torch.int16)
        >>> writable_bytes(tensor)[0] = 7
        >>> tensor.tolist()
        [7, 0]
    """
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")
