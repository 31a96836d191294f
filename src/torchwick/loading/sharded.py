"""Parameters that are sharded over ranks (DTensor): each rank reads a share, and the ranks exchange the rest.

A rank reads its own shard where that is one stretch of the tensor's elements, and no other rank has the same.
What is replicated, or sharded along another dimension than the first, is read as if it were sharded along the
first, each element by one rank; torch.distributed then brings it to where it belongs
(`DTensor.redistribute`). So every byte is read once, whatever the layout.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.tensor import DTensor, Placement

__all__ = ["Share", "is_sharded", "share_of"]

_SMALL = 64 << 10
"""Bytes of a tensor that every rank reads for itself: a request's worth, for less than an exchange takes."""


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor; nothing is imported to tell."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@dataclass(frozen=True)
class Share:
    """What one rank reads of a DTensor.

    Attributes:
        start: where its box begins in the whole tensor.
        shape: lengths of the box; a rank that has nothing to read has a 0 there.
        placements: how the tensor is sharded as long as each rank has its share only.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    placements: tuple[Placement, ...]

    def spread(self, read: torch.Tensor, like: DTensor) -> torch.Tensor:
        """Return this rank's shard, all ranks having read their shares; every rank calls it.

        Args:
            read: the share.
            like: the parameter, which says how it is sharded in the end.
        """
        from torch.distributed.tensor import DTensor

        if tuple(like.placements) == self.placements:
            return read
        whole = DTensor.from_local(
            read,
            like.device_mesh,
            self.placements,
            run_check=False,
            shape=like.shape,
            stride=_strides(tuple(like.shape)),
        )
        local: torch.Tensor = whole.redistribute(placements=like.placements).to_local()
        return local


def share_of(tensor: DTensor) -> Share:
    """Say what this rank reads of a parameter."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = _read_as(tensor)
    shape, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, placements)
    if 0 in shape:  # there the offset says nothing
        start = (0,) * len(shape)
    return Share(tuple(start), tuple(shape), placements)


def _read_as(tensor: DTensor) -> tuple[Placement, ...]:
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    if tensor.numel() * tensor.element_size() <= _SMALL:
        return placements
    kinds: Sequence[Any] = [type(placement) for placement in placements]
    if not all(kind in (Replicate, Shard) for kind in kinds):  # a kind that is not known to be exchanged
        return placements
    if all(placement == Shard(0) for placement in placements):
        return placements
    return (Shard(0),) * mesh.ndim


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
