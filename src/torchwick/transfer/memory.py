"""First touch of fresh memory, in bulk.

Fresh memory costs a page fault for every 4 KiB at its first touch, which is the largest cost of a load
that copies nothing. Linux 5.14 can touch a whole range in one call (``MADV_POPULATE_WRITE``, madvise(2)),
and a transfer does so for each part while it waits for the answer: the time is hidden by the round trip.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

__all__ = ["populate"]

_MADV_POPULATE_WRITE = 23  # linux/mman.h
_WORTH_A_CALL = 256 << 10
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def populate(buffer: memoryview) -> None:
    """Touch the pages behind `buffer`, leaving what they hold as it is.

    Best effort: where the kernel cannot, the pages are touched one by one as bytes arrive.
    """
    if _libc is None or len(buffer) < _WORTH_A_CALL:
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    first = address & ~(mmap.PAGESIZE - 1)
    _libc.madvise(
        ctypes.c_void_p(first), ctypes.c_size_t(address + len(buffer) - first), _MADV_POPULATE_WRITE
    )
