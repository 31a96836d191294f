"""The ranks of a process group: who is in it, how they broadcast, and the store through which they agree."""

from __future__ import annotations

import collections
import ctypes
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

__all__ = ["Members", "Work", "keys_of"]

Work = Any
"""The handle of a collective that is under way; torch's own class is private in some builds."""

_loads: weakref.WeakKeyDictionary[Any, collections.Counter[str]] = weakref.WeakKeyDictionary()
"""Loads in each group so far, by who takes part: all its ranks count alike, and so find each other's keys."""


def keys_of(group: Any, name: str) -> Any:
    """Return the keys of one more load, in the key-value store of torch.distributed.

    Args:
        group: torch's; one that is made anew counts anew.
        name: of those of its ranks that take part.
    """
    loads = _loads.setdefault(group, collections.Counter())
    loads[name] += 1
    store = distributed_c10d._get_default_store()  # noqa: SLF001 - there is no public one before torch 2.8
    return distributed_c10d.PrefixStore(f"torchwick/{name}/{loads[name]}", store)


class Members:
    """The ranks of a group, as this rank sees them.

    Args:
        group: torch's; None is the default one.

    Raises:
        ValueError: this process is no rank of it, or there is none.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        if not dist.is_initialized():
            raise ValueError("there is no process group: call torch.distributed.init_process_group() first")
        self._group = dist.group.WORLD if group is None else group
        self.rank = dist.get_rank(self._group)
        if self.rank < 0:
            raise ValueError("this process is no rank of the group")
        self.size = dist.get_world_size(self._group)
        self.store = keys_of(self._group, str(self._group.group_name))  # type: ignore[union-attr]
        self.device = _device_of(self._group)
        """Where what is broadcast has to be."""

    def broadcast(self, tensor: torch.Tensor, owner: int) -> Work:
        """Begin to broadcast; every rank calls it, in the same order.

        Args:
            tensor: bytes; the owner's are sent, the others' overwritten.
            owner: a rank of the group.
        """
        source = dist.get_global_rank(self._group, owner)  # type: ignore[arg-type]
        return dist.broadcast(tensor, source, group=self._group, async_op=True)

    def abandon(self) -> None:
        """Keep the group for as long as the process lives: a collective of it may never end.

        Whoever let go of it last would wait for that collective up to the group's own timeout, half an hour
        unless it was set, holding the interpreter's lock meanwhile.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))


def _device_of(group: Any) -> torch.device:
    """Return the device that the group's backend takes: the CPU, wherever it takes that as well."""
    if "cpu" in {kind.type for kind in group._device_types}:  # noqa: SLF001 - there is no public one
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
