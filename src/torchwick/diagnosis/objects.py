"""The object: its bucket, whether it can be read, what it is, how it is stored, whether there is room."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from torchwick.diagnosis.case import Case
from torchwick.diagnosis.findings import Finding
from torchwick.diagnosis.machine import available_memory
from torchwick.diagnosis.words import size_text
from torchwick.errors import CredentialsError, ObjectNotFoundError
from torchwick.formats.sniff import sniff
from torchwick.store.s3_client import customer_key
from torchwick.store.s3_errors import Refusal

__all__ = ["bucket", "format_", "object_", "room", "storage"]

_FORMATS = {
    "zip": "a zip archive: of torch.save, TorchScript or torch.export",
    "legacy": "torch.save's format before torch 1.6",
    "tar": "torch.save's format before torch 0.1.10",
    "safetensors": "safetensors",
}
_CHECKSUMS = ("CRC64NVME", "CRC32C", "CRC32", "SHA256", "SHA1")  # the strongest against accidents first


def bucket(case: Case) -> Finding:
    """List one key of the bucket. A load does not need that, but it tells missing keys from refused ones."""
    name, client = case.target.bucket, case.s3_store.client
    try:
        listed = client.list_objects_v2(Bucket=name, MaxKeys=1, **_paying(case))
    except ClientError as error:
        refusal = Refusal(error, case.target, case.asked_as, case.secrets)
        explained = refusal.explained()
        fatal = isinstance(explained, CredentialsError) or (
            isinstance(explained, ObjectNotFoundError) and refusal.meaning.startswith("NoSuchBucket")
        )
        if fatal:
            raise explained from None
        if refusal.code.isdecimal():
            found = f"something that is not S3 answered {refusal.code} when {name} was to be listed"
            advice = "Check AWS_ENDPOINT_URL: the answer to a listing is not in S3's form."
            return Finding("warning", found, advice, {"listed": False, "code": refusal.code})
        found = f"{name} does not let itself be listed (S3 answered {refusal.code}), which no load needs"
        return Finding("note", found, facts={"listed": False, "code": refusal.code})
    empty = not listed.get("Contents")
    region = listed["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    facts = {"listed": True, "empty": empty, "region": region}
    found = f"{name} can be listed" + (", and is empty" if empty else "")
    if region not in (None, client.meta.region_name):
        advice = f"Set AWS_DEFAULT_REGION to {region}, the bucket's region: it spares a request."
        return Finding("note", f"{found}; it is in {region}", advice, facts)
    return Finding("note" if empty else "ok", found, facts=facts)


def object_(case: Case) -> Finding:
    """Read the object's first bytes.

    Raises:
        StoreError: it cannot be read.
    """
    info = case.info
    facts = {
        "size": info.size,
        "etag": info.etag,
        "version": info.version,
        "modified": info.modified,
        "ranged": info.ranged,
    }
    named = {"ETag": info.etag, "version": info.version, "modified": info.modified}
    size = "of unknown size" if info.size is None else size_text(info.size)
    found = ", ".join([size, *(f"{name} {value}" for name, value in named.items() if value)])
    if not info.ranged:
        advice = "Have the server answer ranges, with an ETag: the object comes over one connection as it is."
        return Finding("warning", f"{found}; it comes as one stream", advice, facts)
    return Finding("ok", found, facts=facts)


def format_(case: Case) -> Finding:
    """Tell the format from the first bytes.

    Raises:
        FormatError: it is nothing that torchwick loads.
    """
    kind = sniff(case.cache.head, case.target)
    return Finding("ok", _FORMATS[kind], facts={"format": kind})


def storage(case: Case) -> Finding:
    """Tell how the object is stored: class, encryption, and the checksum kept beside it."""
    uri = case.target
    arguments: dict[str, Any] = {"Bucket": uri.bucket, "Key": uri.key, "ChecksumMode": "ENABLED"}
    if uri.version is not None:
        arguments["VersionId"] = uri.version
    try:
        head = case.s3_store.client.head_object(**arguments, **customer_key(case.s3), **_paying(case))
    except (ClientError, BotoCoreError) as error:
        told = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        return Finding("unknown", f"the store does not tell ({told})")
    facts = {
        "class": head.get("StorageClass", "STANDARD"),  # which S3 leaves out
        "encryption": _encryption(head),
        "checksum": _checksum(head),
    }
    checksum = (
        f"checksum {facts['checksum']} of the whole" if facts["checksum"] else "no checksum of the whole"
    )
    encryption = facts["encryption"] or "no encryption told"
    return Finding("ok", f"{facts['class']}, {encryption}, {checksum}", facts=facts)


def _paying(case: Case) -> dict[str, str]:
    return {"RequestPayer": "requester"} if case.s3.requester_pays else {}


def _encryption(head: dict[str, Any]) -> str | None:
    if head.get("SSECustomerAlgorithm"):
        return f"{head['SSECustomerAlgorithm']} by a key of its owner's"
    found: str | None = head.get("ServerSideEncryption")
    return found


def _checksum(head: dict[str, Any]) -> str | None:
    if head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None  # a checksum of the parts' checksums, as uploads in parts leave it
    for name in _CHECKSUMS:
        value = head.get(f"Checksum{name}")
        if value and "-" not in value:
            return name
    return None


def room(case: Case) -> Finding:
    """Hold the object's size against the memory that is left."""
    size, memory = case.info.size, available_memory()
    if size is None:
        return Finding("unknown", "the server does not tell the object's size")
    facts = {"size": size, "available_memory": memory}
    found = f"{size_text(size)} into {size_text(memory)}"
    if size <= memory:
        return Finding("ok", found, facts=facts)
    return Finding("warning", found, "Use a machine with more memory: the tensors do not fit here.", facts)
