"""Files that lie are refused: with a reason, in little time, and without the memory they claim."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

import torchwick
from checkpoints import HOSTILE
from checkpoints.assembly import Code, name, program, storage, tensor, zip_of, zip_records
from checkpoints.base import save_bytes
from checkpoints.safetensors import framed
from checkpoints.zipcraft import write_zip
from conftest import run_python
from oracle import assert_same
from torchwick import FormatError
from torchwick.formats.instructions import check_instructions
from torchwick.formats.pickles import look_into
from torchwick.formats.safetensors import read_catalog
from torchwick.formats.torch_legacy import read_legacy
from torchwick.formats.torch_zip import read_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONGEST_MESSAGE = 1000
PATIENCE = 5.0  # seconds for any one of the files; most take milliseconds
SPARE_MEMORY = 384 << 20  # bytes a process may take beyond what it has: the smallest lie claims a gigabyte


@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused(case: str, tmp_path: Path) -> None:
    path, attack = tmp_path / "model.pt", HOSTILE[case]
    path.write_bytes(attack.build())
    began = time.monotonic()
    with pytest.raises(FormatError) as caught:
        torchwick.load(path)
    assert time.monotonic() - began < PATIENCE
    message = str(caught.value)
    assert str(path) in message
    assert attack.says in message
    assert len(message) - len(str(path)) < LONGEST_MESSAGE
    assert caught.value.hint is not None
    message.encode()  # it can be printed


_LOAD_ALL = """
import pathlib, resource, sys
import torch, torchwick

torchwick.load(pathlib.Path(sys.argv[1], "good"))  # whatever is loaded lazily, is loaded now
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        torchwick.load(path)
    except torchwick.FormatError as error:
        if "allocate" in str(error):
            print(path.name, error)
    except BaseException as error:
        print(path.name, type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit on addresses")
def test_no_size_is_believed(tmp_path: Path) -> None:
    """Each of the files in a process that has no memory to spare."""
    for case, attack in HOSTILE.items():
        (tmp_path / case).write_bytes(attack.build())
    (tmp_path / "good").write_bytes(zip_of(program([tensor(storage())])))
    assert run_python(_LOAD_ALL, str(tmp_path), str(SPARE_MEMORY)) == ""


@pytest.mark.parametrize("case", HOSTILE)
def test_no_tensor_comes_of_looking_inside(case: str, tmp_path: Path) -> None:
    """Only headers are read at first, so that some lies come out when tensors are asked for."""
    path = tmp_path / "model.pt"
    path.write_bytes(HOSTILE[case].build())
    began = time.monotonic()
    read: dict[str, torch.Tensor] = {}
    with contextlib.suppress(FormatError), torchwick.open(path) as ckpt:
        for name_ in ckpt:  # one by one: what is refused of one must not hide another
            with contextlib.suppress(FormatError):
                read[name_] = ckpt[name_]
    assert not read
    assert time.monotonic() - began < PATIENCE


_UNFOLDED = """
import pathlib, resource, sys, time
import torch, torchwick

with torchwick.open(pathlib.Path(sys.argv[1], "good")) as ckpt:
    ckpt.read()  # whatever is loaded lazily, is loaded now
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    began = time.monotonic()
    try:
        with torchwick.open(path) as ckpt:
            ckpt.read()
    except torchwick.FormatError as error:
        if "allocate" in str(error) or len(str(error)) > 1500:
            print(path.name, str(error)[:200])
    except BaseException as error:
        print(path.name, type(error).__name__)
    if time.monotonic() - began > 20:
        print(path.name, "took too long")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit on addresses")
def test_looking_inside_believes_no_size(tmp_path: Path) -> None:
    """The same files, and containers that unfold to far more than they are, with no memory to spare."""
    for case, attack in HOSTILE.items():
        (tmp_path / case).write_bytes(attack.build())
    (tmp_path / "good").write_bytes(zip_of(program([tensor(storage())])))
    lists: Any = torch.ones(2)
    dicts: Any = torch.ones(2)
    for _ in range(40):
        lists = [lists] * 10
        dicts = {"a" * 1000: dicts, "b": dicts}
    unfolding = {"lists": lists, "dicts": dicts, "name": {"n" * 20_000_000: torch.ones(1)}}
    for name_, value in unfolding.items():
        (tmp_path / f"unfolding_{name_}").write_bytes(save_bytes(value))
    assert run_python(_UNFOLDED, str(tmp_path), str(SPARE_MEMORY)) == ""


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_beyond_the_object_is_read(case: str) -> None:
    content = HOSTILE[case].build()

    def read(start: int, stop: int) -> memoryview:
        assert 0 <= start <= stop <= len(content)
        return memoryview(content)[start:stop]

    parsers: dict[str, Callable[..., Any]] = {
        "safetensors": read_catalog,
        "zip": read_archive,
        "pickle": read_archive,
        "legacy": read_legacy,
    }
    with contextlib.suppress(FormatError):
        parsers[case.partition("_")[0]](read, len(content), "model.pt")


class TestOddButHonest:
    """What looks like a lie, and is none, still loads."""

    def test_lengths_beyond_memory_beside_a_zero(self, tmp_path: Path) -> None:
        entry = {"dtype": "F32", "shape": [0, 1 << 62, 4], "data_offsets": [0, 0]}
        path = tmp_path / "model.safetensors"
        path.write_bytes(framed(json.dumps({"t": entry}).encode()))
        assert_same(torchwick.load(path), safetensors.torch.load_file(path), storages=False)

    def test_padding_in_a_local_header(self, tmp_path: Path) -> None:
        content = bytearray(zip_of(program([tensor(storage())])))
        struct.pack_into("<H", content, content.index(b"archive/data/0") - 2, 8)
        struct.pack_into("<8s", content, content.index(b"archive/data/0") + 14, b"FB\4\0zzzz")
        self._loads_alike(tmp_path, bytes(content))

    def test_a_pickle_of_many_instructions(self, tmp_path: Path) -> None:
        self._loads_alike(tmp_path, zip_of(program(Code(b"](" + b"K\1" * 500_000 + b"e"))))

    def test_lists_nested_deeply(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        path.write_bytes(zip_of(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."))
        depth, value = 0, torchwick.load(path)
        while value:
            depth, value = depth + 1, value[0]
        assert depth == 99_999

    def test_one_tuple_in_many_places(self, tmp_path: Path) -> None:
        shared = tuple(range(625))  # as the states of generators are
        self._loads_alike(tmp_path, zip_of(pickle.dumps([shared] * 10_000, protocol=2)))

    def test_an_empty_view_past_the_end(self, tmp_path: Path) -> None:
        self._loads_alike(tmp_path, zip_of(program([tensor(storage(), 6, (0,), (1,))])))

    @staticmethod
    def _loads_alike(tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        assert_same(torchwick.load(path), torch.load(path))


class TestCompressed:
    def test_a_bomb_is_refused_by_the_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        held = zip_records(program([tensor(storage(1 << 20))]), s0=bytes(4 << 20))
        path.write_bytes(write_zip([replace(r, deflate=True) for r in held]))
        assert path.stat().st_size < 10_000
        with pytest.raises(torchwick.MemoryLimitError, match="unpack to"):
            torchwick.load(path, transfer=torchwick.TransferConfig(memory_limit="1MB"))
        assert_same(torchwick.load(path), torch.load(path))


class TestTheLookIsInert:
    def test_nothing_is_imported(self) -> None:
        before = set(sys.modules)
        value = name("antigravity", "fly"), name("no.such.module", "x")
        facts = look_into(io.BytesIO(program(*value)))
        assert facts.globals == ["antigravity.fly", "no.such.module.x"]
        assert set(sys.modules) == before

    @pytest.mark.parametrize(
        "attack",
        [
            b"cos\nsystem\nX\5\0\0\0false\x85R.",  # REDUCE
            b"cos\nsystem\nX\5\0\0\0false\x85\x81.",  # NEWOBJ
            b"(cos\nsystem\nX\5\0\0\0falseo.",  # OBJ
            b"(X\5\0\0\0falseios\nsystem\n.",  # INST
            b"cbuiltins\nobject\n)\x81}X\x09\0\0\0__class__Nsb.",  # BUILD with a state
            b"cbuiltins\nobject\n}X\x04\0\0\0nameNsb.",  # BUILD on the class itself
            b"\x8c\x02os\x8c\x06system\x93\x8c\x05false\x85R.",  # STACK_GLOBAL
        ],
    )
    def test_nothing_is_called(self, attack: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[str] = []
        monkeypatch.setattr(os, "system", called.append)
        assert look_into(io.BytesIO(b"\x80\x04" + attack)).globals
        assert called == []

    def test_what_it_cannot_follow_is_said(self) -> None:
        assert not look_into(io.BytesIO(program(Code(b"NK\1b")))).followed


class TestInstructions:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_whatever_python_pickles_is_read_to_its_end(self, protocol: int) -> None:
        shared = ("a", ("b",))
        value: list[Any] = [
            1,
            -1,
            2**40,
            2**3000,
            1.5,
            None,
            True,
            "x" * 300,
            "☃",
            b"y" * 300,
            bytearray(b"z"),
            shared,
        ]
        value += [
            bytearray(b"z"),
            shared,
            {"k": [shared]},
            {1, 2},
            frozenset([3]),
            (),
            (1, 2, 3, 4),
            int,
            ValueError("v"),
        ]
        data = pickle.dumps(value, protocol)
        assert check_instructions(data + b"more", 0, None, "model.pt") == len(data)

    def test_what_is_not_at_hand_may_yet_come(self) -> None:
        data = pickle.dumps(["text" * 100], protocol=2)
        for length in range(len(data)):
            with pytest.raises(EOFError):
                check_instructions(data[:length], 0, len(data), "model.pt")

    def test_a_legacy_file_is_read_no_further_than_it_must(self) -> None:
        """A text said to be larger than the object ends the reading at once."""
        reads: list[int] = []
        content = HOSTILE["legacy_magic_only_then_text"].build()

        def read(start: int, stop: int) -> memoryview:
            reads.append(stop)
            return memoryview(content)[start:stop]

        with pytest.raises(FormatError):
            read_legacy(read, len(content), "model.pt")
        assert reads == [256 << 10]
