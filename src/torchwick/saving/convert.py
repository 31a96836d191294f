"""`convert`: from a checkpoint of any format, wherever it is, to safetensors, in little memory."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torchwick.checkpoint import Checkpoint
from torchwick.checkpoint.progress import watched
from torchwick.checkpoint.renaming import Rename, renamed
from torchwick.checkpoint.selection import Keys, select
from torchwick.config import S3Config, TransferConfig, parse_size
from torchwick.formats.dtypes import parse_dtype
from torchwick.formats.ties import with_ties
from torchwick.report import ProgressCallback
from torchwick.saving.conversion import Conversion, WrittenFile
from torchwick.saving.destination import destination, generation
from torchwick.saving.files import Content
from torchwick.saving.plan import Plan, lots, plan, untied
from torchwick.saving.writing import write
from torchwick.uri import URI, parse

if TYPE_CHECKING:
    import torch

    from torchwick.checkpoint.objects import Objects
    from torchwick.formats.catalog import Catalog

__all__ = ["convert"]

_log = logging.getLogger("torchwick")


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
    ``TransferConfig.memory_limit`` allows, and 16 MiB or two; to S3, up to 64 MiB of small files as well.
    Nothing of the source is run. The files appear when all of them are complete; after an error, or Ctrl-C,
    nothing is left.

    Args:
        src: an object or a directory, as for `torchwick.open`.
        dst: an address in S3 or a local path: a name that ends in ``.safetensors`` is one file; one that ends
            in a slash, or has no dot, or is a directory already, is a directory for ``model.safetensors`` or
            its shards.
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
    address, to = parse(src), destination(dst, s3)
    config, sending = _shares(transfer or TransferConfig(), to.directory)
    to = replace(to, transfer=sending)
    cast = None if dtype is None else parse_dtype(dtype)
    most = None if max_shard_size is None else parse_size(max_shard_size)
    if most is not None and to.file is not None:
        raise ValueError("max_shard_size is for directories: end the destination in a slash")
    present = to.present() if overwrite else to.refuse_present()
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
        generation=generation() if present else "",
    )
    names = {file.name for file in planned.files}
    with (
        watched(progress) as on_progress,
        contextlib.closing(
            _contents(planned, [Checkpoint(lot, objects) for lot in lots_], to.uri)
        ) as contents,
    ):
        written = write(
            planned.files,
            contents,
            to,
            overwrite=overwrite,
            outdated=[name for name in present if name not in names],
            on_progress=on_progress,
        )
    tally = objects.tally
    report = Conversion(
        source=str(address),
        format=catalog.format,
        files=tuple(WrittenFile(file.uri, file.size, file.tensors) for file in written.files),
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
    _log.info("converted %s to %s: %d tensors, %d bytes", address, to.uri, report.tensors, written.size)
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


def _contents(planned: Plan, sources: Sequence[Checkpoint], uri: URI) -> Generator[Content]:
    """Yield the tensors' bytes as they are written; the streams have the order of the plan, made for it."""
    from torchwick.checkpoint.tensors import dtype_of
    from torchwick.saving.elements import elements

    kinds = {dtype: dtype_of(dtype, uri) for dtype in planned.dtypes.values()}
    for source in sources:
        for name, tensor in source.stream():
            yield elements(tensor, kinds[planned.dtypes[name]])


def _shares(config: TransferConfig, to: URI) -> tuple[TransferConfig, TransferConfig]:
    """Divide the memory among what is read ahead and what is being sent; a disk takes everything at once."""
    if to.scheme == "file" or config.memory_limit == "auto":
        return config, config
    sending = config.memory_bytes() // 4
    reading = config.memory_bytes() - sending
    return replace(config, memory_limit=reading), replace(config, memory_limit=sending)
