"""Settings, given once: who and where, how fast and with how much memory, and what is kept with an object.

All are frozen, compare by value, pickle, and print without secrets.
"""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["PutOptions", "S3Config", "TransferConfig", "parse_size"]

_CUSTOMER_KEY_BYTES = 32  # AES-256, the only algorithm of SSE-C (Amazon S3 user guide)

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


@dataclass(frozen=True, kw_only=True)
class S3Config:
    """Who asks, and which S3 is asked. Whatever is left out is found as boto3 finds it.

    There is no place for access keys here: they belong into the AWS chain, best of all as a role.

    Attributes:
        profile: a profile of the AWS configuration files, in place of ``AWS_PROFILE``.
        region: in place of ``AWS_DEFAULT_REGION`` and the profile's.
        endpoint_url: an S3-compatible server, in place of ``AWS_ENDPOINT_URL(_S3)``.
        anonymous: send unsigned requests, for public buckets.
        role_arn: an IAM role to assume with the credentials that are found, through STS.
        external_id: what the role's owner wants to hear when it is assumed; 2 to 1224 characters (AWS STS
            API reference, AssumeRole).
        requester_pays: accept that the requests are billed to the caller.
        sse_customer_key: the key the objects are encrypted with (SSE-C): 32 bytes, or their base64 text. It
            is sent with each request, in a header, and only over TLS or to this machine; it is not shown by
            ``repr``, but it does pickle.
        ca_bundle: a PEM file of certificate authorities, in place of ``AWS_CA_BUNDLE``.
        addressing_style: ``"path"``, ``"virtual"``, or ``"auto"``: as the profile says, else as botocore
            chooses.

    Raises:
        ValueError: settings contradict each other, or the key is not one of 32 bytes.

    Example:
        >>> S3Config(endpoint_url="http://127.0.0.1:9000", addressing_style="path").anonymous
        False
        >>> S3Config(role_arn="arn:aws:iam::123456789012:role/reader").role_arn
        'arn:aws:iam::123456789012:role/reader'
    """

    profile: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    anonymous: bool = False
    role_arn: str | None = None
    external_id: str | None = None
    requester_pays: bool = False
    sse_customer_key: bytes | str | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"

    def __post_init__(self) -> None:
        if self.endpoint_url is not None and "@" in self.endpoint_url:
            raise ValueError("S3Config.endpoint_url carries a user name or a password: leave them out")
        if self.external_id is not None and self.role_arn is None:
            raise ValueError("S3Config.external_id is for assuming a role: give role_arn as well")
        if self.external_id is not None and not 2 <= len(self.external_id) <= 1224:
            raise ValueError("S3Config.external_id must have 2 to 1224 characters")
        if self.role_arn is not None and not re.fullmatch(r"arn:[\w-]+:iam::\d+:role/.+", self.role_arn):
            raise ValueError(f"S3Config.role_arn is not the ARN of a role: {self.role_arn!r}")
        if self.anonymous and self.role_arn is not None:
            raise ValueError("S3Config.anonymous sends unsigned requests: it assumes no role")
        if self.addressing_style not in ("auto", "path", "virtual"):
            given = repr(self.addressing_style)
            raise ValueError(f"S3Config.addressing_style must be 'auto', 'path' or 'virtual', not {given}")
        if self.sse_customer_key is not None:
            object.__setattr__(self, "sse_customer_key", _customer_key(self.sse_customer_key))


def _customer_key(key: bytes | str) -> bytes:
    """Return the 32 bytes of a key, and say nothing of it where it is none."""
    try:
        decoded = base64.b64decode(key, validate=True) if isinstance(key, str) else bytes(key)
    except ValueError:
        raise ValueError("S3Config.sse_customer_key is not base64") from None
    if len(decoded) != _CUSTOMER_KEY_BYTES:
        raise ValueError(
            f"S3Config.sse_customer_key must have {_CUSTOMER_KEY_BYTES} bytes, not {len(decoded)}"
        )
    return decoded


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How bytes are moved. Every default adapts, or has its reason here.

    Attributes:
        part_size: bytes one request asks for. ``"auto"``: a 32nd of the load, between 4 and 16 MiB, so
            that a small model still uses many connections and a large one spends few requests
            (8 to 16 MiB is what Amazon's S3 performance guidelines advise). Of an upload: 16 MiB, or what
            makes 10,000 parts of a larger object; at least 5 MiB (Amazon S3 user guide, "Amazon S3 multipart
            upload limits").
        connections: connections at once. ``"auto"`` starts with 8 (over TLS with two for each core, 16 at
            the most), doubles them for as long as that makes the load faster, and takes back those that only
            wait for a busy processor.
        memory_limit: the most bytes held beside the tensors that are returned, as a number or as text
            (``"2GB"``, ``"512MiB"``). ``"auto"``: half of what the machine or its control group has left.
            A load into tensors needs next to nothing of it; formats that only torch's own loader reads
            (TorchScript, compressed records) need a second copy, which is refused beyond the limit. An upload
            holds what its connections need, and no more than that.
        timeout: seconds without one byte after which a connection counts as dead, twice that at the latest.
            10: far above the slowest first byte of a healthy store, far below the minutes a kernel would
            wait.
        max_attempts: times in a row that one range may fail, without a byte in between, before the load
            does. 8: with back-off doubling from 0.1 s it outlasts the throttling bursts of a few seconds that
            S3 answers ``SlowDown`` to; of a store that fails every third request, one range in 6,000 meets as
            many failures. All ranges together may fail 32 times as often before one of them arrives.
        patience: seconds without one byte, over all connections, after which the load fails. 120: room for
            a ``Retry-After`` of a minute, and for a network or a store that restarts.

    Raises:
        ValueError: a number is not positive, or a size cannot be read.

    Example:
        >>> TransferConfig(memory_limit="2GB", connections=8).memory_bytes()
        2000000000
    """

    part_size: int | Literal["auto"] = "auto"
    connections: int | Literal["auto"] = "auto"
    memory_limit: int | str = "auto"
    timeout: float = 10.0
    max_attempts: int = 8
    patience: float = 120.0

    def __post_init__(self) -> None:
        for name in ("part_size", "connections", "max_attempts"):
            value = getattr(self, name)
            if value == "auto" and name != "max_attempts":
                continue
            if not isinstance(value, int) or value <= 0:
                raise ValueError(f"TransferConfig.{name} must be a positive whole number, not {value!r}")
        for name in ("timeout", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"TransferConfig.{name} must be a positive number, not {value!r}")
        if self.memory_limit != "auto":
            parse_size(self.memory_limit)

    def memory_bytes(self) -> int:
        """Return `memory_limit` in bytes, reading the machine's free memory where it is ``"auto"``."""
        return _available_memory() // 2 if self.memory_limit == "auto" else parse_size(self.memory_limit)


@dataclass(frozen=True, kw_only=True)
class PutOptions:
    """What is said about an object that is written to S3. Whatever is left out is as the bucket has it.

    The key of SSE-C is not among them: it is `S3Config.sse_customer_key`, for reading and for writing.

    Attributes:
        storage_class: S3's name of one, such as ``"INTELLIGENT_TIERING"``.
        server_side_encryption: ``"AES256"``, ``"aws:kms"`` or ``"aws:kms:dsse"``.
        kms_key_id: the KMS key, its ARN or its alias; for the two kinds with KMS.
        bucket_key_enabled: use a bucket key with KMS, which costs fewer requests to KMS.
        content_type: the media type; by default S3's, ``binary/octet-stream``.
        tags: tags of the object.
        metadata: texts in ASCII that S3 keeps and returns in headers, 2 KB at most.
        expected_bucket_owner: the account that the bucket must belong to, twelve digits.

    Raises:
        ValueError: options contradict each other, or metadata are not ASCII.

    Example:
        >>> PutOptions(server_side_encryption="aws:kms", tags={"team": "vision"}).tags
        {'team': 'vision'}
    """

    storage_class: str | None = None
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    bucket_key_enabled: bool | None = None
    content_type: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    expected_bucket_owner: str | None = None

    def __post_init__(self) -> None:
        kinds = ("AES256", "aws:kms", "aws:kms:dsse")
        if self.server_side_encryption not in (None, *kinds):
            given = repr(self.server_side_encryption)
            raise ValueError(f"PutOptions.server_side_encryption must be one of {kinds}, not {given}")
        if self.kms_key_id is not None and self.server_side_encryption not in kinds[1:]:
            raise ValueError(
                "PutOptions.kms_key_id is for server_side_encryption='aws:kms' or 'aws:kms:dsse'"
            )
        owner = self.expected_bucket_owner
        if owner is not None and not re.fullmatch(r"\d{12}", owner):
            raise ValueError("PutOptions.expected_bucket_owner must be an account's number of 12 digits")
        for name in ("storage_class", "kms_key_id", "content_type"):
            _check_header(name, getattr(self, name) or "")
        for name, value in self.metadata.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError(f"PutOptions.metadata: {name!r} cannot be part of a header's name")
            _check_header(f"metadata[{name!r}]", value)
        if not all(isinstance(text, str) for pair in self.tags.items() for text in pair):
            raise ValueError("PutOptions.tags must be texts, by names that are texts")


def _check_header(name: str, value: object) -> None:
    """Refuse what cannot be sent in a header."""
    if not isinstance(value, str) or not value.isascii() or not (value.isprintable() or not value):
        raise ValueError(f"PutOptions.{name} must be printable ASCII, not {value!r}")


def parse_size(size: int | str) -> int:
    """Return bytes, from a number or a text.

    Raises:
        ValueError: it is neither, or nothing.

    Example:
        >>> parse_size("5GB"), parse_size("512 MiB"), parse_size(7)
        (5000000000, 536870912, 7)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(size).strip().upper())
    size_in_bytes = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if size_in_bytes <= 0:
        raise ValueError(f"cannot read {size!r} as a size: write bytes, or text such as '2GB' or '512MiB'")
    return size_in_bytes


def _available_memory() -> int:
    """Bytes this process may still take: the machine's, or its control group's where that is less."""
    machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts the page cache, which the kernel gives back on demand
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        machine = int(found[1]) * 1024 if found else machine
    return min(machine, _control_group_memory())


def _control_group_memory() -> int:
    """Bytes left in this process's control group; more than any machine has where none limits it.

    The files are those of the kernel's cgroup v2 documentation: ``memory.max`` and ``memory.current``.
    """
    unlimited = 1 << 62
    membership = Path("/proc/self/cgroup")
    if not membership.exists():
        return unlimited
    own = re.search(r"^0::/(.*)$", membership.read_text(), re.MULTILINE)
    for group in (Path("/sys/fs/cgroup") / (own[1] if own else ""), Path("/sys/fs/cgroup")):
        limit, current = group / "memory.max", group / "memory.current"
        if limit.exists() and current.exists() and (text := limit.read_text().strip()) != "max":
            return max(0, int(text) - int(current.read_text()))
    return unlimited
