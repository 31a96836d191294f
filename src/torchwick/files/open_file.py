"""`open_file`: an object as a file that is read where it lies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torchwick.config import S3Config, TransferConfig
from torchwick.files.file import File
from torchwick.uri import parse

if TYPE_CHECKING:
    from torchwick.files.file import Bytes
    from torchwick.store import Store
    from torchwick.uri import URI

__all__ = ["open_file"]


def open_file(
    uri: str | os.PathLike[str], *, s3: S3Config | None = None, transfer: TransferConfig | None = None
) -> File:
    """Open an object as a binary file, for whatever takes one: zipfile, numpy, pandas, PIL, torch.load.

    Its first bytes are read at once, and pin the version. The rest is read when it is asked for: small pieces
    with what lies around them, large ones and those that follow each other by many connections, ahead of the
    reader.

    Args:
        uri: ``s3://bucket/key`` (``?versionId=…`` for one version), ``https://…`` (public or presigned), or a
            local path.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast, and with ``memory_limit`` how much may be held for the reader; by default 256 MiB
            at the most.

    Returns:
        The file: read-only, seekable, unbuffered. Wrap it in `io.BufferedReader` to read lines, or a few
        bytes at a time.

    Raises:
        URIError: `uri` is no address.
        MemoryLimitError: the server sends no ranges, so that the object has to be held in memory, and it is
            larger than the limit.
        StoreError: it cannot be read.

    Example:
        >>> import tempfile, pathlib, torchwick
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers.bin")
        ...     _ = path.write_bytes(bytes(range(100)))
        ...     with torchwick.open_file(path) as file:
        ...         file.seek(-3, 2), file.read(), file.size
        (97, b'abc', 100)
    """
    from torchwick.store import open_store

    address, config = parse(uri), transfer or TransferConfig()
    store = open_store(address, s3 or S3Config(), config.timeout)
    content = _content(store, address, config)
    return File(content, address)


def _content(store: Store, uri: URI, config: TransferConfig) -> Bytes:
    # Imported here, so that importing torchwick costs no import of HTTP and TLS.
    from torchwick.files.held import hold
    from torchwick.files.reading import Reading
    from torchwick.transfer import RangeCache

    cache = RangeCache(store, uri, config)
    if cache.info.size is None or not cache.info.ranged:
        return hold(store, cache.info, config)
    return Reading(store, cache.info, cache.info.size, config, cache.head)
