"""Cuts the tensors of checkpoints into steps that fit into memory: many small ones, or part of one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchwick.formats.dtypes import DTYPES

if TYPE_CHECKING:
    import torch

    from torchwick.checkpoint import Checkpoint, TensorInfo

__all__ = ["Step", "boxes", "read_step", "steps"]

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Step:
    """What is read at once.

    Attributes:
        names: of tensors.
        index: which part of the one there is, or None: they are read whole.
    """

    names: tuple[str, ...]
    index: Index | None = None


def steps(tensors: Sequence[tuple[str, tuple[TensorInfo, ...]]], size: int) -> Iterator[Step]:
    """Return the steps in which tensors are read, in their order.

    Args:
        tensors: names, and what is known of the tensor in each of the checkpoints; of one shape in all.
        size: bytes that a step may take of one checkpoint.
    """
    batch, held = list[str](), 0
    for name, infos in tensors:
        nbytes = max(map(_held, infos))
        if batch and held + nbytes > size:
            yield Step(tuple(batch))
            batch, held = [], 0
        if nbytes > size:
            width = max(DTYPES[info.dtype].bits for info in infos) / 8
            yield from (Step((name,), index) for index in boxes(infos[0].shape, int(size // width)))
        else:
            batch.append(name)
            held += nbytes
    if batch:
        yield Step(tuple(batch))


def _held(info: TensorInfo) -> int:
    """Return the bytes that reading a tensor whole takes, what it is put together from included."""
    spans = sum(stop - start for _, start, stop in info.places)
    return spans + info.nbytes if len(info.places) > 1 else max(spans, info.nbytes)


def boxes(shape: tuple[int, ...], most: int) -> Iterator[Index]:
    """Cut a tensor into boxes of at most so many elements, or of one.

    Example:
        >>> list(boxes((2, 4), 3))[1:3]
        [(slice(0, 1, None), slice(3, 4, None)), (slice(1, 2, None), slice(0, 3, None))]
        >>> list(boxes((2, 4), 4)), list(boxes((), 1))
        ([(slice(0, 1, None),), (slice(1, 2, None),)], [()])
    """
    for dim, length in enumerate(shape):
        inner = math.prod(shape[dim + 1 :])
        if inner <= most or dim + 1 == len(shape):
            rows = max(1, most // inner)
            for outer in itertools.product(*map(range, shape[:dim])):
                for at in range(0, length, rows):
                    yield (*(slice(i, i + 1) for i in outer), slice(at, min(at + rows, length)))
            return
    yield ()


def read_step(checkpoint: Checkpoint, step: Step) -> dict[str, torch.Tensor]:
    """Read what a step is of, by name.

    Raises:
        StoreError: it cannot be read.
    """
    if step.index is None:
        return checkpoint.read(step.names)
    return {name: checkpoint.get_slice(name)[step.index] for name in step.names}
