"""What a conversion tells when it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Conversion", "WrittenFile"]


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written.

    Attributes:
        uri: where it is.
        size: its bytes.
        tensors: how many are in it; 0 for an index.
    """

    uri: str
    size: int
    tensors: int


@dataclass(frozen=True)
class Conversion:
    """What a finished conversion did.

    Attributes:
        source: what was read, as text without secrets.
        format: of the source, as `Checkpoint.format` says it.
        files: what was written, in the order of the shards, the index last.
        tensors: how many were written.
        tensor_bytes: bytes of their elements, as written.
        ties: names that are no tensor of their own, and the name of the tensor that each stands for.
        dtype: what floating-point tensors were cast to, as safetensors spells it, or None.
        casts: of how many tensors the dtype was changed, by the dtype they had.
        left_out: what is in the source and is no tensor, by name, each in a few words.
        bytes_read: bytes received in answers, those that had to be read again included.
        requests: requests sent.
        retries: requests that repeated a failed one.
        seconds: from the call to the files.

    Example:
        >>> new = WrittenFile("new.safetensors", 80, 1)
        >>> Conversion("s3://models/old.pt", "torch zip", (new,), 1, 8, seconds=0.5).to_dict()["files"]
        [{'uri': 'new.safetensors', 'size': 80, 'tensors': 1}]
    """

    source: str
    format: str
    files: tuple[WrittenFile, ...]
    tensors: int
    tensor_bytes: int
    ties: dict[str, str] = field(default_factory=dict)
    dtype: str | None = None
    casts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types, for JSON."""
        return asdict(self) | {"files": [asdict(file) for file in self.files]}
