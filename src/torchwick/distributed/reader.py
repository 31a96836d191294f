"""`S3Reader`: what `torch.distributed.checkpoint` reads, straight from S3 into the tensors of each rank."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from torchwick.checkpoint.buffers import writable_bytes
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.opening import at_once, read_text
from torchwick.config import S3Config, TransferConfig
from torchwick.distributed.addresses import Address
from torchwick.distributed.fetching import Part, Wanted, fetch
from torchwick.distributed.metadata import LONGEST, read_metadata, trust_metadata
from torchwick.distributed.models import open_model
from torchwick.distributed.packed import Item
from torchwick.distributed.values import harmless
from torchwick.errors import (
    AccessDeniedError,
    FormatError,
    ObjectNotFoundError,
    StateDictError,
    TorchwickError,
    URIError,
)
from torchwick.formats.catalog import TensorEntry
from torchwick.formats.dtypes import DTYPES, of_torch
from torchwick.transfer import RangeCache

__all__ = ["S3Reader"]

_log = logging.getLogger("torchwick")

_FEW = 8  # files that are looked at one by one, rather than in a listing of the directory
_LOOK = 1 << 10  # bytes of such a look
_MODELS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt")
_AGAIN = "Save it again, or upload the directory again, whole."


class S3Reader(StorageReader):
    """Reads a distributed checkpoint from S3, a web server or a directory of files.

    Each rank reads what belongs to it: all ranges of one load in one transfer, over many connections, into
    the tensors of the state dict where they lie there as they are stored, else through fragments. It takes
    what torch's `FileSystemWriter` wrote, and what others made of it: planners and another number of ranks
    are torch's affair. A directory without ``.metadata`` is read as a model: safetensors, sharded or not, and
    whatever else `torchwick.open` opens.

    Args:
        uri: the directory; it may also be given to `torch.distributed.checkpoint.load` as ``checkpoint_id``.
        s3: who asks, and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory, for each rank; by default it adapts.
        weights_only: read nothing that could run code: ``.metadata`` is not unpickled, and of values besides
            tensors only those are read that ``torch.load(weights_only=True)`` takes. False does as torch's
            readers do; a checkpoint is then a program.

    Raises:
        URIError: the address is none.

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> state = {"model": model.state_dict()}  # doctest: +SKIP
        >>> dcp.load(state, storage_reader=S3Reader("s3://models/step-1000"))  # doctest: +SKIP
        >>> S3Reader("s3://models/step-1000").checkpoint_id
        's3://models/step-1000'
    """

    def __init__(
        self,
        uri: str | os.PathLike[str] | None = None,
        *,
        s3: S3Config | None = None,
        transfer: TransferConfig | None = None,
        weights_only: bool = True,
    ) -> None:
        self._address = Address.given(uri, s3, transfer)
        self._weights_only = weights_only
        self._forget()

    def _forget(self) -> None:
        self._metadata: Metadata | None = None
        self._objects: Objects | None = (
            None  # of a model; those of a checkpoint are opened as they are needed
        )
        self._failure: TorchwickError | None = None

    @property
    def checkpoint_id(self) -> str | None:
        """The address of the checkpoint, or None where none was given yet."""
        return self._address.text

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether it is an address: ``s3://…``, ``https://…`` or a path."""
        return Address.is_one(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin anew, with another checkpoint if one is given.

        Raises:
            URIError: the address is none.
        """
        if checkpoint_id is not None:
            self._address = self._address.moved(checkpoint_id)
        self._forget()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch may pass more
        """Return what the checkpoint holds.

        Args:
            args: nothing.
            kwargs: ``rank``: the rank whose own description is meant, which ``use_collectives=False`` saves.

        Raises:
            ObjectNotFoundError: there is neither a checkpoint nor a model.
            UnsafePickleError: its description would run code.
            FormatError: it is corrupt.
            StoreError: it cannot be read.
        """
        rank, before = kwargs.get("rank"), self._failure
        try:
            return self._read_metadata("" if rank is None else f"__{rank}")
        except TorchwickError as error:
            self._failure = error
            if rank is None or before is None:
                raise
            # torch's load asks for the rank's own after all ranks' could not be read, and of both failures
            # keeps but the text. That of the first is what matters, and set_up_storage_reader raises it.
            self._failure = before
            return _Unread(before)

    def _read_metadata(self, prefix: str) -> Metadata:
        uri = self._address.directory.child(f"{prefix}.metadata")
        try:
            cache = RangeCache(self._address.store, uri, self._address.transfer)
        except (ObjectNotFoundError, AccessDeniedError) as error:
            if prefix:
                raise
            return self._model_instead(error)
        metadata = (read_metadata if self._weights_only else trust_metadata)(read_text(cache), uri)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        return metadata

    def _model_instead(self, error: ObjectNotFoundError | AccessDeniedError) -> Metadata:
        """Read a directory that has no ``.metadata``, or does not show it."""
        address = self._address
        listed = address.listed()
        try:
            metadata, self._objects = open_model(address.uri, address.store, address.transfer, listed)
        except (ObjectNotFoundError, FormatError) as other:
            if isinstance(error, AccessDeniedError):
                raise error from other
            if isinstance(other, FormatError) and _holds_model(address, listed):
                raise
            raise ObjectNotFoundError(
                "there is neither the .metadata of a distributed checkpoint nor a model",
                uri=address.directory,
                hint="Check the address. A save writes .metadata last: without one, none was completed.",
            ) from other
        return metadata

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: ARG002 - torch passes it
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Take note of what the checkpoint holds; called by torch.

        Raises:
            TorchwickError: what had kept it from being read.
            FormatError: it does not say where anything is.
        """
        if isinstance(metadata, _Unread):
            metadata.fail()
        if metadata.storage_data is None:
            hint = "Read it with the reader whose writer wrote it."
            raise FormatError("its .metadata names no files", uri=self._address.directory, hint=hint)
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is; called by torch."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are; called by torch."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what a rank's plan wants; called by torch.

        Raises:
            StoreError: something cannot be read. The tensors are then in no defined state.
            FormatError: something else is where a tensor should be, or nothing is.
            StateDictError: a tensor has another shape than what belongs into it.
            UnsafePickleError: a value is something else than what ``weights_only=True`` takes.
        """
        started = time.perf_counter()
        assert self._metadata is not None  # noqa: S101 - torch sets the reader up before
        stored = _Stored(self._metadata, self._address)
        items = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
        targets = [planner.resolve_tensor(item).detach() for item in items]
        values = {item: stored.value(item) for item in plan.items if item.type == LoadItemType.BYTE_IO}
        wanted = stored.wanted(items, targets)
        memory = {item: torch.empty(len(place), dtype=torch.uint8) for item, place in values.items()}
        wanted += [Wanted.all_bytes(place, memory[item]) for item, place in values.items()]
        objects = self._objects or self._open(stored.places(wanted))
        fetch(wanted, objects)
        for item, target in zip(items, targets, strict=True):
            planner.commit_tensor(item, target)
        for item, place in values.items():
            data = io.BytesIO(bytes(writable_bytes(memory[item])))
            if self._weights_only:
                data = harmless(data, item.storage_index.fqn, objects[place.file].info.uri)
            planner.load_bytes(item, data)
        spent = objects.tally
        _log.info(
            "loaded %s: %d tensors, %d other values, %d bytes in %d requests, %.2f s",
            *(self._address.directory, len(items), len(values), spent.bytes_read, spent.requests),
            time.perf_counter() - started,
        )
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _open(self, places: Mapping[str, int]) -> Objects:
        """Pin files, and see that they are long enough: each by its name, up to which byte it is read."""
        address = self._address
        listed = address.listed() if len(places) > _FEW else {}

        def pin(name: str) -> RangeCache:
            try:
                uri = address.directory.child(name)
            except URIError as error:  # it is the checkpoint that names it
                raise FormatError(error.message, uri=error.uri, hint=error.hint) from error
            try:
                cache = RangeCache(
                    address.store, uri, address.transfer, info=listed.get(name), read_ahead=_LOOK
                )
            except ObjectNotFoundError as error:
                message = "the checkpoint's .metadata names it, and it is not there"
                raise ObjectNotFoundError(message, uri=uri, hint=_AGAIN, code=error.code) from error
            size = cache.info.size
            if size is not None and size < places[name]:
                message = f"it ends at byte {size}, before its tensors do at {places[name]}"
                raise FormatError(message, uri=uri, hint=_AGAIN)
            return cache

        caches = at_once(pin, sorted(places))
        return Objects(address.directory, address.store, address.transfer, caches)


def _holds_model(address: Address, listed: Iterable[str]) -> bool:
    """Whether what is wrong with an address is more than that no model is there."""
    names = list(listed)
    is_file = not names and not address.uri.is_directory
    return is_file or any(name.endswith(_MODELS) for name in names)


class _Unread(Metadata):
    """Stands for what could not be read, and says why where it is looked at."""

    def __init__(self, error: TorchwickError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.fail()

    def fail(self) -> NoReturn:
        """Raise why it could not be read."""
        raise self._error


class _Stored:
    """Where the tensors and other values of a checkpoint are.

    Args:
        metadata: what says so.
        address: where it is.
    """

    def __init__(self, metadata: Metadata, address: Address) -> None:
        self._metadata = metadata
        self._uri = address.directory
        self._shapes: dict[str, dict[torch.Size, torch.Size]] = {}

    def wanted(self, items: Sequence[ReadItem], targets: Sequence[torch.Tensor]) -> list[Wanted]:
        """Return what a plan wants of each stored tensor.

        Raises:
            FormatError: the checkpoint does not say where a tensor is.
            StateDictError: a target has another shape than what belongs into it.
        """
        parts: dict[MetadataIndex, list[Part]] = {}
        for item, target in zip(items, targets, strict=True):
            name = item.dest_index.fqn
            if target.shape != item.lengths:
                shapes = tuple(target.shape), tuple(item.lengths)
                has, stored = map(list, shapes)
                message = f"tensor {name[:LONGEST]!r} has the shape {has}, and {stored} was stored"
                hint = "Make the state dict of the model that was saved."
                raise StateDictError(message, uri=self._uri, hint=hint, mismatched={name: shapes})
            if target.numel():
                parts.setdefault(item.storage_index, []).append(Part(tuple(item.storage_offsets), target))
        return [Wanted(self._tensor(index, of_one), of_one) for index, of_one in parts.items()]

    def _tensor(self, index: MetadataIndex, parts: Iterable[Part]) -> Item | TensorEntry:
        stored = self._found(index)
        entry = stored if isinstance(stored, TensorEntry) else self._item(index, stored)
        if DTYPES[entry.dtype].bits < 8:
            self._refuse(f"tensor {index.fqn[:LONGEST]!r} has elements smaller than a byte")
        for part in parts:
            ends = (at + n for at, n in zip(part.start, part.target.shape, strict=True))
            if len(part.start) != len(entry.shape) or any(map(int.__gt__, ends, entry.shape)):
                self._refuse(f"a part of tensor {index.fqn[:LONGEST]!r} is wanted that was not stored")
        return entry

    def _item(self, index: MetadataIndex, stored: Any) -> Item:
        described = self._metadata.state_dict_metadata.get(index.fqn)
        if not isinstance(described, TensorStorageMetadata):
            self._refuse(f"{index.fqn[:LONGEST]!r} is no tensor")
        if index.fqn not in self._shapes:
            self._shapes[index.fqn] = {chunk.offsets: chunk.sizes for chunk in described.chunks}
        shapes, offset = self._shapes[index.fqn], index.offset
        shape = described.size if offset is None else shapes.get(offset)
        dtype = of_torch(str(described.properties.dtype).removeprefix("torch."))
        if shape is None or dtype is None:
            self._refuse(f"tensor {index.fqn[:LONGEST]!r} is not described")
        start = stored.offset
        return Item(stored.relative_path, start, start + stored.length, dtype.name, tuple(shape))

    def value(self, item: ReadItem) -> Item:
        """Return where a value is that is no tensor.

        Raises:
            FormatError: the checkpoint does not say.
        """
        stored = self._found(item.storage_index)
        start = stored.offset
        return Item(stored.relative_path, start, start + stored.length, "U8", (stored.length,))

    def _found(self, index: MetadataIndex) -> Any:
        stored = self._metadata.storage_data.get(index)
        if stored is None:
            self._refuse(f"no file is named for {index.fqn[:LONGEST]!r}")
        if getattr(stored, "transform_descriptors", None):
            hint = "Read it with torch's own FileSystemReader."
            message = f"{index.fqn[:LONGEST]!r} was transformed as it was written, such as compressed"
            raise FormatError(message, uri=self._uri, hint=hint)
        return stored

    def _refuse(self, message: str) -> NoReturn:
        raise FormatError(message, uri=self._uri, hint="Its .metadata is corrupt, or not of this model.")

    @staticmethod
    def places(wanted: Iterable[Wanted]) -> dict[str, int]:
        """Return the files, and up to which byte each is wanted."""
        places: dict[str, int] = {}
        for want in wanted:
            stored = want.stored
            file, stop = (
                (stored.file, stored.stop)
                if isinstance(stored, Item)
                else (stored.pieces[0].object, getattr(stored.pieces[0], "start", 0) + stored.nbytes)
            )
            places[file] = max(stop, places.get(file, 0))
        return places
