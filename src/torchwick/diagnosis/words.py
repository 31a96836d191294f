"""Numbers and errors as people read them."""

from __future__ import annotations

from urllib.parse import urlsplit

from torchwick.errors import TorchwickError

__all__ = ["advice_of", "bare_address", "count_text", "duration_text", "size_text"]

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def size_text(size: float) -> str:
    """Return bytes in the unit that suits them.

    Example:
        >>> size_text(2_210_000_000), size_text(512)
        ('2.2 GB', '512 bytes')
    """
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"


def duration_text(seconds: float) -> str:
    """Return a time in the unit that suits it.

    Example:
        >>> duration_text(0.00213), duration_text(3.2), duration_text(400), duration_text(7300)
        ('2.1 ms', '3.2 s', '7 minutes', '2.0 hours')
    """
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def count_text(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> count_text(1, "core"), count_text(2, "core")
        ('1 core', '2 cores')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def bare_address(url: str) -> str:
    """Return a server's address without what may be secret in it: user, password and query.

    Example:
        >>> bare_address("http://me:secret@127.0.0.1:9000/?token=x")
        'http://127.0.0.1:9000'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def advice_of(error: TorchwickError) -> str | None:
    """Return an error's hint, or None where it leads to a diagnosis: this is one.

    Example:
        >>> advice_of(TorchwickError("no answer", hint="`torchwick doctor` finds out why."))
    """
    return None if "torchwick doctor" in (error.hint or "") else error.hint
