"""Saves to a real S3 server: other readers agree, and the old model stays until the new one is whole."""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import safetensors.torch
import torch

import torchwick
from checkpoints import ODD_CHECKPOINTS, SAFETENSORS
from checkpoints.base import save_bytes
from conftest import run_python
from faults import S3Error
from oracle import assert_same
from test_save import Tied, assert_alike, metadata
from torchwick import Progress, PutOptions, SaveReport, TransferConfig
from torchwick.saving import convert

if TYPE_CHECKING:
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

_LAYERS = {f"layer.{n}.weight": torch.full((100,), float(n)) for n in range(10)} | {"large": torch.ones(1000)}
_NEWER = {name: tensor + 1 for name, tensor in _LAYERS.items()}
_BY_NAME = {case.name: case for case in ODD_CHECKPOINTS}
_THERE_AND_BACK = [
    case.name
    for case in ODD_CHECKPOINTS
    if case.path == "deferred"
    and case.map_location is None
    and case.name not in ("many_tensors", "meta_tensors")
][::5]


@pytest.fixture
def folder(aws_env: SeaweedFS, bucket: str) -> str:
    """A new bucket, as a directory."""
    return f"s3://{bucket}/"


def keys(client: Any, folder: str) -> list[str]:
    found = client.list_objects_v2(Bucket=folder.removeprefix("s3://").rstrip("/")).get("Contents", [])
    return [entry["Key"] for entry in found]


def pending(client: Any, folder: str) -> list[str]:
    """Keys of uploads that are not complete."""
    found = client.list_multipart_uploads(Bucket=folder.removeprefix("s3://").rstrip("/")).get("Uploads", [])
    return [entry["Key"] for entry in found]


def fetched(client: Any, uri: str, path: Path) -> Path:
    """The object, as boto3 gets it."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client.download_file(bucket, key, str(path))
    return path


def mixed(megabytes: int = 40) -> dict[str, torch.Tensor]:
    """Tensors large and small, of some dtypes, a few MB each and a few bytes each."""
    torch.manual_seed(megabytes)
    large = {f"block.{n}.weight": torch.randn(1 << 20) for n in range(megabytes // 4)}
    small = {f"block.{n}.bias": torch.randn(33).to(torch.bfloat16) for n in range(200)}
    return {
        **large,
        **small,
        "step": torch.tensor(7),
        "mask": torch.ones(5, dtype=torch.bool),
        "t": torch.randn(300, 500).t(),
    }


# -- other readers agree -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _THERE_AND_BACK)
def test_odd_checkpoints_there_and_back(name: str, folder: str, s3_client: Any, tmp_path: Path) -> None:
    case = _BY_NAME[name]
    case.build(tmp_path / "old.pt")
    with case.setting():
        value = torch.load(tmp_path / "old.pt", **case.options)
        report = torchwick.save(value, f"{folder}new.pt")
        new = fetched(s3_client, f"{folder}new.pt", tmp_path / "new.pt")
        assert new.stat().st_size == report.size
        expected = torch.load(io.BytesIO(save_bytes(value)), **case.options)
        assert_same(torch.load(new, **case.options), expected)
        assert_same(torchwick.load(f"{folder}new.pt", **case.options), torch.load(new, **case.options))


@pytest.mark.parametrize("name", sorted(set(SAFETENSORS) - {"many"})[::3])
def test_safetensors_there_and_back(name: str, folder: str, s3_client: Any, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(SAFETENSORS[name]())
    state = safetensors.torch.load_file(tmp_path / "old")
    torchwick.save_file(state, f"{folder}a b/ü.safetensors", metadata(tmp_path / "old"))
    new = fetched(s3_client, f"{folder}a b/ü.safetensors", tmp_path / "new")
    assert_alike(safetensors.torch.load_file(new), safetensors.torch.load_file(tmp_path / "old"))
    assert_alike(torchwick.load_file(f"{folder}a b/ü.safetensors"), safetensors.torch.load_file(new))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_many_parts(ending: str, folder: str, s3_client: Any, tmp_path: Path) -> None:
    state, told = mixed(), list[Progress]()
    reports: list[SaveReport] = []
    report = torchwick.save(
        state,
        f"{folder}deep/new.{ending}",
        transfer=TransferConfig(part_size=5 << 20, connections=3),
        progress=told.append,
        on_report=reports.append,
    )
    new = fetched(s3_client, f"{folder}deep/new.{ending}", tmp_path / "new")
    loaded = torch.load(new) if ending == "pt" else safetensors.torch.load_file(new)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert loaded.keys() == state.keys()
    assert reports == [report]
    head = s3_client.head_object(Bucket=folder.split("/")[2], Key=f"deep/new.{ending}")
    assert (report.size, report.files[0].etag) == (head["ContentLength"], head["ETag"])
    assert report.requests >= 9
    assert 1 <= report.connections <= 3
    assert report.retries == 0
    assert (told[-1].done, told[-1].total) == (report.size, report.size)
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert pending(s3_client, folder) == []


def test_ties_and_options(folder: str, s3_client: Any, tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    options = PutOptions(content_type="application/x-model", metadata={"run": "7"})
    torchwick.save_model(model, f"{folder}new.safetensors", options=options)
    head = s3_client.head_object(Bucket=folder.split("/")[2], Key="new.safetensors")
    assert (head["ContentType"], head["Metadata"]) == ("application/x-model", {"run": "7"})
    safetensors.torch.load_model(other, fetched(s3_client, f"{folder}new.safetensors", tmp_path / "new"))
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


# -- directories -------------------------------------------------------------------------------------------


def test_transformers_reads_shards(folder: str, s3_client: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
        )
        model = transformers.BertForMaskedLM(config)
        report = torchwick.save_model(model, f"{folder}bert/", max_shard_size="40KB")
        for key in keys(s3_client, folder):
            fetched(s3_client, f"{folder}{key}", tmp_path / key.removeprefix("bert/"))
        config.save_pretrained(tmp_path)
        loaded, info = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert len(report.files) > 3
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(loaded.state_dict()[n], tensor) for n, tensor in model.state_dict().items())


def test_generations_of_shards(folder: str, s3_client: Any) -> None:
    first = torchwick.save(_LAYERS, f"{folder}m", max_shard_size=1200)
    assert first.files[-1].uri == f"{folder}m/model.safetensors.index.json"
    second = torchwick.save(_NEWER, f"{folder}m/", max_shard_size=1200)
    assert len(keys(s3_client, folder)) == 11
    assert_alike(torchwick.load(f"{folder}m/"), _NEWER)
    with pytest.raises(torchwick.ObjectExistsError, match="overwrite=True"):
        torchwick.save(_LAYERS, f"{folder}m/", max_shard_size=1200, overwrite=False)
    third = torchwick.save(_LAYERS, f"{folder}m/", max_shard_size=1200, delete_replaced=True)
    assert set(third.deleted) == {file.uri for file in second.files[:-1]}
    assert {f"{folder}{key}" for key in keys(s3_client, folder)} == {
        file.uri for file in (*first.files, *third.files)
    }
    assert_alike(torchwick.load(f"{folder}m/"), _LAYERS)


@pytest.mark.parametrize(("first", "then"), [(None, 1200), (1200, None)], ids=["to-shards", "to-one"])
def test_no_stale_model_stays_unnoticed(
    first: int | None, then: int | None, folder: str, s3_client: Any
) -> None:
    torchwick.save(_LAYERS, f"{folder}m/", max_shard_size=first)
    before = keys(s3_client, folder)
    with pytest.raises(torchwick.ObjectExistsError, match="delete_replaced=True"):
        torchwick.save(_NEWER, f"{folder}m/", max_shard_size=then)
    assert keys(s3_client, folder) == before
    torchwick.save(_NEWER, f"{folder}m/", max_shard_size=then, delete_replaced=True)
    assert not set(before) & set(keys(s3_client, folder))
    assert_alike(torchwick.load(f"{folder}m/"), _NEWER)


@pytest.mark.parametrize("name", ["new.pt", "new.safetensors", "new/"])
def test_what_is_there_is_replaced_unless_it_is_not_to_be(name: str, folder: str) -> None:
    torchwick.save(_LAYERS, folder + name, overwrite=False)
    with pytest.raises(torchwick.ObjectExistsError):
        torchwick.save(_NEWER, folder + name, overwrite=False)
    assert_alike(torchwick.load(folder + name), _LAYERS)
    torchwick.save(_NEWER, folder + name)
    assert_alike(torchwick.load(folder + name), _NEWER)


def test_what_comes_up_meanwhile_is_not_overwritten(folder: str, s3_client: Any) -> None:
    def interfere(_: Progress) -> None:
        s3_client.put_object(Bucket=folder.split("/")[2], Key="new.pt", Body=b"mine")

    with pytest.raises(torchwick.ObjectExistsError):
        torchwick.save(mixed(20), f"{folder}new.pt", overwrite=False, progress=interfere)
    assert s3_client.get_object(Bucket=folder.split("/")[2], Key="new.pt")["Body"].read() == b"mine"
    assert pending(s3_client, folder) == []


# -- all or nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("size", [None, "20MB"], ids=["one", "shards"])
def test_an_error_leaves_the_old_model_and_nothing_else(
    error: type[BaseException], size: str | None, folder: str, s3_client: Any
) -> None:
    torchwick.save(_LAYERS, f"{folder}m/", max_shard_size=None if size is None else 1200)
    before = keys(s3_client, folder)

    def fail(progress: Progress) -> None:
        if progress.done:
            raise error

    with pytest.raises(error):
        torchwick.save(mixed(60), f"{folder}m/", max_shard_size=size, progress=fail)
    assert keys(s3_client, folder) == before
    assert pending(s3_client, folder) == []
    assert_alike(torchwick.load(f"{folder}m/"), _LAYERS)


def test_a_part_that_fails_is_sent_again(faulty_s3: FaultyServer) -> None:
    faulty_s3.on(S3Error(503, "SlowDown", "Slow down"), method="PUT", nth=1)
    state = mixed(20)
    report = torchwick.save(state, "s3://models/new.pt", transfer=TransferConfig(part_size=5 << 20))
    assert report.retries == 1
    assert report.verified == "crc64nvme"
    assert_same(torchwick.load("s3://models/new.pt"), torch.load(io.BytesIO(save_bytes(state))))


def test_whoever_may_only_write_is_warned(faulty_s3: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
    faulty_s3.on(S3Error(403, "AccessDenied", "Access Denied"), method="GET")
    report = torchwick.save(_LAYERS, "s3://models/m/", max_shard_size=1200)
    assert len(report.files) == 6
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("model.safetensors.index.json" in message for message in warned)


def test_a_damaged_index_is_replaced_like_any_other(faulty_s3: FaultyServer) -> None:
    faulty_s3.put("models/m/model.safetensors.index.json", b"{")
    with pytest.raises(torchwick.ObjectExistsError):
        torchwick.save(_LAYERS, "s3://models/m/")
    report = torchwick.save(_LAYERS, "s3://models/m/", max_shard_size=1200, delete_replaced=True)
    assert report.deleted == ()
    assert_alike(torchwick.load("s3://models/m/model.safetensors.index.json"), _LAYERS)


_KILLED = """
import os, signal, sys, torch, torchwick
state = {f"w{n}": torch.full((1 << 20,), 2.0) for n in range(30)}

def die(progress):
    if progress.done >= progress.total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

torchwick.save(state, sys.argv[1], max_shard_size="20MB", progress=die)
"""


def test_a_save_that_is_killed_leaves_the_old_model(folder: str, s3_client: Any) -> None:
    old = {f"w{n}": torch.full((1000,), 1.0) for n in range(30)}
    torchwick.save(old, f"{folder}m/", max_shard_size="20KB")
    before = keys(s3_client, folder)
    killed = subprocess.run([sys.executable, "-c", _KILLED, f"{folder}m/"], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert keys(s3_client, folder) == before
    assert pending(s3_client, folder)  # which the lifecycle rule of the guide clears
    assert_alike(torchwick.load(f"{folder}m/"), old)
    torchwick.save(old, f"{folder}m/", max_shard_size="20KB", delete_replaced=True)
    assert_alike(torchwick.load(f"{folder}m/"), old)


# -- in the background -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["2GB", "30MB"], ids=["fits", "waits"])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_what_is_saved_is_what_was_there_at_the_call(ending: str, limit: str, folder: str) -> None:
    state = mixed()
    expected = {name: tensor.clone() for name, tensor in state.items()}
    future = torchwick.save_async(
        state, f"{folder}new.{ending}", transfer=TransferConfig(memory_limit=limit, part_size=5 << 20)
    )
    for tensor in state.values():
        tensor.zero_()
    report = future.result(timeout=60)
    assert report.size > 40e6
    loaded = torchwick.load(f"{folder}new.{ending}")
    assert_alike(
        {name: t.contiguous() for name, t in loaded.items()}, {n: t.contiguous() for n, t in expected.items()}
    )


def test_it_returns_before_the_network_has_taken_it(faulty_s3: FaultyServer) -> None:
    release = threading.Event()
    faulty_s3.on(lambda: release.wait(30), where=lambda request: request.method == "PUT")
    weight, reports = torch.ones(1 << 20), list[SaveReport]()
    future = torchwick.save_async({"w": weight}, "s3://models/new.pt", on_report=reports.append)
    assert not future.done()
    weight.zero_()
    release.set()
    assert reports in ([], [future.result(timeout=30)])
    assert torchwick.load("s3://models/new.pt")["w"].eq(1).all()


def test_failures_are_raised_where_they_are_asked_for(
    faulty_s3: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    faulty_s3.on(lambda: None, where=lambda request: False)
    future = torchwick.save_async({"w": torch.ones(3)}, "/sys/new.pt")
    with pytest.raises(torchwick.AccessDeniedError):
        future.result(timeout=30)
    assert isinstance(future.exception(), torchwick.AccessDeniedError)
    assert [record.levelno for record in caplog.records if "a save failed" in record.message] == [
        logging.ERROR
    ]


def test_what_can_be_told_beforehand_is_raised_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        torchwick.save_async([1], tmp_path / "new.safetensors")
    with pytest.raises(torchwick.URIError):
        torchwick.save_async({}, "https://host/new.pt")


def test_a_failure_ends_the_wait_for_memory(tmp_path: Path) -> None:
    def fail(_: Progress) -> None:
        raise RuntimeError("no more")

    futures = [
        torchwick.save_async(
            mixed(), tmp_path / "new.pt", progress=fail, transfer=TransferConfig(memory_limit=limit)
        )
        for limit in ("20MB", "1GB")
    ]
    for future in futures:
        with pytest.raises(RuntimeError, match="no more"):
            future.result(timeout=30)
    assert list(tmp_path.iterdir()) == []
    gc.collect()
    views = [each for each in gc.get_objects() if type(each) is memoryview and each.nbytes > 1 << 20]
    assert not views, "copies that nobody will write are kept"


def test_ctrl_c_while_it_copies(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        torchwick.save_async(
            mixed(), tmp_path / "new.pt", progress=interrupt, transfer=TransferConfig(memory_limit="20MB")
        )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_its_result_is_awaited(folder: str, s3_client: Any) -> None:
    awaited, release = threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        if progress.done and not release.is_set():
            awaited.wait()
            time.sleep(0.2)  # until the caller waits in earnest
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(0.5)

    future = torchwick.save_async(mixed(), f"{folder}new.pt", progress=hold)
    awaited.set()
    with pytest.raises(KeyboardInterrupt):
        future.result()
    release.set()
    with pytest.raises(CancelledError):
        future.result()
    assert keys(s3_client, folder) == pending(s3_client, folder) == []


_AT_THE_END = """
import sys, torch, torchwick
state = {f"w{n}": torch.full((1 << 20,), 2.0) for n in range(10)}
future = torchwick.save_async(state, sys.argv[1])
for tensor in state.values():
    tensor.zero_()
"""


def test_the_end_of_the_program_waits(folder: str) -> None:
    assert run_python(_AT_THE_END, f"{folder}new.pt") == ""
    loaded = torchwick.load(f"{folder}new.pt")
    assert len(loaded) == 10
    assert all(tensor.eq(2).all() for tensor in loaded.values())


def test_a_failure_nobody_asked_about_is_told_at_the_end() -> None:
    script = (
        "import logging, torchwick\n"
        "logging.getLogger('torchwick').addHandler(logging.NullHandler())\n"
        "asked = torchwick.save_async({}, '/sys/asked.pt')\n"
        "assert asked.exception() is not None\n"
        "torchwick.save_async({}, '/sys/new.pt')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr.startswith("torchwick: a save failed, and nobody asked: /sys/new.pt: ")
    assert "asked.pt" not in done.stderr


def test_ctrl_c_at_the_end_of_the_program(tmp_path: Path) -> None:
    script = (
        "import sys, time, torch, torchwick\n"
        "state = {f'w{n}': torch.ones(1 << 20) for n in range(200)}\n"
        "future = torchwick.save_async(state, sys.argv[1], progress=lambda _: time.sleep(0.3))\n"
        "print('over', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "new.pt")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "over\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_may_be_let_go(tmp_path: Path) -> None:
    """Whoever saves in the background holds copies, and no tensor of the caller's."""
    weight = torch.ones(1 << 20)
    alive, going = weakref.ref(weight), threading.Event()
    future = torchwick.save_async({"w": weight}, tmp_path / "new.pt", progress=lambda _: going.wait(10))
    del weight
    gc.collect()
    assert alive() is None
    going.set()
    assert future.result(timeout=30).tensors == 1


# -- convert -----------------------------------------------------------------------------------------------


def test_converted_to_s3(folder: str, s3_client: Any, tmp_path: Path) -> None:
    state = mixed()
    torch.save(state, tmp_path / "old.pt")
    report = convert(
        tmp_path / "old.pt",
        f"{folder}new.safetensors",
        transfer=TransferConfig(memory_limit="64MB", part_size=5 << 20),
    )
    new = fetched(s3_client, f"{folder}new.safetensors", tmp_path / "new")
    assert_alike(safetensors.torch.load_file(new), {n: t.contiguous() for n, t in state.items()})
    assert report.files[0].uri == f"{folder}new.safetensors"
    with pytest.raises(torchwick.ObjectExistsError, match="overwrite=True"):
        convert(tmp_path / "old.pt", f"{folder}new.safetensors")


def test_converted_within_s3_onto_itself(folder: str, s3_client: Any) -> None:
    torchwick.save(_LAYERS, f"{folder}old.pt")
    convert(f"{folder}old.pt", f"{folder}m", max_shard_size=1200)
    names = [key for key in keys(s3_client, folder) if key.startswith("m/")]
    assert names[0] == "m/model-00001-of-00005.safetensors"
    with pytest.raises(torchwick.ObjectExistsError):
        convert(f"{folder}old.pt", f"{folder}m")
    convert(f"{folder}m/", f"{folder}m/", dtype="bf16", max_shard_size=1200, overwrite=True)
    assert_alike(torchwick.load(f"{folder}m/"), {name: tensor.bfloat16() for name, tensor in _LAYERS.items()})
    assert not {name for name in names if "index" not in name} & set(keys(s3_client, folder))
    convert(f"{folder}m/", f"{folder}m/", overwrite=True)
    assert [key for key in keys(s3_client, folder) if key.startswith("m/")] == ["m/model.safetensors"]


def test_an_error_in_a_conversion_leaves_nothing(folder: str, s3_client: Any, tmp_path: Path) -> None:
    torch.save(mixed(), tmp_path / "old.pt")

    def fail(progress: Progress) -> None:
        if progress.done:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        convert(tmp_path / "old.pt", f"{folder}new/", max_shard_size="20MB", progress=fail)
    assert keys(s3_client, folder) == pending(s3_client, folder) == []
