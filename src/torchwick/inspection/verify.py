"""`verify`: reads every byte of a checkpoint, and tells whether it is what was stored.

Opening it checks its structure: headers, directories, sizes, that all shards are there. Then all objects pass
by, within a fixed amount of memory, and are held against all that is known of them.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torchwick.checkpoint.progress import watched
from torchwick.config import S3Config, TransferConfig
from torchwick.report import ProgressCallback
from torchwick.uri import parse

__all__ = ["NotFinite", "Verification", "VerifiedObject", "verify"]


@dataclass(frozen=True)
class VerifiedObject:
    """What was found of one object.

    Attributes:
        uri: its address, as text without secrets.
        size: bytes that were read.
        etag: the store's tag of the version that was read, or None where the store gives none.
        checksums: what all its bytes were held against: ``"sha256"``, and ``"crc64nvme"``, ``"crc32c"`` or
            ``"crc32"`` as the store keeps it.
        records: whether the records of a zip archive were held against the CRC-32 that its directory has of
            each; headers and padding between them have none.
        unverified: why it was held against no checksum, or None if it was.
        problems: what is wrong with it; empty if nothing is.
    """

    uri: str
    size: int
    etag: str | None
    checksums: tuple[str, ...]
    records: bool
    unverified: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class NotFinite:
    """A tensor with elements that are no finite numbers; of complex ones, each of both parts counts.

    Attributes:
        name: the tensor's.
        dtype: as safetensors spells it.
        nan: how many are not a number.
        positive: how many are infinite, and positive.
        negative: how many are infinite, and negative.
    """

    name: str
    dtype: str
    nan: int
    positive: int
    negative: int


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        uri: the checkpoint, as text without secrets.
        format: as `Checkpoint.format` has it.
        tensors: how many it has.
        objects: what was found of each, in the order of the checkpoint.
        not_finite: the tensors with NaN or Inf in them, or None: it was not asked for.
        bytes_read: bytes received.
        requests: requests sent.

    Example:
        >>> sound = VerifiedObject("s3://models/new.pt", 9, None, ("crc64nvme",), True, None, ())
        >>> found = Verification("s3://models/new.pt", "torch zip", 1, (sound,), None, 9, 2)
        >>> found.verdict, found.complete
        ('ok', True)
    """

    uri: str
    format: str
    tensors: int
    objects: tuple[VerifiedObject, ...]
    not_finite: tuple[NotFinite, ...] | None
    bytes_read: int
    requests: int

    @property
    def verdict(self) -> Literal["ok", "failed"]:
        """``"failed"`` if anything is wrong with an object, or, where that was asked, a tensor not finite."""
        return "failed" if self.not_finite or any(found.problems for found in self.objects) else "ok"

    @property
    def complete(self) -> bool:
        """Whether every object was held against a checksum of all its bytes."""
        return all(found.checksums for found in self.objects)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain types, for JSON."""
        return {"verdict": self.verdict, "complete": self.complete, **asdict(self)}


def verify(
    uri: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    finite: bool = False,
    progress: bool | ProgressCallback = False,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> Verification:
    """Read every byte of a checkpoint, and hold it against all that is known of it.

    That is: the checksum that the store keeps of each object, part by part where it was uploaded in parts;
    the digest that the caller gives; the CRC-32 of each record of a zip archive; and what has to be found
    around tensors for them to be where the directory has them. Nothing is kept: no more than
    ``TransferConfig.memory_limit`` is held at once, by default 256 MiB.

    Args:
        uri: an object, or a directory, as for `torchwick.open`.
        sha256: the digest that the object has to have, 64 hexadecimal digits; of one object only.
        finite: look for NaN and Inf as well, which imports torch. Elements are looked at as they pass; only
            what does not lie there in one piece (all of a ``torch.distributed.checkpoint``, and views with
            strides) is read a second time.
        progress: True for a bar on standard error, or a function, as for `torchwick.load`.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory.

    Returns:
        What was found, object by object. Damage is no exception, so that all of it is told. Nor is it a
        failure if the store keeps no checksum: that is told, too.

    Raises:
        URIError: `uri` is no address.
        ValueError: ``sha256`` is no SHA-256, or the checkpoint is a directory.
        FormatError: its structure is not that of a checkpoint: cut short, a shard missing, a damaged
            header; or it can only be loaded as a whole.
        StoreError: it cannot be read.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"w": torch.tensor([1.0, float("nan")])}, f"{folder}/model.pt")
        ...     found = verify(f"{folder}/model.pt", finite=True)
        >>> found.verdict, found.objects[0].problems, found.objects[0].unverified
        ('failed', (), 'the store keeps no checksum')
        >>> found.not_finite
        (NotFinite(name='w', dtype='F32', nan=1, positive=0, negative=0),)
    """
    # Imported here, so that importing this costs no import of HTTP and TLS.
    from torchwick.checkpoint.opening import open_objects
    from torchwick.checkpoint.verification import parse_sha256
    from torchwick.inspection.verify_objects import Verifier
    from torchwick.store import open_store

    address, config, digest = parse(uri), transfer or TransferConfig(), parse_sha256(sha256)
    store = open_store(address, s3 or S3Config(), config.timeout)
    catalog, objects = open_objects(address, store, config)
    if digest is not None and objects.names != [""]:
        raise ValueError(f"{address}: sha256 is the digest of one object, and this is a directory")
    with watched(progress) as on_progress:
        return Verifier(catalog, objects, sha256=digest, finite=finite).run(on_progress)
