"""Flattens what a pickle builds to dotted names: tensors, and in a few words whatever else there is.

``{"model": {"w": …}, "optimizer": {"state": {0: {"exp_avg": …}}}}`` becomes ``model.w`` and
``optimizer.state.0.exp_avg``. Modules that were saved whole name their tensors as ``state_dict`` would.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torchwick.errors import FormatError
from torchwick.formats.dtypes import DType, of_storage, of_torch
from torchwick.formats.stand_ins import Recorder, StorageFact, StorageStandIn

__all__ = ["Contents", "TensorFact", "flatten"]

_MOST_NAMES = 1_000_000  # two orders above the largest checkpoints; containers that share can unfold to more
_MOST_LETTERS = 128 << 20  # of all names together
_MOST_STEPS = 2_000_000  # items looked at; those without a name of their own among them
_LONGEST_NAME = 100_000  # letters: one key in containers in containers makes names of gigabytes
_MOST_WRAPPED = 8  # wrappers of one tensor, such as a parameter's
_MOST_DIMENSIONS = 64  # as many as torch's own loops take
_DEEPEST = 100  # containers in containers
_LONGEST = 60  # characters of a value in a few words
_SCALARS = (bool, int, float, complex, str, bytes, bytearray, type(None))
_OF_MODULES = ("_parameters", "_buffers", "_modules")  # which `state_dict` leaves out of names
_ALONE = "tensor"  # the name of a tensor that was saved without any container


@dataclass(frozen=True)
class TensorFact:
    """A tensor as the pickle describes it: a view of a storage; offset and strides in elements."""

    storage: StorageFact
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    lazy: tuple[str, ...] = ()


@dataclass
class Contents:
    """What a pickle holds, by dotted name."""

    tensors: dict[str, TensorFact] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


def flatten(value: object, uri: object) -> Contents:
    """Name all that stand-ins were built into.

    Two items whose names come out alike (``{"a.b": …, "a": {"b": …}}``) are told apart by a number: ``a.b``
    and ``a.b (2)``.

    Args:
        value: what `torchwick.formats.pickles.look_into` made of a pickle.
        uri: the object, for messages.

    Raises:
        FormatError: it unfolds to more than any checkpoint holds.
    """
    return _Walk(uri).run(value)


_UNFOLDS = "its containers, which share their items, unfold to more than any checkpoint holds"


class _Walk:
    """Goes through containers, depth first, without recursion: a pickle nests them as deep as it likes."""

    def __init__(self, uri: object) -> None:
        self._uri = uri
        self._found = Contents()
        self._letters = 0
        self._steps = 0
        self._numbers: dict[str, int] = {}
        self._facts: dict[int, TensorFact | None] = {}  # by identity: one may be met a million times
        self._flat: dict[int, bool] = {}

    def run(self, value: object) -> Contents:
        ways: list[Iterator[tuple[str, object, bool]]] = [iter([("", value, True)])]
        inside: list[int] = []  # the containers on the way: one may hold itself
        while ways:
            step = next(ways[-1], None)
            if step is None:
                ways.pop()
                del inside[len(ways) - 1 :]
                continue
            name, item, told = step
            self._count(name)
            children = self._visit(name, item, told=told)
            if children is None or id(item) in inside:
                continue
            if len(ways) > _DEEPEST:
                self._refuse("more containers lie in one another than in any checkpoint")
            inside.append(id(item))
            ways.append(children)
        return self._found

    def _visit(self, name: str, item: object, *, told: bool) -> Iterator[tuple[str, object, bool]] | None:
        """Note what is no container; return the items of what is one."""
        fact = self._tensor(item)
        if fact is not None:
            self._found.tensors[self._free(self._found.tensors, name or _ALONE)] = fact
            return None
        children = self._children(name, item, told=told)
        if told and (children is None or isinstance(item, Recorder)):
            self._found.others[self._free(self._found.others, name or "value")] = _words(item)
        return children

    def _free(self, names: dict[str, Any], name: str) -> str:
        """Return the name, with a number if it is taken."""
        free = name
        while free in names:
            number = self._numbers[name] = self._numbers.get(name, 1) + 1
            free = f"{name} ({number})"
        if len(names) >= _MOST_NAMES:
            self._refuse(_UNFOLDS)
        return free

    def _count(self, name: str) -> None:
        """Bound the time and the memory that a walk takes, whatever it finds."""
        self._steps += 1
        self._letters += len(name)
        if len(name) > _LONGEST_NAME:
            self._refuse(f"a name of {len(name)} letters is in it")
        if self._steps > _MOST_STEPS or self._letters > _MOST_LETTERS:
            self._refuse(_UNFOLDS)

    def _tensor(self, item: object) -> TensorFact | None:
        if not isinstance(item, Recorder):
            return None
        if id(item) not in self._facts:
            self._facts[id(item)] = _tensor(item)
        return self._facts[id(item)]

    def _children(self, name: str, item: object, *, told: bool) -> Iterator[tuple[str, object, bool]] | None:
        """Return a container's items, their names, and whether those without tensors are worth telling."""
        if isinstance(item, Recorder):
            return _of_object(name, item)
        if isinstance(item, dict):
            return _named(name, item.items(), told=told) if item else None
        if isinstance(item, list | tuple | set | frozenset) and not self._is_flat(item):
            return _named(name, enumerate(item), told=told)
        return None

    def _is_flat(self, items: Collection[object]) -> bool:
        if id(items) not in self._flat:
            self._flat[id(items)] = _flat(items)
        return self._flat[id(items)]

    def _refuse(self, message: str) -> NoReturn:
        hint = "It is corrupt, or made to do harm: upload it again, from a source you trust."
        raise FormatError(message, uri=self._uri, hint=hint)


def _named(
    name: str, items: Iterable[tuple[object, object]], *, told: bool
) -> Iterator[tuple[str, object, bool]]:
    prefix = f"{name}." if name else ""
    return ((f"{prefix}{_key(key)}", item, told) for key, item in items)


def _key(key: object) -> str:
    return key if isinstance(key, str) else _words(key)


def _of_object(name: str, item: Recorder) -> Iterator[tuple[str, object, bool]]:
    """Return what an object holds; of its attributes, which are many, only the tensors are worth telling."""
    state = item.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):  # (attributes, slots)
        state = state[0]
    attributes = state if isinstance(state, dict) else {}
    for member in _OF_MODULES:
        inner = attributes.get(member)
        if isinstance(inner, dict):
            yield from _named(name, inner.items(), told=False)
    rest = {key: value for key, value in attributes.items() if key not in _OF_MODULES}
    yield from _named(name, rest.items(), told=False)
    yield from _named(name, item.items or (), told=False)
    yield from _named(name, enumerate(item.elements or ()), told=False)


def _words(item: object) -> str:
    """Return a short text for a value, without ever making a long one."""
    match item:
        case Recorder():
            return f"{type(item).name} object"[: 2 * _LONGEST]
        case type():
            return str(getattr(item, "name", item.__name__))[: 2 * _LONGEST]
        case str() | bytes() | bytearray():
            return repr(item[:_LONGEST]) + ("…" if len(item) > _LONGEST else "")
        case int() if not -(1 << 64) < item < 1 << 64:
            return f"an integer of {item.bit_length()} bits"
        case dict() | list() | tuple() | set() | frozenset() if len(item) > 4:
            return f"{type(item).__name__} of {len(item)} items"
        case list() | tuple() | set() | frozenset() if item:
            return f"[{', '.join(map(_words, item))}]" if _flat(item) else type(item).__name__
        case dict() | list() | tuple() | set() | frozenset():
            return "{}" if isinstance(item, dict) else "[]"
    return repr(item)[:_LONGEST]


def _flat(items: Iterable[object]) -> bool:
    return all(isinstance(item, _SCALARS) for item in items)


_WRAPPERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
)


def _tensor(item: Recorder) -> TensorFact | None:
    """Return what a stand-in says of a tensor, if it is one whose place in the file it tells."""
    name, arguments = type(item).name, item.arguments
    for _ in range(_MOST_WRAPPED):
        match name, arguments:
            case _, (Recorder() as inner, *_) if name in _WRAPPERS:
                name, arguments = type(inner).name, inner.arguments
            case "torch._tensor._rebuild_from_type_v2", (type() as function, _, tuple(passed), *_):
                name, arguments = getattr(function, "name", ""), passed
            case _:
                return _rebuilt(name, arguments)
    return None


def _rebuilt(name: str, arguments: tuple[Any, ...]) -> TensorFact | None:
    match name, arguments:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (
            StorageStandIn() as storage,
            offset,
            (*size,),
            (*stride,),
            *rest,
        ):
            metadata = rest[2] if len(rest) > 2 else None
            return _view(storage.fact, of_storage(storage.fact.type_name), (offset, size, stride), metadata)
        case "torch._utils._rebuild_tensor_v3", (
            StorageStandIn() as storage,
            offset,
            (*size,),
            (*stride,),
            _,
            _,
            type() as kind,
            *rest,
        ):
            dtype = of_torch(getattr(kind, "name", "").removeprefix("torch."))
            return _view(storage.fact, dtype, (offset, size, stride), rest[0] if rest else None)
    return None


def _view(
    storage: StorageFact, dtype: DType | None, place: tuple[Any, list[Any], list[Any]], metadata: object
) -> TensorFact | None:
    offset, size, stride = place
    numbers = (offset, *size, *stride)
    if dtype is None or dtype.bits < 8 or storage.is_view or len(size) != len(stride):
        return None
    if len(size) > _MOST_DIMENSIONS:
        return None
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        return None
    if math.prod(size) >= 1 << 63:  # spread over one element, it takes no bytes: torch cannot count it either
        return None
    lazy = _lazy(metadata)
    if lazy is None:
        return None
    return TensorFact(storage, dtype, offset, tuple(size), tuple(stride), lazy)


def _lazy(metadata: object) -> tuple[str, ...] | None:
    """Return what torch has still to do to each element; None where that is more than is known here."""
    if not metadata:
        return ()
    if not isinstance(metadata, dict) or not metadata.keys() <= {"conj", "neg"}:
        return None
    return tuple(name for name in ("conj", "neg") if metadata.get(name))
