"""Distributed checkpoints in S3: read and written by real ranks, and by torch's own reader and writer."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import math
import pickle
import random
import uuid
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from torch.distributed.checkpoint import metadata as facts
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

import torchwick
from conftest import run_python
from dcp_ranks import Ranks
from faults import S3Error
from torchwick import (
    FormatError,
    ObjectExistsError,
    ObjectNotFoundError,
    PutOptions,
    StateDictError,
    TransferConfig,
    UnsafePickleError,
    URIError,
)
from torchwick.distributed import S3Reader, S3Writer
from torchwick.distributed.cutting import cut
from torchwick.distributed.metadata import read_metadata, storage_info
from torchwick.distributed.packed import Item, guess, look
from torchwick.formats.torch_zip_writing import closing, place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Put
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS


NO_DIST: Any = {"no_dist": True} if "no_dist" in inspect.signature(save_distributed).parameters else {}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Groups of processes."""
    with Ranks() as started:
        yield started


@pytest.fixture
def place_of(aws_env: SeaweedFS, shared_bucket: str) -> str:
    """A directory of the real server in which nothing is."""
    return f"s3://{shared_bucket}/{uuid.uuid4().hex}/"


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warning that there is no group of processes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable)")
        warnings.filterwarnings("ignore", message=".*overwriting since")
        yield


def save(state: dict[str, Any], writer: Any, planner: Any = None, **where: Any) -> facts.Metadata:
    with quiet():
        metadata: facts.Metadata = save_distributed(
            state, storage_writer=writer, planner=planner, **NO_DIST, **where
        )
    return metadata


def load(state: dict[str, Any], reader: Any, planner: Any = None, **where: Any) -> dict[str, Any]:
    with quiet():
        load_distributed(state, storage_reader=reader, planner=planner, **NO_DIST, **where)
    return state


def failure(error: CheckpointException) -> BaseException:
    """What one rank failed for."""
    (failed,) = error.failures.values()
    return failed[0]


def split(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix


def names(client: Any, uri: str) -> list[str]:
    bucket, prefix = split(uri)
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return [entry["Key"].removeprefix(prefix) for entry in found]


def pending(client: Any, uri: str) -> list[str]:
    """Uploads that were begun, and neither completed nor aborted."""
    bucket, prefix = split(uri)
    found = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
    return [entry["Key"] for entry in found]


def fetch(client: Any, uri: str, folder: Path) -> Path:
    """Fetch a directory with boto3."""
    bucket, prefix = split(uri)
    folder.mkdir()
    for name in names(client, uri):
        client.download_file(bucket, prefix + name, str(folder / name))
    return folder


def upload(put: Put, folder: Path, uri: str) -> str:
    """Put a directory into S3 with boto3."""
    bucket, prefix = split(uri)
    for path in folder.iterdir():
        put(bucket, f"{prefix}{path.name}", path)
    return uri


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of every kind: small, large, strided, empty, conjugated."""
    generator = torch.Generator().manual_seed(seed)

    def random_one(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    base = random_one(1000, 700)
    return {
        "small": random_one(10, 10),
        "large": base,
        "turned": random_one(600, 800).t(),
        "bf16": random_one(2000, 300).bfloat16(),
        "scalar": torch.tensor(seed * 1.5),
        "empty": torch.zeros(0, 5),
        "view": base[100:900:3, ::7],
        "rows": base[200:800],
        "bools": random_one(30) > 0,
        "complex": torch.complex(random_one(300, 300), random_one(300, 300)),
        "conjugated": torch.complex(random_one(3, 3), random_one(3, 3)).conj(),
        "bytes": torch.randint(256, (700_001,), dtype=torch.uint8, generator=generator),
        "parameter": torch.nn.Parameter(random_one(300, 300)),
    }


def values(seed: int) -> dict[str, Any]:
    return {"step": seed, "schedule": ["cosine", {"lr": 0.1 * seed}], "rng": torch.get_rng_state()}


def assert_alike(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert found == expected


class TestRanks:
    @pytest.fixture(scope="class")
    @staticmethod
    def saved(ranks: Ranks, s3_server: SeaweedFS, shared_bucket: str) -> str:
        """A checkpoint that four ranks saved."""
        uri = f"s3://{shared_bucket}/dcp/four/"
        ranks.run("save", 4, uri, 3, environment=s3_server.environment())
        return uri

    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_another_number_of_ranks(self, ranks: Ranks, aws_env: SeaweedFS, saved: str, world: int) -> None:
        assert ranks.run("load", world, saved, 3, environment=aws_env.environment()) == [[]] * world

    def test_each_rank_wrote_its_own(self, s3_client: Any, saved: str) -> None:
        objects = [name for name in names(s3_client, saved) if name != ".metadata"]
        assert sorted(name.partition("__")[2] for name in objects) == [
            f"{rank}_0.distcp" for rank in range(4)
        ]

    def test_torch_reads_it(self, ranks: Ranks, s3_client: Any, saved: str, tmp_path: Path) -> None:
        folder = fetch(s3_client, saved, tmp_path / "fetched")
        assert ranks.run("load", 2, str(folder), 3, "torch") == [[]] * 2

    def test_what_torch_wrote(
        self, ranks: Ranks, aws_env: SeaweedFS, put: Put, place_of: str, tmp_path: Path
    ) -> None:
        ranks.run("save", 2, str(tmp_path), 5, "torch")
        upload(put, tmp_path, place_of)
        assert ranks.run("load", 3, place_of, 5, environment=aws_env.environment()) == [[]] * 3

    def test_cut_otherwise(self, ranks: Ranks, aws_env: SeaweedFS, saved: str) -> None:
        assert ranks.run("load_otherwise", 3, saved, 3, environment=aws_env.environment()) == [[]] * 3

    def test_one_of_them_alone(self, ranks: Ranks, aws_env: SeaweedFS, saved: str) -> None:
        if not NO_DIST:
            pytest.skip("this torch has ranks load together only")
        assert ranks.run("alone", 2, saved, 3, environment=aws_env.environment()) == [[]] * 2

    def test_a_mesh_of_two_dimensions(self, ranks: Ranks, aws_env: SeaweedFS, place_of: str) -> None:
        assert ranks.run("two_dimensions", 4, place_of, environment=aws_env.environment()) == [[]] * 4

    def test_opened_without_ranks(self, aws_env: SeaweedFS, saved: str) -> None:
        with torchwick.open(saved) as checkpoint:
            assert checkpoint["model.large"].shape == (1024, 640)

    def test_training_goes_on_where_it_was(self, ranks: Ranks, aws_env: SeaweedFS, place_of: str) -> None:
        losses = ranks.run("train_and_save", 4, place_of, environment=aws_env.environment())
        for world in (2, 3):
            for resumed in ranks.run("resume", world, place_of, environment=aws_env.environment()):
                assert resumed == pytest.approx(losses[0], rel=1e-4)

    def test_in_the_background(self, ranks: Ranks, aws_env: SeaweedFS, place_of: str) -> None:
        ranks.run("save_async", 2, place_of, 4, False, environment=aws_env.environment())
        assert ranks.run("load", 2, place_of, 4, environment=aws_env.environment()) == [[]] * 2

    def test_in_the_background_by_another_process(
        self, ranks: Ranks, aws_env: SeaweedFS, place_of: str
    ) -> None:
        if "async_checkpointer_type" not in inspect.signature(async_save).parameters:
            pytest.skip("this torch saves in threads only")
        ranks.run("save_async", 1, place_of, 4, True, environment=aws_env.environment())
        assert ranks.run("load", 1, place_of, 4, environment=aws_env.environment()) == [[]]

    def test_each_for_itself(self, ranks: Ranks, aws_env: SeaweedFS, s3_client: Any, place_of: str) -> None:
        if "use_collectives" not in inspect.signature(save_distributed).parameters:
            pytest.skip("this torch has ranks save together only")
        assert ranks.run("each_for_itself", 2, place_of, environment=aws_env.environment()) == [[]] * 2
        assert {"__0.metadata", "__1.metadata"} < set(names(s3_client, place_of))


class TestFailing:
    """Whatever one rank fails for, every rank raises; and the checkpoint that was there stays."""

    @pytest.fixture(scope="class")
    @staticmethod
    def of_two(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A checkpoint of two ranks, as files."""
        folder = tmp_path_factory.mktemp("of-two")
        ranks.run("save", 2, str(folder), 3)
        return folder

    @pytest.fixture
    def served(self, of_two: Path, faulty_s3: FaultyServer) -> FaultyServer:
        """The same on the fault server."""
        for path in of_two.iterdir():
            faulty_s3.put(f"bucket/m/{path.name}", path.read_bytes())
        return faulty_s3

    @staticmethod
    def data(served: FaultyServer, rank: int) -> str:
        (path,) = (path for path in served._objects if path.endswith(f"__{rank}_0.distcp"))
        return path

    def load(self, ranks: Ranks, served: FaultyServer) -> list[list[Any]]:
        one, other = ranks.run("load_failing", 2, "s3://bucket/m", 3, 2, environment=served.environment())
        assert one == other  # what one rank tells, every rank hears
        assert isinstance(one, list)
        return one

    def test_a_missing_object(self, ranks: Ranks, served: FaultyServer) -> None:
        path = self.data(served, 1)
        served.delete(path)
        for _, classes, text in self.load(ranks, served):
            assert classes[0] == "ObjectNotFoundError"
            assert f"s3://{path}: the checkpoint's .metadata names it" in text
            assert "upload the directory again" in text

    def test_a_denied_object(self, ranks: Ranks, served: FaultyServer) -> None:
        path = self.data(served, 0)
        served.on(S3Error(403, "AccessDenied"), path=path)
        failures = self.load(ranks, served)
        assert failures
        for _, classes, text in failures:
            assert classes[0] == "AccessDeniedError"
            assert f"s3://{path}" in text

    def test_one_that_was_cut_short(self, ranks: Ranks, served: FaultyServer) -> None:
        path = self.data(served, 0)
        served.put(path, (served.content(path) or b"")[:-1000])
        failures = self.load(ranks, served)
        assert failures
        for _, classes, text in failures:
            assert classes[0] == "FormatError"
            assert "it ends at byte" in text

    def test_a_store_that_only_fails(self, ranks: Ranks, served: FaultyServer) -> None:
        served.on(S3Error(500, "InternalError"), path=self.data(served, 0))
        assert {classes[0] for _, classes, _ in self.load(ranks, served)} == {"TransferError"}

    def test_no_checkpoint(self, ranks: Ranks, served: FaultyServer) -> None:
        served.delete("bucket/m/.metadata")
        failures = self.load(ranks, served)
        assert [rank for rank, _, _ in failures] == [0, 1]
        for _, classes, text in failures:
            assert classes[0] == "ObjectNotFoundError"
            assert "A save writes .metadata last" in text

    def test_a_denied_checkpoint(self, ranks: Ranks, served: FaultyServer) -> None:
        served.on(S3Error(403, "AccessDenied"))
        assert {classes[0] for _, classes, _ in self.load(ranks, served)} == {"AccessDeniedError"}

    def test_saves_that_may_not_replace(
        self, ranks: Ranks, aws_env: SeaweedFS, s3_client: Any, place_of: str
    ) -> None:
        assert ranks.run("save_failing", 2, place_of, 1, False, environment=aws_env.environment()) == [[]] * 2
        before = names(s3_client, place_of)
        for failures in ranks.run("save_failing", 2, place_of, 2, False, environment=aws_env.environment()):
            ((rank, classes, text),) = failures
            assert (rank, classes[0]) == (0, "ObjectExistsError")
            assert text.startswith(place_of)
        assert names(s3_client, place_of) == before

    def test_denied_writes(self, ranks: Ranks, faulty_s3: FaultyServer) -> None:
        for method in ("PUT", "POST"):
            faulty_s3.on(S3Error(403, "AccessDenied"), method=method)
        answers = ranks.run("save_failing", 2, "s3://bucket/m", 1, environment=faulty_s3.environment())
        assert answers[0] == answers[1]
        assert [(rank, classes[0]) for rank, classes, _ in answers[0]] == [
            (0, "AccessDeniedError"),
            (1, "AccessDeniedError"),
        ]

    def test_a_rank_that_breaks_off(
        self, ranks: Ranks, aws_env: SeaweedFS, s3_client: Any, place_of: str
    ) -> None:
        save(tensors(1), S3Writer(place_of))
        answers = ranks.run("save_broken", 2, place_of, 4, 1, "raise", environment=aws_env.environment())
        assert (
            answers[0] == answers[1] == [[1, ["OSError", "Exception", "BaseException", "object"], "it broke"]]
        )
        assert pending(s3_client, place_of) == []
        assert_alike(load(tensors(3), S3Reader(place_of)), tensors(1))

    @pytest.mark.parametrize("when", ["write", "finish"])
    def test_a_rank_that_is_killed(
        self, ranks: Ranks, aws_env: SeaweedFS, s3_client: Any, place_of: str, when: str
    ) -> None:
        save(tensors(1), S3Writer(place_of))
        before = names(s3_client, place_of)
        rank = 1 if when == "write" else 0  # which is the one that finishes
        answers = ranks.run("save_broken", 2, place_of, 4, rank, when, environment=aws_env.environment())
        assert answers[rank] is None
        assert answers[1 - rank]  # the other one does not believe that it was saved
        assert len(names(s3_client, place_of)) > len(before)  # what no .metadata names
        assert_alike(load(tensors(3), S3Reader(place_of)), tensors(1))


class TestBackEnd:
    """What torch asks of any place where checkpoints are kept."""

    @pytest.mark.parametrize("written_by", [FileSystemWriter, S3Writer])
    @pytest.mark.parametrize("read_by", [FileSystemReader, S3Reader])
    def test_there_and_back(self, written_by: Any, read_by: Any, tmp_path: Path) -> None:
        save({"model": tensors(1), **values(1)}, written_by(tmp_path / "run" / "saved"))
        found = load({"model": tensors(2), **values(2)}, read_by(tmp_path / "run" / "saved"))
        assert_alike(found, {"model": tensors(1), **values(1)})

    def test_in_s3(self, place_of: str) -> None:
        save({"model": tensors(1), **values(1)}, S3Writer(place_of))
        found = load({"model": tensors(2), **values(2)}, S3Reader(place_of))
        assert_alike(found, {"model": tensors(1), **values(1)})

    def test_over_the_web(self, faulty: FaultyServer, tmp_path: Path) -> None:
        save(tensors(1), FileSystemWriter(tmp_path))
        for path in tmp_path.iterdir():
            faulty.put(f"public/{path.name}", path.read_bytes())
        assert_alike(load(tensors(2), S3Reader(faulty.url("public/"))), tensors(1))
        assert not S3Writer.validate_checkpoint_id(faulty.url("public/"))
        with pytest.raises(URIError):
            S3Writer(faulty.url("public/"))

    def test_a_directory_of_each_save(self, place_of: str) -> None:
        reader, writer = S3Reader(), S3Writer()
        assert reader.checkpoint_id is writer.checkpoint_id is None
        for step in (1, 2):
            save(tensors(step), writer, checkpoint_id=f"{place_of}step-{step}")
        for step in (1, 2):
            assert_alike(load(tensors(3), reader, checkpoint_id=f"{place_of}step-{step}"), tensors(step))
        assert reader.checkpoint_id == f"{place_of}step-2"

    def test_no_directory(self) -> None:
        with pytest.raises(CheckpointException) as caught:
            load(tensors(1), S3Reader())
        assert isinstance(failure(caught.value), URIError)
        with pytest.raises(CheckpointException) as caught:
            save(tensors(1), S3Writer())
        assert isinstance(failure(caught.value), URIError)

    @pytest.mark.parametrize(
        ("text", "is_one"),
        [("s3://bucket/a", True), ("s3://bucket", False), ("gs://bucket/a", False), ("/tmp/a", True)],
    )
    def test_addresses(self, text: str, is_one: bool) -> None:
        assert S3Reader.validate_checkpoint_id(text) == S3Writer.validate_checkpoint_id(text) == is_one

    def test_an_overwritten_checkpoint(self, s3_client: Any, place_of: str) -> None:
        save(tensors(1), S3Writer(place_of))
        first = set(names(s3_client, place_of))
        save(tensors(2), S3Writer(place_of))
        assert first < set(names(s3_client, place_of))  # nothing is deleted
        assert_alike(load(tensors(3), S3Reader(place_of)), tensors(2))

    def test_a_plan_that_is_kept(self, place_of: str) -> None:
        """A planner may hand the writer the plan of the save before: its objects must not be those again."""
        if "enable_plan_caching" not in inspect.signature(DefaultSavePlanner).parameters:
            pytest.skip("this torch keeps no plans")
        writer = S3Writer(place_of)
        files: list[set[str]] = []
        for seed in (1, 2):
            metadata = save(tensors(seed), writer, DefaultSavePlanner(enable_plan_caching=True))
            files.append({place.relative_path for place in metadata.storage_data.values()})
        assert not files[0] & files[1]
        assert_alike(load(tensors(3), S3Reader(place_of)), tensors(2))

    def test_not_overwritten(self, place_of: str) -> None:
        save(tensors(1), S3Writer(place_of, overwrite=False))
        with pytest.raises(CheckpointException) as caught:
            save(tensors(2), S3Writer(place_of, overwrite=False))
        assert isinstance(failure(caught.value), ObjectExistsError)
        assert_alike(load(tensors(3), S3Reader(place_of)), tensors(1))

    def test_one_that_comes_up_meanwhile(self, place_of: str) -> None:
        class Slow(DefaultSavePlanner):
            def resolve_data(self, write_item: Any) -> Any:
                if write_item.index.fqn == "large":
                    save(tensors(1), S3Writer(place_of))
                return super().resolve_data(write_item)

        with pytest.raises(CheckpointException) as caught:
            save(tensors(2), S3Writer(place_of, overwrite=False), Slow())
        assert isinstance(failure(caught.value), ObjectExistsError)
        assert_alike(load(tensors(3), S3Reader(place_of)), tensors(1))

    def test_what_s3_is_told(self, s3_client: Any, place_of: str) -> None:
        save(tensors(1), S3Writer(place_of, options=PutOptions(metadata={"run": "7"})))
        bucket, prefix = split(place_of)
        for name in names(s3_client, place_of):
            assert s3_client.head_object(Bucket=bucket, Key=prefix + name)["Metadata"] == {"run": "7"}

    def test_they_pickle(self) -> None:
        for one in (
            S3Reader("s3://bucket/m"),
            S3Writer("s3://bucket/m", options=PutOptions(tags={"a": "b"})),
        ):
            assert pickle.loads(pickle.dumps(one)).checkpoint_id == "s3://bucket/m"

    def test_only_some(self, place_of: str) -> None:
        save({"model": tensors(1), **values(1)}, S3Writer(place_of))
        assert_alike(
            load({"model": {"rows": torch.zeros(600, 700)}}, S3Reader(place_of)),
            {"model": {"rows": tensors(1)["rows"]}},
        )
        found = load(
            {"model": {"small": torch.zeros(10, 10), "new": torch.ones(3)}},
            S3Reader(place_of),
            DefaultLoadPlanner(allow_partial_load=True),
        )
        assert_alike(found, {"model": {"small": tensors(1)["small"], "new": torch.ones(3)}})

    def test_all_that_is_there(self, place_of: str) -> None:
        save({"model": tensors(1), "step": 7}, S3Writer(place_of))
        found: dict[str, Any] = {}
        planner = _EmptyStateDictLoadPlanner()  # type: ignore[no-untyped-call]
        _load_state_dict(found, S3Reader(place_of), planner=planner, no_dist=True)
        assert_alike(found, {"model": tensors(1), "step": 7})

    def test_planners_that_cast(self, place_of: str) -> None:
        class Halving(DefaultSavePlanner):
            def create_local_plan(self) -> Any:
                plan = super().create_local_plan()
                for item in plan.items:
                    assert item.tensor_data is not None
                    item.tensor_data.properties.dtype = torch.float16
                return plan

            def resolve_data(self, write_item: Any) -> Any:
                data = super().resolve_data(write_item)
                assert isinstance(data, torch.Tensor)
                return data.half()

        state = {"small": torch.randn(4, 4), "large": torch.randn(500, 500)}
        save(state, S3Writer(place_of), Halving())
        found = load({name: torch.zeros_like(tensor) for name, tensor in state.items()}, S3Reader(place_of))
        assert_alike(found, {name: tensor.half().float() for name, tensor in state.items()})

    @pytest.mark.parametrize("kind", ["turned", "stepped", "inner", "double", "half", "conjugated"])
    def test_targets_of_any_layout(self, kind: str, place_of: str) -> None:
        stored = {"m": torch.randn(600, 1100), "n": torch.randn(30, 30), "cube": torch.randn(40, 50, 200)}
        save(stored, S3Writer(place_of))

        def target(tensor: torch.Tensor) -> torch.Tensor:
            shape = tensor.shape
            return {
                "turned": lambda: torch.zeros(*reversed(shape)).permute(*reversed(range(len(shape)))),
                "stepped": lambda: torch.zeros(shape[0] * 3, *shape[1:])[::3],
                "inner": lambda: torch.zeros(*shape[:-1], shape[-1] * 2)[..., ::2],
                "double": lambda: torch.zeros(shape, dtype=torch.float64),
                "half": lambda: torch.zeros(shape, dtype=torch.bfloat16),
                "conjugated": lambda: torch.zeros(shape, dtype=torch.complex64).conj(),
            }[kind]()

        found = load({name: target(tensor) for name, tensor in stored.items()}, S3Reader(place_of))
        for name, tensor in stored.items():
            assert torch.equal(found[name], tensor.to(found[name].dtype))

    def test_within_little_memory(self, place_of: str) -> None:
        state = {"m": torch.randn(3000, 1000), "n": torch.randn(1000, 3000)}
        config = TransferConfig(memory_limit="6MiB", connections=2, part_size=1 << 20)
        save(state, S3Writer(place_of))
        found = {"m": torch.zeros(1000, 3000).t(), "n": torch.zeros(1000, 3000, dtype=torch.float64)}
        load(found, S3Reader(place_of, transfer=config))
        assert torch.equal(found["m"], state["m"])
        assert torch.equal(found["n"], state["n"].double())

    def test_subclasses_as_torch_saves_them(self, tmp_path: Path) -> None:
        """A tensor of another kind is pickled whole, with all its storages."""
        sparse = torch.eye(5).to_sparse()
        from torchwick.distributed.items import item_of

        class Kept:
            def __init__(self) -> None:
                self.data = io.BytesIO()

            def write(self, part: Any) -> None:
                self.data.write(part)

        kept, item = Kept(), item_of(sparse, "eye", "m")
        item.write(kept)
        assert kept.data.tell() == item.size
        kept.data.seek(0)
        assert torch.equal(torch.load(kept.data).to_dense(), torch.eye(5))

    def test_tensors_without_values(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointException) as caught:
            save({"w": torch.empty(3, device="meta")}, S3Writer(tmp_path))
        assert isinstance(failure(caught.value), FormatError)

    def test_another_shape(self, tmp_path: Path) -> None:
        save({"w": torch.ones(3, 4)}, S3Writer(tmp_path))

        class Careless(DefaultLoadPlanner):
            def resolve_tensor(self, read_item: Any) -> torch.Tensor:
                return torch.zeros(4, 3)

        with pytest.raises(CheckpointException) as caught:
            load({"w": torch.zeros(3, 4)}, S3Reader(tmp_path), Careless())
        error = failure(caught.value)
        assert isinstance(error, StateDictError)
        assert error.mismatched == {"w": ((4, 3), (3, 4))}


class TestFewBytes:
    @pytest.fixture
    def served(self, faulty_s3: FaultyServer, tmp_path: Path) -> FaultyServer:
        """A checkpoint of four boxes a tensor, in four files, as four ranks save it."""
        torch.manual_seed(0)
        self.whole = {f"layer.{n}": torch.randn(800, 500) for n in range(6)}
        described: dict[str, Any] = {}
        stored = {}
        for rank in range(4):
            data = io.BytesIO()
            for name, tensor in self.whole.items():
                at, start = rank * 200, data.tell()
                torch.save(tensor[at : at + 200].clone(), data)
                index = facts.MetadataIndex(name, torch.Size((at, 0)))
                stored[index] = storage_info(f"__{rank}_0.distcp", start, data.tell() - start)
                one = described.setdefault(
                    name, facts.TensorStorageMetadata(facts.TensorProperties(), tensor.shape, [])
                )
                one.chunks.append(facts.ChunkStorageMetadata(torch.Size((at, 0)), torch.Size((200, 500))))
            faulty_s3.put(f"bucket/m/__{rank}_0.distcp", data.getvalue())
        faulty_s3.put("bucket/m/.metadata", pickle.dumps(facts.Metadata(described, storage_data=stored)))
        return faulty_s3

    def asked(self, served: FaultyServer) -> int:
        """Bytes of the files that were asked for."""
        ranges = [request.range for request in served.requests if request.path.endswith(".distcp")]
        return sum((stop or 0) - start for start, stop in (range_ or (0, 0) for range_ in ranges))

    def test_all_of_it(self, served: FaultyServer) -> None:
        found = load({name: torch.zeros(800, 500) for name in self.whole}, S3Reader("s3://bucket/m"))
        assert_alike(found, self.whole)
        assert self.asked(served) <= 1.02 * sum(tensor.nbytes for tensor in self.whole.values())
        assert len(served.requests) <= 1 + 4 + 4 + 4  # .metadata, a look at each file, and the parts

    def test_some_rows(self, served: FaultyServer) -> None:
        """As of a rank of three, which needs parts of two boxes."""
        reader = S3Reader("s3://bucket/m")
        metadata = reader.read_metadata()

        class Third(DefaultLoadPlanner):
            def create_local_plan(self) -> Any:
                box = facts.ChunkStorageMetadata(torch.Size((266, 0)), torch.Size((267, 500)))
                items = [
                    item
                    for name, one in metadata.state_dict_metadata.items()
                    if isinstance(one, facts.TensorStorageMetadata)
                    for item in create_read_items_for_chunk_list(name, one, [box])
                ]
                return LoadPlan(items)

            def resolve_tensor(self, read_item: Any) -> torch.Tensor:
                at, n = read_item.dest_offsets[0], read_item.lengths[0]
                return found[read_item.dest_index.fqn][at : at + n]

        found = {name: torch.zeros(267, 500) for name in self.whole}
        load(dict(found), reader, Third())
        assert_alike(found, {name: tensor[266:533] for name, tensor in self.whole.items()})
        # Below 128 KiB, what lies between is read rather than asked around.
        assert self.asked(served) <= 1.2 * sum(tensor.nbytes for tensor in found.values())

    def test_one_tensor(self, served: FaultyServer) -> None:
        load({"layer.3": torch.zeros(800, 500)}, S3Reader("s3://bucket/m"))
        assert self.asked(served) <= 1.02 * self.whole["layer.3"].nbytes


def reading(data: bytes) -> Callable[[int, int], memoryview]:
    return lambda start, stop: memoryview(data)[start:stop]


class TestLayouts:
    """Where elements are in an item is guessed; a guess that is wrong costs a look, and nothing else."""

    def test_torch_as_it_is(self) -> None:
        for shape in ((), (1,), (64,), (999,), (70, 80, 90)):
            for dtype in (torch.float32, torch.uint8, torch.complex128):
                data = io.BytesIO()
                tensor = torch.ones(shape, dtype=dtype)
                torch.save(tensor, data)
                item = Item("f", 0, data.tell(), {4: "F32", 1: "U8", 16: "C128"}[dtype.itemsize], shape)
                piece, _ = look(item, reading(data.getvalue()), "f")
                assert guess(item, tensor.nbytes) == piece.start

    @pytest.mark.parametrize("names", [("byteorder",), ()])
    def test_older_writers(self, names: tuple[str, ...], faulty_s3: FaultyServer) -> None:
        """Archives without the records that later versions of torch added."""
        value = torch.randn(400, 300)
        archive = self.archive(value, names)
        assert torch.equal(torch.load(io.BytesIO(archive)), value)
        item = Item("f", 0, len(archive), "F32", (400, 300))
        piece, _ = look(item, reading(archive), "f")
        assert guess(item, value.nbytes) == piece.start

    def archive(self, value: torch.Tensor, more: tuple[str, ...]) -> bytes:
        import zipfile
        import zlib

        data = io.BytesIO()
        torch.save(value, data)
        with zipfile.ZipFile(data) as archive:
            kept = {
                name: archive.read(f"archive/{name}")
                for name in (
                    "data.pkl",
                    *more,
                    "data/0",
                    "version",
                    *(".data/serialization_id",) * bool(more),
                )
            }
        placed, crc32 = place((name, len(content)) for name, content in kept.items()), {}
        out = b""
        for record in placed:
            crc32[record.name] = zlib.crc32(kept[record.name])
            out += record.opening() + kept[record.name] + record.descriptor(crc32[record.name])
        return out + closing(placed, crc32)

    def test_other_alignment(self, place_of: str, put: Put, tmp_path: Path) -> None:
        config = pytest.importorskip("torch.utils.serialization").config
        if not hasattr(config.save, "storage_alignment"):
            pytest.skip("this torch aligns in one way only")
        with config.patch({"save.storage_alignment": 4096}):
            save(tensors(1), FileSystemWriter(tmp_path))
        upload(put, tmp_path, place_of)
        assert_alike(load(tensors(2), S3Reader(place_of)), tensors(1))

    def test_something_else(self, tmp_path: Path) -> None:
        """A file of the right length that holds another tensor."""
        save({"w": torch.ones(500, 500)}, S3Writer(tmp_path))
        (file,) = tmp_path.glob("*.distcp")
        other = io.BytesIO()
        torch.save(torch.ones(250, 1000), other)
        file.write_bytes(other.getvalue().ljust(file.stat().st_size, b"\0")[: file.stat().st_size])
        with pytest.raises(CheckpointException) as caught:
            load({"w": torch.zeros(500, 500)}, S3Reader(tmp_path))
        assert isinstance(failure(caught.value), FormatError)

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(data=st.data())
    def test_boxes_make_up_the_whole(self, data: st.DataObject) -> None:
        shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=4)))
        orders = st.permutations(range(len(shape)))

        def strides() -> tuple[int, ...]:
            steps, step = [0] * len(shape), 1
            for dim in data.draw(orders):
                step *= data.draw(st.sampled_from([1, 1, 2, 40_000]))
                steps[dim] = step
                step *= shape[dim]
            return tuple(steps)

        target = strides() if data.draw(st.booleans()) else None
        most = data.draw(st.sampled_from([64, 16 << 20]))
        boxes = list(cut(shape, strides(), target, 4, most))
        covered = [
            at for box in boxes for at in itertools.product(*(range(s.start, s.stop) for s in box.where))
        ]
        assert len(covered) == math.prod(shape)
        assert len(set(covered)) == len(covered)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def told(one: Any, **attributes: Any) -> Any:
    one.__dict__ |= attributes
    return one


class TestHostile:
    def test_metadata_that_would_run_code(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        metadata = save(tensors(1), S3Writer(tmp_path))
        metadata.planner_data = {"a": Evil()}
        (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(UnsafePickleError, match=r"builtins\.print") as caught:
            S3Reader(tmp_path).read_metadata()
        assert caught.value.refused == ("builtins.print",)
        assert "executed" not in capsys.readouterr().out
        S3Reader(tmp_path, weights_only=False).read_metadata()
        assert "executed" in capsys.readouterr().out

    def test_values_that_would_run_code(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save({"w": torch.ones(3), "value": Evil()}, S3Writer(tmp_path))
        with pytest.raises(CheckpointException) as caught:
            load({"w": torch.zeros(3), "value": 0}, S3Reader(tmp_path))
        error = failure(caught.value)
        assert isinstance(error, UnsafePickleError)
        assert error.refused == ("builtins.print",)
        assert "'value'" in str(error)
        assert "executed" not in capsys.readouterr().out
        load({"w": torch.zeros(3), "value": 0}, S3Reader(tmp_path, weights_only=False))
        assert "executed" in capsys.readouterr().out

    def test_values_that_are_allowed(self, tmp_path: Path) -> None:
        save({"value": uuid.UUID(int=7)}, S3Writer(tmp_path))
        with pytest.raises(CheckpointException):
            load({"value": None}, S3Reader(tmp_path))
        with torch.serialization.safe_globals([uuid.UUID, uuid.SafeUUID]):
            assert load({"value": None}, S3Reader(tmp_path)) == {"value": uuid.UUID(int=7)}

    @pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "a/../../b", "s3://other/key", ""])
    def test_files_elsewhere(self, file: str, tmp_path: Path) -> None:
        metadata = save({"w": torch.ones(3)}, S3Writer(tmp_path / "m"))
        for place_ in metadata.storage_data.values():
            place_.relative_path = file
        (tmp_path / "m" / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointException) as caught:
            load({"w": torch.zeros(3)}, S3Reader(tmp_path / "m"))
        assert isinstance(failure(caught.value), FormatError)

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.storage_data.clear(),
            lambda m: told(m, storage_data=None),
            lambda m: told(m, storage_data=7),
            lambda m: told(m, state_dict_metadata=[]),
            lambda m: m.state_dict_metadata.update(w=7),
            lambda m: m.state_dict_metadata["w"].chunks.append(7),
            lambda m: told(m.state_dict_metadata["w"], chunks=None),
            lambda m: told(m.state_dict_metadata["w"], size=(1 << 70,)),
            lambda m: told(m.state_dict_metadata["w"], properties=None),
            lambda m: [told(place, length=1 << 62) for place in m.storage_data.values()],
            lambda m: [told(place, length=10) for place in m.storage_data.values()],
            lambda m: [told(place, offset=-1) for place in m.storage_data.values()],
            lambda m: [told(place, offset="0") for place in m.storage_data.values()],
            lambda m: [told(place, transform_descriptors=["zstd"]) for place in m.storage_data.values()],
        ],
    )
    def test_contradictions(self, change: Any, tmp_path: Path) -> None:
        metadata = save({"w": torch.ones(300, 300)}, S3Writer(tmp_path))
        change(metadata)
        (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointException) as caught:
            load({"w": torch.zeros(300, 300)}, S3Reader(tmp_path))
        assert isinstance(failure(caught.value), FormatError)

    def test_damaged_metadata(self, tmp_path: Path) -> None:
        """Whatever is changed, what comes of it is a description or one of our errors."""
        good = pickle.dumps(save({"model": tensors(1), **values(1)}, S3Writer(tmp_path)))
        dice = random.Random(7)
        refused = 0
        for _ in range(400):
            data = bytearray(good)
            for _ in range(dice.randint(1, 4)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            if dice.random() < 0.2:
                del data[dice.randrange(len(data)) :]
            try:
                read_metadata(bytes(data), "m")
            except FormatError:
                refused += 1
        assert refused > 200

    def test_something_else(self) -> None:
        for value in ([1, 2], None, {"a": 1}, facts.BytesStorageMetadata()):
            with pytest.raises(FormatError):
                read_metadata(pickle.dumps(value), "m")
        with pytest.raises(FormatError):
            read_metadata(b"", "m")

    def test_as_torch_reads_it(self, tmp_path: Path) -> None:
        """The same description as torch's own reader makes by unpickling."""
        save({"model": tensors(1), **values(1)}, FileSystemWriter(tmp_path))
        ours, theirs = S3Reader(tmp_path).read_metadata(), FileSystemReader(tmp_path).read_metadata()
        assert ours.storage_meta is not None
        assert theirs.storage_meta is not None
        assert ours.storage_meta.save_id == theirs.storage_meta.save_id
        assert str(ours.storage_meta.checkpoint_id) == str(theirs.storage_meta.checkpoint_id)
        ours.storage_meta = theirs.storage_meta = None
        assert ours == theirs


@pytest.fixture
def hf_storage() -> Any:
    """torch's own back end for safetensors, where it has one."""
    return pytest.importorskip("torch.distributed.checkpoint.hf_storage")


class TestModels:
    """Directories without .metadata, as Hugging Face's are."""

    def test_as_torch_reads_them(self, place_of: str, put: Put, tmp_path: Path, hf_storage: Any) -> None:
        stored = {f"layer.{n}": torch.randn(300, 400) for n in range(4)}
        weight_map = {}
        for n, name in enumerate(stored):
            file = f"model-{n + 1:05}-of-00004.safetensors"
            safetensors.torch.save_file({name: stored[name]}, tmp_path / file)
            weight_map[name] = file
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        upload(put, tmp_path, place_of)
        found = load({name: torch.zeros(300, 400) for name in stored}, S3Reader(place_of))
        theirs = load(
            {name: torch.zeros(300, 400) for name in stored},
            hf_storage.HuggingFaceStorageReader(str(tmp_path)),
        )
        assert_alike(found, theirs)
        assert_alike(found, stored)

    def test_what_ranks_saved(self, place_of: str, put: Put, tmp_path: Path, hf_storage: Any) -> None:
        """Files of parts, each of which says where they belong."""
        whole = torch.randn(900, 200)
        for rank in range(3):
            said = {"w": {"saved_offsets": [rank * 300, 0]}}
            safetensors.torch.save_file(
                {"w": whole[rank * 300 : rank * 300 + 300].clone()},
                tmp_path / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors",
                {"DCP_SHARDING_INFO": json.dumps(said), "format": "pt"},
            )
        upload(put, tmp_path, place_of)
        assert_alike(load({"w": torch.zeros(900, 200)}, S3Reader(place_of)), {"w": whole})
        theirs = load({"w": torch.zeros(900, 200)}, hf_storage.HuggingFaceStorageReader(str(tmp_path)))
        assert_alike(theirs, {"w": whole})

    def test_what_torch_wrote(self, tmp_path: Path, hf_storage: Any) -> None:
        stored = {"a": torch.randn(30, 40), "b": torch.randn(500, 600)}
        save(stored, hf_storage.HuggingFaceStorageWriter(str(tmp_path), {"a": 1, "b": 2}))
        assert_alike(load({n: torch.zeros_like(t) for n, t in stored.items()}, S3Reader(tmp_path)), stored)

    def test_torch_files_as_well(self, place_of: str, put: Put) -> None:
        base = torch.randn(700, 600)
        stored = {"a": base, "t": base.t(), "view": base[5:600:2]}
        data = io.BytesIO()
        torch.save(stored, data)
        bucket, prefix = split(place_of)
        put(bucket, f"{prefix}pytorch_model.bin", data.getvalue())
        for uri in (place_of, f"{place_of}pytorch_model.bin"):
            found = load({n: torch.zeros(t.shape) for n, t in stored.items()}, S3Reader(uri))
            assert_alike(found, stored)

    def test_none(self, place_of: str, put: Put) -> None:
        bucket, prefix = split(place_of)
        for uri in (place_of, place_of.rstrip("/")):
            with pytest.raises(ObjectNotFoundError, match="neither"):
                S3Reader(uri).read_metadata()
        put(bucket, f"{prefix}0123__0_0.distcp", b"of a save that was killed")
        for uri in (place_of, place_of.rstrip("/")):
            with pytest.raises(ObjectNotFoundError, match="without one, none was completed"):
                S3Reader(uri).read_metadata()

    def test_several(self, place_of: str, put: Put) -> None:
        bucket, prefix = split(place_of)
        for name in ("a", "b"):
            put(bucket, f"{prefix}{name}.safetensors", safetensors.torch.save({"w": torch.ones(3)}))
        with pytest.raises(FormatError, match="several models"):
            S3Reader(place_of).read_metadata()


def test_importing_torchwick_does_not_import_it() -> None:
    run_python("import sys, torchwick; assert not {'torch', 'torchwick.distributed'} & set(sys.modules)")
