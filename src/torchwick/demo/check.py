"""Whether two loads of one model gave the same: names, dtypes, shapes, strides, ties and every bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def tensors_of(state: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict by name, those in nested mappings as `outer.inner`."""
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            found[str(name)] = value
        elif isinstance(value, Mapping):
            found.update({f"{name}.{inner}": tensor for inner, tensor in tensors_of(value).items()})
    return found


def differences(expected: Any, found: Any, *, ordered: bool) -> list[str]:
    """Compare two state dicts; an empty list says that they are equal bit by bit.

    Args:
        expected: What the oracle loaded.
        found: What is to be checked.
        ordered: Whether the names have to come in the same order too. safetensors promises none.

    Returns:
        One line for each difference.
    """
    wanted, given = tensors_of(expected), tensors_of(found)
    lines = []
    if type(expected) is not type(found):
        lines.append(f"a {type(found).__name__} instead of a {type(expected).__name__}")
    if wanted.keys() != given.keys():
        lines.append(f"other names: {sorted(wanted.keys() ^ given.keys())}")
    elif ordered and list(wanted) != list(given):
        lines.append("its names come in another order")
    for name in sorted(wanted.keys() & given.keys()):
        lines.extend(f"{name}: {what}" for what in _tensor_differences(wanted[name], given[name]))
    if _ties(wanted) != _ties(given):
        lines.append("other tensors share their memory")
    return lines


def _tensor_differences(expected: torch.Tensor, found: torch.Tensor) -> list[str]:
    lines = [
        f"{attribute} is {ours} instead of {theirs}"
        for attribute, theirs, ours in (
            ("dtype", expected.dtype, found.dtype),
            ("shape", tuple(expected.shape), tuple(found.shape)),
            ("stride", expected.stride(), found.stride()),
            ("requires_grad", expected.requires_grad, found.requires_grad),
        )
        if theirs != ours
    ]
    if not lines and not torch.equal(_bits(expected), _bits(found)):
        lines.append("its values differ")
    return lines


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's bytes: as numbers, a NaN would differ from itself and -0.0 equal 0.0."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _ties(tensors: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    """Return the groups of names whose tensors begin at the same byte of memory."""
    groups: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            groups.setdefault(tensor.data_ptr(), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}
