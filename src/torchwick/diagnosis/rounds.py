"""The order of the checks, and what becomes of one that cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from torchwick.config import S3Config, TransferConfig
from torchwick.diagnosis import access, machine, network, objects, settings, speed
from torchwick.diagnosis.case import Case
from torchwick.diagnosis.findings import Check, Diagnosis, Finding
from torchwick.diagnosis.words import advice_of
from torchwick.errors import TorchwickError, TransferError
from torchwick.store.botocore_errors import from_botocore, not_s3
from torchwick.store.redact import redacted_logs, without_passwords
from torchwick.store.s3_errors import Refusal
from torchwick.uri import URI

__all__ = ["make_rounds"]

_FAILURES = (
    TorchwickError,
    BotoCoreError,
    ClientError,
    ResponseParserError,
    HTTPException,
    OSError,
    UnicodeError,  # of a host's name that cannot be written as the network wants it
)
"""What a check may end with: errors of torchwick's, botocore's and the network's; the rest are mistakes.

What botocore makes of a wrong configuration, be it a `ValueError`, is caught where botocore is called.
"""

_TRY_NETWORK = "Check the network between this machine and the store, and what is on the way."
_SHORTEST_SECRET = 8  # characters; Amazon's have 40


@dataclass(frozen=True)
class _Step:
    """One check and when it makes sense.

    Attributes:
        section: see `Check`.
        topic: see `Check`.
        look: makes it.
        after: topics without which it cannot be made.
        where: the schemes it is made for; ``"s3"`` also stands for S3 without an object.
        of_object: whether it needs an object.
    """

    section: str
    topic: str
    look: Callable[[Case], Finding]
    after: tuple[str, ...] = ()
    where: tuple[str, ...] = ("s3", "http", "https", "file")
    of_object: bool = False


_S3 = ("s3",)
_REMOTE = ("s3", "http", "https")

_STEPS = (
    _Step("machine", "versions", lambda _: machine.versions()),
    _Step("machine", "torch", lambda _: machine.torch_version()),
    _Step("machine", "capacity", lambda _: machine.capacity()),
    _Step("settings", "variables", settings.variables, where=_REMOTE),
    _Step("settings", "profile", settings.profile, where=_S3),
    _Step("settings", "region", settings.region, ("profile",), _S3),
    _Step("settings", "endpoint", settings.endpoint, ("profile",), _S3),
    _Step("settings", "addressing", settings.addressing, ("endpoint",), _S3, of_object=True),
    _Step("settings", "proxy", settings.proxy, ("endpoint",), _REMOTE),
    _Step("settings", "authorities", settings.authorities, ("endpoint",), _REMOTE),
    _Step("access", "credentials", access.credentials, ("profile",), _S3),
    _Step("access", "identity", access.identity, ("endpoint", "authorities", "credentials"), _S3),
    _Step("network", "dns", network.dns, ("endpoint", "proxy"), _REMOTE),
    _Step("network", "tcp", network.tcp, ("dns",), _REMOTE),
    _Step("network", "tls", network.tls, ("authorities", "tcp"), _REMOTE),
    _Step("network", "http", network.http, ("tls",), _REMOTE),
    _Step("network", "clock", network.clock, ("http",), _REMOTE),
    _Step("object", "bucket", objects.bucket, ("credentials", "http"), _S3, of_object=True),
    _Step("object", "object", objects.object_, ("http", "bucket"), of_object=True),
    _Step("object", "format", objects.format_, ("object",), of_object=True),
    _Step("object", "storage", objects.storage, ("object",), _S3, of_object=True),
    _Step("object", "room", objects.room, ("object",), of_object=True),
    _Step("speed", "latency", speed.latency, ("object",), _REMOTE, of_object=True),
    _Step("speed", "rate", speed.rate, ("object",), of_object=True),
)


def make_rounds(
    uri: URI | None, s3: S3Config, transfer: TransferConfig, on_topic: Callable[[str], object]
) -> Diagnosis:
    """Make every check that makes sense for an address, each whatever became of the others.

    Args:
        uri: the object, or None.
        s3: who asks, and which S3.
        transfer: how bytes are moved.
        on_topic: called with the topic of each check before it is made.
    """
    case = Case(uri, s3, transfer)
    try:
        with redacted_logs():
            return Diagnosis(None if uri is None else str(uri), tuple(_made(case, on_topic)))
    finally:
        case.close()


def _made(case: Case, on_topic: Callable[[str], object]) -> Iterator[Check]:
    missing: dict[str, str] = {}
    """Topics that gave nothing to go on with, and the one at the root of it."""
    for step in _STEPS:
        if case.scheme not in step.where or (step.of_object and case.uri is None):
            continue
        cause = next((missing[topic] for topic in step.after if topic in missing), None)
        if cause is not None:
            missing[step.topic] = cause
            facts = {"because_of": cause}
            yield Check(step.section, step.topic, "unknown", f"not tried, because of {cause}", facts=facts)
            continue
        on_topic(step.topic)
        found = _looked(step, case)
        if found.status == "failed":
            missing[step.topic] = step.topic
        yield _told(step, found, case.secrets)


def _looked(step: _Step, case: Case) -> Finding:
    try:
        return step.look(case)
    except _FAILURES as error:
        return _failure(error, case)


def _failure(error: Exception, case: Case) -> Finding:
    """Say what an error means, its hint being the advice."""
    if isinstance(error, ClientError):
        error = Refusal(error, case.about, case.asked_as, case.secrets).explained()
    elif isinstance(error, BotoCoreError):
        error = from_botocore(error)
    elif isinstance(error, ResponseParserError):
        error = not_s3()
    if isinstance(error, TorchwickError):
        facts = {"error": type(error).__name__, "code": getattr(error, "code", None)}
        advice = advice_of(error) or (_TRY_NETWORK if isinstance(error, TransferError) else None)
        return Finding("failed", error.message, advice, facts)
    advice = _TRY_NETWORK if isinstance(error, OSError | HTTPException) else None
    facts = {"error": type(error).__name__, "code": None}
    return Finding("failed", str(error) or type(error).__name__, advice, facts)


def _is_long(secret: str) -> bool:
    """Whether a secret is more than a word that stands in other texts, too; a test server's may be one."""
    return len(secret) >= _SHORTEST_SECRET


def _told(step: _Step, found: Finding, secrets: tuple[str, ...]) -> Check:
    """Return the check, with nothing secret in it, whoever put it there."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [clean(inner) for inner in value]
        if not isinstance(value, str):
            return value
        for secret in filter(_is_long, secrets):
            value = value.replace(secret, "…")
        return without_passwords(value)

    told = clean({"found": found.found, "advice": found.advice, "facts": found.facts})
    return Check(step.section, step.topic, found.status, **told)
