"""safetensors: lay the tensors out from the header, and read each one's bytes into its own memory."""

from __future__ import annotations

import sys
from typing import Any

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.buffers import writable_bytes
from torchwick.formats import safetensors
from torchwick.formats.catalog import TensorEntry
from torchwick.loading.devices import is_faking
from torchwick.loading.source import Source
from torchwick.transfer import Fill

__all__ = ["load_safetensors"]


def load_safetensors(source: Source, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the tensors by name, in the order of their bytes, as ``safetensors.torch.load_file`` does.

    Args:
        source: the object.
        device: the CPU, or ``meta``.

    Raises:
        FormatError: the header is corrupt, or torch has no such dtype.
        StoreError: the bytes cannot be read.
    """
    catalog = safetensors.read_catalog(source.cache.read, source.info.size, source.uri)
    if source.size is None:  # where the server does not say, the header does
        source.size = max(
            (_stop(entry) for entry in catalog.entries.values()), default=len(source.cache.head)
        )
    if device.type == "meta" or is_faking():
        return {name: _empty(entry, source, device) for name, entry in catalog.entries.items()}
    made = {name: _empty(entry, source, device) for name, entry in catalog.entries.items()}
    _fill(source, [(entry, made[name]) for name, entry in catalog.entries.items()])
    return made


def _stop(entry: TensorEntry) -> int:
    return entry.pieces[0].start + entry.nbytes


def _empty(entry: TensorEntry, source: Source, device: torch.device) -> torch.Tensor:
    return tensors.empty(entry.dtype, entry.shape, source.uri, device)


def _fill(source: Source, wanted: list[tuple[TensorEntry, torch.Tensor]]) -> None:
    fills = []
    for entry, tensor in wanted:
        if not entry.nbytes:
            continue
        start, buffer = entry.pieces[0].start, writable_bytes(tensor)
        known = source.cache.find(start, start + entry.nbytes)
        if known is not None:
            buffer[:] = known
        else:
            fills.append(Fill(start, buffer))
    source.fill(fills)
    if sys.byteorder == "big":  # the format is little-endian
        for _, tensor in wanted:
            storage: Any = tensor.untyped_storage()
            storage.byteswap(tensor.dtype)
