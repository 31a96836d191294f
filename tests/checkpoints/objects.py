"""Checkpoints odd in the Python around their tensors: containers, training states, leaves of every type."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import torch
from torch import nn

from checkpoints.base import OddCheckpoint, saved


def small_model() -> nn.Module:
    """A model with parameters, running statistics and an integer buffer."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def state_dict() -> Any:
    """A real state dict: an OrderedDict that carries `_metadata`."""
    return small_model().state_dict()


def training_state(optimizer_type: str = "Adam") -> dict[str, Any]:
    """The usual training checkpoint, after one step."""
    model = small_model()
    kinds: dict[str, Any] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9} if optimizer_type == "SGD" else {"lr": 0.1}
    optimizer = kinds.get(optimizer_type, torch.optim.SGD)(model.parameters(), **settings)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "best": float("inf"),
        "config": {"name": "tiny", "widths": [4, 8, 2], "betas": (0.9, 0.999), "seed": None, "amp": False},
    }


def typed_storage(dtype: torch.dtype = torch.float32) -> Any:
    """A storage of the deprecated kind, which is still what torch.load returns for a bare one."""
    wrapped = torch.arange(4).to(dtype).untyped_storage()
    kind: Any = torch.TypedStorage
    return kind(wrap_storage=wrapped, dtype=dtype, _internal=True)


def _leaves() -> dict[Any, Any]:
    return {
        "size": torch.Size([2, 3]),
        "dtypes": [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64],
        "devices": (torch.device("cpu"), torch.device("cuda", 1)),
        "tuple": (1, (2, ()), [3, []]),
        "set": {1, "two", 3.0},
        "complex": 1 - 2j,
        "numbers": [0, -1, 255, 65536, 2**31, -(2**63), 2**200, 0.1, -0.0, math.inf, math.nan, True],
        "text": "naïve ☃ \ud800",
        1: "int key",
        (1, "a"): "tuple key",
        None: "none key",
        "tensor": torch.arange(3),
    }


def _shared_containers() -> dict[str, Any]:
    shared = [torch.arange(4)]
    return {"a": shared, "b": shared, "copy": list(shared)}


def _cycle() -> dict[str, Any]:
    loop: dict[str, Any] = {"t": torch.arange(4.0), "rest": []}
    loop["rest"].append(loop)
    return loop


def _attributed_dict() -> OrderedDict[str, Any]:
    found = OrderedDict(w=torch.ones(2))
    found.note = {"inside": torch.zeros(2)}  # type: ignore[attr-defined]
    return found


def _storage_and_tensor() -> list[Any]:
    tensor = torch.arange(4, dtype=torch.uint8)
    return [tensor.untyped_storage(), tensor, tensor[1:]]


_BIG_TEXT = "config " * 50_000  # 350 KB
_HUGE_TEXT = "config " * 200_000  # 1.4 MB

OBJECTS: tuple[OddCheckpoint, ...] = (
    saved("state_dict", state_dict, "deferred"),
    saved("training_adam", training_state, "deferred"),
    saved("training_adamw", lambda: training_state("AdamW"), "deferred"),
    saved("training_sgd", lambda: training_state("SGD"), "deferred"),
    saved("leaves", _leaves, "deferred"),
    saved(
        "bytes_leaf",
        lambda: [b"raw \xff", bytearray(b"\0\1"), torch.ones(2)],
        "either",
        note="_codecs.encode",
    ),
    saved("layout_leaf", lambda: [torch.strided, torch.sparse_coo, torch.ones(2)], "either"),
    saved("qscheme_leaf", lambda: [torch.per_tensor_affine, torch.ones(2)], "either"),
    saved("list_of_tensors", lambda: [torch.full((n,), float(n)) for n in range(1, 20)], "deferred"),
    saved("tuple_of_tensors", lambda: (torch.ones(2), torch.zeros(3)), "deferred"),
    saved("bare_tensor", lambda: torch.arange(12.0).reshape(3, 4), "deferred"),
    saved("bare_scalar_tensor", lambda: torch.tensor(7.5), "deferred"),
    saved("bare_parameter", lambda: nn.Parameter(torch.ones(3)), "deferred"),
    saved("bare_number", lambda: 42, "deferred"),
    saved("bare_float", lambda: -0.0, "deferred"),
    saved("bare_text", lambda: "no tensors here", "deferred"),
    saved("bare_none", lambda: None, "deferred"),
    saved("bare_empty_dict", dict, "deferred"),
    saved("bare_empty_list", list, "deferred"),
    saved("bare_empty_tuple", tuple, "deferred"),
    saved("bare_size", lambda: torch.Size([1, 2]), "deferred"),
    saved("bare_typed_storage", typed_storage, "deferred"),
    saved("bare_untyped_storage", lambda: torch.arange(4.0).untyped_storage(), "deferred"),
    saved("storage_and_tensor", _storage_and_tensor, "deferred"),
    saved("shared_containers", _shared_containers, "deferred"),
    saved("cycle", _cycle, "deferred"),
    saved("attributed_ordered_dict", _attributed_dict, "deferred"),
    saved("counter", lambda: {"seen": Counter("abracadabra"), "t": torch.ones(2)}, "deferred"),
    saved("defaultdict_refused", lambda: defaultdict(list, a=[torch.ones(2)]), "refused"),
    saved("defaultdict", lambda: defaultdict(list, a=[torch.ones(2)]), "deferred", weights_only=False),
    saved(
        "defaultdict_allowed",
        lambda: {"d": defaultdict(list), "t": torch.ones(2)},
        "either",
        safe_globals=(defaultdict, list),
        note="empty: the weights-only unpickler sets items only on dict, OrderedDict and Counter",
    ),
    saved(
        "defaultdict_allowed_filled",
        lambda: defaultdict(list, a=[torch.ones(2)]),
        "refused",
        safe_globals=(defaultdict, list),
        note="allowed, yet its items are not",
    ),
    saved("frozenset_refused", lambda: [frozenset({1, 2}), torch.ones(2)], "refused"),
    saved("frozenset", lambda: [frozenset({1, 2}), torch.ones(2)], "deferred", weights_only=False),
    saved("huge_int_refused", lambda: {"n": 2**3000}, "refused", note="LONG4 is not among the opcodes"),
    saved("huge_int", lambda: {"n": 2**3000, "t": torch.ones(2)}, "deferred", weights_only=False),
    saved("trusted_state_dict", state_dict, "deferred", weights_only=False),
    saved("pickle_256k", lambda: {"text": _BIG_TEXT, "t": torch.arange(9.0)}, "deferred"),
    saved("pickle_1m", lambda: {"text": _HUGE_TEXT, "t": torch.arange(9.0)}, "deferred"),
    saved("protocol_3", state_dict, "deferred", save_options={"pickle_protocol": 3}),
    saved("protocol_4_refused", state_dict, "refused", save_options={"pickle_protocol": 4}),
    saved("protocol_4", state_dict, "either", save_options={"pickle_protocol": 4}, weights_only=False),
    saved("protocol_5", state_dict, "either", save_options={"pickle_protocol": 5}, weights_only=False),
    saved("many_tensors", lambda: {f"layer.{n}": torch.full((2,), n) for n in range(5000)}, "deferred"),
)
