"""A file over an object gives its bytes to whatever reads files, and lets go of all that it holds."""

from __future__ import annotations

import csv
import gc
import io
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

import torchwick
from checkpoints.base import save_bytes
from conftest import random_bytes, run_python
from faults import Cut, IgnoreRange, S3Error, SlowDown, Stall, Trickle
from oracle import assert_same
from torchwick import TransferConfig

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Put
    from faults import Request
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

MIB = 1 << 20
CONTENT = random_bytes(12 * MIB + 345)
PATH = "bucket/content.bin"
PROMPT = 5.0  # seconds, on a busy machine; the timeout that must not be what ends a read is far longer
PARTS = TransferConfig(part_size=MIB, connections=4, timeout=30)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "content.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def url(faulty: FaultyServer) -> str:
    return faulty.put(PATH, CONTENT)


@pytest.fixture
def served(
    aws_env: SeaweedFS, shared_bucket: str, put: Put, request: pytest.FixtureRequest
) -> Callable[[bytes], torchwick.File]:
    """Stores bytes on the real S3 server, and opens them."""
    number = iter(range(100))

    def open_bytes(content: bytes) -> torchwick.File:
        key = f"files/{request.node.name}/{next(number)}"
        return torchwick.open_file(put(shared_bucket, key, content))

    return open_bytes


Opener = Callable[[bytes], torchwick.File]


def _range(request: Request) -> tuple[int, int]:
    assert request.range is not None
    start, stop = request.range
    assert stop is not None
    return start, stop


def _rest(file: torchwick.File, size: int) -> bytes:
    """What is left, read in pieces of one size."""
    return b"".join(iter(lambda: file.read(size), b""))


def _asked(server: FaultyServer) -> int:
    """How many bytes the server was asked for."""
    return sum(stop - start for start, stop in map(_range, server.requests))


# -- the same bytes ----------------------------------------------------------------------------------------

_SIZES = st.integers(0, 3000) | st.integers(0, 3 * MIB) | st.just(-1)
_STEPS = st.lists(
    st.tuples(st.just("read"), _SIZES)
    | st.tuples(st.just("readinto"), _SIZES)
    | st.tuples(st.just("on"), st.integers(1, 300_000))
    | st.tuples(st.just("seek"), st.integers(0, len(CONTENT) + 10))
    | st.tuples(st.just("skip"), st.integers(-2 * MIB, 2 * MIB)),
    max_size=25,
)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(steps=_STEPS, limit=st.sampled_from(["auto", "64MiB", "4MiB", "500KB"]))
def test_any_pattern(local: Path, steps: list[tuple[str, int]], limit: int | str) -> None:
    judge = io.BytesIO(CONTENT)
    with torchwick.open_file(local, transfer=TransferConfig(memory_limit=limit)) as file:
        for verb, number in steps:
            assert _do(file, verb, number) == _do(judge, verb, number)
            assert file.tell() == judge.tell()


def _do(file: io.RawIOBase | io.BytesIO, verb: str, number: int) -> Any:
    if verb == "seek":
        return file.seek(number)
    if verb == "skip":
        return file.seek(max(0, file.tell() + number))
    if verb == "read":
        return file.read(number)
    if verb == "on":  # many reads in order
        return [file.read(number) for _ in range(20)]
    into = bytearray(max(0, number))
    return file.readinto(into), into


def test_from_start_to_end(served: Opener) -> None:
    with served(CONTENT) as file:
        assert _rest(file, 100_000) == CONTENT
        file.seek(0)
        assert file.read() == CONTENT
        assert file.read() == b""


@pytest.mark.parametrize("size", [0, 1, 1000, 256 << 10, (256 << 10) + 1, (512 << 10) + 1])
def test_of_any_size(served: Opener, size: int) -> None:
    with served(CONTENT[:size]) as file:
        assert file.size == size
        assert file.seek(-min(5, size), io.SEEK_END) == size - min(5, size)
        assert file.read() == CONTENT[max(0, size - 5) : size]
        file.seek(0)
        assert file.readall() == CONTENT[:size]


def test_into_memory_of_any_kind(served: Opener) -> None:
    with served(CONTENT) as file:
        numbers = np.empty((3, MIB), dtype=np.uint16)
        assert file.readinto(numbers.data) == numbers.nbytes
        assert numbers.tobytes() == CONTENT[: numbers.nbytes]


# -- whatever takes a file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_torch_load(served: Opener, new: bool) -> None:
    state = {f"layer.{n}": torch.randn(300 + n, 700) for n in range(12)} | {"small": torch.arange(3)}
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=new)
    with served(buffer.getvalue()) as file:
        assert_same(torch.load(file), state)


def test_zipfile(served: Opener) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for n, method in enumerate([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]):
            writer.writestr(f"{n}.bin", CONTENT[: 3 * MIB], method)
    with served(archive.getvalue()) as file, zipfile.ZipFile(file) as reader:
        assert reader.namelist() == ["0.bin", "1.bin"]
        assert reader.read("1.bin") == reader.read("0.bin") == CONTENT[: 3 * MIB]
        assert reader.testzip() is None


def test_numpy(served: Opener) -> None:
    first, second = np.arange(700_000), np.linspace(0, 1, 5)
    one, several = io.BytesIO(), io.BytesIO()
    np.save(one, first)
    np.savez(several, first=first, second=second)
    with served(one.getvalue()) as file:
        assert np.array_equal(np.load(file), first)
    with served(several.getvalue()) as file, np.load(file) as arrays:
        assert np.array_equal(arrays["second"], second)
        assert np.array_equal(arrays["first"], first)


@pytest.mark.parametrize("wrap", [lambda file: file, io.BufferedReader], ids=["raw", "buffered"])
def test_pickle(served: Opener, wrap: Callable[[torchwick.File], Any]) -> None:
    value = {"bytes": CONTENT[: 2 * MIB], "list": list(range(1000)), "text": "ä\n" * 100}
    for protocol in (0, pickle.HIGHEST_PROTOCOL):
        value["bytes"] = CONTENT[: 2 * MIB] if protocol else b"short"
        with served(pickle.dumps(value, protocol=protocol)) as file:
            assert pickle.load(wrap(file)) == value


def test_tarfile(served: Opener) -> None:
    archive = io.BytesIO()
    members = {f"{n}.bin": random_bytes(n * 400_000, seed=n) for n in range(6)}
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            writer.addfile(entry, io.BytesIO(data))
    with served(archive.getvalue()) as file, tarfile.open(fileobj=file) as reader:
        read = {entry.name: reader.extractfile(entry) for entry in reader.getmembers()}
        assert {name: member.read() for name, member in read.items() if member} == members


def test_lines(served: Opener) -> None:
    text = "".join(f"{n},{n * n},ü\n" for n in range(50_000))
    with served(text.encode()) as file, io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    assert (len(rows), rows[-1]) == (50_000, ["49999", "2499900001", "ü"])


def test_safetensors_as_bytes(served: Opener) -> None:
    state = {"weight": torch.randn(1000, 500)}
    with served(safetensors.torch.save(state)) as file:
        assert_same(safetensors.torch.load(file.read()), state)


# -- what a file is ----------------------------------------------------------------------------------------


def test_what_python_expects_of_it(url: str) -> None:
    file = torchwick.open_file(f"{url}?X-Amz-Signature=secret")
    assert (file.mode, file.readable(), file.seekable(), file.writable()) == ("rb", True, True, False)
    assert url in file.name
    assert "secret" not in file.name + repr(file)
    for refused in (lambda: file.write(b"x"), file.fileno, file.truncate):
        with pytest.raises(io.UnsupportedOperation):
            refused()
    with pytest.raises(ValueError, match="before the start"):
        file.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        file.seek(0, 7)
    file.close()
    file.close()
    assert file.closed
    for over in (file.tell, file.read, file.readall, file.seekable, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            over()
    with pytest.raises(ValueError, match="closed"):
        file.readinto(bytearray(1))


def test_nothing_there(faulty: FaultyServer) -> None:
    with pytest.raises(torchwick.ObjectNotFoundError):
        torchwick.open_file(faulty.url("bucket/none"))
    with pytest.raises(torchwick.URIError):
        torchwick.open_file("s3://")


def test_threads_get_each_their_own_bytes(local: Path) -> None:
    pieces: list[bytes] = []
    with torchwick.open_file(local) as file:
        threads = [
            threading.Thread(target=lambda: pieces.extend(iter(lambda: file.read(50_000), b"")))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(pieces) == sorted(CONTENT[at : at + 50_000] for at in range(0, len(CONTENT), 50_000))


# -- what it asks for --------------------------------------------------------------------------------------


def test_a_zip_directory_is_few_requests(faulty: FaultyServer) -> None:
    state = {f"layer.{n}": torch.zeros(1000 * 26) for n in range(300)}
    with torchwick.open_file(faulty.put(PATH, save_bytes(state))) as file:
        assert file.size > 30_000_000
        assert len(zipfile.ZipFile(file).namelist()) > 300
        assert len(faulty.requests) <= 4
        assert _asked(faulty) < 2 * MIB


def test_a_few_reads_in_order_do_not_fetch_the_file(faulty: FaultyServer, url: str) -> None:
    with torchwick.open_file(url) as file:
        for _ in range(20):
            file.read(100_000)
    assert _asked(faulty) < 4 * 2_000_000 + MIB


def test_a_large_read_asks_for_no_more(faulty: FaultyServer, url: str) -> None:
    with torchwick.open_file(url) as file:
        faulty.behave()
        file.seek(5 * MIB)
        assert file.read(4 * MIB + 1) == CONTENT[5 * MIB : 9 * MIB + 1]
        spans = sorted(map(_range, faulty.requests))
        assert spans[0][0] == 5 * MIB
        assert spans[-1][1] <= 9 * MIB + (256 << 10)  # its last byte is read with some more
        assert len(spans) > 2


def test_in_order_no_byte_is_asked_for_twice(faulty: FaultyServer, url: str) -> None:
    with torchwick.open_file(url, transfer=PARTS) as file:
        while file.read(70_000):
            pass
    spans = sorted(map(_range, faulty.requests))
    assert sum(stop - start for start, stop in spans) == len(CONTENT)
    assert len(spans) < 30


def test_small_reads_nearby_are_one_request(faulty: FaultyServer, url: str) -> None:
    with torchwick.open_file(url) as file:
        for at in (7 * MIB, 7 * MIB + 1000, 7 * MIB + 100, 7 * MIB + 99_000):
            file.seek(at)
            assert file.read(500) == CONTENT[at : at + 500]
    assert len(faulty.requests) == 2


# -- when it fails -----------------------------------------------------------------------------------------


def test_cut_connections(faulty: FaultyServer, url: str) -> None:
    faulty.on(Cut(after=300_000), nth=range(2, 6))
    faulty.on(SlowDown(), nth=range(7, 9))
    with torchwick.open_file(url, transfer=PARTS) as file:
        assert _rest(file, 200_000) == CONTENT


@pytest.mark.parametrize("size", [1000, 50_000, 4 * MIB])
def test_overwritten(faulty: FaultyServer, url: str, size: int) -> None:
    with torchwick.open_file(url, transfer=PARTS) as file:
        file.read(3 * MIB)
        faulty.put(PATH, CONTENT[::-1])
        with pytest.raises(torchwick.ObjectChangedError):
            _rest(file, size)


def test_overwritten_on_s3(served: Opener, put: Put, shared_bucket: str) -> None:
    with served(CONTENT) as file:
        put(shared_bucket, file.name.removeprefix(f"s3://{shared_bucket}/"), CONTENT[::-1])
        with pytest.raises(torchwick.ObjectChangedError):
            file.read()


def test_after_a_failure_it_goes_on(faulty: FaultyServer, url: str) -> None:
    with torchwick.open_file(url, transfer=PARTS) as file:
        file.read(2 * MIB)
        faulty.on(S3Error(403, "AccessDenied"))
        with pytest.raises(torchwick.AccessDeniedError):
            _rest(file, 2 * MIB)
        at = file.tell()
        faulty.behave()
        assert 2 * MIB <= at < len(CONTENT)
        assert file.read() == CONTENT[at:]


def test_a_failure_ahead_is_the_affair_of_the_read_that_needs_it(faulty: FaultyServer, url: str) -> None:
    def is_ahead(request: Request) -> bool:
        return _range(request)[0] >= 6 * MIB

    with torchwick.open_file(url, transfer=PARTS) as file:
        faulty.on(S3Error(403, "AccessDenied"), where=is_ahead)
        assert file.read(4 * MIB) == CONTENT[: 4 * MIB]
        file.read(1000)  # has much read ahead
        time.sleep(0.5)
        file.seek(MIB)
        assert file.read(3 * MIB) == CONTENT[MIB : 4 * MIB]
        file.seek(5 * MIB)
        with pytest.raises(torchwick.AccessDeniedError):
            file.read(3 * MIB)


def test_a_failure_ahead_does_not_end_a_read_that_still_waits(faulty: FaultyServer, url: str) -> None:
    with torchwick.open_file(url, transfer=PARTS) as file:
        assert file.read(4 * MIB) == CONTENT[: 4 * MIB]
        faulty.on(S3Error(403, "AccessDenied"), where=lambda request: _range(request)[0] >= 6 * MIB)
        faulty.on(Trickle(MIB // 4, 0.2), where=lambda request: _range(request)[0] < 6 * MIB, nth=1)
        assert file.read(MIB) == CONTENT[4 * MIB : 5 * MIB]


class TestNoRanges:
    def test_they_are_held_in_memory(self, faulty: FaultyServer, url: str) -> None:
        faulty.on(IgnoreRange())
        with torchwick.open_file(url) as file:
            file.seek(-MIB, io.SEEK_END)
            assert file.read() == CONTENT[-MIB:]
            file.seek(0)
            assert file.read(10) == CONTENT[:10]

    def test_nor_a_tag(self, faulty: FaultyServer) -> None:
        url = faulty.put(PATH, CONTENT, etag=None, headers={"Last-Modified": ""})
        with torchwick.open_file(url) as file:
            assert file.read() == CONTENT

    def test_more_than_the_limit(self, faulty: FaultyServer, url: str) -> None:
        faulty.on(IgnoreRange())
        with pytest.raises(torchwick.MemoryLimitError, match="no ranges"):
            torchwick.open_file(url, transfer=TransferConfig(memory_limit="8MiB"))


# -- the end -----------------------------------------------------------------------------------------------


@pytest.fixture
def prompt() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < PROMPT


def _ahead() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("torchwick-")]


@pytest.mark.usefixtures("prompt")
def test_closing_stops_what_is_on_its_way(faulty: FaultyServer, url: str) -> None:
    faulty.on(Stall(after=1000), where=lambda request: _range(request)[0] >= 5 * MIB)
    file = torchwick.open_file(url, transfer=PARTS)
    file.read(2 * MIB)
    file.read(2 * MIB)
    assert _ahead()
    file.close()
    assert not _ahead()


@pytest.mark.usefixtures("prompt")
def test_dropped_unclosed(faulty: FaultyServer, url: str) -> None:
    faulty.on(Stall(after=1000), where=lambda request: _range(request)[0] >= 5 * MIB)
    file = torchwick.open_file(url, transfer=PARTS)
    file.read(2 * MIB)
    file.read(2 * MIB)
    cycle: list[Any] = [file]
    cycle.append(cycle)
    del file, cycle
    gc.collect()
    deadline = time.monotonic() + PROMPT
    while _ahead() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _ahead()


def test_a_file_that_nobody_reads_has_no_threads(url: str) -> None:
    with torchwick.open_file(url, transfer=PARTS) as file:
        file.read(5 * MIB)
        file.read(5)
        deadline = time.monotonic() + 20
        while _ahead() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _ahead()
        assert file.read() == CONTENT[5 * MIB + 5 :]


def test_the_end_of_the_program(local: Path) -> None:
    script = (
        "import sys, threading, torchwick\n"
        "file = torchwick.open_file(sys.argv[1])\n"
        "file.read(3 << 20)\n"
        "file.read(3 << 20)\n"
        "late = threading.Timer(0.5, lambda: print(len(file.read())))\n"
        "late.start()\n"
    )
    began = time.monotonic()
    assert run_python(script, str(local)) == f"{len(CONTENT) - 6 * MIB}\n"
    assert time.monotonic() - began < 15


def test_ctrl_c(faulty: FaultyServer, url: str) -> None:
    faulty.on(Stall(after=1000), where=lambda request: _range(request)[0] >= 3 * MIB)
    script = (
        "import sys, threading, torchwick\n"
        "file = torchwick.open_file(sys.argv[1], transfer=torchwick.TransferConfig(timeout=60))\n"
        "try:\n"
        "    file.read()\n"
        "except KeyboardInterrupt:\n"
        "    print(threading.active_count(), flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while len(faulty.requests) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PROMPT)[0] == "1\n"


def test_memory_stays_within_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(400_000_000)
    script = (
        "import sys, torchwick\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "into = bytearray(int(sys.argv[2]))\n"
        "limit = torchwick.TransferConfig(memory_limit='64MB')\n"
        "with torchwick.open_file(sys.argv[1], transfer=limit) as file:\n"
        "    file.readinto(into)\n"
        "    before = peak()\n"
        "    while file.readinto(into):\n"
        "        pass\n"
        "    print(peak() - before)\n"
    )
    for size in (100_000, 50_000_000):
        assert int(run_python(script, str(path), str(size))) < 75_000
