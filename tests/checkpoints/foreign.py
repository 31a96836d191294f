"""Checkpoints that name code of their own: classes, numpy, whole modules, programs, and attacks."""

from __future__ import annotations

import argparse
import io
import os
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from checkpoints.base import OddCheckpoint, saved, written
from checkpoints.objects import small_model


class Tagged(torch.Tensor):
    """A tensor subclass with nothing special but its name."""


class Point(NamedTuple):
    """A namedtuple that holds tensors."""

    x: torch.Tensor
    y: int


@dataclass
class Config:
    """A dataclass that holds a tensor."""

    width: int
    scale: torch.Tensor


class Peeker:
    """Looks at the values of its tensor while it is unpickled: uninitialised storages would show."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.total = float(tensor.sum())

    def __reduce__(self) -> tuple[type[Peeker], tuple[torch.Tensor]]:
        return Peeker, (self.tensor,)


class Calls:
    """Pickles as a call of any function, as an attacker would write it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


class Tiny(nn.Module):
    """A module that scripts and exports."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("shift", torch.arange(2.0))
        self.shift: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x)) + self.shift


def _tagged() -> dict[str, Any]:
    tagged = torch.arange(4.0).as_subclass(Tagged)
    tagged.label = "mine"  # type: ignore[attr-defined]
    return {"tagged": tagged, "plain": torch.ones(2)}


def _tagged_parameter() -> dict[str, Any]:
    return {"p": nn.Parameter(torch.arange(4.0).as_subclass(Tagged))}


def _numpy() -> dict[str, Any]:
    return {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.float64(1.5),
        "int": np.int64(-3),
        "text": np.array(["a", "bc"]),
        "objects": np.array([None, [1], "x"], dtype=object),
        "t": torch.arange(3),
    }


def _numpy_scalar() -> dict[str, Any]:
    return {"lr": np.float64(0.5), "t": torch.ones(2)}


def _numpy_array() -> dict[str, Any]:
    return {"a": np.arange(4.0), "t": torch.ones(2)}


def _numpy_globals(function: str) -> tuple[Any, ...]:
    """What the weights-only unpickler has to be told to accept numpy, under the names pickles use."""
    numpy: Any = np
    multiarray = numpy._core.multiarray if hasattr(np, "_core") else numpy.core.multiarray
    return (getattr(multiarray, function), np.ndarray, np.dtype, type(np.dtype(np.float64)))


def _namespace() -> dict[str, Any]:
    return {"args": argparse.Namespace(lr=0.1, layers=[1, 2]), "t": torch.ones(2)}


def _scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Tiny().eval()), buffer)
    return buffer.getvalue()


def _exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Tiny().eval(), (torch.ones(1, 3),)), buffer)
    return buffer.getvalue()


def _attack(function: Any, *args: Any) -> dict[str, Any]:
    return {"t": torch.ones(2), "x": Calls(function, *args)}


def _module_with_hook() -> nn.Module:
    model = small_model()
    model.register_forward_hook(_hook)
    return model


def _hook(module: nn.Module, inputs: Any, output: Any) -> None:
    """A hook, named so that it pickles."""


FOREIGN: tuple[OddCheckpoint, ...] = (
    saved("subclass_refused", _tagged, "refused"),
    saved("subclass", _tagged, "spooled", weights_only=False),
    saved("subclass_allowed", _tagged, "spooled", safe_globals=(Tagged,)),
    saved("subclass_parameter", _tagged_parameter, "spooled", weights_only=False),
    saved("namedtuple_refused", lambda: Point(torch.ones(2), 1), "refused"),
    saved("namedtuple", lambda: Point(torch.ones(2), 1), "spooled", weights_only=False),
    saved("namedtuple_allowed", lambda: [Point(torch.ones(2), 1)], "spooled", safe_globals=(Point,)),
    saved("dataclass_refused", lambda: Config(3, torch.ones(2)), "refused"),
    saved("dataclass", lambda: Config(3, torch.ones(2)), "spooled", weights_only=False),
    saved("dataclass_allowed", lambda: Config(3, torch.ones(2)), "spooled", safe_globals=(Config,)),
    saved("namespace_refused", _namespace, "refused"),
    saved("namespace", _namespace, "spooled", weights_only=False),
    saved("namespace_allowed", _namespace, "spooled", safe_globals=(argparse.Namespace,)),
    saved("peeker", lambda: Peeker(torch.arange(1000.0)), "spooled", weights_only=False),
    saved("peeker_allowed", lambda: Peeker(torch.arange(1000.0)), "spooled", safe_globals=(Peeker,)),
    saved("numpy_refused", _numpy, "refused"),
    saved("numpy", _numpy, "spooled", weights_only=False),
    saved("numpy_scalar_refused", _numpy_scalar, "refused"),
    saved("numpy_scalar_allowed", _numpy_scalar, "spooled", safe_globals=_numpy_globals("scalar")),
    saved("numpy_array_allowed", _numpy_array, "spooled", safe_globals=_numpy_globals("_reconstruct")),
    saved("module_refused", small_model, "refused"),
    saved("module", small_model, "spooled", weights_only=False),
    saved("module_own_class", Tiny, "spooled", weights_only=False),
    saved("module_with_hook", _module_with_hook, "spooled", weights_only=False),
    saved(
        "module_and_optimizer",
        lambda: torch.optim.SGD(small_model().parameters(), lr=0.1),
        "spooled",
        weights_only=False,
    ),
    saved("generator_refused", torch.Generator, "refused"),
    written("torchscript_refused", _scripted, "torchscript"),
    written("torchscript", _scripted, "torchscript", weights_only=False),
    written("pt2_refused", _exported, "pt2"),
    written("pt2", _exported, "pt2", weights_only=False),
    saved("attack_print", lambda: _attack(print, "you have been had"), "refused"),
    saved("attack_os", lambda: _attack(os.getcwd), "refused"),
    saved("attack_eval", lambda: _attack(eval, "1 + 1"), "refused"),
    saved("attack_getattr", lambda: _attack(getattr, "text", "upper"), "refused"),
    saved("attack_partial", lambda: _attack(partial, print), "refused"),
    saved(
        "attack_os_allowed",
        lambda: _attack(os.getcwd),
        "refused",
        safe_globals=(os.getcwd,),
        note="torch blocks the os module even when the user allows it",
    ),
)
