"""Casts the floating-point tensors of a loaded object, whatever holds them: ties stay, and so do counters.

Tensors of one storage become tensors of one new storage. A tensor stays the same object: all that refer to it
see it cast.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["COUNTER", "Shared", "as_dtype", "by_storage", "is_counter", "recast", "rest_on"]


COUNTER = "step"
"""What torch's optimizers call their count of steps, a float (torch/optim/adam.py): bfloat16 has no 257."""


class _Finder(pickle.Pickler):
    """Walks through an object as a pickler does, and takes note of its tensors."""

    def __init__(self) -> None:
        super().__init__(_Nowhere(), pickle.HIGHEST_PROTOCOL)
        self.found: dict[int, torch.Tensor] = {}
        self.counters: set[int] = set()

    def persistent_id(self, obj: Any) -> int | None:
        """Look at an object, and tell the pickler to go on into it or not."""
        if isinstance(obj, torch.Tensor):
            self.found[id(obj)] = obj
            return id(obj)
        if isinstance(obj, torch.UntypedStorage | torch.TypedStorage):
            return id(obj)
        if isinstance(obj, dict):
            self.counters.update(id(value) for key, value in obj.items() if is_counter(key, value))
        return None


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def is_counter(name: object, tensor: object) -> bool:
    """Whether it is the count of steps that torch's optimizers keep as a float."""
    return name == COUNTER and isinstance(tensor, torch.Tensor) and not tensor.dim()


@dataclass(frozen=True)
class Shared:
    """The tensors of one storage.

    Attributes:
        tensors: all of them.
        casts: whether they are cast: all of them are floating-point, of one dtype, and none is a counter.
    """

    tensors: list[torch.Tensor]
    casts: bool

    @property
    def storage(self) -> torch.UntypedStorage:
        """What they share."""
        return self.tensors[0].untyped_storage()


def by_storage(value: Any) -> tuple[list[Shared], list[torch.Tensor]]:
    """Return the tensors in an object, storage by storage, and those that have none of their own."""
    finder = _Finder()
    finder.dump(value)
    together: dict[int, list[torch.Tensor]] = {}
    others = []
    for tensor in finder.found.values():
        if tensor.layout is torch.strided and not tensor.is_quantized:
            together.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)  # noqa: SLF001 - its identity
        else:
            others.append(tensor)
    return [Shared(group, _casts(group, finder.counters)) for group in together.values()], others


def _casts(tensors: list[torch.Tensor], counters: set[int]) -> bool:
    if any(id(tensor) in counters for tensor in tensors):
        return False
    return tensors[0].is_floating_point() and len({tensor.dtype for tensor in tensors}) == 1


def as_dtype(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.Tensor:
    """Return all elements of a storage."""
    flat = torch.empty(0, dtype=dtype, device=storage.device)
    set_: Any = flat.set_  # whose annotation knows no untyped storage
    return set_(storage, 0, (storage.nbytes() // dtype.itemsize,), (1,))  # type: ignore[no-any-return]


def rest_on(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Have tensors be the same views of other elements."""
    for tensor in tensors:
        view = torch.as_strided(flat, tensor.size(), tensor.stride(), tensor.storage_offset())
        view = view.conj() if tensor.is_conj() else view
        tensor.data = torch._neg_view(view) if tensor.is_neg() else view  # noqa: SLF001 - there is no public one


def recast(value: Any, dtype: torch.dtype) -> None:
    """Cast the floating-point tensors of an object, one storage after the other."""
    together, others = by_storage(value)
    for shared in together:
        if shared.casts:
            flat = as_dtype(shared.storage, shared.tensors[0].dtype)
            rest_on(flat.to(dtype), shared.tensors)
    for tensor in others:
        if tensor.is_floating_point():
            tensor.data = tensor.detach().to(dtype)
