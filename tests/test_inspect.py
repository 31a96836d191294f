"""`inspect` shows what a checkpoint holds, for a few requests, and a stranger's names as mere text."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

import torchwick
from checkpoints.base import save_bytes
from conftest import run_python
from torchwick.cli import app
from torchwick.inspection import Module, Summary, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from faulty import FaultyServer

MIB = 1 << 20
TIMES = "\N{MULTIPLICATION SIGN}"


def run(*arguments: str) -> Result:
    """Run the command in this process; an error that reaches the top is raised."""
    result = CliRunner().invoke(app, ["inspect", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def summary_of(path: Path, value: Any) -> Summary:
    torch.save(value, path)
    with torchwick.open(path) as ckpt:
        return summarize(ckpt)


def tree(module: Module) -> dict[str, Any]:
    """The names of a tree, each with what is under it."""
    return {child.name: tree(child) for child in module.children}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def layer(width: int = 3) -> dict[str, torch.Tensor]:
    return {"attn.q.weight": torch.ones(width, 2), "attn.q.bias": torch.ones(width), "norm": torch.ones(2)}


def layers(widths: Mapping[int, int]) -> dict[str, torch.Tensor]:
    return {
        f"model.layers.{number}.{name}": tensor
        for number, width in widths.items()
        for name, tensor in layer(width).items()
    }


class TestSummary:
    def test_sums_are_torchs(self, file: Path) -> None:
        state = {
            **layers({0: 3, 1: 3}),
            "embed": torch.ones(5, 7, dtype=torch.bfloat16),
            "n": torch.tensor(1),
        }
        summary = summary_of(file, state)
        assert summary.total.tensors == len(state)
        assert summary.total.parameters == sum(tensor.numel() for tensor in state.values())
        assert summary.total.bytes == summary.distinct_bytes == sum(t.nbytes for t in state.values())
        assert {dtype: amount.tensors for dtype, amount in summary.dtypes.items()} == {
            "F32": 6,
            "BF16": 1,
            "I64": 1,
        }
        assert summary.modules.amount == summary.total
        assert set(summary.tensors) == set(state)
        assert (summary.size, summary.uri) == (file.stat().st_size, str(file))
        assert summary.objects == (torchwick.checkpoint.info.ObjectFact(str(file), file.stat().st_size),)

    def test_what_is_shared_counts_once(self, file: Path) -> None:
        whole = torch.ones(100)
        summary = summary_of(file, {"a": whole, "b": whole, "half": whole[50:], "own": torch.ones(7)})
        assert summary.total.bytes == (100 + 100 + 50 + 7) * 4
        assert (summary.distinct_bytes, summary.tied_bytes) == (107 * 4, 150 * 4)
        assert "600 bytes of it shared" in run(str(file)).stdout

    @pytest.mark.parametrize(
        "tensor",
        [torch.ones(1).expand(100), torch.ones(10, 10)[:, 0], torch.ones(4, 5).t(), torch.ones(0, 3)],
        ids=["expanded", "column", "transposed", "empty"],
    )
    def test_views_are_never_more_than_they_are(self, file: Path, tensor: torch.Tensor) -> None:
        summary = summary_of(file, {"a": tensor})
        assert summary.total.bytes == tensor.nbytes
        assert summary.distinct_bytes == (4 if tensor.shape == (100,) else tensor.nbytes)

    def test_layers_that_are_alike_are_one(self, file: Path) -> None:
        summary = summary_of(file, layers(dict.fromkeys(range(12), 3)))
        (model,) = summary.modules.children
        (folded,) = model.children[0].children
        assert (folded.name, folded.copies) == ("[0-11]", 12)
        assert folded.amount == summary.total
        assert tree(folded) == {"attn": {"q": {"weight": {}, "bias": {}}}, "norm": {}}
        assert folded.children[0].children[0].children[0].amount.parameters == 12 * 6

    @pytest.mark.parametrize(
        "other", [{"norm": torch.ones(3)}, {"norm": torch.ones(2).half()}, {"more": torch.ones(1)}], ids=str
    )
    def test_layers_that_differ_are_not(self, file: Path, other: dict[str, torch.Tensor]) -> None:
        odd = {f"model.layers.1.{name}": tensor for name, tensor in {**layer(), **other}.items()}
        summary = summary_of(file, {**layers(dict.fromkeys(range(4), 3)), **odd})
        assert list(tree(summary.modules)["model"]["layers"]) == ["[0,2-3]", "1"]

    def test_experts_in_layers(self, file: Path) -> None:
        state = {f"layers.{n}.experts.{e}.w": torch.ones(2) for n in range(3) for e in range(4)}
        summary = summary_of(file, state)
        assert tree(summary.modules) == {"layers": {"[0-2]": {"experts": {"[0-3]": {"w": {}}}}}}
        assert f"layers.[0-2].experts.[0-3].w {TIMES}12  F32 [2]" in run(str(file)).stdout

    def test_numbers_are_numbers_only_if_written_so(self, file: Path) -> None:
        names = ["0", "1", "01", "-1", "²", "1" * 5000]
        summary = summary_of(file, {f"l.{name}": torch.ones(2) for name in names})
        assert list(tree(summary.modules)["l"]) == ["[0-1]", *names[2:]]

    def test_a_name_that_is_a_tensor_and_a_prefix(self, file: Path) -> None:
        summary = summary_of(file, {"a": torch.ones(2), "a.b": torch.ones(3), "a.c": torch.ones(4)})
        (a,) = summary.modules.children
        assert (a.dtype, a.shape, a.amount.parameters) == ("F32", (2,), 9)
        assert list(tree(a)) == ["b", "c"]
        assert "F32 [2] and 2 tensors" in run(str(file)).stdout

    def test_to_dict_is_json(self, file: Path) -> None:
        summary = summary_of(file, {**layers({0: 3, 1: 3}), "epoch": 3})
        told = json.loads(json.dumps(summary.to_dict()))
        assert told["others"] == {"epoch": "3"}
        assert told["modules"]["children"][0]["children"][0]["children"][0]["copies"] == 2
        told["objects"][0]["size"] = 0
        assert summary.to_dict()["objects"][0]["size"] == file.stat().st_size


class TestOddNames:
    NAMES = ("", ".", "a.", ".a", "a..b", "a", "a.b.c", " ")

    def test_each_is_in_the_tree_and_the_table(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file({name: torch.ones(2) for name in self.NAMES}, path)
        with torchwick.open(path) as ckpt:
            summary = summarize(ckpt)
        assert set(summary.tensors) == set(self.NAMES)
        assert summary.modules.amount.tensors == len(self.NAMES)
        assert run(str(path)).exit_code == 0
        assert run(str(path), "--tensors").stdout.count("F32") == len(self.NAMES) + 1

    def test_the_empty_one_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file({"": torch.ones(2)}, path)
        assert "\n''  F32 [2]" in run(str(path)).stdout
        assert "\n''    F32" in run(str(path), "--tensors").stdout

    def test_no_markup_and_no_control_characters(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        odd = "[red]w[/red]\x1b[31m\n\r\u202e"
        safetensors.torch.save_file({odd: torch.ones(2)}, path, {f"key {odd}": f"text {odd}"})
        for arguments in ([], ["--tensors"]):
            shown = run(str(path), *arguments).stdout
            assert shown.count("[red]w[/red]\\x1b[31m\\n\\r\\u202e") == 3
            assert not {"\x1b", "\r", "\u202e"} & set(shown)
        assert odd in json.loads(run(str(path), "--json").stdout)["tensors"]

    def test_a_half_of_a_character(self, file: Path) -> None:
        torch.save({"\ud800": torch.ones(2)}, file)
        assert "\\ud800" in run(str(file)).stdout
        assert "\\ud800" in run(str(file), "--tensors").stdout
        assert run(str(file), "--json").exit_code == 0

    def test_a_name_of_very_many_levels(self, file: Path) -> None:
        torch.save({"a." * 5000 + "w": torch.ones(2), "a." * 4999 + "w": torch.ones(2)}, file)
        assert run(str(file)).exit_code == 0
        assert run(str(file), "--json").exit_code == 0

    def test_a_very_long_text_is_cut(self, file: Path) -> None:
        torch.save({"w" * 100_000: torch.ones(2), "note": "n" * 100_000}, file)
        assert len(run(str(file)).stdout) < 2000


class TestCommand:
    def test_facts(self, file: Path) -> None:
        torch.save({**layers({0: 3, 1: 3}), "epoch": 3}, file)
        shown = run(str(file)).stdout
        for told in (
            str(file),
            "torch zip",
            "6, of 88 bytes",
            "6 F32 (88 bytes)",
            "epoch: 3",
            "in 1 request",
        ):
            assert told in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("model.layers.")]
        assert line.split() == f"model.layers.[0-1] {TIMES}2 6 tensors 22 88 bytes 100.0%".split()

    def test_depth(self, file: Path) -> None:
        torch.save({**layers({0: 3, 1: 4}), "embed": torch.ones(2)}, file)
        assert "attn" not in run(str(file), "--depth", "2").stdout
        assert "attn" in run(str(file), "--depth", "3").stdout
        assert run(str(file), "--depth", "0").exit_code == 2

    def test_every_tensor(self, file: Path) -> None:
        torch.save(layers({0: 3}), file)
        lines = run(str(file), "--tensors").stdout.splitlines()
        with torchwick.open(file) as ckpt:
            for name in ckpt:
                ((_, start, stop),) = ckpt.info(name).places
                (line,) = [line for line in lines if line.startswith(f"{name} ")]
                assert line.endswith(f" {start}-{stop}")
                assert file.read_bytes()[start:stop] == ckpt[name].numpy().tobytes()

    def test_json(self, file: Path) -> None:
        torch.save({"w": torch.ones(2, 3)}, file)
        told = json.loads(run(str(file), "--json").stdout)
        ((_, start, stop),) = told["tensors"]["w"]["places"]
        assert (told["tensors"]["w"]["dtype"], told["tensors"]["w"]["shape"]) == ("F32", [2, 3])
        assert stop - start == told["tensors"]["w"]["nbytes"] == 24

    def test_no_tensors(self, file: Path) -> None:
        torch.save({"epoch": 7}, file)
        for arguments in ([], ["--tensors"], ["--json"], ["--depth", "3"]):
            result = run(str(file), *arguments)
            assert result.exit_code == 0
            assert "7" in result.stdout
        assert "0, of 0 bytes" in run(str(file)).stdout

    def test_a_failure(self, tmp_path: Path) -> None:
        result = run(str(tmp_path / "none.pt"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("ObjectNotFoundError ")
        assert "error" in json.loads(run(str(tmp_path / "none.pt"), "--json").stdout)

    @pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
    def test_a_directory_of_distributed_checkpoint(self, tmp_path: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save({"model": {"w": torch.ones(2, 3)}}, checkpoint_id=tmp_path, no_dist=True)
        shown = run(f"{tmp_path}/").stdout
        assert "dcp" in shown
        assert "model.w" in shown

    def test_a_hundred_thousand_tensors(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        names = [f"layers.{n}.p{n % 7}.{k}" for n in range(10_000) for k in "abcdefghij"]
        header = {
            name: {"dtype": "F32", "shape": [1], "data_offsets": [at * 4, at * 4 + 4]}
            for at, name in enumerate(names)
        }
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(names)))
        began = time.monotonic()
        assert "100,000, of 400.0 kB" in run(str(path)).stdout
        assert time.monotonic() - began < 30

    def test_a_tree_longer_than_a_screen(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file({f"p{n}": torch.ones(1) for n in range(100)}, path)
        assert "… and 60 more" in run(str(path)).stdout
        assert "p99 " in run(str(path), "--depth", "1").stdout


class TestTraffic:
    """Counted at the server, and told as it was counted."""

    def test_sixty_four_shards(self, faulty_s3: FaultyServer) -> None:
        names = [f"model-{number:05}-of-00064.safetensors" for number in range(1, 65)]
        where: dict[str, str] = {}
        for at, name in enumerate(names):
            state = {f"layers.{at}.{k}": torch.zeros(100, 100) for k in range(5)}
            faulty_s3.put(f"models/big/{name}", safetensors.torch.save(state))
            where |= dict.fromkeys(state, name)
        index = json.dumps({"metadata": {"total_size": 64 * 200_000}, "weight_map": where}).encode()
        faulty_s3.put("models/big/model.safetensors.index.json", index)
        told = json.loads(run("s3://models/big/", "--json").stdout)
        assert len(told["objects"]) == 64
        assert told["total"]["bytes"] == 64 * 200_000
        assert told["requests"] == len(faulty_s3.requests) <= 64 + 4
        assert told["bytes_read"] <= 8_000_000
        assert f"layers.[0-63].[0-4] {TIMES}320" in run("s3://models/big/").stdout
        assert "model-00064-of-00064.safetensors " in run("s3://models/big/", "--tensors").stdout

    def test_one_file(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/one.pt", save_bytes({f"l.{n}": torch.zeros(512, 512) for n in range(30)}))
        told = json.loads(run("s3://models/one.pt", "--json").stdout)
        assert told["size"] > 30_000_000
        assert told["requests"] == len(faulty_s3.requests) <= 3
        assert told["bytes_read"] <= MIB
        assert run("s3://models/one.pt").stdout.count("in 2 requests") == 1


class TestProcess:
    SCRIPT = (
        "import sys\n"
        "from torchwick.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'tqdm', 'botocore', 'torchwick.cli.load'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    @pytest.mark.parametrize("kind", ["pt", "safetensors", "directory"])
    def test_no_torch(self, tmp_path: Path, kind: str) -> None:
        state = layers({0: 3, 1: 3})
        safetensors.torch.save_file(state, tmp_path / "model.safetensors")
        torch.save(state, tmp_path / "model.pt")
        target = f"{tmp_path}/" if kind == "directory" else str(tmp_path / f"model.{kind}")
        for arguments in ([], ["--tensors"], ["--json"]):
            shown = run_python(self.SCRIPT, "inspect", target, *arguments)
            assert shown.splitlines()[-1] == "[]"
            assert "layers" in shown

    def test_a_terminal_without_utf_8(self, file: Path) -> None:
        torch.save(layers({0: 3, 1: 3}), file)
        shown = run_python(self.SCRIPT, "inspect", str(file), PYTHONIOENCODING="ascii")
        assert "model.layers.[0-1]" in shown
