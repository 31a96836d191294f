"""`doctor`: finds out what a load would meet, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable

from torchwick.config import S3Config, TransferConfig
from torchwick.diagnosis.findings import Diagnosis
from torchwick.uri import parse

__all__ = ["diagnose", "doctor"]


def doctor(
    uri: str | os.PathLike[str] | None = None,
    *,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> Diagnosis:
    """Find out what a load would meet: machine, settings, credentials, network, object and speed.

    Nothing is written anywhere, and nothing secret is told. What fails becomes a failed `Check` with advice,
    and what depends on it is not tried. On a healthy store it takes a few seconds, most of them to measure
    the speed: at most 64 MiB are read over one connection and 256 MiB over many. Against a network that
    swallows everything it ends within about twice ``TransferConfig.timeout``, or three times where a role is
    assumed; looking up names, which only the system bounds, comes on top of it.

    Args:
        uri: an object, as for `load`. Without it the settings, the credentials and the way to S3 are looked
            at, but no object.
        s3: who asks and which S3, as for `load`.
        transfer: its ``timeout`` and ``connections`` are those of the diagnosis, too.

    Returns:
        The `Diagnosis`. It is `ok` if nothing failed.

    Raises:
        URIError: `uri` is no address.

    Example:
        >>> import tempfile, torch, torchwick
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.arange(3)}, f"{folder}/model.pt")
        ...     diagnosis = torchwick.doctor(f"{folder}/model.pt")
        >>> diagnosis.ok, diagnosis["format"].facts["format"]
        (True, 'zip')
    """
    return diagnose(uri, s3 or S3Config(), transfer or TransferConfig(), lambda _: None)


def diagnose(
    uri: str | os.PathLike[str] | None,
    s3: S3Config,
    transfer: TransferConfig,
    on_topic: Callable[[str], object],
) -> Diagnosis:
    """Do what `doctor` does, and tell what is looked at.

    Args:
        uri: see `doctor`.
        s3: see `doctor`.
        transfer: see `doctor`.
        on_topic: called with the topic of each check before it is made.

    Raises:
        URIError: `uri` is no address.
    """
    address = None if uri is None else parse(uri)
    # Imported here, so that importing torchwick costs no import of HTTP and TLS.
    from torchwick.diagnosis.rounds import make_rounds

    return make_rounds(address, s3, transfer, on_topic)
