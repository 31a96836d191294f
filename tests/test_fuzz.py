"""Damage that nobody thought of: files changed at random load as torch loads them, or are refused.

What is held of every file, however it came about:

- `torchwick.load` returns exactly what ``torch.load``, or ``safetensors.torch.load_file``, returns for it; or
- it raises a `TorchwickError`; or, where a device that the file names is not there, the error torch raises.

It may be stricter than torch: it refuses names that occur twice, records that share bytes, tensors that reach
out of their storage, and storages that the file does not hold. It is never more lenient. Checksums are not
looked at by either: torch leaves the CRC-32 of its records unread, and so a changed byte inside a tensor is
a changed value in both.

A short run belongs to the suite, and is the same every time. ``make fuzz`` is the long one: chance decides,
and ``FUZZ_EXAMPLES`` is how many files each test makes. What it finds goes into `checkpoints.hostile`, under
a name.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import struct
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchwick
from checkpoints.assembly import (
    Code,
    call,
    legacy_of,
    name,
    old_storage,
    program,
    push,
    storage,
    tensor,
    zip_of,
)
from checkpoints.base import quiet, save_bytes
from checkpoints.safetensors import SAFETENSORS, framed
from checkpoints.zipcraft import Record, saved_records, under, write_zip
from oracle import assert_same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SUITE_EXAMPLES = 150
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", _SUITE_EXAMPLES))

fuzzed = settings(
    max_examples=_EXAMPLES,
    derandomize=_EXAMPLES == _SUITE_EXAMPLES,
    deadline=timedelta(seconds=10),  # for one file: none may take long
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.large_base_example],
)

# -- the judge ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file that is written over and over."""
    return tmp_path_factory.mktemp("fuzz") / "model.pt"


def _judge(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with quiet():
        try:
            loaded = torchwick.load(path)
        except torchwick.TorchwickError as error:
            str(error).encode()
            return
        except RuntimeError as error:
            _check_device_error(path, error)
            return
        # Only now: for what is refused, torch may take all memory, or never return.
        expected = _oracle(path, content)
    if content[8:9] == b"{" and isinstance(expected, dict):
        assert loaded.keys() == expected.keys()
        expected = {key: expected[key] for key in loaded}  # which orders tensors without bytes at random
        assert_same(loaded, expected, storages=False)
    else:
        assert_same(loaded, expected)


def _oracle(path: Path, content: bytes) -> Any:
    return safetensors.torch.load_file(path) if content[8:9] == b"{" else torch.load(path)


def _check_device_error(path: Path, error: RuntimeError) -> None:
    """Devices are tried before the pickle is built: torch may come across another error first."""
    assert re.match("don't know how to restore data location|Attempting to deserialize object on", str(error))
    with pytest.raises(
        (RuntimeError, TypeError, ValueError, LookupError, AttributeError, pickle.UnpicklingError)
    ):
        torch.load(path)


# -- damage ------------------------------------------------------------------------------------------------

_EXTREMES = (
    0,
    1,
    2,
    7,
    24,
    255,
    256,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
)
_WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


@st.composite
def _damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """One of the files, changed in one to three places: mostly where a field begins."""
    original = draw(st.sampled_from(files))
    places = st.sampled_from(_fields(original)) | st.integers(0, len(original) - 1)
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        at = min(draw(places), max(0, len(data) - 1))
        data = draw(st.sampled_from(_CHANGES))(draw, data, at)
    return bytes(data)


def _flip(draw: st.DrawFn, data: bytearray, at: int) -> bytearray:
    if data:
        data[at] ^= 1 << draw(st.integers(0, 7))
    return data


def _overwrite(draw: st.DrawFn, data: bytearray, at: int) -> bytearray:
    width = draw(st.sampled_from(list(_WIDTHS)))
    value = draw(st.sampled_from(_EXTREMES) | st.integers(0, len(data) + 1)) % (1 << 8 * width)
    return data[:at] + struct.pack(_WIDTHS[width], value) + data[at + width :]


def _nudge(draw: st.DrawFn, data: bytearray, at: int) -> bytearray:
    width = draw(st.sampled_from((1, 2, 4)))
    field = int.from_bytes(data[at : at + width], "little") + draw(st.integers(-64, 64))
    return data[:at] + (field % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def _truncate(_draw: st.DrawFn, data: bytearray, at: int) -> bytearray:
    return data[:at]


def _remove(draw: st.DrawFn, data: bytearray, at: int) -> bytearray:
    return data[:at] + data[at + draw(st.integers(1, 64)) :]


def _repeat(draw: st.DrawFn, data: bytearray, at: int) -> bytearray:
    """A piece of the file once more, at another place."""
    piece = data[at : at + draw(st.integers(1, 200))]
    other = draw(st.integers(0, len(data)))
    return data[:other] + piece + data[other + draw(st.sampled_from((0, len(piece)))) :]


def _insert(draw: st.DrawFn, data: bytearray, at: int) -> bytearray:
    return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]


_CHANGES: list[Callable[[st.DrawFn, bytearray, int], bytearray]] = [
    *(_flip, _overwrite, _overwrite, _nudge, _nudge, _truncate, _remove, _repeat, _insert)
]


def _fields(content: bytes) -> list[int]:
    """Offsets at which something a reader believes is written."""
    if content.startswith(b"PK"):
        return _zip_fields(content)
    if content[8:9] == b"{":
        return list(range(8 + int.from_bytes(content[:8], "little")))
    return list(range(max(1, len(content) - 200)))


_SIGNATURES = {b"PK\3\4": 30, b"PK\1\2": 46, b"PK\5\6": 22, b"PK\6\6": 56, b"PK\6\7": 20}


def _zip_fields(content: bytes) -> list[int]:
    found: list[int] = []
    for signature, length in _SIGNATURES.items():
        at = content.find(signature)
        while at >= 0:
            found += range(at, at + length, 2)
            at = content.find(signature, at + 1)
    pickled = content.find(b"\x80\x02")
    return found + list(range(pickled, max(pickled, content.find(b"PK", pickled))))


# -- files to damage ---------------------------------------------------------------------------------------


def _content() -> dict[str, Any]:
    base = torch.arange(12.0)
    half = torch.ones(3).half()
    return {"a": base, "b": base.view(3, 4).t(), "c": torch.arange(5), "d": [half, ("x", 1)], "e": 2**40}


def _zip_files() -> list[bytes]:
    records = saved_records(_content())
    sparse = {"s": torch.eye(3).to_sparse(), "p": torch.nn.Parameter(torch.ones(2))}
    return [
        save_bytes(_content()),
        save_bytes(sparse),
        write_zip(under("archive", records)),
        write_zip(under("archive", records), zip64_end=True),
        write_zip(under("m", [Record(r.name, r.data, deflate=True) for r in records])),
        write_zip(under("m", [Record(r.name, r.data, descriptor=True) for r in records])),
        write_zip(under("m", [Record(r.name, r.data, zip64=True) for r in records]), zip64_end=True),
        zip_of(program([tensor(storage())])),
    ]


def _legacy_files() -> list[bytes]:
    window = old_storage(6, "0", "FloatStorage", "cpu", ("1", 2, 3))
    two = program(
        [tensor(old_storage(6, "a")), tensor(old_storage(6, "b")), "text", tensor(old_storage(6, "a"))]
    )
    return [
        legacy_of(two, ("a", "b"), (struct.pack("<q", 6) + bytes(24)) * 2),
        legacy_of(program([tensor(old_storage())])),
        legacy_of(program([tensor(old_storage()), tensor(window, 0, (3,), (1,))])),
    ]


_SMALL = ("scalars", "metadata", "scrambled", "unaligned", "empties", "escaped_names", "only_metadata")


@fuzzed
@given(content=_damaged(_zip_files()))
def test_damaged_zips(path: Path, content: bytes) -> None:
    _judge(path, content)


@fuzzed
@given(content=_damaged(_legacy_files()))
def test_damaged_legacy_files(path: Path, content: bytes) -> None:
    _judge(path, content)


@fuzzed
@given(content=_damaged([SAFETENSORS[name]() for name in _SMALL]))
def test_damaged_safetensors(path: Path, content: bytes) -> None:
    _judge(path, content)


# -- headers made up ---------------------------------------------------------------------------------------

_NUMBERS: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, 2, 3, 4, 8, -1, True, False, 1.0, 2**31, 2**62, 2**63, 2**64, None, "1", []]
)
_DTYPES = st.sampled_from(["F32", "U8", "BOOL", "BF16", "F4", "F8_E8M0", "F6_E2M3", "f32", 7, None])
_ODD_ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": _DTYPES,
        "shape": st.lists(_NUMBERS, max_size=4) | _NUMBERS,
        "data_offsets": st.lists(_NUMBERS, max_size=3) | _NUMBERS,
        "more": _NUMBERS,
    },
)
_WIDTH = {"F32": 4, "U8": 1, "BOOL": 1, "BF16": 2, "I64": 8}


@st.composite
def _headers(draw: st.DrawFn) -> bytes:
    """A header whose tensors follow one another, as they have to, but for the odd one."""
    header: dict[str, Any] = {}
    position = 0
    for label in draw(st.lists(st.text(max_size=3), max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(list(_WIDTH))), draw(st.lists(st.integers(0, 4), max_size=3))
        stop = position + _WIDTH[dtype] * int(torch.Size(shape).numel())
        header[label] = {"dtype": dtype, "shape": shape, "data_offsets": [position, stop]}
        position = stop
    if draw(st.booleans()):
        label = draw(st.sampled_from([*header, "odd"]))
        header[label] = {**header.get(label, {}), **draw(_ODD_ENTRIES)}
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=2), st.text(max_size=2)) | _NUMBERS)
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    padding = b" " * draw(st.sampled_from((0, 0, 1, 7)))
    return framed(text + padding, bytes(position + draw(st.sampled_from((0, 0, 0, 1)))))


@fuzzed
@given(content=_headers())
def test_made_up_headers(path: Path, content: bytes) -> None:
    _judge(path, content)


# -- pickles made up ---------------------------------------------------------------------------------------

_SMALL_INTS = st.sampled_from([-1, 0, 1, 2, 3, 5, 6, 7, 24, 2**31 - 1, 2**31, 2**62, 2**63, 2**64])
_GLOBALS = st.sampled_from(
    [
        *itertools.product(["torch"], ["Size", "Tensor", "device", "float32", "FloatStorage", "FloatTensor"]),
        *itertools.product(["builtins", "__builtin__"], ["set", "bytearray", "complex", "getattr"]),
        *itertools.product(["collections"], ["OrderedDict", "Counter", "defaultdict"]),
        *itertools.product(
            ["torch._utils"],
            [
                "_rebuild_tensor",
                "_rebuild_tensor_v2",
                "_rebuild_tensor_v3",
                "_rebuild_parameter",
                "_rebuild_sparse_tensor",
                "_rebuild_qtensor",
                "_rebuild_meta_tensor_no_storage",
                "_rebuild_wrapper_subclass",
                "_rebuild_nested_tensor",
            ],
        ),
        ("_codecs", "encode"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.storage", "UntypedStorage"),
        ("torch.serialization", "_get_layout"),
        ("os", "system"),
    ]
).map(lambda pair: name(*pair))
_STORAGE_FIELDS = {
    "numel": st.just(6) | _SMALL_INTS,
    "key": st.sampled_from(["0", "0", "0", "1", "A"]),
    "kind": st.sampled_from(["FloatStorage", "FloatStorage", "ByteStorage", "UntypedStorage", "IntStorage"]),
    "location": st.sampled_from(["cpu", "cpu", "cpu", "meta", "cuda:0", "nowhere", ""]),
}


def _storages(old: bool) -> st.SearchStrategy[Code]:
    if not old:
        return st.builds(storage, **_STORAGE_FIELDS)
    views = st.none() | st.none() | st.tuples(st.sampled_from(["1", "0"]), _SMALL_INTS, _SMALL_INTS)
    return st.builds(old_storage, **_STORAGE_FIELDS, view=views)


def _values(old: bool) -> st.SearchStrategy[Any]:
    """Things to push: plain ones, storages, tensors, calls; and whatever holds them."""
    lengths = st.lists(st.sampled_from([0, 1, 2, 3]) | _SMALL_INTS, max_size=3).map(tuple)
    tensors = st.builds(tensor, st.builds(storage) if not old else st.builds(old_storage), _SMALL_INTS)
    strided = st.builds(tensor, _storages(old), st.integers(-1, 7), lengths, lengths)
    plain = st.none() | st.booleans() | _SMALL_INTS | st.sampled_from(["", "0", "cpu", "☃", "hex", "latin1"])
    whole = st.builds(tensor, st.builds(old_storage if old else storage))
    leaves = plain | _GLOBALS | _storages(old) | tensors | strided | whole
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.builds(lambda f, args: call(f, *args), _GLOBALS, st.lists(inner, max_size=4))
        ),
        max_leaves=8,
    )


_RAW = st.sampled_from(
    [
        *(
            code.encode("latin-1")
            for code in "().0123NRQabdeltsuo2\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x94"
        ),
        *(b"q\0", b"q\1", b"h\0", b"h\1", b"r\1\0\0\0", b"j\1\0\0\0", b"p1\n", b"g1\n", b"K\1", b"M\1\1"),
        *(
            b"}",
            b"]",
            b")",
            b"I01\n",
            b"L5L\n",
            b"U\1a",
            b"U\1\xff",
            b"C\1a",
            b"\x8c\1a",
            b"\x8a\1\5",
            b"F1.5\n",
        ),
        *(
            b"X\1\0\0\0a",
            b"G" + struct.pack(">d", 1.5),
            b"\x80\2",
            b"\x80\4",
            b"\x95" + bytes(8),
            b"V\\u0061\n",
        ),
    ]
).map(Code)


def _programs(old: bool) -> st.SearchStrategy[bytes]:
    steps = st.lists(_values(old) | _RAW | _RAW, min_size=1, max_size=12)
    listed = st.lists(_values(old), max_size=4)
    return st.builds(lambda values: program(*values), steps) | st.builds(program, listed)


@fuzzed
@given(content=_programs(old=False).map(zip_of))
def test_made_up_pickles(path: Path, content: bytes) -> None:
    _judge(path, content)


@fuzzed
@given(pickled=_programs(old=True), keys=st.sampled_from([("0",), (), ("0", "1"), ("0", "0"), (0,)]))
def test_made_up_legacy_pickles(path: Path, pickled: bytes, keys: tuple[Any, ...]) -> None:
    _judge(path, legacy_of(pickled, keys, (struct.pack("<q", 6) + bytes(24)) * len(keys)))


@fuzzed
@given(
    value=st.recursive(st.none() | st.integers() | st.text(max_size=3) | st.floats(), st.lists, max_leaves=9)
)
def test_plain_values(path: Path, value: Any) -> None:
    """What is undamaged loads, always."""
    path.write_bytes(zip_of(pickle.dumps(value, protocol=2)))
    with quiet():
        assert_same(torchwick.load(path), torch.load(path))


def test_push_and_program_agree_with_pickle() -> None:
    assert pickle.loads(program([1, (2, "x"), None, True, 2**40])) == [1, (2, "x"), None, True, 2**40]
    assert push(Code(b"N")) == b"N"
