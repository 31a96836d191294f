"""Writes checkpoints: from what a catalog describes to files that appear whole, or not at all."""

from torchwick.saving.conversion import Conversion, WrittenFile
from torchwick.saving.convert import convert

__all__ = ["Conversion", "WrittenFile", "convert"]
