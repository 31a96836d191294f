"""The judge of every loader test: is this value exactly what torch.load would have returned?

Equality here is stricter than `torch.equal`: types, strides, offsets, whole storages byte for byte, which
tensors share a storage, and which objects are one object seen twice. A loader that returns the right numbers
in the wrong layout, or copies where torch.load aliased, must fail.
"""

from __future__ import annotations

import copyreg
import enum
import math
import struct
import types
from typing import Any, NoReturn

import numpy as np
import torch

# Compared by value alone: Python may intern these, so who shares one with whom says nothing about a loader.
_ATOMS = (
    str,
    bytes,
    int,
    bool,
    type(None),
    type(Ellipsis),
    range,
    enum.Enum,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.qscheme,
)
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def assert_same(actual: Any, expected: Any, *, storages: bool = True) -> None:
    """Raise AssertionError, naming the path, unless `actual` is what torch.load gave as `expected`.

    With `storages=False` only what each tensor shows is compared, not how it lies in memory: offsets, the
    bytes around a view, and who shares a storage may differ. That is the right measure for formats that
    have no storages, such as safetensors.
    """
    walk = _Walk(storages)
    walk.same(actual, expected, "")
    walk.finish()


class _Walk:
    """One comparison: remembers every object and storage met, so that ties can be compared as well."""

    def __init__(self, storages: bool) -> None:
        self._storages = storages
        self._twin_of_expected: dict[int, tuple[Any, str]] = {}
        self._twin_of_actual: dict[int, tuple[Any, str]] = {}
        self._storage_of_expected: dict[int, tuple[int, str]] = {}
        self._storage_of_actual: dict[int, tuple[int, str]] = {}
        self._memory: list[tuple[str, torch.UntypedStorage, torch.UntypedStorage]] = []
        self._alive: list[Any] = []  # ids are only unique among the living

    # -- dispatch ------------------------------------------------------------------------------------------

    def same(self, actual: Any, expected: Any, path: str) -> None:
        """Compare two values of any kind found at `path`."""
        self._check(type(actual), type(expected), path, "type")
        if isinstance(expected, _ATOMS):
            self._check(actual, expected, path)
        elif isinstance(expected, (float, complex)):
            self._check(_number_bits(actual), _number_bits(expected), path, shown=(actual, expected))
        elif isinstance(expected, np.generic):
            self._check((actual.dtype, actual.tobytes()), (expected.dtype, expected.tobytes()), path)
        elif not self._met(actual, expected, path):
            self._object(actual, expected, path)

    def _object(self, actual: Any, expected: Any, path: str) -> None:
        if isinstance(expected, torch.Tensor):
            self._tensor(actual, expected, path)
        elif isinstance(expected, torch.TypedStorage):
            self._check(actual.dtype, expected.dtype, path, "dtype")
            self._storage(actual._untyped_storage, expected._untyped_storage, path)
        elif isinstance(expected, torch.UntypedStorage):
            self._storage(actual, expected, path)
        elif isinstance(expected, np.ndarray):
            self._array(actual, expected, path)
        elif isinstance(expected, torch.jit.ScriptModule):
            self._script(actual, expected, path)
        elif isinstance(expected, torch.Generator):
            self._tensor(actual.get_state(), expected.get_state(), path + ".get_state()")
        else:
            self._plain(actual, expected, path)

    def _met(self, actual: Any, expected: Any, path: str) -> bool:
        """Whether this pair was compared before; an object tied to another partner than before fails."""
        if isinstance(expected, (tuple, frozenset)) and not expected:
            return False  # the empty tuple is one object in all of Python
        before = self._twin_of_expected.get(id(expected))
        if before is not None and before[0] is not actual:
            self._fail(path, f"is not the object at {before[1] or 'the top'}, though it should be")
        behind = self._twin_of_actual.get(id(actual))
        if before is None and behind is not None:
            self._fail(path, f"is the object at {behind[1] or 'the top'}, though it should be another")
        self._twin_of_expected[id(expected)] = (actual, before[1] if before else path)
        self._twin_of_actual[id(actual)] = (expected, behind[1] if behind else path)
        self._alive += [actual, expected]
        return before is not None

    # -- Python's own containers and objects ---------------------------------------------------------------

    def _plain(self, actual: Any, expected: Any, path: str) -> None:
        if isinstance(expected, dict):
            self._dict(actual, expected, path)
        elif isinstance(expected, (list, tuple)):
            self._sequence(actual, expected, path)
        elif isinstance(expected, (set, frozenset)):
            self._sequence(sorted(actual, key=_by_text), sorted(expected, key=_by_text), path)
        elif isinstance(expected, bytearray):
            self._check(bytes(actual), bytes(expected), path)
        elif not _has_state(expected):
            self._reduced(actual, expected, path)
        self._state(actual, expected, path)

    def _dict(self, actual: Any, expected: Any, path: str) -> None:
        if all(isinstance(key, (str, int)) for key in (*actual, *expected)):
            for key in expected.keys() - actual.keys():
                self._fail(path, f"key {key!r} is missing")
            for key in actual.keys() - expected.keys():
                self._fail(path, f"key {key!r} is extra")
        self._sequence(list(actual), list(expected), f"{path}.keys()")
        for (key, value), wanted in zip(actual.items(), expected.values(), strict=True):
            self.same(value, wanted, f"{path}[{key!r}]")
        if hasattr(expected, "default_factory"):
            self.same(actual.default_factory, expected.default_factory, f"{path}.default_factory")

    def _sequence(self, actual: Any, expected: Any, path: str) -> None:
        self._check(len(actual), len(expected), path, "length")
        names = getattr(expected, "_fields", None)
        for index, (value, wanted) in enumerate(zip(actual, expected, strict=True)):
            self.same(value, wanted, f"{path}.{names[index]}" if names else f"{path}[{index}]")

    def _state(self, actual: Any, expected: Any, path: str) -> None:
        """Attributes: `_metadata` on a state dict, a Parameter's tags, a module's everything."""
        mine, theirs = _attributes(actual), _attributes(expected)
        self._check(list(mine), list(theirs), path, "attributes")
        for name, wanted in theirs.items():
            self.same(mine[name], wanted, f"{path}.{name}")

    def _reduced(self, actual: Any, expected: Any, path: str) -> None:
        """An object whose state Python cannot see is compared as the pickle it would make, or by ==."""
        try:
            mine, theirs = actual.__reduce_ex__(4), expected.__reduce_ex__(4)
        except TypeError:
            self._check(actual, expected, path)
            return
        if isinstance(theirs, str):
            self._check(mine, theirs, path)
            return
        for mine_part, part in zip(mine[:3], theirs[:3], strict=True):
            self.same(mine_part, part, f"{path}.__reduce_ex__(4)")
        for mine_items, items in zip(mine[3:5], theirs[3:5], strict=True):
            self._sequence(list(mine_items or ()), list(items or ()), f"{path}.__reduce_ex__(4)")

    def _array(self, actual: Any, expected: Any, path: str) -> None:
        for name in ("dtype", "shape", "strides"):
            self._check(getattr(actual, name), getattr(expected, name), path, name)
        self._check(actual.flags.writeable, expected.flags.writeable, path, "writeable")
        if expected.dtype.hasobject:
            self._sequence(actual.ravel().tolist(), expected.ravel().tolist(), path)
        elif actual.tobytes() != expected.tobytes():
            self._fail(path, "array bytes differ")

    def _script(self, actual: Any, expected: Any, path: str) -> None:
        """A TorchScript module lives in C++: its name, code, weights and children are what Python sees."""
        for name in ("original_name", "training"):
            self._check(getattr(actual, name), getattr(expected, name), path, name)
        if hasattr(expected, "forward"):
            self._check(actual.code, expected.code, path, "code")
        self.same(dict(actual.state_dict()), dict(expected.state_dict()), path)
        mine, theirs = dict(actual.named_children()), dict(expected.named_children())
        self._check(list(mine), list(theirs), path, "children")
        for name, wanted in theirs.items():
            self._script(mine[name], wanted, f"{path}.{name}")

    # -- tensors -------------------------------------------------------------------------------------------

    def _tensor(self, actual: torch.Tensor, expected: torch.Tensor, path: str) -> None:
        for name in ("dtype", "layout", "device", "requires_grad", "is_quantized", "is_nested"):
            self._check(getattr(actual, name), getattr(expected, name), path, name)
        for name in ("is_conj", "is_neg", "is_inference", "is_leaf"):
            self._check(_asked(actual, name), _asked(expected, name), path, name)
        if expected.is_nested:
            self._nested(actual, expected, path)
        else:
            self._check(tuple(actual.shape), tuple(expected.shape), path, "shape")
            self._payload(actual, expected, path)
        self._state(actual, expected, path)

    def _payload(self, actual: torch.Tensor, expected: torch.Tensor, path: str) -> None:
        if expected.layout is torch.sparse_coo:
            self._check(actual.is_coalesced(), expected.is_coalesced(), path, "is_coalesced")
            self._check(actual.sparse_dim(), expected.sparse_dim(), path, "sparse_dim")
            self._parts(("_indices", "_values"), actual, expected, path)
        elif expected.layout in _COMPRESSED:
            self._parts((*_COMPRESSED[expected.layout], "values"), actual, expected, path)
        else:
            self._quantizer(actual, expected, path)
            self._strided(actual, expected, path)

    def _nested(self, actual: torch.Tensor, expected: torch.Tensor, path: str) -> None:
        parts = ("_nested_tensor_size", "_nested_tensor_strides", "_nested_tensor_storage_offsets")
        self._parts(parts, actual, expected, path)
        self._storage(actual.untyped_storage(), expected.untyped_storage(), path)

    def _parts(self, names: tuple[str, ...], actual: torch.Tensor, expected: torch.Tensor, path: str) -> None:
        for name in names:
            mine, theirs = getattr(actual.detach(), name)(), getattr(expected.detach(), name)()
            self._alive += [mine, theirs]
            self._tensor(mine, theirs, f"{path}.{name}()")

    def _quantizer(self, actual: torch.Tensor, expected: torch.Tensor, path: str) -> None:
        if not expected.is_quantized:
            return
        self._check(actual.qscheme(), expected.qscheme(), path, "qscheme")
        if expected.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            for name in ("q_scale", "q_zero_point"):
                self._check(getattr(actual, name)(), getattr(expected, name)(), path, name)
            return
        self._check(actual.q_per_channel_axis(), expected.q_per_channel_axis(), path, "q_per_channel_axis")
        parts = ("q_per_channel_scales", "q_per_channel_zero_points")
        self._parts(parts, actual, expected, path)

    def _strided(self, actual: torch.Tensor, expected: torch.Tensor, path: str) -> None:
        self._check(actual.stride(), expected.stride(), path, "stride")
        if self._storages:
            self._check(actual.storage_offset(), expected.storage_offset(), path, "storage_offset")
            self._storage(actual.untyped_storage(), expected.untyped_storage(), path)
        elif expected.device.type != "meta":
            self._bytes(_element_bytes(actual), _element_bytes(expected), path)

    # -- storages ------------------------------------------------------------------------------------------

    def _storage(self, actual: torch.UntypedStorage, expected: torch.UntypedStorage, path: str) -> None:
        self._check(actual.device, expected.device, path, "storage device")
        self._check(actual.nbytes(), expected.nbytes(), path, "storage nbytes")
        if expected.nbytes() == 0:
            return  # torch.load makes a new storage for each mention of an empty one, or one: nobody can tell
        if self._storages and self._tied(actual, expected, path):
            return
        if expected.device.type != "meta":
            self._memory.append((path, actual, expected))
            self._bytes(_storage_bytes(actual), _storage_bytes(expected), path)

    def _tied(self, actual: torch.UntypedStorage, expected: torch.UntypedStorage, path: str) -> bool:
        """Whether this pair of storages was met before; a storage shared differently than before fails."""
        self._alive += [actual, expected]
        before = self._storage_of_expected.setdefault(expected._cdata, (actual._cdata, path))
        if before[0] != actual._cdata:
            self._fail(path, f"does not share its storage with {before[1] or 'the top'}, though it should")
        behind = self._storage_of_actual.setdefault(actual._cdata, (expected._cdata, path))
        if behind[0] != expected._cdata:
            self._fail(path, f"shares its storage with {behind[1] or 'the top'}, though it should not")
        return before[1] != path or behind[1] != path

    def finish(self) -> None:
        """Separate storages may still be windows on the same memory (old checkpoints): compare that too."""
        if not self._storages:
            return
        mine = _overlaps([pair[1] for pair in self._memory])
        for (left, right), distance in _overlaps([pair[2] for pair in self._memory]).items():
            names = f"{self._memory[left][0]} and {self._memory[right][0]}"
            self._check(mine.pop((left, right), None), distance, names, "distance in memory")
        for left, right in mine:
            self._fail(self._memory[left][0], f"shares memory with {self._memory[right][0]}, and should not")

    def _bytes(self, actual: torch.Tensor, expected: torch.Tensor, path: str) -> None:
        self._check(actual.numel(), expected.numel(), path, "bytes")
        if not torch.equal(actual, expected):
            wrong = torch.nonzero(actual != expected).flatten()
            first = f"{len(wrong)} of {len(expected)} bytes, the first at {int(wrong[0])}"
            self._fail(path, f"values differ in {first}")

    # -- verdicts ------------------------------------------------------------------------------------------

    def _check(
        self, actual: Any, expected: Any, path: str, what: str = "", shown: tuple[Any, Any] | None = None
    ) -> None:
        if actual is expected or (type(actual) is type(expected) and actual == expected):
            return
        left, right = (_short(value) for value in shown or (actual, expected))
        self._fail(path, f"{what} {left} != {right}".lstrip())

    def _fail(self, path: str, message: str) -> NoReturn:
        raise AssertionError(f"{path or 'value'}: {message}")


def _short(value: Any) -> str:
    text = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _asked(tensor: torch.Tensor, name: str) -> Any:
    """A fact that some torch versions keep as an attribute and some as a method."""
    fact = getattr(tensor, name)
    return fact() if callable(fact) else fact


def _number_bits(value: Any) -> tuple[bytes, ...]:
    """The bits of a float or complex, every NaN alike: pickles do not keep NaN payloads apart."""
    parts = (value.real, value.imag) if isinstance(value, complex) else (value,)
    return tuple(b"nan" if math.isnan(part) else struct.pack("<d", part) for part in parts)


def _by_text(value: Any) -> tuple[str, str]:
    return type(value).__qualname__, repr(value)


def _has_state(value: Any) -> bool:
    return hasattr(value, "__dict__") or bool(copyreg._slotnames(type(value)))  # type: ignore[attr-defined]


def _attributes(value: Any) -> dict[str, Any]:
    slots = copyreg._slotnames(type(value))  # type: ignore[attr-defined]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**found, **getattr(value, "__dict__", {})}


def _storage_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage).cpu()


def _element_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of the elements a tensor shows, in order, untouched by pending conj and neg bits."""
    plain = tensor.detach()
    plain = plain.int_repr() if plain.is_quantized else plain
    plain = plain.conj() if plain.is_conj() else plain
    plain = torch._neg_view(plain) if plain.is_neg() else plain
    return plain.contiguous().reshape(-1).view(torch.uint8).cpu()


def _overlaps(storages: list[torch.UntypedStorage]) -> dict[tuple[int, int], int]:
    """Pairs of storages that share memory, and how far apart they begin."""
    order = sorted(range(len(storages)), key=lambda index: storages[index].data_ptr())
    found: dict[tuple[int, int], int] = {}
    for place, left in enumerate(order):
        start = storages[left].data_ptr()
        for right in order[place + 1 :]:
            distance = storages[right].data_ptr() - start
            if distance >= storages[left].nbytes():
                break
            pair = (left, right) if left < right else (right, left)
            found[pair] = distance if left < right else -distance
    return found
