"""`load_model` of sharded modules: each rank reads a share, and every byte leaves the store once."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

import sharding
import torchwick
from checkpoints.base import quiet, save_bytes
from faults import S3Error
from ranks import Outcome, Ranks, Shown, shown
from sharding import Net
from torchwick import GroupError
from torchwick.distributed import tensor_parallel_slice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faulty import FaultyServer

SIZE = 4
WAYS = ("fsdp", "tensor parallel", "hybrid", "two dimensions")


@pytest.fixture(scope="module")
def group() -> Iterator[Ranks]:
    """Four processes."""
    pool = Ranks(SIZE)
    yield pool
    pool.close()


def _state(width: int = sharding.WIDTH) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return Net(width).state_dict()


STATE = _state()


@pytest.fixture
def served(faulty_s3: FaultyServer) -> FaultyServer:
    """The model, in three formats."""
    faulty_s3.put("models/net.safetensors", safetensors.torch.save(STATE))
    faulty_s3.put("models/net.pt", save_bytes(STATE))
    faulty_s3.put("models/old.pt", save_bytes(STATE, _use_new_zipfile_serialization=False))
    return faulty_s3


def _values(outcomes: list[Outcome]) -> list[Any]:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes]


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype | None) -> Shown:
    kept = dtype is None
    return shown({n: t if kept or not t.is_floating_point() else t.to(dtype) for n, t in state.items()})


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_rank_gets_its_shards(group: Ranks, served: FaultyServer, how: str, device: str) -> None:
    outcomes = group.run(
        sharding.fill,
        environment=served.environment(),
        uri="s3://models/net.safetensors",
        how=how,
        device=device,
    )
    for value, report, stayed in _values(outcomes):
        assert value == shown(STATE)
        assert stayed == (device == "cpu")
        assert report.format == "safetensors"


@pytest.mark.parametrize("key", ["net.pt", "old.pt"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_of_any_format_and_cast(
    group: Ranks, served: FaultyServer, key: str, dtype: torch.dtype | None
) -> None:
    options: dict[str, Any] = {"uri": f"s3://models/{key}", "how": "two dimensions", "device": "meta"}
    outcomes = group.run(sharding.fill, environment=served.environment(), dtype=dtype, **options)
    assert [value for value, _, _ in _values(outcomes)] == [_cast(STATE, dtype)] * SIZE


def test_what_was_saved_by_other_ranks(group: Ranks, faulty_s3: FaultyServer, tmp_path: Path) -> None:
    with quiet():
        save_distributed({"net": STATE}, checkpoint_id=tmp_path, no_dist=True)
    for file in tmp_path.iterdir():
        faulty_s3.put(f"models/dcp/{file.name}", file.read_bytes())
    outcomes = group.run(
        sharding.fill,
        environment=faulty_s3.environment(),
        uri="s3://models/dcp/",
        how="tensor parallel",
        device="cpu",
        rename=("net.", ""),
    )
    assert [value for value, _, _ in _values(outcomes)] == [shown(STATE)] * SIZE


@pytest.mark.parametrize("how", ["fsdp", "tensor parallel", "hybrid"])
def test_every_byte_leaves_the_store_once(group: Ranks, faulty_s3: FaultyServer, how: str) -> None:
    state = _state(2600)
    body = safetensors.torch.save(state)
    faulty_s3.put("models/large.safetensors", body)
    outcomes = group.run(
        sharding.fill,
        environment=faulty_s3.environment(),
        uri="s3://models/large.safetensors",
        how=how,
        device="cpu",
        width=2600,
    )
    reports = [report for _, report, _ in _values(outcomes)]
    assert sum(report.bytes_read for report in reports) <= 1.02 * len(body)
    assert max(report.bytes_read for report in reports) <= 0.3 * len(body)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_training_goes_on(group: Ranks, served: FaultyServer, device: str) -> None:
    model = Net()
    model.load_state_dict(torch.load(io.BytesIO(save_bytes(STATE))))
    expected = sharding.losses_of(model)
    outcomes = group.run(
        sharding.train, environment=served.environment(), uri="s3://models/net.pt", device=device
    )
    for losses in _values(outcomes):
        assert losses == pytest.approx(expected, rel=1e-4)


def test_a_rank_that_may_not_read(group: Ranks, served: FaultyServer) -> None:
    served.on(S3Error(403, "AccessDenied"), method="GET", nth=range(9, 99))
    served.on(S3Error(403, "AccessDenied"), method="HEAD")
    outcomes = group.run(
        sharding.fill,
        environment=served.environment(),
        uri="s3://models/net.pt",
        how="fsdp",
        device="cpu",
    )
    for outcome in outcomes:
        assert type(outcome.error).__name__ in ("GroupError", "AccessDeniedError"), outcome
        assert outcome.seconds < 20


def test_a_rank_that_dies(group: Ranks, served: FaultyServer) -> None:
    outcomes = group.run(
        sharding.die, environment=served.environment(), uri="s3://models/net.pt", who=2, timeout=4.0
    )
    assert [outcome.gone for outcome in outcomes] == [False, False, True, False]
    for outcome in outcomes[:2]:
        assert isinstance(outcome.error, GroupError), outcome
        assert outcome.error.rank == 2
    # Whoever took its place has loaded nothing yet, and the others have.
    again = group.run(
        sharding.fill,
        environment=served.environment(),
        uri="s3://models/net.pt",
        how="tensor parallel",
        device="cpu",
    )
    assert [value for value, _, _ in _values(again)] == [shown(STATE)] * SIZE


def test_a_module_of_another_size(group: Ranks, served: FaultyServer) -> None:
    outcomes = group.run(sharding.misfit, environment=served.environment(), uri="s3://models/net.pt")
    for text in _values(outcomes):
        assert "up.weight ([1031, 515] in the checkpoint, [1039, 519] in the module)" in text


class TestSlices:
    @pytest.mark.parametrize("dim", [0, 1, -1])
    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    def test_they_are_those_of_chunk(self, tmp_path: Path, dim: int, world: int) -> None:
        matrix = torch.arange(5 * 11).view(5, 11)
        torch.save({"w": matrix}, tmp_path / "model.pt")
        with torchwick.open(tmp_path / "model.pt") as ckpt:
            slices = [tensor_parallel_slice(ckpt, "w", dim, rank, world) for rank in range(world)]
        expected = matrix.chunk(world, dim)
        assert all(map(torch.equal, slices, expected))
        assert all(not tensor.numel() for tensor in slices[len(expected) :])

    def test_what_there_is_none_of(self, tmp_path: Path) -> None:
        torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
        with torchwick.open(tmp_path / "model.pt") as ckpt:
            with pytest.raises(ValueError, match="no rank 2 among 2"):
                tensor_parallel_slice(ckpt, "w", 0, 2, 2)
            with pytest.raises(IndexError, match="none is 1"):
                tensor_parallel_slice(ckpt, "w", 1, 0, 2)
