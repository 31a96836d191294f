"""S3 as fsspec wants it, for libraries that look into directories through fsspec: over torchwick's own store.

It reads what `torchwick.open_file` reads, lists, writes whole objects and deletes. It copies nothing and
keeps no listing. To `exists`, `isdir` and `isfile`, "no" never stands for "could not be asked", as it does
to fsspec's own: a refusal and a failure of the network are raised.
"""

from __future__ import annotations

import importlib.util
import io
import posixpath
from collections.abc import Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, TypeVar

import fsspec

from torchwick.client import Client
from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.errors import ObjectNotFoundError, StoreError, URIError
from torchwick.files import open_file
from torchwick.store import Listing, WritableStore, Writer, open_store, open_writable
from torchwick.transfer import Budget, Tally, Uploads, ask
from torchwick.transfer.insist import Insistent
from torchwick.uri import URI, parse

__all__ = ["S3FileSystem", "register"]

_T = TypeVar("_T")

_BUFFER = 1 << 18  # bytes that are read at once where a few are asked for
_NO_BUCKET = "NoSuchBucket"


class S3FileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """Objects in S3 as files. A directory is there where a key begins with its name and a slash.

    Args:
        s3: who asks and which S3; by default that of `defaults`.
        transfer: how fast and with how much memory; by default that of `defaults`.

    Example:
        >>> S3FileSystem()._strip_protocol("s3://models/run/last.ckpt")
        'models/run/last.ckpt'
    """

    coming: ClassVar[set[URI]] = set()
    """Objects that this process is writing: `exists` counts them in, so that no name is given away twice."""
    defaults: ClassVar[Client] = Client()
    """The settings of all that were given none, whenever they were made: libraries give none."""
    protocol: ClassVar[str] = "s3"
    cachable = False  # it holds nothing, and its settings do not show all that tells them apart

    def __init__(self, *, s3: S3Config | None = None, transfer: TransferConfig | None = None) -> None:
        super().__init__()
        self._given = Client(s3=s3, transfer=transfer)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return what lies directly in a directory, or the object of that name.

        Args:
            path: the address, with or without ``s3://``.
            detail: return what `info` returns of each, not names alone.

        Raises:
            ObjectNotFoundError: nothing is there.
            StoreError: it cannot be told.
        """
        uri = self._uri(path)
        found = [_described(info.uri, info.size, info.etag) for info in self._entries(uri)]
        if not found:
            found = [self._object(uri)]
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return what is known of an object or a directory: ``name``, ``size``, ``type``.

        Raises:
            ObjectNotFoundError: nothing is there.
            StoreError: it cannot be told.
        """
        uri = self._uri(path)
        try:
            return self._object(uri)
        except ObjectNotFoundError:
            if not self._entries(uri):
                raise
        return _described(uri.as_directory(), None, None)

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether there is an object or a directory of that name.

        Raises:
            ObjectNotFoundError: there is no such bucket.
            StoreError: it cannot be told.
        """
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        """Return whether it is a directory; raises as `exists`."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Return whether it is an object; raises as `exists`."""
        return self._type(path) == "file"

    def created(self, path: str) -> datetime:
        """Return when an object was stored: objects are never modified."""
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """Return when an object was stored.

        Raises:
            ObjectNotFoundError: it is not there.
            StoreError: it cannot be told.
        """
        uri = self._uri(path)
        told = self._object(uri)["LastModified"]
        try:
            return parsedate_to_datetime(told or "")
        except ValueError as error:
            hint = "Look for a proxy on the way that rewrites headers."
            raise StoreError("the store does not say when it was stored", uri=uri, hint=hint) from error

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Do nothing: a directory is there as soon as an object is in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing, as `mkdir`."""

    def rm_file(self, path: str) -> None:
        """Delete an object, whether there is one or not.

        Raises:
            StoreError: the store refused.
        """
        uri = self._uri(path)
        with self._uploads() as uploads:
            uploads.delete(uri)

    def rm(
        self,
        path: str | list[str],
        recursive: bool = False,
        maxdepth: int | None = None,
    ) -> None:
        """Delete objects. Names are taken as they are: ``*``, ``?`` and ``[`` mean themselves.

        Args:
            path: one, or several.
            recursive: delete all that is in a directory, too.
            maxdepth: how many directories deep.

        Raises:
            ObjectNotFoundError: nothing is there.
            StoreError: the store refused.
        """
        for one in [path] if isinstance(path, str) else path:
            if self.info(one)["type"] == "file":
                self.rm_file(one)
            elif not recursive:
                hint = "Pass recursive=True to delete all that is in it."
                raise URIError("it is a directory", uri=self._uri(one), hint=hint)
            for uri in self._below(self._uri(one), maxdepth) if recursive else ():
                self.rm_file(str(uri))

    def pipe_file(self, path: str, value: bytes | memoryview, mode: str = "overwrite", **_: Any) -> None:
        """Write an object from memory, in as many parts as it takes.

        Args:
            path: the address.
            value: its bytes.
            mode: ``"overwrite"``, or ``"create"`` where nothing may be overwritten.

        Raises:
            ObjectExistsError: something is there, and `mode` is ``"create"``.
            StoreError: it cannot be written.
        """
        data = memoryview(value).cast("B")
        with self._uploads() as uploads:
            upload = uploads.begin(self._uri(path), len(data), overwrite=mode != "create")
            upload.write(data)
            upload.end()
            uploads.complete()

    def _open(self, path: str, mode: str = "rb", *_: Any, autocommit: bool = True, **__: Any) -> Any:
        """Open an object, as fsspec's `open` asks for it."""
        if mode == "rb":
            file = open_file(str(self._uri(path)), s3=self._s3, transfer=self._transfer)
            return io.BufferedReader(file, _BUFFER)
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"objects are opened with the modes rb, wb, xb and ab, not {mode}")
        how = "create" if mode == "xb" else "overwrite"
        writing = _Writing(lambda data: self.pipe_file(path, data, how), autocommit=autocommit)
        if mode == "ab" and self.isfile(path):
            writing.write(self.cat_file(path))  # S3 appends nothing: all of it is written anew
        return writing

    def _type(self, path: str) -> str | None:
        if self._uri(path) in self.coming:
            return "file"
        try:
            return str(self.info(path)["type"])
        except ObjectNotFoundError as error:
            if error.code == _NO_BUCKET:
                raise
            return None

    def _uri(self, path: str) -> URI:
        name = self._strip_protocol(path)
        return parse(f"s3://{name}" if "/" in name else f"s3://{name}/")

    def _object(self, uri: URI) -> dict[str, Any]:
        """Return what is known of an object.

        Raises:
            ObjectNotFoundError: there is none.
        """
        found = None if uri.is_directory else self._ask(lambda writer: writer.find(uri), uri)
        if found is None:
            raise ObjectNotFoundError("there is no such object", uri=uri, hint="Check the key.")
        return _described(uri, found.size, found.etag) | {"LastModified": found.modified}

    def _entries(self, uri: URI) -> Listing:
        """Return what is in a directory; nothing where there is none.

        Raises:
            StoreError: it cannot be told.
        """
        directory = uri.as_directory()
        store = open_store(directory, self._s3, self._transfer.timeout)
        entries = ask(lambda connection: connection.entries(directory), directory, store, self._transfer)
        if entries is None:
            hint = "Use a store that knows ListObjectsV2, or a directory of this machine."
            raise StoreError("the store lists nothing", uri=directory, hint=hint)
        return entries

    def _below(self, directory: URI, maxdepth: int | None) -> Iterator[URI]:
        """Yield the objects in a directory, and in those in it."""
        for info in self._entries(directory):
            if not info.uri.is_directory:
                yield info.uri
            elif maxdepth is None or maxdepth > 1:
                yield from self._below(info.uri, None if maxdepth is None else maxdepth - 1)

    def _ask(self, send: Callable[[Writer], _T], uri: URI) -> _T:
        asking = Insistent(lambda: self._store.writer(PutOptions()), self._transfer, Budget(self._transfer))
        return asking.ask(send, uri, Tally(), done="looked at")

    def _uploads(self) -> Uploads:
        return Uploads(self._store, self._transfer)

    @property
    def _s3(self) -> S3Config:
        return self._given.s3 or self.defaults.s3 or S3Config()

    @property
    def _transfer(self) -> TransferConfig:
        return self._given.transfer or self.defaults.transfer or TransferConfig()

    @property
    def _store(self) -> WritableStore:
        return open_writable(parse("s3://any/"), self._s3, self._transfer.timeout)


class _Writing(io.BytesIO):
    """Bytes that become an object when they are closed; within a transaction, at its end.

    Left by an error in a ``with`` statement, they become none.
    """

    def __init__(self, put: Callable[[bytes], object], *, autocommit: bool) -> None:
        super().__init__()
        self._put = put
        self._autocommit = autocommit

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._autocommit:
            self.discard()
        self.close()

    def close(self) -> None:
        """Write the object, unless a transaction is to do that."""
        if not self.closed and self._autocommit:
            self.commit()

    def commit(self) -> None:
        """Write the object."""
        try:
            self._put(self.getvalue())
        finally:
            self.discard()

    def discard(self) -> None:
        """Let go of the bytes."""
        super().close()


def _described(uri: URI, size: int | None, etag: str | None) -> dict[str, Any]:
    """Return what fsspec wants to know."""
    name = posixpath.join(uri.bucket, uri.key).rstrip("/")
    if uri.is_directory:
        return {"name": name, "size": 0, "type": "directory"}
    return {"name": name, "size": size, "type": "file", "ETag": etag}


def register() -> None:
    """Have fsspec take it for ``s3://``, unless s3fs is installed or something else was registered."""
    if S3FileSystem.protocol not in fsspec.registry and importlib.util.find_spec("s3fs") is None:
        fsspec.register_implementation(S3FileSystem.protocol, S3FileSystem, clobber=False)
