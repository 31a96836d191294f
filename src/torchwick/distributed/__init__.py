"""Distributed checkpoints: a storage back end for `torch.distributed.checkpoint`."""

from torchwick.distributed.reader import S3Reader
from torchwick.distributed.writer import S3Writer

__all__ = ["S3Reader", "S3Writer"]
