"""Memory that is used again and again for what is read only to be cast, or copied, to somewhere else."""

from __future__ import annotations

import collections
import threading

import torch

from torchwick.checkpoint import tensors
from torchwick.loading.casting import as_dtype

__all__ = ["Ring"]

_LARGE = 1 << 20  # bytes from which on it costs more to touch new memory than to look for used one


class Ring:
    """Lends memory, and lends again what is given back.

    The system clears each page of memory that is new: for a checkpoint that is cast, a quarter of the
    processor's time. How much is lent at once is bounded by whoever asks for it; pieces are of powers of two,
    so that each fits many.

    Args:
        allocate: makes new ones.

    Example:
        >>> ring = Ring()
        >>> first = ring.lend(3 << 20, "s3://models/new.pt")
        >>> ring.give_back(first)
        >>> ring.lend(4 << 20, "s3://models/new.pt").data_ptr() == first.data_ptr()
        True
    """

    def __init__(self, allocate: tensors.Allocate = tensors.allocate) -> None:
        self._allocate = allocate
        self._lock = threading.Lock()
        self._free: dict[int, list[torch.Tensor]] = collections.defaultdict(list)

    def lend(self, nbytes: int, uri: object) -> torch.Tensor:
        """Return memory of so many bytes, for an object that messages name."""
        if nbytes < _LARGE:
            return self._allocate(nbytes, uri)
        size = 1 << (nbytes - 1).bit_length()
        with self._lock:
            free = self._free[size]
            memory = free.pop() if free else self._allocate(size, uri)
        return memory[:nbytes]

    def give_back(self, memory: torch.Tensor) -> None:
        """Take back what was lent."""
        storage = memory.untyped_storage()
        if storage.nbytes() >= _LARGE:
            with self._lock:
                self._free[storage.nbytes()].append(as_dtype(storage, torch.uint8))
