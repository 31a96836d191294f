"""The examples run, each as its first lines say, against the real server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from checkpoints.base import save_bytes

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


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_says_how_it_is_called(example: Path) -> None:
    done = _run(example.name)
    assert done.returncode == 1
    assert f"python examples/{example.name} s3://bucket/" in done.stderr


def test_training_that_goes_on_with_other_ranks(aws_env: SeaweedFS, shared_bucket: str) -> None:
    script, uri = str(EXAMPLES / "dcp_train.py"), f"s3://{shared_bucket}/example-run"
    for ranks, first in ((2, 0), (1, 3)):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launch, script, uri]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert f"{ranks} ranks go on at step {first}" in done.stdout
        assert f"step {first + 3}: loss" in done.stdout
