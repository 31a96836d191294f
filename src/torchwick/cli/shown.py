"""Names from strangers, as text for a terminal: never markup, and no control characters."""

from __future__ import annotations

from rich.text import Text

__all__ = ["shown"]

_LONGEST = 1000  # characters


def shown(name: str, style: str = "") -> Text:
    r"""Return a name as it can be printed.

    Example:
        >>> shown("[red]w\x1b[2J").plain
        '[red]w\\x1b[2J'
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:_LONGEST])
    return Text(text + ("…" if len(name) > _LONGEST else ""), style)
