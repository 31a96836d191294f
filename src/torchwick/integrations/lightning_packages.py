"""Lightning under its two names, ``lightning`` and ``pytorch_lightning``, which know nothing of each other.

Each has classes of its own. What is made for one of them is made known to the other where that is in use.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
else:
    try:
        from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
    except ImportError:
        try:
            from lightning_fabric.plugins import CheckpointIO, TorchCheckpointIO
        except ImportError as error:
            message = "torchwick.integrations.lightning needs Lightning: pip install 'torchwick[lightning]'"
            raise ImportError(message) from error

__all__ = ["CheckpointIO", "TorchCheckpointIO", "introduce"]


def introduce(plugin: type) -> None:
    """Have every Lightning that was imported take a class for a `CheckpointIO`, and find checkpoints in S3.

    Args:
        plugin: the class.
    """
    for fabric in ("lightning.fabric", "lightning_fabric"):
        module = sys.modules.get(f"{fabric}.plugins.io.checkpoint_io")
        if module is not None:
            module.CheckpointIO.register(plugin)
    for package in ("lightning.pytorch", "pytorch_lightning"):
        module = sys.modules.get(f"{package}.callbacks.model_checkpoint")
        if module is not None:
            _keep_scheme(module.ModelCheckpoint)


def _keep_scheme(callback: Any) -> None:
    """Have ``ckpt_path="last"`` find what is in S3.

    Up to 2.6, Lightning looks for the files it has found there on the disk, since their names have lost the
    ``s3://``; it finds none, and trains from the start (Lightning's issue 18261). A name that has it stays.
    """
    find = getattr(callback, "_find_last_checkpoints", None)
    if find is None or hasattr(find, "__wrapped__"):
        return

    @functools.wraps(find)
    def find_last_checkpoints(self: Any, trainer: Any) -> set[str]:
        found: set[str] = find(self, trainer)
        filesystem = self._fs
        remote = "s3" in filesystem.protocol  # a text or a tuple of them
        return {filesystem.unstrip_protocol(path) for path in found} if remote else found

    callback._find_last_checkpoints = find_last_checkpoints  # noqa: SLF001 - there is no public way
