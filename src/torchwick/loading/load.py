"""`load`: what torch.load would return, straight from where the bytes are."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torchwick.config import S3Config, TransferConfig
from torchwick.formats.sniff import sniff
from torchwick.progress import watched
from torchwick.report import LoadReport, ProgressCallback
from torchwick.uri import parse

if TYPE_CHECKING:
    from torchwick.loading.devices import MapLocation
    from torchwick.loading.source import Source
    from torchwick.loading.torch_files import Outcome
    from torchwick.loading.verification import Verify

__all__ = ["load"]

_log = logging.getLogger("torchwick")


def load(
    uri: str | os.PathLike[str],
    map_location: MapLocation = None,
    *,
    weights_only: bool = True,
    verify: Verify = "auto",
    sha256: str | None = None,
    progress: bool | ProgressCallback = False,
    on_report: Callable[[LoadReport], object] | None = None,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> Any:
    """Load a checkpoint straight into tensors: no file on the way, no second copy.

    The format is told from the bytes. torch.save's zip format (``.pt``, ``.pth``, ``.bin``, ``.ckpt``) and
    the format of torch before 1.6 give exactly what ``torch.load`` gives; safetensors give a dict of tensors.
    TorchScript and torch.export archives are loaded by torch's own loaders.

    Args:
        uri: ``s3://bucket/key`` (``?versionId=…`` for one version), ``https://…`` (public or presigned), or a
            local path.
        map_location: where storages go, as for ``torch.load``.
        weights_only: refuse pickles that import anything but tensors and plain containers. With False, the
            file may run any code: only for files whose maker you trust as you would trust their programs.
        verify: ``"auto"`` holds the bytes against the checksum that S3 keeps of the object, if it keeps one
            and all of the object is read; True fails where that cannot be done; False does not ask for it.
            `LoadReport.verified` says what came of it.
        sha256: the SHA-256 that the file has to have, 64 hexadecimal digits: exactly this file, or none.
            With ``weights_only=False`` nothing of it runs before that is certain.
        progress: True for a bar on standard error, or a function that is called with a `Progress` about ten
            times a second, on this thread.
        on_report: called once with the `LoadReport` of a load that succeeded.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.

    Returns:
        What was saved. Tensors are on the CPU unless `map_location` says otherwise, writable, and the
        caller's own.

    Raises:
        URIError: `uri` is no address.
        FormatError: the object is no model, or corrupt. `UnsafePickleError` if ``weights_only`` refused it.
        IntegrityError: the bytes are not those that S3 stored, or not the file that ``sha256`` asks for; or
            ``verify=True``, and there is nothing to verify them by.
        ValueError: ``sha256`` is no SHA-256; or no bytes are read (device ``meta``) that could be verified.
        MemoryLimitError: torch's loader for it needs a second copy beyond ``TransferConfig.memory_limit``.
        StoreError: it cannot be read: `CredentialsError`, `ObjectNotFoundError`, `AccessDeniedError`,
            `ObjectChangedError` and `TransferError` say why.

    Example:
        >>> import tempfile, torch, torchwick
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.arange(3)}, f"{folder}/model.pt")
        ...     state = torchwick.load(f"{folder}/model.pt")
        >>> state
        {'weight': tensor([0, 1, 2])}
    """
    # Imported here, so that importing torchwick costs no import of HTTP and TLS.
    from torchwick.loading.source import Source
    from torchwick.loading.verification import expecting, parse_sha256
    from torchwick.store import open_store

    started = time.perf_counter()
    address, config, digest = parse(uri), transfer or TransferConfig(), parse_sha256(sha256)
    store = open_store(address, s3 or S3Config(), config.timeout)
    with watched(progress) as on_progress:
        source = Source(store, address, config, on_progress)
        source.pinned = digest is not None
        with expecting(store, source.info, config.timeout, verify=verify, sha256=digest) as source.expected:
            outcome = _load(source, map_location, weights_only=weights_only)
    if source.verified is None and (verify is True or digest is not None):
        raise _unverified(source, map_location)
    report = _report(source, outcome, time.perf_counter() - started)
    _log.info("loaded %s: %s", report.uri, report)
    if on_report is not None:
        on_report(report)
    return outcome.value


def _load(source: Source, map_location: MapLocation, *, weights_only: bool) -> Outcome:
    # torch is imported here, after the address, the store and the object proved good.
    kind = sniff(source.cache.head, source.uri)
    from torchwick.loading.filled import load_safetensors
    from torchwick.loading.spooled import spool
    from torchwick.loading.torch_files import Outcome, load_legacy, load_tar, load_zip

    if source.pinned and source.size is None:  # a digest is of all there is, and only its end tells how much
        with spool(source, second_copy=True) as path:
            outcome = _load(source.reopened(path), map_location, weights_only=weights_only)
        return replace(outcome, method="spooled")
    if kind == "safetensors":
        return Outcome(load_safetensors(source, map_location), "safetensors", "filled")
    loaders = {"zip": load_zip, "legacy": load_legacy, "tar": load_tar}
    return loaders[kind](source, map_location, weights_only=weights_only)


def _unverified(source: Source, map_location: MapLocation) -> Exception:
    from torchwick.loading.devices import is_faking, is_meta
    from torchwick.loading.verification import unverifiable

    if is_meta(map_location) or is_faking():
        return ValueError(f"{source.uri}: no bytes are read for {map_location!r} that could be verified")
    return unverifiable(source.uri)


def _report(source: Source, outcome: Outcome, seconds: float) -> LoadReport:
    info, tally = source.info, source.tally
    return LoadReport(
        uri=str(source.uri),
        format=outcome.format,
        method=outcome.method,
        size=tally.bytes_read if source.size is None else source.size,
        bytes_read=tally.bytes_read,
        requests=tally.requests,
        retries=tally.retries,
        connections=max(1, tally.connections),
        seconds=seconds,
        etag=info.etag,
        version=info.version,
        verified=source.verified,
    )
