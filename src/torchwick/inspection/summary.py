"""`summarize`: what a checkpoint holds, module by module, from its catalog alone.

Models repeat themselves: modules that differ in nothing but their number are one line of the tree, so that a
model of a hundred layers is as short as one of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torchwick.checkpoint.info import ObjectFact, TensorInfo

if TYPE_CHECKING:
    from torchwick.checkpoint import Checkpoint

__all__ = ["Amount", "Module", "Summary", "summarize"]

_DEEPEST = 64  # levels of the tree; a name with more dots keeps its rest in one piece
_LONGEST_NUMBER = 9  # digits of a segment that counts as a number
_MOST_RUNS = 6  # of numbers in the name of folded modules


@dataclass(frozen=True)
class Amount:
    """How much there is of something.

    Attributes:
        tensors: how many.
        parameters: their elements.
        bytes: bytes of the elements; shared ones count for each tensor that shares them.
    """

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.tensors + other.tensors, self.parameters + other.parameters, self.bytes + other.bytes
        )

    def __mul__(self, times: int) -> Amount:
        return Amount(self.tensors * times, self.parameters * times, self.bytes * times)


@dataclass(frozen=True)
class Module:
    """A part of the dotted names, and what is under it.

    Attributes:
        name: between two dots: ``"layers"``. Siblings that differ in nothing but their number are one, named
            ``"[0-31]"``.
        copies: how many modules it stands for, those above it taken into account.
        amount: of all of them together.
        dtype: as safetensors spells it; None where no tensor has just this name.
        shape: the tensor's, or None.
        children: what comes after the dot; those with numbers first, in their order.
    """

    name: str
    copies: int
    amount: Amount
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    children: tuple[Module, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain types, for JSON."""
        return {
            "name": self.name,
            "copies": self.copies,
            **vars(self.amount),
            "dtype": self.dtype,
            "shape": self.shape,
            "children": [child.to_dict() for child in self.children],
        }


@dataclass(frozen=True)
class Summary:
    """What `summarize` found.

    Attributes:
        uri: the checkpoint, as text without secrets.
        format: ``"safetensors"``, ``"torch zip"``, ``"torch legacy"``, ``"TorchScript"`` or ``"dcp"``.
        objects: what the tensors are in: URI and bytes of each.
        size: bytes of the objects; None where the server does not say.
        total: all tensors.
        distinct_bytes: bytes of the tensors, those that several share counted once.
        dtypes: the tensors of each dtype, those with the most bytes first.
        metadata: texts that were written with the tensors.
        others: what is there besides tensors, by name, each in a few words.
        modules: the tree of the names; its root has the empty name.
        tensors: every tensor by name, in the order of the bytes.
        bytes_read: bytes received.
        requests: requests sent.
    """

    uri: str
    format: str
    objects: tuple[ObjectFact, ...]
    size: int | None
    total: Amount
    distinct_bytes: int
    dtypes: dict[str, Amount]
    metadata: dict[str, str]
    others: dict[str, str]
    modules: Module
    tensors: dict[str, TensorInfo]
    bytes_read: int
    requests: int

    @property
    def tied_bytes(self) -> int:
        """Bytes that sharing saves."""
        return self.total.bytes - self.distinct_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain types, for JSON, with every tensor."""
        return {
            "uri": self.uri,
            "format": self.format,
            "objects": [{**vars(fact)} for fact in self.objects],
            "size": self.size,
            "total": {**vars(self.total)},
            "distinct_bytes": self.distinct_bytes,
            "dtypes": {dtype: {**vars(amount)} for dtype, amount in self.dtypes.items()},
            "metadata": self.metadata,
            "others": self.others,
            "modules": self.modules.to_dict(),
            "tensors": {name: {**vars(info)} for name, info in self.tensors.items()},
            "bytes_read": self.bytes_read,
            "requests": self.requests,
        }


def summarize(ckpt: Checkpoint) -> Summary:
    """Tell what a checkpoint holds, of which nothing more is read for it.

    Args:
        ckpt: from `torchwick.open`.

    Returns:
        The summary. Sizes are of elements; a file is larger than its tensors, and smaller where they share.

    Example:
        >>> import tempfile, torch, torchwick
        >>> state = {f"layers.{n}.weight": torch.ones(2, 3) for n in range(4)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(state, f"{folder}/model.pt")
        ...     summary = summarize(torchwick.open(f"{folder}/model.pt"))
        >>> summary.total, summary.modules.children[0].children[0].name
        (Amount(tensors=4, parameters=24, bytes=96), '[0-3]')
    """
    tensors = {name: ckpt.info(name) for name in ckpt.offset_keys()}
    total = sum(map(_amount, tensors.values()), Amount())
    traffic = ckpt.traffic
    return Summary(
        uri=ckpt.uri,
        format=ckpt.format,
        objects=ckpt.objects,
        size=ckpt.size,
        total=total,
        distinct_bytes=min(total.bytes, _distinct(tensors.values())),
        dtypes=_by_dtype(tensors.values()),
        metadata=ckpt.metadata(),
        others=ckpt.others,
        modules=_tree({name: tensors[name] for name in ckpt}),
        tensors=tensors,
        bytes_read=traffic.bytes_read,
        requests=traffic.requests,
    )


def _amount(info: TensorInfo) -> Amount:
    return Amount(1, info.numel, info.nbytes)


def _by_dtype(infos: Iterable[TensorInfo]) -> dict[str, Amount]:
    amounts: dict[str, Amount] = {}
    for info in infos:
        amounts[info.dtype] = amounts.get(info.dtype, Amount()) + _amount(info)
    return dict(sorted(amounts.items(), key=lambda item: -item[1].bytes))


def _distinct(infos: Iterable[TensorInfo]) -> int:
    """Return the bytes that tensors lie in, each counted once.

    Where views leave gaps between their elements, the bytes of a stretch are no more than its tensors have.
    """
    spans = sorted(
        (uri, start, stop, info.nbytes if len(info.places) == 1 else stop - start)
        for info in infos
        for uri, start, stop in info.places
    )
    distinct = 0
    at, first, end, needed = "", 0, 0, 0
    for uri, start, stop, nbytes in spans:
        if uri == at and start < end:
            end, needed = max(end, stop), needed + nbytes
        else:
            distinct += min(end - first, needed)
            at, first, end, needed = uri, start, stop, nbytes
    return distinct + min(end - first, needed)


# -- the tree ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A module before it is folded."""

    info: TensorInfo | None = None
    children: dict[str, _Node] = field(default_factory=dict)


def _tree(tensors: dict[str, TensorInfo]) -> Module:
    root = _Node()
    for name, info in tensors.items():
        node = root
        for segment in name.split(".", _DEEPEST - 1):
            node = node.children.setdefault(segment, _Node())
        node.info = info
    return _Folder().fold("", root)[1]


class _Folder:
    """Makes modules of nodes; equal structures have equal numbers."""

    def __init__(self) -> None:
        self._structures: dict[tuple[object, ...], int] = {}

    def fold(self, name: str, node: _Node) -> tuple[int, Module]:
        """Return the number of a node's structure, and its module."""
        info = node.info
        dtype, shape = (None, None) if info is None else (info.dtype, info.shape)
        folded = {segment: self.fold(segment, child) for segment, child in node.children.items()}
        under = frozenset((segment, structure) for segment, (structure, _) in folded.items())
        structure = self._structures.setdefault((dtype, shape, under), len(self._structures))
        children = tuple(_merged(folded))
        amount = sum((child.amount for child in children), Amount() if info is None else _amount(info))
        return structure, Module(name, 1, amount, dtype, shape, children)


def _merged(folded: dict[str, tuple[int, Module]]) -> Iterator[Module]:
    """Yield children, those of equal structure that differ in their number as one."""
    alike: dict[int, list[str]] = {}
    for segment in sorted(filter(_is_number, folded), key=int):
        alike.setdefault(folded[segment][0], []).append(segment)
    for segments in alike.values():
        module = folded[segments[0]][1]
        if len(segments) > 1:
            module = replace(_times(module, len(segments)), name=_numbers([*map(int, segments)]))
        yield module
    for segment, (_, module) in folded.items():
        if not _is_number(segment):
            yield module


def _times(module: Module, times: int) -> Module:
    return replace(
        module,
        copies=module.copies * times,
        amount=module.amount * times,
        children=tuple(_times(child, times) for child in module.children),
    )


def _is_number(segment: str) -> bool:
    plain = segment.isascii() and segment.isdigit() and len(segment) <= _LONGEST_NUMBER
    return plain and (segment == "0" or segment[0] != "0")


def _numbers(numbers: list[int]) -> str:
    """Return ascending numbers as runs.

    Example:
        >>> _numbers([0, 1, 2, 5, 7, 8]), _numbers([*range(0, 80, 2)])
        ('[0-2,5,7-8]', '[0,2,4,6,8,10,…]')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{first}-{last}" if first < last else f"{first}" for first, last in runs[:_MOST_RUNS]]
    return f"[{','.join([*shown, *(['…'] if len(runs) > _MOST_RUNS else [])])}]"
