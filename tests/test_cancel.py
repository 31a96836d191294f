"""Whatever interrupts a load ends it at once, and leaves no thread behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import torch

import torchwick
from checkpoints.base import save_bytes
from faults import Fault, IgnoreRange, S3Error, Stall
from torchwick import AccessDeniedError, Progress, TransferConfig
from torchwick.formats import torch_zip

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import Request
    from faulty import FaultyServer

MODEL = save_bytes({"weight": torch.arange(1_000_000)})
PATIENCE = 30.0  # seconds; the timeout that must not be what ends a load
PROMPT = 6.0  # seconds; an interrupted process has to wake up and unwind on a busy machine
PARTS = TransferConfig(part_size=1 << 20, connections=4, timeout=PATIENCE)

LOAD = f"""
import sys, threading, torch, torchwick
config = torchwick.TransferConfig(part_size=1 << 20, connections=4, timeout={PATIENCE})
try:
    torchwick.load(sys.argv[1], transfer=config)
except KeyboardInterrupt:
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print("interrupted", left, flush=True)
"""


def _is_head(request: Request) -> bool:
    return request.range is None or request.range[0] == 0


def _is_part(request: Request) -> bool:
    """Whether it is a worker's; the main thread reads the end, where the archive's directory is."""
    return request.range is not None and 0 < request.range[0] < len(MODEL) - torch_zip.TAIL


def _is_tail(request: Request) -> bool:
    return not _is_head(request) and not _is_part(request)


def _always(request: Request) -> bool:
    return True


@pytest.mark.parametrize("address", ["s3://models/new.pt", "web"])
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (Stall(-1), _is_head),
        (Stall(1000), _is_head),
        (Stall(1000), _is_tail),
        (Stall(-1), _is_part),
        (Stall(1000), _is_part),
        (S3Error(503, "SlowDown", headers={"Retry-After": "60"}), _is_head),
        (S3Error(503, "SlowDown", headers={"Retry-After": "60"}), _is_part),
    ],
    ids=["first byte", "head", "tail", "part's first byte", "part", "back-off at first", "back-off"],
)
def test_ctrl_c(
    faulty_s3: FaultyServer, fault: Fault, where: Callable[[Request], bool], address: str
) -> None:
    faulty_s3.on(fault, where=where)
    _assert_interruptible(faulty_s3, where, address)


def test_ctrl_c_in_a_stream_without_ranges(faulty_s3: FaultyServer) -> None:
    faulty_s3.on(IgnoreRange("chunked"))
    faulty_s3.on(Stall(1000), nth=2)
    _assert_interruptible(faulty_s3, _always, "web", nth=2)


def test_ctrl_c_in_a_race(faulty_s3: FaultyServer) -> None:
    def is_late(request: Request) -> bool:
        return request.range is not None and request.range[0] >> 20 == 4

    faulty_s3.on(Stall(1000), where=is_late)
    _assert_interruptible(faulty_s3, is_late, "s3://models/new.pt", nth=2)


def _assert_interruptible(
    server: FaultyServer, where: Callable[[Request], bool], address: str, nth: int = 1
) -> None:
    stuck = threading.Event()
    server.on(stuck.set, where=where, nth=nth)
    url = server.put("models/new.pt", MODEL)
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, url if address == "web" else address], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert stuck.wait(PATIENCE), "the load never got that far"
            time.sleep(0.05)  # let it fall asleep over the answer: any moment will do, so none is wrong
            os.kill(process.pid, signal.SIGINT)
            started = time.monotonic()
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert time.monotonic() - started < PROMPT
    assert (process.returncode, out) == (0, "interrupted []\n")


def test_an_exception_in_the_progress_callback(faulty_s3: FaultyServer) -> None:
    faulty_s3.put("models/new.pt", MODEL)
    faulty_s3.on(Stall(1000), where=_is_part)

    def give_up(progress: Progress) -> None:
        raise LookupError("enough")

    started = time.monotonic()
    with pytest.raises(LookupError, match="enough"):
        torchwick.load("s3://models/new.pt", progress=give_up, transfer=PARTS)
    assert time.monotonic() - started < PROMPT
    assert _threads() == []


def test_an_exception_in_the_report_callback(faulty_s3: FaultyServer) -> None:
    faulty_s3.put("models/new.pt", MODEL)

    def complain(report: torchwick.LoadReport) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        torchwick.load("s3://models/new.pt", on_report=complain, transfer=PARTS)
    assert _threads() == []


def test_ctrl_c_in_the_progress_callback(faulty_s3: FaultyServer) -> None:
    faulty_s3.put("models/new.pt", MODEL)
    faulty_s3.on(Stall(1000), where=_is_part)
    with pytest.raises(KeyboardInterrupt):
        torchwick.load(
            "s3://models/new.pt", progress=lambda _: signal.raise_signal(signal.SIGINT), transfer=PARTS
        )
    assert _threads() == []


def test_an_error_in_one_part_stops_the_others(faulty_s3: FaultyServer) -> None:
    faulty_s3.put("models/new.pt", MODEL)
    faulty_s3.on(Stall(1000), where=_is_part, nth=range(1, 4))
    faulty_s3.on(S3Error(403, "AccessDenied"), where=_is_part, nth=range(4, 99))
    started = time.monotonic()
    with pytest.raises(AccessDeniedError):
        torchwick.load("s3://models/new.pt", transfer=PARTS)
    assert time.monotonic() - started < PROMPT
    assert _threads() == []


def test_the_load_after_an_interrupted_one(faulty_s3: FaultyServer) -> None:
    faulty_s3.put("models/new.pt", MODEL)
    faulty_s3.on(Stall(1000), where=_is_part, nth=range(1, 5))
    with pytest.raises(KeyboardInterrupt):
        torchwick.load(
            "s3://models/new.pt", progress=lambda _: signal.raise_signal(signal.SIGINT), transfer=PARTS
        )
    loaded = torchwick.load("s3://models/new.pt", transfer=PARTS)
    assert torch.equal(loaded["weight"], torch.arange(1_000_000))


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("torchwick-")]
