"""`convert` writes what safetensors reads: every tensor exactly, all files or none, in flat memory."""

from __future__ import annotations

import json
import os
import signal
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save
from typer.testing import CliRunner

import torchwick
from checkpoints import ODD_CHECKPOINTS, SAFETENSORS
from checkpoints.base import save_bytes
from checkpoints.tensors import every_bit
from conftest import run_python
from test_checkpoint import bits, nested, tensors_of
from torchwick import Progress, TransferConfig
from torchwick.cli import app
from torchwick.formats.dtypes import DTYPES, SAFETENSORS_BITS
from torchwick.formats.safetensors import header, read_catalog
from torchwick.saving import Conversion, convert

if TYPE_CHECKING:
    from conftest import Put
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

_LOADABLE = {
    case.name: case
    for case in ODD_CHECKPOINTS
    if case.loads and case.map_location is None and not case.name.startswith("zip_duplicate")
}
_FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"]


def representable(path: Path) -> list[str]:
    """The names of those tensors of a checkpoint that safetensors has a dtype for."""
    with torchwick.open(path) as ckpt:
        return [name for name in ckpt if ckpt.info(name).dtype in SAFETENSORS_BITS]


def read(path: Path) -> dict[str, torch.Tensor]:
    """What safetensors itself reads from a file."""
    return safetensors.torch.load_file(path)


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def assert_written(path: Path, expected: dict[str, torch.Tensor], report: Conversion) -> None:
    """The file holds these tensors, bit for bit, those of other names under the ones that are kept."""
    found = read(path)
    for name, tensor in expected.items():
        written = found[report.ties.get(name, name)]
        assert (written.dtype, written.shape) == (tensor.dtype, tensor.shape), name
        assert bits(written) == bits(tensor), name
    assert report.tensors == len(found)
    assert report.files[0].size == path.stat().st_size


def names(folder: Path) -> list[str]:
    """What is in a directory, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


# -- what is written is what was there ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "copy_ties"),
    [(name, copies) for name in _LOADABLE for copies in (False, True) if name != "many_tensors" or copies],
)
def test_odd_checkpoint(name: str, copy_ties: bool, tmp_path: Path) -> None:
    case, path, new = _LOADABLE[name], tmp_path / "old.pt", tmp_path / "new.safetensors"
    case.build(path)
    with case.setting():
        expected = dict(tensors_of(torch.load(path, **case.options)))
    try:
        keys = representable(path)
    except torchwick.FormatError:
        return  # it can only be loaded as a whole
    if not keys:
        with pytest.raises(torchwick.FormatError, match="no tensor"):
            convert(path, new, keys=keys)
        return
    report = convert(path, new, keys=keys, copy_ties=copy_ties)
    shown = {key: expected[key] for key in keys if key in expected and not expected[key].is_meta}
    assert_written(new, shown, report)
    assert not (copy_ties and report.ties)
    assert_aligned(new)


@pytest.mark.parametrize("name", sorted(set(SAFETENSORS) - {"no_tensors", "only_metadata"}))
def test_safetensors(name: str, tmp_path: Path) -> None:
    path, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    path.write_bytes(SAFETENSORS[name]())
    report = convert(path, new)
    assert read(new).keys() == read(path).keys()
    assert_written(new, read(path), report)
    assert metadata(new) == {"format": "pt"} | metadata(path)


@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_views_and_ties(data: st.DataObject, tmp_path: Path) -> None:
    """Whatever shares storages comes out as tensors of their own, or as other names of the same one."""
    value = data.draw(nested(data.draw(st.sampled_from([torch.float32, torch.int16, torch.complex64]))))
    path, new = saved(tmp_path / "old.pt", value), tmp_path / "new.safetensors"
    expected = dict(tensors_of(torch.load(path)))
    hypothesis.assume(expected)
    report = convert(path, new, overwrite=True)
    assert_written(new, expected, report)
    assert report.tensors + len(report.ties) == len(expected)
    for other, kept in report.ties.items():
        one, two = expected[other], expected[kept]
        assert (one.data_ptr(), one.shape, one.stride()) == (two.data_ptr(), two.shape, two.stride())


def assert_aligned(path: Path) -> None:
    data = path.read_bytes()
    catalog = read_catalog(lambda start, stop: memoryview(data)[start:stop], len(data), path)
    for entry in catalog.entries.values():
        assert entry.pieces[0].start % max(1, SAFETENSORS_BITS[entry.dtype] // 8) == 0


def test_order(tmp_path: Path) -> None:
    """Wide elements first, and among alike ones the order of the source."""
    state = {
        "z": torch.ones(3, dtype=torch.int8),
        "y": torch.ones(3),
        "b": torch.ones(2, dtype=torch.int64),
        "a": torch.ones(5),
    }
    convert(saved(tmp_path / "old.pt", state), tmp_path / "new.safetensors")
    with safetensors.safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.offset_keys() == ["b", "y", "a", "z"]


def test_a_strided_tensor_of_many_slices(tmp_path: Path) -> None:
    """More than is copied at once, in every way that rows can be larger or smaller than that."""
    base = torch.arange(3 * 5_000_000, dtype=torch.int32)
    state = {"rows": base.view(3, -1)[:, 1:], "flat": base[::2], "columns": base.view(-1, 3).t()}
    report = convert(saved(tmp_path / "old.pt", state), tmp_path / "new.safetensors")
    assert_written(tmp_path / "new.safetensors", state, report)


# -- dtypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", _FLOATS)
def test_cast(to: str, tmp_path: Path) -> None:
    state = {name: every_bit(getattr(torch, name)) for name in _FLOATS} | {
        "int64": every_bit(torch.int64),
        "bool": torch.tensor([True, False]),
        "complex64": every_bit(torch.complex64),
        "large": torch.randn(5_000_001),
        "transposed": torch.randn(30, 20).t(),
    }
    path, new = saved(tmp_path / "old.pt", state), tmp_path / "new.safetensors"
    dtype = getattr(torch, to)
    report = convert(path, new, dtype=dtype)
    expected = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    assert_written(new, expected, report)
    changed = [tensor for tensor in state.values() if tensor.is_floating_point() and tensor.dtype != dtype]
    assert sum(report.casts.values()) == len(changed)
    assert report.dtype is not None
    assert DTYPES[report.dtype].torch == to


@pytest.mark.parametrize("spelt", ["bf16", "bfloat16", "BF16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_has_many_names(spelt: Any, tmp_path: Path) -> None:
    convert(saved(tmp_path / "old.pt", {"w": torch.ones(2)}), tmp_path / "new.safetensors", dtype=spelt)
    assert read(tmp_path / "new.safetensors")["w"].dtype == torch.bfloat16


@pytest.mark.parametrize("spelt", ["int8", "complex64", "bf61", "", torch.int64])
def test_what_is_no_dtype_to_cast_to(spelt: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose one of .*bfloat16") as caught:
        convert(saved(tmp_path / "old.pt", {"w": torch.ones(2)}), tmp_path / "new.safetensors", dtype=spelt)
    assert "float8_e4m3fn" in str(caught.value)


def test_a_dtype_that_safetensors_has_not(tmp_path: Path) -> None:
    state = {"wave": torch.ones(2, dtype=torch.complex128), "w": torch.ones(2)}
    path, new = saved(tmp_path / "old.pt", state), tmp_path / "new.safetensors"
    with pytest.raises(torchwick.FormatError, match=r"'wave' is complex128.*keys="):
        convert(path, new)
    assert not new.exists()
    assert convert(path, new, keys="w").tensors == 1


# -- ties --------------------------------------------------------------------------------------------------


def tied() -> nn.ModuleDict:
    embedding, head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
    head.weight = embedding.weight
    return nn.ModuleDict({"z_embedding": embedding, "head": head, "norm": nn.BatchNorm1d(8)})


def test_ties_are_told_as_safetensors_tells_them(tmp_path: Path) -> None:
    model, other = tied(), tied()
    report = convert(saved(tmp_path / "old.pt", model.state_dict()), tmp_path / "new.safetensors")
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"))
    theirs = metadata(tmp_path / "theirs.safetensors")
    assert metadata(tmp_path / "new.safetensors") == {"format": "pt"} | theirs
    assert report.ties == theirs == {"z_embedding.weight": "head.weight"}
    assert read(tmp_path / "new.safetensors").keys() == read(tmp_path / "theirs.safetensors").keys()
    missing, unexpected = safetensors.torch.load_model(other, tmp_path / "new.safetensors")
    assert not missing
    assert not unexpected
    assert other["head"].weight is other["z_embedding"].weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.parametrize("theirs", [False, True], ids=["torch", "save_model"])
def test_copies_of_ties(theirs: bool, tmp_path: Path) -> None:
    model, path = tied(), tmp_path / "old"
    if theirs:
        safetensors.torch.save_model(model, str(path))
    else:
        torch.save(model.state_dict(), path)
    report = convert(path, tmp_path / "new.safetensors", copy_ties=True)
    assert_written(tmp_path / "new.safetensors", model.state_dict(), report)
    assert (report.ties, metadata(tmp_path / "new.safetensors")) == ({}, {"format": "pt"})


def test_ties_of_the_source_stay(tmp_path: Path) -> None:
    safetensors.torch.save_model(tied(), str(tmp_path / "old.safetensors"), {"format": "pt", "epoch": "3"})
    report = convert(tmp_path / "old.safetensors", tmp_path / "new.safetensors", rename={"": "net."})
    assert report.ties == {"net.z_embedding.weight": "net.head.weight"}
    expected = {"format": "pt", "epoch": "3", **report.ties}
    assert metadata(tmp_path / "new.safetensors") == expected
    convert(tmp_path / "old.safetensors", tmp_path / "norm.safetensors", keys="norm.*")
    assert metadata(tmp_path / "norm.safetensors") == {"format": "pt", "epoch": "3"}


# -- which tensors, and what they are called ---------------------------------------------------------------


def test_keys_names_and_what_is_left_out(tmp_path: Path) -> None:
    state = {"model": {"a": torch.ones(2), "b": torch.zeros(3)}, "step": torch.tensor(7), "lr": 0.5}
    path, new = saved(tmp_path / "old.pt", state), tmp_path / "new.safetensors"
    report = convert(path, new, keys=["model.*", "step"], rename={"model.": "", "step": "n"})
    assert read(new).keys() == {"a", "b", "n"}
    assert report.left_out == {"lr": "0.5"}
    with pytest.raises(torchwick.TensorNotFoundError):
        convert(path, tmp_path / "other.safetensors", keys="modell.*")
    with pytest.raises(ValueError, match="the name 'step'"):
        convert(path, tmp_path / "other.safetensors", rename={"model.a": "step"})
    with pytest.raises(ValueError, match="begins with 'modell'"):
        convert(path, tmp_path / "other.safetensors", rename={"modell": ""})


def test_metadata(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", {"w": torch.ones(2)})
    convert(path, tmp_path / "new.safetensors", metadata={"licence": "naïve ☃", "format": "np"})
    assert metadata(tmp_path / "new.safetensors") == {"licence": "naïve ☃", "format": "np"}


@hypothesis.given(
    tensors=st.dictionaries(
        st.text().filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(sorted(set(SAFETENSORS_BITS) - {"F4", "F6_E2M3", "F6_E3M2"})),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        max_size=5,
    ),
    texts=st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_headers_are_read_by_safetensors(
    tensors: dict[str, tuple[str, list[int]]], texts: dict[str, str]
) -> None:
    said = header({name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}, texts, "x")
    assert len(said) % 8 == 0
    sizes = {n: SAFETENSORS_BITS[d] // 8 * torch.Size(s).numel() for n, (d, s) in tensors.items()}
    file = said + bytes(sum(sizes.values()))
    deserialize: Any = safetensors.deserialize
    theirs = dict(deserialize(file))
    assert {n: (t["dtype"], list(t["shape"]), len(t["data"])) for n, t in theirs.items()} == {
        name: (dtype, shape, sizes[name]) for name, (dtype, shape) in tensors.items()
    }
    ours = read_catalog(lambda start, stop: memoryview(file)[start:stop], len(file), "x")
    assert ours.entries.keys() == tensors.keys()
    assert ours.metadata == texts


@pytest.mark.parametrize("name", ["__metadata__", "half \ud800"])
def test_names_that_no_header_can_hold(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", {name: torch.ones(2), "w": torch.ones(3)})
    with pytest.raises(torchwick.FormatError, match="rename="):
        convert(path, tmp_path / "new.safetensors")
    assert convert(path, tmp_path / "new.safetensors", rename={name: "other"}).tensors == 2


# -- shards ------------------------------------------------------------------------------------------------

_LAYERS = {f"layer.{n}.weight": torch.full((100,), float(n)) for n in range(10)} | {"large": torch.ones(1000)}


def test_shards(tmp_path: Path) -> None:
    path, new = saved(tmp_path / "old.pt", {**_LAYERS, "tie": _LAYERS["layer.3.weight"]}), tmp_path / "new"
    report = convert(path, new, max_shard_size="1.2KB")
    index = json.loads((new / "model.safetensors.index.json").read_text())
    found: dict[str, torch.Tensor] = {}
    for file in report.files[:-1]:
        tensors = read(Path(file.uri))
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 1200 or len(tensors) == 1
        assert all(index["weight_map"][name] == Path(file.uri).name for name in tensors)
        assert file.tensors == len(tensors)
        found |= tensors
    written = [Path(file.uri).name for file in report.files]
    assert written[:-1] == [f"model-{n:05}-of-00005.safetensors" for n in range(1, 6)]
    assert sorted(written) == names(new)
    assert index["metadata"] == {"total_size": 10 * 400 + 4000}
    assert index["weight_map"].keys() == found.keys() == _LAYERS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in _LAYERS.items())
    kept = new / index["weight_map"]["layer.3.weight"]
    assert metadata(kept) == {"format": "pt", "tie": "layer.3.weight"}
    with torchwick.open(f"{new}/") as ckpt:
        assert ckpt.keys() == _LAYERS.keys()


@pytest.mark.parametrize("limit", [None, "1MB", 8000])
def test_a_directory_of_one_file(limit: str | int | None, tmp_path: Path) -> None:
    convert(saved(tmp_path / "old.pt", _LAYERS), f"{tmp_path}/v1.2/", max_shard_size=limit)
    assert names(tmp_path / "v1.2") == ["model.safetensors"]


def test_limits_that_make_no_sense(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", _LAYERS)
    with pytest.raises(ValueError, match="end the destination in a slash"):
        convert(path, tmp_path / "new.safetensors", max_shard_size="1GB")
    with pytest.raises(ValueError, match="cannot read"):
        convert(path, tmp_path / "new", max_shard_size="many")


def test_from_shards_to_shards_and_back(tmp_path: Path) -> None:
    convert(saved(tmp_path / "old.pt", _LAYERS), tmp_path / "new", max_shard_size=1200)
    convert(f"{tmp_path}/new/", tmp_path / "again", max_shard_size=2000)
    report = convert(f"{tmp_path}/again/", tmp_path / "new.safetensors")
    assert_written(tmp_path / "new.safetensors", _LAYERS, report)
    assert metadata(tmp_path / "new.safetensors") == {"format": "pt"}


# -- where it comes from -----------------------------------------------------------------------------------


def test_from_s3(aws_env: SeaweedFS, shared_bucket: str, put: Put, tmp_path: Path) -> None:
    state = {"model": {"w": torch.randn(1000, 300), "n": torch.tensor(3)}, "epoch": 3}
    uri = put(shared_bucket, "convert/old.pt", save_bytes(state))
    report = convert(uri, tmp_path / "new.safetensors")
    expected = dict(tensors_of(state))
    assert_written(tmp_path / "new.safetensors", expected, report)
    assert report.source == uri
    assert report.bytes_read >= 1_200_000
    assert report.requests >= 1


def test_from_a_directory_in_s3(aws_env: SeaweedFS, shared_bucket: str, put: Put, tmp_path: Path) -> None:
    convert(saved(tmp_path / "old.pt", _LAYERS), tmp_path / "shards", max_shard_size=1200)
    for file in (tmp_path / "shards").iterdir():
        put(shared_bucket, f"convert/shards/{file.name}", file)
    report = convert(f"s3://{shared_bucket}/convert/shards/", tmp_path / "new.safetensors")
    assert_written(tmp_path / "new.safetensors", _LAYERS, report)


def test_from_a_distributed_checkpoint(
    aws_env: SeaweedFS, shared_bucket: str, put: Put, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"model": dict(_LAYERS), "step": 7}, checkpoint_id=tmp_path / "dcp")
    expected = {f"model.{name}": tensor for name, tensor in _LAYERS.items()}
    report = convert(f"{tmp_path}/dcp/", tmp_path / "new.safetensors")
    assert_written(tmp_path / "new.safetensors", expected, report)
    assert report.left_out.keys() == {"step"}
    for file in (tmp_path / "dcp").iterdir():
        put(shared_bucket, f"convert/dcp/{file.name}", file)
    report = convert(f"s3://{shared_bucket}/convert/dcp", tmp_path / "s3.safetensors", rename={"model.": ""})
    assert_written(tmp_path / "s3.safetensors", _LAYERS, report)


# -- all or nothing ----------------------------------------------------------------------------------------


def test_nothing_is_overwritten_or_even_read(faulty_s3: FaultyServer, tmp_path: Path) -> None:
    faulty_s3.put("models/old.pt", save_bytes(_LAYERS))
    new, shards = tmp_path / "new.safetensors", tmp_path / "shards"
    new.write_text("mine")
    shards.mkdir()
    (shards / "model-00001-of-00002.safetensors").write_text("mine")
    for place in (new, shards):
        with pytest.raises(torchwick.ObjectExistsError, match="overwrite=True"):
            convert("s3://models/old.pt", place)
    assert faulty_s3.requests == []
    assert new.read_text() == "mine"


def test_overwrite(tmp_path: Path) -> None:
    path, new = saved(tmp_path / "old.pt", _LAYERS), tmp_path / "new"
    convert(path, new, max_shard_size=1200)
    (new / "config.json").write_text("{}")
    convert(path, new, overwrite=True)
    assert names(new) == ["config.json", "model.safetensors"]
    convert(f"{new}/", new, dtype="bf16", max_shard_size=1200, overwrite=True)  # onto itself
    with torchwick.open(f"{new}/") as ckpt:
        assert ckpt.keys() == _LAYERS.keys()
        assert ckpt.info("large").dtype == "BF16"
    report = convert(path, tmp_path / "new.safetensors")
    report = convert(path, tmp_path / "new.safetensors", dtype="fp16", overwrite=True)
    assert_written(tmp_path / "new.safetensors", {n: t.half() for n, t in _LAYERS.items()}, report)


def test_what_comes_up_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path, new = saved(tmp_path / "old.pt", _LAYERS), tmp_path / "new.safetensors"

    def interfere(_: Progress) -> None:
        new.write_text("mine")

    with pytest.raises(torchwick.ObjectExistsError):
        convert(path, new, progress=interfere)
    assert names(tmp_path) == ["new.safetensors", "old.pt"]
    assert new.read_text() == "mine"


@pytest.mark.parametrize("limit", [None, 1200], ids=["one", "shards"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(error: type[BaseException], limit: int | None, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", _LAYERS)

    def fail(progress: Progress) -> None:
        if progress.fraction == 1:
            raise error

    with pytest.raises(error):
        convert(path, tmp_path / "new", max_shard_size=limit, progress=fail)
    assert names(tmp_path) == ["old.pt"]


def test_an_error_leaves_what_is_overwritten(tmp_path: Path) -> None:
    path, new = saved(tmp_path / "old.pt", _LAYERS), tmp_path / "new.safetensors"
    convert(path, new)
    before = new.read_bytes()

    def fail(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, new, dtype="bf16", overwrite=True, progress=fail)
    assert names(tmp_path) == ["new.safetensors", "old.pt"]
    assert new.read_bytes() == before


def test_ctrl_c_while_it_waits_for_s3(faulty_s3: FaultyServer, tmp_path: Path) -> None:
    faulty_s3.put("models/old.pt", save_bytes({"w": torch.ones(3_000_000)}))
    faulty_s3.on(
        lambda: signal.raise_signal(signal.SIGINT),
        where=lambda request: request.range is not None and request.range[0] > 1 << 20,
    )
    with pytest.raises(KeyboardInterrupt):
        convert("s3://models/old.pt", f"{tmp_path}/new/", transfer=TransferConfig(part_size=1 << 20))
    assert names(tmp_path) == []


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", {"w": torch.ones(1).expand(1 << 50)})
    with pytest.raises(torchwick.StoreError, match=f"{1 << 52} bytes|are free") as caught:
        convert(path, tmp_path / "new.safetensors")
    assert caught.value.code == "ENOSPC"
    assert names(tmp_path) == ["old.pt"]


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    saved(tmp_path / "old.pt", {"w": torch.ones(1_000_000)})
    script = (
        "import os, resource, sys, torchwick\n"
        "from torchwick.saving import convert\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    convert('old.pt', 'new.safetensors')\n"
        "except torchwick.StoreError as error:\n"
        "    print(error.code, error.uri, os.listdir())\n"
    )
    assert run_python(f"import os; os.chdir({str(tmp_path)!r})\n{script}") == (
        "EFBIG ./new.safetensors ['old.pt']\n"
    )


def test_directories_that_cannot_be_written_to(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", {"w": torch.ones(3)})
    with pytest.raises(torchwick.ObjectNotFoundError, match="Make the directory"):
        convert(path, tmp_path / "no" / "such" / "new.safetensors")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:
        locked = Path("/sys")  # where even root may make no file
    with pytest.raises(torchwick.AccessDeniedError, match="may not be written"):
        convert(path, locked / "new.safetensors")
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(torchwick.StoreError, match="no directory"):
            convert(path, tmp_path / "file", overwrite=overwrite)


def test_a_written_file_is_like_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        convert(saved(tmp_path / "old.pt", {"w": torch.ones(3)}), tmp_path / "new.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("https://host/new.safetensors", "not written to"),
        ("new.pt", "in a slash for a directory"),
    ],
)
def test_places_that_are_none(place: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(torchwick.URIError, match=says):
        convert(saved(tmp_path / "old.pt", {"w": torch.ones(3)}), place)


def test_progress(tmp_path: Path) -> None:
    told: list[Progress] = []
    convert(saved(tmp_path / "old.pt", _LAYERS), tmp_path / "new.safetensors", progress=told.append)
    assert told[-1].done == told[-1].total == (tmp_path / "new.safetensors").stat().st_size


def test_memory_is_flat(tmp_path: Path) -> None:
    """400 MB through 64 MB, as they are and cast, one tensor of many rows transposed."""
    state: dict[str, torch.Tensor] = {f"w{n}": torch.full((5_000_000,), float(n)) for n in range(18)}
    saved(tmp_path / "old.pt", {**state, "t": torch.ones(2000, 5000).t()})
    script = (
        "import re, torch, torchwick.checkpoint.reading, torchwick.saving.elements\n"
        "from torchwick.saving import convert\n"
        "from torchwick import TransferConfig\n"
        "torch.ones(10).to(torch.bfloat16)\n"
        "def peak():\n"  # not ru_maxrss, which begins with that of the process that forked this one
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "before = peak()\n"
        "for dtype in (None, 'bf16'):\n"
        "    config = TransferConfig(memory_limit='64MB')\n"
        "    convert('old.pt', 'new.safetensors', dtype=dtype, transfer=config, overwrite=True)\n"
        "print(peak() - before)\n"
    )
    grown = int(run_python(f"import os; os.chdir({str(tmp_path)!r})\n{script}"))
    assert grown < 64e6 + 40e6 + 32e6, f"{grown:,} bytes"


# -- the command -------------------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = {"model": {**_LAYERS, "tie": _LAYERS["large"]}, "epoch": 3, "lr": 0.5}
    return saved(tmp_path / "old.pt", state)


def test_a_table(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("old.pt", "new/", "--dtype", "bf16", "--max-shard-size", "2KB")
    assert (result.exit_code, result.stderr) == (0, "")
    for told in (
        "model-00002-of-00002.safetensors",
        "11, 4,000 bytes",
        "11 from F32",
        "model.tie is model.large",
        "epoch: 3, lr: 0.5",
    ):
        assert told in result.stdout


def test_options(checkpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    options = ("--keys", "model.layer.1.*", "--keys", "model.[lt]*e", "--rename", "model.=", "--copy-ties")
    result = run(checkpoint, new, *options, "--memory-limit", "1GB", "--connections", "2", "--json")
    told = json.loads(result.stdout)
    assert read(new).keys() == {"layer.1.weight", "large", "tie"}
    assert (told["tensors"], told["ties"], told["left_out"]) == (3, {}, {"epoch": "3", "lr": "0.5"})
    assert told["files"] == [{"uri": str(new), "size": new.stat().st_size, "tensors": 3}]
    assert told.keys() == convert(checkpoint, new, overwrite=True).to_dict().keys()


def test_failures(checkpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    assert run(checkpoint, new).exit_code == 0
    again = run(checkpoint, new)
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.startswith("ObjectExistsError ")
    assert again.stderr.endswith("(On the command line: --overwrite.)\n")
    assert run(checkpoint, new, "--overwrite").exit_code == 0
    assert json.loads(run(checkpoint, new, "--json").stdout)["error"]["type"] == "ObjectExistsError"
    assert "OLD=NEW" in run(checkpoint, new, "--overwrite", "--rename", "model").stderr
