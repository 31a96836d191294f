"""`load` with `dtype` and `map_location`: what torch.load gives, cast and moved; ties and counters stay.

There is no other device here: the CPU's memory stands in for one, by way of the code that knows devices.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

import torchwick
from checkpoints import ODD_CHECKPOINTS, SAFETENSORS, OddCheckpoint
from checkpoints.assembly import zip_of
from checkpoints.base import quiet, save_bytes
from checkpoints.zipcraft import saved_records, under, write_zip
from conftest import run_python
from faults import Cut, FlipByte, IgnoreRange, Stall
from oracle import assert_same
from torchwick import FormatError, IntegrityError, LoadReport, Progress, TransferConfig, TransferError
from torchwick.formats import torch_zip
from torchwick.loading import deferred, selected, streamed
from torchwick.loading.casting import recast
from torchwick.transfer import ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Put
    from faulty import FaultyServer

BF16 = torch.bfloat16
PARTS = TransferConfig(part_size=256 << 10, connections=4)
TINY = TransferConfig(part_size=128 << 10, memory_limit="1MB")


# -- the oracle --------------------------------------------------------------------------------------------


def cast(value: Any, dtype: torch.dtype) -> Any:
    """What is to come of what torch.load gave: a new object, one new storage for each of the old."""
    return _Cast(dtype).of(value)


class _Cast:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.seen: dict[int, Any] = {}
        self.storages: dict[int, torch.Tensor] = {}

    def of(self, value: Any, name: object = None) -> Any:
        if id(value) not in self.seen:
            self.seen[id(value)] = self._of(value, name)
        return self.seen[id(value)]

    def _of(self, value: Any, name: object) -> Any:
        if isinstance(value, dict):
            made: Any = type(value)()
            for key, item in value.items():
                made[key] = self.of(item, key)
            if hasattr(value, "_metadata"):
                made._metadata = value._metadata
            return made
        if isinstance(value, list | tuple):
            return type(value)(self.of(item) for item in value)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return self._tensor(value, name)
        return value

    def _tensor(self, tensor: torch.Tensor, name: object) -> torch.Tensor:
        if name == "step" and not tensor.dim():
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages:
            flat = torch.tensor([], dtype=tensor.dtype).set_(storage)
            self.storages[storage._cdata] = flat.to(self.dtype)
        flat = self.storages[storage._cdata]
        view = flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        view = torch._neg_view(view) if tensor.is_neg() else view
        return nn.Parameter(view, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else view


def training() -> dict[str, Any]:
    """About 3 MB, of everything that is usual."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400), nn.Linear(400, 300))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(4, 300)).sum().backward()
        optimizer.step()
        state = model.state_dict()
        base, waves = torch.randn(100_000), torch.randn(5000, dtype=torch.complex64)
        return {
            "model": state,
            "tied": state["0.weight"],
            "optimizer": optimizer.state_dict(),
            "views": [base, base[10:50].view(4, 10).t(), base[7], base[:0]],
            "part": torch.randn(200, 300)[:, ::3],
            "parameter": nn.Parameter(torch.randn(70_000)),
            "frozen": nn.Parameter(torch.randn(3), requires_grad=False),
            "conj": waves.conj(),
            "neg": torch.randn(5000, dtype=torch.complex64).conj().imag,
            "half": torch.randn(9).half(),
            "eight": torch.randn(9).to(torch.float8_e4m3fn),
            "cast already": torch.randn(9).bfloat16(),
            "double": torch.randn(9, dtype=torch.float64),
            "empty": torch.empty(0, 3),
            "mask": torch.rand(70_000) > 0.5,
            "ids": torch.arange(90_000),
            "step": 7,
            "text": "best",
        }


def flat(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What safetensors can hold of it."""
    return {
        **{f"model.{name}": tensor.clone() for name, tensor in state["model"].items()},
        **{name: state[name].clone() for name in ("half", "eight", "double", "empty", "mask", "ids")},
        "optimizer.state.0.step": torch.tensor(257.0),
        "part": state["part"].contiguous(),
    }


WRITERS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: save_bytes(training()),
    "legacy": lambda: save_bytes(
        {name: value for name, value in training().items() if name != "eight"},  # which that cannot hold
        _use_new_zipfile_serialization=False,
    ),
}
both_formats = pytest.mark.parametrize("format_", WRITERS)


def torch_load(content: bytes, **options: Any) -> Any:
    with quiet():
        return torch.load(io.BytesIO(content), **options)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU be a device that the network cannot read into the memory of."""
    for module in (deferred, streamed, selected):
        monkeypatch.setattr(module, "on_host", lambda device: device.type == "meta")


@pytest.fixture(params=["host", "device"])
def anywhere(request: pytest.FixtureRequest) -> None:
    """Once as it is, and once as `elsewhere`."""
    if request.param == "device":
        request.getfixturevalue("elsewhere")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nearly nothing be fetched before a file is laid out."""
    monkeypatch.setattr(ranges, "READ_AHEAD", 600)
    monkeypatch.setattr(torch_zip, "TAIL", 600)


# -- whole objects -----------------------------------------------------------------------------------------


class TestPickled:
    @both_formats
    @pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float64, torch.float32], ids=str)
    def test_it_is_what_torch_loads_cast(self, format_: str, dtype: torch.dtype, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(content := WRITERS[format_]())
        reports: list[LoadReport] = []
        loaded = torchwick.load(tmp_path / "model.pt", dtype=dtype, transfer=PARTS, on_report=reports.append)
        assert_same(loaded, cast(torch_load(content), dtype))
        assert reports[0].method == "deferred"
        assert reports[0].bytes_read < len(content) + (600 << 10)

    @both_formats
    def test_within_a_megabyte(self, format_: str, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(content := WRITERS[format_]())
        loaded = torchwick.load(tmp_path / "model.pt", dtype="bf16", transfer=TINY)
        assert_same(loaded, cast(torch_load(content), BF16))

    @both_formats
    @pytest.mark.parametrize("dtype", [None, BF16], ids=str)
    @pytest.mark.parametrize("config", [PARTS, TINY], ids=["roomy", "tiny"])
    def test_to_a_device(
        self, format_: str, dtype: Any, config: TransferConfig, elsewhere: None, tmp_path: Path
    ) -> None:
        if format_ == "legacy":
            config = PARTS  # torch reads it into memory of its own, out of a second copy
        (tmp_path / "model.pt").write_bytes(content := WRITERS[format_]())
        with quiet():
            loaded = torchwick.load(tmp_path / "model.pt", "cpu", dtype=dtype, transfer=config)
        expected = torch_load(content)
        assert_same(loaded, expected if dtype is None else cast(expected, dtype))

    def test_on_s3(self, aws_env: object, shared_bucket: str, put: Put) -> None:
        uri = put(shared_bucket, "casting/model.pt", content := WRITERS["zip"]())
        reports: list[LoadReport] = []
        loaded = torchwick.load(uri, dtype="bfloat16", transfer=PARTS, on_report=reports.append)
        assert_same(loaded, cast(torch_load(content), BF16))
        assert (reports[0].verified, reports[0].format) == ("crc32", "torch zip")

    def test_counters_stay_what_they_are(self, tmp_path: Path) -> None:
        torch.save({"state": {0: {"step": torch.tensor(257.0), "exp_avg": torch.ones(3)}}}, tmp_path / "o.pt")
        loaded = torchwick.load(tmp_path / "o.pt", dtype="bf16")["state"][0]
        assert (loaded["step"].dtype, loaded["step"].item()) == (torch.float32, 257.0)
        assert loaded["exp_avg"].dtype is BF16

    def test_ties_and_views_stay(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(WRITERS["zip"]())
        loaded = torchwick.load(tmp_path / "model.pt", dtype="bf16")
        assert loaded["tied"] is loaded["model"]["0.weight"]
        base, view, *_ = loaded["views"]
        assert view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
        base[10:50] = 3
        assert (view == 3).all()
        assert isinstance(loaded["parameter"], nn.Parameter)
        assert loaded["parameter"].requires_grad

    def test_sparse_and_quantized(self, tmp_path: Path) -> None:
        with quiet():
            state = {
                "sparse": torch.eye(3).to_sparse(),
                "rows": torch.eye(3).to_sparse_csr(),
                "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
                "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
                "dense": torch.ones(3),
            }
            torch.save(state, tmp_path / "model.pt")
            loaded = torchwick.load(tmp_path / "model.pt", dtype="bf16")
        kinds = {name: tensor.dtype for name, tensor in loaded.items()}
        assert kinds == {**dict.fromkeys(state, BF16), "quantized": torch.qint8}
        assert torch.equal(loaded["sparse"].to_dense(), torch.eye(3, dtype=BF16))
        assert torch.equal(loaded["nested"][1], torch.ones(3, dtype=BF16))

    def test_a_module(self, tmp_path: Path) -> None:
        torch.save({"model": nn.BatchNorm1d(70_000)}, tmp_path / "model.pt")
        loaded = torchwick.load(tmp_path / "model.pt", dtype="bf16", weights_only=False)["model"]
        assert (loaded.weight.dtype, loaded.num_batches_tracked.dtype) == (BF16, torch.int64)
        assert isinstance(loaded.weight, nn.Parameter)

    @pytest.mark.parametrize("apart", [True, False])
    def test_storages_for_themselves_stay_with_their_tensors(self, apart: bool, tmp_path: Path) -> None:
        with quiet():
            tensor = torch.arange(200_000.0)
            sharing: Any = tensor.clone() if apart else tensor
            storage = sharing.storage()
            torch.save({"a": tensor, "storage": storage, "b": torch.ones(3)}, tmp_path / "model.pt")
            loaded = torchwick.load(tmp_path / "model.pt", dtype="bf16")
        found = torch.tensor([]).set_(loaded["storage"]._untyped_storage)
        assert torch.equal(found, tensor)
        assert torch.equal(loaded["a"], tensor.to(loaded["a"].dtype))
        assert (loaded["a"].dtype, loaded["b"].dtype) == (BF16 if apart else torch.float32, BF16)

    def test_programs(self, tmp_path: Path) -> None:
        script, exported = tmp_path / "script.pt", tmp_path / "exported.pt2"
        with quiet():
            torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
            torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), exported)
            loaded = torchwick.load(script, dtype="bf16", weights_only=False)
            assert loaded(torch.ones(1, 2, dtype=BF16)).dtype is BF16
            with pytest.raises(ValueError, match="has its dtypes in its program"):
                torchwick.load(exported, dtype="bf16", weights_only=False)

    def test_what_no_pickler_goes_through(self, tmp_path: Path) -> None:
        """A list in a list in a list…, which an unpickler builds, and no pickler takes apart."""
        pickled = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
        (tmp_path / "model.pt").write_bytes(zip_of(pickled))
        assert torchwick.load(tmp_path / "model.pt")
        with pytest.raises(FormatError, match="cannot be found in what was saved") as caught:
            torchwick.load(tmp_path / "model.pt", dtype="bf16")
        assert "without dtype=" in str(caught.value.hint)

    @pytest.mark.parametrize("dtype", ["int8", "complex64", "F4"])
    def test_what_is_no_dtype_to_cast_to(self, dtype: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no floating-point dtype"):
            torchwick.load(tmp_path / "model.pt", dtype=dtype)


CASES = {
    case.name: case
    for case in ODD_CHECKPOINTS
    if case.path in ("deferred", "either") and case.loads
    # Two records of one name are refused, comments push the directory out of reach, and one takes its time.
    if not any(word in case.name for word in ("duplicate", "comment", "many_tensors"))
}


class TestOddOnes:
    """The files that every load is judged on, most of their bytes unread when they are laid out."""

    @pytest.mark.parametrize("name", [name for name in CASES if "legacy" not in name])
    def test_to_a_device(self, name: str, elsewhere: None, narrow: None, tmp_path: Path) -> None:
        case = self.build(name, tmp_path)
        with case.setting():
            loaded = torchwick.load(tmp_path / "model.pt", **case.options)
            assert_same(loaded, torch.load(tmp_path / "model.pt", **case.options))

    @pytest.mark.parametrize("name", CASES)
    def test_cast(self, name: str, narrow: None, tmp_path: Path) -> None:
        case = self.build(name, tmp_path)
        with case.setting():
            loaded = torchwick.load(tmp_path / "model.pt", dtype=torch.float64, **case.options)
            expected = torch.load(tmp_path / "model.pt", **case.options)
            recast(expected, torch.float64, "")  # one storage after the other, all of it being there
            assert_same(loaded, expected)

    def build(self, name: str, folder: Path) -> OddCheckpoint:
        CASES[name].build(folder / "model.pt")
        return CASES[name]


# -- names without a pickle --------------------------------------------------------------------------------


def hugging(state: dict[str, torch.Tensor], folder: Path) -> Path:
    names = [name for name in state if name != "optimizer.state.0.step"]
    weight_map: dict[str, str] = {}
    for number in range(2):
        mine = {name: state[name] for name in (*names[number::2], *(["optimizer.state.0.step"] * number))}
        (folder / f"model-{number}.safetensors").write_bytes(safetensors.torch.save(mine))
        weight_map |= dict.fromkeys(mine, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def distributed(state: dict[str, torch.Tensor], folder: Path) -> Path:
    with quiet():
        save_dcp(dict(state), checkpoint_id=folder, no_dist=True)
    return folder


def one_file(state: dict[str, torch.Tensor], folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(state))
    return folder / "model.safetensors"


class TestNamed:
    @pytest.mark.usefixtures("anywhere")
    @pytest.mark.parametrize("write", [one_file, hugging, distributed])
    @pytest.mark.parametrize("dtype", [None, BF16], ids=str)
    @pytest.mark.parametrize("config", [PARTS, TINY], ids=["roomy", "tiny"])
    def test_tensors(self, write: Any, dtype: Any, config: Any, tmp_path: Path) -> None:
        state = flat(training())
        loaded = torchwick.load(write(state, tmp_path), "cpu", dtype=dtype, transfer=config)
        expected = {name: self.cast(name, tensor, dtype) for name, tensor in state.items()}
        assert_same(dict(sorted(loaded.items())), dict(sorted(expected.items())), storages=False)

    def cast(self, name: str, tensor: torch.Tensor, dtype: Any) -> torch.Tensor:
        stays = dtype is None or not tensor.is_floating_point() or name.endswith("step")
        return tensor if stays else tensor.to(dtype)

    @pytest.mark.parametrize("name", sorted(set(SAFETENSORS) - {"empties"}))
    def test_odd_safetensors(self, name: str, elsewhere: None, narrow: None, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[name]())
        loaded = torchwick.load(tmp_path / "model.safetensors", "cpu")
        expected = safetensors.torch.load_file(tmp_path / "model.safetensors")
        assert_same(loaded, {key: expected[key] for key in loaded}, storages=False)

    @both_formats
    @pytest.mark.parametrize("dtype", [None, BF16], ids=str)
    def test_keys(self, format_: str, dtype: Any, anywhere: None, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(WRITERS[format_]())
        keys = ["model.*", "tied", "views.*", "conj", "neg", "optimizer.state.0.*", "part", "mask"]
        plain = torchwick.load(tmp_path / "model.pt", keys=keys)
        loaded = torchwick.load(tmp_path / "model.pt", "cpu", dtype=dtype, keys=keys, transfer=TINY)
        assert loaded.keys() == plain.keys()
        for name, tensor in loaded.items():
            assert torch.equal(tensor, self.cast(name, plain[name], dtype)), name
        shared = {name: tensor.untyped_storage().data_ptr() for name, tensor in loaded.items()}
        assert shared["tied"] == shared["model.0.weight"]
        assert shared["views.0"] == shared["views.1"] == shared["views.2"]
        assert len(set(shared.values())) > 10


# -- places ------------------------------------------------------------------------------------------------


class TestMapLocation:
    def test_a_function_sees_what_was_saved(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(content := WRITERS["zip"]())

        def look_into(seen: list[list[int]]) -> Callable[[Any, str], Any]:
            def look(storage: Any, tag: str) -> Any:
                seen.append(storage[: min(16, len(storage))].tolist())
                return storage

            return look

        mine, torchs = list[list[int]](), list[list[int]]()
        loaded = torchwick.load(tmp_path / "model.pt", look_into(mine), dtype="bf16")
        assert_same(loaded, cast(torch_load(content, map_location=look_into(torchs)), BF16))
        assert mine == torchs
        assert any(map(any, mine))

    @pytest.mark.parametrize("where", ["cpu", torch.device("cpu"), {"cpu": "cpu"}, {"cuda:0": "cpu"}])
    @both_formats
    def test_names_of_a_place(self, where: Any, format_: str, elsewhere: None, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(content := WRITERS[format_]())
        assert_same(torchwick.load(tmp_path / "model.pt", where), torch_load(content))

    @both_formats
    def test_shapes_alone(self, format_: str, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(WRITERS[format_]())
        reports: list[LoadReport] = []
        loaded = torchwick.load(tmp_path / "model.pt", "meta", dtype="bf16", on_report=reports.append)
        weight = loaded["model"]["0.weight"]
        assert (weight.is_meta, weight.dtype, weight.shape) == (True, BF16, (400, 300))
        assert loaded["ids"].dtype is torch.int64
        if format_ == "zip":
            assert reports[0].bytes_read < 700_000

    def test_shapes_of_a_directory(self, tmp_path: Path) -> None:
        loaded = torchwick.load(hugging(flat(training()), tmp_path), "meta", dtype="bf16")
        assert {tensor.dtype for name, tensor in loaded.items() if name.startswith("model.0")} == {BF16}
        assert all(tensor.is_meta for tensor in loaded.values())

    def test_fake_tensors(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(WRITERS["zip"]())
        with FakeTensorMode(), pytest.raises(ValueError, match="nothing to cast"):
            torchwick.load(tmp_path / "model.pt", dtype="bf16")

    def test_a_function_for_what_names_no_places(self, tmp_path: Path) -> None:
        path = one_file(flat(training()), tmp_path)
        with pytest.raises(ValueError, match="must be one device, not function"):
            torchwick.load(path, lambda storage, tag: storage, dtype="bf16")

    def test_inference_mode(self, elsewhere: None, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(content := WRITERS["zip"]())
        with torch.inference_mode():
            assert_same(torchwick.load(tmp_path / "model.pt", dtype="bf16"), cast(torch_load(content), BF16))

    @pytest.mark.parametrize("dtype", [None, "bf16"])
    def test_a_default_device(self, dtype: Any, elsewhere: None, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(content := WRITERS["zip"]())
        with torch.device("meta"):
            loaded = torchwick.load(tmp_path / "model.pt", dtype=dtype)
        expected = torch_load(content)
        assert_same(loaded, expected if dtype is None else cast(expected, BF16))


# -- what goes wrong, and what is told ---------------------------------------------------------------------


@pytest.fixture
def served(faulty_s3: FaultyServer) -> FaultyServer:
    for name, write in WRITERS.items():
        faulty_s3.put(f"models/{name}", write(), checksum="crc64nvme")
    faulty_s3.put("models/safetensors", safetensors.torch.save(flat(training())), checksum="crc64nvme")
    return faulty_s3


every_object = pytest.mark.parametrize("uri", [f"s3://models/{n}" for n in (*WRITERS, "safetensors")])


class TestStreams:
    @every_object
    def test_it_is_verified(self, uri: str, served: FaultyServer) -> None:
        reports: list[LoadReport] = []
        torchwick.load(uri, dtype="bf16", transfer=PARTS, on_report=reports.append)
        assert reports[0].verified == "crc64nvme"
        served.on(FlipByte(1_500_000))
        with pytest.raises(IntegrityError):
            torchwick.load(uri, dtype="bf16", transfer=PARTS)

    @every_object
    def test_a_pinned_file(self, uri: str, served: FaultyServer) -> None:
        plain = torchwick.load(uri)
        digest = hashlib.sha256(served._objects[uri.removeprefix("s3://")].body).hexdigest()
        reports: list[LoadReport] = []
        loaded = torchwick.load(uri, dtype="bf16", sha256=digest, transfer=PARTS, on_report=reports.append)
        assert reports[0].verified == "sha256"
        assert loaded["half"].dtype is BF16
        assert loaded.keys() == plain.keys()
        with pytest.raises(IntegrityError):
            torchwick.load(uri, dtype="bf16", sha256="00" * 32, transfer=PARTS)

    @every_object
    def test_progress(self, uri: str, served: FaultyServer) -> None:
        seen: list[Progress] = []
        torchwick.load(uri, dtype="bf16", transfer=PARTS, progress=seen.append)
        assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
        assert {(progress.uri, progress.total) for progress in seen} == {(uri, seen[-1].total)}
        assert seen[-1].fraction == 1

    @every_object
    @pytest.mark.parametrize("length", ["content-length", "chunked"])
    def test_a_server_without_ranges(self, uri: str, length: Any, served: FaultyServer) -> None:
        plain = torchwick.load(uri)
        served.on(IgnoreRange(length))
        loaded = torchwick.load(uri.replace("s3:/", served.endpoint_url), dtype="bf16")
        expected = plain["half"].bfloat16()
        assert torch.equal(loaded["half"], expected)
        assert loaded.keys() == plain.keys()

    @every_object
    def test_failures(self, uri: str, served: FaultyServer) -> None:
        patient = TransferConfig(part_size=256 << 10, timeout=20)
        quick = TransferConfig(part_size=256 << 10, max_attempts=2)
        served.on(Stall(1000), where=lambda r: r.range is not None and 10**6 < r.range[0] < 2 * 10**6)
        with pytest.raises(KeyboardInterrupt):
            torchwick.load(
                uri, dtype="bf16", transfer=patient, progress=lambda _: signal.raise_signal(signal.SIGINT)
            )
        served.behave()
        served.on(Cut(1000), where=lambda r: r.range is not None and 10**6 < r.range[0] < 2 * 10**6)
        with pytest.raises(TransferError, match="tried 2 times"):
            torchwick.load(uri, dtype="bf16", transfer=quick)

    @pytest.mark.parametrize("dtype", [None, BF16], ids=str)
    def test_records_where_no_known_writer_puts_them(
        self, dtype: Any, elsewhere: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Found out only when the bytes come: the file is then read again, with care."""
        state = {f"w{n}": torch.full((100_000,), float(n)) for n in range(9)}
        content = write_zip(under("archive", saved_records(state)), gap_after="archive/data/4")
        (tmp_path / "model.pt").write_bytes(content)
        expected, reports = torch_load(content), list[LoadReport]()
        loaded = torchwick.load(tmp_path / "model.pt", dtype=dtype, on_report=reports.append)
        assert_same(loaded, expected if dtype is None else cast(expected, dtype))
        assert reports[0].method == "spooled"
        assert "no known writer" in caplog.text


# -- the memory of the process -----------------------------------------------------------------------------

PEAK = """
import pathlib, re, sys, torch, torchwick

def status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", text)[1]) * 1024

limit = torchwick.TransferConfig(memory_limit="64MB")
torchwick.load(sys.argv[1], dtype="bf16")  # imports and connections are not the model's
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
state = torchwick.load(sys.argv[2], dtype="bf16", transfer=limit)
print(status("VmHWM") - before, sum(tensor.nbytes for tensor in state.values()))
assert all((tensor == n).all() for n, tensor in enumerate(state.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's to tell")
@pytest.mark.parametrize("format_", ["pt", "safetensors"])
def test_peak_of_memory(format_: str, aws_env: object, shared_bucket: str, put: Put, tmp_path: Path) -> None:
    rows = [1152, 1920, 640, 2560] * 4
    state = {f"{n:03}": torch.full((count, 2048), float(n)) for n, count in enumerate(rows)}
    write: Any = torch.save if format_ == "pt" else safetensors.torch.save_file
    uris = []
    for name, saved in (("small", {"a": torch.ones(3)}), ("large", state)):
        write(saved, tmp_path / name)
        uris.append(put(shared_bucket, f"casting/{name}.{format_}", tmp_path / name))
    peak, size = map(int, run_python(PEAK, *uris).split())
    assert size > 100e6
    assert peak < size + 64e6 * 1.25
