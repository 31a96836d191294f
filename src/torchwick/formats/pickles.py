"""Looks into a pickle without importing anything it names.

A pickle is a program; its ``GLOBAL`` instructions say what it would import. Here every global becomes a
`_Recorder`, which takes any argument and does nothing, so that the program runs to its end and leaves two
facts: the globals it named, and the storages it asked for.

What it asks for may be absurd although torch would provide it: memory by number, a view of more than its
storage. That is refused here, where no memory has been taken yet.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torchwick.errors import FormatError
from torchwick.formats.instructions import check_instructions

__all__ = ["PickleFacts", "StorageFact", "look_into", "values_unseen"]

_MOST_GLOBALS = 10_000  # a checkpoint names some dozens; each one here costs a class


@dataclass(frozen=True)
class StorageFact:
    """A storage that the pickle refers to, as torch.save wrote it down.

    Attributes:
        type_name: the class, such as ``"HalfStorage"``.
        key: its name in the file.
        location: the device tag it was saved under.
        numel: elements, not bytes.
        is_view: whether it is a part of another storage, as files before torch 0.4 could say.
    """

    type_name: str
    key: str
    location: str
    numel: int
    is_view: bool


@dataclass
class PickleFacts:
    """What one pickle would do."""

    data: bytes = field(default=b"", repr=False)
    """The pickle itself."""
    globals: list[str] = field(default_factory=list)
    """Dotted names, each once, in the order of the pickle."""
    storages: dict[str, StorageFact] = field(default_factory=dict)
    value: object = field(default=None, repr=False)
    """What the pickle builds; recorders stand in for whatever is not plain data."""
    followed: bool = True
    """Whether stand-ins could satisfy the pickle to its end; else the facts are not all there are."""


class _AbsurdError(Exception):
    """The pickle asks for something that no pickler writes down."""


class _Recorder:
    """Stands in for any class or function: it can be called, built, set and filled, and does nothing."""

    name: ClassVar[str] = "?"

    def __new__(cls, *arguments: object, **_kwargs: object) -> Self:
        _check_call(cls.name, arguments)
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...
    def __call__(self, *_args: object, **_kwargs: object) -> _Recorder:
        return _Recorder()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple):  # torch 0.1 made an empty tensor, and had its state set
            _check_view(state)

    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def add(self, item: object) -> None: ...


class _Storage(_Recorder):
    """Stands in for a storage."""

    fact: StorageFact


class _Size(_Recorder):
    """Stands in for ``torch.Size`` by the tuple it is."""

    def __new__(cls, lengths: Any = ()) -> Any:
        return tuple(lengths)


def _check_call(name: str, arguments: tuple[object, ...]) -> None:
    """Refuse a call that would take memory by number, without a byte of the file behind it."""
    match name, arguments:
        case "torch._tensor._rebuild_from_type_v2", (type() as function, _, tuple(passed), *_):
            _check_call(getattr(function, "name", ""), passed)  # which calls what it is given
        case "_codecs.encode", (_, encoding, *_) if encoding not in _ENCODINGS:
            raise _AbsurdError(f"it encodes a text as {str(encoding)[:40]!r}")
        case ("builtins.bytearray", (int() as size, *_)):
            raise _AbsurdError(f"it makes a {name} by its size alone: {_few((size,))}")
        case _, (int() | tuple(), *_) if _is_allocated(name):
            raise _AbsurdError(f"it makes a {name} by its size alone")
        case _:
            _check_view(arguments)


_ENCODINGS = ("latin1", "latin-1", "ascii", "utf-8", "utf8")  # others can grow what they encode


def _is_allocated(name: str) -> bool:
    return name.startswith("torch.") and name.endswith(("Tensor", "Storage"))


def _check_view(arguments: tuple[object, ...]) -> None:
    """Refuse a tensor that reaches out of its storage: torch would make the storage larger."""
    match arguments:
        case (_Storage() as storage, int(offset), tuple() | list() as size, tuple() | list() as stride, *_):
            lengths = [n for n in (*size, *stride, offset) if isinstance(n, int)]
        case _:
            return
    if storage.fact.is_view or len(lengths) != len(size) + len(stride) + 1 or 0 in size:
        return
    # Fewer strides than lengths are none to torch: it then lays the tensor out by itself.
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
    if min(lengths) < 0 or len(size) != len(stride) or reach > storage.fact.numel:
        raise _AbsurdError(
            f"a tensor of shape {_few(size)} with strides {_few(stride)}, from element {_few((offset,))} on, "
            f"reaches outside storage {storage.fact.key[:40]!r}, which has {storage.fact.numel}"
        )


def _few(lengths: Sequence[int]) -> str:
    """Return lengths as text, of bounded length."""
    texts = [str(n) if abs(n) < 1 << 64 else "more than 2**64" for n in lengths[:8]]
    return ", ".join(texts) + (", …" if len(lengths) > 8 else "")


_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # by Python 3; protocol 2 keeps the old names


class _Looker(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def __init__(self, file: io.BytesIO, facts: PickleFacts) -> None:
        super().__init__(file, encoding="utf-8")
        self._facts = facts
        self._classes: dict[str, type[_Recorder]] = {}

    def find_class(self, module: str, name: str) -> type[_Recorder]:
        dotted = f"{_RENAMED.get(module, module)}.{name}"
        if dotted not in self._classes:
            if len(self._classes) == _MOST_GLOBALS:
                raise _AbsurdError(f"it names more than {_MOST_GLOBALS} globals")
            self._facts.globals.append(dotted)
            base = _Size if dotted == "torch.Size" else _Recorder
            self._classes[dotted] = type("_Recorder", (base,), {"name": dotted})
        return self._classes[dotted]

    def persistent_load(self, pid: Any) -> object:
        match pid:
            case ("module" | b"module", kind, *_):  # the legacy format: a class, with its source code
                return kind
            case (
                "storage" | b"storage",
                kind,
                str() | bytes() as key,
                str() | bytes() as location,
                int(numel),
                *view,
            ) if abs(numel) < 1 << 63:
                type_name = getattr(kind, "name", "?").rpartition(".")[2]
                viewed = view not in ([], [None])
                return self._storage(StorageFact(type_name, _text(key), _text(location), numel, viewed))
            case ("storage" | b"storage", *_):
                raise _AbsurdError("it describes a storage otherwise than by its class, key, device and size")
            case _:
                self._facts.globals.append(f"persistent id of type {type(pid).__name__}")
        return _Recorder()

    def _storage(self, fact: StorageFact) -> _Storage:
        if fact.numel < 0:
            raise _AbsurdError(f"storage {fact.key[:40]!r} is said to have {_few((fact.numel,))} elements")
        known = self._facts.storages.setdefault(fact.key, fact)
        if fact.is_view and not known.is_view:
            self._facts.storages[fact.key] = fact
        stand_in = _Storage()
        stand_in.fact = fact if fact.is_view else known  # the first is the one torch makes
        return stand_in


def _text(raw: str | bytes) -> str:
    return raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw


_BEYOND_STAND_INS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


def look_into(file: io.BytesIO, *, limit: int | None = None, uri: object = None) -> PickleFacts:
    """Run a pickle over stand-ins and return what it named.

    Args:
        file: stands where the pickle begins, and is left where it ends.
        limit: the bytes `file` would have, were all of them at hand; None where that is not known.
        uri: the object, for messages.

    Raises:
        EOFError: the pickle may go on beyond `file`.
        FormatError: it claims more than there is, or asks for what no pickler writes.

    Example:
        >>> look_into(io.BytesIO(pickle.dumps([1, int, {2}]))).globals
        ['builtins.int']
    """
    start, data = file.tell(), file.getvalue()
    stop = check_instructions(data, start, limit, uri)
    facts = PickleFacts(data[start:stop])
    try:
        facts.value = _Looker(file, facts).load()
    except _AbsurdError as error:
        hint = "It is corrupt, or made to do harm: upload it again, from a source you trust."
        raise FormatError(f"its pickle asks for the impossible: {error}", uri=uri, hint=hint) from error
    except _BEYOND_STAND_INS:
        facts.followed = False
    file.seek(stop)
    return facts


_BLIND = frozenset(
    {
        "_codecs.encode",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.device",
        "torch.nn.parameter.Buffer",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
_BLIND_BUILTINS = frozenset(
    [
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
    ]
)
_TORCH_DTYPES = frozenset(
    [
        "bfloat16",
        "bool",
        "cdouble",
        "cfloat",
        "chalf",
        "complex128",
        "complex32",
        "complex64",
        "double",
        "float",
        "float16",
        "float32",
        "float64",
        "float4_e2m1fn_x2",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "half",
        "int",
        "int16",
        "int32",
        "int64",
        "int8",
        "long",
        "short",
        "uint16",
        "uint32",
        "uint64",
        "uint8",
    ]
)


def values_unseen(name: str) -> bool:
    """Whether a global builds its object without looking at any tensor's values.

    Only what is known to be blind is: anything else (sparse and quantized tensors, numpy, classes of the
    caller's) may want the bytes while it is being built.

    Example:
        >>> values_unseen("torch._utils._rebuild_tensor_v2"), values_unseen("torch._utils._rebuild_qtensor")
        (True, False)
    """
    module, _, attribute = name.rpartition(".")
    return (
        name in _BLIND
        or (module == "builtins" and attribute in _BLIND_BUILTINS)
        or (module == "torch" and (attribute in _TORCH_DTYPES or attribute.endswith("Storage")))
    )
