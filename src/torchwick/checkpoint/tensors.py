"""From bytes in memory to torch's tensors: the one place of a checkpoint that knows torch."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Callable
from typing import Any

import torch

from torchwick.errors import FormatError, MemoryLimitError
from torchwick.formats.catalog import contiguous
from torchwick.formats.dtypes import DTYPES

__all__ = ["Allocate", "allocate", "dtype_of", "empty", "finish", "view"]

Allocate = Callable[[int, object], torch.Tensor]
"""Makes memory of so many bytes, untouched, for an object that messages name."""

_PAGES = 1 << 20
"""Bytes from which on memory is a mapping of its own.

glibc would take up to 32 MiB from its heaps, which do not shrink while anything behind the hole is in use: a
stream within 64 MB then grows to several times that.
"""


def allocate(nbytes: int, uri: object) -> torch.Tensor:
    """Return memory that nothing has touched yet, aligned for any element.

    If it is large, the system gets it back at the moment it is freed.

    Raises:
        MemoryLimitError: the machine has not as much.
    """
    if nbytes >= _PAGES:
        with contextlib.suppress(OSError):  # a process may have some 65,000 mappings
            pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            return torch.frombuffer(pages, dtype=torch.uint8)
    return _empty((nbytes,), torch.uint8, uri)


def dtype_of(name: str, uri: object) -> torch.dtype:
    """Return torch's dtype for safetensors' name of it.

    Raises:
        FormatError: this torch has none.
    """
    dtype = getattr(torch, DTYPES[name].torch, None)
    if not isinstance(dtype, torch.dtype):
        hint = "A newer torch may have it."
        raise FormatError(f"torch {torch.__version__} has no dtype for {name}", uri=uri, hint=hint)
    return dtype


def empty(
    dtype: str, shape: tuple[int, ...], uri: object, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Return uninitialised memory of a dtype and shape.

    Raises:
        FormatError: torch has no such dtype, or not of that shape.
        MemoryLimitError: the machine has not as much.
    """
    kind, lengths = dtype_of(dtype, uri), _as_torch_counts(dtype, shape, uri)
    if 0 in lengths:  # whose other lengths may be beyond what torch.empty multiplies
        return torch.empty(0, dtype=kind, device=device).reshape(lengths)
    return _empty(lengths, kind, uri, device)


def _empty(
    lengths: tuple[int, ...], kind: torch.dtype, uri: object, device: str | torch.device = "cpu"
) -> torch.Tensor:
    try:
        return torch.empty(lengths, dtype=kind, device=device)
    except RuntimeError as error:  # for want of memory, all lengths being counts
        needed = math.prod(lengths) * kind.itemsize
        hint = "Read it in parts: get_slice(name)[…]."
        message = f"there is no memory for {needed} bytes"
        raise MemoryLimitError(message, uri=uri, hint=hint, needed=needed) from error


def _as_torch_counts(dtype: str, shape: tuple[int, ...], uri: object) -> tuple[int, ...]:
    if dtype != "F4":
        return shape
    if not shape or shape[-1] % 2:  # two elements in one of torch's
        message = f"a tensor of dtype F4 has the shape {list(shape[-16:])}, and torch takes them in pairs"
        raise FormatError(message, uri=uri, hint="Save it anew, its last dimension even.")
    return (*shape[:-1], shape[-1] // 2)


def view(
    memory: torch.Tensor, at: int, dtype: str, place: tuple[tuple[int, ...], tuple[int, ...]], uri: object
) -> torch.Tensor:
    """Return a view of memory.

    Args:
        memory: what it is a view of, bytes.
        at: bytes from the beginning of memory to element [0, 0, …].
        dtype: as safetensors spells it.
        place: shape and strides, in elements.
        uri: the object, for messages.
    """
    kind, (shape, stride) = dtype_of(dtype, uri), place
    if DTYPES[dtype].bits < 8:  # which only lie one behind the other
        shape = _as_torch_counts(dtype, shape, uri)
        stride = contiguous(shape)
    tensor = torch.empty(0, dtype=kind, device="cpu")
    set_: Any = tensor.set_  # whose annotation knows no untyped storage
    set_(memory.untyped_storage(), (memory.storage_offset() + at) // kind.itemsize, shape, stride)
    return tensor


def finish(tensor: torch.Tensor, lazy: tuple[str, ...], byteorder: str) -> torch.Tensor:
    """Do to a tensor's elements what is still to be done to those that were stored."""
    if byteorder != sys.byteorder:
        tensor = tensor.clone()  # others may be views of the same bytes
        storage: Any = tensor.untyped_storage()
        storage.byteswap(tensor.dtype)
    if "conj" in lazy:
        tensor = tensor.conj()
    if "neg" in lazy:
        tensor = torch._neg_view(tensor)  # noqa: SLF001 - there is no public one
    return tensor
