"""Which tensors of a state dict share memory, and under which name it is written: as safetensors has it.

The rules are those of `safetensors.torch.save_model`, step by step, so that `load_model` finds what it
expects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from torchwick.errors import FormatError
from torchwick.formats.catalog import span

__all__ = ["find_shared", "find_ties"]

_MOST_NAMED = 8


def find_shared(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the names of tensors whose memory overlaps, those of one memory together.

    Example:
        >>> base = torch.ones(4)
        >>> find_shared({"a": base, "b": base.view(2, 2), "c": torch.ones(4)})
        [['a', 'b']]
    """
    alike: dict[tuple[torch.device, int, int], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() and storage.nbytes():
            alike[tensor.device, storage.data_ptr(), storage.nbytes()].append(name)
    overlapping = [group for names in alike.values() for group in _overlapping(names, tensors)]
    return sorted(sorted(group) for group in overlapping if len(group) > 1)


def _overlapping(names: list[str], tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Tell views of one storage that lie apart from those that do not."""
    areas = sorted((*_area(tensors[name]), name) for name in names)
    groups, last_stop = list[list[str]](), 0
    for start, stop, name in areas:
        if groups and start < last_stop:
            groups[-1].append(name)
        else:
            groups.append([name])
        last_stop = stop
    return groups


def _area(tensor: torch.Tensor) -> tuple[int, int]:
    elements = span(tuple(tensor.shape), tensor.stride())
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


def find_ties(tensors: Mapping[str, torch.Tensor], uri: object) -> dict[str, str]:
    """Return, for each name that need not be written, the name of the tensor that stands for it.

    Of those that share memory, the one that is kept covers all of it, and comes first in the alphabet.

    Raises:
        FormatError: none covers it.

    Example:
        >>> weight = torch.ones(3)
        >>> find_ties({"head": weight, "embed": weight}, "new.safetensors")
        {'head': 'embed'}
    """
    ties: dict[str, str] = {}
    for names in find_shared(tensors):
        complete = [name for name in names if _covers(tensors[name])]
        if not complete:
            raise FormatError(
                f"tensors {', '.join(map(repr, names[:_MOST_NAMED]))} share memory that none of them covers",
                uri=uri,
                hint="Clone them, so that each has memory of its own.",
            )
        ties |= {name: complete[0] for name in names if name != complete[0]}
    return ties


def _covers(tensor: torch.Tensor) -> bool:
    storage = tensor.untyped_storage()
    return tensor.data_ptr() == storage.data_ptr() and tensor.nbytes == storage.nbytes()
