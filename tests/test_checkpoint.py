"""`open` finds every tensor that torch finds, and reads it as torch does."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import strategies as st

import torchwick
from checkpoints import ODD_CHECKPOINTS, SAFETENSORS
from checkpoints.tensors import V3_DTYPES, every_bit
from oracle import assert_same

_LOADABLE = {
    case.name: case
    for case in ODD_CHECKPOINTS
    if case.loads and case.map_location is None and not case.name.startswith("zip_duplicate")
}


def tensors_of(
    value: Any, name: str = "", inside: tuple[Any, ...] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every plain tensor in nested containers, under its dotted name."""
    if any(value is container for container in inside):
        return
    inside = (*inside, value)
    if isinstance(value, torch.nn.Module):
        value = dict(value.named_parameters(remove_duplicate=False)) | dict(
            value.named_buffers(remove_duplicate=False)
        )
    if isinstance(value, torch.Tensor):
        yield name or "tensor", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}.{key}" if name else str(key), inside)
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from tensors_of(item, f"{name}.{at}" if name else str(at), inside)


def assert_tensor(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The same dtype, shape, strides and bits."""
    expected = expected.detach()
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.numel():
        assert actual.stride() == expected.stride()
        assert (actual.is_conj(), actual.is_neg()) == (expected.is_conj(), expected.is_neg())
    assert bits(actual) == bits(expected)


def bits(tensor: torch.Tensor) -> bytes:
    """The elements, byte for byte."""
    plain = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
    dense = torch.empty(plain.numel(), dtype=plain.dtype)
    dense.copy_(plain.reshape(-1))
    return dense.view(torch.uint8).numpy().tobytes()


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
                # Attributes of objects have names as well; tensors saved on meta have no bytes.
                if key in expected and not expected[key].is_meta:
                    assert_tensor(tensor, expected[key])


class TestNested:
    @hypothesis.settings(
        max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
    )
    @hypothesis.given(data=st.data())
    def test_every_tensor_is_torchs(self, data: st.DataObject, tmp_path: Path) -> None:
        dtype = data.draw(st.sampled_from(_DTYPES))
        value = data.draw(nested(dtype))
        new = dtype in _NEW_DTYPES or data.draw(st.booleans())
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
    part, expected = ckpt.get_slice(name)[index], tensor[index]
    assert (part.dtype, part.shape, bits(part)) == (expected.dtype, expected.shape, bits(expected))


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


_NEW_DTYPES = [dtype for dtype in V3_DTYPES if "bits" not in str(dtype) and "float4" not in str(dtype)]
_DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *_NEW_DTYPES,
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


def nested(dtype: torch.dtype) -> st.SearchStrategy[Any]:
    """Nested containers of tensors that share storages, and of plain values."""
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


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(name: str, tmp_path: Path) -> None:
    """Every safetensors file that its own loader reads."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[name]())
    expected = safetensors.torch.load_file(path)
    with torchwick.open(path) as ckpt, safetensors.safe_open(path, "pt") as judge:
        assert_same(dict(sorted(ckpt.read().items())), dict(sorted(expected.items())), storages=False)
        filled = [name for name, tensor in expected.items() if tensor.numel()]
        assert [n for n in ckpt.offset_keys() if n in filled] == [
            n for n in judge.offset_keys() if n in filled
        ]
        assert ckpt.metadata() == (judge.metadata() or {})
