"""What is to be written where, from a catalog alone: nothing of a tensor is read or known but its place.

Tensors are in the order of the width of their elements, wide ones first, so that all are aligned, as those of
safetensors' own writer are; and within a width in the order in which they lie in the source, so that they can
be written as they come.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torchwick.checkpoint.layout import groups
from torchwick.errors import FormatError
from torchwick.formats.catalog import TensorEntry
from torchwick.formats.dtypes import DTYPES, FLOATS, SAFETENSORS_BITS
from torchwick.formats.safetensors import header
from torchwick.saving.destination import INDEX, shard_names
from torchwick.saving.files import File, PlainFile, TensorFile

__all__ = ["Plan", "lots", "plan", "untied"]

_FORMAT = {"format": "pt"}  # which transformers insists on


def untied(entries: Mapping[str, TensorEntry]) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tell tensors from other names of the same elements, seen in the same way.

    Returns:
        The tensors, and for each other name the one that is kept: the first in alphabetical order, as
        `safetensors.torch.save_model` keeps it.
    """
    names: dict[TensorEntry, list[str]] = {}
    for name, entry in entries.items():
        if entry.nbytes:
            names.setdefault(entry, []).append(name)
    ties = {other: min(alike) for alike in names.values() for other in alike if other != min(alike)}
    return {name: entry for name, entry in entries.items() if name not in ties}, ties


@dataclass(frozen=True)
class Plan:
    """All that is to be written.

    Attributes:
        dtypes: of each tensor, as it is written, in the order in which it is written.
        casts: how many tensors have another dtype in the source, by that one.
        shards: the files with tensors, in order.
    """

    dtypes: dict[str, str]
    casts: dict[str, int]
    shards: tuple[TensorFile, ...]

    @property
    def files(self) -> tuple[File, ...]:
        """All files, the index last; one file alone has none."""
        return (*self.shards, PlainFile(INDEX, _index(self.shards))) if len(self.shards) > 1 else self.shards

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all elements."""
        return sum(file.data for file in self.shards)


def lots(
    entries: Mapping[str, TensorEntry], order: Sequence[str], dtype: str | None, uri: object
) -> list[dict[str, TensorEntry]]:
    """Return the tensors in the order in which they are written, those of one width together.

    Args:
        entries: the tensors.
        order: the names of the objects.
        dtype: what floating-point tensors are cast to, or None.
        uri: the checkpoint, for messages.

    Raises:
        FormatError: there are none, or safetensors has no dtype for one.
    """
    if not entries:
        raise FormatError("there is no tensor in it", uri=uri, hint="Convert another checkpoint.")
    for name, entry in entries.items():
        if entry.dtype not in SAFETENSORS_BITS:
            raise FormatError(
                f"tensor {name[:200]!r} is {DTYPES[entry.dtype].torch}, a dtype that safetensors has not",
                uri=uri,
                hint="Name the tensors that can be written, keys=[…].",
            )

    def width(entry: TensorEntry) -> int:
        return -DTYPES[_cast(entry.dtype, dtype)].bits

    by_width = sorted(entries.items(), key=lambda item: width(item[1]))
    return [_in_order(dict(alike), order) for _, alike in groupby(by_width, key=lambda item: width(item[1]))]


def _in_order(entries: Mapping[str, TensorEntry], order: Sequence[str]) -> dict[str, TensorEntry]:
    return {name: entries[name] for group in groups(entries, order) for name in group.names}


def _cast(dtype: str, to: str | None) -> str:
    return to if to is not None and dtype in FLOATS else dtype


def plan(
    entries: Mapping[str, TensorEntry],
    *,
    dtype: str | None,
    file: str | None,
    most: int | None,
    metadata: Mapping[str, str],
    ties: Mapping[str, str],
    uri: object,
    generation: str = "",
) -> Plan:
    """Lay files out: tensors fill one after the other, and in each those of wide elements come first.

    Args:
        entries: the tensors, in the order in which they fill files.
        dtype: what floating-point tensors are cast to, or None.
        file: the name of the one file; None: the names Hugging Face gives, with an index if they are several.
        most: bytes of the tensors of one file, unless it is of one tensor; None: all are in one.
        metadata: goes into each file, beside its format.
        ties: other names; each goes into the file of the tensor it stands for.
        uri: the destination, for messages.
        generation: makes the names of shards others than those that are there already.

    Raises:
        FormatError: safetensors has no way to say it.
    """
    written = {name: replace(entry, dtype=_cast(entry.dtype, dtype)) for name, entry in entries.items()}
    shards = _shards(written, most)
    names = [file] if file is not None else shard_names(len(shards), generation)
    files = [
        _file(name, {tensor: written[tensor] for tensor in shard}, metadata, ties, uri)
        for name, shard in zip(names, shards, strict=True)
    ]
    changed = (entries[name].dtype for name, entry in written.items() if entry.dtype != entries[name].dtype)
    return Plan(
        {name: written[name].dtype for file in files for name in file.names},
        dict(Counter(changed)),
        tuple(files),
    )


def _shards(entries: Mapping[str, TensorEntry], most: int | None) -> list[list[str]]:
    """Fill one after the other, as Hugging Face does: a tensor that is too large has one of its own."""
    shards, held = [list[str]()], 0
    for name, entry in entries.items():
        if most is not None and shards[-1] and held + entry.nbytes > most:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += entry.nbytes
    return shards


def _file(
    name: str,
    entries: Mapping[str, TensorEntry],
    metadata: Mapping[str, str],
    ties: Mapping[str, str],
    uri: object,
) -> TensorFile:
    entries = dict(sorted(entries.items(), key=lambda item: -DTYPES[item[1].dtype].bits))
    told = {other: kept for other, kept in ties.items() if kept in entries}
    said = header(
        {key: (e.dtype, e.shape) for key, e in entries.items()}, _FORMAT | told | dict(metadata), uri
    )
    return TensorFile(name, said, sum(entry.nbytes for entry in entries.values()), tuple(entries))


def _index(files: Sequence[TensorFile]) -> bytes:
    """Return the index, letter for letter as transformers writes it."""
    index = {
        "metadata": {"total_size": sum(file.data for file in files)},
        "weight_map": {tensor: file.name for file in files for tensor in file.names},
    }
    return f"{json.dumps(index, indent=2, sort_keys=True)}\n".encode()
