"""What a load has to tell when it is done: what was read, and whether it was verified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchwick.loading.devices import MapLocation
    from torchwick.loading.source import Source
    from torchwick.report import Method
    from torchwick.transfer import Tally
    from torchwick.uri import URI

__all__ = ["facts_of", "unverified"]


def unverified(address: URI, map_location: MapLocation) -> Exception:
    """Return the error for a load that had to be verified, and was not."""
    from torchwick.checkpoint.verification import unverifiable
    from torchwick.loading.devices import is_faking, is_meta

    if is_meta(map_location) or is_faking():
        return ValueError(f"{address}: no bytes are read for {map_location!r} that could be verified")
    return unverifiable(address)


def facts_of(
    tally: Tally, sources: Sequence[Source], format: str, method: Method, size: int
) -> dict[str, Any]:
    """Return what there is to report of the objects that were read."""
    infos = [source.info for source in sources]
    return {
        "format": format,
        "method": method,
        "size": size,
        "bytes_read": tally.bytes_read,
        "requests": tally.requests,
        "retries": tally.retries,
        "connections": max(1, tally.connections),
        "etag": _only(info.etag for info in infos),
        "version": _only(info.version for info in infos),
        "verified": _only(source.verified for source in sources),
    }


def _only(of_objects: Iterable[str | None]) -> str | None:
    """Return what all objects have in common, or None."""
    values = set(of_objects)
    return values.pop() if len(values) == 1 else None
