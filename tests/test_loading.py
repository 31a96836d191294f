"""Whole loads from a real S3 server: every format, from every kind of caller, in one copy of memory."""

from __future__ import annotations

import asyncio
import gc
import io
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import torchwick
from checkpoints.base import quiet, save_bytes
from conftest import run_python
from oracle import assert_same
from torchwick import LoadReport, MemoryLimitError, Progress, TransferConfig, UnsafePickleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchwick.demo.server import SeaweedFS

MIB = 1 << 20
PARTS = TransferConfig(part_size=4 * MIB, connections=4)


class Net(torch.nn.Module):
    """About 30 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1100, 1100) for _ in range(6))
        self.register_buffer("steps", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _state() -> dict[str, Any]:
    state = dict(Net().state_dict())
    return {"model": state, "tied": state["layers.0.weight"], "epoch": 7, "empty": torch.empty(0)}


def _script() -> bytes:
    buffer = io.BytesIO()
    with quiet():
        torch.jit.save(torch.jit.script(Net()), buffer)
    return buffer.getvalue()


def _exported() -> bytes:
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(torch.export.export(Net(), (torch.ones(2, 1100),)), buffer)
    return buffer.getvalue()


def _load_jit(content: bytes) -> Any:
    load: Any = torch.jit.load
    with quiet():
        return load(io.BytesIO(content))


def _load_unsafely(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)


@dataclass(frozen=True)
class Kind:
    """One format: how it is written, what reads it rightly, and how it is to be loaded."""

    format: str
    method: str
    write: Callable[[], bytes]
    oracle: Callable[[bytes], Any]
    weights_only: bool = True


KINDS = {
    "pt": Kind("torch zip", "deferred", lambda: save_bytes(_state()), lambda c: torch.load(io.BytesIO(c))),
    "legacy": Kind(
        "torch legacy",
        "deferred",
        lambda: save_bytes(_state(), _use_new_zipfile_serialization=False),
        lambda c: torch.load(io.BytesIO(c)),
    ),
    "safetensors": Kind(
        "safetensors", "filled", lambda: safetensors.torch.save(Net().state_dict()), safetensors.torch.load
    ),
    "sparse": Kind(
        "torch zip",
        "spooled",
        lambda: save_bytes({**_state(), "sparse": torch.eye(3).to_sparse()}),
        lambda c: torch.load(io.BytesIO(c)),
    ),
    "module": Kind("torch zip", "spooled", lambda: save_bytes(Net()), _load_unsafely, weights_only=False),
    "script": Kind("TorchScript", "spooled", _script, _load_jit, weights_only=False),
    "pt2": Kind("pt2", "spooled", _exported, lambda c: torch.export.load(io.BytesIO(c)), weights_only=False),
}
TENSORS = ["pt", "legacy", "safetensors", "sparse"]


@dataclass(frozen=True)
class Stored:
    kind: Kind
    content: bytes
    uri: str
    etag: str

    def load(self, **options: Any) -> Any:
        with quiet():
            return torchwick.load(
                self.uri, **{"weights_only": self.kind.weights_only, "transfer": PARTS, **options}
            )

    def assert_right(self, loaded: Any) -> None:
        expected = self.kind.oracle(self.content)
        if self.kind.format == "pt2":
            loaded, expected = (dict(program.state_dict) for program in (loaded, expected))
        if self.kind.format == "safetensors":
            expected = {name: expected[name] for name in loaded}
        assert_same(loaded, expected, storages=self.kind.format not in ("safetensors", "pt2"))


_made: dict[str, Stored] = {}


@pytest.fixture
def stored(request: pytest.FixtureRequest, aws_env: SeaweedFS, shared_bucket: str, s3_client: Any) -> Stored:
    """A model of one kind on the S3 server, written once for all tests."""
    name: str = getattr(request, "param", "pt")
    if name not in _made:
        content = KINDS[name].write()
        etag = s3_client.put_object(Bucket=shared_bucket, Key=f"loading/{name}", Body=content)["ETag"]
        _made[name] = Stored(KINDS[name], content, f"s3://{shared_bucket}/loading/{name}", etag)
    return _made[name]


every_kind = pytest.mark.parametrize("stored", KINDS, indirect=True)
every_state_dict = pytest.mark.parametrize("stored", TENSORS, indirect=True)


@every_kind
class TestEveryFormat:
    def test_it_is_what_its_own_loader_returns(self, stored: Stored) -> None:
        stored.assert_right(stored.load())

    def test_the_report(self, stored: Stored) -> None:
        reports: list[LoadReport] = []
        stored.load(on_report=reports.append)
        [report] = reports
        assert (report.uri, report.format, report.method) == (
            stored.uri,
            stored.kind.format,
            stored.kind.method,
        )
        assert report.size == len(stored.content)
        assert (report.etag, report.version, report.verified) == (stored.etag, None, "crc32")
        assert report.retries == 0
        assert report.requests >= report.size // (4 * MIB)
        assert 1 <= report.connections <= 4
        assert report.size <= report.bytes_read <= report.size + MIB  # the ends may be read twice
        assert 0 < report.seconds < 60

    def test_progress(self, stored: Stored) -> None:
        seen: list[Progress] = []
        threads: set[int] = set()

        def watch(progress: Progress) -> None:
            seen.append(progress)
            threads.add(threading.get_ident())

        stored.load(progress=watch)
        assert threads == {threading.get_ident()}
        assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
        assert len({(progress.uri, progress.total) for progress in seen}) == 1
        assert seen[-1].done == seen[-1].total
        assert seen[-1].fraction == 1
        assert seen[0].uri == stored.uri
        assert 0.9 * len(stored.content) < seen[-1].total <= len(stored.content)


@every_kind
def test_a_local_file_is_loaded_alike(stored: Stored, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(stored.content)
    with quiet():
        stored.assert_right(torchwick.load(path, weights_only=stored.kind.weights_only, transfer=PARTS))


@pytest.mark.parametrize("stored", ["module", "script", "pt2"], indirect=True)
def test_what_is_a_program_is_refused_by_default(stored: Stored) -> None:
    with pytest.raises(UnsafePickleError, match="weights_only=False"):
        stored.load(weights_only=True)


class TestProgressBar:
    def test_it_is_written_to_standard_error_alone(self, stored: Stored, capsys: Any) -> None:
        stored.load(progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "100%" in err
        assert "pt" in err

    @every_state_dict
    def test_without_it_a_load_is_silent(self, stored: Stored, capfd: Any) -> None:
        stored.load()
        assert capfd.readouterr() == ("", "")

    def test_a_load_that_needs_no_transfer(self, tmp_path: Path, capsys: Any) -> None:
        torch.save({"a": torch.ones(3)}, tmp_path / "model.pt")
        torchwick.load(tmp_path / "model.pt", progress=True)
        assert capsys.readouterr().out == ""


class TestCallers:
    def test_eight_threads_at_once(self, stored: Stored) -> None:
        with ThreadPoolExecutor(8) as pool:
            for loaded in pool.map(lambda _: stored.load(), range(8)):
                stored.assert_right(loaded)

    def test_asyncio(self, stored: Stored) -> None:
        async def both() -> list[Any]:
            return await asyncio.gather(*(asyncio.to_thread(stored.load) for _ in range(2)))

        for loaded in asyncio.run(both()):
            stored.assert_right(loaded)

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_a_child_process_after_a_load_in_its_parent(self, stored: Stored, method: str) -> None:
        # In a process of its own: this one has threads, which a fork would leave in the lurch. And without
        # arithmetic, which may hang in OpenMP after a fork.
        script = (
            "import multiprocessing, sys, torchwick\n"
            "def load():\n"
            "    state = torchwick.load(sys.argv[1])\n"
            "    return state['model']['layers.5.weight'][-1].tolist()\n"
            "def child(queue):\n"
            "    queue.put((load(), load()))\n"
            "if __name__ == '__main__':\n"
            "    context = multiprocessing.get_context(sys.argv[2])\n"
            "    before, queue = load(), context.Queue()\n"
            "    process = context.Process(target=child, args=(queue,))\n"
            "    process.start()\n"
            "    in_child = queue.get(timeout=50)\n"
            "    process.join(50)\n"
            "    print(process.exitcode, before == in_child[0] == in_child[1] == load())\n"
        )
        assert run_script(script, stored.uri, method) == "0 True\n"

    def test_two_forked_children_and_their_parent_at_once(self, stored: Stored) -> None:
        script = (
            "import os, sys, torchwick\n"
            "def load():\n"
            "    state = torchwick.load(sys.argv[1])\n"
            "    return state['model']['layers.5.weight'][-1].tolist()\n"
            "before = load()\n"
            "children = []\n"
            "for _ in range(2):\n"
            "    child = os.fork()\n"
            "    if child == 0:\n"
            "        os._exit(0 if load() == before else 1)\n"
            "    children.append(child)\n"
            "same = load() == before\n"
            "print(same, [os.waitpid(child, 0)[1] for child in children])\n"
        )
        assert run_python(script, stored.uri) == "True [0, 0]\n"

    def test_the_collector_is_left_as_it_was(self, stored: Stored) -> None:
        assert gc.isenabled()
        stored.load()
        assert gc.isenabled()


def run_script(script: str, *arguments: str) -> str:
    """Run a script from a file, where children of its process find it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(script)
        run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        return run_python(run, str(path), *arguments)


class TestContexts:
    """Under torch's contexts a load does what torch.load does."""

    @pytest.mark.parametrize("stored", ["pt", "legacy", "sparse"], indirect=True)
    def test_a_default_device(self, stored: Stored) -> None:
        with torch.device("meta"):
            loaded, expected = stored.load(), stored.kind.oracle(stored.content)
        assert_same(loaded, expected)

    def test_a_default_device_and_safetensors(
        self, aws_env: SeaweedFS, stored: Stored, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file({"a": torch.arange(300_000)}, path)
        with torch.device("meta"):
            loaded, expected = torchwick.load(path), safetensors.torch.load_file(path)
        assert_same(loaded, expected, storages=False)

    @pytest.mark.parametrize("stored", ["pt", "legacy"], indirect=True)
    def test_fake_tensors(self, stored: Stored, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        path.write_bytes(stored.content)
        with FakeTensorMode():
            loaded, expected = stored.load(), torch.load(path)
        for name, tensor in expected["model"].items():
            mine = loaded["model"][name]
            assert type(mine) is type(tensor)
            assert (mine.shape, mine.dtype, mine.device) == (tensor.shape, tensor.dtype, tensor.device)

    @pytest.mark.parametrize("size", [3, 300_000], ids=["small", "large"])
    def test_fake_tensors_of_safetensors(self, size: int, tmp_path: Path) -> None:
        # In a process of its own: writing where a fake tensor points to would end it.
        safetensors.torch.save_file({"a": torch.arange(size)}, tmp_path / "model.safetensors")
        script = (
            "import sys, torch, torchwick\n"
            "from torch._subclasses.fake_tensor import FakeTensorMode\n"
            "with FakeTensorMode():\n"
            "    tensor = torchwick.load(sys.argv[1])['a']\n"
            "print(type(tensor).__name__, tensor.dtype, tensor.numel())\n"
        )
        assert run_python(script, str(tmp_path / "model.safetensors")) == f"FakeTensor torch.int64 {size}\n"

    @every_state_dict
    def test_inference_mode(self, stored: Stored) -> None:
        with torch.inference_mode():
            loaded, expected = stored.load(), stored.kind.oracle(stored.content)
            if stored.kind.format == "safetensors":
                expected = {name: expected[name] for name in loaded}
            assert_same(loaded, expected, storages=stored.kind.format != "safetensors")

    @pytest.mark.parametrize("stored", ["pt", "legacy", "safetensors"], indirect=True)
    def test_only_shapes(self, stored: Stored) -> None:
        reports: list[LoadReport] = []
        loaded = stored.load(map_location="meta", on_report=reports.append)
        state = loaded if stored.kind.format == "safetensors" else loaded["model"]
        expected = Net().state_dict()
        assert all(tensor.is_meta for tensor in state.values())
        assert {n: (t.shape, t.dtype) for n, t in state.items()} == {
            n: (t.shape, t.dtype) for n, t in expected.items()
        }

    @pytest.mark.parametrize("stored", ["pt", "safetensors"], indirect=True)
    def test_only_shapes_cost_only_headers(self, stored: Stored) -> None:
        reports: list[LoadReport] = []
        stored.load(map_location="meta", on_report=reports.append)
        assert reports[0].bytes_read < MIB

    @pytest.mark.parametrize("stored", ["pt", "legacy", "safetensors"], indirect=True)
    @pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
    def test_a_default_dtype(self, stored: Stored, default: torch.dtype) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            loaded = stored.load()
        finally:
            torch.set_default_dtype(before)
        stored.assert_right(loaded)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) and value.layout is torch.strided else []


class TestOwnership:
    @every_state_dict
    def test_tensors_are_writable(self, stored: Stored) -> None:
        loaded = stored.load()
        for tensor in _tensors(loaded):
            tensor.fill_(1)
        assert all(bool((tensor == 1).all()) for tensor in _tensors(loaded))

    @pytest.mark.parametrize("stored", ["pt", "legacy", "safetensors"], indirect=True)
    def test_storages_can_grow_as_torchs_own_can(self, stored: Stored) -> None:
        loaded, expected = stored.load(), stored.kind.oracle(stored.content)
        for mine, theirs in zip(_tensors(loaded), _tensors(expected), strict=True):
            assert mine.untyped_storage().resizable() or not theirs.untyped_storage().resizable()

    @every_state_dict
    def test_two_loads_share_nothing(self, stored: Stored) -> None:
        first, second = stored.load(), stored.load()
        for tensor in _tensors(first):
            tensor.fill_(1)
        stored.assert_right(second)

    @every_state_dict
    def test_tensors_outlive_what_they_came_in(self, stored: Stored) -> None:
        tensors = _tensors(stored.load())
        copies = [tensor.clone() for tensor in tensors]
        scratch = [torch.full((MIB,), 7) for _ in range(8)]  # takes whatever memory was let go too early
        assert all(map(torch.equal, tensors, copies))
        assert len(scratch) == 8

    @pytest.mark.parametrize("stored", ["pt", "legacy", "safetensors"], indirect=True)
    def test_tensors_can_be_sent_to_another_process(self, stored: Stored) -> None:
        loaded: Any = _tensors(stored.load())[0]
        loaded.share_memory_()
        assert loaded.is_shared()


class TestMemoryLimit:
    @pytest.mark.parametrize("stored", ["script", "pt2"], indirect=True)
    def test_a_second_copy_beyond_it_is_refused(self, stored: Stored) -> None:
        with pytest.raises(MemoryLimitError, match="memory_limit") as caught:
            stored.load(transfer=TransferConfig(memory_limit="1MB"))
        assert (caught.value.needed, caught.value.limit) == (len(stored.content), 10**6)
        assert caught.value.uri == stored.uri

    @every_state_dict
    def test_what_needs_no_second_copy_needs_no_room(self, stored: Stored) -> None:
        stored.assert_right(stored.load(transfer=TransferConfig(memory_limit="1MB")))

    @pytest.mark.parametrize("format_", ["pt", "safetensors"])
    def test_the_peak_is_one_copy(
        self, aws_env: SeaweedFS, shared_bucket: str, s3_client: Any, tmp_path: Path, format_: str
    ) -> None:
        state = {f"layer{number}": torch.ones(5_000_000) for number in range(10)}
        path = tmp_path / f"large.{format_}"
        (torch.save if format_ == "pt" else safetensors.torch.save_file)(state, path)
        size = path.stat().st_size
        s3_client.upload_file(str(path), shared_bucket, f"loading/{path.name}")
        script = (
            "import pathlib, re, sys, torch, torchwick\n"
            "def kilobytes(name):\n"
            "    status = pathlib.Path('/proc/self/status').read_text()\n"
            "    return int(re.search(name + r':\\s+(\\d+) kB', status)[1])\n"
            "torchwick.load(sys.argv[1])  # imports, connections and clients are not the model's\n"
            "pathlib.Path('/proc/self/clear_refs').write_text('5')\n"
            "before = kilobytes('VmRSS')\n"
            "state = torchwick.load(sys.argv[2])\n"
            "peak = kilobytes('VmHWM')\n"
            "assert all((tensor == 1).all() for tensor in state.values())\n"
            "print((peak - before) * 1024)\n"
        )
        small = tmp_path / f"small.{format_}"
        (torch.save if format_ == "pt" else safetensors.torch.save_file)({"a": torch.ones(3)}, small)
        s3_client.upload_file(str(small), shared_bucket, f"loading/{small.name}")
        uris = [f"s3://{shared_bucket}/loading/{each.name}" for each in (small, path)]
        peak = int(run_python(script, *uris))
        assert peak <= 1.15 * size


def test_warnings_of_the_callers_are_left_alone(stored: Stored) -> None:
    before = list(warnings.filters)
    stored.load()
    assert list(warnings.filters)[-len(before) :] == before
