"""What a destination means: one file, or a directory with a model in it, under the names that are known."""

from __future__ import annotations

import logging
import os
import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from torchwick.config import S3Config, TransferConfig
from torchwick.errors import (
    AccessDeniedError,
    FormatError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    URIError,
)
from torchwick.formats.huggingface import read_index
from torchwick.store import Store, open_store
from torchwick.uri import URI, parse

if TYPE_CHECKING:
    from torchwick.transfer import RangeCache

__all__ = [
    "INDEX",
    "WHOLE",
    "Destination",
    "Standing",
    "destination",
    "generation",
    "save_destination",
    "shard_names",
]

_log = logging.getLogger("torchwick")

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_OF_MODELS = re.compile(
    r"model(-[0-9a-f]{8})?(-\d{5}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json"
)
_ENDING = ".safetensors"
_OTHERS = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class Standing:
    """The model that is in a directory.

    Attributes:
        whole: whether it has a file with all of it.
        index: whether it has an index.
        shards: what the index names.
    """

    whole: bool = False
    index: bool = False
    shards: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.whole or self.index


@dataclass(frozen=True)
class Destination:
    """Where a model is to be written.

    Attributes:
        uri: as it was given.
        directory: where its files are to be.
        file: the name of the one file; None: those of a directory's model.
        s3: who asks, and which S3.
        transfer: how it is looked at.
    """

    uri: URI
    directory: URI
    file: str | None
    s3: S3Config
    transfer: TransferConfig

    def present(self) -> list[str]:
        """Return the names of what is there already and in the way, orphaned shards among them.

        Raises:
            StoreError: it cannot be told, or something else is there, which cannot be replaced.
        """
        if self.file is not None:
            return [self.file] if self._is_there(self.file) else []
        if self.directory.scheme == "file":
            return _of_models(_local_names(self.directory))
        from torchwick.transfer import list_directory

        return _of_models([*(list_directory(self.directory, self._store, self.transfer) or ())])

    def refuse_present(self) -> list[str]:
        """Refuse to go on where something is; return that nothing is.

        Raises:
            ObjectExistsError: a file, or a model, is there.
        """
        present = self.present()
        if present:
            self.refuse(present[0])
        return present

    def refuse(self, name: str) -> NoReturn:
        """Refuse to go on because a file is there.

        Raises:
            ObjectExistsError: always.
        """
        what = "it exists" if self.file else f"there is a model already: {name}"
        raise ObjectExistsError(what, uri=self.uri, hint=_NAME_ANOTHER)

    def standing(self) -> Standing:
        """Return what readers of the directory find now. It need not be listed for that.

        Raises:
            StoreError: it cannot be told.
        """
        whole, index = self._is_there(WHOLE), self._look(INDEX)
        if index is None:
            return Standing(whole)
        size = index.info.size or len(index.head)
        try:
            named = set(read_index(bytes(index.read(0, size)), index.info.uri).shard_of.values())
        except FormatError as error:
            _log.warning("%s; what it may have named is left there", error)
            named = set()
        ours = {name for name in named if "/" not in name and name.endswith(_ENDING)}
        return Standing(whole, True, tuple(sorted(ours)))

    def _is_there(self, name: str) -> bool:
        if self.directory.scheme == "file":
            return os.path.lexists(Path(self.directory.key) / name)
        return self._look(name) is not None

    def _look(self, name: str) -> RangeCache | None:
        from torchwick.transfer import RangeCache

        try:
            return RangeCache(self._store, self.directory.child(name), self.transfer)
        except ObjectNotFoundError:
            return None
        except AccessDeniedError:
            if self.directory.scheme == "file":
                raise
            # To those who may not list it, S3 denies what is not there; and they may write.
            _log.warning("%s: whether %s is there already may not be looked at", self.directory, name)
            return None

    @property
    def _store(self) -> Store:
        return open_store(self.directory, self.s3, self.transfer.timeout)


_NAME_ANOTHER = "Write to another place, or pass overwrite=True."


def _local_names(directory: URI) -> list[str]:
    path = Path(directory.key)
    if not path.is_dir():
        if os.path.lexists(path):
            raise StoreError("it is no directory", uri=directory, hint="Name another.")
        return []
    try:
        return os.listdir(path)  # noqa: PTH208
    except OSError as error:
        text = f"the directory cannot be read: {error.strerror}"
        raise StoreError(text, uri=directory, hint="Check its mode.") from error


def _of_models(names: list[str]) -> list[str]:
    return sorted(name for name in names if _OF_MODELS.fullmatch(name))


def destination(
    given: str | os.PathLike[str], s3: S3Config | None = None, transfer: TransferConfig | None = None
) -> Destination:
    """Say what is meant: a name that ends in ``.safetensors`` is a file, one without a dot a directory.

    Raises:
        URIError: nothing can be written there, or it is neither.

    Example:
        >>> destination("/no/such/new.safetensors").file
        'new.safetensors'
        >>> destination("s3://models/new").directory
        URI('s3://models/new/')
    """
    uri = _writable(given)
    name = uri.key.rpartition("/")[2]
    if _is_directory(uri):
        return _directory(uri, s3, transfer)
    if name.endswith(_ENDING):
        return _file(uri, s3, transfer)
    if "." in name:
        hint = f"End it in {_ENDING} for a file, or in a slash for a directory."
        raise URIError("it is not clear whether that is a file or a directory", uri=uri, hint=hint)
    return _directory(uri, s3, transfer)


def save_destination(
    given: str | os.PathLike[str],
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
    *,
    sharded: bool = False,
) -> Destination:
    """Say what is meant where any name may be a file's, as with torch.save.

    Args:
        given: an address; one that ends in a slash is a directory.
        s3: who asks, and which S3.
        transfer: how it is looked at.
        sharded: whether it has to be a directory.

    Raises:
        URIError: nothing can be written there.
        ValueError: it is the name of a file, and has to be a directory.

    Example:
        >>> save_destination("s3://models/new").file, save_destination("s3://models/new/").file
        ('new', None)
    """
    uri = _writable(given)
    if _is_directory(uri):
        return _directory(uri, s3, transfer)
    if not sharded:
        return _file(uri, s3, transfer)
    if uri.key.endswith((_ENDING, *_OTHERS)):
        raise ValueError("max_shard_size is for directories: end the destination in a slash")
    return _directory(uri, s3, transfer)


def _writable(given: str | os.PathLike[str]) -> URI:
    uri = parse(given)
    if uri.scheme not in ("s3", "file"):
        hint = "Name a local path, or s3://bucket/key."
        raise URIError("web servers are read from, not written to", uri=uri, hint=hint)
    if uri.version is not None:
        raise URIError("a version that is there cannot be written", uri=uri, hint="Leave out ?versionId=.")
    return uri


def _is_directory(uri: URI) -> bool:
    return uri.is_directory or (uri.scheme == "file" and Path(uri.key).is_dir())


def _directory(uri: URI, s3: S3Config | None, transfer: TransferConfig | None) -> Destination:
    return Destination(uri, uri.as_directory(), None, s3 or S3Config(), transfer or TransferConfig())


def _file(uri: URI, s3: S3Config | None, transfer: TransferConfig | None) -> Destination:
    above, slash, name = uri.key.rpartition("/")
    root = "./" if uri.scheme == "file" else ""
    directory = replace(uri, key=f"{above}{slash}" if slash else root)
    return Destination(uri, directory, name, s3 or S3Config(), transfer or TransferConfig())


def generation() -> str:
    """Return what tells the shards of this save from those of any other."""
    return secrets.token_hex(4)


def shard_names(count: int, generation: str = "") -> list[str]:
    """Return the names that Hugging Face gives to the files of a model.

    Args:
        count: how many there are.
        generation: goes into the names of several, so that they are none of another time's.

    Example:
        >>> shard_names(1), shard_names(2)
        (['model.safetensors'], ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'])
        >>> shard_names(2, "5ec4e7a0")[0]
        'model-5ec4e7a0-00001-of-00002.safetensors'
    """
    if count == 1:
        return [WHOLE]
    stem = f"model-{generation}" if generation else "model"
    return [f"{stem}-{number:05}-of-{count:05}{_ENDING}" for number in range(1, count + 1)]
