"""PyTorch Lightning, with checkpoints that go straight to S3 and come straight from it.

>>> from torchwick.integrations.lightning import TorchwickCheckpointIO  # doctest: +SKIP
>>> Trainer(plugins=[TorchwickCheckpointIO()])  # doctest: +SKIP
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import fsspec.core
import fsspec.utils

from torchwick.client import Client
from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.integrations.lightning_packages import CheckpointIO, TorchCheckpointIO, introduce
from torchwick.integrations.s3_filesystem import S3FileSystem, register
from torchwick.integrations.under_way import UnderWay
from torchwick.loading.devices import MapLocation
from torchwick.report import ProgressCallback, SaveReport
from torchwick.store import open_writable
from torchwick.transfer import Uploads
from torchwick.uri import URI, parse

__all__ = ["TorchwickCheckpointIO"]

_OURS = ("s3", "file", "http", "https")


class TorchwickCheckpointIO(CheckpointIO):
    """Saves, loads and removes the checkpoints of a Trainer or a Fabric.

    Checkpoints are what `torch.save` writes, and `torch.load` reads them. They are written from the memory of
    their tensors and read into it: nothing is serialised in memory, and nothing touches a disk. One appears
    complete, or not at all.

    Addresses are ``s3://bucket/key`` and paths of this machine; ``https://`` is read. Those of other
    filesystems are left to Lightning's own `TorchCheckpointIO`.

    Args:
        s3: who asks and which S3; by default all of it is found as boto3 finds it. Callbacks of Lightning
            look into directories as the plugin does that was made last.
        transfer: how fast and with how much memory; by default it adapts.
        options: what S3 is told about each object: storage class, encryption, tags.
        background: go on training as soon as a checkpoint is copied. Two are saved at once at the most. An
            old one is deleted when those that were saved after it are there. An error is raised by the next
            save, load or removal, or at the end of `fit`, which waits.
        progress: True for a bar on standard error, or a function that is called with a `Progress`.

    Example:
        >>> plugin = TorchwickCheckpointIO(options=PutOptions(tags={"run": "7"}), background=True)
        >>> trainer = Trainer(  # doctest: +SKIP
        ...     plugins=[plugin],
        ...     callbacks=[ModelCheckpoint("s3://models/run/", save_last=True, save_top_k=3, monitor="loss")],
        ... )
        >>> trainer.fit(model, ckpt_path="last")  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        s3: S3Config | None = None,
        transfer: TransferConfig | None = None,
        options: PutOptions | None = None,
        background: bool = False,
        progress: bool | ProgressCallback = False,
    ) -> None:
        self._client = Client(s3=s3, transfer=transfer)
        self._options = options
        self._background = background
        self._progress = progress
        self._under_way = UnderWay()
        self._introduce()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._introduce()  # in the process of another rank

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Save a checkpoint, replacing what is there.

        Args:
            checkpoint: whatever `torch.save` takes.
            path: where to.
            storage_options: not for this plugin; see `options`.

        Raises:
            TypeError: there are `storage_options`.
            TorchwickError: it cannot be saved, as far as can be told when this returns; or one before it
                could not be, in the background.
        """
        if storage_options is not None:
            raise TypeError(
                "storage_options are not for TorchwickCheckpointIO: pass options=PutOptions(…) to that"
            )
        uri = _ours(path)
        if uri is None:
            TorchCheckpointIO().save_checkpoint(checkpoint, os.fspath(path))
            return
        if uri.scheme == "file":
            Path(uri.key).parent.mkdir(parents=True, exist_ok=True)
        if self._background:
            self._under_way.begin(uri, lambda: self._begin(checkpoint, uri))
        else:
            self._client.save(checkpoint, str(uri), options=self._options, progress=self._progress)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: MapLocation = "cpu",
        weights_only: bool | None = None,
    ) -> Any:
        """Load a checkpoint, once all that are being saved are there.

        Args:
            path: where it is.
            map_location: where storages go, as for `torch.load`.
            weights_only: refuse pickles that import anything but tensors and plain containers. None is True,
                for every address.

        Returns:
            What was saved.

        Raises:
            ObjectNotFoundError: it is not there.
            TorchwickError: it cannot be loaded; or one could not be saved, in the background.
        """
        self._under_way.finish()
        uri = _ours(path)
        if uri is None:
            others: Any = TorchCheckpointIO()
            return others.load_checkpoint(os.fspath(path), map_location, weights_only)
        return self._client.load(
            str(uri), map_location, weights_only=weights_only is not False, progress=self._progress
        )

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, once all that are being saved are there.

        Args:
            path: where it is; it need not be there.

        Raises:
            TorchwickError: it cannot be deleted; or one could not be saved, in the background.
        """
        uri = _ours(path)
        if uri is not None and uri.scheme == "s3":
            self._under_way.delete(uri, lambda: self._delete(uri))
        else:
            name = uri or os.fspath(path)
            self._under_way.delete(name, lambda: TorchCheckpointIO().remove_checkpoint(os.fspath(path)))

    def teardown(self) -> None:
        """Wait for what is saved in the background. A Trainer calls it; with a Fabric, call it at the end.

        Raises:
            TorchwickError: a checkpoint could not be saved, or an old one not be deleted.
        """
        self._under_way.finish()

    def _introduce(self) -> None:
        """Have Lightning take it, and Lightning's callbacks look into directories as it does."""
        introduce(type(self))
        S3FileSystem.defaults = self._client

    def _delete(self, uri: URI) -> None:
        config = self._client.transfer or TransferConfig()
        store = open_writable(uri, self._client.s3 or S3Config(), config.timeout)
        with Uploads(store, config, self._options) as uploads:
            uploads.delete(uri)

    def _begin(self, checkpoint: object, uri: URI) -> Future[SaveReport]:
        """Begin a save in the background, under a name that is then taken."""
        taken = S3FileSystem.coming
        taken.add(uri)
        try:
            future = self._client.save_async(
                checkpoint, str(uri), options=self._options, progress=self._progress
            )
        except BaseException:
            taken.discard(uri)
            raise
        future.add_done_callback(lambda _: taken.discard(uri))
        return future


def _ours(path: str | os.PathLike[str]) -> URI | None:
    """Parse an address; None: it is of a filesystem that torchwick does not know.

    Raises:
        URIError: it is no address.
    """
    text = os.fspath(path)
    protocol = fsspec.utils.get_protocol(text)
    if protocol not in _OURS:
        return None
    uri = parse(text)
    return uri if uri.scheme != "file" else parse(fsspec.core.url_to_fs(text)[1])  # which knows what ~ is


register()
