"""`save` writes what torch and safetensors read: every bit, straight from memory, all of it or nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchwick
from checkpoints import ODD_CHECKPOINTS, SAFETENSORS
from checkpoints.base import quiet, save_bytes
from checkpoints.tensors import every_bit
from conftest import run_python
from oracle import assert_same
from test_checkpoint import bits, nested
from torchwick import Progress, SaveReport
from torchwick.formats.dtypes import DTYPES, SAFETENSORS_BITS, DType
from torchwick.formats.torch_zip import derive_layout, read_archive
from torchwick.saving.files import ArchiveFile
from torchwick.saving.pickled import pickled
from torchwick.saving.shared import find_shared, find_ties

_LOADABLE = {
    case.name: case
    for case in ODD_CHECKPOINTS
    if case.loads and case.map_location is None and "meta" not in case.name
}
_ID = "archive/.data/serialization_id"


def names(folder: Path) -> list[str]:
    """What is in a directory, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def assert_alike(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Both have the same tensors, in whatever order."""
    assert_same(dict(sorted(actual.items())), dict(sorted(expected.items())), storages=False)


# -- torch's format ----------------------------------------------------------------------------------------


def assert_as_torch(data: bytes, value: Any) -> None:
    """The archive is what torch.save writes, byte for byte but for what identifies it."""
    theirs = save_bytes(value)
    ours, judge = zipfile.ZipFile(io.BytesIO(data)), zipfile.ZipFile(io.BytesIO(theirs))
    assert ours.testzip() is None
    assert [(info.filename, info.header_offset, info.file_size) for info in ours.infolist()] == [
        (info.filename, info.header_offset, info.file_size) for info in judge.infolist()
    ]
    assert len(data) == len(theirs)
    end = ours.getinfo(_ID).header_offset
    assert data[:end] == theirs[:end]
    assert ours.read(_ID).isdigit()
    assert len(ours.read(_ID)) == 40


@pytest.mark.parametrize("name", _LOADABLE)
def test_whatever_torch_loads(name: str, tmp_path: Path) -> None:
    case, path, new = _LOADABLE[name], tmp_path / "old.pt", tmp_path / "new.pt"
    case.build(path)
    with case.setting():
        value = torch.load(path, **case.options)
        try:
            save_bytes(value)
        except Exception as error:  # noqa: BLE001 - whatever it is
            with pytest.raises(type(error)):
                torchwick.save(value, new)
            assert names(tmp_path) == ["old.pt"]
            return
        report = torchwick.save(value, new)
        assert report.size == new.stat().st_size
        assert_as_torch(new.read_bytes(), value)
        assert_same(
            torch.load(new, **case.options), torch.load(io.BytesIO(save_bytes(value)), **case.options)
        )
        assert_same(torch.load(new, **case.options, mmap=True), torch.load(new, **case.options))
        assert_same(torchwick.load(new, **case.options), torch.load(new, **case.options))


@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_views_and_ties(data: st.DataObject, tmp_path: Path) -> None:
    value = data.draw(nested(data.draw(st.sampled_from([torch.float32, torch.int16, torch.complex64]))))
    torchwick.save(value, tmp_path / "new.pt")
    assert_as_torch((tmp_path / "new.pt").read_bytes(), value)
    assert_same(torch.load(tmp_path / "new.pt"), torch.load(io.BytesIO(save_bytes(value))))


@pytest.mark.parametrize("name", [dtype.torch for dtype in DTYPES.values() if dtype.torch])
def test_dtypes(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    with quiet():  # torch finds complex32 experimental
        state = {"w": every_bit(dtype, 64), "empty": torch.empty(0, 3, dtype=dtype)}
        torchwick.save(state, tmp_path / "new.pt")
        loaded = torch.load(tmp_path / "new.pt")
    assert {key: (t.dtype, bits(t)) for key, t in loaded.items()} == {
        key: (t.dtype, bits(t)) for key, t in state.items()
    }


def test_conjugated_and_negated_views(tmp_path: Path) -> None:
    wave = torch.randn(6, dtype=torch.complex64)
    state = {"conj": wave.conj(), "neg": wave.clone().conj().imag, "wave": wave}
    torchwick.save(state, tmp_path / "new.pt")
    assert_same(torch.load(tmp_path / "new.pt"), torch.load(io.BytesIO(save_bytes(state))))
    plain = {"conj": wave.conj(), "neg": wave.clone().conj().imag}
    torchwick.save(plain, tmp_path / "new.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(loaded[key], tensor.resolve_conj()) for key, tensor in plain.items())


class _Sparse:
    """A file on the disk in which long stretches are holes."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write(self, data: memoryview | bytes) -> None:
        if len(data) >= 1 << 20:
            self.file.seek(len(data), os.SEEK_CUR)
        else:
            self.file.write(data)


@pytest.mark.parametrize("sizes", [(5 << 30, 100, 0), (3 << 30, 3 << 30, 77), ((1 << 32) - 1, 1)])
def test_numbers_beyond_32_bits(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Storages of 4 GiB and more, and those behind them, lie where torch's own writer puts them."""
    value = [torch.empty(size, dtype=torch.uint8) for size in sizes]  # memory that is never touched
    theirs, new = tmp_path / "archive", tmp_path / "new.pt"
    with torch.serialization.skip_data():
        torch.save(value, theirs)
    drafted = pickled(value, new)
    file = ArchiveFile("new.pt", drafted.data, {key: s.nbytes for key, s in drafted.storages.items()})
    zeros = memoryview(bytes(1 << 24))
    sink = _Sparse(new)
    file.write(sink, ([zeros[: size - at] for at in range(0, size, 1 << 24)] for size in sizes))
    sink.file.close()
    assert new.stat().st_size == file.size == theirs.stat().st_size
    assert starts(new) == starts(theirs)
    assert [len(tensor) for tensor in torch.load(new, mmap=True)] == list(sizes)
    with zipfile.ZipFile(new) as archive:
        assert archive.read("archive/version") == b"3\n"
        assert archive.getinfo("archive/data/0").file_size == sizes[0]


def starts(path: Path) -> dict[str, int]:
    """Where the records of an archive begin."""
    with path.open("rb") as file:

        def read(start: int, stop: int) -> memoryview:
            file.seek(start)
            return memoryview(file.read(stop - start))

        layout = derive_layout(read_archive(read, path.stat().st_size, path))
    assert layout is not None
    return layout.starts


def test_what_has_no_values(tmp_path: Path) -> None:
    meta = {"w": torch.empty(3, device="meta")}
    for name in ("new.pt", "new.safetensors"):
        with pytest.raises(torchwick.FormatError, match="no values"):
            torchwick.save(meta, tmp_path / name)
    with FakeTensorMode():
        fake = {"w": torch.empty(3)}
    with pytest.raises(torchwick.FormatError, match="of its own"):
        torchwick.save(fake, tmp_path / "new.safetensors")
    assert names(tmp_path) == []


def test_metadata_are_texts_and_for_safetensors(tmp_path: Path) -> None:
    numbers: Any = {"epoch": 3}
    with pytest.raises(TypeError, match="the int 3"):
        torchwick.save({"w": torch.ones(2)}, tmp_path / "new.safetensors", metadata=numbers)
    with pytest.raises(ValueError, match="safetensors"):
        torchwick.save({"w": torch.ones(2)}, tmp_path / "new.pt", metadata={"epoch": "3"})
    assert names(tmp_path) == []


# -- safetensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAFETENSORS)
def test_whatever_safetensors_loads(name: str, tmp_path: Path) -> None:
    path, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    path.write_bytes(SAFETENSORS[name]())
    state = safetensors.torch.load_file(path)
    report = torchwick.save(state, new, metadata=metadata(path))
    assert_alike(safetensors.torch.load_file(new), safetensors.torch.load_file(path))
    assert_alike(torchwick.load(new), safetensors.torch.load_file(path))
    assert metadata(new) == {"format": "pt"} | metadata(path)
    assert (report.format, report.tensors) == ("safetensors", len(state))
    assert report.size == report.files[0].size == new.stat().st_size


def described(path: Path) -> dict[str, tuple[str, list[int]]]:
    """What a header says of tensors."""
    said = header(path)
    return {name: (said[name]["dtype"], said[name]["shape"]) for name in said if name != "__metadata__"}


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.torch and dtype.name != "F4"])
def test_each_dtype_as_safetensors_has_it(dtype: DType, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    with quiet():
        values = every_bit(getattr(torch, dtype.torch), 64)
        state = {"w": values, "scalar": values[3].clone()}
        if dtype.name not in SAFETENSORS_BITS:
            with pytest.raises(torchwick.FormatError, match=dtype.torch):
                torchwick.save(state, ours)
            return
        torchwick.save(state, ours)
        safetensors.torch.save_file(state, theirs, {"format": "pt"})
        loaded = torchwick.load(ours)
    assert described(ours) == described(theirs)
    assert {key: bits(tensor) for key, tensor in loaded.items()} == {k: bits(t) for k, t in state.items()}


def test_wide_elements_come_first_and_else_the_order_is_the_callers(tmp_path: Path) -> None:
    state = {
        "z": torch.ones(3, dtype=torch.int8),
        "y": torch.ones(3),
        "b": torch.ones(2).long(),
        "a": torch.ones(5),
    }
    torchwick.save(state, tmp_path / "new.safetensors")
    with safetensors.safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.offset_keys() == ["b", "y", "a", "z"]


def test_strided_tensors_become_contiguous(tmp_path: Path) -> None:
    base = torch.arange(3 * 5_000_000, dtype=torch.int32)
    state = {"rows": base.clone().view(3, -1)[:, 1:], "flat": base.clone()[::2], "t": base.view(-1, 3).t()}
    state["expanded"] = torch.ones(1).expand(70)
    torchwick.save(state, tmp_path / "new.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (torch.ones(2), "not a Tensor"),
        ([torch.ones(2)], "not a list"),
        ({"model": {"w": torch.ones(2)}}, "'model' is a dict"),
        ({"w": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
        ({3: torch.ones(2)}, "the int 3"),
    ],
)
def test_what_safetensors_has_no_place_for(state: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=says) as caught:
        torchwick.save(state, tmp_path / "new.safetensors")
    assert "ends in .pt" in str(caught.value)
    torchwick.save(state, tmp_path / "new.pt")
    assert names(tmp_path) == ["new.pt"]


def test_sparse_and_quantized_tensors(tmp_path: Path) -> None:
    with quiet():
        states = {
            "sparse": torch.eye(3).to_sparse(),
            "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        }
        for says, tensor in states.items():
            with pytest.raises(torchwick.FormatError, match=f"{says[:6]}|qint8"):
                torchwick.save({"w": tensor}, tmp_path / "new.safetensors")
    assert names(tmp_path) == []


def test_names_and_texts_that_no_header_holds(tmp_path: Path) -> None:
    for name in ("__metadata__", "half \ud800"):
        with pytest.raises(torchwick.FormatError):
            torchwick.save({name: torch.ones(2)}, tmp_path / "new.safetensors")
    torchwick.save({}, tmp_path / "new.safetensors", metadata={"licence": "naïve ☃"})
    assert metadata(tmp_path / "new.safetensors")["licence"] == "naïve ☃"


# -- ties --------------------------------------------------------------------------------------------------


@hypothesis.given(data=st.data())
def test_shared_memory_is_found_as_safetensors_finds_it(data: st.DataObject) -> None:
    bases = [torch.arange(12.0), torch.arange(6.0)]
    state = {}
    for name in data.draw(st.lists(st.text("abcd", min_size=1, max_size=2), unique=True, max_size=6)):
        base = data.draw(st.sampled_from(bases))
        first, last = sorted(data.draw(st.tuples(st.integers(0, len(base)), st.integers(0, len(base)))))
        state[name] = base[first:last]
    groups = [sorted(group) for group in safetensors.torch._find_shared_tensors(state)]
    assert find_shared(state) == sorted(group for group in groups if len(group) > 1)
    shared = {
        name: tensor for name, tensor in state.items() if [name] not in groups
    }  # of one, it would complain
    try:
        removed = safetensors.torch._remove_duplicate_names(shared)
    except RuntimeError:
        with pytest.raises(torchwick.FormatError, match="none of them covers"):
            find_ties(state, "new")
        return
    assert find_ties(state, "new") == {other: kept for kept, others in removed.items() for other in others}


class Tied(nn.Module):
    """Weights under two names, in a buffer too."""

    def __init__(self) -> None:
        super().__init__()
        self.z_embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.z_embedding.weight
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("table", torch.arange(24.0).view(4, 6).t())


def test_tied_weights_are_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(torchwick.FormatError, match=r"'head.weight', 'z_emb.*save_model") as caught:
        torchwick.save(Tied().state_dict(), tmp_path / "new.safetensors")
    assert "clone" in str(caught.value)
    assert names(tmp_path) == []


def test_a_model_is_saved_as_safetensors_saves_it(tmp_path: Path) -> None:
    model, ours, theirs = Tied(), tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    report = torchwick.save_model(model, ours, metadata={"epoch": "3"})
    safetensors.torch.save_model(model, str(theirs), {"format": "pt", "epoch": "3"})
    assert metadata(ours) == metadata(theirs)
    assert metadata(ours)["z_embedding.weight"] == "head.weight"
    assert_alike(safetensors.torch.load_file(ours), safetensors.torch.load_file(theirs))
    assert report.tensors == len(model.state_dict()) - 1
    other = Tied()
    assert [*map(len, safetensors.torch.load_model(other, ours))] == [0, 0]
    assert other.head.weight is other.z_embedding.weight
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_in_shards_and_as_torch_has_it(tmp_path: Path) -> None:
    model = Tied()
    torchwick.save_model(model, tmp_path / "dir", max_shard_size=500)
    loaded = torchwick.load(f"{tmp_path}/dir/")
    assert loaded.keys() == model.state_dict().keys() - {"z_embedding.weight"}
    torchwick.save_model(model, tmp_path / "new.pt")
    assert_same(torch.load(tmp_path / "new.pt"), torch.load(io.BytesIO(save_bytes(model.state_dict()))))


def test_one_line_to_move(tmp_path: Path) -> None:
    state, path = {"w": torch.randn(3, 2), "n": torch.tensor(3)}, tmp_path / "new.safetensors"
    torchwick.save_file(state, path, {"epoch": "3"})
    assert metadata(path) == {"format": "pt", "epoch": "3"}
    assert_alike(torchwick.load_file(path), safetensors.torch.load_file(path))
    assert_alike(torchwick.load_file(path, device="cpu"), safetensors.torch.load_file(path))
    with pytest.raises(ValueError, match="safetensors"):
        torchwick.save_file(state, tmp_path / "new.pt")
    torchwick.save(state, tmp_path / "new.pt")
    with pytest.raises(torchwick.FormatError, match="torch zip"):
        torchwick.load_file(tmp_path / "new.pt")


# -- directories -------------------------------------------------------------------------------------------

_LAYERS = {f"layer.{n}.weight": torch.full((100,), float(n)) for n in range(10)} | {"large": torch.ones(1000)}
_NEWER = {name: tensor + 1 for name, tensor in _LAYERS.items()}


def test_shards(tmp_path: Path) -> None:
    report = torchwick.save(_LAYERS, tmp_path / "new", max_shard_size="1.2KB", metadata={"epoch": "3"})
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    written = [Path(file.uri).name for file in report.files]
    assert written[-1] == "model.safetensors.index.json"
    assert sorted(written) == names(tmp_path / "new")
    generation = written[0].split("-")[1]
    assert len(bytes.fromhex(generation)) == 4
    assert written[:-1] == [f"model-{generation}-{n:05}-of-00005.safetensors" for n in range(1, 6)]
    assert index["metadata"] == {"total_size": 8000}
    found: dict[str, torch.Tensor] = {}
    for file in report.files[:-1]:
        assert metadata(Path(file.uri)) == {"format": "pt", "epoch": "3"}
        found |= safetensors.torch.load_file(file.uri)
    assert_alike(found, _LAYERS)
    assert_alike(torchwick.load(f"{tmp_path}/new/"), _LAYERS)
    assert report.tensors == len(_LAYERS)


def test_the_tensors_of_a_shard_are_neighbours(tmp_path: Path) -> None:
    """Shards are filled in the caller's order, whatever the dtypes: a layer is not torn apart."""
    state = {
        f"layer.{n}.{part}": torch.ones(100, dtype=dtype)
        for n in range(4)
        for part, dtype in (("weight", torch.float32), ("mask", torch.uint8))
    }
    report = torchwick.save(state, f"{tmp_path}/new/", max_shard_size=1000)
    with safetensors.safe_open(report.files[0].uri, "pt") as file:
        assert file.offset_keys() == ["layer.0.weight", "layer.1.weight", "layer.0.mask", "layer.1.mask"]


def test_every_save_has_its_own_shards_and_the_index_decides(tmp_path: Path) -> None:
    torchwick.save(_LAYERS, tmp_path / "new", max_shard_size=1200)
    before = names(tmp_path / "new")
    report = torchwick.save(_NEWER, tmp_path / "new", max_shard_size=1200)
    assert report.deleted == ()
    assert len(names(tmp_path / "new")) == 2 * len(before) - 1
    assert_alike(torchwick.load(f"{tmp_path}/new/"), _NEWER)
    with torchwick.open(f"{tmp_path}/new") as ckpt:
        assert set(ckpt) == set(_NEWER)
    (tmp_path / "new" / "config.json").write_text("{}")
    report = torchwick.save(_LAYERS, tmp_path / "new", max_shard_size=1200, delete_replaced=True)
    replaced = {Path(uri).name for uri in report.deleted}
    assert len(replaced) == 5
    written = {Path(file.uri).name for file in report.files}
    assert set(names(tmp_path / "new")) == set(before) | written | {"config.json"}
    assert_alike(torchwick.load(f"{tmp_path}/new/"), _LAYERS)


@pytest.mark.parametrize("size", [None, "1MB", 8000])
def test_a_directory_of_one_file(size: str | int | None, tmp_path: Path) -> None:
    report = torchwick.save(_LAYERS, f"{tmp_path}/v1.2/", max_shard_size=size)
    assert names(tmp_path / "v1.2") == ["model.safetensors"]
    assert report.uri == f"{tmp_path}/v1.2/"


@pytest.mark.parametrize(("first", "then"), [(None, 1200), (1200, None)], ids=["to-shards", "to-one"])
def test_no_stale_model_stays_unnoticed(first: int | None, then: int | None, tmp_path: Path) -> None:
    new = f"{tmp_path}/new/"
    torchwick.save(_LAYERS, new, max_shard_size=first)
    before = names(tmp_path / "new")
    with pytest.raises(torchwick.ObjectExistsError, match="delete_replaced=True"):
        torchwick.save(_NEWER, new, max_shard_size=then)
    assert names(tmp_path / "new") == before
    report = torchwick.save(_NEWER, new, max_shard_size=then, delete_replaced=True)
    assert sorted(Path(uri).name for uri in report.deleted) == before
    assert names(tmp_path / "new") == sorted(Path(file.uri).name for file in report.files)
    assert_alike(torchwick.load(new), _NEWER)


def test_an_index_deletes_nothing_beside_its_own(tmp_path: Path) -> None:
    """Names that lead elsewhere are left alone, as are files that are no tensors."""
    new = tmp_path / "new"
    new.mkdir()
    for name in ("mine.txt", "model-00001-of-00001.safetensors"):
        (new / name).write_text("x")
    (tmp_path / "other.safetensors").write_text("mine")
    weights = {"a": "../other.safetensors", "b": "mine.txt", "c": "model-00001-of-00001.safetensors"}
    (new / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    torchwick.save(_LAYERS, new, delete_replaced=True)
    assert names(new) == ["mine.txt", "model.safetensors"]
    assert (tmp_path / "other.safetensors").read_text() == "mine"


def test_sizes_and_places_that_make_no_sense(tmp_path: Path) -> None:
    for name in ("new.safetensors", "new.pt"):
        with pytest.raises(ValueError, match="end the destination in a slash"):
            torchwick.save(_LAYERS, tmp_path / name, max_shard_size="1GB")
    with pytest.raises(ValueError, match="cannot read"):
        torchwick.save(_LAYERS, tmp_path / "new", max_shard_size="many")
    with pytest.raises(torchwick.URIError, match="not written to"):
        torchwick.save(_LAYERS, "https://host/new.safetensors")
    with pytest.raises(torchwick.URIError, match="versionId"):
        torchwick.save(_LAYERS, "s3://models/new.safetensors?versionId=3")
    with pytest.raises(torchwick.ObjectNotFoundError, match="Make the directory"):
        torchwick.save(_LAYERS, tmp_path / "no" / "such" / "new.pt")


# -- all or nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new.pt", "new.safetensors", "new/"])
def test_what_is_there_is_replaced_unless_it_is_not_to_be(name: str, tmp_path: Path) -> None:
    uri = f"{tmp_path}/{name}"
    torchwick.save(_LAYERS, uri)
    with pytest.raises(torchwick.ObjectExistsError, match="overwrite=True"):
        torchwick.save(_NEWER, uri, overwrite=False)
    assert_alike(torchwick.load(uri), _LAYERS)
    torchwick.save(_NEWER, uri)
    assert_alike(torchwick.load(uri), _NEWER)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["new.pt", "new.safetensors"])
def test_an_error_leaves_what_was_there(error: type[BaseException], name: str, tmp_path: Path) -> None:
    torchwick.save(_LAYERS, tmp_path / name)

    def fail(progress: Progress) -> None:
        if progress.fraction == 1:
            raise error

    with pytest.raises(error):
        torchwick.save(_NEWER, tmp_path / name, progress=fail)
    assert names(tmp_path) == [name]
    assert_alike(torchwick.load(tmp_path / name), _LAYERS)


def test_an_object_that_cannot_be_pickled(tmp_path: Path) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        torchwick.save({"w": torch.ones(2), "f": lambda: None}, tmp_path / "new.pt")
    assert names(tmp_path) == []


def test_progress_and_report(tmp_path: Path) -> None:
    told: list[Progress] = []
    reports: list[SaveReport] = []
    report = torchwick.save(_LAYERS, tmp_path / "new.pt", progress=told.append, on_report=reports.append)
    assert reports == [report]
    assert told[-1].done == told[-1].total == report.size == (tmp_path / "new.pt").stat().st_size
    assert report.to_dict()["files"][0]["tensors"] == len(_LAYERS)
    assert json.loads(json.dumps(report.to_dict()))["format"] == "torch zip"


def test_nothing_is_copied_but_slices(tmp_path: Path) -> None:
    """300 MB of a plain model, of a strided one and of torch's format, in a few slices of memory."""
    script = (
        "import re, sys, torch, torchwick, torchwick.saving.job\n"
        "state = {f'w{n}': torch.full((5_000_000,), float(n)) for n in range(15)}\n"
        "t = torch.ones(5000, 15000).t()\n"
        "def peak():\n"  # not ru_maxrss, which begins with that of the process that forked this one
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "before = peak()\n"
        "torchwick.save(state, 'new.safetensors')\n"
        "torchwick.save(state, 'new.pt')\n"
        "torchwick.save({'t': t}, 'strided.safetensors')\n"
        "print(peak() - before)\n"
    )
    grown = int(run_python(f"import os; os.chdir({str(tmp_path)!r})\n{script}"))
    assert grown < 3 * (16 << 20) + 16e6, f"{grown:,} bytes"
