"""Where the elements are in an item of torch.save's: guessed before it is read, and checked afterwards.

An item is a zip archive with one tensor. Where its elements begin is said at both of its ends, and finding
out would cost a round of requests before the first one for elements. But torch's writer leaves no choice: how
many bytes follow the elements depends on how many these are. So the guess is nearly always right, and what
stands at both ends, which is read together with the elements, proves it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from torchwick.errors import FormatError
from torchwick.formats.catalog import Piece, TensorEntry, contiguous
from torchwick.formats.torch_catalog import misplaced, zip_catalog
from torchwick.formats.torch_zip_writing import ALIGNMENT, closing_size, place

__all__ = ["Ends", "Item", "guess", "guessed", "look"]

_WRITERS = (
    (
        ("data.pkl", ".format_version", ".storage_alignment", "byteorder"),
        ("version", ".data/serialization_id"),
    ),
    (("data.pkl", "byteorder"), ("version", ".data/serialization_id")),  # torch before 2.7
    (("data.pkl",), ("version",)),  # torch before 2.1
)
_SIZES = {"version": 2, ".data/serialization_id": 40}
_SHORTEST, _LONGEST = 256, 64 << 10  # bytes before the elements: a pickle, and headers


@dataclass(frozen=True)
class Item:
    """A tensor, or a part of one, in a file of a checkpoint.

    Attributes:
        file: the name of the file.
        start: offset of the item.
        stop: one past its last byte.
        dtype: of its elements, as safetensors spells it, as far as the checkpoint's description says.
        shape: its lengths.
    """

    file: str
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Ends:
    """An item's first and last bytes, with a hole between them where its elements should be.

    Attributes:
        item: the item.
        head: its first bytes.
        tail: its last bytes.
    """

    item: Item
    head: memoryview
    tail: memoryview

    def read(self, start: int, stop: int) -> memoryview:
        """Return bytes of the item, with zeros for those of the hole."""
        data = memoryview(bytearray(stop - start))
        for at, known in ((0, self.head), (len(self.item) - len(self.tail), self.tail)):
            first, last = max(start, at), min(stop, at + len(known))
            if first < last:
                data[first - start : last - start] = known[first - at : last - at]
        return data


def guess(item: Item, nbytes: int) -> int | None:
    r"""Return how many bytes stand before the elements if one of torch's writers wrote it, or None.

    Args:
        item: the item.
        nbytes: bytes of its elements.

    Example:
        >>> import io, torch
        >>> file = io.BytesIO()
        >>> torch.save(torch.full((3,), 7, dtype=torch.uint8), file)
        >>> at = guess(Item("__0_0.distcp", 0, file.tell(), "U8", (3,)), 3)
        >>> file.getvalue()[at : at + 4]
        b'\x07\x07\x07P'
    """
    for first, last in _WRITERS:
        start = len(item) - nbytes - _behind(nbytes, first, last)
        if start % ALIGNMENT == 0 and _SHORTEST <= start <= _LONGEST:
            return start
    return None


@functools.lru_cache(maxsize=1024)
def _behind(nbytes: int, first: tuple[str, ...], last: tuple[str, ...]) -> int:
    """Return how many bytes stand behind the elements."""
    before = [(name, _SHORTEST) for name in first]  # their sizes show in no byte behind
    placed = place([*before, ("data/0", nbytes), *((name, _SIZES[name]) for name in last)])
    return placed[-1].stop + closing_size(placed) - placed[len(first)].start - nbytes


def look(item: Item, read: Callable[[int, int], memoryview], uri: object) -> tuple[Piece, TensorEntry]:
    """Return where the elements are, in the file that the item is in, and what is to be known of them.

    Args:
        item: the item.
        read: returns the bytes of a half-open range of it.
        uri: the file, for messages.

    Raises:
        FormatError: it is something else than a tensor of that shape, as torch.save writes it.
    """
    found = list(zip_catalog(read, len(item), uri).entries.values())
    piece = found[0].pieces[0] if len(found) == 1 else None
    if not isinstance(piece, Piece) or found[0].shape != item.shape:
        raise FormatError(
            f"something else than a tensor of shape {list(item.shape)} is at byte {item.start}",
            uri=uri,
            hint="It is corrupt: save it again.",
        )
    landmark = piece.landmark
    if landmark is not None and not landmark.holds(read(landmark.start, landmark.stop)):
        raise misplaced(uri)
    at, storage = item.start + piece.start, item.start + piece.storage
    return replace(piece, object=item.file, start=at, storage=storage, landmark=None), found[0]


def guessed(item: Item, before: int) -> Piece:
    """Return where the elements are if so many bytes stand before them."""
    start = item.start + before
    return Piece(item.file, start, item.shape, contiguous(item.shape), start)
