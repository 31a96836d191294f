"""Names from strangers, as text for a terminal: never markup, and no control characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["printable", "shown"]

_LONGEST = 200  # characters of a name in a table


def printable(name: str) -> str:
    r"""Return a name cut to a bearable length, and of it nothing that a terminal would obey.

    Example:
        >>> printable("a\x1b[31mb\u202e")
        'a\\x1b[31mb\\u202e'
    """
    cut = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def shown(name: str, style: str = "") -> Text:
    """Return the same as what rich prints as it is."""
    from rich.text import Text  # here: scripts that ask for JSON need not wait for it

    return Text(printable(name), style)
