"""What a pickle builds when nothing it names is imported: stand-ins, which keep what they are given.

Every class and function becomes a `Recorder` of its own; containers of the standard library become the plain
containers that they are. What is asked for may be absurd although torch would provide it: memory by number, a
view of more than its storage. That is refused here, where no memory has been taken yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

__all__ = ["AbsurdError", "Recorder", "StorageFact", "StorageStandIn", "few", "stand_in"]


_MOST_DIMENSIONS = 1000  # more than torch makes tensors of
_MOST_COPIED = 2_000_000  # items of mappings that are made of others: some 200 MB


class AbsurdError(Exception):
    """The pickle asks for something that no pickler writes down."""


class Recorder:
    """Stands in for any class or function: it can be called, built, set and filled, and only remembers.

    Attributes:
        name: the global it stands for, as a dotted name.
        arguments: what it was made with.
        state: what it was told to be, or None.
        items: what was set in it, with its keys, or None.
        elements: what was appended to it, or None.
    """

    name: ClassVar[str] = "?"

    arguments: tuple[Any, ...]
    state: Any = None
    items: list[tuple[Any, Any]] | None = None  # most have none, and there may be very many of them
    elements: list[Any] | None = None

    def __new__(cls, *arguments: object, **_kwargs: object) -> Self:  # noqa: D102
        _check_call(cls.name, arguments)
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...
    def __call__(self, *_args: object, **_kwargs: object) -> Recorder:  # noqa: D102
        return Recorder()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple):  # torch 0.1 made an empty tensor, and had its state set
            _check_view(state)
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items = self.items or []
        self.items.append((key, value))

    def append(self, item: object) -> None:
        """Remember an element of a list, or of a set."""
        self.elements = self.elements or []
        self.elements.append(item)

    add = append

    def extend(self, items: Iterable[object]) -> None:
        """Remember several elements."""
        for item in items:
            self.append(item)


class StorageStandIn(Recorder):
    """Stands in for a storage."""

    fact: StorageFact


class _Size(Recorder):
    """Stands in for ``torch.Size`` by the tuple it is."""

    def __new__(cls, lengths: Any = ()) -> Any:
        if len(lengths) > _MOST_DIMENSIONS:  # each call would copy them
            raise AbsurdError(f"it makes a {cls.name} of {len(lengths)} lengths")
        return tuple(lengths)


class _Mapping(dict[Any, Any]):
    """Stands in for a mapping of the standard library's, whose attributes are of no interest."""

    name: ClassVar[str] = "?"
    copied: ClassVar[int] = 0

    def __init__(self, items: Any = ()) -> None:
        kind = type(self)  # one for each pickle
        kind.copied += len(items)
        if kind.copied > _MOST_COPIED:  # a list that is met again and again would be copied as often
            raise AbsurdError(f"it copies more than {_MOST_COPIED} items into a {kind.name}")
        super().__init__(items)

    def __setstate__(self, state: object) -> None: ...


class _DefaultMapping(_Mapping):
    """Stands in for a ``defaultdict``, whose argument is no content."""

    def __init__(self, *_factory: object) -> None:
        super().__init__()


_BASES: dict[str, type] = {
    "collections.Counter": _Mapping,
    "collections.OrderedDict": _Mapping,
    "collections.defaultdict": _DefaultMapping,
    "torch.Size": _Size,
}


def stand_in(dotted: str) -> type:
    """Return a class that stands in for a global.

    Example:
        >>> stand_in("os.system")("rm -rf /").arguments
        ('rm -rf /',)
    """
    return type("_Recorder", (_BASES.get(dotted, Recorder),), {"name": dotted})


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


def _check_call(name: str, arguments: tuple[object, ...]) -> None:
    """Refuse a call that would take memory by number, without a byte of the file behind it."""
    match name, arguments:
        case "torch._tensor._rebuild_from_type_v2", (type() as function, _, tuple(passed), *_):
            _check_call(getattr(function, "name", ""), passed)  # which calls what it is given
        case "_codecs.encode", (_, encoding, *_) if encoding not in _ENCODINGS:
            raise AbsurdError(f"it encodes a text as {str(encoding)[:40]!r}")
        case ("builtins.bytearray", (int() as size, *_)):
            raise AbsurdError(f"it makes a {name} by its size alone: {few((size,))}")
        case _, (int() | tuple(), *_) if _is_allocated(name):
            raise AbsurdError(f"it makes a {name} by its size alone")
        case _:
            _check_view(arguments)


_ENCODINGS = ("latin1", "latin-1", "ascii", "utf-8", "utf8")  # others can grow what they encode


def _is_allocated(name: str) -> bool:
    return name.startswith("torch.") and name.endswith(("Tensor", "Storage"))


def _check_view(arguments: tuple[object, ...]) -> None:
    """Refuse a tensor that reaches out of its storage: torch would make the storage larger."""
    match arguments:
        case (
            StorageStandIn() as storage,
            int(offset),
            tuple() | list() as size,
            tuple() | list() as stride,
            *_,
        ):
            lengths = [n for n in (*size, *stride, offset) if isinstance(n, int)]
        case _:
            return
    if storage.fact.is_view or len(lengths) != len(size) + len(stride) + 1 or 0 in size:
        return
    # Fewer strides than lengths are none to torch: it then lays the tensor out by itself.
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
    if min(lengths) < 0 or len(size) != len(stride) or reach > storage.fact.numel:
        raise AbsurdError(
            f"a tensor of shape {few(size)} with strides {few(stride)}, from element {few((offset,))} on, "
            f"reaches outside storage {storage.fact.key[:40]!r}, which has {storage.fact.numel}"
        )


def few(lengths: Sequence[int]) -> str:
    """Return lengths as text, of bounded length."""
    texts = [str(n) if abs(n) < 1 << 64 else "more than 2**64" for n in lengths[:8]]
    return ", ".join(texts) + (", …" if len(lengths) > 8 else "")
