"""Every error torchwick raises, as one tree.

    TorchwickError
    ├─ URIError(ValueError)                   the address itself is wrong
    ├─ FormatError(ValueError)                truncated, corrupt, or not a model
    │  └─ UnsafePickleError                   weights_only refused what the pickle wants to import
    ├─ IntegrityError                         the bytes are not those that were stored, or pinned
    ├─ TensorNotFoundError(KeyError)          the checkpoint has no tensor of that name
    ├─ StateDictError(RuntimeError)           the checkpoint and the module do not fit each other
    ├─ MemoryLimitError(MemoryError)          the load would hold more than it was allowed to
    └─ StoreError                             the place where the bytes live said no
       ├─ CredentialsError                    none found, expired, or rejected
       ├─ ObjectNotFoundError(FileNotFoundError)
       ├─ ObjectExistsError(FileExistsError)  there is something at the destination already
       ├─ AccessDeniedError(PermissionError)
       ├─ ObjectChangedError                  overwritten while it was being read
       ├─ TransferError(ConnectionError)      the network gave up, after every retry
       └─ BusyError                           try again later: a transfer does, and callers never see it

A message says what happened, to which URI, and what to do next. The parts are kept as attributes, so
that programs need not parse the text, and every error survives pickling (they cross process borders).
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

__all__ = [
    "AccessDeniedError",
    "CredentialsError",
    "FormatError",
    "IntegrityError",
    "MemoryLimitError",
    "ObjectChangedError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "StateDictError",
    "StoreError",
    "TensorNotFoundError",
    "TorchwickError",
    "TransferError",
    "URIError",
    "UnsafePickleError",
]


class TorchwickError(Exception):
    """The base of every error torchwick raises.

    Attributes:
        uri: the object it happened to, as text without secrets, or None.
        message: what happened, without the object and the hint.
        hint: what to do next, one sentence, or None.
        retryable: whether the same call may succeed later with nothing changed by the caller.

    Example:
        >>> error = TorchwickError("it has no bytes", uri="s3://models/new.pt", hint="Upload it again.")
        >>> str(error)
        's3://models/new.pt: it has no bytes. Upload it again.'
    """

    retryable: ClassVar[bool] = False

    uri: str | None
    message: str
    hint: str | None

    def __init__(self, message: str, *, uri: object = None, hint: str | None = None) -> None:
        text = message if hint is None else f"{_sentence(message)} {_sentence(hint)}"
        super().__init__(text if uri is None else f"{uri}: {text}")
        self.uri = None if uri is None else str(uri)
        self.message = message
        self.hint = hint

    def about(self, uri: object) -> Self:
        """Return the same error, saying that it happened to `uri`, unless it names an object already."""
        if self.uri is not None:
            return self
        other = copy.copy(self)
        other.args, other.uri = (f"{uri}: {self}",), str(uri)
        return other

    def add_remark(self, text: str) -> None:
        """Say one thing more, in an error that is on its way: what was found when it was cleaned up after.

        Example:
            >>> error = TorchwickError("it broke")
            >>> error.add_remark("A part of it is left")
            >>> str(error), error.hint
            ('it broke. A part of it is left.', 'A part of it is left.')
        """
        self.args = (f"{_sentence(str(self.args[0]))} {_sentence(text)}",)
        self.hint = _sentence(text) if self.hint is None else f"{_sentence(self.hint)} {_sentence(text)}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


class URIError(TorchwickError, ValueError):
    """The text is not an address torchwick can read."""


class FormatError(TorchwickError, ValueError):
    """The bytes are truncated, corrupt, or not a model: the message says what was found and where."""


class UnsafePickleError(FormatError):
    """The pickle asks for more than ``weights_only=True`` allows.

    Attributes:
        refused: the globals that were refused, as dotted names, in the order the pickle names them.
    """

    refused: tuple[str, ...]

    def __init__(self, message: str, *, refused: tuple[str, ...] = (), **where: Any) -> None:
        super().__init__(message, **where)
        self.refused = refused


class IntegrityError(TorchwickError):
    """The bytes are not those that were stored, or that the caller pinned; nothing of them is returned.

    Attributes:
        algorithm: the checksum that differs, such as ``"crc64nvme"`` or ``"sha256"``; None where there was
            none to compare.
        expected: what it had to be, in hexadecimal digits, or None.
        found: what it is, or None.
    """

    algorithm: str | None
    expected: str | None
    found: str | None

    def __init__(
        self,
        message: str,
        *,
        algorithm: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        **where: Any,
    ) -> None:
        super().__init__(message, **where)
        self.algorithm = algorithm
        self.expected = expected
        self.found = found


class TensorNotFoundError(TorchwickError, KeyError):
    """The checkpoint has no tensor of that name.

    Attributes:
        name: the name, or the pattern, that was asked for.
    """

    name: str

    def __init__(self, message: str, *, name: str = "", **where: Any) -> None:
        super().__init__(message, **where)
        self.name = name

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError would put its message in quotes


class StateDictError(TorchwickError, RuntimeError):
    """The checkpoint's tensors are not those of the module.

    Attributes:
        missing: names of the module that the checkpoint has no tensor for.
        unexpected: names of the checkpoint, as renamed, that the module has no place for.
        mismatched: for each name of a tensor with another shape: the module's shape, the checkpoint's.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
        **where: Any,
    ) -> None:
        super().__init__(message, **where)
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched or {}


class MemoryLimitError(TorchwickError, MemoryError):
    """The load needs a second copy that is larger than ``TransferConfig.memory_limit``.

    Attributes:
        needed: bytes the copy would take.
        limit: bytes allowed.
    """

    needed: int
    limit: int

    def __init__(self, message: str, *, needed: int = 0, limit: int = 0, **where: Any) -> None:
        super().__init__(message, **where)
        self.needed = needed
        self.limit = limit


class StoreError(TorchwickError):
    """The store refused, or failed in a way that has no class of its own.

    Attributes:
        code: the store's own name for the failure (``"SlowDown"``), or the HTTP status as text, or None.
        request_id: the store's identifier of the failed request, which its support will ask for, or None.
        identity: as whom the store was asked, without secrets, or None where no one was named.
    """

    code: str | None
    request_id: str | None
    identity: str | None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        request_id: str | None = None,
        identity: str | None = None,
        **where: Any,
    ) -> None:
        super().__init__(message, **where)
        self.code = code
        self.request_id = request_id
        self.identity = identity


class BusyError(StoreError):
    """The store asks to be asked again later; the transfer does so, and callers see a `TransferError`.

    Attributes:
        retry_after: seconds the store asked for, or None.
    """

    retryable = True
    retry_after: float | None

    def __init__(self, message: str, *, retry_after: float | None = None, **where: Any) -> None:
        super().__init__(message, **where)
        self.retry_after = retry_after


class CredentialsError(StoreError):
    """No credentials were found, or the store did not accept them."""


class ObjectNotFoundError(StoreError, FileNotFoundError):
    """There is no such object, version or bucket."""


class ObjectExistsError(StoreError, FileExistsError):
    """There is something at the destination already; it is left as it is."""


class AccessDeniedError(StoreError, PermissionError):
    """The credentials are valid but may not do this."""


class ObjectChangedError(StoreError):
    """The object was overwritten or deleted while it was being read; nothing of the mix is returned."""

    retryable = True


class TransferError(StoreError, ConnectionError):
    """The network or the store failed on every attempt; the last cause is chained.

    Attributes:
        range: the half-open byte range ``(start, stop)`` that could not be read, or None.
        attempts: how many times it was tried.
    """

    retryable = True
    range: tuple[int, int | None] | None
    attempts: int

    def __init__(
        self,
        message: str,
        *,
        range: tuple[int, int | None] | None = None,
        attempts: int = 1,
        **where: Any,
    ) -> None:
        super().__init__(message, **where)
        self.range = range
        self.attempts = attempts
