"""`Checkpoint`: the tensors of a model by name, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Self

from torchwick.checkpoint.info import ObjectFact, TensorInfo, describe
from torchwick.checkpoint.layout import groups
from torchwick.checkpoint.selection import Keys, missing, select

if TYPE_CHECKING:
    import types

    import torch

    from torchwick.checkpoint.objects import Objects
    from torchwick.checkpoint.reading import Reader
    from torchwick.checkpoint.slices import Index
    from torchwick.formats.catalog import Catalog, TensorEntry
    from torchwick.transfer import Tally

__all__ = ["Checkpoint", "TensorSlice"]


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """The tensors of a model in a bucket, by name; `torchwick.open` makes it.

    Opening it has read only where tensors are; their bytes are read when they are asked for, and every
    tensor is the caller's own, on the CPU. It is a read-only mapping, and many threads can use it at once.
    All its objects are pinned to the versions that were there when it was opened: `ObjectChangedError` says
    that one was overwritten since.

    Tensors that shared memory when they were saved share it again if they are asked for together.
    """

    def __init__(self, catalog: Catalog, objects: Objects) -> None:
        self._catalog = catalog
        self._objects = objects
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    __eq__ = object.__eq__  # a mapping's would read both, to compare tensors
    __hash__ = object.__hash__

    def close(self) -> None:
        """Read nothing more; tensors that were read stay."""
        self._closed = True

    def __repr__(self) -> str:
        return f"<Checkpoint {self.uri}: {self.format}, {len(self)} tensors>"

    @property
    def uri(self) -> str:
        """Where it is, as text without secrets."""
        return str(self._objects.uri)

    @property
    def format(self) -> str:
        """``"safetensors"``, ``"torch zip"``, ``"torch legacy"``, ``"TorchScript"`` or ``"dcp"``."""
        return self._catalog.format

    @property
    def others(self) -> dict[str, str]:
        """What is in it besides tensors, by name, each in a few words: ``{"epoch": "3"}``."""
        return dict(self._catalog.others)

    @property
    def size(self) -> int | None:
        """Bytes of its objects; None where the server does not say."""
        return self._objects.size

    @property
    def objects(self) -> tuple[ObjectFact, ...]:
        """The objects that tensors are in, in the order of the checkpoint; not the index of a directory."""
        infos = (self._objects[name].info for name in self._objects.names)
        return tuple(ObjectFact(str(info.uri), info.size) for info in infos)

    @property
    def traffic(self) -> Tally:
        """What it has cost so far: bytes, requests, retries."""
        return self._objects.tally

    def metadata(self) -> dict[str, str]:
        """Return the texts that were written with it, as ``safe_open`` does; empty where there are none."""
        return dict(self._catalog.metadata)

    def __iter__(self) -> Iterator[str]:
        return iter(self._catalog.entries)

    def __len__(self) -> int:
        return len(self._catalog.entries)

    def __contains__(self, name: object) -> bool:
        return name in self._catalog.entries

    def offset_keys(self) -> list[str]:
        """Return the names in the order in which their bytes lie in the objects."""
        ordered = groups(self._catalog.entries, self._objects.names)
        return [name for group in ordered for name in group.names]

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape, bytes and place of a tensor, of which nothing is read.

        Raises:
            TensorNotFoundError: there is none of that name.
        """
        return describe(self._entry(name), lambda part: str(self._objects[part].info.uri))

    def _entry(self, name: str) -> TensorEntry:
        entry = self._catalog.entries.get(name)
        if entry is None:
            raise missing(name, self._catalog.entries, self._objects.uri)
        return entry

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.get_tensor(name)

    def get_tensor(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            TensorNotFoundError: there is none of that name.
            ObjectChangedError: it was overwritten since it was opened.
            StoreError: it cannot be read.
        """
        self._entry(name)
        return self._reader.read([name])[name]

    def get_slice(self, name: str) -> TensorSlice:
        """Return a stand-in for a tensor, of which an index reads only the bytes it needs.

        Raises:
            TensorNotFoundError: there is none of that name.

        Example:
            >>> ckpt.get_slice("embed.weight")[:1024]  # doctest: +SKIP
        """
        return TensorSlice(self, name, self._entry(name))

    def read(self, keys: Keys = None) -> dict[str, torch.Tensor]:
        """Read many tensors at once, by many connections; neighbours are read by one request.

        Args:
            keys: a name or a pattern (``"layers.0.*"``), several, a function that tells of a name whether it
                is meant, or None for all.

        Returns:
            Tensors by name: those of names in the order given, those of patterns as in the checkpoint.

        Raises:
            TensorNotFoundError: a name or a pattern means none.
            StoreError: they cannot be read.
        """
        return self._reader.read(select(keys, self._catalog.entries, self._objects.uri))

    def stream(self, keys: Keys = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and tensors in the order of their bytes, while the next ones are being read.

        No more than ``TransferConfig.memory_limit`` is held at once, the tensor yielded last included: models
        of any size go through. An explicit limit is used as it is; otherwise as much as 1 GiB, or two of the
        largest tensor, is read ahead. Tensors are the caller's to keep, at the cost of their memory.

        Args:
            keys: which; see `read`.

        Raises:
            TensorNotFoundError: a name or a pattern means none.
            MemoryLimitError: one tensor alone is larger than the limit.
            StoreError: they cannot be read.

        Example:
            >>> largest = {name: tensor.abs().max() for name, tensor in ckpt.stream()}  # doctest: +SKIP
        """
        return self._reader.stream(select(keys, self._catalog.entries, self._objects.uri))

    @cached_property
    def _reader_of_tensors(self) -> Reader:
        from torchwick.checkpoint.reading import Reader  # imports torch, which looking needs not

        return Reader(self._catalog, self._objects)

    @property
    def _reader(self) -> Reader:
        if self._closed:
            raise ValueError(f"{self.uri}: the checkpoint was closed")
        return self._reader_of_tensors

    def _read_part(self, name: str, index: Index) -> torch.Tensor:
        return self._reader.read_part(name, index)


class TensorSlice:
    """Stands in for a tensor: an index reads only what it needs."""

    def __init__(self, checkpoint: Checkpoint, name: str, entry: TensorEntry) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self._entry = entry

    def __getitem__(self, index: Index) -> torch.Tensor:
        """Read a part, by integers, slices and ``...``, as of a tensor."""
        return self._checkpoint._read_part(self._name, index)  # noqa: SLF001 - made by it

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dimensions."""
        return self._entry.shape

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return self._entry.dtype

    def get_shape(self) -> list[int]:
        """Return the lengths of the dimensions, as safetensors' slices do."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Return the dtype, as safetensors' slices do."""
        return self._entry.dtype

    def __len__(self) -> int:
        if not self._entry.shape:
            raise TypeError("a tensor without dimensions has no length")
        return self._entry.shape[0]
