"""Values besides tensors, which are files of torch.save's as well: only harmless ones are let through.

torch's planners unpickle them without restraint, whatever reader hands them over.
"""

from __future__ import annotations

import io

import torch

from torchwick.errors import UnsafePickleError
from torchwick.loading.refusals import explain

__all__ = ["harmless"]

_TWO_WAYS = (
    "Either allow them, if you know them to be harmless: `with torch.serialization.safe_globals([...])`; or, "
    "if you trust whoever made the checkpoint as you would trust a program of theirs, pass weights_only=False"
)
_MOST_NAMED, _LONGEST = 20, 200  # globals in a message, and characters of each


def harmless(data: io.BytesIO, name: str, uri: object) -> io.BytesIO:
    """Return a file with the same value, made from nothing but what ``weights_only=True`` takes.

    It is loaded under that restraint, and saved again: the very bytes that were read are shown to no other
    unpickler, which might understand them differently.

    Args:
        data: the file.
        name: what the value is called, for messages.
        uri: the object that it is from, for messages.

    Raises:
        UnsafePickleError: the value is something else.
        FormatError: the file is corrupt.

    Example:
        >>> file = io.BytesIO()
        >>> torch.save({"lr": 0.1}, file)
        >>> torch.load(harmless(file, "schedule", "s3://models/step-1000/__0_0.distcp"))
        {'lr': 0.1}
    """
    data.seek(0)
    with explain(uri, weights_only=True):
        refused = tuple(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(data)))
    if refused:
        named = ", ".join(each[:_LONGEST] for each in refused[:_MOST_NAMED])
        message = f"weights_only=True refuses what the pickle of {name[:_LONGEST]!r} would import: {named}"
        raise UnsafePickleError(message, uri=uri, hint=_TWO_WAYS, refused=refused)
    data.seek(0)
    with explain(uri, weights_only=True):
        value = torch.load(data, weights_only=True)
    copy = io.BytesIO()
    torch.save(value, copy)
    copy.seek(0)
    return copy
