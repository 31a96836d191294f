"""Models small enough to be loaded hundreds of times, one of each way that a load can take."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from checkpoints.base import quiet, save_bytes
from oracle import assert_same
from torchwick import TransferConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_LAYERS, _WIDTH = 9, 25_000

PART = 100_000  # bytes; a layer, so that some parts hold the end of one and the start of the next
PARTS = TransferConfig(part_size=PART, connections=4, timeout=5)


def state() -> dict[str, torch.Tensor]:
    """900 kB, no value of which occurs twice: what lands in a wrong place is seen."""
    numbers = torch.arange(_LAYERS * _WIDTH, dtype=torch.float32)
    return {f"layer{at}": layer.clone() for at, layer in enumerate(numbers.reshape(_LAYERS, _WIDTH))}


class Net(torch.nn.Module):
    """The same numbers, as a program."""

    def __init__(self) -> None:
        super().__init__()
        for name, layer in state().items():
            self.register_buffer(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _script() -> bytes:
    buffer = io.BytesIO()
    with quiet():
        torch.jit.save(torch.jit.script(Net()), buffer)
    return buffer.getvalue()


def _load_script(content: bytes) -> Any:
    load: Any = torch.jit.load
    with quiet():
        return load(io.BytesIO(content))


def _load(content: bytes) -> Any:
    return torch.load(io.BytesIO(content))


def _load_safetensors(content: bytes) -> dict[str, torch.Tensor]:
    # In the order of the bytes, as load_file has them; they are sorted by name where all have one dtype.
    return dict(sorted(safetensors.torch.load(content).items()))


@dataclass(frozen=True)
class Way:
    """One format, or one way of loading it.

    Attributes:
        name: as the page says it.
        write: makes the file.
        oracle: what reads it rightly.
        method: how it has to be loaded.
        weights_only: how it can be.
    """

    name: str
    write: Callable[[], bytes]
    oracle: Callable[[bytes], Any]
    method: str
    weights_only: bool = True

    @cached_property
    def content(self) -> bytes:
        """The file."""
        return self.write()

    @cached_property
    def expected(self) -> Any:
        """What is in it."""
        return self.oracle(self.content)

    def holds(self, loaded: Any) -> bool:
        """Whether that is what was loaded, to the last bit."""
        try:
            assert_same(loaded, self.expected, storages=self.method != "filled")
        except AssertionError:
            return False
        return True

    def offset(self, layer: int) -> int:
        """Where in the file a layer's bytes are."""
        return self.content.index(state()[f"layer{layer}"].numpy().tobytes())


WAYS = (
    Way(".pt", lambda: save_bytes(state()), _load, "deferred"),
    Way(".pt, sparse", lambda: save_bytes({**state(), "sparse": torch.eye(3).to_sparse()}), _load, "spooled"),
    Way(
        "legacy .pt",
        lambda: save_bytes(state(), _use_new_zipfile_serialization=False),
        _load,
        "deferred",
    ),
    Way("safetensors", lambda: safetensors.torch.save(state()), _load_safetensors, "filled"),
    Way("TorchScript", _script, _load_script, "spooled", weights_only=False),
)
