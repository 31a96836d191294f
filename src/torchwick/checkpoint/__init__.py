"""A model looked into, and read by name: over catalogs, never by format."""

from torchwick.checkpoint.checkpoint import Checkpoint, TensorSlice
from torchwick.checkpoint.info import TensorInfo
from torchwick.checkpoint.open import open

__all__ = ["Checkpoint", "TensorInfo", "TensorSlice", "open"]
