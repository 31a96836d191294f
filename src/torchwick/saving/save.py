"""`save`: from the memory of tensors straight to where they are kept, without a serialised copy or a file.

An object is drafted: which files, how large, whose bytes in which order. Then the bytes flow, on the calling
thread or, for `save_async`, on another one, from snapshots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.report import ProgressCallback, SaveReport

if TYPE_CHECKING:
    import torch

__all__ = ["save", "save_model"]


def save(
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
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> SaveReport:
    """Save an object straight from the memory of its tensors.

    What appears is complete, or nothing does: after an error, or Ctrl-C, what was there is still there. The
    tensors must not change before it returns; see `save_async` for going on at once.

    Args:
        obj: for safetensors a mapping of names to tensors; otherwise whatever `torch.save` takes.
        uri: where to: a name that ends in ``.safetensors`` is a file of that format; one that ends in a slash
            a directory for ``model.safetensors``; any other is a file as `torch.save` writes it.
        metadata: texts for the header of safetensors, beside ``{"format": "pt"}``.
        overwrite: replace what is there.
        max_shard_size: bytes of tensors in one file, as a number or as text (``"5GB"``): `uri` is a
            directory then, for Hugging Face's shards and their index. The names of the shards are new with
            every save, and the index comes last: until then, readers find the model that was there.
        options: what S3 is told about each object: storage class, encryption, tags.
        delete_replaced: delete the other files of the model that is replaced, once the new one is there.
        progress: True for a bar on standard error, or a function that is called with a `Progress` about ten
            times a second, on this thread.
        on_report: called with the report that is returned.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.

    Returns:
        What was written.

    Raises:
        URIError: the address is none, or is no place to write to.
        ValueError: an option makes no sense.
        TypeError: it is no mapping of names to tensors, and safetensors holds nothing else.
        FormatError: it has a tensor that the format cannot hold, or that has no values.
        ObjectExistsError: there is something, and `overwrite` is False; or files that readers would take for
            the model would stay, and `delete_replaced` is False. Nothing was written.
        StoreError: it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save({"w": torch.ones(3)}, f"{folder}/new.safetensors", metadata={"epoch": "3"})
        >>> report.format, report.tensors, report.size
        ('safetensors', 1, 124)
    """
    from torchwick.saving.draft import draft_object
    from torchwick.saving.job import Wishes, begin

    wishes = Wishes(
        metadata=metadata,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
        options=options,
        delete_replaced=delete_replaced,
        s3=s3,
        transfer=transfer,
    )
    job = begin(partial(draft_object, obj), uri, wishes)
    return _told(job.run(job.contents(), progress), on_report)


def save_model(
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
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> SaveReport:
    """Save the state of a module: as `save`, and tied weights as `safetensors.torch.save_model` does.

    In safetensors, of names that share memory one is written, and the metadata tell the others; so
    `safetensors.torch.load_model` fills a module that has the same ties. In torch's format all names are
    there, and the memory once.

    Args:
        model: the module.
        uri: where to, as for `save`.
        metadata: texts for the header.
        overwrite: replace what is there.
        max_shard_size: bytes of tensors in one file of a directory.
        options: what S3 is told about each object.
        delete_replaced: delete the other files of the model that is replaced.
        progress: True for a bar, or a function.
        on_report: called with the report that is returned.
        s3: who asks and which S3.
        transfer: how fast and with how much memory.

    Returns:
        What was written.

    Raises:
        TorchwickError: as for `save`.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(torch.nn.Linear(2, 3), f"{folder}/new.safetensors").tensors
        2
    """
    from torchwick.saving.draft import draft_state_dict
    from torchwick.saving.job import Wishes, begin

    wishes = Wishes(
        metadata=metadata,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
        options=options,
        delete_replaced=delete_replaced,
        s3=s3,
        transfer=transfer,
    )
    job = begin(partial(draft_state_dict, model.state_dict()), uri, wishes)
    return _told(job.run(job.contents(), progress), on_report)


def _told(report: SaveReport, on_report: Callable[[SaveReport], object] | None) -> SaveReport:
    if on_report is not None:
        on_report(report)
    return report
