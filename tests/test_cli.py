"""The command line tells people, and scripts, what was loaded or what to do; and never a secret."""

from __future__ import annotations

import base64
import dataclasses
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

import torchwick
from checkpoints.base import save_bytes
from faults import S3Error
from torchwick import S3Config
from torchwick.cli import app

if TYPE_CHECKING:
    from pathlib import Path

    from faulty import FaultyServer

STATE = {"weight": torch.ones(300, 100), "bias": torch.ones(7, dtype=torch.bfloat16)}
MODEL = save_bytes(STATE)


def run(*arguments: str) -> Result:
    """Run a command in this process; an error that reaches the top is raised."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_apart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user's shell does."""
    return subprocess.run(
        [sys.executable, "-m", "torchwick", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(MODEL)
    return path


class TestLoad:
    def test_a_table(self, model: Path) -> None:
        result = run("load", str(model))
        assert result.exit_code == 0
        for told in ("torch zip (deferred)", "2: 1 float32, 1 bfloat16", f"{len(MODEL):,}", "GB/s"):
            assert told in result.stdout
        assert result.stderr == ""

    def test_json(self, model: Path) -> None:
        result = run("load", str(model), "--json")
        assert result.exit_code == 0
        told = json.loads(result.stdout)
        assert told["uri"] == str(model)
        assert told["size"] == len(MODEL)
        assert (told["tensors"], told["tensor_bytes"]) == (2, 300 * 100 * 4 + 7 * 2)
        assert told["dtypes"] == {"float32": 1, "bfloat16": 1}
        assert told["peak_memory"] > 10**7
        assert told["bytes_per_second"] > 0
        assert result.stderr == ""

    def test_json_holds_the_whole_report(self, model: Path) -> None:
        reports: list[torchwick.LoadReport] = []
        torchwick.load(model, on_report=reports.append)
        told = json.loads(run("load", str(model), "--json").stdout)
        assert reports[0].to_dict().keys() <= told.keys()

    def test_safetensors(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file(STATE, path)
        told = json.loads(run("load", str(path), "--json").stdout)
        assert (told["format"], told["method"], told["tensors"]) == ("safetensors", "filled", 2)

    def test_from_s3(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/new.pt", MODEL)
        assert run("load", "s3://models/new.pt").exit_code == 0

    def test_its_options_are_the_functions(
        self, faulty_s3: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faulty_s3.put("models/new.pt", MODEL)
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        result = run(
            *(
                "load",
                "s3://models/new.pt",
                "--endpoint-url",
                faulty_s3.endpoint_url,
                "--region",
                "eu-west-3",
            ),
            *("--connections", "2", "--memory-limit", "1GB", "--map-location", "meta", "--json"),
        )
        assert result.exit_code == 0
        assert "/eu-west-3/" in faulty_s3.requests[0].headers["authorization"]

    def test_anonymous(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/new.pt", MODEL)
        assert run("load", "s3://models/new.pt", "--anonymous").exit_code == 0
        assert "authorization" not in faulty_s3.requests[0].headers

    def test_a_program_only_if_asked_for(self, tmp_path: Path) -> None:
        path = tmp_path / "module.pt"
        torch.save(torch.nn.Linear(3, 3), path)
        refused = run("load", str(path))
        assert refused.exit_code == 1
        assert "UnsafePickleError" in refused.stderr
        assert "torch.nn.modules.linear.Linear" in refused.stderr
        trusted = run("load", str(path), "--no-weights-only", "--json")
        assert json.loads(trusted.stdout)["tensors"] == 2

    def test_hints_name_the_options(self, tmp_path: Path) -> None:
        path = tmp_path / "region=eu-west-3" / "module.pt"
        path.parent.mkdir()
        torch.save(torch.nn.Linear(3, 3), path)
        assert run("load", str(path)).stderr.endswith(" (On the command line: --no-weights-only.)\n")
        assert "command line" not in run("load", str(path), "--json").stdout
        assert "command line" not in run("load", str(path.with_name("none.pt"))).stderr

    def test_a_hint_that_names_a_setting_of_s3(
        self, faulty_s3: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        assert "(On the command line: --anonymous.)" in run("load", "s3://models/new.pt").stderr

    def test_a_model_without_tensors(self, tmp_path: Path) -> None:
        torch.save({"epoch": 7}, tmp_path / "model.pt")
        assert "tensors" in run("load", str(tmp_path / "model.pt")).stdout


class TestOptionsOfS3:
    """They are made in one place, and are the same for every command."""

    KEY = bytes(range(32))

    def test_every_field_has_one(self) -> None:
        fields = {field.name for field in dataclasses.fields(S3Config)} - {"sse_customer_key"}
        for command in ("load", "doctor"):
            told = run(command, "--help").stdout
            options = [f"--{name.replace('_', '-')}" for name in fields]
            assert not [option for option in (*options, "--sse-customer-key-file") if option not in told]

    @pytest.mark.parametrize("text", [False, True], ids=["bytes", "base64"])
    def test_a_key_from_a_file(self, faulty_s3: FaultyServer, tmp_path: Path, text: bool) -> None:
        faulty_s3.put("models/new.pt", MODEL)
        file = tmp_path / "key"
        encoded = base64.b64encode(self.KEY)
        file.write_bytes(encoded + b"\n" if text else self.KEY)
        assert run("load", "s3://models/new.pt", "--sse-customer-key-file", str(file)).exit_code == 0
        sent = faulty_s3.requests[0].headers["x-amz-server-side-encryption-customer-key"]
        assert sent == encoded.decode()

    def test_a_key_that_is_none(self, model: Path, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("5ec3e7")
        result = run("load", str(model), "--sse-customer-key-file", str(file))
        assert result.exit_code == 2
        assert "5ec3e7" not in result.output
        assert run("load", str(model), "--sse-customer-key-file", str(tmp_path / "none")).exit_code == 2

    def test_who_pays(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/new.pt", MODEL)
        assert run("load", "s3://models/new.pt", "--requester-pays").exit_code == 0
        assert faulty_s3.requests[0].headers["x-amz-request-payer"] == "requester"

    def test_options_that_contradict_each_other(self, model: Path) -> None:
        assert run("load", str(model), "--external-id", "42").exit_code == 2
        assert run("load", str(model), "--anonymous", "--role-arn", "arn:x").exit_code == 2
        assert run("load", str(model), "--addressing-style", "odd").exit_code == 2


class TestFailing:
    def test_the_message_and_nothing_else(self, tmp_path: Path) -> None:
        result = run("load", str(tmp_path / "missing.pt"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"ObjectNotFoundError {tmp_path / 'missing.pt'}: there is no such file. Check the path.\n"
        )

    def test_as_json(self, tmp_path: Path) -> None:
        path = str(tmp_path / "missing.pt")
        result = run("load", path, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout) == {
            "error": {
                "type": "ObjectNotFoundError",
                "message": f"{path}: there is no such file. Check the path.",
                "uri": path,
                "hint": "Check the path.",
                "retryable": False,
            }
        }
        assert result.stderr == ""

    @pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
    @pytest.mark.parametrize("limit", ["many", "-1", "2 parsecs"])
    def test_an_option_that_makes_no_sense(self, model: Path, limit: str, as_json: list[str]) -> None:
        result = run("load", str(model), f"--memory-limit={limit}", *as_json)
        assert result.exit_code in (1, 2)
        assert limit in result.stdout + result.stderr

    def test_a_device_that_makes_no_sense(self, model: Path) -> None:
        result = run("load", str(model), "--map-location", "nonsense")
        assert result.exit_code in (1, 2)
        assert "nonsense" in result.stderr

    def test_brackets_are_not_markup(self, tmp_path: Path) -> None:
        result = run("load", str(tmp_path / "[red]missing[/red].pt"))
        assert "[red]missing[/red].pt" in result.stderr

    def test_without_an_argument(self) -> None:
        assert run("load").exit_code == 2

    def test_ctrl_c(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/new.pt", MODEL)
        # To the main thread, as a terminal does it; the server's thread is where this is called.
        faulty_s3.on(lambda: signal.raise_signal(signal.SIGINT))
        result = CliRunner().invoke(app, ["load", "s3://models/new.pt"])
        assert result.exit_code != 0
        assert "Traceback" not in result.output


class TestSecrets:
    QUERY = "X-Amz-Credential=AKIA5EC3E7&X-Amz-Signature=5ec3e7"

    @pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
    def test_none_is_shown_of_a_presigned_url(self, faulty: FaultyServer, as_json: list[str]) -> None:
        url = faulty.put("new.pt", MODEL) + f"?{self.QUERY}"
        result = run("load", url, *as_json)
        assert result.exit_code == 0
        assert "5ec3e7" not in result.output.lower()

    @pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
    def test_none_is_shown_when_it_fails(self, faulty: FaultyServer, as_json: list[str]) -> None:
        faulty.on(S3Error(403, "AccessDenied", "Request has expired"))
        result = run("load", faulty.url(f"new.pt?{self.QUERY}"), *as_json)
        assert result.exit_code == 1
        assert "expired" in result.output
        assert "5ec3e7" not in result.output.lower()


class TestProcess:
    """What only a process of its own shows."""

    def test_a_load_whose_output_is_piped_shows_no_bar(self, model: Path) -> None:
        done = run_apart("load", str(model), "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["tensors"] == 2

    def test_a_failure_shows_no_traceback(self, tmp_path: Path) -> None:
        done = run_apart("load", str(tmp_path / "missing.pt"))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("ObjectNotFoundError ")
        assert "Traceback" not in done.stderr


def test_the_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"torchwick {torchwick.__version__}\n")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["load", "--help"], ["doctor", "--help"], ["demo", "--help"]]
)
def test_help(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_no_arguments_show_help() -> None:
    result = run()
    assert "Usage" in result.output


def test_the_bar_is_for_terminals(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load = torchwick.load

    def watched(*arguments: Any, **options: Any) -> Any:
        asked.append(options["progress"])
        return load(*arguments, **options)

    monkeypatch.setattr(torchwick, "load", watched)
    run("load", str(model))
    assert asked == [False]
