"""Reads the ``.metadata`` of a `torch.distributed.checkpoint` directory into a catalog, importing nothing.

torch itself unpickles that file without restraint. As torch/distributed/checkpoint/metadata.py and
filesystem.py write it: a `Metadata` with, by name, the size, dtype and boxes of a tensor or the mark of
something else; and, by name and box, the file, offset and length where it was stored. What is stored there is
a file of torch.save's in itself.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from torchwick.errors import FormatError
from torchwick.formats.catalog import Catalog, Packed, TensorEntry
from torchwick.formats.dtypes import DType, of_torch
from torchwick.formats.pickles import look_into
from torchwick.formats.stand_ins import Recorder

__all__ = ["METADATA", "read_dcp"]

METADATA = ".metadata"
"""The file's name in its directory."""
_METADATA_CLASS = "torch.distributed.checkpoint.metadata.Metadata"
_MOST_DIMENSIONS = 64  # as many as torch's own loops take
_MOST_SHARED = 1_000_000  # boxes, beyond those that have places of their own
_MOST_CORNERS = 4_000_000  # of the boxes of one tensor: half of as many boxes where one dimension is cut
_Stored = dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]


def read_dcp(data: bytes, uri: object) -> Catalog:
    """Say where the tensors of a distributed checkpoint are.

    Args:
        data: all of ``.metadata``.
        uri: the object, for messages.

    Returns:
        The catalog; its objects are named as in the directory.

    Raises:
        FormatError: it is corrupt or contradicts itself, or uses what is not read: compression.
    """
    return _Reader(uri).read(data)


class _Reader:
    def __init__(self, uri: object) -> None:
        self._uri = uri
        self._boxes = 0

    def read(self, data: bytes) -> Catalog:
        try:
            facts = look_into(io.BytesIO(data), limit=len(data), uri=self._uri)
        except EOFError:
            self._refuse("it was cut short")
        root = facts.value
        if not facts.followed or not isinstance(root, Recorder) or type(root).name != _METADATA_CLASS:
            self._refuse("it holds no Metadata")
        state = self._attributes(root)
        described, storage = state.get("state_dict_metadata"), state.get("storage_data")
        if not isinstance(described, dict) or not isinstance(storage, dict):
            self._refuse("it lacks its list of tensors, or of files")
        stored = dict(map(self._stored, storage.items()))
        entries: dict[str, TensorEntry] = {}
        others: dict[str, str] = {}
        for name, item in described.items():
            if not isinstance(name, str):
                self._refuse("a name is no text")
            said = self._attributes(item)
            if "chunks" in said:
                entries[name] = self._entry(name, said, stored)
            else:
                others[name] = "not a tensor"
        return Catalog("dcp", entries, others=others)

    def _refuse(self, message: str) -> NoReturn:
        hint = "It is corrupt, or of a torch newer than this torchwick: save it again, or load it by torch."
        raise FormatError(f"the .metadata cannot be read: {message}", uri=self._uri, hint=hint)

    def _attributes(self, item: object) -> dict[str, Any]:
        state = item.state if isinstance(item, Recorder) else None
        if state is None and isinstance(item, Recorder):
            return {}  # an object without attributes: BytesStorageMetadata
        if not isinstance(state, dict):
            self._refuse("an object has no attributes where some belong")
        return state

    def _stored(
        self, item: tuple[object, object]
    ) -> tuple[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
        key, place = map(self._attributes, item)
        name, file, start, length = key.get("fqn"), *map(place.get, ("relative_path", "offset", "length"))
        if place.get("transform_descriptors"):
            self._refuse("its files are compressed, which is not read")
        if not isinstance(name, str) or not isinstance(file, str):
            self._refuse("a place names no tensor, or no file")
        start, length = self._counts((start, length))
        offset = key.get("offset")
        return (name, () if offset is None else self._counts(offset)), (file, start, start + length)

    def _counts(self, values: object) -> tuple[int, ...]:
        if (
            not isinstance(values, tuple | list)
            or len(values) > _MOST_DIMENSIONS
            or not all(type(value) is int and 0 <= value < 1 << 63 for value in values)
        ):
            self._refuse("an offset or a length is none")
        return tuple(values)

    def _entry(self, name: str, said: dict[str, Any], stored: _Stored) -> TensorEntry:
        shape, dtype = self._counts(said.get("size")), self._dtype(said.get("properties"))
        chunks = said["chunks"]
        if not isinstance(chunks, list):
            self._refuse(f"tensor {name[:100]!r} has no list of boxes")
        self._boxes += len(chunks)
        if self._boxes > _MOST_SHARED + 2 * len(stored):  # tensors that share their lists of boxes
            self._refuse("it has far more boxes than places where one is stored")
        boxes = (self._packed(name, self._attributes(chunk), stored) for chunk in chunks)
        pieces = tuple(box for box in boxes if 0 not in box.shape)  # a rank may have had no row to save
        if 0 in shape:  # which may have been saved in no box at all, or in empty ones
            pieces = ()
        if not _tiles(pieces, shape):
            self._refuse(f"the boxes of tensor {name[:100]!r} do not make up its shape {list(shape[:16])}")
        for piece in pieces:
            if math.prod(piece.shape) * dtype.bits // 8 > piece.stop - piece.start:
                self._refuse(f"a box of tensor {name[:100]!r} has more bytes than its place")
        return TensorEntry(dtype.name, shape, pieces)

    def _packed(self, name: str, box: dict[str, Any], stored: _Stored) -> Packed:
        origin, shape = self._counts(box.get("offsets")), self._counts(box.get("sizes"))
        place = stored.get((name, origin))
        if place is None:
            self._refuse(f"no file is named for tensor {name[:100]!r} at {list(origin[:16])}")
        return Packed(place[0], place[1], place[2], shape, origin)

    def _dtype(self, properties: object) -> DType:
        state = properties.state if isinstance(properties, Recorder) else None
        named = (
            state.get("dtype")
            if isinstance(state, dict)
            else state[0]
            if isinstance(state, tuple) and state
            else None
        )
        dtype = of_torch(str(getattr(named, "name", "")).removeprefix("torch."))
        if dtype is None or dtype.bits < 8:
            self._refuse("a tensor's dtype is none that is known")
        return dtype


def _tiles(boxes: Sequence[Packed], shape: tuple[int, ...]) -> bool:
    """Whether boxes lie within a shape, apart from each other, and leave nothing out.

    Taking differences along every dimension turns a box into its corners, of alternating sign, and can be
    undone: boxes make up the whole if, and only if, their corners add up to those of the whole. No box has to
    be compared with another.

    Example:
        >>> halves = [Packed("", 0, 9, (1, 4), (0, 0)), Packed("", 9, 18, (1, 4), (1, 0))]
        >>> _tiles(halves, (2, 4)), _tiles(halves[:1], (2, 4)), _tiles(halves[:1] * 2, (2, 4))
        (True, False, False)
    """
    if 0 in shape:
        return True
    if any(not len(box.shape) == len(box.origin) == len(shape) for box in boxes):
        return False
    cut = [
        dim
        for dim, length in enumerate(shape)
        if any((box.origin[dim], box.shape[dim]) != (0, length) for box in boxes)
    ]
    if len(boxes) << len(cut) > _MOST_CORNERS:
        return False
    sums = Counter[tuple[int, ...]]()
    for box in boxes:
        for corner, sign in _corners([(box.origin[dim], box.shape[dim]) for dim in cut]):
            sums[corner] += sign
    for corner, sign in _corners([(0, shape[dim]) for dim in cut]):
        sums[corner] -= sign
    return not any(sums.values())


def _corners(sides: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Return the corners of a box: the sign of each is that of how many of its sides are at their ends."""
    ends = [((first, 1), (first + length, -1)) for first, length in sides]
    for corner in itertools.product(*ends):
        yield tuple(at for at, _ in corner), math.prod(sign for _, sign in corner)
