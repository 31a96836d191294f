"""Checkpoints in the formats before the zip: the stream of torch 0.1.10 to 1.5, and the tar before."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from checkpoints.base import OddCheckpoint, Outcome, saved, written
from checkpoints.foreign import Calls, Config, Point, Tagged
from checkpoints.objects import small_model, state_dict, training_state
from checkpoints.tensors import every_bit

if TYPE_CHECKING:
    from collections.abc import Callable

_MAGIC = 0x1950A86A20F9469CFC6C
_SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def _legacy(
    name: str, make: Callable[[], Any], path: Outcome, protocol: int = 2, **fields: Any
) -> OddCheckpoint:
    options = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
    return saved(f"legacy_{name}", make, path, save_options=options, **fields)


def _ties() -> dict[str, Any]:
    base = torch.arange(12.0)
    parameter = nn.Parameter(torch.ones(3))
    return {
        "base": base,
        "same": base,
        "tail": base[4:],
        "matrix": base.view(3, 4).t(),
        "parameters": [parameter, parameter],
        "data": parameter.data,
    }


# -- written by hand ---------------------------------------------------------------------------------------


@dataclass
class _Persistent:
    """Stands for what the pickle refers to outside itself."""

    saved_id: Any


@dataclass
class _Rebuilt:
    """Pickles as the call that rebuilds a tensor on a storage."""

    storage: _Persistent
    offset: int
    size: tuple[int, ...]

    def __reduce__(self) -> Any:
        stride = (1,) if len(self.size) == 1 else (self.size[1], 1)
        args: tuple[Any, ...] = (self.storage, self.offset, self.size, stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, args


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.saved_id if isinstance(obj, _Persistent) else None


def _storage_id(numel: int, view: tuple[str, int, int] | None) -> _Persistent:
    return _Persistent(("storage", torch.FloatStorage, "11", "cpu", numel, view))


def _stream(value: Any, storages: dict[str, bytes], *, magic: int = _MAGIC, protocol: int = 1001) -> bytes:
    """The legacy stream: five pickles, then each storage's element count and bytes."""
    out = io.BytesIO()
    for part in (magic, protocol, {**_SYSTEM, "little_endian": sys.byteorder == "little"}):
        pickle.dump(part, out, protocol=2)
    _Pickler(out, protocol=2).dump(value)
    pickle.dump(sorted(storages), out, protocol=2)
    for key in sorted(storages):
        out.write(struct.pack("<q", len(storages[key]) // 4) + storages[key])
    return out.getvalue()


def _floats(count: int) -> bytes:
    return struct.pack(f"<{count}f", *range(count))


def _with_views() -> bytes:
    """Storages that are windows on another, as torch wrote them before 0.4."""
    whole, window = _storage_id(10, None), _storage_id(10, ("12", 2, 4))
    value = OrderedDict(
        whole=_Rebuilt(whole, 0, (2, 5)),
        window=_Rebuilt(window, 1, (3,)),
        again=_Rebuilt(_storage_id(10, ("12", 2, 4)), 0, (4,)),
        other=_Rebuilt(_storage_id(10, ("13", 3, 5)), 0, (5,)),
    )
    return _stream(value, {"11": _floats(10)})


def _one_tensor(storages: dict[str, bytes], **options: Any) -> bytes:
    return _stream({"w": _Rebuilt(_storage_id(6, None), 0, (2, 3))}, storages, **options)


def _plain_stream(**options: Any) -> bytes:
    return _one_tensor({"11": _floats(6)}, **options)


def _tar() -> bytes:
    """The tar of torch before 0.1.10: storages, tensors and the pickle as three files."""
    files = {"storages": _tar_storages(), "tensors": _tar_tensors(), "pickle": _tar_pickle()}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _tar_storages() -> bytes:
    out = io.BytesIO()
    pickle.dump(1, out, protocol=2)
    pickle.dump((11, "cpu", torch.FloatStorage), out, protocol=2)
    out.write(struct.pack("<q", 6) + _floats(6))
    pickle.dump([(12, 11, 2, 4)], out, protocol=2)
    return out.getvalue()


def _tar_tensors() -> bytes:
    out = io.BytesIO()
    pickle.dump(2, out, protocol=2)
    for key, storage, size, stride in ((21, 11, (2, 3), (3, 1)), (22, 12, (4,), (1,))):
        pickle.dump((key, storage, torch.FloatTensor), out, protocol=2)
        shape = struct.pack(f"<{2 * len(size)}q", *size, *stride)
        out.write(struct.pack("<ii", len(size), 0) + shape + struct.pack("<q", 0))
    return out.getvalue()


def _tar_pickle() -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=2).dump({"a": _Persistent("21"), "b": _Persistent("22"), "n": 3})
    return out.getvalue()


_QUANTIZED = partial(torch.quantize_per_tensor, torch.arange(4.0), 0.5, 1, torch.qint8)

LEGACY: tuple[OddCheckpoint, ...] = (
    _legacy("state_dict", state_dict, "deferred"),
    _legacy("training", training_state, "deferred"),
    _legacy("ties", _ties, "deferred"),
    _legacy("many_tensors", lambda: [torch.full((3,), float(n)) for n in range(1000)], "deferred"),
    _legacy("parameters", lambda: {"p": nn.Parameter(torch.ones(2)), "t": torch.ones(2)}, "deferred"),
    _legacy("empties", lambda: [torch.empty(0), torch.empty(0, 3), torch.ones(1)], "deferred"),
    _legacy("bfloat16", lambda: {"t": every_bit(torch.bfloat16)}, "deferred"),
    _legacy(
        "every_width", lambda: [every_bit(d) for d in (torch.int8, torch.float64, torch.cdouble)], "deferred"
    ),
    _legacy("bare_tensor", lambda: torch.arange(6.0).view(2, 3).t(), "deferred"),
    _legacy("no_tensors", lambda: {"epoch": 3, "text": "nothing here"}, "deferred"),
    _legacy("view_of_big_storage", lambda: torch.arange(100_000.0)[500:510], "deferred"),
    _legacy("pickle_1m", lambda: {"text": "config " * 200_000, "t": torch.arange(9.0)}, "deferred"),
    _legacy("requires_grad", lambda: torch.ones(2, requires_grad=True), "deferred"),
    _legacy("conj", lambda: torch.tensor([1 + 2j]).conj(), "deferred"),
    _legacy("meta", lambda: torch.empty(3, device="meta"), "either"),
    _legacy("float8", lambda: torch.ones(3).to(torch.float8_e5m2), "error", note="saved, never loaded again"),
    _legacy("sparse", lambda: torch.eye(3).to_sparse(), "spooled"),
    _legacy("quantized", _QUANTIZED, "spooled"),
    _legacy("subclass_refused", lambda: torch.ones(2).as_subclass(Tagged), "refused"),
    _legacy("subclass", lambda: torch.ones(2).as_subclass(Tagged), "spooled", weights_only=False),
    _legacy("dataclass", lambda: Config(1, torch.ones(2)), "spooled", weights_only=False),
    _legacy("namedtuple", lambda: Point(torch.ones(2), 2), "spooled", weights_only=False),
    _legacy("module_refused", small_model, "refused"),
    _legacy("module", small_model, "spooled", weights_only=False, note="persistent ids name source files"),
    _legacy("attack", lambda: [torch.ones(2), Calls(print, "you have been had")], "refused"),
    _legacy("protocol_4", state_dict, "either", protocol=4, weights_only=False),
    _legacy("protocol_4_refused", state_dict, "refused", protocol=4),
    written("legacy_by_hand", _plain_stream, "deferred"),
    written("legacy_view_metadata", _with_views, "spooled"),
    written("legacy_trailing_bytes", lambda: _plain_stream() + b"trailing", "either"),
    written("legacy_cut", lambda: _plain_stream()[:-4], "error"),
    written("legacy_cut_in_pickle", lambda: _plain_stream()[:100], "error"),
    written("legacy_wrong_magic", partial(_plain_stream, magic=42), "error"),
    written("legacy_wrong_protocol", partial(_plain_stream, protocol=1002), "error"),
    written("legacy_count_mismatch", lambda: _one_tensor({"11": _floats(4)}), "error"),
    written("legacy_unknown_storage", lambda: _stream({"n": 1}, {"11": _floats(4)}), "error"),
    written("tar_refused", _tar, "refused"),
    written("tar", _tar, "spooled", weights_only=False, note="torch needs a real file for this one"),
)
