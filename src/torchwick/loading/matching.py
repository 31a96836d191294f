"""Which tensor of a checkpoint belongs where in a module, and what to say where they do not fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torchwick.errors import StateDictError
from torchwick.loading.slots import Slot

__all__ = ["Match", "likely_rename", "match", "refuse_misfit"]

Shape = tuple[int, ...]
_SHOWN = 5  # names of each kind in a message
_LONGEST = 100  # letters of one
_DEEPEST = 4  # dots of a prefix that is tried
_MOST_TRIED = 24
"""Beginnings of either side that are tried against each other: those of a few containers, not of layers."""


@dataclass
class Match:
    """What belongs together, and what is left over.

    Attributes:
        chosen: for each slot that is filled, the name of the tensor that fills it.
        left: the other slots.
        missing: shapes of slots that none fills, by name.
        unexpected: shapes of tensors that fill none, by name.
        mismatched: shapes in the module and in the checkpoint, where they differ.
    """

    chosen: dict[Slot, str] = field(default_factory=dict)
    left: list[Slot] = field(default_factory=list)
    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)
    mismatched: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)


def match(slots: Iterable[Slot], shapes: Mapping[str, Shape]) -> Match:
    """Match by name. A slot with several names is filled by any of them; by the last, if there are more.

    Args:
        slots: of the module.
        shapes: of the checkpoint's tensors.
    """
    found, known = Match(), set[str]()
    for slot in slots:
        known.update(slot.names)
        shape = tuple(slot.tensor.shape)
        present = [name for name in slot.names if name in shapes]
        if present:
            found.chosen[slot] = present[-1]
        else:
            found.left.append(slot)
            found.missing |= dict.fromkeys(slot.required, shape)
        found.mismatched |= {name: (shape, shapes[name]) for name in present if shapes[name] != shape}
    found.unexpected = {name: shape for name, shape in shapes.items() if name not in known}
    return found


def refuse_misfit(found: Match, uri: object, *, strict: bool, original: Mapping[str, str]) -> None:
    """Refuse what does not fit.

    Args:
        found: what does, and what does not.
        uri: the checkpoint, for the message.
        strict: whether anything may be left over.
        original: names in the checkpoint, by those that they were renamed to.

    Raises:
        StateDictError: shapes differ; or something is missing or unexpected, if `strict`.
    """
    if not (found.mismatched or (strict and (found.missing or found.unexpected))):
        return
    said = [
        _listed("is missing", "are missing", [*found.missing] if strict else []),
        _listed("is unexpected", "are unexpected", [*found.unexpected] if strict else []),
        _listed("has another shape", "have other shapes", [*map(_shapes, *_columns(found.mismatched))]),
    ]
    raise StateDictError(
        "it does not fit the module: " + "; ".join(text for text in said if text),
        uri=uri,
        hint=_hint(found, original, strict=strict),
        missing=tuple(found.missing),
        unexpected=tuple(found.unexpected),
        mismatched=found.mismatched,
    )


def _columns(of: Mapping[str, tuple[Shape, Shape]]) -> tuple[list[str], list[tuple[Shape, Shape]]]:
    return list(of), list(of.values())


def _shapes(name: str, shapes: tuple[Shape, Shape]) -> str:
    module, checkpoint = map(list, shapes)
    return f"{name[:_LONGEST]} ({checkpoint} in the checkpoint, {module} in the module)"


def _listed(one: str, many: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(name[:_LONGEST] for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {one if len(names) == 1 else many}: {shown}{more}"


def _hint(found: Match, original: Mapping[str, str], *, strict: bool) -> str:
    shapes = {original[name]: shape for name, shape in found.unexpected.items()}
    fix = likely_rename(found.missing, shapes)
    if fix is not None:
        beginning = fix[0]
        others = not all(name.startswith(beginning) for name in original.values())
        keys = f"keys={beginning + '*'!r}, " if others else ""
        return f"Pass {keys}rename={fix!r}."
    if (
        not found.unexpected
        and not found.mismatched
        and all(slot.is_stranded for slot in found.left if slot.required)
    ):
        return (
            "Those are buffers that no checkpoint has: make the module with its buffers on the CPU, as "
            "accelerate's init_empty_weights() does, or fill them yourself after strict=False."
        )
    if found.mismatched:
        return "Build the module with the sizes that the checkpoint was trained with."
    if not strict:
        return "Build the module that the checkpoint was saved from."
    return "Build the module that the checkpoint was saved from, or pass strict=False to load what fits."


def likely_rename(missing: Mapping[str, Shape], unexpected: Mapping[str, Shape]) -> tuple[str, str] | None:
    """Return the beginning of names to be replaced, and by what, so that most of what is missing is found.

    Args:
        missing: shapes by name.
        unexpected: the same.

    Example:
        >>> likely_rename({"w": (2,), "b": ()}, {"module.w": (2,), "module.b": ()})
        ('module.', '')
        >>> likely_rename({"encoder.w": (2,)}, {"w": (2,), "x": (2,)})
        ('', 'encoder.')
        >>> likely_rename({"w": (2,)}, {"module.w": (3,)}) is None
        True
    """
    best: tuple[int, tuple[str, str] | None] = (0, None)
    for old, new in itertools.product(_prefixes(unexpected), _prefixes(missing)):
        named = {new + name[len(old) :]: shape for name, shape in unexpected.items() if name.startswith(old)}
        hits = sum(missing.get(name) == shape for name, shape in named.items())
        if hits > best[0]:
            best = hits, (old, new)
    hits, fix = best
    return fix if hits and 2 * hits >= len(missing) else None


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the beginnings of names up to a dot, the shortest first."""
    found = {""}
    for name in names:
        parts = name.split(".")[:-1][:_DEEPEST]
        found.update(".".join(parts[:count]) + "." for count in range(1, len(parts) + 1))
    return sorted(found, key=len)[:_MOST_TRIED]
