"""`S3Writer`: what `torch.distributed.checkpoint` saves, straight from each rank's memory to S3."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.distributed.addresses import Address
from torchwick.distributed.items import WrittenItem, item_of
from torchwick.distributed.metadata import storage_info
from torchwick.errors import AccessDeniedError, ObjectExistsError, ObjectNotFoundError, URIError
from torchwick.saving.files import PlainFile
from torchwick.saving.s3_folder import S3Folder
from torchwick.saving.sink import Folder, LocalFolder
from torchwick.transfer import RangeCache

__all__ = ["S3Writer"]

_log = logging.getLogger("torchwick")

_OBJECT = 1 << 30
"""Bytes of an object, or one item if that is more: what a planner makes of tensors, such as casts, is held
for one object at a time."""
_VERSION = getattr(filesystem, "CURRENT_DCP_VERSION", None)  # which torch before 2.7 does not have


class S3Writer(StorageWriter):
    """Writes a distributed checkpoint to S3, or to a directory of files.

    Each rank uploads what the plan gives it, in parts and over many connections, from the memory of its
    tensors: there is no serialised copy and no file. ``.metadata`` comes last, in one step, and the names of
    all other objects are new with every save: until then, and after a save that failed or was killed, readers
    find the checkpoint that was there before. Nothing is deleted. Uploads that were begun are aborted when a
    save fails. torch's `FileSystemReader` reads the objects once they are files.

    It pickles, for `async_save` in a process of its own.

    Args:
        uri: the directory; it may also be given to `torch.distributed.checkpoint.save` as ``checkpoint_id``.
        s3: who asks, and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory, for each rank; by default it adapts.
        options: what S3 is told about each object: storage class, encryption, tags.
        overwrite: whether a checkpoint that is there may be replaced.

    Raises:
        URIError: the address is none, or is no place to write to.

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> state = {"model": model.state_dict()}  # doctest: +SKIP
        >>> dcp.save(state, storage_writer=S3Writer("s3://models/step-1000"))  # doctest: +SKIP
        >>> S3Writer.validate_checkpoint_id("https://models.example/step-1000")
        False
    """

    def __init__(
        self,
        uri: str | os.PathLike[str] | None = None,
        *,
        s3: S3Config | None = None,
        transfer: TransferConfig | None = None,
        options: PutOptions | None = None,
        overwrite: bool = True,
    ) -> None:
        self._address = _writable(Address.given(uri, s3, transfer))
        self._options = options
        self._overwrite = overwrite
        self._begin()

    def _begin(self) -> None:
        self._save_id = str(uuid.uuid4())
        self._is_coordinator = True
        self._rank: int | None = None  # of a rank that saves for itself

    @property
    def checkpoint_id(self) -> str | None:
        """The address of the checkpoint, or None where none was given yet."""
        return self._address.text

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether it is an address that can be written to: ``s3://…`` or a path."""
        return Address.is_one(checkpoint_id) and not _is_web(Address.given(checkpoint_id, None, None))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin anew, with another directory if one is given.

        Raises:
            URIError: the address is none, or is no place to write to.
        """
        if checkpoint_id is not None:
            self._address = _writable(self._address.moved(checkpoint_id))
        self._begin()

    def storage_meta(self) -> StorageMeta:
        """Return what goes into ``.metadata`` about this save."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id)

    def set_up_storage_writer(
        self,
        is_coordinator: bool,
        *args: Any,  # noqa: ARG002 - torch may pass more
        **kwargs: Any,
    ) -> None:
        """Take note of this rank's role; called by torch."""
        self._is_coordinator = is_coordinator
        self._rank = kwargs.get("rank") if not kwargs.get("use_collectives", True) else None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Look whether a checkpoint is in the way; called by torch.

        Raises:
            ObjectExistsError: there is one, and it may not be replaced.
        """
        directory = self._address.directory
        if not self._overwrite and (self._is_coordinator or self._rank is not None) and self._is_there():
            raise _in_the_way(directory)
        return plan if self._rank is None else replace(plan, storage_data=self._rank)

    def _is_there(self) -> bool:
        address = self._address
        try:
            RangeCache(
                address.store, address.directory.child(self._metadata_name), address.transfer, read_ahead=1
            )
        except (
            ObjectNotFoundError,
            AccessDeniedError,
        ):  # to those who may not list it, S3 denies what is not there
            return False
        return True

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Number the ranks; called by torch, on the coordinator."""
        return [
            plan if self._rank is not None else replace(plan, storage_data=rank)
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write what the plan gives to this rank; called by torch.

        Raises:
            FormatError: a tensor has no values.
            StoreError: something cannot be written. Whatever is there, no ``.metadata`` names it.
        """
        started, results = time.perf_counter(), list[WriteResult]()
        # The rank tells objects of one save apart, and what stands before it those of all saves: a plan may
        # be one that a planner has kept since the last.
        stem = f"{secrets.token_hex(8)}__{plan.storage_data}"
        if plan.items:
            with self._folder() as folder:
                for number, items in enumerate(self._objects(plan, planner)):
                    results += _write(folder, f"{stem}_{number}.distcp", items)
                folder.commit()
        size = sum(result.size_in_bytes for result in results)
        seconds = time.perf_counter() - started
        _log.info(
            "saved to %s: %d items, %d bytes, %.2f s", self._address.directory, len(results), size, seconds
        )
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _objects(self, plan: SavePlan, planner: SavePlanner) -> Iterator[list[tuple[WriteItem, WrittenItem]]]:
        """Yield what goes into one object after the other: values first, as torch's own writer has it."""
        held, size = list[tuple[WriteItem, WrittenItem]](), 0
        for item in sorted(plan.items, key=lambda item: item.type != WriteItemType.BYTE_IO):
            written = item_of(planner.resolve_data(item), item.index.fqn, self._address.directory)
            if held and size + written.size > _OBJECT:
                yield held
                held, size = [], 0
            held.append((item, written))
            size += written.size
        yield held

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write ``.metadata``, which makes the save a checkpoint; called by torch, on the coordinator.

        Raises:
            ObjectExistsError: a checkpoint has come up meanwhile, and may not be replaced.
            StoreError: it cannot be written. The checkpoint before it is still there.
        """
        metadata.storage_data = {
            result.index: result.storage_data for of_rank in results for result in of_rank
        }
        metadata.storage_meta = self.storage_meta()
        if _VERSION is not None:
            metadata.version = _VERSION
        file = PlainFile(self._metadata_name, pickle.dumps(metadata))
        try:
            with self._folder(overwrite=self._overwrite) as folder:
                with folder.create(file.name, file.size) as sink:
                    file.write(sink, iter(()))
                folder.commit()
        except ObjectExistsError as error:
            raise _in_the_way(self._address.directory) from error
        _log.info("saved %s: %d objects and values", self._address.directory, len(metadata.storage_data))

    @property
    def _metadata_name(self) -> str:
        return ".metadata" if self._rank is None else f"__{self._rank}.metadata"

    def _folder(self, *, overwrite: bool = True) -> Folder:
        address = self._address
        if address.uri.scheme == "file":
            with contextlib.suppress(OSError):  # of which LocalFolder will say more
                Path(address.uri.key).mkdir(parents=True, exist_ok=True)
            return LocalFolder(address.directory, overwrite=overwrite)
        return S3Folder(
            address.directory,
            overwrite=overwrite,
            s3=address.s3,
            transfer=address.transfer,
            options=self._options,
        )


def _write(
    folder: Folder, name: str, items: Sequence[tuple[WriteItem, WrittenItem]]
) -> Iterable[WriteResult]:
    """Write an object, and yield where in it each item is."""
    at = 0
    with folder.create(name, sum(written.size for _, written in items)) as sink:
        for item, written in items:
            written.write(sink)
            yield WriteResult(item.index, written.size, storage_info(name, at, written.size))
            at += written.size


def _is_web(address: Address) -> bool:
    return address.uri.scheme not in ("s3", "file")


def _writable(address: Address) -> Address:
    """Return an address that can be written to.

    Raises:
        URIError: it cannot.
    """
    if address.address is not None and _is_web(address):
        hint = "Name a local path, or s3://bucket/prefix."
        raise URIError("web servers are read from, not written to", uri=address.uri, hint=hint)
    return address


def _in_the_way(directory: object) -> ObjectExistsError:
    hint = "Save to another directory, or pass overwrite=True."
    return ObjectExistsError("there is a checkpoint already", uri=directory, hint=hint)
