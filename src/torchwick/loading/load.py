"""`load`: what torch.load would return, straight from where the bytes are."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torchwick.checkpoint.progress import watched
from torchwick.config import S3Config, TransferConfig
from torchwick.errors import ObjectNotFoundError
from torchwick.formats.sniff import sniff
from torchwick.loading.facts import facts_of, unverified
from torchwick.report import LoadReport, ProgressCallback
from torchwick.uri import parse

if TYPE_CHECKING:
    import torch

    from torchwick.checkpoint.objects import Objects
    from torchwick.checkpoint.selection import Keys
    from torchwick.checkpoint.verification import Verify
    from torchwick.formats.catalog import Catalog
    from torchwick.loading.devices import MapLocation, Placement
    from torchwick.loading.source import Source
    from torchwick.loading.torch_files import Outcome
    from torchwick.store import Store
    from torchwick.transfer import RangeCache
    from torchwick.uri import URI

__all__ = ["load"]

_log = logging.getLogger("torchwick")


def load(
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
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> Any:
    """Load a checkpoint straight into tensors: no file on the way, no second copy.

    The format is told from the bytes. torch.save's zip format (``.pt``, ``.pth``, ``.bin``, ``.ckpt``) and
    the format of torch before 1.6 give exactly what ``torch.load`` gives; safetensors give a dict of tensors.
    TorchScript and torch.export archives are loaded by torch's own loaders. Directories (of Hugging Face's
    shards, of ``torch.distributed.checkpoint``) give one flat dict of all their tensors, read together.

    Args:
        uri: ``s3://bucket/key`` (``?versionId=…`` for one version), ``https://…`` (public or presigned), or a
            local path; of a directory, ``s3://bucket/folder/``.
        map_location: where storages go, as for ``torch.load``.
        weights_only: refuse pickles that import anything but tensors and plain containers. With False, the
            file may run any code: only for files whose maker you trust as you would trust their programs.
        keys: only these tensors, as a flat dict: a name or a pattern (``"layers.0.*"``), several, or a
            function that tells of a name whether it is meant. Names are those that `torchwick.open` has; only
            the bytes that are needed are read, and no pickle is run.
        dtype: what floating-point tensors are cast to as they arrive, as ``torch.bfloat16`` or ``"bf16"``;
            ties stay, and so do integers, masks and the step counters of optimizers.
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
    from torchwick.checkpoint.verification import parse_sha256
    from torchwick.formats.dtypes import DTYPES, parse_dtype
    from torchwick.store import open_store

    started = time.perf_counter()
    address, config, digest = parse(uri), transfer or TransferConfig(), parse_sha256(sha256)
    kind = None if dtype is None else DTYPES[parse_dtype(dtype)].torch
    store = open_store(address, s3 or S3Config(), config.timeout)
    with watched(progress) as on_progress:
        task = _Task(address, store, config, on_progress, map_location, kind, verify, digest)
        value, facts = task.run(keys, weights_only=weights_only)
    if facts["verified"] is None and (verify is True or digest is not None):
        raise unverified(address, map_location)
    report = LoadReport(uri=str(address), seconds=time.perf_counter() - started, **facts)
    _log.info("loaded %s: %s", report.uri, report)
    if on_report is not None:
        on_report(report)
    return value


@dataclass(frozen=True)
class _Task:
    """What a load was asked for, apart from what tells its two ways apart."""

    address: URI
    store: Store
    config: TransferConfig
    on_progress: ProgressCallback | None
    map_location: MapLocation
    dtype: str | None
    verify: Verify
    digest: str | None

    def run(self, keys: Keys, *, weights_only: bool) -> tuple[Any, dict[str, Any]]:
        """Load, and return what was loaded and what there is to report."""
        from torchwick.checkpoint.objects import Objects
        from torchwick.checkpoint.opening import catalog_of, names_many, open_instead, open_objects
        from torchwick.transfer import RangeCache

        asked = self.address, self.store, self.config
        if keys is not None or names_many(self.address):
            return self._by_name(*open_objects(*asked), keys)
        try:
            cache = RangeCache(self.store, self.address, self.config)
        except ObjectNotFoundError as error:
            return self._by_name(*open_instead(*asked, error), None)
        if self._moves and sniff(cache.head, self.address) == "safetensors":  # which has nothing but names
            return self._by_name(catalog_of(cache), Objects(*asked, {"": cache}), None)
        return self._whole(cache, weights_only=weights_only)

    @property
    def _moves(self) -> bool:
        """Whether tensors are not to be what is stored, in the CPU's memory."""
        where = self.map_location
        stays = where is None or str(where) in ("cpu", "meta") or where == b"cpu"
        return self.dtype is not None or not stays

    def _placement(self) -> Placement:
        import torch

        from torchwick.loading.devices import Placement

        return Placement(self.map_location, None if self.dtype is None else getattr(torch, self.dtype))

    def _whole(self, cache: RangeCache, *, weights_only: bool) -> tuple[Any, dict[str, Any]]:
        """Load one object as it was saved."""
        from torchwick.checkpoint.verification import expecting
        from torchwick.loading.source import Source

        source = Source(self.store, cache, self.config, self.on_progress)
        source.pinned = self.digest is not None
        asked = expecting(
            self.store, source.info, self.config.timeout, verify=self.verify, sha256=self.digest
        )
        with asked as source.expected:
            outcome = _load(source, self._placement, weights_only=weights_only)
        size = source.tally.bytes_read if source.size is None else source.size
        facts = facts_of(source.tally, [source], outcome.format, outcome.method, size)
        return outcome.value, facts

    def _by_name(self, catalog: Catalog, objects: Objects, keys: Keys) -> tuple[Any, dict[str, Any]]:
        """Load tensors by name, out of one object or of many."""
        from torchwick.checkpoint.selection import select
        from torchwick.loading.selected import Selection, load_selected

        if self.digest is not None and len(objects.names) != 1:
            raise ValueError(
                f"{self.address}: a SHA-256 is of one object, and this is a directory of several"
            )
        names = select(keys, catalog.entries, self.address)
        selection = Selection(catalog, objects, names, self.on_progress)
        value = load_selected(
            selection, self._placement(), self.address, verify=self.verify, sha256=self.digest
        )
        size = objects.size or objects.tally.bytes_read
        return value, facts_of(objects.tally, selection.sources, catalog.format, "filled", size)


def _load(source: Source, placement: Callable[[], Placement], *, weights_only: bool) -> Outcome:
    # torch is imported here, after the address, the store and the object proved good.
    kind = sniff(source.cache.head, source.uri)
    from torchwick.loading.devices import settle
    from torchwick.loading.filled import load_safetensors
    from torchwick.loading.spooled import spool
    from torchwick.loading.torch_files import Outcome, load_legacy, load_tar, load_zip

    if source.pinned and source.size is None:  # a digest is of all there is, and only its end tells how much
        with spool(source, second_copy=True) as path:
            outcome = _load(source.reopened(path), placement, weights_only=weights_only)
        return replace(outcome, method="spooled")
    if kind == "safetensors":
        device = settle(placement().map_location, source.uri)
        return Outcome(load_safetensors(source, device), "safetensors", "filled")
    loaders = {"zip": load_zip, "legacy": load_legacy, "tar": load_tar}
    return loaders[kind](source, placement(), weights_only=weights_only)
