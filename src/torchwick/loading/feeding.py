"""Reads tensors into the caller's, wherever those are and of whatever dtype, in little memory besides.

What lies in an object just as it is to lie in memory is read into that memory by the network's threads. The
rest arrives in fragments, which are cast, moved to a device, or laid out otherwise as they come.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.layout import groups
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.request import wanted
from torchwick.checkpoint.streaming import Stream
from torchwick.checkpoint.watch import Watch
from torchwick.formats.catalog import Catalog, Piece, TensorEntry, contiguous
from torchwick.loading.fragments import Fragment, fragments
from torchwick.loading.ring import Ring

__all__ = ["ANY", "Watches", "allocator", "bytes_of", "copy", "feed", "lies_as_stored"]

Watches = Callable[[Mapping[str, Sequence[tuple[int, int]]]], Mapping[str, Watch]]
"""Returns who watches over objects, given the half-open ranges that are wanted of each."""

ANY = nullcontext()
"""Nothing to be done about what is written."""
_FRAGMENT = 16 << 20  # bytes: a part, as large as they come
_ALONE = 32_000  # elements
_AHEAD = 512 << 20
"""Bytes held at most where no limit was given: 16 parts on their way, and as many that wait."""


def feed(
    catalog: Catalog,
    objects: Objects,
    targets: Mapping[str, torch.Tensor],
    watches: Watches,
    *,
    on_progress: Callable[[int, int], object] | None = None,
    writing: AbstractContextManager[object] = ANY,
) -> None:
    """Read every tensor of a catalog into the one that is given for it.

    Args:
        catalog: what is read.
        objects: where that is.
        targets: tensors by the catalog's names, of the same shapes. They may share memory.
        watches: tells who watches over the objects.
        on_progress: see `Stream`.
        writing: entered when the targets begin to change.

    Raises:
        StoreError: something cannot be read. The targets are then in no defined state.
        FormatError: the bytes around them are not those that belong there.
        IntegrityError: the bytes are not those that were stored.
        MemoryLimitError: a tensor that does not lie in one stretch is larger than the memory limit.
    """
    alone = {group.names[0] for group in groups(catalog.entries, objects.names) if group.is_alone}
    direct = {
        name: bytes_of(target)
        for name, target in targets.items()
        if name in alone and lies_as_stored(catalog.entries[name], target, objects.uri)
    }
    limit = objects.config.memory_bytes()
    size = min(_FRAGMENT, limit // 4)
    cut, of = fragments(catalog, direct, size)
    asked = groups(cut.entries, objects.names)
    stream = Stream(
        asked,
        cut,
        objects,
        into={key: direct[fragment.name] for key, fragment in of.items() if fragment.name in direct},
        watches=watches({name: wanted(name, asked, objects) for name in objects.names}),
        memory=Ring(_most_held(objects, limit), allocator(targets.values())),
        on_progress=on_progress,
        ahead=_AHEAD,
        called=lambda key: of[key].name,
    )
    with writing, stream:
        for key, tensor in stream:
            fragment = of[key]
            if fragment.name not in direct:
                with torch.inference_mode():  # outside of which its tensors cannot be written
                    copy(_box(targets[fragment.name], fragment), tensor)


def _most_held(objects: Objects, limit: int) -> int:
    return min(limit, _AHEAD) if objects.config.memory_limit == "auto" else limit


def lies_as_stored(entry: TensorEntry, target: torch.Tensor, uri: object) -> bool:
    """Whether the tensor's memory is to have the very bytes that the object has."""
    (piece, *_) = entry.pieces
    return (
        isinstance(piece, Piece)
        and piece.stride == contiguous(piece.shape)
        and target.device.type == "cpu"
        and target.is_contiguous()
        and target.dtype == tensors.dtype_of(entry.dtype, uri)
        and entry.byteorder == sys.byteorder
        and not entry.lazy
        and not (target.is_conj() or target.is_neg())
    )


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a contiguous tensor, as bytes."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def _box(target: torch.Tensor, fragment: Fragment) -> torch.Tensor:
    return target.detach() if fragment.where is None else target.detach()[fragment.where]


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy elements, on this thread alone where that is on the processor.

    From 32,768 elements on (``at::internal::GRAIN_SIZE``) torch has all cores copy, and wait for each other,
    which are busy with the network: a checkpoint that is cast then took twice as long on two cores.
    """
    if target.numel() <= _ALONE:
        target.copy_(source)
        return
    if target.device.type == "cpu" and target.is_contiguous() and source.is_contiguous():
        pieces = zip(torch.split(target.view(-1), _ALONE), torch.split(source.view(-1), _ALONE), strict=True)
    else:
        pieces = zip([target], [source], strict=True)
    for piece, data in pieces:
        piece.copy_(data)


def allocator(targets: Iterable[torch.Tensor]) -> tensors.Allocate:
    """Return what makes memory from which the targets are copied fastest."""
    kinds = {target.device.type for target in targets} - {"cpu", "meta"}
    return _pinned if kinds & {"cuda", "xpu"} else tensors.allocate


def _pinned(nbytes: int, uri: object) -> torch.Tensor:  # noqa: ARG001
    """Return memory that a device copies from by itself; torch keeps what is freed for the next one."""
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
