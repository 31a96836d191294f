"""Looks into a pickle without importing anything it names.

A pickle is a program; its ``GLOBAL`` instructions say what it would import. Here every global becomes a
`_Recorder`, which takes any argument and does nothing, so that the program runs to its end and leaves two
facts: the globals it named, and the storages it asked for.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

__all__ = ["PickleFacts", "StorageFact", "look_into", "values_unseen"]


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
    value: object = None
    """What the pickle builds; recorders stand in for whatever is not plain data."""


class _Recorder:
    """Stands in for any class or function: it can be called, built, set and filled, and does nothing."""

    name = "?"

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...
    def __call__(self, *_args: object, **_kwargs: object) -> _Recorder:
        return _Recorder()

    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def add(self, item: object) -> None: ...


_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # by Python 3; protocol 2 keeps the old names


class _Looker(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def __init__(self, file: BinaryIO, facts: PickleFacts) -> None:
        super().__init__(file, encoding="utf-8")
        self._facts = facts
        self._classes: dict[str, type[_Recorder]] = {}

    def find_class(self, module: str, name: str) -> type[_Recorder]:
        dotted = f"{_RENAMED.get(module, module)}.{name}"
        if dotted not in self._classes:
            self._facts.globals.append(dotted)
            self._classes[dotted] = type("_Recorder", (_Recorder,), {"name": dotted})
        return self._classes[dotted]

    def persistent_load(self, pid: Any) -> object:
        match pid:
            case ("module" | b"module", kind, *_):  # the legacy format: a class, with its source code
                return kind
            case ("storage" | b"storage", kind, key, location, int(numel), *view):
                type_name = getattr(kind, "name", "?").rpartition(".")[2]
                fact = StorageFact(type_name, _text(key), _text(location), numel, view not in ([], [None]))
                known = self._facts.storages.setdefault(fact.key, fact)
                if fact.is_view and not known.is_view:
                    self._facts.storages[fact.key] = fact
            case _:
                self._facts.globals.append(f"persistent id {str(pid)[:40]}")
        return _Recorder()


def _text(raw: object) -> str:
    return raw.decode("ascii", "replace") if isinstance(raw, bytes) else str(raw)


def look_into(file: BinaryIO) -> PickleFacts:
    """Run a pickle over stand-ins and return what it named.

    Args:
        file: stands where the pickle begins, and is left where it ends.

    Raises:
        Exception: it is not a pickle, or one that stand-ins cannot satisfy. The kind depends on the bytes.

    Example:
        >>> import io
        >>> look_into(io.BytesIO(pickle.dumps([1, int, {2}]))).globals
        ['builtins.int']
    """
    facts, start = PickleFacts(), file.tell()
    facts.value = _Looker(file, facts).load()
    stop = file.tell()
    file.seek(start)
    facts.data = file.read(stop - start)
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
