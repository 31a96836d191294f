"""The examples run, each as its first lines say, against the real server."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import torchwick
from checkpoints.base import quiet, save_bytes
from torchwick.demo.models import PACKAGED

if TYPE_CHECKING:
    from conftest import Put
    from torchwick.demo.server import SeaweedFS

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = save_bytes({"weight": torch.ones(3, 5)})


@pytest.fixture
def model(aws_env: SeaweedFS, shared_bucket: str, put: Put) -> str:
    """A model on the real server, which the environment leads to."""
    return put(shared_bucket, "example.pt", MODEL)


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_none_is_forgotten_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in source


@pytest.mark.parametrize("name", ["load_state_dict.py", "look_inside.py", "serve_from_presigned_url.py"])
def test_it_loads(name: str, model: str) -> None:
    done = _run(name, model)
    assert done.returncode == 0, done.stderr
    assert "1 tensors" in done.stdout


def test_a_group_of_ranks(model: str) -> None:
    alone = _run("group_load.py", model)
    assert alone.returncode == 0, alone.stderr
    assert "rank 0: 1 tensors" in alone.stdout
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(EXAMPLES / "group_load.py"), model],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank}: 1 tensors" in done.stdout for rank in range(2))


def test_it_saves_in_the_background(model: str) -> None:
    directory = model.removesuffix("example.pt") + "background/"
    done = _run("save_in_the_background.py", directory)
    assert done.returncode == 0, done.stderr
    assert f"{directory}step-30.pt: " in done.stdout


def test_it_saves_shards(model: str) -> None:
    directory = model.removesuffix("example.pt") + "shards/"
    for _ in range(2):
        done = _run("save_shards.py", directory)
        assert done.returncode == 0, done.stderr
    assert len(torchwick.load(directory)) == 16


class TestLoadOrSayWhy:
    NAME = "load_or_say_why.py"
    DIGEST = hashlib.sha256(MODEL).hexdigest()

    def test_the_pinned_file(self, model: str) -> None:
        done = _run(self.NAME, model, self.DIGEST)
        assert done.returncode == 0, done.stderr
        assert "1 tensors, exactly the file" in done.stdout

    def test_another_file(self, model: str) -> None:
        done = _run(self.NAME, model, "00" * 32)
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr.startswith("IntegrityError: ")

    def test_no_file(self, model: str) -> None:
        done = _run(self.NAME, model.replace("example.pt", "exmaple.pt"), self.DIGEST)
        assert done.returncode == 3
        assert f"Did you mean {model}?" in done.stderr


def test_a_model_of_transformers(aws_env: SeaweedFS, shared_bucket: str, put: Put, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        put(shared_bucket, f"example/{file.name}", file)
    done = _run("transformers_from_s3.py", f"s3://{shared_bucket}/example/")
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM, torch.float32" in done.stdout
    assert "no tokenizer: transformers makes no AutoTokenizer of it" in done.stdout


def test_checkpoints_of_lightning(model: str) -> None:
    directory = model.removesuffix("example.pt") + "lightning/"
    done = _run("lightning_from_s3.py", directory)
    assert done.returncode == 0, done.stderr
    assert f"from None: 40 steps, saved as {directory}last.ckpt" in done.stdout
    assert torchwick.load(f"{directory}last.ckpt")["global_step"] == 40


def test_training_goes_on(model: str) -> None:
    uri = model.replace("example.pt", "run/last.pt")
    losses = []
    for steps in ("1 to 20", "21 to 40"):
        done = _run("resume_training.py", uri)
        assert done.returncode == 0, done.stderr
        assert f"steps {steps}, loss " in done.stdout
        losses.append(float(done.stdout.rpartition(" ")[2]))
    assert losses[1] < losses[0]
    assert torchwick.load(uri)["optimizer"]["state"][0]["step"] == 40


def test_an_adapter(aws_env: SeaweedFS, shared_bucket: str, put: Put, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    )
    base.save_pretrained(tmp_path / "base")
    with quiet():  # of what peft uses of transformers
        adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        adapted.save_pretrained(str(tmp_path / "adapter"))
    for file in [*(tmp_path / "base").iterdir(), *(tmp_path / "adapter").iterdir()]:
        put(shared_bucket, f"lora/{file.parent.name}/{file.name}", file)
    folder = f"s3://{shared_bucket}/lora"
    done = _run("lora_adapter.py", f"{folder}/base/", f"{folder}/adapter/")
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM with 8 tensors of an adapter" in done.stdout


def test_a_server_of_embeddings(aws_env: SeaweedFS, shared_bucket: str, put: Put) -> None:
    model = PACKAGED[0].find()
    if model is None:
        pytest.skip(f"{PACKAGED[0].distribution} is not installed")
    for file in model.path.parent.iterdir():
        if file.is_file():
            put(shared_bucket, f"minilm/{file.name}", file)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(EXAMPLES / "serve_embeddings.py"),
        f"s3://{shared_bucket}/minilm/",
        str(port),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            started = any("Application startup complete" in line for line in server.stderr)
            assert started
            cat, kitten, tax = _embeddings(port, ["a cat", "a kitten", "the tax office"])
        finally:
            server.terminate()
            server.stderr.read()
    assert len(cat) == 384
    assert math.isclose(math.hypot(*cat), 1, rel_tol=1e-4)
    assert _dot(cat, kitten) > 0.6
    assert _dot(cat, tax) < 0.3


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _embeddings(port: int, texts: list[str]) -> list[list[float]]:
    url = f"http://127.0.0.1:{port}/embeddings"
    body, headers = json.dumps({"texts": texts}).encode(), {"Content-Type": "application/json"}
    while True:  # uvicorn listens a moment after the application is there
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
                vectors: list[list[float]] = json.load(answer)["embeddings"]
                return vectors
        except urllib.error.URLError:
            time.sleep(0.05)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_says_how_it_is_called(example: Path) -> None:
    done = _run(example.name)
    assert done.returncode == 1
    assert f" examples/{example.name} s3://bucket/" in done.stderr


def test_training_that_goes_on_with_other_ranks(aws_env: SeaweedFS, shared_bucket: str) -> None:
    script, uri = str(EXAMPLES / "dcp_train.py"), f"s3://{shared_bucket}/example-run"
    for ranks, first in ((2, 0), (1, 3)):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launch, script, uri]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert f"{ranks} ranks go on at step {first}" in done.stdout
        assert f"step {first + 3}: loss" in done.stdout
