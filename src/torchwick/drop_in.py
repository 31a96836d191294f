"""`save_file` and `load_file`, with safetensors' names and arguments: code moves by one line of imports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torchwick.errors import FormatError
from torchwick.loading import load
from torchwick.report import LoadReport
from torchwick.saving import save

if TYPE_CHECKING:
    import torch

    from torchwick.config import S3Config, TransferConfig

__all__ = ["load_file", "save_file"]

_ENDING = ".safetensors"


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> None:
    """Save tensors as `safetensors.torch.save_file` does, to S3 as well; see `save`.

    Args:
        tensors: by name. They may be strided, and are written contiguous; but not share memory.
        filename: where to, a name that ends in ``.safetensors``.
        metadata: texts for the header, beside ``{"format": "pt"}``.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.

    Raises:
        ValueError: the name ends otherwise.
        TorchwickError: as for `save`.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.ones(2)}, f"{folder}/new.safetensors", {"epoch": "3"})
        ...     load_file(f"{folder}/new.safetensors")
        {'w': tensor([1., 1.])}
    """
    if not os.fspath(filename).endswith(_ENDING):
        raise ValueError(f"save_file writes safetensors: end the name in {_ENDING}, or use torchwick.save")
    save(tensors, filename, metadata=metadata, s3=s3, transfer=transfer)


def load_file(
    filename: str | os.PathLike[str],
    device: str | int = "cpu",
    *,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> dict[str, torch.Tensor]:
    """Load tensors as `safetensors.torch.load_file` does, from S3 as well; see `load`.

    Args:
        filename: a safetensors file, or a directory of shards.
        device: where the tensors go; a number is one of the current accelerator's.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.

    Returns:
        The tensors by name.

    Raises:
        FormatError: it is no safetensors.
        TorchwickError: as for `load`.
    """
    import torch

    reports: list[LoadReport] = []
    where = torch.device(device) if isinstance(device, int) else device
    loaded = load(filename, where, on_report=reports.append, s3=s3, transfer=transfer)
    if reports[0].format != "safetensors":
        hint = "Use torchwick.load."
        raise FormatError(f"it is {reports[0].format}, not safetensors", uri=reports[0].uri, hint=hint)
    tensors: dict[str, torch.Tensor] = loaded
    return tensors
