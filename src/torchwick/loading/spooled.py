"""The careful path: the whole object in memory that looks like a file, opened by torch's own loader.

The file is a ``memfd`` (memfd_create(2)): memory with a name under ``/proc``, never a disk. It is filled in
parallel like any other memory; where torch can map it, its pages become the tensors, and no second copy is
ever made.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from torchwick.errors import FormatError, MemoryLimitError
from torchwick.loading.source import Source
from torchwick.transfer import Fill

__all__ = ["spool"]


@contextmanager
def spool(source: Source, *, second_copy: bool) -> Iterator[str]:
    """Fetch the whole object into memory, and yield the path under which it can be opened.

    Args:
        source: the object.
        second_copy: whether the loader will copy out of the file: the file then counts against
            ``TransferConfig.memory_limit``.

    Raises:
        MemoryLimitError: the file would be larger than the limit.
        StoreError: the bytes cannot be read.
    """
    # Once, before any of it is fetched: what is left of the machine's memory shrinks as the file grows.
    limit = source.config.memory_bytes() if second_copy else None
    with _memory_file() as file:
        if source.info.size is None:
            source.pour(file, lambda size: _check_limit(source, size, limit))
        else:
            _check_limit(source, source.info.size, limit)
            file.truncate(source.info.size)
            # Unmapped as soon as no one refers to it: torch maps the file anew.
            source.fill([Fill(0, memoryview(mmap.mmap(file.fileno(), source.info.size)))])
        yield f"/proc/self/fd/{file.fileno()}"


def _memory_file() -> BinaryIO:
    if not hasattr(os, "memfd_create"):
        raise FormatError(
            "this kind of file needs Linux, whose memory can be opened as a file",
            hint="Download it, and load it from a local path.",
        )
    return os.fdopen(os.memfd_create("torchwick"), "r+b", buffering=0)


def _check_limit(source: Source, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise MemoryLimitError(
            f"it can only be loaded by way of a second copy in memory, whose {size} bytes exceed the memory "
            f"limit of {limit}",
            uri=source.uri,
            hint="Raise TransferConfig.memory_limit, or save it anew as safetensors.",
            needed=size,
            limit=limit,
        )
