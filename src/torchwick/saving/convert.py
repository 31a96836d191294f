"""`convert`: from a checkpoint of any format, wherever it is, to safetensors, in little memory."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torchwick.checkpoint import Checkpoint
from torchwick.checkpoint.progress import watched
from torchwick.checkpoint.renaming import Rename, renamed
from torchwick.checkpoint.selection import Keys, select
from torchwick.config import S3Config, TransferConfig, parse_size
from torchwick.formats.dtypes import parse_dtype
from torchwick.formats.ties import with_ties
from torchwick.report import Progress, ProgressCallback
from torchwick.saving.conversion import Conversion, WrittenFile
from torchwick.saving.destination import INDEX, Destination, destination
from torchwick.saving.plan import Plan, lots, plan, untied
from torchwick.saving.sink import Folder
from torchwick.uri import parse

if TYPE_CHECKING:
    import torch

    from torchwick.checkpoint.objects import Objects
    from torchwick.formats.catalog import Catalog

__all__ = ["convert"]

_log = logging.getLogger("torchwick")
_BETWEEN_CALLS = 0.1  # seconds


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    keys: Keys = None,
    rename: Rename = None,
    overwrite: bool = False,
    copy_ties: bool = False,
    metadata: Mapping[str, str] | None = None,
    progress: bool | ProgressCallback = False,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> Conversion:
    """Write a checkpoint of any format as safetensors.

    What `torchwick.open` looks into is read tensor by tensor and written as it comes: no more is held than
    ``TransferConfig.memory_limit`` allows, and 16 MiB or two. Nothing of the source is run. The files appear
    when all of them are complete; after an error, or Ctrl-C, nothing is left.

    Args:
        src: an object or a directory, as for `torchwick.open`.
        dst: a local path: a name that ends in ``.safetensors`` is one file; one that ends in a slash, or has
            no dot, or is a directory already, is a directory for ``model.safetensors`` or its shards.
        dtype: what floating-point tensors are cast to, each as by ``tensor.to``: ``"bf16"``, or
            ``torch.float16``; None: nothing is cast. Integers, booleans and complex numbers never are.
        max_shard_size: bytes of tensors in one file of a directory, as a number or as text (``"5GB"``). A
            tensor that is larger has a file of its own. None: all are in one file.
        keys: which tensors: names or patterns (``"model.*"``), a function, or None for all.
        rename: beginnings of names, and what takes their place: ``{"model.": ""}``; or one pair; or a
            function from name to name.
        overwrite: replace what is there; in a directory, the files of the model that is in it.
        copy_ties: write a tensor that has several names once for each. By default it is written once, and its
            other names go into the metadata, as `safetensors.torch.save_model` has it.
        metadata: texts for the header, beside ``{"format": "pt"}`` and those of the source.
        progress: True for a bar on standard error, or a function that is called with a `Progress` about ten
            times a second, on this thread. It counts bytes that were written, and no connections.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.

    Returns:
        What was written, and what was not.

    Raises:
        URIError: an address is none, or is no place to write to.
        ValueError: an option makes no sense.
        ObjectExistsError: there is something at `dst`, and `overwrite` was not given. Nothing was read.
        TensorNotFoundError: `keys` names what is not there.
        FormatError: the source is no checkpoint, or corrupt; or has a tensor that safetensors cannot hold.
        MemoryLimitError: one tensor alone is larger than the memory limit.
        StoreError: it cannot be read, or not be written: the disk is full, the directory read-only.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": {"w": torch.ones(3)}, "epoch": 3}, f"{folder}/old.pt")
        ...     report = convert(f"{folder}/old.pt", f"{folder}/new.safetensors", dtype="bf16")
        >>> report.tensors, report.tensor_bytes, report.casts, report.left_out
        (1, 6, {'F32': 1}, {'epoch': '3'})
    """
    from torchwick.checkpoint.opening import open_objects
    from torchwick.store import open_store

    started = time.perf_counter()
    address, to, config = parse(src), destination(dst), transfer or TransferConfig()
    cast = None if dtype is None else parse_dtype(dtype)
    most = None if max_shard_size is None else parse_size(max_shard_size)
    if most is not None and to.file is not None:
        raise ValueError("max_shard_size is for directories: end the destination in a slash")
    if not overwrite:
        to.refuse_present()
    catalog, objects = open_objects(address, open_store(address, s3 or S3Config(), config.timeout), config)
    catalog, ties = _chosen(catalog, objects, keys, rename, copy_ties=copy_ties)
    lots_ = [replace(catalog, entries=lot) for lot in lots(catalog.entries, objects.names, cast, address)]
    planned = plan(
        {name: entry for lot in lots_ for name, entry in lot.entries.items()},
        dtype=cast,
        file=to.file,
        most=most,
        metadata=catalog.metadata | dict(metadata or {}),
        ties=ties,
        uri=to.uri,
    )
    with watched(progress) as on_progress:
        counter = _Counter(str(address), planned.tensor_bytes, on_progress)
        _write(planned, [Checkpoint(lot, objects) for lot in lots_], to, counter, overwrite=overwrite)
    tally = objects.tally
    report = Conversion(
        source=str(address),
        format=catalog.format,
        files=_files(planned, to),
        tensors=len(planned.dtypes),
        tensor_bytes=planned.tensor_bytes,
        ties=ties,
        dtype=cast,
        casts=planned.casts,
        left_out=dict(catalog.others),
        bytes_read=tally.bytes_read,
        requests=tally.requests,
        retries=tally.retries,
        seconds=time.perf_counter() - started,
    )
    _log.info("converted %s to %s: %d tensors, %d bytes", address, to.uri, report.tensors, planned.size)
    return report


def _chosen(
    catalog: Catalog, objects: Objects, keys: Keys, rename: Rename, *, copy_ties: bool
) -> tuple[Catalog, dict[str, str]]:
    """Return the catalog of what is to be written, under the names it is to have, and other names of it."""
    catalog = with_ties(catalog)
    names = select(keys, catalog.entries, objects.uri)
    entries = {new: catalog.entries[name] for new, name in renamed(names, rename).items()}
    ties: dict[str, str] = {}
    if not copy_ties:
        entries, ties = untied(entries)
    return replace(catalog, entries=entries), ties


class _Counter:
    """Tells how far it has come, about ten times a second and at the end."""

    def __init__(self, uri: str, total: int, on_progress: ProgressCallback | None) -> None:
        self._uri = uri
        self._total = total
        self._done = 0
        self._told = 0.0
        self._on_progress = on_progress

    def add(self, size: int) -> None:
        """Count bytes that were written."""
        self._done += size
        now = time.monotonic()
        if self._on_progress and (self._done == self._total or now - self._told > _BETWEEN_CALLS):
            self._told = now
            self._on_progress(Progress(self._uri, self._done, self._total, 0))


def _write(
    planned: Plan, sources: Sequence[Checkpoint], to: Destination, counter: _Counter, *, overwrite: bool
) -> None:
    from torchwick.checkpoint.tensors import dtype_of

    kinds = {dtype: dtype_of(dtype, to.uri) for dtype in planned.dtypes.values()}
    outdated = to.present() if overwrite else []
    names = {*(file.name for file in planned.files), *([INDEX] if planned.index else [])}
    with to.folder(overwrite=overwrite) as folder, contextlib.closing(_stream(sources)) as stream:
        folder.reserve(planned.size)
        _write_tensors(planned, kinds, folder, stream, counter)
        if planned.index:
            with folder.create(INDEX) as sink:
                sink.write(planned.index)
        folder.commit([name for name in outdated if name not in names])


def _stream(sources: Sequence[Checkpoint]) -> Generator[tuple[str, torch.Tensor]]:
    for source in sources:
        yield from source.stream()


def _write_tensors(
    planned: Plan,
    kinds: Mapping[str, torch.dtype],
    folder: Folder,
    stream: Iterator[tuple[str, torch.Tensor]],
    counter: _Counter,
) -> None:
    """Write what the stream brings; that has the order of the plan, which was made for it."""
    from torchwick.saving.elements import elements

    for file in planned.files:
        with folder.create(file.name) as sink:
            sink.write(file.header)
            for name, tensor in itertools.islice(stream, len(file.names)):
                for part in elements(tensor, kinds[planned.dtypes[name]]):
                    sink.write(part)
                    counter.add(len(part))


def _files(planned: Plan, to: Destination) -> tuple[WrittenFile, ...]:
    written = [(file.name, file.size, len(file.names)) for file in planned.files]
    if planned.index:
        written.append((INDEX, len(planned.index), 0))
    return tuple(WrittenFile(f"{to.directory.key}{name}", size, count) for name, size, count in written)
