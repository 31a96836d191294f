"""What an odd checkpoint is: a file to build, the options to load it with, and the path it must take."""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Outcome = Literal["deferred", "spooled", "either", "refused", "error", "torchscript", "pt2"]


@dataclass(frozen=True)
class OddCheckpoint:
    """One checkpoint file and what loading it must do.

    `path` says how the file is loaded, or why it is not:

    deferred     nothing looks at tensor values while unpickling: storages may be filled afterwards
    spooled      the whole file must be at hand before unpickling begins
    either       loads, and must load alike, whichever way is chosen
    refused      unsafe under `weights_only=True`: torch.load raises
    error        torch.load raises for another reason, and so must we
    torchscript  a TorchScript archive: refused under `weights_only=True`, else torch.jit.load's business
    pt2          a torch.export archive, which torch.load cannot read
    """

    name: str
    build: Callable[[Path], None]
    path: Outcome
    weights_only: bool = True
    note: str = ""
    map_location: Any = None
    safe_globals: tuple[Any, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments to pass to torch.load, and to the loader under test."""
        return {"map_location": self.map_location, "weights_only": self.weights_only}

    @property
    def loads(self) -> bool:
        """Whether torch.load returns something for this file."""
        refused = self.path == "torchscript" and self.weights_only
        return not refused and self.path not in {"refused", "error", "pt2"}

    @contextmanager
    def setting(self) -> Iterator[None]:
        """The surroundings to load in: the allowed globals, and torch's own warnings silenced."""
        with quiet(), torch.serialization.safe_globals(list(self.safe_globals)):
            yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the deprecations and beta notices of odd features: they are torch's, not the loader's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def saved(
    name: str,
    make: Callable[[], Any],
    path: Outcome,
    *,
    save_options: dict[str, Any] | None = None,
    **fields: Any,
) -> OddCheckpoint:
    """The checkpoint that torch.save makes of `make()`."""
    return OddCheckpoint(name, partial(_save, make, save_options or {}), path, **fields)


def written(name: str, make: Callable[[], bytes], path: Outcome, **fields: Any) -> OddCheckpoint:
    """The checkpoint whose bytes `make()` returns."""
    return OddCheckpoint(name, partial(_write, make), path, **fields)


def save_bytes(value: Any, **save_options: Any) -> bytes:
    """What torch.save writes for `value`."""
    buffer = io.BytesIO()
    with quiet():
        torch.save(value, buffer, **save_options)
    return buffer.getvalue()


def _save(make: Callable[[], Any], save_options: dict[str, Any], path: Path) -> None:
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(make(), path, **save_options)


def _write(make: Callable[[], bytes], path: Path) -> None:
    with quiet():
        path.write_bytes(make())
