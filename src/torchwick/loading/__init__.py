"""From a URI to what was saved there."""

from torchwick.loading.load import load

__all__ = ["load"]
