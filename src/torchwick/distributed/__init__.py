"""What the ranks of a ``torch.distributed`` process group do together."""

from torchwick.distributed.group_load import load, load_model

__all__ = ["load", "load_model"]
