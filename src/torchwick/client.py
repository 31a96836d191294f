"""`Client`: settings given once, for every verb of the module."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchwick.checkpoint import Checkpoint, open
from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.diagnosis import Diagnosis, doctor
from torchwick.drop_in import load_file, save_file
from torchwick.files import File, open_file
from torchwick.loading import load, load_model
from torchwick.report import LoadReport, LoadResult, ProgressCallback, SaveReport
from torchwick.saving import save, save_async, save_model

if TYPE_CHECKING:
    import torch

    from torchwick.checkpoint.renaming import Rename
    from torchwick.checkpoint.selection import Keys
    from torchwick.checkpoint.verification import Verify
    from torchwick.loading.devices import MapLocation

__all__ = ["Client"]


@dataclass(frozen=True, kw_only=True)
class Client:
    """The functions of torchwick, with one set of settings.

    It holds no connection of its own: connections are kept by settings, so that two clients of the same
    settings share them, and so do the module's functions. It compares by value and pickles.

    Attributes:
        s3: who asks and which S3; None: as boto3 finds it.
        transfer: how fast and with how much memory; None: it adapts.

    Example:
        >>> public = Client(s3=S3Config(anonymous=True, region="eu-central-1"))
        >>> public.load("s3://open-models/classifier.pt")  # doctest: +SKIP
        >>> public == Client(s3=S3Config(anonymous=True, region="eu-central-1"))
        True
    """

    s3: S3Config | None = None
    transfer: TransferConfig | None = None

    def load(
        self,
        uri: str | os.PathLike[str],
        map_location: MapLocation = None,
        *,
        weights_only: bool = True,
        keys: Keys = None,
        dtype: torch.dtype | str | None = None,
        verify: Verify = "auto",
        sha256: str | None = None,
        progress: bool | ProgressCallback = False,
        on_report: Callable[[LoadReport], object] | None = None,
    ) -> Any:
        """Load a checkpoint straight into tensors: see `torchwick.load`."""
        return load(
            uri,
            map_location,
            weights_only=weights_only,
            keys=keys,
            dtype=dtype,
            verify=verify,
            sha256=sha256,
            progress=progress,
            on_report=on_report,
            s3=self.s3,
            transfer=self.transfer,
        )

    def load_model(
        self,
        model: torch.nn.Module,
        uri: str | os.PathLike[str],
        *,
        strict: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        keys: Keys = None,
        rename: Rename = None,
        verify: Verify = "auto",
        sha256: str | None = None,
        progress: bool | ProgressCallback = False,
        on_report: Callable[[LoadReport], object] | None = None,
    ) -> LoadResult:
        """Fill a module from a checkpoint: see `torchwick.load_model`."""
        return load_model(
            model,
            uri,
            strict=strict,
            device=device,
            dtype=dtype,
            keys=keys,
            rename=rename,
            verify=verify,
            sha256=sha256,
            progress=progress,
            on_report=on_report,
            s3=self.s3,
            transfer=self.transfer,
        )

    def load_file(
        self, filename: str | os.PathLike[str], device: str | int = "cpu"
    ) -> dict[str, torch.Tensor]:
        """Load tensors as safetensors does: see `torchwick.load_file`."""
        return load_file(filename, device, s3=self.s3, transfer=self.transfer)

    def save(
        self,
        obj: object,
        uri: str | os.PathLike[str],
        *,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
        max_shard_size: int | str | None = None,
        options: PutOptions | None = None,
        delete_replaced: bool = False,
        progress: bool | ProgressCallback = False,
        on_report: Callable[[SaveReport], object] | None = None,
    ) -> SaveReport:
        """Save an object straight from the memory of its tensors: see `torchwick.save`."""
        return save(
            obj,
            uri,
            metadata=metadata,
            overwrite=overwrite,
            max_shard_size=max_shard_size,
            options=options,
            delete_replaced=delete_replaced,
            progress=progress,
            on_report=on_report,
            s3=self.s3,
            transfer=self.transfer,
        )

    def save_async(
        self,
        obj: object,
        uri: str | os.PathLike[str],
        *,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
        max_shard_size: int | str | None = None,
        options: PutOptions | None = None,
        delete_replaced: bool = False,
        progress: bool | ProgressCallback = False,
        on_report: Callable[[SaveReport], object] | None = None,
    ) -> Future[SaveReport]:
        """Save an object, and return as soon as its tensors may be changed: see `torchwick.save_async`."""
        return save_async(
            obj,
            uri,
            metadata=metadata,
            overwrite=overwrite,
            max_shard_size=max_shard_size,
            options=options,
            delete_replaced=delete_replaced,
            progress=progress,
            on_report=on_report,
            s3=self.s3,
            transfer=self.transfer,
        )

    def save_model(
        self,
        model: torch.nn.Module,
        uri: str | os.PathLike[str],
        *,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
        max_shard_size: int | str | None = None,
        options: PutOptions | None = None,
        delete_replaced: bool = False,
        progress: bool | ProgressCallback = False,
        on_report: Callable[[SaveReport], object] | None = None,
    ) -> SaveReport:
        """Save the state of a module: see `torchwick.save_model`."""
        return save_model(
            model,
            uri,
            metadata=metadata,
            overwrite=overwrite,
            max_shard_size=max_shard_size,
            options=options,
            delete_replaced=delete_replaced,
            progress=progress,
            on_report=on_report,
            s3=self.s3,
            transfer=self.transfer,
        )

    def save_file(
        self,
        tensors: Mapping[str, torch.Tensor],
        filename: str | os.PathLike[str],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Save tensors as safetensors does: see `torchwick.save_file`."""
        save_file(tensors, filename, metadata, s3=self.s3, transfer=self.transfer)

    def open(self, uri: str | os.PathLike[str]) -> Checkpoint:
        """Look into a checkpoint: see `torchwick.open`."""
        return open(uri, s3=self.s3, transfer=self.transfer)

    def open_file(self, uri: str | os.PathLike[str]) -> File:
        """Open an object as a binary file: see `torchwick.open_file`."""
        return open_file(uri, s3=self.s3, transfer=self.transfer)

    def doctor(self, uri: str | os.PathLike[str] | None = None) -> Diagnosis:
        """Say what a load would meet, step by step: see `torchwick.doctor`."""
        return doctor(uri, s3=self.s3, transfer=self.transfer)
