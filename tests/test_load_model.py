"""`load_model` does what `load_state_dict` does, in the module's own memory; or says why it did not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp
from torch.nn.utils import parametrizations

import torchwick
from checkpoints.base import quiet, save_bytes
from conftest import random_bytes, run_python
from faults import Cut, FlipByte, IgnoreRange, S3Error, Stall
from torchwick import (
    CredentialsError,
    FormatError,
    IntegrityError,
    LoadReport,
    MemoryLimitError,
    ObjectChangedError,
    Progress,
    StateDictError,
    TensorNotFoundError,
    TransferConfig,
    TransferError,
)
from torchwick.checkpoint import tensors
from torchwick.loading import feeding
from torchwick.loading.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conftest import Put
    from faults import Request
    from faulty import FaultyServer

MIB = 1 << 20
PARTS = TransferConfig(part_size=256 << 10, connections=4)
QUICK = TransferConfig(part_size=256 << 10, connections=2, max_attempts=2, timeout=5)
PARTLY = "The module is partly filled: load it again before you use it."


# -- modules, and what they are held against ---------------------------------------------------------------


class Net(nn.Module):
    """About 3 MB, of everything that is usual."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 64)
        self.layers = nn.ModuleList(nn.Linear(400, 400) for _ in range(4))
        self.norm = nn.BatchNorm1d(64)
        self.rnn = nn.LSTM(8, 16, 2, batch_first=True)
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.randn(()))
        self.none = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("mask", torch.rand(7) > 0.5)
        self.register_buffer("ids", torch.randint(99, (5,)))
        self.register_buffer("waves", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("frequencies", torch.ones(2), persistent=False)
        self.layers[1].requires_grad_(False)


def made(make: Callable[[], nn.Module], seed: int = 0, device: str = "cpu") -> Any:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return make()


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_filled(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Every tensor of the state dict has these values, in the dtype of the module, and is real."""
    found = model.state_dict()
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert not tensor.is_meta, name
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


def write_safetensors(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(safetensors.torch.save({n: t.detach().clone() for n, t in state.items()}))
    return path


def write_zip(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "model.pt"
    path.write_bytes(save_bytes(dict(state)))
    return path


def write_legacy(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "model.pth"
    path.write_bytes(save_bytes(dict(state), _use_new_zipfile_serialization=False))
    return path


def write_huggingface(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    weight_map: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        mine = {name: state[name].clone() for name in list(state)[number::3]}
        (folder / file).write_bytes(safetensors.torch.save(mine))
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_distributed(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    with quiet():
        save_dcp(dict(state), checkpoint_id=folder, no_dist=True)
    return folder


FORMATS = {
    "safetensors": write_safetensors,
    "zip": write_zip,
    "legacy": write_legacy,
    "huggingface": write_huggingface,
    "distributed": write_distributed,
}
every_format = pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def upload(aws_env: object, shared_bucket: str, put: Put) -> Callable[[Path], str]:
    """Store a file, or all of a directory, on the real S3 server, and return its URI."""

    def store(path: Path) -> str:
        name = f"fill-{uuid.uuid4().hex}"
        if path.is_file():
            return put(shared_bucket, f"{name}/{path.name}", path)
        for file in path.iterdir():
            put(shared_bucket, f"{name}/{file.name}", file)
        return f"s3://{shared_bucket}/{name}/"

    return store


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Mapping[str, torch.Tensor]], Path]:
    """Write a state dict with torch.save."""
    return lambda state: write_zip(state, tmp_path)


def trained(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


def memory_of(model: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


# -- into memory that is there -----------------------------------------------------------------------------


def channels_last() -> nn.Module:
    model: Any = nn.Conv2d(3, 8, 3)
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


class TestInPlace:
    @every_format
    def test_it_is_what_load_state_dict_makes_of_it(
        self, write: Any, tmp_path: Path, upload: Callable[[Path], str]
    ) -> None:
        state, model, expected = state_of(made(Net)), made(Net, 1), made(Net, 1)
        memory, parameters = memory_of(model), dict(model.named_parameters())
        uri = upload(write(state, tmp_path))
        result = torchwick.load_model(model, uri, transfer=PARTS)
        assert result == ([], [])
        expected.load_state_dict(state)
        assert_filled(model, expected.state_dict())
        assert memory_of(model) == memory
        assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
        assert model.head.weight is model.embed.weight
        assert [p.requires_grad for p in model.parameters()] == [
            p.requires_grad for p in expected.parameters()
        ]

    @pytest.mark.parametrize("name", ["safetensors", "zip", "legacy", "huggingface"])
    def test_no_byte_of_it_lies_anywhere_else(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lent = []
        monkeypatch.setattr(tensors, "allocate", lambda nbytes, uri: lent.append(nbytes))
        monkeypatch.setattr(Ring, "lend", lambda self, nbytes, uri: lent.append(nbytes))
        state = {name: t for name, t in state_of(made(Net)).items() if name != "head.weight"}
        model = made(Net, 1)
        torchwick.load_model(model, FORMATS[name](state, tmp_path), transfer=PARTS)
        assert lent == []
        assert_filled(model, state | {"head.weight": state["embed.weight"]})

    def test_what_autograd_kept_is_not_valid_any_more(self, saved: Any) -> None:
        model = nn.Linear(3, 3)
        kept = model(torch.ones(3, requires_grad=True)).sum()
        torchwick.load_model(model, saved(state_of(nn.Linear(3, 3))))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.backward()

    def test_an_optimizer_goes_on_with_the_same_parameters(self, saved: Any) -> None:
        model = made(Net, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model.scale.grad = torch.ones(())
        state = state_of(made(Net))
        torchwick.load_model(model, saved(state))
        optimizer.step()
        assert torch.equal(model.scale, state["scale"] - 1)

    @pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.float64, torch.float8_e4m3fn])
    def test_a_dtype_of_the_module_own(self, stored: torch.dtype, saved: Any) -> None:
        state = {name: tensor.to(stored) for name, tensor in made(Net).layers.state_dict().items()}
        model = made(Net, 1).layers.to(torch.bfloat16)
        memory = memory_of(model)
        torchwick.load_model(model, saved(state))
        assert_filled(model, state)
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
        assert memory_of(model) == memory

    def test_views_of_one_buffer(self, saved: Any) -> None:
        class Flat(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.flat: torch.Tensor
                self.register_buffer("flat", torch.randn(20), persistent=False)
                self.a = nn.Parameter(self.flat[:6].view(2, 3))
                self.b = nn.Parameter(self.flat[6:])

        state, model = state_of(made(Flat)), made(Flat, 1)
        torchwick.load_model(model, saved(state))
        assert torch.equal(model.flat, torch.cat([state["a"].view(-1), state["b"]]))

    def test_a_buffer_whose_elements_are_one_in_memory(self, saved: Any) -> None:
        model = nn.Linear(2, 2)
        model.register_buffer("ids", torch.zeros(1).expand(5))
        state = state_of(model) | {"ids": torch.arange(5.0)}
        torchwick.load_model(model, saved(state))
        assert_filled(model, state)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.Linear(3, 2),
            lambda: nn.ParameterList([torch.randn(2), torch.randn(3)]),
            lambda: nn.ParameterDict(
                {"a b": torch.randn(2), "ü/{}%*": torch.randn(3), "[x]": torch.randn(2)}
            ),
            channels_last,
            lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2),
            lambda: nn.MultiheadAttention(8, 2),
            lambda: nn.InstanceNorm1d(3, track_running_stats=True),
            nn.Sequential,
        ],
        ids=["leaf", "list", "dict", "channels last", "twice", "attention", "norm", "nothing"],
    )
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_modules_of_all_kinds(self, make: Any, device: str, saved: Any) -> None:
        state, model, expected = state_of(made(make)), made(make, 1, device), made(make, 1)
        assert torchwick.load_model(model, saved(state)) == ([], [])
        expected.load_state_dict(state)
        assert_filled(model, expected.state_dict())
        strides = [tensor.stride() for tensor in model.state_dict().values()]
        assert strides == [tensor.stride() for tensor in expected.state_dict().values()]
        assert [type(t) for t in model.parameters()] == [type(t) for t in expected.parameters()]

    @pytest.mark.parametrize("context", [torch.inference_mode, partial(torch.device, "meta"), torch.no_grad])
    def test_contexts(self, context: Any, saved: Any) -> None:
        state, model = state_of(made(Net)), made(Net, 1)
        with context():
            torchwick.load_model(model, saved(state))
        assert_filled(model, state)

    def test_a_module_of_inference_mode(self, saved: Any) -> None:
        with torch.inference_mode():
            model = made(Net, 1)
        state = state_of(made(Net))
        torchwick.load_model(model, saved(state))
        assert_filled(model, state)

    def test_fake_tensors_hold_nothing(self, saved: Any) -> None:
        path = saved(state_of(nn.Linear(2, 2)))
        with FakeTensorMode(), pytest.raises(ValueError, match="FakeTensorMode"):
            torchwick.load_model(nn.Linear(2, 2), path)

    def test_four_bit_floats(self, tmp_path: Path) -> None:
        four = getattr(torch, "float4_e2m1fn_x2", None)
        if four is None:
            pytest.skip("this torch has none")
        bits = torch.arange(12, dtype=torch.uint8).view(3, 4)
        model = nn.Module()
        model.register_buffer("w", torch.zeros(3, 4, dtype=torch.uint8).view(four))
        header = json.dumps({"w": {"dtype": "F4", "shape": [3, 8], "data_offsets": [0, 12]}}).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bits.numpy().tobytes())
        torchwick.load_model(model, path, dtype="bf16")
        assert torch.equal(model.w.view(torch.uint8), bits)  # type: ignore[operator]

    def test_what_is_no_module(self, saved: Any) -> None:
        with pytest.raises(TypeError, match=r"a torch\.nn\.Module is filled, not a dict"):
            torchwick.load_model({}, saved({"a": torch.ones(2)}))  # type: ignore[arg-type]


# -- into memory that is made ------------------------------------------------------------------------------


class TestMeta:
    @every_format
    def test_every_tensor_gets_memory_of_its_own(self, write: Any, tmp_path: Path) -> None:
        state, model = state_of(made(Net)), made(Net, 1, "meta")
        with torch.device("cpu"):
            model.register_buffer("frequencies", torch.ones(2), persistent=False)
        uri = write(state, tmp_path)
        assert torchwick.load_model(model, uri, transfer=PARTS) == ([], [])
        assert_filled(model, state)
        assert model.head.weight is model.embed.weight
        expected = made(Net, 1)
        assert [p.requires_grad for p in model.parameters()] == [
            p.requires_grad for p in expected.parameters()
        ]
        assert all(isinstance(p, nn.Parameter) for p in model.parameters())
        expected.load_state_dict(state)
        x = torch.randn(2, 3, 8)
        assert torch.equal(model.rnn(x)[0], expected.rnn(x)[0])

    @pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
    def test_one_name_of_tied_weights_is_enough(self, kept: str, saved: Any) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(10, 4)
                self.head = nn.Linear(4, 10, bias=False)
                self.head.weight = self.embed.weight

        weight = torch.randn(10, 4)
        for device in ("cpu", "meta"):
            model = made(Tied, 1, device)
            assert torchwick.load_model(model, saved({kept: weight})) == ([], [])
            assert model.head.weight is model.embed.weight
            assert torch.equal(model.head.weight, weight)

    def test_ties_that_safetensors_notes(self, tmp_path: Path) -> None:
        model, other = made(Net), made(Net, 1)
        with quiet():
            safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
        torchwick.load_model(other, tmp_path / "model.safetensors")
        assert_filled(other, model.state_dict())

    def test_buffers_that_no_checkpoint_has(self, saved: Any) -> None:
        state, model = state_of(made(Net)), made(Net, 1, "meta")
        with pytest.raises(StateDictError, match="1 is missing: frequencies") as caught:
            torchwick.load_model(model, saved(state))
        assert "Buffers that are not saved" in str(caught.value.hint)
        assert caught.value.missing == ("frequencies",)
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        assert torchwick.load_model(model, saved(state), strict=False) == (["frequencies"], [])
        assert_filled(model, state)
        assert model.frequencies.is_meta

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_counter_that_old_checkpoints_lack(self, device: str, saved: Any) -> None:
        state = state_of(made(lambda: nn.BatchNorm1d(3)))
        counter = state.pop("num_batches_tracked")
        model = made(lambda: nn.BatchNorm1d(3), 1, device)
        assert torchwick.load_model(model, saved(state)) == ([], [])
        assert_filled(model, state | {"num_batches_tracked": counter})

    def test_a_module_that_is_partly_there(self, saved: Any) -> None:
        state, model = state_of(made(Net).layers), made(Net, 1).layers
        model[2].to("meta")
        memory = model[0].weight.data_ptr()
        torchwick.load_model(model, saved(state))
        assert_filled(model, state)
        assert model[0].weight.data_ptr() == memory

    def test_strict_is_about_names_alone(self, saved: Any) -> None:
        model = made(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 1, "meta")
        state = {"1.weight": torch.ones(2, 2), "other": torch.ones(3)}
        result = torchwick.load_model(model, saved(state), strict=False)
        assert result.missing == ["0.weight", "0.bias", "1.bias"]
        assert result.unexpected == ["other"]
        assert torch.equal(model[1].weight, torch.ones(2, 2))
        assert model[0].weight.is_meta

    def test_meta_is_no_place_to_load_to(self, saved: Any) -> None:
        with pytest.raises(ValueError, match="holds no elements"):
            torchwick.load_model(nn.Linear(2, 2), saved(state_of(nn.Linear(2, 2))), device="meta")


class TestDtype:
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize("limit", ["1MB", "auto"])
    @every_format
    def test_floats_alone_are_cast(self, write: Any, device: str, limit: str, tmp_path: Path) -> None:
        state, model = state_of(made(Net)), made(Net, 1, device)
        model.register_buffer("frequencies", torch.ones(2), persistent=False)
        config = TransferConfig(part_size=256 << 10, memory_limit=limit)
        torchwick.load_model(model, write(state, tmp_path), dtype="bf16", transfer=config)
        assert_filled(model, state)
        kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        assert kinds == {
            name: torch.bfloat16 if tensor.is_floating_point() else tensor.dtype
            for name, tensor in state.items()
        }
        assert model.head.weight is model.embed.weight
        assert model.frequencies.dtype is torch.float32
        model.float().rnn(torch.randn(1, 2, 8))

    @pytest.mark.parametrize(
        ("stored", "wanted"),
        [
            (torch.bfloat16, torch.float32),
            (torch.float8_e4m3fn, torch.float32),
            (torch.float8_e5m2, torch.float16),
            (torch.float64, torch.float16),
            (torch.float32, torch.float8_e4m3fn),
            (torch.float32, torch.float32),
        ],
        ids=str,
    )
    def test_casts(self, stored: torch.dtype, wanted: torch.dtype, saved: Any) -> None:
        state = {"weight": torch.randn(300, 200).to(stored), "bias": torch.randn(300).to(stored)}
        for device in ("cpu", "meta"):
            model = made(lambda: nn.Linear(200, 300), 1, device)
            torchwick.load_model(model, saved(state), dtype=wanted)
            assert_filled(model, {name: tensor.to(wanted) for name, tensor in state.items()})
            assert model.weight.dtype is wanted

    def test_the_parameter_stays_the_same_one(self, saved: Any) -> None:
        model = nn.Linear(2, 2)
        weight = model.weight
        torchwick.load_model(model, saved(state_of(nn.Linear(2, 2))), dtype=torch.float64)
        assert model.weight is weight
        assert weight.dtype is torch.float64

    @pytest.mark.parametrize("dtype", ["int8", "complex64", "F4", "nonsense"])
    def test_what_is_no_dtype_to_cast_to(self, dtype: str, saved: Any) -> None:
        with pytest.raises(ValueError, match="no floating-point dtype"):
            torchwick.load_model(nn.Linear(2, 2), saved(state_of(nn.Linear(2, 2))), dtype=dtype)


# -- devices, without one ----------------------------------------------------------------------------------


class TestDevices:
    def test_all_of_it_goes_through_memory_that_is_used_again(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        lent: list[int] = []

        def pinned(nbytes: int, uri: object) -> torch.Tensor:
            lent.append(nbytes if nbytes >= MIB else 0)
            return tensors.allocate(nbytes, uri)

        monkeypatch.setattr(feeding, "lies_as_stored", lambda *_: False)
        monkeypatch.setattr(feeding, "allocator", lambda targets: pinned)
        state = {f"{n}.weight": torch.randn(1024, 600) for n in range(12)}
        model = made(lambda: nn.Sequential(*(nn.Linear(600, 1024, bias=False) for _ in range(12))), 1)
        config = TransferConfig(part_size=256 << 10, memory_limit="8MB")
        torchwick.load_model(model, write_safetensors(state, tmp_path), transfer=config)
        assert_filled(model, state)
        assert 0 < sum(lent) <= 9 * MIB < sum(tensor.nbytes for tensor in state.values())

    @pytest.mark.parametrize(
        ("kinds", "is_pinned"),
        [
            (["cpu"], False),
            (["meta", "cpu"], False),
            (["cpu", "cuda"], True),
            (["xpu"], True),
            (["mps"], False),
        ],
    )
    def test_memory_that_devices_copy_from(self, kinds: list[str], is_pinned: bool) -> None:
        class At:
            def __init__(self, kind: str) -> None:
                self.device = torch.device(kind)

        targets: Any = map(At, kinds)
        assert (feeding.allocator(targets) is feeding._pinned) is is_pinned

    def test_a_device_that_is_not_there(self, saved: Any) -> None:
        if torch.cuda.is_available():
            pytest.skip("it is there")
        model = made(Net, 1)
        before = state_of(model)
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            torchwick.load_model(model, saved(state_of(made(Net))), device="cuda")
        assert_filled(model, before)

    def test_used_memory_is_given_up_for_other_sizes(self) -> None:
        made_: list[int] = []

        def allocate(nbytes: int, uri: object) -> torch.Tensor:
            made_.append(nbytes)
            return torch.empty(nbytes, dtype=torch.uint8)

        ring = Ring(16 * MIB, allocate)
        for size in (4 * MIB, 3 * MIB, 2 * MIB, 5 * MIB):
            lent = [ring.lend(size, "x") for _ in range(16 * MIB // size)]
            assert ring._held <= 16 * MIB
            for memory in lent:
                ring.give_back(memory)
        assert sum(made_) <= 4 * 16 * MIB
        assert ring.lend(5 * MIB, "x").numel() == 5 * MIB
        assert len(made_) == 4 + 5 + 8 + 3


# -- modules with loading code of their own ----------------------------------------------------------------


class Renaming(nn.Module):
    """Takes checkpoints of an earlier version of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embed.weight
        self.ln = nn.LayerNorm(4, dtype=torch.float64)
        self.ln.bias.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for old, new in (("gamma", "ln.weight"), ("beta", "ln.bias")):
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.count = 0

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.count)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.count = int(state)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(4)


def hooked() -> nn.Module:
    model: Any = nn.Linear(2, 3)
    model.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: state.pop("old", None))
    return model  # type: ignore[no-any-return]


def patched() -> nn.Module:
    """A module whose own method stands in for that of its class."""
    model: Any = nn.Linear(2, 3)
    usual = model._load_from_state_dict

    def load(state_dict: Any, *rest: Any) -> None:
        usual({name: tensor * 2 for name, tensor in state_dict.items()}, *rest)

    model._load_from_state_dict = load
    return model  # type: ignore[no-any-return]


class TestOwnCode:
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize(
        "make",
        [
            Renaming,
            Extra,
            hooked,
            patched,
            lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
            lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
        ],
    )
    def test_it_is_what_load_state_dict_makes_of_it(self, make: Any, device: str, saved: Any) -> None:
        state, model, expected = state_of(made(make)), made(make, 1, device), made(make, 1)
        assert torchwick.load_model(model, saved(state)) == ([], [])
        expected.load_state_dict(state)
        assert_filled(model, expected.state_dict())
        assert [(p.dtype, p.requires_grad) for p in model.parameters()] == [
            (p.dtype, p.requires_grad) for p in expected.parameters()
        ]

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_its_own_names(self, device: str, saved: Any) -> None:
        state, model = state_of(made(Renaming)), made(Renaming, 1, device)
        old = {"ln.weight": "gamma", "ln.bias": "beta"}
        stored = {old.get(name, name): tensor for name, tensor in state.items()}
        assert torchwick.load_model(model, saved(stored)) == ([], [])
        assert_filled(model, state)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_ties_stay(self, device: str, saved: Any) -> None:
        state, model = state_of(made(Renaming)), made(Renaming, 1, device)
        without = {name: tensor for name, tensor in state.items() if name != "head.weight"}
        assert torchwick.load_model(model, saved(without)) == ([], [])
        assert model.head.weight is model.embed.weight
        assert_filled(model, state)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_the_dtype_is_the_module_own(self, device: str, saved: Any) -> None:
        state = {name: tensor.half() for name, tensor in state_of(made(Renaming)).items()}
        model = made(Renaming, 1, device)
        torchwick.load_model(model, saved(state))
        assert [model.head.bias.dtype, model.ln.bias.dtype] == [torch.float32, torch.float64]
        assert_filled(model, state)

    def test_another_dtype(self, saved: Any) -> None:
        state, model = state_of(made(Renaming)), made(Renaming, 1)
        torchwick.load_model(model, saved(state), dtype="fp16")
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}
        assert model.head.weight is model.embed.weight
        assert_filled(model, state)

    def test_lazy_modules(self, saved: Any) -> None:
        state = {"linear.weight": torch.ones(4, 3), "linear.bias": torch.ones(4)}
        model = Lazy()
        torchwick.load_model(model, saved(state))
        assert_filled(model, state)
        with pytest.raises(StateDictError, match=r"1 is missing: linear\.bias"):
            torchwick.load_model(Lazy(), saved({"linear.weight": torch.ones(4, 3)}))

    def test_what_does_not_fit(self, saved: Any) -> None:
        state = state_of(made(Renaming)) | {"head.bias": torch.ones(7)}
        with pytest.raises(StateDictError, match=r"head\.bias \(\[7\] in the checkpoint") as caught:
            torchwick.load_model(made(Renaming, 1), saved(state))
        assert caught.value.mismatched == {"head.bias": ((6,), (7,))}
        assert str(caught.value).endswith(PARTLY)

    def test_what_torch_cannot_do(self, saved: Any) -> None:
        model: Any = nn.Linear(2, 2)

        def refuse(*_: object) -> None:
            raise RuntimeError("not\n\tthis one")

        model.register_load_state_dict_pre_hook(refuse)
        with pytest.raises(StateDictError, match="it does not fit the module: not this one"):
            torchwick.load_model(model, saved(state_of(model)))

    def test_what_is_missing_and_unexpected(self, saved: Any) -> None:
        state = {f"model.{name}": tensor for name, tensor in state_of(made(Renaming)).items()}
        model = made(Renaming, 1)
        with pytest.raises(StateDictError, match=r"Pass rename=\('model\.', ''\)") as caught:
            torchwick.load_model(model, saved(state))
        assert "head.bias" in caught.value.missing
        torchwick.load_model(model, saved(state), rename=("model.", ""))
        assert_filled(model, {name.removeprefix("model."): tensor for name, tensor in state.items()})

    def test_one_that_is_missing_is_no_buffer_of_its_own(self, saved: Any) -> None:
        state = state_of(made(Renaming))
        del state["head.bias"]
        with pytest.raises(StateDictError, match=r"1 is missing: head\.bias") as caught:
            torchwick.load_model(made(Renaming, 1), saved(state))
        assert "or pass strict=False" in str(caught.value.hint)

    def test_buffers_that_no_checkpoint_has(self, saved: Any) -> None:
        model = made(Renaming, 1, "meta")
        model.register_buffer("ids", torch.ones(2, device="meta"), persistent=False)
        state = state_of(made(Renaming))
        with pytest.raises(StateDictError, match="1 is missing: ids"):
            torchwick.load_model(model, saved(state))
        assert torchwick.load_model(model, saved(state), strict=False) == (["ids"], [])


# -- what does not fit -------------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def prefixed(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def refused(model: nn.Module, uri: object, **options: Any) -> StateDictError:
    """Have it be refused, without a byte of the module being changed."""
    before = state_of(model)
    with pytest.raises(StateDictError) as caught:
        torchwick.load_model(model, uri, **options)  # type: ignore[arg-type]
    assert_filled(model, before)
    assert caught.value.uri == str(uri)
    assert PARTLY not in str(caught.value)
    return caught.value


class TestMisfits:
    def test_what_is_missing(self, saved: Any) -> None:
        state = state_of(made(small))
        del state["2.bias"]
        error = refused(made(small, 1), path := saved(state))
        assert (error.missing, error.unexpected, error.mismatched) == (("2.bias",), (), {})
        assert str(error) == (
            f"{path}: it does not fit the module: 1 is missing: 2.bias. Build the module that the checkpoint "
            "was saved from, or pass strict=False to load what fits."
        )

    def test_what_is_unexpected(self, saved: Any) -> None:
        state = state_of(made(small)) | {"3.bias": torch.ones(2), "3.weight": torch.ones(2)}
        error = refused(made(small, 1), path := saved(state))
        assert (error.missing, error.unexpected) == ((), ("3.bias", "3.weight"))
        assert str(error).startswith(
            f"{path}: it does not fit the module: 2 are unexpected: 3.bias, 3.weight. Build "
        )

    @pytest.mark.parametrize("strict", [True, False])
    def test_other_shapes(self, strict: bool, saved: Any) -> None:
        state = state_of(made(small)) | {"2.weight": torch.ones(2, 5), "2.bias": torch.ones(())}
        error = refused(made(small, 1), path := saved(state), strict=strict)
        assert error.mismatched == {"2.weight": ((2, 4), (2, 5)), "2.bias": ((2,), ())}
        assert str(error) == (
            f"{path}: it does not fit the module: 2 have other shapes: 2.weight ([2, 5] in the checkpoint, "
            "[2, 4] in the module), 2.bias ([] in the checkpoint, [2] in the module). Build the module with "
            "the sizes that the checkpoint was trained with."
        )

    def test_long_names_and_long_lists_are_cut_short(self, saved: Any) -> None:
        state = {f"{n}{'x' * 5000}": torch.ones(1) for n in range(99)}
        error = refused(nn.Linear(1, 1), saved(state))
        assert len(str(error)) - len(str(error.uri)) < 1200
        assert "94 more" in str(error)
        assert len(error.unexpected) == 99

    @pytest.mark.parametrize(
        ("there", "wanted", "hint"),
        [
            ("state_dict.", "", "Pass rename=('state_dict.', '')."),
            ("module.", "", "Pass rename=('module.', '')."),
            ("model.", "", "Pass rename=('model.', '')."),
            ("", "encoder.", "Pass rename=('', 'encoder.')."),
            ("model.", "encoder.", "Pass rename=('model.', 'encoder.')."),
            ("state_dict.model.net.", "", "Pass rename=('state_dict.model.net.', '')."),
        ],
    )
    def test_the_name_it_likely_has(self, there: str, wanted: str, hint: str, saved: Any) -> None:
        def make() -> nn.Module:
            return nn.ModuleDict({"encoder": small()}) if wanted else small()

        state = state_of(made(make))
        path = saved({there + name.removeprefix(wanted): tensor for name, tensor in state.items()})
        model = made(make, 1)
        error = refused(model, path)
        assert error.hint == hint
        options = eval(f"dict({hint.removeprefix('Pass ').removesuffix('.')})")
        torchwick.load_model(model, path, **options)
        assert_filled(model, state)

    def test_a_checkpoint_of_a_trainer(self, saved: Any) -> None:
        model = made(small, 1)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        state = state_of(made(small))
        path = saved(
            {
                "epoch": 3,
                "state_dict": prefixed("model.", state),
                "optimizer_states": [optimizer.state_dict()],
                "callbacks": {"best": torch.tensor(0.5)},
            }
        )
        error = refused(model, path)
        assert error.hint == "Pass keys='state_dict.model.*', rename=('state_dict.model.', '')."
        torchwick.load_model(model, path, keys="state_dict.model.*", rename=("state_dict.model.", ""))
        assert_filled(model, state)

    def test_the_hint_names_what_the_checkpoint_has(self, saved: Any) -> None:
        error = refused(made(small, 1), saved(prefixed("a.b.", state_of(made(small)))), rename=("a.", "c."))
        assert error.hint == "Pass rename=('a.b.', '')."
        assert error.unexpected[0].startswith("c.b.")


class TestRename:
    @pytest.mark.parametrize(
        "rename",
        [
            ("model.", ""),
            {"model.": ""},
            {"model.1.": "1.", "model.": ""},
            lambda name: name.removeprefix("model."),
        ],
        ids=["pair", "mapping", "longest first", "function"],
    )
    def test_names(self, rename: Any, saved: Any) -> None:
        state, model = state_of(made(small)), made(small, 1)
        assert torchwick.load_model(model, saved(prefixed("model.", state)), rename=rename) == ([], [])
        assert_filled(model, state)

    @pytest.mark.parametrize(
        ("rename", "error", "says"),
        [
            (lambda name: "same", ValueError, "rename gives two tensors the name 'same'"),
            ({"0.": "2."}, ValueError, "rename gives two tensors the name '2.weight'"),
            (("modle.", ""), ValueError, "no tensor's name begins with 'modle.'"),
            (lambda name: None, TypeError, "rename gives '0.weight' no name, but NoneType"),
        ],
    )
    def test_what_cannot_be(self, rename: Any, error: type[Exception], says: str, saved: Any) -> None:
        model = made(small, 1)
        before = state_of(model)
        with pytest.raises(error, match=says):
            torchwick.load_model(model, saved(state_of(made(small))), rename=rename)
        assert_filled(model, before)

    @pytest.mark.parametrize("keys", ["encoder.*", ["0.weight", "9.bias"]])
    def test_keys_that_mean_none(self, keys: Any, saved: Any) -> None:
        model = made(small, 1)
        before = state_of(model)
        with pytest.raises(TensorNotFoundError):
            torchwick.load_model(model, saved(state_of(made(small))), keys=keys)
        assert_filled(model, before)

    @pytest.mark.parametrize("keys", ["2.*", ["2.weight", "2.bias"], lambda name: name.startswith("2.")])
    def test_keys(self, keys: Any, saved: Any) -> None:
        state, model = state_of(made(small)), made(small, 1)
        before = state_of(model)
        result = torchwick.load_model(model, saved(state), keys=keys, strict=False)
        assert result.unexpected == []
        assert "2.weight" not in result.missing
        assert len(result.missing) == len(state) - 3  # of which one is a counter
        assert_filled(model, before | {name: state[name] for name in ("2.weight", "2.bias")})

    def test_a_part_of_a_module(self, saved: Any) -> None:
        state, model = state_of(made(small)), made(small, 1)
        torchwick.load_model(model[2], saved(state), keys="2.*", rename=("2.", ""))
        assert torch.equal(model[2].weight, state["2.weight"])


# -- failures in the middle --------------------------------------------------------------------------------


def wide() -> nn.Module:
    """8 MB, of eight tensors."""
    return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(8)))


@pytest.fixture(scope="module")
def stored() -> bytes:
    return safetensors.torch.save(state_of(made(wide)))


@pytest.fixture
def served(faulty_s3: FaultyServer, stored: bytes) -> FaultyServer:
    faulty_s3.put("models/new.safetensors", stored, checksum="crc64nvme")
    return faulty_s3


URI = "s3://models/new.safetensors"


def _late(request: Request) -> bool:
    return request.range is not None and request.range[0] > 4 * MIB


class TestFailures:
    """Of a module in its own memory: it may be partly filled, and the error says so."""

    def fails(self, kind: type[BaseException], **options: Any) -> Any:
        model = made(wide, 1)
        with pytest.raises(kind) as caught:
            torchwick.load_model(model, URI, **{"transfer": QUICK, **options})
        return caught.value

    def spares(self, kind: type[BaseException], **options: Any) -> None:
        """Have what is new memory be left out of the module when its reading fails."""
        before = state_of(made(wide, 1))
        model = made(wide, 1)
        with pytest.raises(kind) as caught:
            torchwick.load_model(model, URI, **{"transfer": QUICK, "dtype": "bf16", **options})
        assert PARTLY not in str(caught.value)
        assert not hasattr(caught.value, "__notes__")
        assert_filled(model, before)
        assert model[0].weight.dtype is torch.float32
        model = made(wide, 1, "meta")
        with pytest.raises(kind):
            torchwick.load_model(model, URI, **{"transfer": QUICK, **options})
        assert all(parameter.is_meta for parameter in model.parameters())

    def test_cut_for_good(self, served: FaultyServer) -> None:
        served.on(Cut(after=1000), where=_late)
        error = self.fails(TransferError)
        assert str(error).endswith(PARTLY)
        assert error.hint.endswith(PARTLY)
        assert error.uri == URI
        assert error.__cause__ is not None
        self.spares(TransferError)

    def test_the_object_changes(self, served: FaultyServer, stored: bytes) -> None:
        def change() -> None:
            served.put("models/new.safetensors", stored[:-1] + b"\xff")

        served.on(change, where=_late, nth=1)
        assert str(self.fails(ObjectChangedError)).endswith(PARTLY)

    def test_a_flipped_byte(self, served: FaultyServer) -> None:
        served.on(FlipByte(5 * MIB))
        error = self.fails(IntegrityError)
        assert error.algorithm == "crc64nvme"
        assert str(error).endswith(PARTLY)
        self.spares(IntegrityError)

    def test_what_is_refused_in_the_middle(self, served: FaultyServer) -> None:
        served.on(S3Error(403, "ExpiredToken"), where=_late)
        assert str(self.fails(CredentialsError)).endswith(PARTLY)

    @pytest.mark.parametrize("code", ["InvalidAccessKeyId", "AccessDenied"])
    def test_what_is_refused_at_once_leaves_it_as_it_was(self, code: str, served: FaultyServer) -> None:
        served.on(S3Error(403, code), method=None)
        error = self.fails(torchwick.StoreError)
        assert PARTLY not in str(error)

    def test_an_exception_of_the_callers_own(self, served: FaultyServer) -> None:
        def give_up(progress: Progress) -> None:
            raise LookupError("enough")

        served.on(Stall(1000), where=_late)
        error = self.fails(LookupError, progress=give_up, transfer=TransferConfig(part_size=256 << 10))
        assert error.__notes__ == [PARTLY]

    def test_ctrl_c(self, served: FaultyServer) -> None:
        served.on(Stall(1000), where=_late)
        interrupt = lambda _: signal.raise_signal(signal.SIGINT)  # noqa: E731
        patient = TransferConfig(part_size=256 << 10, timeout=30)
        began = time.monotonic()
        error = self.fails(KeyboardInterrupt, progress=interrupt, transfer=patient)
        assert error.__notes__ == [PARTLY]
        self.spares(KeyboardInterrupt, progress=interrupt, transfer=patient)
        assert time.monotonic() - began < 10

    def test_ctrl_c_while_it_waits(self, served: FaultyServer) -> None:
        """In a process of its own, whose main thread has nothing to do but wait."""
        stuck = threading.Event()
        served.on(Stall(1000), where=_late)
        served.on(stuck.set, where=_late, nth=1)
        script = (
            "import sys, threading, torch, torchwick\n"
            "model = torch.nn.Sequential(*(torch.nn.Linear(512, 512, bias=False) for _ in range(8)))\n"
            "try:\n"
            "    torchwick.load_model(model, sys.argv[1])\n"
            "except KeyboardInterrupt as error:\n"
            "    print(threading.active_count(), error.__notes__)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, URI], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        with process:
            try:
                assert stuck.wait(30)
                time.sleep(0.1)
                process.send_signal(signal.SIGINT)
                out, _ = process.communicate(timeout=20)
            finally:
                process.kill()
        assert out == f"1 {[PARTLY]}\n"

    @pytest.mark.parametrize("verify", [True])
    def test_nothing_to_verify_by_leaves_it_as_it_was(
        self, verify: Any, faulty_s3: FaultyServer, stored: bytes
    ) -> None:
        faulty_s3.put("models/new.safetensors", stored)
        model = made(wide, 1)
        before = state_of(model)
        with pytest.raises(IntegrityError) as caught:
            torchwick.load_model(model, URI, verify=verify, transfer=QUICK)
        assert PARTLY not in str(caught.value)
        assert_filled(model, before)

    def test_a_limit_that_is_too_low_leaves_it_as_it_was(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.randn(600, 500).t()}, tmp_path / "model.pt")
        model = nn.Linear(600, 500, bias=False)
        before = state_of(model)
        with pytest.raises(MemoryLimitError, match="'weight' takes 1200000 bytes") as caught:
            torchwick.load_model(model, tmp_path / "model.pt", transfer=TransferConfig(memory_limit="1MB"))
        assert PARTLY not in str(caught.value)
        assert_filled(model, before)

    def test_another_file_than_the_one_that_was_pinned(self, served: FaultyServer) -> None:
        model = made(wide, 1)
        before = state_of(model)
        with pytest.raises(IntegrityError) as caught:
            torchwick.load_model(model, URI, sha256="00" * 32, transfer=QUICK)
        assert PARTLY not in str(caught.value)
        assert_filled(model, before)

    def test_a_module_with_code_of_its_own_is_read_for_first(self, served: FaultyServer) -> None:
        served.on(Cut(after=1000), where=_late)
        model = made(wide, 1)
        model.register_load_state_dict_pre_hook(lambda *_: None)
        before = state_of(model)
        with pytest.raises(TransferError) as caught:
            torchwick.load_model(model, URI, transfer=QUICK)
        assert PARTLY not in str(caught.value)
        assert_filled(model, before)

    def test_it_can_be_loaded_again(self, served: FaultyServer) -> None:
        served.on(Cut(after=1000), where=_late, nth=range(1, 9))
        model = made(wide, 1)
        with contextlib.suppress(TransferError):
            torchwick.load_model(model, URI, transfer=QUICK)
        served.behave()
        torchwick.load_model(model, URI)
        assert_filled(model, state_of(made(wide)))


# -- everything a load has ---------------------------------------------------------------------------------


class TestOptions:
    def filled(self, **options: Any) -> LoadReport:
        reports: list[LoadReport] = []
        model = made(wide, 1)
        torchwick.load_model(model, URI, on_report=reports.append, **{"transfer": PARTS, **options})
        assert_filled(model, state_of(made(wide)))
        [report] = reports
        return report

    def test_the_report(self, served: FaultyServer, stored: bytes) -> None:
        report = self.filled()
        assert (report.uri, report.format, report.method) == (URI, "safetensors", "filled")
        assert report.size == len(stored) <= report.bytes_read <= len(stored) + MIB
        assert (report.verified, report.retries, report.version) == ("crc64nvme", 0, None)
        assert report.etag == f'"{hashlib.md5(stored).hexdigest()}"'
        assert report.connections <= 4
        assert report.requests >= 8

    def test_every_byte_is_asked_for_once(self, served: FaultyServer, stored: bytes) -> None:
        self.filled()
        ranges = [r.range for r in served.requests if r.method == "GET" and r.range is not None]
        asked = sum(min(stop or math.inf, len(stored)) - start for start, stop in ranges)
        assert asked <= len(stored) + (256 << 10)  # where the first bytes end, a part begins

    @pytest.mark.parametrize(
        ("verify", "verified"), [("auto", "crc64nvme"), (True, "crc64nvme"), (False, None)]
    )
    def test_verify(self, verify: Any, verified: str | None, served: FaultyServer) -> None:
        assert self.filled(verify=verify).verified == verified

    def test_a_pinned_file(self, served: FaultyServer, stored: bytes) -> None:
        assert self.filled(sha256=hashlib.sha256(stored).hexdigest()).verified == "sha256"

    def test_progress(self, served: FaultyServer, stored: bytes) -> None:
        seen: list[Progress] = []
        threads: set[int] = set()
        served.on(S3Error(503, "SlowDown"), where=_late, nth=1)

        def watch(progress: Progress) -> None:
            seen.append(progress)
            threads.add(threading.get_ident())

        self.filled(progress=watch)
        assert threads == {threading.get_ident()}
        assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
        assert {(progress.uri, progress.total) for progress in seen} == {(URI, seen[-1].total)}
        assert seen[-1].fraction == 1
        assert 0.9 * len(stored) < seen[-1].total <= len(stored)

    def test_a_bar(self, served: FaultyServer, capsys: Any) -> None:
        self.filled(progress=True)
        out, err = capsys.readouterr()
        assert (out, "100%" in err) == ("", True)

    @pytest.mark.parametrize("length", ["content-length", "chunked"])
    @pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}], ids=["own", "cast"])
    def test_a_server_without_ranges(
        self, length: Any, options: Any, faulty: FaultyServer, stored: bytes
    ) -> None:
        url = faulty.put("new.safetensors", stored)
        faulty.on(IgnoreRange(length))
        model = made(wide, 1)
        torchwick.load_model(model, url, **options)
        assert_filled(model, state_of(made(wide)))

    def test_what_fails_now_and_then(self, served: FaultyServer) -> None:
        served.on(Cut(after=1000), where=_late, nth=1)
        served.on(S3Error(503, "SlowDown"), where=_late, nth=3)
        assert self.filled().retries == 2

    def test_one_version(self, aws_env: object, bucket: str, s3_client: Any, tmp_path: Path) -> None:
        s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        versions = [
            s3_client.put_object(Bucket=bucket, Key="m.safetensors", Body=safetensors.torch.save(state))[
                "VersionId"
            ]
            for state in (state_of(made(small)), state_of(made(small, 2)))
        ]
        model, reports = made(small, 1), list[LoadReport]()
        torchwick.load_model(
            model, f"s3://{bucket}/m.safetensors?versionId={versions[0]}", on_report=reports.append
        )
        assert_filled(model, state_of(made(small)))
        assert reports[0].version == versions[0]

    def test_only_what_is_wanted_is_read(self, served: FaultyServer) -> None:
        reports: list[LoadReport] = []
        model = made(wide, 1)
        torchwick.load_model(
            model[3], URI, keys="3.*", rename=("3.", ""), on_report=reports.append, transfer=PARTS
        )
        assert torch.equal(model[3].weight, state_of(made(wide))["3.weight"])
        assert reports[0].bytes_read < 2.2 * MIB

    def test_what_is_no_checkpoint(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/new.safetensors", random_bytes(9000))
        with pytest.raises(FormatError):
            torchwick.load_model(made(wide, 1), URI)

    def test_eight_at_once(self, served: FaultyServer) -> None:
        models = [made(wide, 1) for _ in range(8)]
        threads = [
            threading.Thread(target=torchwick.load_model, args=(model, URI), kwargs={"transfer": PARTS})
            for model in models
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for model in models:
            assert_filled(model, state_of(made(wide)))


# -- any module --------------------------------------------------------------------------------------------

SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
KINDS = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
)


@st.composite
def modules(draw: st.DrawFn) -> tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]:
    """A module, another one like it, and a state dict for both; tied in places, and of other dtypes."""
    pair = nn.Module(), nn.Module()
    state: dict[str, torch.Tensor] = {}
    for number in range(draw(st.integers(0, 7))):
        shape, kind = draw(SHAPES), draw(KINDS)
        stored = draw(KINDS) if kind.is_floating_point else kind
        stored = stored if stored.is_floating_point == kind.is_floating_point else kind
        value = (torch.rand(shape) * 3).to(stored)
        ties = draw(st.integers(1, 2))
        transposed = draw(st.booleans()) and len(shape) == 2
        for model in pair:
            tensor = torch.zeros(shape, dtype=kind)
            tensor = tensor.t().contiguous().t() if transposed else tensor
            held: Any = nn.Parameter(tensor) if kind.is_floating_point else tensor
            for tie in range(ties):
                child = nn.Module()
                if isinstance(held, nn.Parameter):
                    child.register_parameter("w", held)
                else:
                    child.register_buffer("w", held)
                model.add_module(f"{number}-{tie}", child)
        state |= {f"{number}-{tie}.w": value for tie in range(ties)}
    if draw(st.booleans()):
        state = {name: tensor.clone() for name, tensor in state.items()}
    return *pair, state


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    modules=modules(),
    write=st.sampled_from([write_safetensors, write_zip, write_legacy]),
    limit=st.sampled_from(["auto", 4096 * 16, "1MB"]),
    part_size=st.sampled_from(["auto", 64 << 10]),
    own=st.booleans(),
)
def test_any_module(modules: Any, write: Any, limit: Any, part_size: Any, own: bool) -> None:
    model, expected, state = modules
    config = TransferConfig(memory_limit=limit, part_size=part_size)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(state, Path(folder))
        memory = memory_of(model)
        ties = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
        if not own:
            model = model.to("meta")
            ties = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
        torchwick.load_model(model, path, transfer=config)
    expected.load_state_dict(state)
    assert_filled(model, expected.state_dict())
    found = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    names = list(found)
    assert [[found[a] == found[b] for a in names] for b in names] == [
        [ties[a] == ties[b] for a in names] for b in names
    ]
    if own:
        assert memory_of(model) == memory


# -- the memory of the process -----------------------------------------------------------------------------

PEAK = """
import pathlib, re, sys, torch, torchwick
from torch import nn

def status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", text)[1]) * 1024

def make(device):
    with torch.device(device):
        return nn.Sequential(*(nn.Linear(2048, rows, bias=False) for rows in [1152, 1920, 640, 2560] * 4))

small, large = sys.argv[1:]
torchwick.load_model(nn.Linear(2, 2), small, dtype="bf16")  # imports and connections are not the model's
limit = torchwick.TransferConfig(memory_limit="64MB")
for device, dtype, options in ("cpu", None, {}), ("cpu", torch.bfloat16, {}), ("meta", None, {}):
    model = make(device).to(dtype)
    for parameter in model.parameters():
        parameter.detach().zero_()  # its pages are the module's
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    torchwick.load_model(model, large, transfer=limit, **options)
    print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
    assert all((p == n).all() for n, p in enumerate(model.parameters()))
    del model, parameter
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's to tell")
def test_peak_of_memory(upload: Callable[[Path], str], tmp_path: Path) -> None:
    rows = [1152, 1920, 640, 2560] * 4
    state = {f"{n}.weight": torch.full((count, 2048), float(n)) for n, count in enumerate(rows)}
    (tmp_path / "small").mkdir()
    uris = [
        upload(write_safetensors(state_of(nn.Linear(2, 2)), tmp_path / "small")),
        upload(write_safetensors(state, tmp_path)),
    ]
    lines = [[int(word) for word in line.split()] for line in run_python(PEAK, *uris).splitlines()]
    (own, size), (cast, _), (meta, _) = lines
    assert size > 200e6
    assert own < 32 * MIB  # whatever goes straight into the module needs no memory besides
    assert cast < 64e6 * 1.25
    assert meta < 1.05 * size + 32 * MIB
