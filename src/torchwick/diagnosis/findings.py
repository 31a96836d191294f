"""What a diagnosis finds: plain data, without secrets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Check", "Diagnosis", "Finding", "Status"]

Status = Literal["ok", "note", "unknown", "warning", "failed"]

_URGENCY: tuple[Status, ...] = ("failed", "warning", "note", "unknown", "ok")


@dataclass(frozen=True)
class Finding:
    """What one look at one thing found.

    Attributes:
        status: see `Check`.
        found: what there is, in words.
        advice: what to do about it, or None.
        facts: the same as data.
    """

    status: Status
    found: str
    advice: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One thing that a load depends on, and what was found of it.

    Attributes:
        section: what it belongs to: ``"machine"``, ``"settings"``, ``"access"``, ``"network"``, ``"object"``
            or ``"speed"``.
        topic: its name, such as ``"credentials"``; no other check of a diagnosis has the same.
        status: ``"ok"``; ``"note"``: worth knowing; ``"unknown"``: it could not be told, or was not tried;
            ``"warning"``: it works, or may, but something should be done; ``"failed"``.
        found: what there is, in words.
        advice: what to do about it, or None.
        facts: the same as data, of types that JSON knows; sizes in bytes, times in seconds.
    """

    section: str
    topic: str
    status: Status
    found: str
    advice: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What `torchwick.doctor` found.

    Attributes:
        uri: the object, as text without secrets, or None.
        checks: every check, in the order in which they were made: causes come before what they cause.

    Example:
        >>> told = Check("network", "tcp", "failed", "connection refused", "Check the port.")
        >>> diagnosis = Diagnosis("s3://models/new.pt", (told,))
        >>> diagnosis.ok, diagnosis.advice, diagnosis["tcp"].found
        (False, ['Check the port.'], 'connection refused')
    """

    uri: str | None
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed. Warnings and what could not be told do not count."""
        return all(check.status != "failed" for check in self.checks)

    @property
    def advice(self) -> list[str]:
        """What to do about what is wrong, the most important first."""
        by_urgency = sorted(self.checks, key=lambda check: _URGENCY.index(check.status))
        return list(dict.fromkeys(check.advice for check in by_urgency if check.advice))

    def __getitem__(self, topic: str) -> Check:
        """Return the check of a topic.

        Raises:
            KeyError: it was not part of this diagnosis.
        """
        for check in self.checks:
            if check.topic == topic:
                return check
        raise KeyError(topic)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain types, for JSON."""
        checks = [asdict(check) for check in self.checks]
        return {"uri": self.uri, "ok": self.ok, "advice": self.advice, "checks": checks}
