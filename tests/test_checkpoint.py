"""`open` finds every tensor that torch finds, and reads it as torch does."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import torchwick
from checkpoints import ODD_CHECKPOINTS, SAFETENSORS
from checkpoints.tensors import V3_DTYPES, every_bit
from oracle import assert_same

_LOADABLE = {case.name: case for case in ODD_CHECKPOINTS if case.loads and case.map_location is None}
_NOT_STRIDED = (torch.nn.Module, torch.storage.TypedStorage, torch.UntypedStorage)


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every plain tensor in nested containers, under its dotted name."""
    if isinstance(value, torch.nn.Module):
        value = dict(value.named_parameters(remove_duplicate=False)) | dict(
            value.named_buffers(remove_duplicate=False)
        )
    if isinstance(value, torch.Tensor):
        yield name or "tensor", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from tensors_of(item, f"{name}.{at}" if name else str(at))


def assert_tensor(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The same dtype, shape, strides and bits."""
    expected = expected.detach()
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.numel():
        assert actual.stride() == expected.stride()
        assert (actual.is_conj(), actual.is_neg()) == (expected.is_conj(), expected.is_neg())
    assert_same(actual.clone(), expected.clone(), storages=False)


@pytest.mark.parametrize("name", _LOADABLE)
def test_odd_checkpoint(name: str, tmp_path: Path) -> None:
    """Tensors that are found are torch's; a file that cannot be looked into says that `load` reads it."""
    case, path = _LOADABLE[name], tmp_path / "model.pt"
    case.build(path)
    with case.setting():
        expected = dict(tensors_of(torch.load(path, **case.options)))
        try:
            ckpt = torchwick.open(path)
        except torchwick.FormatError as error:
            assert "torchwick.load" in str(error)  # noqa: PT017 - either outcome is right
            return
        with ckpt:
            for key, tensor in ckpt.read().items():
                assert_tensor(tensor, expected[key.removesuffix(" (2)")])


class TestNested:
    @hypothesis.settings(
        max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
    )
    @hypothesis.given(data=st.data(), new=st.booleans())
    def test_every_tensor_is_torchs(self, data: st.DataObject, new: bool, tmp_path: Path) -> None:
        value = data.draw(nested())
        path = tmp_path / "model.pt"
        torch.save(value, path, _use_new_zipfile_serialization=new)
        expected = dict(tensors_of(torch.load(path)))
        with torchwick.open(path) as ckpt:
            assert set(ckpt) == set(expected)
            together = ckpt.read()
            for name, tensor in expected.items():
                assert_tensor(ckpt[name], tensor)
                assert_tensor(together[name], tensor)
                assert_part(ckpt, name, tensor, data)
            assert_ties(together, expected)
            assert dict(ckpt.stream()).keys() == expected.keys()


def assert_part(ckpt: torchwick.Checkpoint, name: str, tensor: torch.Tensor, data: st.DataObject) -> None:
    index = tuple(
        data.draw(st.slices(length).filter(lambda s: s.step is None or s.step > 0)) for length in tensor.shape
    )
    assert_same(ckpt.get_slice(name)[index].clone(), tensor[index].clone(), storages=False)


def assert_ties(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Tensors whose elements overlap in memory overlap again."""
    for one in expected:
        for other in expected:
            assert overlap(actual[one], actual[other]) == overlap(expected[one], expected[other])


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors share bytes between their first and last element."""
    if not one.numel() or not other.numel():
        return False
    (a, a_end), (b, b_end) = map(_reach, (one, other))
    return a < b_end and b < a_end


def _reach(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


_DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(dtype for dtype in V3_DTYPES if "bits" not in str(dtype) and "float4" not in str(dtype)),
]


@st.composite
def views(draw: st.DrawFn, bases: list[torch.Tensor]) -> torch.Tensor:
    """A view of one of some storages: the same one again, a part, transposed, spread, or of one element."""
    base = draw(st.sampled_from(bases))
    rows = draw(st.sampled_from([1, 2, 3, 4, 6]))
    square = base.view(rows, -1)
    return draw(
        st.sampled_from(
            [
                base,
                square,
                square.t(),
                square[:, 1:],
                square[::2],
                square[0, 0],
                base[5:],
                base[:0],
                base[3:9:2],
            ]
        )
    )


def nested() -> st.SearchStrategy[Any]:
    """Nested containers of tensors that share storages, and of plain values."""

    def containers(dtype: torch.dtype) -> st.SearchStrategy[Any]:
        bases = [every_bit(dtype, 24), every_bit(dtype, 12)]
        leaves = views(bases) | st.integers() | st.text(max_size=3) | st.none()
        return st.recursive(
            leaves,
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=4)
            ),
            max_leaves=12,
        )

    return st.sampled_from(_DTYPES).flatmap(containers)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", [case.name for case in SAFETENSORS])
def test_safetensors(name: str, tmp_path: Path) -> None:
    """Every safetensors file that its own loader reads."""
    import safetensors.torch

    (case,) = (case for case in SAFETENSORS if case.name == name)
    path = tmp_path / "model.safetensors"
    case.build(path)
    try:
        expected = safetensors.torch.load_file(path)
    except Exception:  # noqa: BLE001 - whatever its reason, ours must be one of ours
        with pytest.raises(torchwick.FormatError):
            torchwick.open(path).read()
        return
    with torchwick.open(path) as ckpt:
        assert_same(dict(sorted(ckpt.read().items())), dict(sorted(expected.items())), storages=False)
