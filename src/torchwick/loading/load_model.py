"""`load_model`: from where the bytes are straight into a module."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from torchwick.checkpoint.progress import watched
from torchwick.config import S3Config, TransferConfig
from torchwick.report import LoadReport, LoadResult, ProgressCallback
from torchwick.uri import parse

if TYPE_CHECKING:
    import torch

    from torchwick.checkpoint.renaming import Rename
    from torchwick.checkpoint.selection import Keys
    from torchwick.checkpoint.verification import Verify

__all__ = ["load_model"]

_log = logging.getLogger("torchwick")


def load_model(
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
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> LoadResult:
    """Fill a module from a checkpoint: its parameters and buffers, in their own memory.

    A module on the CPU is read straight into the memory it has. One on the device ``meta`` gets memory of its
    own, tensor by tensor, on `device`. What is on an accelerator, or of another dtype than the checkpoint, is
    fed in pieces of 16 MiB, cast and copied while the next ones are read: no more than
    ``TransferConfig.memory_limit`` is held of them. Tied weights stay tied. No pickle is run.

    Modules with loading code of their own (hooks, ``_load_from_state_dict``) have the tensors read first, and
    are then given them by ``model.load_state_dict``.

    Args:
        model: the module; its names are those of its state dict.
        uri: an object or a directory, as for `torchwick.open`.
        strict: refuse a checkpoint that lacks a tensor of the module, or has another one besides. Shapes have
            to agree in either case.
        device: where the module is to be; by default where it is, and the CPU for what is on ``meta``.
        dtype: what the floating-point tensors that are loaded are cast to, as ``torch.bfloat16`` or
            ``"bf16"``; by default they get the dtype that the module has.
        keys: only these tensors of the checkpoint: a name or a pattern (``"model.*"``), several, or a
            function of the name.
        rename: what the tensors are called in the module: beginnings of names and what takes their place, as
            one pair (``("module.", "")``) or a mapping; or a function from name to name.
        verify: see `torchwick.load`.
        sha256: see `torchwick.load`; the bytes are then read as a whole before any of it is in the module.
        progress: True for a bar on standard error, or a function that is called with a `Progress` about ten
            times a second, on this thread.
        on_report: called once with the `LoadReport` of a load that succeeded.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.

    Returns:
        The names that were missing and unexpected, none of either if it was strict.

    Raises:
        StateDictError: names or shapes do not fit; the module is untouched.
        TensorNotFoundError: `keys` means none; the module is untouched.
        FormatError: it is no checkpoint, or corrupt, or can only be loaded as a whole.
        IntegrityError: the bytes are not those that were stored, or pinned.
        MemoryLimitError: a tensor that lies scattered is larger than the memory limit.
        StoreError: it cannot be read. Like any error that comes after the first bytes, it says so if the
            module is partly filled.
        ValueError: `dtype` is no floating-point dtype, or two tensors are renamed alike.

    Example:
        >>> import tempfile, torch, torchwick
        >>> model = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = {"module.weight": torch.tensor([[1.0, 2.0]]), "module.bias": torch.tensor([3.0])}
        ...     torch.save(saved, f"{folder}/model.pt")
        ...     torchwick.load_model(model, f"{folder}/model.pt", rename=("module.", ""))
        LoadResult(missing=[], unexpected=[])
        >>> model(torch.ones(2)).item()
        6.0
    """
    from torchwick.checkpoint.opening import open_objects
    from torchwick.checkpoint.renaming import renamed
    from torchwick.checkpoint.selection import select
    from torchwick.checkpoint.verification import parse_sha256
    from torchwick.formats.dtypes import DTYPES, parse_dtype
    from torchwick.formats.ties import with_ties
    from torchwick.store import open_store

    if not hasattr(model, "named_parameters"):  # before torch is imported
        raise TypeError(f"a torch.nn.Module is filled, not a {type(model).__name__}")
    started = time.perf_counter()
    address, config, digest = parse(uri), transfer or TransferConfig(), parse_sha256(sha256)
    kind = None if dtype is None else DTYPES[parse_dtype(dtype)].torch
    store = open_store(address, s3 or S3Config(), config.timeout)
    with watched(progress) as on_progress:
        catalog, objects = open_objects(address, store, config)
        catalog = with_ties(catalog)
        original = renamed(select(keys, catalog.entries, address), rename)
        from torchwick.loading.module import Filling  # imports torch, after the address proved good

        filling = Filling(model, catalog, objects, original, on_progress)
        result, facts = filling.run(strict=strict, device=device, dtype=kind, verify=verify, sha256=digest)
    report = LoadReport(uri=str(address), seconds=time.perf_counter() - started, **facts)
    _log.info("loaded %s into a %s: %s", report.uri, type(model).__name__, report)
    if on_report is not None:
        on_report(report)
    return result
