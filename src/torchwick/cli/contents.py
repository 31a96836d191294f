"""What a loaded object holds: its tensors, wherever they are in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Contents", "look"]


@dataclass(frozen=True)
class Contents:
    """How many tensors, of which dtypes, how large.

    Attributes:
        tensors: tensors, each counted once.
        dtypes: tensors of each dtype, by torch's name without ``torch.``.
        bytes: bytes of their elements; shared ones count for each tensor that shares them.
    """

    tensors: int
    dtypes: dict[str, int]
    bytes: int


def look(value: Any) -> Contents:
    """Look through containers and modules for tensors.

    Example:
        >>> look({"a": torch.zeros(2), "b": [torch.zeros(3, dtype=torch.int8)]})
        Contents(tensors=2, dtypes={'float32': 1, 'int8': 1}, bytes=11)
    """
    tensors = list({id(tensor): tensor for tensor in _tensors(value, set())}.values())
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return Contents(len(tensors), dict(dtypes.most_common()), sum(t.nbytes for t in tensors))


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, torch.nn.Module | torch.export.ExportedProgram):
        value = value.state_dict()
    if not isinstance(value, Mapping | list | tuple | set | frozenset) or id(value) in seen:
        return
    seen.add(id(value))  # a container may hold itself
    for item in value.values() if isinstance(value, Mapping) else value:
        yield from _tensors(item, seen)
