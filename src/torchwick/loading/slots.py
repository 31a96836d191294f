"""The places of a module that a checkpoint fills: its parameters and buffers, each with all its names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["Slot", "is_plain", "slots"]

_PLAIN = (torch.Tensor, nn.Parameter)
_COUNTER = "num_batches_tracked"
"""What batch norms of torch before 0.4.1 did not have; `_NormBase._load_from_state_dict` does without."""


@dataclass(eq=False)
class Slot:
    """One tensor of a module.

    Attributes:
        tensor: the parameter or buffer.
        names: those that the module's state dict has for it, several if it is tied; none for a buffer that is
            not saved.
        unsaved: the names that a buffer would have, which is not saved.
        places: the modules that hold it, and as which attribute.
        optional: whether a checkpoint may do without.
    """

    tensor: torch.Tensor
    names: list[str] = field(default_factory=list)
    unsaved: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    optional: bool = False

    @property
    def is_stranded(self) -> bool:
        """Whether it holds no elements, and no checkpoint has any for it."""
        return self.tensor.is_meta and not self.names

    @property
    def required(self) -> list[str]:
        """The names under which it is missed if nothing fills it."""
        if self.optional:
            return []
        return self.unsaved if self.is_stranded else self.names

    def put(self, tensor: torch.Tensor) -> None:
        """Have the module hold another tensor in all places; what is the same parameter stays the same one.

        A parameter keeps its identity where torch can have it do so: an optimizer may know it.
        """
        compatible: Any = torch._has_compatible_shallow_copy_type  # noqa: SLF001
        if compatible(self.tensor, tensor) and not self.tensor.is_meta:
            self.tensor.data = tensor
            return
        if isinstance(self.tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=self.tensor.requires_grad)
        for module, attribute in self.places:
            setattr(module, attribute, tensor)
        self.tensor = tensor


def slots(model: nn.Module) -> list[Slot]:
    """Return the places of a module, in the order of its state dict; tied ones once.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model[1].weight = model[0].weight
        >>> [slot.names for slot in slots(model)]
        [['0.weight', '1.weight'], ['0.bias'], ['1.bias']]
    """
    found: dict[int, Slot] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor, saved in _held(module):
            slot = found.setdefault(id(tensor), Slot(tensor))
            slot.places.append((module, attribute))
            names = slot.names if saved else slot.unsaved
            names.append(f"{prefix}.{attribute}" if prefix else attribute)
            if isinstance(module, _NormBase) and attribute == _COUNTER:
                slot.optional = True
    return list(found.values())


def _held(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield what a module itself holds, and whether it is saved."""
    for attribute, parameter in module._parameters.items():  # noqa: SLF001 - with the ties, and without the rest
        if parameter is not None:
            yield attribute, parameter, True
    for attribute, buffer in module._buffers.items():  # noqa: SLF001
        if buffer is not None:
            yield attribute, buffer, attribute not in module._non_persistent_buffers_set  # noqa: SLF001


def is_plain(model: nn.Module) -> bool:
    """Whether a module takes a state dict as torch has every module do, with no code of its own."""
    return all(map(_takes_plainly, model.modules())) and all(
        type(slot.tensor) in _PLAIN and not slot.tensor.is_sparse and not slot.tensor.is_quantized
        for slot in slots(model)
    )


def _takes_plainly(module: nn.Module) -> bool:
    kind = type(module)
    # Those of torch's own that only look after older checkpoints' lack of a counter, or excess of statistics.
    usual = [of._load_from_state_dict for of in (nn.Module, _NormBase, _InstanceNorm)]  # noqa: SLF001
    hooks: tuple[Any, ...] = (
        module._load_state_dict_pre_hooks,  # noqa: SLF001
        module._load_state_dict_post_hooks,  # noqa: SLF001
        module._state_dict_hooks,  # noqa: SLF001
    )
    return (
        kind.load_state_dict is nn.Module.load_state_dict
        and kind.state_dict is nn.Module.state_dict
        and kind._load_from_state_dict in usual  # noqa: SLF001
        and kind._save_to_state_dict is nn.Module._save_to_state_dict  # noqa: SLF001
        and kind.set_extra_state is nn.Module.set_extra_state
        and not any(hooks)
    )
