"""The checksums that the fault server keeps of an object, told as S3 tells them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from awscrt import checksums

if TYPE_CHECKING:
    from collections.abc import Mapping

_SUMS = {
    "crc64nvme": (checksums.crc64nvme, 8),
    "crc32c": (checksums.crc32c, 4),
    "crc32": (checksums.crc32, 4),
}


@dataclass(frozen=True)
class KeptChecksum:
    """What S3 keeps of one object.

    Attributes:
        algorithm: such as "crc64nvme".
        whole: of the whole, or of the parts' checksums with the number of parts after a hyphen.
        parts: bytes and checksum of each part; empty where the checksum is of the whole.
    """

    algorithm: str
    whole: str
    parts: tuple[tuple[int, str], ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        """What HeadObject and GetObject tell who asks with ``x-amz-checksum-mode: ENABLED``."""
        kind = "COMPOSITE" if self.parts else "FULL_OBJECT"
        return {f"x-amz-checksum-{self.algorithm}": self.whole, "x-amz-checksum-type": kind}

    def attributes(self, headers: Mapping[str, str], etag: str) -> bytes:
        """The answer to GetObjectAttributes: a page of the parts."""
        first = int(headers.get("x-amz-part-number-marker", 0))
        last = min(len(self.parts), first + int(headers.get("x-amz-max-parts", 1000)))
        tag = f"Checksum{self.algorithm.upper()}"
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><Size>{size}</Size><{tag}>{value}</{tag}></Part>"
            for number, (size, value) in enumerate(self.parts[first:last], first + 1)
        )
        more = "true" if last < len(self.parts) else "false"
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<GetObjectAttributesResponse>'
            f"<ETag>{etag.strip(chr(34))}</ETag><ObjectParts><PartsCount>{len(self.parts)}</PartsCount>"
            f"<PartNumberMarker>{first}</PartNumberMarker><NextPartNumberMarker>{last}</NextPartNumberMarker>"
            f"<MaxParts>1000</MaxParts><IsTruncated>{more}</IsTruncated>{parts}"
            "</ObjectParts></GetObjectAttributesResponse>"
        ).encode()


def keep(algorithm: str, body: bytes, uploaded_in: int | None) -> KeptChecksum:
    """Sum an object as S3 does when it is stored."""
    if uploaded_in is None:
        return KeptChecksum(algorithm, _sum(algorithm, body))
    pieces = [body[at : at + uploaded_in] for at in range(0, len(body), uploaded_in)]
    sums = [_sum(algorithm, piece) for piece in pieces]
    of_sums = _sum(algorithm, b"".join(map(base64.b64decode, sums)))
    return KeptChecksum(
        algorithm, f"{of_sums}-{len(pieces)}", tuple(zip(map(len, pieces), sums, strict=True))
    )


def _sum(algorithm: str, data: bytes) -> str:
    function, width = _SUMS[algorithm]
    return base64.b64encode(function(data).to_bytes(width, "big")).decode()
