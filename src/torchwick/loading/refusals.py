"""What it means when torch's own loader refuses: unsafe, corrupt, or the caller's affair."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from torchwick.errors import FormatError, TorchwickError, UnsafePickleError
from torchwick.formats.pickles import PickleFacts

__all__ = ["check_safe", "explain", "refuse_code"]

_TWO_WAYS = (
    "Either allow them, if you know them to be harmless: `with torch.serialization.safe_globals([...])`; or, "
    "if you trust whoever made the file as you would trust a program of theirs, pass weights_only=False"
)
_TRUST = "If you trust whoever made it as you would trust a program of theirs, pass weights_only=False"
_MOST_NAMED, _LONGEST = 100, 200  # globals in a message, and characters of each
_CORRUPT = "It is likely corrupt or was cut short: upload it again, whole"


def check_safe(facts: PickleFacts, uri: object) -> None:
    """Refuse a pickle that names what ``weights_only=True`` does not allow.

    Args:
        facts: the pickle, and what it names.
        uri: the object, for the message.

    Raises:
        UnsafePickleError: it lists every global that is refused.
    """
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(_as_checkpoint(facts.data))
    except (pickle.UnpicklingError, *_ABOUT_BYTES):  # which torch's unpickler lacks: it will say so itself
        return
    order = {name: at for at, name in enumerate(facts.globals)}
    refused = tuple(sorted(unsafe, key=lambda name: order.get(name, len(order))))
    if refused:
        named = ", ".join(name[:_LONGEST] for name in refused[:_MOST_NAMED])
        more = f", and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
        message = f"weights_only=True refuses what its pickle would import: {named}{more}"
        raise UnsafePickleError(message, uri=uri, hint=_TWO_WAYS, refused=refused)


def _as_checkpoint(data: bytes) -> io.BytesIO:
    """Wrap a pickle as the smallest checkpoint, the form in which torch tells its unsafe globals."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    file.seek(0)
    return file


def refuse_code(what: str, uri: object) -> UnsafePickleError:
    """Return the refusal of a format that is a program, whatever it holds."""
    return UnsafePickleError(f"{what}, which weights_only=True refuses", uri=uri, hint=_TRUST)


@contextmanager
def explain(uri: object, *, weights_only: bool, facts: PickleFacts | None = None) -> Iterator[None]:
    """Turn what torch's loader raises about the bytes into our errors; let the caller's own errors through.

    Args:
        uri: the object, for the message.
        weights_only: whether torch imports nothing but what it allows.
        facts: the pickle, if it is known to be well-formed: torch's refusal then means that it is unsafe.
    """
    ours: tuple[type[Exception], ...] = _ABOUT_BYTES
    if weights_only:  # else these are what a class of the caller's raises, or its absence
        ours += (ArithmeticError, AttributeError, SystemError, TypeError)
    try:
        yield
    except TorchwickError:
        raise
    except pickle.UnpicklingError as error:
        if weights_only and facts is not None:
            check_safe(facts, uri)
            message = f"weights_only=True refuses its pickle: {_reason(error)}"
            raise UnsafePickleError(message, uri=uri, hint=_TRUST) from error
        raise FormatError(f"its pickle cannot be read: {_reason(error)}", uri=uri, hint=_CORRUPT) from error
    except ours as error:
        if _NO_MEMORY in str(error):  # of the machine: sizes were checked before
            raise
        message = f"torch cannot read it: {type(error).__name__}: {_reason(error)}"
        raise FormatError(message, uri=uri, hint=_CORRUPT) from error


_NO_MEMORY = "can't allocate memory"
_ABOUT_BYTES = (EOFError, RuntimeError, LookupError, AssertionError, ValueError, struct.error)


def _reason(error: Exception) -> str:
    """Return torch's own reason in a line, without the paragraphs of advice it wraps it in."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = text.partition("WeightsUnpickler error:")[2] or text
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    advice = ("Weights only load failed", "Check the documentation")
    telling = [p for p in paragraphs if not p.startswith(advice)] or paragraphs or [type(error).__name__]
    return telling[0].partition("\n")[0][:_LONGEST].rstrip(". ")
