"""Whether a row really yielded the model: looked at after its clock has stopped, and cheaply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.checkpoint import CHECKED_TENSOR, TAIL, crc_of

if TYPE_CHECKING:
    from benchmarks.checkpoint import Manifest


def check(loaded: object, manifest: Manifest, file: str) -> None:
    """Raise unless this is the object's byte count, the object's bytes, or all of its tensors."""
    artifact = manifest.artifacts[file]
    match loaded:
        case int():
            _expect("bytes", loaded, artifact.size)
        case torch.Tensor():
            _expect("bytes", loaded.numel(), artifact.size)
            _expect("checksum of the tail", crc_of(loaded[-TAIL:]), artifact.tail_crc)
        case dict():
            _expect("tensors", len(loaded), manifest.tensors)
            _expect(f"checksum of {CHECKED_TENSOR}", crc_of(loaded[CHECKED_TENSOR]), manifest.checked_crc)
        case _:
            raise TypeError(f"a row returned {type(loaded).__name__}")


def _expect(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"wrong {what}: {found}, not {wanted}")
