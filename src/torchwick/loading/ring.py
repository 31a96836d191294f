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
    processor's time. How much is lent at once is bounded by whoever asks for it; pieces are up to an eighth
    larger than what is asked for, so that each fits many.

    Args:
        most: bytes that are kept at most; what no one uses goes before more are taken.
        allocate: makes new ones.

    Example:
        >>> ring = Ring(100 << 20)
        >>> first = ring.lend(15 << 20, "s3://models/new.pt")
        >>> ring.give_back(first)
        >>> ring.lend(16 << 20, "s3://models/new.pt").data_ptr() == first.data_ptr()
        False
        >>> ring.lend((15 << 20) - 7, "s3://models/new.pt").data_ptr() == first.data_ptr()
        True
    """

    def __init__(self, most: int, allocate: tensors.Allocate = tensors.allocate) -> None:
        self._most = most
        self._allocate = allocate
        self._held = 0  # bytes, lent or not
        self._lock = threading.Lock()
        self._free: dict[int, list[torch.Tensor]] = collections.defaultdict(list)

    def lend(self, nbytes: int, uri: object) -> torch.Tensor:
        """Return memory of so many bytes, for an object that messages name."""
        if nbytes < _LARGE:
            return self._allocate(nbytes, uri)
        step = 1 << ((nbytes - 1).bit_length() - 4)
        size = -(-nbytes // step) * step
        with self._lock:
            free = self._free[size]
            memory = free.pop() if free else self._new(size, uri)
        return memory[:nbytes]

    def _new(self, size: int, uri: object) -> torch.Tensor:
        unused = [others for others in self._free.values() if others]
        while unused and self._held + size > self._most:
            self._held -= unused[-1].pop().nbytes
            unused = [others for others in unused if others]
        self._held += size
        return self._allocate(size, uri)

    def give_back(self, memory: torch.Tensor) -> None:
        """Take back what was lent."""
        storage = memory.untyped_storage()
        if storage.nbytes() >= _LARGE:
            with self._lock:
                self._free[storage.nbytes()].append(as_dtype(storage, torch.uint8))
