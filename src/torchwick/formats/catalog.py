"""Where each tensor's bytes are: the one thing a format has to say."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Catalog", "TensorEntry"]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's place in an object.

    Attributes:
        dtype: as safetensors spells it: ``"BF16"``, ``"F8_E4M3"``.
        shape: lengths of the dimensions.
        start: offset of its first byte in the object.
        stop: one past its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Catalog:
    """All tensors of an object by name, in the order of their bytes, and the metadata written with them."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
