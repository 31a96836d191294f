"""The write side of the fault server: uploads in memory, held to what S3 holds them to."""

from __future__ import annotations

import base64
import hashlib
import itertools
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs

from awscrt import checksums

from faults import Reply, Request, S3Error

_SMALLEST_PART = 5 << 20
_CHECKSUM = "x-amz-checksum-crc64nvme"
_S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True)
class Written:
    """An object that has just appeared."""

    body: bytes
    etag: str
    checksum: str | None


@dataclass
class Upload:
    """An upload that is not complete."""

    path: str
    checksummed: bool
    parts: dict[int, bytes] = field(default_factory=dict)


class Uploads:
    """Answers requests that write.

    Attributes:
        checksums: whether CRC64NVME is kept, taken no note of, or refused.
        refusal: status and code with which it is refused.
        conditions: whether conditional writes are known.
        quiet: whether answers leave out the checksum, which only HEAD then tells.
        opaque: whether tags are made of something else than the bytes.
        pending: uploads that are not complete, by id.
    """

    def __init__(self) -> None:
        self.checksums: Literal["kept", "ignored", "refused"] = "kept"
        self.refusal = (501, "NotImplemented")
        self.conditions = True
        self.quiet = False
        self.opaque = False
        self.pending: dict[str, Upload] = {}
        self._numbers = itertools.count(1)

    def answer(self, request: Request, *, present: bool) -> tuple[Written | None, Reply | None]:
        """Return the object that appears, and the reply; neither to what is no write of this side's.

        Args:
            request: with its body.
            present: whether there is an object of its path.
        """
        query = parse_qs(request.query, keep_blank_values=True)
        reply: Reply | None = None
        if request.method in ("PUT", "POST") and self._refuses(request):
            return None, _error(request, *self.refusal)
        if request.method in ("PUT", "POST") and "if-none-match" in request.headers:
            if not self.conditions:
                return None, _error(request, 501, "NotImplemented")
            if present:
                return None, _error(request, 412, "PreconditionFailed")
        if request.method == "POST" and "uploads" in query:
            reply = self._begin(request)
        elif request.method == "POST" and "uploadId" in query:
            return self._complete(request, query["uploadId"][0])
        elif request.method == "PUT" and "uploadId" in query:
            reply = self._part(request, query["uploadId"][0], int(query["partNumber"][0]))
        elif request.method == "PUT":
            return self._put(request)
        elif request.method == "DELETE" and "uploadId" in query:
            gone = self.pending.pop(query["uploadId"][0], None) is None
            reply = _error(request, 404, "NoSuchUpload") if gone else Reply(204, {}, b"")
        return None, reply

    def _refuses(self, request: Request) -> bool:
        told = any(name.startswith("x-amz-checksum-") for name in request.headers)
        return told and self.checksums == "refused"

    def _begin(self, request: Request) -> Reply:
        name = f"upload-{next(self._numbers)}"
        told = request.headers.get("x-amz-checksum-algorithm") == "CRC64NVME"
        self.pending[name] = Upload(request.path, told and self.checksums == "kept")
        bucket, _, key = request.path.partition("/")
        body = (
            f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key>"
            f"<UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
        )
        return Reply(200, {"Content-Type": "application/xml"}, body.encode())

    def _part(self, request: Request, name: str, number: int) -> Reply:
        upload = self.pending.get(name)
        if upload is None:
            return _error(request, 404, "NoSuchUpload")
        if not self._intact(request):
            return _error(request, 400, "BadDigest")
        upload.parts[number] = request.body
        return Reply(200, {"ETag": self._etag(request.body)} | self._told(request.body), b"")

    def _put(self, request: Request) -> tuple[Written | None, Reply]:
        if not self._intact(request):
            return None, _error(request, 400, "BadDigest")
        written = Written(request.body, self._etag(request.body), self._kept(_CHECKSUM in request.headers))
        return written, Reply(200, {"ETag": written.etag} | self._told(request.body), b"")

    def _complete(self, request: Request, name: str) -> tuple[Written | None, Reply]:
        upload = self.pending.get(name)
        if upload is None:
            return None, _error(request, 404, "NoSuchUpload")
        listed = [
            (int(part.findtext(f"{_S3}PartNumber") or 0), part.findtext(f"{_S3}ETag"))
            for part in ET.fromstring(request.body).iter(f"{_S3}Part")
        ]
        parts = [upload.parts.get(number) for number, _ in listed]
        if [number for number, _ in listed] != list(range(1, len(parts) + 1)) or None in parts:
            return None, _error(request, 400, "InvalidPart")
        bodies = [part for part in parts if part is not None]
        if any(self._etag(body) != etag for body, (_, etag) in zip(bodies, listed, strict=True)):
            return None, _error(request, 400, "InvalidPart")
        if any(len(body) < _SMALLEST_PART for body in bodies[:-1]):
            return None, _error(request, 400, "EntityTooSmall")
        whole = b"".join(bodies)
        if request.headers.get("x-amz-mp-object-size", str(len(whole))) != str(len(whole)):
            return None, _error(request, 400, "InvalidRequest")
        if not self._intact(request, whole):
            return None, _error(request, 400, "BadDigest")
        del self.pending[name]
        digest = hashlib.md5(b"".join(hashlib.md5(body).digest() for body in bodies)).hexdigest()
        etag = f'"{digest}-{len(bodies)}"' if not self.opaque else f'"opaque-{name}"'
        told = self._told(whole).get(_CHECKSUM)
        checksum = f"<ChecksumCRC64NVME>{told}</ChecksumCRC64NVME>" if told else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<CompleteMultipartUploadResult><ETag>{etag}</ETag>{checksum}</CompleteMultipartUploadResult>"
        )
        written = Written(whole, etag, self._kept(upload.checksummed))
        return written, Reply(200, {"Content-Type": "application/xml"}, body.encode())

    def _intact(self, request: Request, body: bytes | None = None) -> bool:
        sent = request.headers.get(_CHECKSUM)
        content = request.body if body is None else body
        return sent is None or self.checksums != "kept" or sent == spelled(content)

    def _told(self, body: bytes) -> dict[str, str]:
        return {_CHECKSUM: spelled(body)} if self.checksums == "kept" and not self.quiet else {}

    def _kept(self, asked: bool) -> str | None:
        return "crc64nvme" if asked and self.checksums == "kept" else None

    def _etag(self, body: bytes) -> str:
        return f'"{hashlib.md5(body).hexdigest()}"' if not self.opaque else f'"opaque-{len(body)}"'


def spelled(body: bytes) -> str:
    """The CRC64NVME of some bytes, as S3 spells it."""
    return base64.b64encode(checksums.crc64nvme(body).to_bytes(8, "big")).decode()


def _error(request: Request, status: int, code: str) -> Reply:
    reply = Reply(status, {}, b"")
    S3Error(status, code, f"{code} it is").apply(request, reply)
    return reply
