"""From a URI to what was saved there, or into a module."""

from torchwick.loading.load import load
from torchwick.loading.load_model import load_model

__all__ = ["load", "load_model"]
