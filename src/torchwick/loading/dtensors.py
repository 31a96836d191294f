"""Knows DTensors, and modules of FSDP, when it sees them; imports nothing to tell."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

__all__ = ["is_of_fsdp", "is_sharded", "reshard", "tell_fsdp"]

_FSDP = "torch.distributed.fsdp"


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_of_fsdp(hook: Any) -> bool:
    """Whether a hook is FSDP's: it shows the shards (see `reshard`), or looks at new ones (`tell_fsdp`)."""
    return str(getattr(hook, "__module__", "")).startswith(_FSDP)


def reshard(model: nn.Module) -> None:
    """Have FSDP show each rank's shards, which after a forward may be whole parameters."""
    fsdp: Any = sys.modules.get(_FSDP)
    for module in model.modules():
        if fsdp is not None and hasattr(fsdp, "FSDPModule") and isinstance(module, fsdp.FSDPModule):
            module.reshard()


def tell_fsdp(model: nn.Module) -> None:
    """Have FSDP look at its parameters anew, as after ``load_state_dict``."""
    for module in model.modules():
        for hook in module._load_state_dict_post_hooks.values():  # noqa: SLF001 - torch calls them there
            if is_of_fsdp(hook):
                hook(module, None)
