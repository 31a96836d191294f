"""`torchwick save` uploads what is on the disk as it is, and says what became of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

import torchwick
from conftest import random_bytes, run_python
from test_save import assert_alike
from test_save_s3 import folder, keys, mixed
from torchwick import TransferConfig
from torchwick.cli import app
from torchwick.saving.upload import upload

if TYPE_CHECKING:
    from pathlib import Path

    from faulty import FaultyServer

__all__ = ["folder"]  # a fixture


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["save", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def content(client: Any, folder: str, key: str) -> bytes:
    data: bytes = client.get_object(Bucket=folder.split("/")[2], Key=key)["Body"].read()
    return data


@pytest.mark.parametrize("name", ["new.pt", "new.safetensors"])
def test_a_file_byte_for_byte(name: str, folder: str, s3_client: Any, tmp_path: Path) -> None:
    torchwick.save(mixed(), tmp_path / name)
    result = run(tmp_path / name, f"{folder}deep/", "--connections", "2", "--json")
    told = json.loads(result.stdout)
    assert content(s3_client, folder, f"deep/{name}") == (tmp_path / name).read_bytes()
    assert told["files"][0]["uri"] == f"{folder}deep/{name}"
    assert told["size"] == (tmp_path / name).stat().st_size
    assert told["format"] == ("torch zip" if name == "new.pt" else "safetensors")
    again = run(tmp_path / name, f"{folder}deep/{name}", "--no-overwrite")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.startswith("ObjectExistsError ")
    assert run(tmp_path / name, f"{folder}deep/{name}").exit_code == 0


def test_a_directory(folder: str, s3_client: Any, tmp_path: Path) -> None:
    state = mixed(20)
    torchwick.save(state, tmp_path / "m", max_shard_size="8MB")
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / ".git").mkdir()
    (tmp_path / "m" / ".git" / "HEAD").write_text("x")
    (tmp_path / "m" / "vae").mkdir()
    (tmp_path / "m" / "vae" / "empty.txt").write_text("")
    result = run(tmp_path / "m", f"{folder}m")
    assert result.exit_code == 0, result.stderr
    assert "model.safetensors.index.json" in result.stdout or "more" in result.stdout
    here = {
        path.relative_to(tmp_path).as_posix(): path for path in (tmp_path / "m").rglob("*") if path.is_file()
    }
    there = keys(s3_client, folder)
    assert set(there) == {name for name in here if ".git" not in name}
    assert all(content(s3_client, folder, key) == here[key].read_bytes() for key in there)
    assert_alike(torchwick.load(f"{folder}m/"), {n: t.contiguous() for n, t in state.items()})


def test_a_stale_model_is_not_left_beside_it(folder: str, s3_client: Any, tmp_path: Path) -> None:
    state = {"a": torch.ones(300), "b": torch.ones(300)}
    torchwick.save(state, f"{folder}m/")
    torchwick.save(state, tmp_path / "m", max_shard_size=1200)
    refused = run(tmp_path / "m", f"{folder}m/")
    assert refused.exit_code == 1
    assert refused.stderr.endswith("(On the command line: --delete-replaced.)\n")
    assert keys(s3_client, folder) == ["m/model.safetensors"]
    assert run(tmp_path / "m", f"{folder}m/", "--delete-replaced").exit_code == 0
    assert "m/model.safetensors" not in keys(s3_client, folder)
    assert_alike(torchwick.load(f"{folder}m/"), state)


def test_what_s3_is_told(faulty_s3: FaultyServer, tmp_path: Path) -> None:
    torchwick.save({"w": torch.ones(3)}, tmp_path / "new.pt")
    options = ("--storage-class", "STANDARD_IA", "--sse", "aws:kms", "--kms-key-id", "alias/models")
    result = run(tmp_path / "new.pt", "s3://models/new.pt", *options)
    assert result.exit_code == 0, result.stderr
    put = next(request for request in faulty_s3.requests if request.method == "PUT")
    assert put.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert put.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert put.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/models"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("<html>"), "HTML page"),
        (lambda path: path.write_text(""), "zero bytes"),
        (lambda path: path.mkdir(), "directory is empty"),
    ],
)
def test_what_is_no_model(make: Any, says: str, tmp_path: Path, faulty_s3: FaultyServer) -> None:
    make(tmp_path / "new.pt")
    result = run(tmp_path / "new.pt", "s3://models/new.pt", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert says in json.loads(result.stdout)["error"]["message"]
    assert faulty_s3.requests == []


def test_places_that_are_none(tmp_path: Path) -> None:
    torchwick.save({"w": torch.ones(3)}, tmp_path / "new.pt")
    for place in ("new.pt", "https://host/new.pt", "s3://models/new.pt?versionId=3"):
        assert run(tmp_path / "new.pt", place).stderr.startswith("URIError ")


def test_a_file_that_shrinks_meanwhile(folder: str, s3_client: Any, tmp_path: Path) -> None:
    torchwick.save({"w": torch.zeros(100 << 18)}, tmp_path / "new.pt")

    def shrink(_: object) -> None:
        with (tmp_path / "new.pt").open("rb+") as file:
            file.truncate(1000)

    with pytest.raises(torchwick.StoreError, match="shorter"):
        upload(
            tmp_path / "new.pt",
            f"{folder}new.pt",
            progress=shrink,
            transfer=TransferConfig(memory_limit="20MB", connections=1),
        )
    assert keys(s3_client, folder) == []


def test_memory_is_flat_and_torch_is_not_imported(folder: str, tmp_path: Path) -> None:
    header = b'{"w": ' + b" " * 500
    data = len(header).to_bytes(8, "little") + header + random_bytes(1 << 20) * 150
    (tmp_path / "new.safetensors").write_bytes(data)
    script = (
        "import re, sys\n"
        "from torchwick import TransferConfig\n"
        "from torchwick.saving.upload import upload\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "config = TransferConfig(memory_limit='48MB', connections=2)\n"
        "upload(sys.argv[1], sys.argv[2], transfer=config)\n"
        "before = peak()\n"
        "upload(sys.argv[1], sys.argv[2], transfer=config)\n"
        "print('torch' in sys.modules, peak() - before)\n"
    )
    torch_there, grown = run_python(script, str(tmp_path / "new.safetensors"), f"{folder}new").split()
    assert torch_there == "False"
    assert int(grown) < 30e6
