"""Where the bytes live. Stores know objects and ranges; never tensors."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

from torchwick.config import S3Config
from torchwick.errors import URIError
from torchwick.store.base import (
    Body,
    Connection,
    DamagedError,
    Listing,
    Multipart,
    ObjectInfo,
    Store,
    Stored,
    StoredChecksum,
    StoredPart,
    WritableStore,
    Writer,
)
from torchwick.store.collector import collector_paused
from torchwick.uri import URI

__all__ = [
    "Body",
    "Connection",
    "DamagedError",
    "Listing",
    "Multipart",
    "ObjectInfo",
    "Store",
    "Stored",
    "StoredChecksum",
    "StoredPart",
    "WritableStore",
    "Writer",
    "open_store",
    "open_writable",
]


def open_store(uri: URI, config: S3Config, timeout: float) -> Store:
    """Return the store that holds `uri`, the same one for the same settings and AWS environment.

    Args:
        uri: any object of the store.
        config: who asks, and which S3.
        timeout: seconds without a byte after which a connection counts as dead.
    """
    return _open_store(uri.scheme, config, timeout, _environment())


def open_writable(uri: URI, config: S3Config, timeout: float) -> WritableStore:
    """Return the store that `uri` is to be written to; it is the one that `open_store` returns.

    Args:
        uri: any object of the store.
        config: who asks, and which S3.
        timeout: seconds without progress after which a connection counts as dead.

    Raises:
        URIError: nothing is uploaded to such an address.
    """
    if uri.scheme != "s3":
        hint = "Name an object in S3: s3://bucket/key."
        raise URIError("only to S3 is anything uploaded", uri=uri, hint=hint)
    from torchwick.store.s3 import S3Store

    store = open_store(uri, config, timeout)
    if not isinstance(store, S3Store):
        raise TypeError("the store of an s3:// address is an S3Store")
    return store


def _environment() -> str:
    """Return a digest of what botocore and the lines read when they are made: a change of it makes others.

    A digest, since keys are among it.
    """
    read = sorted((name, value) for name, value in os.environ.items() if _matters(name))
    return hashlib.sha256(repr(read).encode("utf-8", "surrogateescape")).hexdigest()


def _matters(name: str) -> bool:
    return (
        name.startswith(("AWS_", "SSL_CERT_"))
        or name.upper().endswith("_PROXY")
        or name in ("HOME", "REQUESTS_CA_BUNDLE")
    )


@lru_cache(maxsize=8)
def _open_store(scheme: str, config: S3Config, timeout: float, environment: str) -> Store:  # noqa: ARG001
    # Imported here, so that a local file or a plain URL costs no import of botocore.
    if scheme == "s3":
        with collector_paused():
            from torchwick.store.s3 import S3Store

            return S3Store(config, timeout)
    if scheme == "file":
        from torchwick.store.local import LocalStore

        return LocalStore()
    from torchwick.store.web import WebStore

    return WebStore(config, timeout, secure=scheme == "https")


if hasattr(os, "register_at_fork"):  # a lock that a thread of the parent holds is held for ever in the child
    os.register_at_fork(after_in_child=_open_store.cache_clear)
