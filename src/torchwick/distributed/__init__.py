"""What the ranks of a ``torch.distributed`` process group do together."""

from torchwick.distributed.group_load import load, load_model
from torchwick.distributed.slices import tensor_parallel_slice

__all__ = ["load", "load_model", "tensor_parallel_slice"]
