"""The checksums that S3 keeps of an object: of the whole, or of the parts it was uploaded in.

Names and forms as in the Amazon S3 user guide, "Checking object integrity": base64 of the big-endian number;
a checksum of checksums (type COMPOSITE) ends in a hyphen and the number of parts.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torchwick.store.base import StoredChecksum

__all__ = ["CRC64NVME", "checksum_of_parts", "checksum_of_whole", "is_composite", "read", "spell"]

CRC64NVME = "crc64nvme"

_ALGORITHMS = {"crc64nvme": 8, "crc32c": 4, "crc32": 4}
"""Those whose parts fold into the checksum of the whole, the best first, and their bytes."""


def checksum_of_whole(headers: Mapping[str, str], size: int) -> StoredChecksum | None:
    """Read it from the headers of an answer.

    Args:
        headers: of an answer to a request with ``x-amz-checksum-mode: ENABLED``.
        size: bytes of the object.

    Example:
        >>> checksum_of_whole({"x-amz-checksum-crc32": "y/Q5Jg=="}, 9)
        StoredChecksum(algorithm='crc32', parts=((9, 3421780262),))
    """
    if is_composite(headers):
        return None
    for algorithm in _ALGORITHMS:
        value = _number(headers.get(f"x-amz-checksum-{algorithm}"), algorithm)
        if value is not None:
            return StoredChecksum(algorithm, ((size, value),))
    return None


def is_composite(headers: Mapping[str, str]) -> bool:
    """Whether the answer tells a checksum of the parts' checksums, which the bytes alone do not give."""
    told = [headers.get(f"x-amz-checksum-{algorithm}") or "" for algorithm in _ALGORITHMS]
    return headers.get("x-amz-checksum-type") == "COMPOSITE" or any("-" in text for text in told)


def checksum_of_parts(parts: Sequence[Mapping[str, Any]], size: int) -> StoredChecksum | None:
    """Read it from the list of an object's parts, or return None where the list is not of the whole object.

    Args:
        parts: as GetObjectAttributes tells them.
        size: bytes of the object.
    """
    stops = list(itertools.accumulate(int(part.get("Size") or 0) for part in parts))
    for algorithm in _ALGORITHMS:
        values = [_number(part.get(f"Checksum{algorithm.upper()}"), algorithm) for part in parts]
        known = tuple((stop, value) for stop, value in zip(stops, values, strict=True) if value is not None)
        if parts and len(known) == len(parts) and stops[-1] == size:
            return StoredChecksum(algorithm, known)
    return None


def _number(text: object, algorithm: str) -> int | None:
    """Return a checksum as a number; None where it is none, or of another length than the algorithm's."""
    try:
        data = base64.b64decode(str(text), validate=True) if text else b""
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(data, "big") if len(data) == _ALGORITHMS[algorithm] else None


def spell(value: int) -> str:
    """Spell a CRC64NVME as S3 does.

    Example:
        >>> spell(0xAE8B14860A799888)
        'rosUhgp5mIg='
    """
    return base64.b64encode(value.to_bytes(_ALGORITHMS[CRC64NVME], "big")).decode("ascii")


def read(text: object) -> int | None:
    """Return the CRC64NVME that is spelled so, or None where none is.

    Example:
        >>> read("rosUhgp5mIg="), read("rosUhgp5mIg=-2"), read(None)
        (12577168950296156296, None, None)
    """
    return _number(text, CRC64NVME)
