"""Reads ``.metadata`` into torch's own classes, without having a pickle make them.

torch unpickles that file without restraint. Here its pickle is run over stand-ins, which import nothing, and
torch's objects are made from what it said: names, shapes, dtypes and places are all that can come of it.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from torchwick.errors import FormatError, UnsafePickleError
from torchwick.formats.dtypes import of_torch
from torchwick.formats.pickles import look_into
from torchwick.formats.stand_ins import Recorder

__all__ = ["LONGEST", "read_metadata", "storage_info", "trust_metadata"]

LONGEST = 200
"""Characters of a name in a message."""

_MODULE = "torch.distributed.checkpoint.metadata"
_PLACE = "torch.distributed.checkpoint.filesystem._StorageInfo"
_OLD = "torch.distributed._shard.sharded_tensor.metadata"  # where torch before 2.3 had the properties
_PATHS = {"pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath"}
_LOCAL_PATHS = {name.replace("pathlib.", "pathlib._local.") for name in _PATHS}  # of Python 3.13
_ALLOWED = {
    f"{_MODULE}.BytesStorageMetadata",
    f"{_MODULE}.ChunkStorageMetadata",
    f"{_MODULE}.Metadata",
    f"{_MODULE}.MetadataIndex",
    f"{_MODULE}.StorageMeta",
    f"{_MODULE}.TensorProperties",
    f"{_MODULE}.TensorStorageMetadata",
    f"{_MODULE}._MEM_FORMAT_ENCODING",
    f"{_OLD}.MEM_FORMAT_ENCODING",
    f"{_OLD}.TensorProperties",
    _PLACE,
    "builtins.set",
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch.Size",
    "torch.serialization._get_layout",
    *_PATHS,
    *_LOCAL_PATHS,
}
_MOST_NAMED = 20  # globals in a message
_MOST_DIMENSIONS = 64  # as many as torch's own loops take
_PLAIN = (str, bytes, int, float, bool, type(None))
_TRUST = (
    "Tell whoever made it; or, if you trust them as you would trust a program of theirs, pass "
    "weights_only=False"
)


def read_metadata(data: bytes, uri: object) -> Metadata:
    """Read ``.metadata`` as torch writes it.

    Args:
        data: all of it.
        uri: the object, for messages.

    Raises:
        UnsafePickleError: it names something else than what a checkpoint is described with.
        FormatError: it is corrupt.

    Example:
        >>> import pickle
        >>> data = pickle.dumps(Metadata({"step": BytesStorageMetadata()}, storage_data={}))
        >>> read_metadata(data, "s3://models/step-1000/.metadata").state_dict_metadata
        {'step': BytesStorageMetadata()}
    """
    return _Maker(uri).make(data)


def trust_metadata(data: bytes, uri: object) -> Metadata:
    """Unpickle ``.metadata``, whatever that runs.

    Raises:
        FormatError: it holds something else.
    """
    metadata = pickle.loads(data)  # noqa: S301 - the caller trusts it
    if not isinstance(metadata, Metadata):
        hint = "Name the directory of a distributed checkpoint."
        raise FormatError("its .metadata holds no Metadata", uri=uri, hint=hint)
    return metadata


class _Maker:
    def __init__(self, uri: object) -> None:
        self._uri = uri
        # What is shared stays shared: a small pickle must not unfold to a large one.
        self._made: dict[int, TensorProperties] = {}
        self._chunks: dict[int, list[ChunkStorageMetadata]] = {}
        self._plain: dict[int, object] = {}

    def make(self, data: bytes) -> Metadata:
        try:
            facts = look_into(io.BytesIO(data), limit=len(data), uri=self._uri)
        except EOFError:
            self._refuse("it was cut short")
        self._check(facts.globals)
        if not facts.followed:
            self._refuse("its pickle cannot be followed")
        said = self._attributes(facts.value, f"{_MODULE}.Metadata")
        described, stored = said.get("state_dict_metadata"), said.get("storage_data")
        if not isinstance(described, dict) or not isinstance(stored, dict):
            self._refuse("it lacks its list of tensors, or of files")
        try:
            return _metadata(
                {self._name(name): self._described(item) for name, item in described.items()},
                self._as_plain(said.get("planner_data")),
                dict(map(self._stored, stored.items())),
                self._meta(said.get("storage_meta")),
                said.get("version"),
            )
        except RecursionError:
            self._refuse("what it holds is nested too deep")

    def _check(self, names: list[str]) -> None:
        refused = tuple(name for name in names if name not in _ALLOWED and not _is_dtype(name))
        if refused:
            shown = ", ".join(name[:LONGEST] for name in refused[:_MOST_NAMED])
            more = f", and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
            raise UnsafePickleError(
                f"its .metadata would import what no checkpoint is described with: {shown}{more}",
                uri=self._uri,
                hint=_TRUST,
                refused=refused,
            )

    def _refuse(self, message: str) -> NoReturn:
        hint = "It is corrupt, or of a torch newer than this torchwick: save it again."
        raise FormatError(f"the .metadata cannot be read: {message}", uri=self._uri, hint=hint)

    def _attributes(self, item: object, *classes: str) -> dict[str, Any]:
        if not isinstance(item, Recorder) or type(item).name not in classes:
            self._refuse(f"something else stands where a {classes[0].rpartition('.')[2]} belongs")
        if item.state is None:
            return {}
        if not isinstance(item.state, dict):
            self._refuse("an object has no attributes where some belong")
        return item.state

    def _name(self, name: object) -> str:
        if not isinstance(name, str):
            self._refuse("a name is no text")
        return name

    def _described(self, item: object) -> TensorStorageMetadata | BytesStorageMetadata:
        if isinstance(item, Recorder) and type(item).name == f"{_MODULE}.BytesStorageMetadata":
            return BytesStorageMetadata()
        said = self._attributes(item, f"{_MODULE}.TensorStorageMetadata")
        chunks = said.get("chunks")
        if not isinstance(chunks, list):
            self._refuse("a tensor has no list of boxes")
        if id(chunks) not in self._chunks:
            self._chunks[id(chunks)] = [self._chunk(chunk) for chunk in chunks]
        properties, size = self._properties(said.get("properties")), self._size(said.get("size"))
        return TensorStorageMetadata(properties, size, self._chunks[id(chunks)])

    def _chunk(self, item: object) -> ChunkStorageMetadata:
        said = self._attributes(item, f"{_MODULE}.ChunkStorageMetadata")
        return ChunkStorageMetadata(self._size(said.get("offsets")), self._size(said.get("sizes")))

    def _properties(self, item: object) -> TensorProperties:
        if id(item) in self._made:
            return self._made[id(item)]
        match item:
            case Recorder(state=(dtype, _layout, requires_grad, _memory_format, pin_memory)):
                pass
            case _:
                self._refuse("a tensor has no properties")
        name = str(getattr(dtype, "name", ""))
        if not _is_dtype(name):
            self._refuse("a tensor's dtype is none that is known")
        self._made[id(item)] = properties = TensorProperties(
            dtype=getattr(torch, name.removeprefix("torch.")),
            requires_grad=requires_grad is True,
            pin_memory=pin_memory is True,
        )
        return properties

    def _size(self, value: object) -> torch.Size:
        return torch.Size(self._counts(value))

    def _counts(self, value: object) -> tuple[int, ...]:
        if (
            not isinstance(value, tuple | list)
            or len(value) > _MOST_DIMENSIONS
            or not all(type(count) is int and 0 <= count < 1 << 63 for count in value)
        ):
            self._refuse("a shape or an offset is none")
        return tuple(value)

    def _stored(self, item: tuple[object, object]) -> tuple[MetadataIndex, Any]:
        key = self._attributes(item[0], f"{_MODULE}.MetadataIndex")
        place = self._attributes(item[1], _PLACE)
        offset, index = key.get("offset"), key.get("index")
        start, length = self._counts((place.get("offset"), place.get("length")))
        transforms = self._as_plain(place.get("transform_descriptors"))
        return (
            MetadataIndex(
                self._name(key.get("fqn")),
                None if offset is None else self._size(offset),
                index if isinstance(index, int) else None,
            ),
            storage_info(self._name(place.get("relative_path")), start, length, transforms),
        )

    def _meta(self, item: object) -> StorageMeta:
        if item is None:
            return StorageMeta()
        said = self._attributes(item, f"{_MODULE}.StorageMeta")
        meta = StorageMeta(
            _path(said.get("checkpoint_id")), _text(said.get("save_id")), _text(said.get("load_id"))
        )
        modules = self._as_plain(said.get("modules"))
        if isinstance(modules, list):
            meta.modules = modules  # which early torch does not have
        return meta

    def _as_plain(self, value: object) -> Any:
        """Return Python's own containers, and refuse what is neither those nor numbers and texts."""
        if isinstance(value, _PLAIN):
            return value
        if id(value) in self._plain:
            return self._plain[id(value)]
        made: object
        match value:
            case dict():
                made = {self._as_plain(key): self._as_plain(item) for key, item in value.items()}
            case list():
                made = [self._as_plain(item) for item in value]
            case tuple():
                made = tuple(self._as_plain(item) for item in value)
            case set():
                made = {self._as_plain(item) for item in value}
            case _:
                self._refuse("its planner left more in it than numbers and texts")
        self._plain[id(value)] = made
        return made


def storage_info(path: str, start: int, length: int, transforms: object = None) -> Any:
    """Return what torch notes of an item in a file.

    Args:
        path: the file, in its directory.
        start: offset of the item.
        length: its bytes.
        transforms: what was done to the bytes, which torch before 2.7 has no place for.
    """
    info = filesystem._StorageInfo(path, start, length)  # noqa: SLF001 - torch's readers know no other
    if transforms:
        info.transform_descriptors = transforms  # type: ignore[assignment]
    return info


def _metadata(
    described: Mapping[str, Any],
    planner: object,
    stored: Mapping[Any, Any],
    meta: StorageMeta,
    version: object,
) -> Metadata:
    metadata = Metadata(dict(described), planner, dict(stored), meta)
    if isinstance(version, str):
        metadata.version = version  # which torch before 2.7 does not have
    return metadata


def _is_dtype(dotted: str) -> bool:
    name = dotted.removeprefix("torch.")
    known = None if name == dotted else of_torch(name)
    return known is not None and isinstance(getattr(torch, name, None), torch.dtype)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _path(value: object) -> str | None:
    """Return the address of a checkpoint, which may have been a path."""
    if isinstance(value, Recorder) and type(value).name in _PATHS | _LOCAL_PATHS:
        parts = value.arguments
        return str(pathlib.PurePosixPath(*parts)) if all(isinstance(part, str) for part in parts) else None
    return _text(value)
