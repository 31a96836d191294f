"""From a URI to a catalog: which objects are meant, of which format they are, and where their tensors are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torchwick.checkpoint.objects import Objects
from torchwick.config import TransferConfig
from torchwick.errors import AccessDeniedError, FormatError, ObjectNotFoundError, StoreError, URIError
from torchwick.formats import safetensors
from torchwick.formats.catalog import Catalog, TensorEntry
from torchwick.formats.dcp import METADATA, read_dcp
from torchwick.formats.huggingface import KNOWN, Index, choose, read_index
from torchwick.formats.sniff import sniff
from torchwick.formats.torch_catalog import legacy_catalog, zip_catalog
from torchwick.store import ObjectInfo, Store
from torchwick.transfer import RangeCache, Tally, list_directory
from torchwick.uri import URI

__all__ = ["at_once", "catalog_of", "names_many", "open_instead", "open_objects", "read_text"]

_T = TypeVar("_T")
_INDEX = ".index.json"
_SHARD_HEAD = 64 << 10
"""Bytes of the first read of a shard: its header whole, with some 500 tensors; 64 of them in 4 MiB."""
_MOST_TEXT = 1 << 30  # bytes of an index or of .metadata, which are held whole
_LONGEST_NAME = 1024  # of a key in S3
_AT_ONCE = 16  # shards looked into at the same time


def names_many(address: URI) -> bool:
    """Whether an address says that several objects are meant: a directory, or the index of one."""
    name = address.key.rpartition("/")[2]
    if address.scheme == "file" and Path(address.key).is_dir():
        return True
    return address.is_directory or name == METADATA or name.endswith(_INDEX)


def open_objects(address: URI, store: Store, config: TransferConfig) -> tuple[Catalog, Objects]:
    """Look into a checkpoint as far as its catalog needs.

    Args:
        address: an object, or a directory.
        store: where it is.
        config: how to read.

    Raises:
        FormatError: it is no checkpoint, or corrupt, or one that can only be loaded as a whole.
        StoreError: it cannot be read.
    """
    if names_many(address):
        return _Opener(store, config).many(address)
    try:
        cache = RangeCache(store, address, config)
    except ObjectNotFoundError as error:
        return open_instead(address, store, config, error)
    return catalog_of(cache), Objects(address, store, config, {"": cache})


def open_instead(
    address: URI, store: Store, config: TransferConfig, error: ObjectNotFoundError
) -> tuple[Catalog, Objects]:
    """Look into the directory that an address without its slash turns out to mean.

    Raises:
        ObjectNotFoundError: `error`, if there is no such directory either.
    """
    if address.version is None and not address.query:
        directory, opener = address.as_directory(), _Opener(store, config)
        try:
            listed = opener.listed(directory)
        except StoreError:  # of which the caller asked nothing
            listed = None
        if listed:
            return opener.chosen(directory, listed)
    raise error


@dataclass(frozen=True)
class _Opener:
    """Opens directories."""

    store: Store
    config: TransferConfig
    spent: Tally = field(default_factory=Tally)  # on what is no object of tensors: listings and indexes

    def many(self, address: URI) -> tuple[Catalog, Objects]:
        name = address.key.rpartition("/")[2]
        if name == METADATA or name.endswith(_INDEX):
            directory = replace(address, key=address.key.removesuffix(name), version=None)
            return self._named(directory, [name], {})
        directory = address.as_directory()
        try:
            listed = self.listed(directory)
        except AccessDeniedError as error:  # the objects may be read none the less
            if directory.scheme == "file":
                raise
            return self._guessed(directory, error)
        return self._guessed(directory) if listed is None else self.chosen(directory, listed)

    def listed(self, directory: URI) -> dict[str, ObjectInfo] | None:
        """Return what is in a directory by name, or None where the store cannot tell."""
        listed = list_directory(directory, self.store, self.config, self.spent)
        self.spent.requests += 1  # of one page, which tells of a thousand objects
        return listed

    def chosen(self, directory: URI, listed: Mapping[str, ObjectInfo]) -> tuple[Catalog, Objects]:
        names = [METADATA] if METADATA in listed else choose(list(listed), directory)
        return self._named(directory, names, listed)

    def _guessed(self, directory: URI, denied: AccessDeniedError | None = None) -> tuple[Catalog, Objects]:
        """Try the names that a model may have, where there is no listing.

        To those who may not list them, S3 denies objects that are not there.
        """
        for name in (METADATA, *KNOWN):
            try:
                return self._named(directory, [name], {})
            except ObjectNotFoundError:
                continue
            except AccessDeniedError as error:
                denied = denied or error
        if denied is not None:
            raise denied
        hint = "The server lists no directories: name the model's file, or its index."
        raise ObjectNotFoundError("none of the names that models have is there", uri=directory, hint=hint)

    def _named(
        self, directory: URI, names: list[str], listed: Mapping[str, ObjectInfo]
    ) -> tuple[Catalog, Objects]:
        """Open a directory by the file, or the files, that its model is said to be in."""
        (name, *more) = names
        if name == METADATA:
            return self._distributed(directory, listed)
        if name.endswith(_INDEX):
            return self._indexed(directory, name, listed)
        return self._shards(directory, [name, *more], listed, None)

    def _whole(self, uri: URI, info: ObjectInfo | None) -> bytes:
        cache = RangeCache(self.store, uri, self.config, info=info)
        whole = read_text(cache)
        self.spent.bytes_read += cache.tally.bytes_read
        self.spent.requests += cache.tally.requests
        self.spent.retries += cache.tally.retries
        return whole

    def _objects(self, directory: URI, caches: Mapping[str, RangeCache]) -> Objects:
        objects = Objects(directory, self.store, self.config, caches)
        objects.spend(self.spent)
        return objects

    def _indexed(
        self, directory: URI, name: str, listed: Mapping[str, ObjectInfo]
    ) -> tuple[Catalog, Objects]:
        uri = directory.child(name)
        index = read_index(self._whole(uri, listed.get(name)), uri)
        shards = sorted(set(index.shard_of.values()))
        # A listing tells of no deeper folders.
        missing = [shard for shard in shards if listed and "/" not in shard and shard not in listed]
        if missing:
            raise _missing(missing[0], uri)
        return self._shards(directory, shards, listed, index)

    def _shards(
        self, directory: URI, shards: list[str], listed: Mapping[str, ObjectInfo], index: Index | None
    ) -> tuple[Catalog, Objects]:
        def look(shard: str) -> tuple[RangeCache, Catalog]:
            cache = (self._cache if index is None else self._told)(directory, shard, listed)
            return cache, catalog_of(cache)

        looked = at_once(look, shards)
        catalog = _merged({shard: found for shard, (_, found) in looked.items()}, index, directory)
        caches = {shard: cache for shard, (cache, _) in looked.items()}
        return catalog, self._objects(directory, caches)

    def _cache(self, directory: URI, name: str, listed: Mapping[str, ObjectInfo]) -> RangeCache:
        uri = directory.child(name)
        return RangeCache(self.store, uri, self.config, info=listed.get(name), read_ahead=_SHARD_HEAD)

    def _told(self, directory: URI, name: str, listed: Mapping[str, ObjectInfo]) -> RangeCache:
        """Look into a file that an index names, which a stranger may have written."""
        if len(name) > _LONGEST_NAME:
            raise _missing(name, directory)
        try:
            return self._cache(directory, name, listed)
        except URIError as error:
            raise FormatError(error.message, uri=directory, hint=error.hint) from error
        except ObjectNotFoundError as error:
            raise _missing(name, directory) from error

    def _distributed(self, directory: URI, listed: Mapping[str, ObjectInfo]) -> tuple[Catalog, Objects]:
        uri = directory.child(METADATA)
        catalog = read_dcp(self._whole(uri, listed.get(METADATA)), uri)
        files = sorted({piece.object for entry in catalog.entries.values() for piece in entry.pieces})
        caches = at_once(lambda file: self._told(directory, file, listed), files)
        for entry in catalog.entries.values():
            _check_within(entry, caches, uri)
        return catalog, self._objects(directory, caches)


def _missing(name: str, uri: URI) -> FormatError:
    hint = "Upload the directory again, whole."
    return FormatError(f"its index names {name[:200]!r}, which is not in the directory", uri=uri, hint=hint)


def read_text(cache: RangeCache) -> bytes:
    """Return all of an object that lists tensors.

    Raises:
        FormatError: it is far larger than that.
        StoreError: it cannot be read.
    """
    info = cache.info
    if (info.size or 0) > _MOST_TEXT:
        message = f"it has {info.size} bytes, far more than a list of tensors takes"
        raise FormatError(message, uri=info.uri, hint="Check the directory.")
    return bytes(cache.read(0, info.size) if info.size is not None else cache.head)


def at_once(do: Callable[[str], _T], names: Sequence[str]) -> dict[str, _T]:
    """Return what is done for each name, in their order; several are done at the same time."""
    if not names:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(names)), thread_name_prefix="torchwick-open") as pool:
        return dict(zip(names, pool.map(do, names), strict=True))


def catalog_of(cache: RangeCache) -> Catalog:
    """Return the catalog of one object.

    Raises:
        FormatError: it is no checkpoint, or corrupt, or one that can only be loaded as a whole.
        StoreError: it cannot be read.
    """
    uri, size = cache.info.uri, cache.info.size
    kind = sniff(cache.head, uri)
    if kind == "safetensors":
        return safetensors.read_catalog(cache.read, size, uri)
    if kind == "legacy":
        return legacy_catalog(cache.read, size, uri)
    if kind == "tar":
        hint = "torchwick.load(…, weights_only=False) reads it as a whole, if you trust its maker."
        raise FormatError("the tar format of torch before 0.1.10 cannot be looked into", uri=uri, hint=hint)
    if size is None or not cache.info.ranged:
        hint = "torchwick.load reads it as a whole."
        raise FormatError("the server sends no ranges, which a zip archive needs", uri=uri, hint=hint)
    return zip_catalog(cache.read, size, uri)


def _merged(found: Mapping[str, Catalog], index: Index | None, directory: URI) -> Catalog:
    """Return one catalog for the shards of a model.

    Raises:
        FormatError: they are of several kinds, or name a tensor twice, or do not hold what the index says.
    """
    kinds = {catalog.format for catalog in found.values()}
    if len(kinds) > 1:
        hint = "Keep one model in a directory."
        raise FormatError("its shards are of different formats", uri=directory, hint=hint)
    (kind,) = kinds
    metadata = {key: text for catalog in found.values() for key, text in catalog.metadata.items()}
    others = {key: text for catalog in found.values() for key, text in catalog.others.items()}
    entries = _indexed(found, index, directory) if index else _united(found, directory)
    return Catalog(kind, entries, metadata | (index.metadata if index else {}), others)


def _indexed(found: Mapping[str, Catalog], index: Index, directory: URI) -> dict[str, TensorEntry]:
    entries = {}
    for name, shard in index.shard_of.items():
        entry = found[shard].entries.get(name)
        if entry is None:
            hint = "The index and the shards are of different models: upload the directory again, whole."
            raise FormatError(
                f"tensor {name[:100]!r} is not in {shard!r}, where the index has it", uri=directory, hint=hint
            )
        entries[name] = _in_object(entry, shard)
    return entries


def _united(found: Mapping[str, Catalog], directory: URI) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for shard, catalog in found.items():
        twice = entries.keys() & catalog.entries.keys()
        if twice:
            hint = "Files of different models are in the directory: name one of them."
            raise FormatError(f"tensor {min(twice)[:100]!r} is in two files", uri=directory, hint=hint)
        entries |= {name: _in_object(entry, shard) for name, entry in catalog.entries.items()}
    return entries


def _in_object(entry: TensorEntry, name: str) -> TensorEntry:
    pieces = tuple(replace(piece, object=name) for piece in entry.pieces)
    return replace(entry, pieces=pieces)  # type: ignore[arg-type]  # all are of the one kind they were


def _check_within(entry: TensorEntry, caches: Mapping[str, RangeCache], uri: URI) -> None:
    for piece in entry.pieces:
        size, stop = caches[piece.object].info.size, getattr(piece, "stop", 0)
        if size is not None and stop > size:
            hint = "It was cut short: upload the directory again, whole."
            raise FormatError(
                f"file {piece.object!r} ends at byte {size}, before its tensors do at {stop}",
                uri=uri,
                hint=hint,
            )
