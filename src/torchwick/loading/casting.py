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

from torchwick.errors import FormatError
from torchwick.formats.dtypes import FLOATS, of_torch

__all__ = [
    "COUNTER",
    "Contents",
    "Shared",
    "as_dtype",
    "by_storage",
    "is_castable",
    "is_counter",
    "recast",
    "rest_on",
]


COUNTER = "step"
"""What torch's optimizers call their count of steps, a float (torch/optim/adam.py): bfloat16 has no 257."""


class _Finder(pickle.Pickler):
    """Walks through an object as a pickler does, and takes note of its tensors."""

    def __init__(self) -> None:
        super().__init__(_Nowhere(), pickle.HIGHEST_PROTOCOL)
        self.found: dict[int, torch.Tensor] = {}
        self.counters: set[int] = set()
        self.bare: set[int] = set()

    def persistent_id(self, obj: Any) -> int | None:
        """Look at an object, and tell the pickler to go on into it or not."""
        if isinstance(obj, torch.Tensor):
            self.found[id(obj)] = obj
            return id(obj)
        if isinstance(obj, torch.UntypedStorage | torch.TypedStorage):
            untyped: Any = obj if isinstance(obj, torch.UntypedStorage) else obj._untyped_storage  # noqa: SLF001
            self.bare.add(untyped._cdata)  # noqa: SLF001 - its identity
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
        casts: whether they are cast: all of them are floating-point, of one dtype, none is a counter, and
            their storage is not held for itself, whose bytes have no other form.
    """

    tensors: list[torch.Tensor]
    casts: bool

    @property
    def storage(self) -> torch.UntypedStorage:
        """What they share."""
        return self.tensors[0].untyped_storage()


@dataclass(frozen=True)
class Contents:
    """What holds elements in an object.

    Attributes:
        shared: tensors, storage by storage.
        others: those that have none of their own.
        bare: whether it holds storages for themselves.
    """

    shared: list[Shared]
    others: list[torch.Tensor]
    bare: bool


def is_castable(dtype: torch.dtype) -> bool:
    """Whether it is a floating-point dtype that torch casts."""
    known = of_torch(str(dtype).removeprefix("torch."))
    return known is not None and known.name in FLOATS


def by_storage(value: Any, uri: object) -> Contents:
    """Return the tensors in an object, which messages name by where it came from.

    Raises:
        FormatError: it holds something that no pickler goes through.
    """
    finder = _Finder()
    try:
        finder.dump(value)
    except (pickle.PicklingError, AttributeError, RecursionError, RuntimeError, TypeError) as error:
        message = f"the tensors to be cast cannot be found in what was saved: {error}"
        raise FormatError(message, uri=uri, hint="Load it without dtype=, and cast what you need.") from error
    together: dict[int, list[torch.Tensor]] = {}
    others = []
    for tensor in finder.found.values():
        if tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested):
            together.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)  # noqa: SLF001 - its identity
        else:
            others.append(tensor)
    shared = [
        Shared(group, storage not in finder.bare and _casts(group, finder.counters))
        for storage, group in together.items()
    ]
    return Contents(shared, others, bool(finder.bare))


def _casts(tensors: list[torch.Tensor], counters: set[int]) -> bool:
    if any(id(tensor) in counters for tensor in tensors):
        return False
    return is_castable(tensors[0].dtype) and len({tensor.dtype for tensor in tensors}) == 1


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


def recast(value: Any, dtype: torch.dtype, uri: object) -> None:
    """Cast the floating-point tensors of an object, one storage after the other.

    Raises:
        FormatError: see `by_storage`.
    """
    contents = by_storage(value, uri)
    for shared in contents.shared:
        if shared.casts:
            flat = as_dtype(shared.storage, shared.tensors[0].dtype)
            rest_on(flat.to(dtype), shared.tensors)
    for tensor in contents.others:
        if is_castable(tensor.dtype):
            tensor.data = tensor.detach().to(dtype)
