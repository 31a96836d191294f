"""The fault server's listings: pages of keys, told as S3 tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote_plus
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping


def page(query: str, objects: Mapping[str, tuple[int, str | None]]) -> bytes:
    """Answer ListObjectsV2.

    Args:
        query: the request's.
        objects: size and ETag of every object of the bucket, by its key.
    """
    told = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    prefix, delimiter = told.get("prefix", ""), told.get("delimiter", "")
    encode = quote_plus if told.get("encoding-type") == "url" else str
    entries = sorted({_rolled_up(key, prefix, delimiter) for key in objects if key.startswith(prefix)})
    first = int(told.get("continuation-token", 0))
    last = first + int(told.get("max-keys", 1000))
    shown = "".join(_entry(encode(name), objects.get(name)) for name in entries[first:last])
    more = last < len(entries)
    token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
    encoding = "<EncodingType>url</EncodingType>" if encode is quote_plus else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult>'
        f"<Prefix>{escape(encode(prefix))}</Prefix><KeyCount>{len(entries[first:last])}</KeyCount>{encoding}"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{shown}</ListBucketResult>"
    ).encode()


def _rolled_up(key: str, prefix: str, delimiter: str) -> str:
    """Return the key, or the part of it up to the first delimiter behind the prefix."""
    end = key.find(delimiter, len(prefix)) if delimiter else -1
    return key if end < 0 or end == len(key) - 1 == len(prefix) - 1 else key[: end + 1]


def _entry(name: str, stored: tuple[int, str | None] | None) -> str:
    if stored is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    size, etag = stored
    tag = "" if etag is None else f"<ETag>{escape(etag, {chr(34): '&quot;'})}</ETag>"
    return (
        f"<Contents><Key>{escape(name)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>{tag}"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )
