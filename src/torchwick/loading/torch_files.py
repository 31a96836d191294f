"""What torch.save, torch.jit.save and torch.export.save write: deferred where that is exact, else spooled."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch._C import PyTorchFileReader

from torchwick.errors import FormatError, MemoryLimitError
from torchwick.formats.pickles import PickleFacts, look_into
from torchwick.formats.torch_legacy import read_legacy
from torchwick.formats.torch_zip import (
    LOCAL_BYTES,
    Archive,
    Layout,
    check_storages,
    check_unpacks,
    derive_layout,
    header_agrees,
    read_archive,
)
from torchwick.loading.casting import recast
from torchwick.loading.deferred import defer_legacy, defer_zip, storages_agree
from torchwick.loading.devices import Placement
from torchwick.loading.refusals import check_safe, explain, refuse_code
from torchwick.loading.source import Source
from torchwick.loading.spooled import spool
from torchwick.report import Method

__all__ = ["Outcome", "load_legacy", "load_tar", "load_zip"]

_MAPPABLE_ALIGNMENT = 16  # bytes: the widest element torch has, complex128


@dataclass(frozen=True)
class Outcome:
    """What was loaded, of which format, and how."""

    value: Any = field(repr=False)
    format: str
    method: Method


def load_zip(source: Source, to: Placement, *, weights_only: bool) -> Outcome:
    """Load any of torch's zip archives."""
    if source.info.size is None or not source.info.ranged:
        return _load_unranged_zip(source, to, weights_only=weights_only)
    archive = read_archive(source.cache.read, source.info.size, source.uri)
    if "constants.pkl" in archive.records:
        return _load_torchscript(source, to, weights_only=weights_only)
    if "archive_format" in archive.records or "serialized_exported_program.json" in archive.records:
        return _load_exported(source, to, weights_only=weights_only)
    if "data.pkl" not in archive.records:
        hint = "Is it an .npz, a Keras model, or a zip of a model? Unpack it first."
        raise FormatError("a zip archive without the data.pkl of torch.save", uri=source.uri, hint=hint)
    return _load_saved(source, archive, to, weights_only=weights_only)


def load_legacy(source: Source, to: Placement, *, weights_only: bool) -> Outcome:
    """Load the format of torch before 1.6."""
    legacy = read_legacy(source.cache.read, source.info.size, source.uri)
    facts = legacy.facts
    if source.info.size is not None and _may_run_first(source, weights_only=weights_only):
        loaded = defer_legacy(source, legacy, to, weights_only=weights_only)
        if loaded is not None:
            return Outcome(loaded.value, "torch legacy", "deferred")
    _check_before_fetching(facts, source, weights_only=weights_only)
    with (
        spool(source, second_copy=True) as path,
        explain(source.uri, weights_only=weights_only, facts=facts),
    ):
        value = _torch_load(path, to, weights_only=weights_only, mmap=False)
    return Outcome(value, "torch legacy", "spooled")


def load_tar(source: Source, to: Placement, *, weights_only: bool) -> Outcome:
    """Load the tar format of torch before 0.1.10, which torch reads only with ``weights_only=False``."""
    if weights_only:
        raise refuse_code("a checkpoint in the tar format of torch before 0.1.10 is all pickles", source.uri)
    with spool(source, second_copy=True) as path, explain(source.uri, weights_only=False):
        value = _torch_load(path, to, weights_only=False, mmap=False)
    return Outcome(value, "torch tar", "spooled")


def _load_saved(source: Source, archive: Archive, to: Placement, *, weights_only: bool) -> Outcome:
    _check_unpacked(source, archive)
    layout = derive_layout(archive)
    facts = None if layout is None else _look(source, layout)
    if facts is not None:
        check_storages(facts, archive, source.uri)
    if layout is not None and facts is not None and _may_run_first(source, weights_only=weights_only):
        loaded = defer_zip(source, layout, facts, to, weights_only=weights_only)
        if loaded is not None:
            return Outcome(loaded.value, "torch zip", "deferred")
    _check_before_fetching(facts, source, weights_only=weights_only)
    mappable = layout is not None and facts is not None and _can_be_mapped(layout, facts)
    with (
        spool(source, second_copy=not mappable) as path,
        explain(source.uri, weights_only=weights_only, facts=facts),
    ):
        if archive.unpacked:
            check_unpacks(_reading(path), archive, source.uri)
        if facts is None:
            facts = _look_by_torch(path, archive, source)
            _check_before_fetching(facts, source, weights_only=weights_only)
        mmap = mappable and layout is not None and _headers_agree(path, layout)
        value = _torch_load(path, to, weights_only=weights_only, mmap=mmap)
    return Outcome(value, "torch zip", "spooled")


def _may_run_first(source: Source, *, weights_only: bool) -> bool:
    """Whether the pickle may run before the bytes are verified: not code that was pinned by a digest."""
    return weights_only or not source.pinned


def _check_unpacked(source: Source, archive: Archive) -> None:
    """Have records that unpack to more than the memory there is refused before they are fetched."""
    if not archive.unpacked:
        return
    limit = source.config.memory_bytes()
    if archive.unpacked > limit:
        raise MemoryLimitError(
            f"its compressed records would unpack to {archive.unpacked} bytes, more than the memory limit of "
            f"{limit}",
            uri=source.uri,
            hint="Save it anew, uncompressed, if you trust it; else leave it alone.",
            needed=archive.unpacked,
            limit=limit,
        )


def _check_before_fetching(facts: PickleFacts | None, source: Source, *, weights_only: bool) -> None:
    """Have a refusal come before the bytes do."""
    if not weights_only or facts is None:
        return
    check_safe(facts, source.uri)
    if not facts.followed:
        hint = "It is corrupt, or made to do harm: upload it again, from a source you trust."
        raise FormatError("its pickle builds what no pickle can build", uri=source.uri, hint=hint)


def _torch_load(path: str, to: Placement, *, weights_only: bool, mmap: bool) -> Any:
    where: Any = to.map_location  # torch's own annotation lacks some of the kinds it takes
    value = torch.load(path, map_location=where, weights_only=weights_only, mmap=mmap)
    if to.dtype is not None:
        recast(value, to.dtype)
    return value


def _can_be_mapped(layout: Layout, facts: PickleFacts) -> bool:
    """Whether torch may take the pages of the file for tensors, as far as the directory tells.

    torch maps without looking: a storage that is compressed, or shorter than the pickle says, it would take
    as it lies.
    """
    starts = [layout.starts.get(f"data/{key}", 1) for key in facts.storages]
    return storages_agree(facts, layout.archive.records) and not any(s % _MAPPABLE_ALIGNMENT for s in starts)


def _headers_agree(path: str, layout: Layout) -> bool:
    """Whether the local headers, now at hand, are where and what the directory made them seem."""
    with Path(path).open("rb") as file:
        for name, record in layout.archive.records.items():
            file.seek(record.header)
            if not header_agrees(memoryview(file.read(LOCAL_BYTES)), record, layout.starts[name]):
                return False
    return True


def _look(source: Source, layout: Layout) -> PickleFacts | None:
    """Look into the pickle; None where it does not lie where the directory makes it seem."""
    record, start = layout.archive.records["data.pkl"], layout.starts["data.pkl"]
    data = source.cache.read(record.header, start + record.size)
    if not header_agrees(data, record, start):
        return None
    return _look_at(bytes(data[start - record.header :]), source)


def _reading(path: str) -> Callable[[int, int], memoryview]:
    """Return a function that reads a range of a file, or what there is of it."""

    def read(start: int, stop: int) -> memoryview:
        with Path(path).open("rb") as file:
            file.seek(start)
            return memoryview(file.read(stop - start))

    return read


def _look_by_torch(path: str, archive: Archive, source: Source) -> PickleFacts:
    """Look into a pickle that only torch's own reader finds, compressed or misplaced as it is."""
    facts = _look_at(PyTorchFileReader(path).get_record("data.pkl"), source)
    check_storages(facts, archive, source.uri)
    return facts


def _look_at(data: bytes, source: Source) -> PickleFacts:
    try:
        return look_into(io.BytesIO(data), limit=len(data), uri=source.uri)
    except EOFError:
        hint = "It is corrupt or was cut short: upload it again, whole."
        raise FormatError("its pickle does not come to an end", uri=source.uri, hint=hint) from None


def _load_torchscript(source: Source, to: Placement, *, weights_only: bool) -> Outcome:
    if weights_only:
        raise refuse_code("a TorchScript archive is a program", source.uri)
    with (
        spool(source, second_copy=True) as path,
        explain(source.uri, weights_only=False),
        warnings.catch_warnings(),
    ):
        jit_load: Any = torch.jit.load
        # The caller asked for a model, not for a format, and cannot act on the format's deprecation here.
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        value = jit_load(path, map_location=to.map_location)
        if to.dtype is not None:
            value = value.to(to.dtype)
    return Outcome(value, "TorchScript", "spooled")


def _load_exported(source: Source, to: Placement, *, weights_only: bool) -> Outcome:
    map_location = to.map_location
    if to.dtype is not None:
        raise ValueError(
            f"{source.uri}: a torch.export archive has its dtypes in its program: load it as it is"
        )
    if callable(map_location):
        raise TypeError(
            f"{source.uri}: a torch.export archive takes devices for map_location, not a function"
        )
    if weights_only:
        raise refuse_code(
            "a torch.export archive holds pickles that torch reads without restraint", source.uri
        )
    with (
        spool(source, second_copy=True) as path,
        Path(path).open("rb") as file,  # given a path, torch insists on the ending .pt2
        explain(source.uri, weights_only=False),
    ):
        value = torch.export.load(file)
        if map_location is not None:
            from torch.export.passes import move_to_device_pass

            where: Any = map_location
            value = move_to_device_pass(value, where)
    return Outcome(value, "pt2", "spooled")


def _load_unranged_zip(source: Source, to: Placement, *, weights_only: bool) -> Outcome:
    """Load from a server that answers no ranges: the directory, which is needed first, arrives last."""
    with spool(source, second_copy=True) as path:
        outcome = load_zip(source.reopened(path), to, weights_only=weights_only)
    return replace(outcome, method="spooled")
