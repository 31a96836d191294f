"""What is to be written of an object: which files, and whose bytes in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from torchwick.errors import FormatError
from torchwick.formats.catalog import TensorEntry
from torchwick.formats.dtypes import SAFETENSORS_BITS, of_torch
from torchwick.saving.destination import Destination, generation
from torchwick.saving.files import ArchiveFile, File
from torchwick.saving.pickled import pickled
from torchwick.saving.plan import plan
from torchwick.saving.shared import find_shared, find_ties

__all__ = ["Draft", "draft_archive", "draft_state", "draft_untied"]

_MOST_NAMED = 8


@dataclass(frozen=True)
class Draft:
    """Files, and the tensors whose bytes they take.

    Attributes:
        format: ``"safetensors"`` or ``"torch zip"``.
        files: in the order in which they are written.
        tensors: in the order in which the files take them.
    """

    format: str
    files: tuple[File, ...]
    tensors: tuple[torch.Tensor, ...]


def draft_archive(value: object, name: str, uri: object) -> Draft:
    """Draft an object as torch's zip format.

    Raises:
        FormatError: it has tensors without values.
        Exception: whatever torch.save raises of an object that cannot be pickled.
    """
    done = pickled(value, uri)
    sizes = {key: storage.numel() for key, storage in done.storages.items()}
    return Draft("torch zip", (ArchiveFile(name, done.data, sizes),), tuple(done.storages.values()))


def draft_state(state: object, to: Destination, most: int | None, metadata: Mapping[str, str]) -> Draft:
    """Draft a flat mapping of tensors as safetensors.

    Args:
        state: what is written.
        to: where to.
        most: bytes of the tensors of one file; None: all are in one.
        metadata: texts for the header.

    Raises:
        TypeError: it is no such mapping.
        FormatError: it has a tensor that safetensors cannot hold, or tensors that share memory.
    """
    tensors = _checked(state, to)
    for names in find_shared(tensors):
        raise FormatError(
            f"the tensors {', '.join(map(repr, names[:_MOST_NAMED]))} share memory, and a safetensors file "
            "would have a copy for each",
            uri=to.uri,
            hint="Save the module with torchwick.save_model, clone them, or save to a name that ends in .pt.",
        )
    return _drafted(tensors, to, most, metadata, {})


def draft_untied(state: object, to: Destination, most: int | None, metadata: Mapping[str, str]) -> Draft:
    """Draft the state of a module; of names that share memory, one is written, as by `draft_state`.

    Raises:
        TypeError: it is no such mapping.
        FormatError: it has a tensor that safetensors cannot hold.
    """
    tensors = _checked(state, to)
    ties = find_ties(tensors, to.uri)
    kept = {name: tensor for name, tensor in tensors.items() if name not in ties}
    return _drafted(kept, to, most, metadata, ties)


def _drafted(
    tensors: Mapping[str, torch.Tensor],
    to: Destination,
    most: int | None,
    metadata: Mapping[str, str],
    ties: Mapping[str, str],
) -> Draft:
    planned = plan(
        {name: _entry(name, tensor, to) for name, tensor in tensors.items()},
        dtype=None,
        file=to.file,
        most=most,
        metadata=metadata,
        ties=ties,
        uri=to.uri,
        generation=generation(),
    )
    return Draft("safetensors", planned.files, tuple(tensors[name] for name in planned.dtypes))


def _checked(state: object, to: Destination) -> dict[str, torch.Tensor]:
    """Return the tensors without what derived classes and autograd add to them."""
    if not isinstance(state, Mapping):
        raise TypeError(f"safetensors holds a mapping from names to tensors, not a {_kind(state)}{_NAME_PT}")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise TypeError(f"safetensors has texts for names, not the {_kind(name)} {name!r}{_NAME_PT}")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"safetensors holds tensors, and {name!r} is a {_kind(tensor)}{_NAME_PT}")
        _check_values(name, tensor, to)
    return {name: tensor.detach() for name, tensor in state.items()}


_NAME_PT = ": save any object to a name that ends in .pt"


def _kind(value: object) -> str:
    return type(value).__name__


def _check_values(name: str, tensor: torch.Tensor, to: Destination) -> None:
    """Refuse what has no plain elements in memory of its own.

    Raises:
        FormatError: it is such a tensor.
    """
    shown = f"tensor {name[:200]!r}"
    if tensor.is_meta:
        hint = "Load or initialise it first, such as with module.to_empty(device=…)."
        raise FormatError(f"{shown} is on the meta device, and has no values", uri=to.uri, hint=hint)
    if tensor.layout != torch.strided:
        hint = "Make it dense with to_dense(), or save to a name that ends in .pt."
        raise FormatError(f"{shown} is sparse, which safetensors has not", uri=to.uri, hint=hint)
    if not _has_memory(tensor):
        hint = "Make plain tensors of it first, such as with full_tensor() of a DTensor."
        text = f"{shown} is a {_kind(tensor)}, which has no elements of its own"
        raise FormatError(text, uri=to.uri, hint=hint)


def _has_memory(tensor: torch.Tensor) -> bool:
    try:
        storage = tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return False
    return storage.device == tensor.device and (not tensor.numel() or storage.data_ptr() != 0)


def _entry(name: str, tensor: torch.Tensor, to: Destination) -> TensorEntry:
    dtype = of_torch(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or dtype.name not in SAFETENSORS_BITS:
        raise FormatError(
            f"tensor {name[:200]!r} is {tensor.dtype}, a dtype that safetensors has not",
            uri=to.uri,
            hint="Cast it, or save to a name that ends in .pt.",
        )
    return TensorEntry(dtype.name, tuple(tensor.shape), ())
