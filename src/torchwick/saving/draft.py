"""What is to be written of an object: which files, and whose bytes in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from torchwick.errors import FormatError
from torchwick.formats.catalog import TensorEntry
from torchwick.formats.dtypes import SAFETENSORS_BITS, of_torch
from torchwick.saving.destination import Destination, generation
from torchwick.saving.files import ArchiveFile, Draft
from torchwick.saving.pickled import pickled
from torchwick.saving.plan import plan
from torchwick.saving.shared import find_shared, find_ties

__all__ = ["draft_object", "draft_state_dict"]

_MOST_NAMED = 8
_ENDING = ".safetensors"


def draft_object(value: object, to: Destination, most: int | None, metadata: Mapping[str, str]) -> Draft:
    """Draft an object: in safetensors or in torch's zip format, as the destination's name says.

    Args:
        value: what is written.
        to: where to.
        most: bytes of the tensors of one file; None: all are in one.
        metadata: texts for the header of safetensors.

    Raises:
        ValueError: there are metadata, and no place for them.
        TypeError: it is no flat mapping of tensors, and safetensors holds nothing else.
        FormatError: it has a tensor that the format cannot hold, or tensors that share memory.
        Exception: whatever torch.save raises of an object that cannot be pickled.
    """
    if _is_archive(to, metadata):
        return _draft_archive(value, to)
    tensors = _checked(value, to)
    shared = find_shared(tensors)
    if shared:
        raise FormatError(
            f"the tensors {', '.join(map(repr, shared[0][:_MOST_NAMED]))} share memory, and a safetensors "
            "file would have a copy for each",
            uri=to.uri,
            hint="Save the module with torchwick.save_model, clone them, or save to a name that ends in .pt.",
        )
    return _draft_state(tensors, to, most, metadata, {})


def draft_state_dict(
    state: Mapping[str, object], to: Destination, most: int | None, metadata: Mapping[str, str]
) -> Draft:
    """Draft the state of a module as `draft_object` does; in safetensors, one of names that share memory.

    Raises:
        Exception: the same.
    """
    if _is_archive(to, metadata):
        return _draft_archive(state, to)
    tensors = _checked(state, to)
    ties = find_ties(tensors, to.uri)
    kept = {name: tensor for name, tensor in tensors.items() if name not in ties}
    return _draft_state(kept, to, most, metadata, ties)


def _is_archive(to: Destination, metadata: Mapping[str, str]) -> bool:
    """Whether it is to be torch's zip format.

    Raises:
        ValueError: that has no place for metadata.
    """
    archive = to.file is not None and not to.file.endswith(_ENDING)
    if archive and metadata:
        hint = f"end the name in {_ENDING}, or put them into the object"
        raise ValueError(f"metadata are for safetensors: {hint}")
    return archive


def _draft_archive(value: object, to: Destination) -> Draft:
    done = pickled(value, to.uri)
    sizes = {key: storage.numel() for key, storage in done.storages.items()}
    return Draft("torch zip", (ArchiveFile(to.file or "", done.data, sizes),), tuple(done.storages.values()))


def _draft_state(
    tensors: Mapping[str, torch.Tensor],
    to: Destination,
    most: int | None,
    metadata: Mapping[str, str],
    ties: Mapping[str, str],
) -> Draft:
    pairs: Iterable[tuple[object, object]] = metadata.items()
    for key, text in pairs:
        if not (isinstance(key, str) and isinstance(text, str)):
            raise TypeError(f"metadata are texts by name, and {key!r} is the {_kind(text)} {text!r}")
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
