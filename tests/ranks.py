"""Ranks of process groups, as processes that import torch once, and do together what tests tell them.

The store of each group is kept by the test's own process, so that any rank can be killed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib
import os
import re
import signal
import threading
import time
import traceback
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import TCPStore

import torchwick
import torchwick.distributed
from torchwick import LoadReport, TransferConfig
from torchwick.ranks.members import Members

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

PATIENCE = 60.0  # seconds that anything may take: no test hangs
_HOST = "127.0.0.1"

Shown = dict[str, tuple[str, tuple[int, ...], str]]


def shown(state: Mapping[str, torch.Tensor]) -> Shown:
    """What tensors hold, as plain data: dtype, shape, digest of the elements."""
    return {
        name: (
            str(tensor.dtype),
            tuple(tensor.shape),
            hashlib.sha256(
                tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            ).hexdigest(),
        )
        for name, tensor in state.items()
    }


@dataclasses.dataclass
class Outcome:
    """What came of a job on one rank.

    Attributes:
        value: what it returned.
        error: what it raised.
        seconds: what it took.
        leaving: seconds that it took to leave the group.
        gone: whether the process ended.
    """

    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    leaving: float = 0.0
    gone: bool = False


class Ranks:
    """A pool of processes; one that was killed is replaced.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._spawn = get_context("spawn")
        self._workers: list[tuple[Any, Connection] | None] = [None] * size

    def close(self) -> None:
        """End all of them."""
        for rank, worker in enumerate(self._workers):
            if worker is not None:
                self._end(rank)

    def run(
        self,
        job: Callable[..., Any],
        *,
        environment: Mapping[str, str] | Callable[[int], Mapping[str, str]],
        size: int | None = None,
        **arguments: Any,
    ) -> list[Outcome]:
        """Have a new group of ranks do a job, and return what came of it on each.

        Args:
            job: a function of a module that can be imported; its first argument is the rank.
            environment: of all, or of each rank.
            size: of the group; by default all.
            arguments: of the job.
        """
        size = size or self.size
        store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        lines = [self._line(rank) for rank in range(size)]
        for rank, line in enumerate(lines):
            variables = environment(rank) if callable(environment) else environment
            line.send(
                (f"{job.__module__}:{job.__name__}", dict(variables), rank, size, store.port, arguments)
            )
        until = time.monotonic() + PATIENCE
        try:
            return [self._outcome(rank, line, until) for rank, line in enumerate(lines)]
        except AssertionError:
            self.close()  # those that wait for the one that hangs as well
            raise
        finally:
            del store

    def _line(self, rank: int) -> Connection:
        worker = self._workers[rank]
        if worker is not None and not worker[0].is_alive():
            self._end(rank)
            worker = None
        if worker is None:
            ours, theirs = self._spawn.Pipe()
            process = self._spawn.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            worker = self._workers[rank] = (process, ours)
        return worker[1]

    def _outcome(self, rank: int, line: Connection, until: float) -> Outcome:
        try:
            if line.poll(max(0.0, until - time.monotonic())):
                outcome: Outcome = line.recv()
                return outcome
        except EOFError:
            self._end(rank)
            return Outcome(gone=True)
        self._end(rank)
        raise AssertionError(f"rank {rank} hangs")

    def _end(self, rank: int) -> None:
        process, line = self._workers[rank]  # type: ignore[misc]
        process.kill()
        process.join()
        line.close()
        self._workers[rank] = None


def _serve(line: Connection) -> None:
    """Do job after job, until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        try:
            name, environment, rank, size, port, arguments = line.recv()
        except EOFError:
            return
        os.environ.update(environment)
        patience = datetime.timedelta(seconds=PATIENCE)
        store = TCPStore(_HOST, port, is_master=False, timeout=patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
        outcome, began = Outcome(), time.monotonic()
        try:
            module, _, function = name.partition(":")
            outcome.value = getattr(importlib.import_module(module), function)(rank, **arguments)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            outcome.error = error
            error.add_note(traceback.format_exc())
        outcome.seconds = time.monotonic() - began
        dist.destroy_process_group()
        del store
        outcome.leaving = time.monotonic() - began - outcome.seconds
        try:
            line.send(outcome)
        except Exception:  # noqa: BLE001 - it does not pickle
            line.send(dataclasses.replace(outcome, error=AssertionError(repr(outcome.error))))


# -- jobs --------------------------------------------------------------------------------------------------


def load(rank: int, uri: str, **options: Any) -> tuple[Shown, LoadReport]:
    """Load, and say what came of it."""
    reports: list[LoadReport] = []
    state = torchwick.distributed.load(uri, on_report=reports.append, **options)
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("torchwick-")]
    assert not alive, alive
    return shown(state), reports[0]


def load_ties(rank: int, uri: str, first: str, second: str) -> bool:
    """Whether two tensors share memory."""
    state = torchwick.distributed.load(uri)
    return state[first].data_ptr() == state[second].data_ptr()


def count_broadcasts(rank: int, uri: str) -> int:
    """How many broadcasts a load takes."""
    count = 0
    broadcast = Members.broadcast

    def counted(members: Members, tensor: torch.Tensor, owner: int) -> Any:
        nonlocal count
        count += 1
        return broadcast(members, tensor, owner)

    Members.broadcast = counted  # type: ignore[assignment,method-assign]
    try:
        torchwick.distributed.load(uri)
    finally:
        Members.broadcast = broadcast  # type: ignore[method-assign]
    return count


def load_in_subgroup(rank: int, uri: str, members: list[int]) -> Shown | None:
    """Load in a group of some of the ranks."""
    group = dist.new_group(members)
    if rank not in members:
        return None
    return shown(torchwick.distributed.load(uri, group))


def load_alone(rank: int, uri: str, of: int) -> Shown | None:
    """Call for the load of a group that this process is in or not."""
    group = dist.new_group([of])
    return shown(torchwick.distributed.load(uri, group))


def load_twice(rank: int, uri: str, then: str, **options: Any) -> tuple[str, str, Shown]:
    """Load what fails, and then something else by the same group."""
    try:
        torchwick.distributed.load(uri, **options)
    except torchwick.TorchwickError as error:
        return type(error).__name__, str(error), shown(torchwick.distributed.load(then))
    raise AssertionError("it did not fail")


def die(rank: int, uri: str, who: int, **options: Any) -> Shown:
    """Load; one of the ranks ends in the middle."""

    def end(_: torchwick.Progress) -> None:
        if rank == who:
            os._exit(1)

    return shown(torchwick.distributed.load(uri, progress=end, **options))


def stay_away(rank: int, uri: str, who: int, **options: Any) -> Shown | None:
    """Load; one of the ranks does something else."""
    return None if rank == who else shown(torchwick.distributed.load(uri, **options))


def hang(rank: int, uri: str, who: int, seconds: float, **options: Any) -> Shown:
    """Load; one of the ranks is busy with something else in the middle."""
    once = iter([True])

    def wait(_: torchwick.Progress) -> None:
        if rank == who and next(once, False):
            time.sleep(seconds)

    return shown(torchwick.distributed.load(uri, progress=wait, **options))


def complain(rank: int, uri: str, who: int) -> Shown:
    """Load; one rank's progress function raises."""

    def raise_(_: torchwick.Progress) -> None:
        if rank == who:
            raise LookupError("hush-hush")

    return shown(torchwick.distributed.load(uri, progress=raise_))


def differ(rank: int, uris: list[str], keys: list[Any]) -> Shown:
    """Load; each rank asks for something of its own."""
    return shown(torchwick.distributed.load(uris[rank], keys=keys[rank]))


class Tied(nn.Module):
    """Two names for one weight, and a buffer."""

    def __init__(self, width: int = 300) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 1000)
        self.head.weight = self.embed.weight


def load_model(
    rank: int, uri: str, device: str, module_dtype: torch.dtype | None = None, **options: Any
) -> tuple[Shown, tuple[list[str], list[str]], bool]:
    """Fill a module, and say what is in it then."""
    torch.manual_seed(rank)
    with torch.device(device):
        model = Tied()
    model.to(dtype=module_dtype)
    before = model.embed.weight.data_ptr() if device == "cpu" else None
    result = torchwick.distributed.load_model(model, uri, **options)
    assert model.head.weight is model.embed.weight
    same = before is None or "dtype" in options or before == model.embed.weight.data_ptr()
    return shown(model.state_dict()), (result.missing, result.unexpected), same


def small(**options: Any) -> TransferConfig:
    """Return settings under which a small model takes many parts."""
    return TransferConfig(**({"part_size": 256 << 10} | options))


def load_on_meta(rank: int, uri: str) -> dict[str, tuple[int, ...]]:
    """Load shapes alone."""
    state = torchwick.distributed.load(uri, map_location="meta")
    return {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.is_meta}


def peak(rank: int, uri: str, **options: Any) -> int:
    """Load, and return the bytes of memory that it took at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is from now on
    before = _memory("VmRSS")
    state = torchwick.distributed.load(uri, **options)
    assert state
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
