"""Writes checkpoints: from a catalog, or from an object, to files that appear whole, or not at all."""

from torchwick.saving.background import save_async
from torchwick.saving.conversion import Conversion, WrittenFile
from torchwick.saving.convert import convert
from torchwick.saving.save import save, save_model

__all__ = ["Conversion", "WrittenFile", "convert", "save", "save_async", "save_model"]
