"""Which tensors are meant: by name, by pattern, or by a function of the name."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torchwick.errors import TensorNotFoundError

__all__ = ["Keys", "missing", "select"]

Keys = str | Iterable[str] | Callable[[str], bool] | None
_MOST_COMPARED = 20_000  # names; beyond, finding the likest ones takes seconds
_LONGEST = 200  # letters of a name that is compared, or shown


def select(keys: Keys, names: Mapping[str, Any], uri: object) -> list[str]:
    """Return the names that are meant.

    Args:
        keys: a name or pattern (``"layers.0.*"``; ``*``, ``?`` and ``[…]`` as in a shell, ``*`` goes across
            dots), several, a function that tells of each name whether it is meant, or None for all.
        names: those there are.
        uri: the checkpoint, for messages.

    Returns:
        Names given one by one in the order given; what patterns and functions mean in the order of `names`.
        Each once.

    Raises:
        TensorNotFoundError: a name or a pattern means none.

    Example:
        >>> select(["b", "a.*"], {"a.x": 1, "a.y": 2, "b": 3}, "s3://models/new.pt")
        ['b', 'a.x', 'a.y']
    """
    if keys is None:
        return list(names)
    if callable(keys):
        return [name for name in names if keys(name)]
    wanted = [keys] if isinstance(keys, str) else keys
    return list(dict.fromkeys(name for key in wanted for name in _meant(key, names, uri)))


def _meant(key: str, names: Mapping[str, Any], uri: object) -> list[str]:
    if not isinstance(key, str):
        raise TypeError(f"a tensor's name or pattern is a str, not {type(key).__name__}")
    if key in names:  # first: a name may hold what a pattern would
        return [key]
    matches = re.compile(fnmatch.translate(key)).match
    found = [name for name in names if matches(name)] if set(key) & set("*?[") else []
    if not found:
        raise missing(key, names, uri)
    return found


def missing(key: object, names: Mapping[str, Any], uri: object) -> TensorNotFoundError:
    """Return the error for a name that means nothing, which tells the likest there are."""
    key = key if isinstance(key, str) else repr(key)
    compared = [name for name in itertools.islice(names, _MOST_COMPARED) if len(name) <= _LONGEST]
    near = difflib.get_close_matches(key[:_LONGEST], compared, n=3, cutoff=0.5)
    near = near or [name for name in compared if name.endswith(f".{key}")][:3]
    if near:
        hint = f"Did you mean {' or '.join(map(repr, near))}?"
    else:
        few = ", ".join(map(repr, compared[:3]))
        hint = f"Among its {len(names)} are {few}." if len(names) > 3 else f"It has {few or 'none'}."
    return TensorNotFoundError(f"there is no tensor {key[:_LONGEST]!r}", uri=uri, hint=hint, name=key)
