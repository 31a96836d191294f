"""Reads a directory that holds a model, and no ``.metadata``, as if it were a distributed checkpoint.

As torch's own `HuggingFaceStorageReader` does: every tensor is one box, or, where ranks saved safetensors of
their own, as many as the headers of their files say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from torchwick.checkpoint import tensors
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.opening import open_objects
from torchwick.config import TransferConfig
from torchwick.errors import FormatError
from torchwick.formats import safetensors
from torchwick.formats.catalog import Catalog, Piece, TensorEntry
from torchwick.store import ObjectInfo, Store
from torchwick.transfer import RangeCache
from torchwick.uri import URI

__all__ = ["open_model"]

_OF_RANKS = re.compile(
    r"shard-\d+-model-\d+-of-\d+\.safetensors"
)  # torch/distributed/checkpoint/_hf_utils.py
_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_HEAD = 64 << 10  # bytes of the first read of a file: its header whole, with some 500 tensors
_AT_ONCE = 16  # files looked into at the same time
_HINT = "Save it again, or upload the directory again, whole."

_Boxes = Iterator[tuple[str, tuple[int, ...], TensorEntry]]


def open_model(
    address: URI, store: Store, config: TransferConfig, listed: Mapping[str, ObjectInfo]
) -> tuple[Metadata, Objects]:
    """Describe a model as a distributed checkpoint; where its tensors are stands in its `storage_data`.

    Args:
        address: a directory, or one file.
        store: where it is.
        config: how to read.
        listed: what is in the directory, as far as that is known.

    Raises:
        FormatError: no model is there, or what its ranks saved does not fit together.
        StoreError: it cannot be read.
    """
    of_ranks = {name: info for name, info in listed.items() if _OF_RANKS.fullmatch(name)}
    if of_ranks:
        return _sharded(address.as_directory(), store, config, of_ranks)
    catalog, objects = open_objects(address, store, config)
    whole = ((name, (0,) * len(entry.shape), entry) for name, entry in catalog.entries.items())
    return _described(whole, address), objects


def _sharded(
    directory: URI, store: Store, config: TransferConfig, infos: Mapping[str, ObjectInfo]
) -> tuple[Metadata, Objects]:
    def look(name: str) -> tuple[RangeCache, Catalog]:
        info = infos[name]
        cache = RangeCache(store, info.uri, config, info=info, read_ahead=_HEAD)
        return cache, safetensors.read_catalog(cache.read, info.size, info.uri)

    with ThreadPoolExecutor(min(_AT_ONCE, len(infos)), thread_name_prefix="torchwick-open") as pool:
        looked = dict(zip(infos, pool.map(look, infos), strict=True))
    boxes = (box for name, (_, catalog) in looked.items() for box in _boxes(name, catalog, directory))
    metadata = _described(boxes, directory)
    return metadata, Objects(directory, store, config, {name: cache for name, (cache, _) in looked.items()})


def _boxes(file: str, catalog: Catalog, directory: URI) -> _Boxes:
    """Return the tensors of a rank's file, and where in the whole ones they belong."""
    said = _places(catalog.metadata.get(_PLACES, "{}"))
    for name, entry in catalog.entries.items():
        place = said.get(name)
        offset = place.get(_OFFSETS) if isinstance(place, dict) else [0] * len(entry.shape)
        if (
            not isinstance(offset, list)
            or len(offset) != len(entry.shape)
            or not all(type(at) is int and 0 <= at < 1 << 63 for at in offset)
        ):
            message = f"{file!r} does not say where its part of tensor {name[:200]!r} belongs"
            raise FormatError(message, uri=directory, hint=_HINT)
        pieces = tuple(replace(piece, object=file) for piece in entry.pieces if isinstance(piece, Piece))
        yield name, tuple(offset), replace(entry, pieces=pieces)


def _places(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    return said if isinstance(said, dict) else {}


def _described(boxes: _Boxes, uri: URI) -> Metadata:
    described: dict[str, TensorStorageMetadata] = {}
    stored: dict[MetadataIndex, TensorEntry] = {}
    for name, offset, entry in boxes:
        index = MetadataIndex(name, offset)
        dtype = tensors.dtype_of(entry.dtype, uri)
        if index in stored or (name in described and described[name].properties.dtype != dtype):
            message = f"two of its files have different parts of tensor {name[:200]!r} for one place"
            raise FormatError(message, uri=uri, hint=_HINT)
        stored[index] = entry
        known = described.setdefault(name, TensorStorageMetadata(_properties(dtype), torch.Size(), []))
        known.chunks.append(ChunkStorageMetadata(torch.Size(offset), torch.Size(entry.shape)))
    for of_one in described.values():
        ends = [[at + n for at, n in zip(c.offsets, c.sizes, strict=True)] for c in of_one.chunks]
        if len({len(end) for end in ends}) > 1:
            raise FormatError("its files have parts of a tensor in different dimensions", uri=uri, hint=_HINT)
        of_one.size = torch.Size(max(lengths) for lengths in zip(*ends, strict=True))
    return Metadata(dict(described), storage_data=stored, storage_meta=StorageMeta())


def _properties(dtype: torch.dtype) -> TensorProperties:
    return TensorProperties(dtype=dtype)
