"""`load` by name and of directories: the tensors that are meant, read together, every object verified."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

import torchwick
from checkpoints.base import quiet, save_bytes
from faults import FlipByte
from oracle import assert_same
from torchwick import FormatError, IntegrityError, LoadReport, ObjectNotFoundError, Progress, TransferConfig

if TYPE_CHECKING:
    from conftest import Put
    from faulty import FaultyServer

SMALL_PARTS = TransferConfig(part_size=256 << 10)
STATE = {
    "model": {f"layers.{n}.weight": torch.randn(300, 1000) for n in range(8)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
    "epoch": 3,
}
FLAT = {f"model.layers.{n}.weight": STATE["model"][f"layers.{n}.weight"] for n in range(8)}  # type: ignore[index]


def shards(count: int = 4) -> dict[str, bytes]:
    """The files of a Hugging Face directory."""
    names = list(FLAT)
    files: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = {name: FLAT[name] for name in names[number::count]}
        files[file] = safetensors.torch.save(mine, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 9}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index).encode(), "config.json": b"{}"}


def in_order(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in the order of their names: an index may have any."""
    return dict(sorted(tensors.items()))


def _load(uri: str | Path, **options: Any) -> tuple[Any, LoadReport]:
    reports: list[LoadReport] = []
    value = torchwick.load(uri, on_report=reports.append, **options)
    return value, reports[0]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A Hugging Face directory on this machine."""
    for name, content in shards().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def served(faulty_s3: FaultyServer) -> FaultyServer:
    """A Hugging Face directory on the fault server, with the checksums that S3 keeps."""
    for name, content in shards().items():
        faulty_s3.put(f"models/llama/{name}", content, checksum="crc64nvme")
    return faulty_s3


class TestDirectory:
    def test_on_s3(self, put: Put, shared_bucket: str, aws_env: object) -> None:
        for name, content in shards().items():
            put(shared_bucket, f"llama/{name}", content)
        value, report = _load(f"s3://{shared_bucket}/llama/")
        assert_same(in_order(value), FLAT, storages=False)
        assert (report.format, report.method, report.verified) == ("safetensors", "filled", "crc32")
        assert report.size == sum(len(c) for n, c in shards().items() if n.endswith(".safetensors"))

    def test_without_its_slash(self, put: Put, shared_bucket: str, aws_env: object) -> None:
        for name, content in shards().items():
            put(shared_bucket, f"bare/{name}", content)
        assert_same(in_order(torchwick.load(f"s3://{shared_bucket}/bare")), FLAT, storages=False)

    def test_neither_an_object_nor_a_directory(self, shared_bucket: str, aws_env: object) -> None:
        with pytest.raises(ObjectNotFoundError, match="nothing/here"):
            torchwick.load(f"s3://{shared_bucket}/nothing/here")

    @pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
    def test_local(self, local: Path, name: str) -> None:
        assert_same(in_order(torchwick.load(local / name)), FLAT, storages=False)

    def test_of_a_distributed_checkpoint(self, tmp_path: Path) -> None:
        with quiet():
            save_dcp({"model": STATE["model"]}, checkpoint_id=tmp_path, no_dist=True)
        value, report = _load(tmp_path)
        assert_same(in_order(value), FLAT, storages=False)
        assert report.format == "dcp"

    def test_a_directory_without_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("nothing")
        with pytest.raises(FormatError, match=r"no model is in the directory, only README\.md"):
            torchwick.load(tmp_path)

    def test_every_shard_is_verified(self, served: FaultyServer) -> None:
        value, report = _load("s3://models/llama/", transfer=SMALL_PARTS)
        assert_same(in_order(value), FLAT, storages=False)
        assert report.verified == "crc64nvme"

    def test_a_flipped_byte_in_one_shard(self, served: FaultyServer) -> None:
        served.on(FlipByte(1_500_000), path="models/llama/model-00003-of-00004.safetensors")
        with pytest.raises(IntegrityError, match="model-00003-of-00004"):
            torchwick.load("s3://models/llama/", transfer=SMALL_PARTS)
        assert torchwick.load("s3://models/llama/", transfer=SMALL_PARTS, verify=False).keys() == FLAT.keys()

    def test_a_digest_is_of_one_object(self, local: Path) -> None:
        with pytest.raises(ValueError, match="a directory of several"):
            torchwick.load(local, sha256="0" * 64)

    def test_nothing_to_verify_by(self, local: Path) -> None:
        with pytest.raises(IntegrityError, match="no checksum"):
            torchwick.load(local, verify=True)

    def test_progress_is_of_all_shards(self, local: Path) -> None:
        told: list[Progress] = []
        torchwick.load(local, progress=told.append)
        assert told
        assert {progress.total for progress in told} == {told[0].total}
        assert told[-1].done == told[-1].total > 7_000_000

    def test_shapes_alone(self, served: FaultyServer) -> None:
        value, report = _load("s3://models/llama/", map_location="meta")
        assert {name: tensor.shape for name, tensor in value.items()} == {n: t.shape for n, t in FLAT.items()}
        assert {tensor.device.type for tensor in value.values()} == {"meta"}
        assert report.bytes_read < 1_000_000


class TestKeys:
    @pytest.fixture(params=["zip", "legacy", "safetensors"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        path = tmp_path / "model"
        if request.param == "safetensors":
            path.write_bytes(safetensors.torch.save(FLAT))
        else:
            path.write_bytes(save_bytes(STATE, _use_new_zipfile_serialization=request.param == "zip"))
        return path

    @pytest.mark.parametrize(
        ("keys", "numbers"),
        [
            ("model.layers.3.weight", [3]),
            ("model.layers.[25].*", [2, 5]),
            (["model.layers.6.weight", "*.0.weight"], [6, 0]),
            (lambda name: name.endswith("7.weight"), [7]),
        ],
        ids=["name", "pattern", "several", "function"],
    )
    def test_only_these(self, path: Path, keys: Any, numbers: list[int]) -> None:
        expected = {f"model.layers.{n}.weight": FLAT[f"model.layers.{n}.weight"] for n in numbers}
        value, report = _load(path, keys=keys)
        assert list(value) == list(expected)
        assert_same(value, expected, storages=False)
        assert report.bytes_read < sum(tensor.nbytes for tensor in expected.values()) + 1_000_000

    def test_none_of_that_name(self, path: Path) -> None:
        with pytest.raises(torchwick.TensorNotFoundError, match=r"model\.layers\.3\.weight"):
            torchwick.load(path, keys="model.layer.3.weight")

    def test_ties_are_kept(self, tmp_path: Path) -> None:
        weight = torch.randn(40, 30)
        path = tmp_path / "tied.pt"
        torch.save({"in": weight, "out": weight, "row": weight[3]}, path)
        value = torchwick.load(path, keys="*")
        assert value["in"].data_ptr() == value["out"].data_ptr()
        value["in"][3] = 7
        assert value["row"].eq(7).all()

    def test_no_pickle_is_run(self, tmp_path: Path) -> None:
        path = tmp_path / "hostile.pt"
        torch.save({"w": torch.ones(3), "evil": Touch(str(tmp_path / "touched"))}, path)
        assert torchwick.load(path, keys="w")["w"].tolist() == [1, 1, 1]
        assert torchwick.load(path, keys="w", weights_only=False)["w"].tolist() == [1, 1, 1]
        assert not (tmp_path / "touched").exists()

    def test_part_of_an_object_is_not_verified(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/new.pt", save_bytes(STATE), checksum="crc64nvme")
        _, report = _load("s3://models/new.pt", keys="model.layers.1.weight")
        assert report.verified is None

    def test_all_of_an_object_is_read_if_it_has_to_be_verified(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/new.pt", save_bytes(STATE), checksum="crc64nvme")
        value, report = _load("s3://models/new.pt", keys="model.layers.1.weight", verify=True)
        assert report.verified == "crc64nvme"
        assert list(value) == ["model.layers.1.weight"]

    def test_a_digest(self, path: Path) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert _load(path, keys="*.2.*", sha256=digest)[1].verified == "sha256"
        with pytest.raises(IntegrityError, match="sha256"):
            torchwick.load(path, keys="*.2.*", sha256="0" * 64)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")
