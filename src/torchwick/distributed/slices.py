"""One rank's slice of a tensor, for code that shards without DTensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from torchwick.checkpoint import Checkpoint

__all__ = ["tensor_parallel_slice"]


def tensor_parallel_slice(checkpoint: Checkpoint, name: str, dim: int, rank: int, world: int) -> torch.Tensor:
    """Read the slice of a tensor that one of several ranks is to have.

    It is what `torch.chunk` gives, and ``DTensor`` with ``Shard(dim)``: all slices are as long but for the
    last ones, which may be shorter, or empty. Rows are read by themselves; of columns, what lies between may
    be read as well.

    Args:
        checkpoint: what `torchwick.open` gave.
        name: the tensor's.
        dim: the dimension that is cut; a negative one counts from the last.
        rank: whose slice, from 0.
        world: how many ranks there are.

    Raises:
        TensorNotFoundError: there is none of that name.
        IndexError: the tensor has no such dimension.
        ValueError: there is no such rank.
        StoreError: it cannot be read.

    Example:
        >>> import tempfile, torch, torchwick
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"w": torch.arange(10).view(5, 2)}, f"{folder}/model.pt")
        ...     with torchwick.open(f"{folder}/model.pt") as ckpt:
        ...         tensor_parallel_slice(ckpt, "w", 0, rank=1, world=2)
        tensor([[6, 7],
                [8, 9]])
    """
    if not 0 <= rank < world:
        raise ValueError(f"there is no rank {rank} among {world}")
    sliced = checkpoint.get_slice(name)
    if not -len(sliced.shape) <= dim < len(sliced.shape):
        raise IndexError(f"{name!r} has {len(sliced.shape)} dimensions, and none is {dim}")
    dim %= len(sliced.shape)
    length = -(-sliced.shape[dim] // world)
    start = min(rank * length, sliced.shape[dim])
    stop = min(start + length, sliced.shape[dim])
    return sliced[(*[slice(None)] * dim, slice(start, stop))]
