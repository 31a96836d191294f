"""`open`: look into a model of any size without fetching it."""

from __future__ import annotations

import os

from torchwick.checkpoint.checkpoint import Checkpoint
from torchwick.config import S3Config, TransferConfig
from torchwick.uri import parse

__all__ = ["open"]


def open(
    uri: str | os.PathLike[str], *, s3: S3Config | None = None, transfer: TransferConfig | None = None
) -> Checkpoint:
    """Open a checkpoint of which nothing is read but where its tensors are.

    Formats: safetensors; what torch.save writes (``.pt``, ``.bin``, ``.ckpt``; nested containers are
    flattened to dotted names: ``optimizer.state.0.exp_avg``), of which the pickle is looked into without
    importing anything; TorchScript's tensors; directories of Hugging Face shards, with or without an index;
    directories of ``torch.distributed.checkpoint``, whose sharded tensors read as whole ones.

    Args:
        uri: an object, or a directory: a URI that ends in ``/``, or names what turns out to be one.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.

    Returns:
        The checkpoint, a context manager and a mapping from names to tensors.

    Raises:
        URIError: `uri` is no address.
        FormatError: it is no checkpoint, or corrupt, or one that can only be loaded as a whole.
        StoreError: it cannot be read.

    Example:
        >>> import tempfile, torch, torchwick
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": {"w": torch.arange(6).view(3, 2)}, "epoch": 3}, f"{folder}/model.pt")
        ...     with torchwick.open(f"{folder}/model.pt") as ckpt:
        ...         ckpt.info("model.w").shape, ckpt.others, ckpt.get_slice("model.w")[1:]
        ((3, 2), {'epoch': '3'}, tensor([[2, 3],
                [4, 5]]))
    """
    from torchwick.checkpoint.opening import open_objects
    from torchwick.store import open_store

    address, config = parse(uri), transfer or TransferConfig()
    store = open_store(address, s3 or S3Config(), config.timeout)
    return Checkpoint(*open_objects(address, store, config))
