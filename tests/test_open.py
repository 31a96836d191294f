"""What looking inside costs, counted at the server, and what holds while objects change and callers stop."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch

import torchwick
from checkpoints.base import save_bytes
from conftest import run_python
from faults import Cut
from torchwick import MemoryLimitError, ObjectChangedError, TransferConfig
from torchwick.transfer import choose_part_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from faulty import FaultyServer

MB = 1_000_000
STATE = {
    "embed.weight": torch.randn(16_000, 512),
    **{f"layers.{n}.weight": torch.randn(1024, 1024) for n in range(6)},
    **{f"layers.{n}.bias": torch.randn(64) for n in range(100)},
}
FORMATS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: save_bytes(STATE),
    "legacy": lambda: save_bytes(STATE, _use_new_zipfile_serialization=False),
    "safetensors": lambda: safetensors.torch.save(STATE),
}


@pytest.fixture(scope="module", params=FORMATS)
def content(request: pytest.FixtureRequest) -> bytes:
    return FORMATS[request.param]()


@pytest.fixture
def uri(faulty_s3: FaultyServer, content: bytes) -> str:
    faulty_s3.put("models/m", content)
    return "s3://models/m"


def cost(server: FaultyServer) -> tuple[int, int]:
    """Requests, and bytes they asked for."""
    ranges = [request.range for request in server.requests]
    return len(ranges), sum((stop or 0) - start for start, stop in filter(None, ranges))


class TestCost:
    @pytest.mark.parametrize("name", ["embed.weight", "layers.3.weight", "layers.77.bias"])
    def test_one_tensor(self, name: str, uri: str, faulty_s3: FaultyServer) -> None:
        with torchwick.open(uri) as ckpt:
            assert torch.equal(ckpt[name], STATE[name])
        size = STATE[name].nbytes
        requests, bytes_ = cost(faulty_s3)
        assert requests <= -(-size // choose_part_size(size)) + 3
        assert bytes_ <= size + MB

    def test_rows(self, uri: str, faulty_s3: FaultyServer) -> None:
        with torchwick.open(uri) as ckpt:
            rows = ckpt.get_slice("embed.weight")[2000:3024]
        assert torch.equal(rows, STATE["embed.weight"][2000:3024])
        assert cost(faulty_s3)[1] <= rows.nbytes + MB

    def test_neighbours_are_read_together(self, uri: str, faulty_s3: FaultyServer) -> None:
        with torchwick.open(uri) as ckpt:
            before = cost(faulty_s3)[0]
            found = ckpt.read("layers.*.bias")
        assert len(found) == 100
        assert cost(faulty_s3)[0] - before <= 8

    def test_sixty_four_shards(self, faulty_s3: FaultyServer) -> None:
        for number in range(64):
            shard = safetensors.torch.save({f"{number}.{n}": torch.zeros(100, 100) for n in range(20)})
            faulty_s3.put(f"models/dir/model-{number + 1:05}-of-00064.safetensors", shard)
        with torchwick.open("s3://models/dir/") as ckpt:
            assert len(ckpt) == 64 * 20
        requests, bytes_ = cost(faulty_s3)
        assert requests <= 64 + 4
        assert bytes_ <= 8 * MB


class TestPinned:
    @pytest.mark.parametrize(
        "read",
        [
            lambda ckpt: ckpt["embed.weight"],
            lambda ckpt: ckpt.get_slice("embed.weight")[9000:],
            lambda ckpt: ckpt.read(),
            lambda ckpt: list(ckpt.stream()),
        ],
        ids=["get_tensor", "get_slice", "read", "stream"],
    )
    def test_an_object_that_was_overwritten(
        self,
        read: Callable[[torchwick.Checkpoint], object],
        uri: str,
        content: bytes,
        faulty_s3: FaultyServer,
    ) -> None:
        with torchwick.open(uri) as ckpt:
            faulty_s3.put("models/m", content[:-1] + b"!")
            with pytest.raises(ObjectChangedError):
                read(ckpt)


class TestStream:
    def test_every_tensor_in_the_order_of_the_bytes(self, uri: str) -> None:
        with torchwick.open(uri) as ckpt:
            found = list(ckpt.stream())
            assert [name for name, _ in found] == ckpt.offset_keys()
        assert all(torch.equal(tensor, STATE[name]) for name, tensor in found)

    def test_over_broken_connections(self, uri: str, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Cut(100_000), nth=range(4, 9))
        with torchwick.open(uri, transfer=TransferConfig(part_size=1 << 20)) as ckpt:
            assert all(torch.equal(tensor, STATE[name]) for name, tensor in ckpt.stream())

    def test_a_caller_who_stops(self, uri: str) -> None:
        with torchwick.open(uri, transfer=TransferConfig(memory_limit="40MB")) as ckpt:
            for name, _ in ckpt.stream():
                if name.startswith("layers"):
                    break
        # the fixture no_leftovers looks for threads

    def test_a_tensor_larger_than_the_limit(self, uri: str) -> None:
        with torchwick.open(uri, transfer=TransferConfig(memory_limit="10MB")) as ckpt:
            with pytest.raises(MemoryLimitError, match=r"embed\.weight"):
                next(ckpt.stream())
            assert len(list(ckpt.stream("layers.*"))) == 106

    def test_an_abandoned_one_does_not_keep_the_program(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(content)
        script = (
            "import sys, torchwick\n"
            "transfer = torchwick.TransferConfig(memory_limit='40MB')\n"
            "stream = torchwick.open(sys.argv[1], transfer=transfer).stream()\n"
            "print(next(stream)[0])\n"
        )
        assert run_python(script, str(tmp_path / "m")).strip() in STATE

    def test_its_memory(self, tmp_path: Path) -> None:
        """A model of four times the limit."""
        limit = 80 * MB
        torch.save({str(n): torch.ones(4 * MB // 4) for n in range(4 * limit // (4 * MB))}, tmp_path / "m.pt")
        script = (
            "import resource, sys, torch, torchwick\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
            "transfer = torchwick.TransferConfig(memory_limit=int(sys.argv[2]))\n"
            "with torchwick.open(sys.argv[1], transfer=transfer) as ckpt:\n"
            "    ckpt.read('0')\n"
            "    before = peak()\n"
            "    assert sum(float(tensor[-1]) for _, tensor in ckpt.stream()) == len(ckpt)\n"
            "    print(peak() - before)\n"
        )
        assert int(run_python(script, str(tmp_path / "m.pt"), str(limit))) <= limit


def test_many_threads(uri: str) -> None:
    names = [*STATE] * 2
    begin = threading.Barrier(8)

    def read(at: int) -> bool:
        begin.wait()
        return all(torch.equal(ckpt[name], STATE[name]) for name in names[at::16])

    with torchwick.open(uri) as ckpt, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_a_closed_checkpoint(uri: str) -> None:
    with torchwick.open(uri) as ckpt:
        pass
    with pytest.raises(ValueError, match="closed"):
        ckpt.get_tensor("embed.weight")
