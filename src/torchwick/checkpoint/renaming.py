"""Other names for tensors: by the beginnings of their names, or by a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

__all__ = ["Rename", "renamed"]

Rename = Mapping[str, str] | tuple[str, str] | Callable[[str], str] | None
_SHOWN = 200  # letters of a name in a message


def renamed(names: Iterable[str], rename: Rename) -> dict[str, str]:
    """Return the names by what they are to be called.

    Args:
        names: those there are.
        rename: beginnings of names and what takes their place, as a mapping (the longest that fits counts) or
            as one pair; or a function from name to name; or None. Names that begin otherwise stay.

    Raises:
        ValueError: two come out alike, or a beginning fits none.

    Example:
        >>> renamed(["model.w", "b"], ("model.", ""))
        {'w': 'model.w', 'b': 'b'}
        >>> renamed(["w"], str.upper)
        {'W': 'w'}
    """
    call = _function(names := list(names), rename)
    found: dict[str, str] = {}
    for name in names:
        new = call(name)
        if not isinstance(new, str):
            raise TypeError(f"rename gives {name[:_SHOWN]!r} no name, but {type(new).__name__}")
        if new in found:
            raise ValueError(f"rename gives two tensors the name {new[:_SHOWN]!r}")
        found[new] = name
    return found


def _function(names: list[str], rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return str
    if callable(rename):
        return rename
    prefixes = dict(rename) if isinstance(rename, Mapping) else dict([rename])
    unused = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if unused:
        raise ValueError(f"rename: no tensor's name begins with {unused[0][:_SHOWN]!r}")
    ordered = sorted(prefixes, key=len, reverse=True)

    def call(name: str) -> str:
        prefix = next((prefix for prefix in ordered if name.startswith(prefix)), "")
        return prefixes.get(prefix, "") + name.removeprefix(prefix)

    return call
