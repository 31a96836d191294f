"""What torch.save would write of an object: the pickle, and the storages that it refers to.

torch.save itself pickles it, with a pickler that takes note of each storage, and that ends torch.save when
the pickle is complete. So the pickle is torch's own, and the storages are written from where they are.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import types
from dataclasses import dataclass
from typing import IO, Any, cast

import torch

from torchwick.errors import FormatError

__all__ = ["Pickled", "pickled"]


@dataclass(frozen=True)
class Pickled:
    """An object, pickled.

    Attributes:
        data: the pickle.
        storages: each one once, as bytes, by its key, in the order of the keys.
    """

    data: bytes
    storages: dict[str, torch.Tensor]


class _Nowhere(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


class _PickledError(Exception):
    """Ends torch.save before it writes storages."""


def pickled(value: object, uri: object) -> Pickled:
    """Pickle an object as torch.save does.

    Args:
        value: any object that torch.save saves.
        uri: where it is to be saved, for messages.

    Raises:
        FormatError: it has a tensor without values.
        Exception: whatever torch.save raises of an object that cannot be pickled.
    """
    data = io.BytesIO()
    storages: dict[str, torch.UntypedStorage] = {}

    class Noting(pickle.Pickler):
        """Takes note of what torch's own pickler, which derives from it, says of storages."""

        def __init__(self, _file: object, protocol: int) -> None:
            super().__init__(data, protocol)

        def __init_subclass__(cls) -> None:
            told = cls.persistent_id

            def persistent_id(self: Noting, part: Any) -> Any:
                said = told(self, part)
                if said is not None:
                    storages[said[2]] = getattr(part, "_untyped_storage", part)  # of a TypedStorage
                return said

            cls.persistent_id = persistent_id  # type: ignore[method-assign, assignment]

        def dump(self, value: object) -> None:
            if type(self) is Noting:  # nothing was noted: the file would lack its storages
                raise AssertionError(f"torch {torch.__version__} derives no pickler")
            super().dump(value)
            raise _PickledError

        def reducer_override(self, part: object) -> Any:
            if isinstance(part, torch.Tensor) and part.is_meta:
                raise FormatError("a tensor is on the meta device, and has no values", uri=uri, hint=_META)
            return NotImplemented

    module = types.SimpleNamespace(Pickler=Noting, __name__="pickle")
    with contextlib.suppress(_PickledError):
        torch.save(value, cast(IO[bytes], _Nowhere()), pickle_module=module)
    if any(storage.device.type == "meta" for storage in storages.values()):
        raise FormatError("a storage is on the meta device, and has no values", uri=uri, hint=_META)
    return Pickled(data.getvalue(), {key: _as_bytes(storage) for key, storage in storages.items()})


_META = "Load or initialise it first, such as with module.to_empty(device=…)."


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
