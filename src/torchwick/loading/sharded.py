"""Parameters that are sharded over ranks (DTensor): each rank reads a share, and the ranks exchange the rest.

A rank reads its own shard where that is one stretch of the tensor's elements, and no other rank has the same.
What is replicated, or sharded along another dimension than the first, is read as if it were sharded along the
first, each element by one rank; torch.distributed then brings it to where it belongs
(`DTensor.redistribute`). So every byte is read once, whatever the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from torchwick.checkpoint.boxes import box_of
from torchwick.formats.catalog import TensorEntry, contiguous
from torchwick.loading.slots import Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.tensor import DTensor, Placement

__all__ = ["Place", "ShardedPlace", "Share", "share_of"]

_SMALL = 64 << 10
"""Bytes of a tensor that every rank reads for itself: a request's worth, for less than an exchange takes."""


class Place(Protocol):
    """Where a tensor of the checkpoint goes in a module."""

    @property
    def entry(self) -> TensorEntry:
        """What is read of it."""
        ...

    @property
    def target(self) -> torch.Tensor:
        """What that is read into."""
        ...

    @property
    def in_place(self) -> bool:
        """Whether it is read into the module's own memory."""
        ...

    def settle(self) -> None:
        """Have the module hold what was read."""
        ...


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
        if tuple(like.placements) == self.placements:
            return read
        whole = _of_shards(read, like, self.placements)
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


class ShardedPlace:
    """A slot that holds a DTensor; see `Place`.

    Args:
        slot: the slot.
        entry: the whole tensor.
        dtype: what it is to be.
        device: where this rank's shard is to be; None: where it is, or the mesh.
    """

    def __init__(
        self, slot: Slot, entry: TensorEntry, dtype: torch.dtype, device: torch.device | None
    ) -> None:
        self._slot = slot
        parameter: Any = slot.tensor
        self._parameter: DTensor = parameter
        self.mesh = parameter.device_mesh
        self._share = share_of(parameter)
        part = box_of(entry, self._share.start, self._share.shape)
        self._whole = part is None  # such as one that was packed: it is read as a whole, and cut
        self.entry = entry if part is None else part
        local = parameter.to_local().detach()
        where = torch.device(self.mesh.device_type) if local.is_meta else local.device
        self._stays = device in (None, local.device) and dtype == local.dtype and not local.is_meta
        own = self._stays and not self._whole and self._share.placements == tuple(parameter.placements)
        self.in_place = own
        self.target = local if own else torch.empty(self.entry.shape, dtype=dtype, device=device or where)

    def settle(self) -> None:
        """Exchange shares, and have the module hold this rank's shard; every rank calls it, in one order."""
        if self.in_place:
            torch.autograd.graph.increment_version(self.target)
            return
        read = self.target
        if self._whole:
            ends = zip(self._share.start, self._share.shape, strict=True)
            read = read[tuple(slice(at, at + count) for at, count in ends)].contiguous()
        shard = self._share.spread(read, self._parameter)
        if self._stays:
            with torch.no_grad():
                self._parameter.to_local().copy_(shard)
        else:
            # FSDP takes none but contiguous ones, and a column of what was gathered is not.
            shard = shard.contiguous()
            self._slot.put(_of_shards(shard, self._parameter, self._parameter.placements))


def _of_shards(shard: torch.Tensor, like: DTensor, placements: Sequence[Placement]) -> DTensor:
    """Return the tensor that the ranks' shards are, each calling it with its own."""
    from torch.distributed.tensor import DTensor

    shape = tuple(like.shape)
    return DTensor.from_local(
        shard, like.device_mesh, placements, run_check=False, shape=like.shape, stride=contiguous(shape)
    )
