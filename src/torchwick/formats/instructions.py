"""Checks the instructions of a pickle before any unpickler runs them.

Python's unpickler believes what a pickle says: it allocates whatever a length or a memo index claims, and
hashes a tuple of tuples recursively, in C, until the stack of the process overflows. Here the instructions
are only read, as `pickletools` describes them. Nothing is allocated but one small entry for each, so that
time and memory are linear in the bytes of the pickle.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from torchwick.errors import FormatError

__all__ = ["check_instructions"]

_MOST_NESTED = 500  # tuples in tuples; hashing one takes some 100 bytes of the process's stack a level
_MOST_UNFOLDED = 20_000_000  # items met again through shared tuples: hashing as many takes a second
_CORRUPT = "It is corrupt, or made to do harm: upload it again, from a source you trust."

_Fold = tuple[int, int]
"""What hashing a value would visit: how many items, at which depth."""
_LEAF: _Fold = (0, 0)


@dataclass(frozen=True)
class _Instruction:
    """One of pickle's instructions.

    Attributes:
        name: as `pickletools` has it.
        size: bytes of its argument, or negative, in the way of `pickletools`, where that varies.
        lines: how many lines the argument is, if it is lines.
        to_mark: whether it takes all that lies above the topmost mark, and the mark.
        takes: how much more it takes from the stack.
        puts: how much it puts there.
    """

    name: str
    size: int
    lines: int
    to_mark: bool
    takes: int
    puts: int


_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_EXTENSIONS = (
    "EXT1",
    "EXT2",
    "EXT4",
)  # numbers for globals, known to the process alone: none checkpoints use


def _describe(code: pickletools.OpcodeInfo) -> _Instruction:
    size = 0 if code.arg is None else code.arg.n
    lines = 0
    if size == pickletools.UP_TO_NEWLINE:
        lines = 2 if code.name in ("GLOBAL", "INST") else 1
    to_mark = pickletools.markobject in code.stack_before
    below = code.stack_before.index(pickletools.markobject) if to_mark else len(code.stack_before)
    return _Instruction(code.name, size, lines, to_mark, below, len(code.stack_after))


_INSTRUCTIONS = {ord(c.code): _describe(c) for c in pickletools.opcodes if c.name not in _EXTENSIONS}


def check_instructions(data: bytes, start: int, limit: int | None, uri: object) -> int:
    """Read one pickle's instructions, up to its end.

    Args:
        data: holds the pickle, or its beginning.
        start: where it begins.
        limit: the bytes there would be, were all of them at hand; None where that is not known.
        uri: the object, for messages.

    Returns:
        Where the pickle ends.

    Raises:
        EOFError: it may go on beyond `data`.
        FormatError: an instruction claims more than there is, or would cost out of all proportion.

    Example:
        >>> import pickle
        >>> check_instructions(pickle.dumps([1, 2], protocol=2) + b"and more", 0, None, "s3://models/old.pt")
        12
    """
    return _Reader(data, limit, uri).read(start)


class _Reader:
    """The stack, the marks and the memo of an unpickler, with folds in the place of values."""

    def __init__(self, data: bytes, limit: int | None, uri: object) -> None:
        self._data = data
        self._limit = limit
        self._uri = uri
        self._stack: list[_Fold] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Fold] = {}
        self._unfolded = 0
        self._at = 0
        self._effects: dict[str, Callable[[_Instruction, bytes], None]] = {
            "MARK": self._mark,
            "POP": self._pop,
            "POP_MARK": self._pop_mark,
            "DUP": self._duplicate,
            **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), self._tuple),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), self._put),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), self._get),
            "PUT": self._put_line,
            "GET": self._get_line,
        }

    def read(self, start: int) -> int:
        data, stop = self._data, start
        while True:
            self._at = stop
            if stop >= len(data):
                self._beyond(stop + 1)
            instruction = _INSTRUCTIONS.get(data[stop])
            if instruction is None:
                self._refuse(f"there is no instruction {data[stop : stop + 1]!r}")
            first = stop + 1
            stop = first + instruction.size if instruction.size >= 0 else self._end(instruction, first)
            if stop > len(data):
                self._beyond(stop)
            effect = self._effects.get(instruction.name)
            if effect is not None:
                effect(instruction, data[first:stop])
            else:
                self._change(instruction)
            if instruction.name == "STOP":
                return stop

    def _end(self, instruction: _Instruction, at: int) -> int:
        """Return where an argument of variable length ends."""
        for _ in range(instruction.lines):
            at = self._data.find(b"\n", at) + 1
            if not at:
                self._beyond(len(self._data) + 1)
        if instruction.lines:
            return at
        width = _LENGTH_BYTES[instruction.size]
        if at + width > len(self._data):
            self._beyond(at + width)
        signed = instruction.size == pickletools.TAKEN_FROM_ARGUMENT4
        length = int.from_bytes(self._data[at : at + width], "little", signed=signed)
        if length < 0:
            self._refuse(f"{instruction.name} claims {length} bytes")
        return at + width + length

    def _beyond(self, stop: int) -> NoReturn:
        """Refuse what reaches beyond the end of all there is; what is only not at hand may yet come."""
        if self._limit is not None and stop > self._limit:
            self._refuse(f"it goes on to byte {stop} at least, where there are {self._limit}")
        raise EOFError

    def _refuse(self, message: str) -> NoReturn:
        raise FormatError(
            f"its pickle cannot be read: at byte {self._at}, {message}", uri=self._uri, hint=_CORRUPT
        )

    def _take(self, count: int) -> list[_Fold]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - floor < count:
            self._refuse("an instruction finds nothing to work on")
        return self._stack[len(self._stack) - count :]

    def _take_to_mark(self) -> list[_Fold]:
        if not self._marks:
            self._refuse("an instruction misses the mark it goes back to")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _change(self, instruction: _Instruction) -> None:
        """Take from the stack, and put leaves there: what every instruction does that builds no tuple."""
        if instruction.to_mark:
            self._take_to_mark()
        if instruction.takes:
            self._take(instruction.takes)
            del self._stack[-instruction.takes :]
        if instruction.puts:
            self._stack.extend([_LEAF] * instruction.puts)

    def _mark(self, _instruction: _Instruction, _argument: bytes) -> None:
        self._marks.append(len(self._stack))

    def _pop(self, _instruction: _Instruction, _argument: bytes) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._take(1)
            self._stack.pop()

    def _pop_mark(self, _instruction: _Instruction, _argument: bytes) -> None:
        self._take_to_mark()

    def _duplicate(self, _instruction: _Instruction, _argument: bytes) -> None:
        self._again(self._take(1)[0])

    def _tuple(self, instruction: _Instruction, _argument: bytes) -> None:
        if instruction.to_mark:
            items = self._take_to_mark()
        else:
            items = self._take(instruction.takes)
            del self._stack[-instruction.takes :]
        depth = 1 + max([fold[1] for fold in items], default=0)
        if depth > _MOST_NESTED:
            self._refuse(f"tuples lie in tuples, {depth} deep")
        self._stack.append((sum([fold[0] for fold in items], len(items)), depth))

    def _put(self, _instruction: _Instruction, argument: bytes) -> None:
        index = self._index(argument) if argument else len(self._memo)
        self._memo[index] = self._take(1)[0]

    def _put_line(self, _instruction: _Instruction, argument: bytes) -> None:
        self._memo[self._index_line(argument)] = self._take(1)[0]

    def _get(self, _instruction: _Instruction, argument: bytes) -> None:
        self._recall(self._index(argument))

    def _get_line(self, _instruction: _Instruction, argument: bytes) -> None:
        self._recall(self._index_line(argument))

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            self._refuse(f"it refers to item {index} of its memo, which is not there")
        self._again(self._memo[index])

    def _again(self, fold: _Fold) -> None:
        """Push what was met before. Only so can a pickle unfold to more than its own bytes."""
        self._unfolded += fold[0]
        if self._unfolded > _MOST_UNFOLDED:
            self._refuse(f"its tuples, which share their items, unfold to more than {_MOST_UNFOLDED}")
        self._stack.append(fold)

    def _index_line(self, argument: bytes) -> int:
        text = argument.strip()
        if not text.isdigit() or len(text) > 20:
            self._refuse(f"an index into its memo is {text[:20]!r}")
        return self._index(int(text).to_bytes(9, "little"))

    def _index(self, argument: bytes) -> int:
        index = int.from_bytes(argument, "little")
        if index > len(self._data):  # the unpickler would make room for as many; a pickler counts from 0 or 1
            self._refuse(
                f"it asks for a memo of {index} items, which its {len(self._data)} bytes cannot fill"
            )
        return index
