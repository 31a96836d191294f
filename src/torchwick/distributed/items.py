"""What is written of tensors and values: files of torch.save's, behind one another in an object.

How many bytes an item takes is known before any of its elements is looked at, so that an object can be
uploaded from its first byte to its last, straight from the tensors' memory.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from torchwick.errors import FormatError
from torchwick.saving.elements import elements
from torchwick.saving.files import ArchiveFile, Content, File, PlainFile
from torchwick.saving.pickled import pickled
from torchwick.saving.sink import Sink

__all__ = ["WrittenItem", "item_of"]


@dataclass(frozen=True)
class WrittenItem:
    """An item that is to be written.

    Attributes:
        file: what it is made of.
        tensors: whose elements go into it, in order.
    """

    file: File
    tensors: tuple[torch.Tensor, ...] = ()

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.file.size

    def write(self, sink: Sink) -> None:
        """Write it.

        Raises:
            StoreError: it cannot be written.
        """
        contents: Iterator[Content] = (elements(tensor, tensor.dtype) for tensor in self.tensors)
        self.file.write(sink, contents)


def item_of(data: torch.Tensor | io.BytesIO, name: str, uri: object) -> WrittenItem:
    """Return what is written of a tensor, or of a value that was pickled already.

    Args:
        data: what a planner returned.
        name: what it is called, for messages.
        uri: where it is to be written, for messages.

    Raises:
        FormatError: it has no values.
    """
    if isinstance(data, io.BytesIO):
        return WrittenItem(PlainFile("", data.getvalue()))
    tensor = data.detach()
    if tensor.is_meta:
        hint = "Load or initialise it first, such as with module.to_empty(device=…)."
        message = f"tensor {name[:200]!r} is on the meta device, and has no values"
        raise FormatError(message, uri=uri, hint=hint)
    if type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized:
        pickle = _pickle_of(tensor.dtype, tuple(tensor.shape))
        return WrittenItem(ArchiveFile("", pickle, {"0": tensor.nbytes}), (tensor,))
    whole = pickled(tensor, uri)  # of a kind of its own: torch knows how
    storages = {key: storage.nbytes for key, storage in whole.storages.items()}
    return WrittenItem(ArchiveFile("", whole.data, storages), tuple(whole.storages.values()))


@functools.lru_cache(maxsize=4096)
def _pickle_of(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """Return torch's pickle of a tensor of which nothing more is known: it holds no values.

    The memory is none of the tensor's: a view would have torch save all that it is a view of.
    """
    return pickled(torch.empty(shape, dtype=dtype), "").data
