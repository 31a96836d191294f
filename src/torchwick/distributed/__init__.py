"""What the ranks of a ``torch.distributed`` job do together: loads, and distributed checkpoints."""

from torchwick.distributed.group_load import load, load_model
from torchwick.distributed.reader import S3Reader
from torchwick.distributed.slices import tensor_parallel_slice
from torchwick.distributed.writer import S3Writer

__all__ = ["S3Reader", "S3Writer", "load", "load_model", "tensor_parallel_slice"]
