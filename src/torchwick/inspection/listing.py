"""Lists the globals that a pickle names, though it be damaged: an unpickler runs it up to the damage.

A pickle that is whole is followed over stand-ins, by Python's own unpickler: what it would import is listed.
Of one that is damaged, or that stand-ins cannot follow, the instructions are only read; what can be told of
its globals is listed, and whoever asks learns that it may not be all.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
from dataclasses import dataclass

from torchwick.errors import FormatError
from torchwick.formats.pickles import look_into

__all__ = ["Listing", "list_damaged", "list_globals"]

_MOST = 10_000  # globals


@dataclass(frozen=True)
class Listing:
    """What one pickle names.

    Attributes:
        names: dotted names, each once, in the order of the pickle.
        stop: where the pickle ends; of one that is not whole, the end of all there is.
        whole: whether it could be followed to its end, so that these are all the names.
        value: what it builds, if that is plain data.
    """

    names: tuple[str, ...]
    stop: int
    whole: bool
    value: object = None


def list_globals(data: bytes, start: int, limit: int | None, uri: object) -> Listing:
    r"""List the globals of the pickle that begins at `start`.

    Args:
        data: holds the pickle, or its beginning.
        start: where it begins.
        limit: the bytes there would be, were all of them at hand; None where that is not known.
        uri: the object, for messages.

    Raises:
        EOFError: the pickle may go on beyond `data`.

    Example:
        >>> list_globals(b"cos\nsystem\n(S'ls'\ntR\xff", 0, 21, "s3://models/new.pkl")
        Listing(names=('os.system',), stop=21, whole=False, value=None)
    """
    file = io.BytesIO(data)
    file.seek(start)
    try:
        facts = look_into(file, limit=limit, uri=uri)
    except FormatError:
        return list_damaged(data, start)
    if facts.followed:
        return Listing(tuple(facts.globals), file.tell(), whole=True, value=facts.value)
    return Listing((*facts.globals, *list_damaged(data, start).names), len(data), whole=False)


def list_damaged(data: bytes, start: int = 0) -> Listing:
    """List what the instructions name, up to where they cannot be read."""
    file = io.BytesIO(data)
    file.seek(start)
    reader = _Reader()
    with contextlib.suppress(
        ArithmeticError, LookupError, ValueError
    ):  # what genops, or the stack, ends with
        for code, argument, _ in pickletools.genops(file):
            reader.follow(code, argument)
    return Listing(tuple(reader.names), len(data), whole=False)


def _known(value: object) -> str:
    """Return a text, if it could be told."""
    if value is None or isinstance(value, _Mark):
        raise ValueError
    return str(value)


class _Mark:
    """Lies on the stack where a MARK was."""


class _Reader:
    """The stack and the memo of an unpickler, in which only texts are known."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self._stack: list[object] = []
        self._memo: dict[object, object] = {}

    def follow(self, code: pickletools.OpcodeInfo, argument: object) -> None:
        """Follow one instruction.

        Raises:
            IndexError: it finds nothing on the stack to work on.
            ValueError: it names what cannot be told, or nothing that could be imported.
        """
        match code.name:
            case "GLOBAL" | "INST":
                self._name(str(argument).replace(" ", ".", 1))
            case "STACK_GLOBAL":
                module, attribute = self._stack[-2:]
                self._name(f"{_known(module)}.{_known(attribute)}")
            case "MEMOIZE" | "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
                return
            case "POP":
                self._stack.pop()
                return
        pushed = self._pushed(code, argument)
        self._take(code)
        self._stack += pushed

    def _name(self, name: str) -> None:
        if "\0" in name or len(self.names) == _MOST:
            raise ValueError
        self.names[name] = None

    def _pushed(self, code: pickletools.OpcodeInfo, argument: object) -> list[object]:
        match code.name:
            case "MARK":
                return [_Mark()]
            case "DUP":
                return [self._stack[-1]] * 2
            case "GET" | "BINGET" | "LONG_BINGET":
                return [self._memo[argument]]
        return [argument if isinstance(argument, str) else None] * len(code.stack_after)

    def _take(self, code: pickletools.OpcodeInfo) -> None:
        if pickletools.markobject not in code.stack_before:
            count = len(code.stack_before)
        else:
            while not isinstance(self._stack.pop(), _Mark):
                pass
            count = code.stack_before.index(pickletools.markobject)
        if count > len(self._stack):
            raise IndexError
        if count:
            del self._stack[-count:]
