"""`load` and `load_model` for a process group: each byte leaves the store once, and reaches all ranks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from torchwick.checkpoint.opening import open_objects
from torchwick.checkpoint.progress import watched
from torchwick.checkpoint.renaming import Rename, renamed
from torchwick.checkpoint.selection import Keys, select
from torchwick.checkpoint.verification import StoredSums, Verify, expecting
from torchwick.config import S3Config, TransferConfig
from torchwick.distributed.selection import GroupSelection
from torchwick.distributed.sharing import Opened, from_bytes, to_bytes
from torchwick.errors import GroupError
from torchwick.formats.dtypes import DTYPES, parse_dtype
from torchwick.formats.ties import with_ties
from torchwick.loading.devices import Placement
from torchwick.loading.facts import facts_of, unverified
from torchwick.loading.module import Filling
from torchwick.loading.selected import load_selected
from torchwick.ranks.agreement import Agreement
from torchwick.ranks.members import Members
from torchwick.report import LoadReport, LoadResult, ProgressCallback
from torchwick.store import open_store
from torchwick.uri import URI, parse

if TYPE_CHECKING:
    import torch.distributed as dist

    from torchwick.checkpoint.objects import Objects
    from torchwick.store import StoredChecksum

__all__ = ["load", "load_model"]

_log = logging.getLogger("torchwick")
_TIMEOUT = 60.0
"""Seconds: longer than a garbage collection, a page fault or a slow disk holds a process up; far below the
half hour after which gloo gives up."""


def load(
    uri: str | os.PathLike[str],
    group: dist.ProcessGroup | None = None,
    *,
    map_location: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    keys: Keys = None,
    verify: Verify = "auto",
    progress: bool | ProgressCallback = False,
    on_report: Callable[[LoadReport], object] | None = None,
    timeout: float = _TIMEOUT,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> dict[str, torch.Tensor]:
    """Load tensors on every rank of a group: each reads a share from S3, and the ranks exchange them.

    Every rank calls it, with the same arguments. The first rank opens the checkpoint and tells the others
    what is in it, so that all read one version, and headers are read once. The bytes are split evenly; while
    a rank reads on, what it has goes to the others by broadcasts of the group. So each byte leaves S3 once,
    however many ranks there are.

    What comes of it is what ``torchwick.load(uri, keys="*")`` gives: tensors by name. Of a ``torch.save``
    file that means its tensors alone, nested names dotted; no pickle is run. Tied tensors stay tied; what was
    saved transposed, or as every other element, comes laid out row by row.

    Args:
        uri: an object or a directory, as for `torchwick.open`.
        group: the ranks; None is the default group. Its backend takes tensors of the CPU, such as ``gloo``,
            or of CUDA devices, such as ``nccl``.
        map_location: the device of the tensors.
        dtype: what floating-point tensors are cast to, by the rank that reads them: fewer bytes to exchange.
        keys: only these tensors; see `torchwick.load`.
        verify: see `torchwick.load`; what the ranks saw is put together, and compared once.
        progress: True for a bar on standard error, or a function; of all bytes, read here or received.
        on_report: called with the `LoadReport` of this rank: its bytes and requests, not the group's.
        timeout: seconds without a sign of life of a rank after which the load fails on all. A rank that waits
            for a slow S3 gives signs of life.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory, on this rank.

    Returns:
        Tensors by name, in the order of the checkpoint.

    Raises:
        GroupError: a rank failed, is gone or did not come; `GroupError.rank` and the message tell which one,
            and why. Every rank raises it.
        FormatError: it is no checkpoint, or the server sends no ranges that ranks could share.
        IntegrityError: the bytes are not those that were stored.
        ObjectNotFoundError: there is no such object.
        ObjectChangedError: it was overwritten in the middle of the load. Every rank raises these as well.
        ValueError: there is no process group, or this process is no rank of it.

    Example:
        >>> import tempfile, torch, torchwick.distributed
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.arange(3)}, f"{folder}/model.pt")
        ...     torch.distributed.init_process_group(
        ...         "gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1
        ...     )
        ...     print(torchwick.distributed.load(f"{folder}/model.pt"))
        ...     torch.distributed.destroy_process_group()
        {'weight': tensor([0, 1, 2])}
    """
    task = _Task(
        group,
        progress=progress,
        on_report=on_report,
        timeout=timeout,
        s3=s3,
        transfer=transfer,
        verify=verify,
    )
    with task.begun(uri) as run:
        names = select(keys, run.opened.catalog.entries, run.uri)
        selection = run.select(run.opened.catalog, run.opened.objects, names, run.on_progress)
        kind = None if dtype is None else getattr(torch, DTYPES[parse_dtype(dtype)].torch)
        value = load_selected(selection, Placement(map_location, kind), run.uri, verify=verify, sha256=None)
        size = run.opened.objects.size or 0
        facts = facts_of(
            run.opened.objects.tally, selection.sources, run.opened.catalog.format, "filled", size
        )
        if verify is True and facts["verified"] is None:
            raise unverified(run.uri, map_location)
    task.report(run, facts)
    return value


def load_model(
    model: torch.nn.Module,
    uri: str | os.PathLike[str],
    group: dist.ProcessGroup | None = None,
    *,
    strict: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    keys: Keys = None,
    rename: Rename = None,
    verify: Verify = "auto",
    progress: bool | ProgressCallback = False,
    on_report: Callable[[LoadReport], object] | None = None,
    timeout: float = _TIMEOUT,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> LoadResult:
    """Fill a module on every rank of a group: each reads a share from S3, and the ranks exchange them.

    As `load`, into the module as `torchwick.load_model` fills it: a module on the CPU is read and received in
    its own memory. The modules of all ranks have the same names, shapes and dtypes.

    Args:
        model: the module; its names are those of its state dict.
        uri: an object or a directory, as for `torchwick.open`.
        group: the ranks; None is the default group.
        strict: refuse a checkpoint that lacks a tensor of the module, or has another one besides.
        device: where the module is to be; by default where it is, and the CPU for what is on ``meta``.
        dtype: what the floating-point tensors that are loaded are cast to; by default what the module has.
        keys: only these tensors of the checkpoint; see `torchwick.load_model`.
        rename: what the tensors are called in the module; see `torchwick.load_model`.
        verify: see `load`.
        progress: see `load`.
        on_report: see `load`.
        timeout: see `load`.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory, on this rank.

    Returns:
        The names that were missing and unexpected, none of either if it was strict.

    Raises:
        StateDictError: names or shapes do not fit; the module is untouched.
        GroupError: see `load`; like any error that comes after the first bytes, it says so if the module is
            partly filled.
        FormatError: see `load`, also for the other errors.
        ValueError: `dtype` is no floating-point dtype, or two tensors are renamed alike.

    Example:
        >>> torchwick.distributed.load_model(model, "s3://models/new.pt")  # doctest: +SKIP
        LoadResult(missing=[], unexpected=[])
    """
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"a torch.nn.Module is filled, not a {type(model).__name__}")
    task = _Task(
        group,
        progress=progress,
        on_report=on_report,
        timeout=timeout,
        s3=s3,
        transfer=transfer,
        verify=verify,
    )
    with task.begun(uri) as run:
        kind = None if dtype is None else DTYPES[parse_dtype(dtype)].torch
        catalog = with_ties(run.opened.catalog)
        original = renamed(select(keys, catalog.entries, run.uri), rename)
        filling = Filling(model, catalog, run.opened.objects, original, run.on_progress, run.select)
        result, facts = filling.run(strict=strict, device=device, dtype=kind, verify=verify, sha256=None)
    task.report(run, facts)
    return result


@dataclass(frozen=True)
class _Run:
    """A load that has begun: the checkpoint is open, the same on every rank."""

    uri: URI
    opened: Opened
    on_progress: ProgressCallback | None
    select: Callable[..., GroupSelection]


class _Task:
    """What a load was asked for, apart from what is done with the tensors."""

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        *,
        progress: bool | ProgressCallback,
        on_report: Callable[[LoadReport], object] | None,
        timeout: float,
        s3: S3Config | None,
        transfer: TransferConfig | None,
        verify: Verify,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        self._started = time.perf_counter()
        self._members = Members(group)
        self._progress = progress
        self._on_report = on_report
        self._timeout = timeout
        self._s3 = s3 or S3Config()
        self._config = transfer or TransferConfig()
        self._verify = verify

    @contextmanager
    def begun(self, uri: str | os.PathLike[str]) -> Iterator[_Run]:
        """Open a checkpoint together, and end together what is done with it."""
        with Agreement(self._members, self._timeout) as agreement, watched(self._progress) as on_progress:
            agreement.arrive()
            address = parse(uri)
            store = open_store(address, self._s3, self._config.timeout)
            if self._members.rank == 0:
                with agreement.patient():
                    objects_of = open_objects(address, store, self._config)
                    opened = Opened(*objects_of, self._checksums(objects_of[1]))
                _send(agreement, to_bytes(opened))
            else:
                opened = from_bytes(_receive(agreement), store, self._config)
            if opened.objects.uri not in (address, _directory(address)):
                message = f"this rank was asked for {address}"
                hint = "Call it with the same arguments on every rank."
                raise GroupError(message, uri=opened.objects.uri, hint=hint, rank=self._members.rank)
            select = partial(GroupSelection, agreement=agreement, checksums=opened.checksums)
            yield _Run(address, opened, on_progress, select)

    def _checksums(self, objects: Objects) -> dict[str, StoredChecksum | None]:
        """Ask what the store keeps of each object."""
        with ExitStack() as questions:
            answers = {
                name: questions.enter_context(
                    expecting(
                        objects.store,
                        objects[name].info,
                        self._config.timeout,
                        verify=self._verify,
                        sha256=None,
                    )
                )
                for name in objects.names
            }
            kept = {name: answer() for name, answer in answers.items()}
        return {name: sums.stored if isinstance(sums, StoredSums) else None for name, sums in kept.items()}

    def report(self, run: _Run, facts: dict[str, Any]) -> None:
        """Tell what this rank did."""
        report = LoadReport(uri=str(run.uri), seconds=time.perf_counter() - self._started, **facts)
        _log.info("loaded %s with %d ranks: %s", report.uri, self._members.size, report)
        if self._on_report is not None:
            self._on_report(report)


def _directory(address: URI) -> URI:
    return address if address.version or address.query else address.as_directory()


def _send(agreement: Agreement[Members], data: bytes) -> None:
    agreement.tell("opened", str(len(data)))
    memory = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(agreement.members.device)
    agreement.finish(agreement.members.broadcast(memory, 0))


def _receive(agreement: Agreement[Members]) -> bytes:
    size = int(agreement.hear("opened"))
    memory = torch.empty(size, dtype=torch.uint8, device=agreement.members.device)
    agreement.finish(agreement.members.broadcast(memory, 0))
    return memory.cpu().numpy().tobytes()
