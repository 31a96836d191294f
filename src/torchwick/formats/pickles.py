"""Looks into a pickle without importing anything it names.

A pickle is a program; its ``GLOBAL`` instructions say what it would import. Here every global becomes a
stand-in, which takes any argument and does nothing, so that the program runs to its end and leaves three
facts: the globals it named, the storages it asked for, and what it built of stand-ins.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from typing import Any

from torchwick.errors import FormatError
from torchwick.formats.instructions import check_instructions
from torchwick.formats.stand_ins import AbsurdError, Recorder, StorageFact, StorageStandIn, few, stand_in

__all__ = ["PickleFacts", "StorageFact", "look_into"]

_MOST_GLOBALS = 10_000  # a checkpoint names some dozens; each one here costs a class


@dataclass
class PickleFacts:
    """What one pickle would do."""

    data: bytes = field(default=b"", repr=False)
    """The pickle itself."""
    globals: list[str] = field(default_factory=list)
    """Dotted names, each once, in the order of the pickle."""
    storages: dict[str, StorageFact] = field(default_factory=dict)
    value: object = field(default=None, repr=False)
    """What the pickle builds; recorders stand in for whatever is not plain data."""
    followed: bool = True
    """Whether stand-ins could satisfy the pickle to its end; else the facts are not all there are."""


_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # by Python 3; protocol 2 keeps the old names


class _Looker(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def __init__(self, file: io.BytesIO, facts: PickleFacts) -> None:
        super().__init__(file, encoding="utf-8")
        self._facts = facts
        self._classes: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> type:
        dotted = f"{_RENAMED.get(module, module)}.{name}"
        if dotted not in self._classes:
            if len(self._classes) == _MOST_GLOBALS:
                raise AbsurdError(f"it names more than {_MOST_GLOBALS} globals")
            self._facts.globals.append(dotted)
            self._classes[dotted] = stand_in(dotted)
        return self._classes[dotted]

    def persistent_load(self, pid: Any) -> object:
        match pid:
            case ("module" | b"module", kind, *_):  # the legacy format: a class, with its source code
                return kind
            case (
                "storage" | b"storage",
                kind,
                str() | bytes() as key,
                str() | bytes() as location,
                int(numel),
                *view,
            ) if abs(numel) < 1 << 63:
                type_name = getattr(kind, "name", "?").rpartition(".")[2]
                viewed = view not in ([], [None])
                return self._storage(StorageFact(type_name, _text(key), _text(location), numel, viewed))
            case ("storage" | b"storage", *_):
                raise AbsurdError("it describes a storage otherwise than by its class, key, device and size")
            case _:
                self._facts.globals.append(f"persistent id of type {type(pid).__name__}")
        return Recorder()

    def _storage(self, fact: StorageFact) -> StorageStandIn:
        if fact.numel < 0:
            raise AbsurdError(f"storage {fact.key[:40]!r} is said to have {few((fact.numel,))} elements")
        known = self._facts.storages.setdefault(fact.key, fact)
        if fact.is_view and not known.is_view:
            self._facts.storages[fact.key] = fact
        stand_in = StorageStandIn()
        stand_in.fact = fact if fact.is_view else known  # the first is the one torch makes
        return stand_in


def _text(raw: str | bytes) -> str:
    return raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw


_BEYOND_STAND_INS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


def look_into(file: io.BytesIO, *, limit: int | None = None, uri: object = None) -> PickleFacts:
    """Run a pickle over stand-ins and return what it named.

    Args:
        file: stands where the pickle begins, and is left where it ends.
        limit: the bytes `file` would have, were all of them at hand; None where that is not known.
        uri: the object, for messages.

    Raises:
        EOFError: the pickle may go on beyond `file`.
        FormatError: it claims more than there is, or asks for what no pickler writes.

    Example:
        >>> look_into(io.BytesIO(pickle.dumps([1, int, {2}]))).globals
        ['builtins.int']
    """
    start, data = file.tell(), file.getvalue()
    stop = check_instructions(data, start, limit, uri)
    facts = PickleFacts(data[start:stop])
    try:
        facts.value = _Looker(file, facts).load()
    except AbsurdError as error:
        hint = "It is corrupt, or made to do harm: upload it again, from a source you trust."
        raise FormatError(f"its pickle asks for the impossible: {error}", uri=uri, hint=hint) from error
    except _BEYOND_STAND_INS:
        facts.followed = False
    file.seek(stop)
    return facts
