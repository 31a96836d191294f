"""Checkpoints odd in their tensors: every dtype, every layout, every way to share a storage."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from checkpoints.base import OddCheckpoint, Outcome, saved

_V2_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)
# Saved over an untyped storage by _rebuild_tensor_v3. Older torch lacks some of them.
_V3_NAMES = (
    "complex32",
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "bits8",
    "bits16",
    "bits1x8",
    "bits2x4",
    "bits4x2",
)
V3_DTYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, name) for name in _V3_NAMES if hasattr(torch, name))


def every_bit(dtype: torch.dtype, count: int = 24) -> torch.Tensor:
    """A tensor of this dtype holding bytes that no conversion by value would survive."""
    raw = torch.arange(count * dtype.itemsize, dtype=torch.int64).mul(37).add(5).remainder(256)
    if dtype is torch.bool:
        raw = raw.remainder(2)
    return raw.to(torch.uint8).view(dtype)


def _of_dtype(dtype: torch.dtype, path: Outcome) -> OddCheckpoint:
    name = str(dtype).removeprefix("torch.")
    return saved(f"dtype_{name}", lambda: {"t": every_bit(dtype), "tail": every_bit(dtype)[1:]}, path)


def _empties() -> dict[str, Any]:
    void = torch.empty(0)
    return {
        "0": void,
        "0 again": void,
        "0x3": torch.empty(0, 3),
        "3x0": torch.empty(3, 0),
        "alias": void.view(0, 5),
        "int": torch.empty(0, dtype=torch.int64),
        "of big": torch.arange(5.0)[2:2],
        "parameter": nn.Parameter(torch.empty(0)),
        "full": torch.ones(2),
    }


def _views() -> dict[str, Any]:
    base = torch.arange(24.0)
    return {
        "base": base,
        "same": base,
        "alias": base.detach(),
        "head": base[:10],
        "overlap": base[5:15],
        "matrix": base.view(4, 6),
        "transpose": base.view(4, 6).t(),
        "strided": base[::3],
        "expanded": base[7:8].expand(5),
        "as_strided": base.as_strided((3, 3), (1, 2), 4),
        "scalar": base[11],
        "apart": torch.arange(24.0),
    }


def _tied() -> dict[str, Any]:
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    state = nn.ModuleDict({"embedding": embedding, "head": head}).state_dict()
    return {"state": state, "parameters": [embedding.weight, head.weight], "data": embedding.weight.data}


def _dtype_views() -> list[torch.Tensor]:
    """One storage seen as several dtypes: torch.save permits it only for the untyped-storage dtypes."""
    base = torch.arange(16, dtype=torch.float32).to(torch.float8_e5m2)
    return [base, base.view(torch.float8_e4m3fn), base.view(torch.uint16), base.view(torch.uint32)[1:]]


def _parameter_with_state() -> nn.Parameter:
    parameter = nn.Parameter(torch.arange(4.0), requires_grad=False)
    parameter.tags = {"lora": True, "scale": torch.tensor(2.0)}  # type: ignore[attr-defined]
    return parameter


def _tensor_with_state() -> torch.Tensor:
    tensor = torch.arange(4.0)
    tensor.origin = ["a", torch.arange(2)]  # type: ignore[attr-defined]
    return tensor


def _conj_and_neg() -> dict[str, torch.Tensor]:
    base, other = torch.tensor([1 + 2j, 3 - 4j, -5 + 6j]), torch.tensor([7 - 8j])
    return {"base": base, "conj": base.conj(), "neg": other.conj().imag, "imag": other.imag}


def _coo(coalesced: bool) -> torch.Tensor:
    indices = torch.tensor([[0, 1, 1], [2, 0, 0]])
    made = torch.sparse_coo_tensor(indices, torch.tensor([3.0, 4.0, 5.0]), (2, 3))
    return made.coalesce() if coalesced else made


def _compressed(kind: str) -> torch.Tensor:
    dense = torch.eye(4) * 3
    if kind == "bsr":
        return dense.to_sparse_bsr((2, 2))
    return dense.to_sparse_csr() if kind == "csr" else dense.to_sparse_csc()


def _per_tensor() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(6.0), 0.5, 3, torch.quint8)


def _per_channel() -> torch.Tensor:
    scales, zeros = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.tensor([0, 1, 2])
    return torch.quantize_per_channel(torch.arange(6.0).view(3, 2), scales, zeros, 0, torch.qint8)


def _per_channel_tied() -> dict[str, Any]:
    tensor = _per_channel()
    return {"w": tensor, "rows": tensor[1:], "same": tensor}


def _nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.arange(2.0), torch.arange(3.0)])


def _channels_last() -> torch.Tensor:
    return torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)


def _meta() -> dict[str, Any]:
    return {"t": torch.empty(3, 2, device="meta"), "p": nn.Parameter(torch.empty(2, device="meta"))}


TENSORS: tuple[OddCheckpoint, ...] = (
    *(_of_dtype(dtype, "deferred") for dtype in _V2_DTYPES),
    *(_of_dtype(dtype, "either") for dtype in V3_DTYPES),
    saved("scalars", lambda: [every_bit(dtype, 1).reshape(()) for dtype in _V2_DTYPES], "deferred"),
    saved(
        "nan_payloads", lambda: torch.tensor([0x7FC00001, -0x3FFFFF]).int().view(torch.float32), "deferred"
    ),
    saved("empties", _empties, "deferred"),
    saved("only_empties", lambda: [torch.empty(0), torch.empty(0, 2)], "deferred"),
    saved("views", _views, "deferred"),
    saved("tied_parameters", _tied, "deferred"),
    saved("view_of_big_storage", lambda: {"t": torch.arange(100_000.0)[500:510]}, "deferred"),
    saved("dtype_views", _dtype_views, "either"),
    saved("channels_last", _channels_last, "deferred"),
    saved("requires_grad", lambda: [torch.ones(2, requires_grad=True), torch.ones(2)], "deferred"),
    saved("parameters", lambda: nn.ParameterList([torch.ones(2), torch.zeros(3)]).state_dict(), "deferred"),
    saved("frozen_parameter", lambda: nn.Parameter(torch.ones(2), requires_grad=False), "deferred"),
    saved("parameter_with_state", _parameter_with_state, "deferred"),
    saved("tensor_with_state", _tensor_with_state, "deferred"),
    saved("buffer", lambda: {"b": nn.Buffer(torch.ones(2), persistent=False)}, "deferred"),
    saved("conj_and_neg", _conj_and_neg, "deferred"),
    saved("sparse_coo", lambda: {"t": _coo(coalesced=True)}, "spooled"),
    saved("sparse_coo_uncoalesced", lambda: {"t": _coo(coalesced=False)}, "spooled"),
    saved("sparse_coo_hybrid", lambda: torch.arange(12.0).view(2, 2, 3).to_sparse(1), "spooled"),
    saved("sparse_coo_empty", lambda: torch.zeros(3, 4).to_sparse(), "spooled"),
    *(saved(f"sparse_{kind}", partial(_compressed, kind), "spooled") for kind in ("csr", "csc", "bsr")),
    saved("quantized_per_tensor", lambda: {"w": _per_tensor(), "t": torch.ones(2)}, "spooled"),
    saved("quantized_per_channel", _per_channel_tied, "spooled", note="built from scales and zero points"),
    saved("nested", _nested, "spooled", note="built from tensors of sizes"),
    saved("meta_tensors", _meta, "either", note="no storage at all"),
)
