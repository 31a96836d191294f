"""What the documentation says holds: its Python runs, its links lead somewhere, its messages are the code's.

A Python block runs against the real S3 server, in the order of its page, unless the line before it says
`<!-- not run: … -->`: then it only has to compile. A text block after `<!-- prints -->` is what the block
before it prints; `…` in it stands for anything.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import tomllib
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch

import torchwick
from torchwick import errors
from torchwick.demo.environment import aws_environment

if TYPE_CHECKING:
    from torchwick.demo.server import SeaweedFS

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
}
BUCKET = "models"

_FENCE = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\[[^\]\[]*\](?:\((?P<target>[^()\s]+)\)|\[(?P<name>torchwick\.\w+)\])")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    marker: str
    text: str
    line: int


def _blocks(page: str) -> list[Block]:
    text = PAGES[page]
    return [
        Block(m["language"], m["marker"] or "", m["text"], text.count("\n", 0, m.start("text")) + 1)
        for m in _FENCE.finditer(text)
    ]


def _prose(page: str) -> str:
    """The page without its code."""
    text = _FENCE.sub("", PAGES[page])
    return re.sub(r"`[^`]*`", "", re.sub(r"(?m)^    .*$", "", text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in _blocks(page))]


# -- the objects that the pages speak of -------------------------------------------------------------------


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _scripted() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def _with_two_pickles() -> bytes:
    file = io.BytesIO(_saved({"weight": torch.ones(2)}))
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile, too, finds a second record of one name odd
        archive.writestr("archive/data.pkl", b"another")
    return file.getvalue()


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.ones(2))
    return file.getvalue()


def _tiny_llama() -> dict[str, bytes]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    model.generation_config.max_new_tokens = 17
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="60KB")
        return {f"tiny-llama/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}


def _objects() -> dict[str, bytes]:
    torch.manual_seed(0)
    classifier = torch.nn.Linear(2048, 1000).state_dict()
    return {
        "classifier.pt": _saved(dict(classifier)),
        "classifier.safetensors": safetensors.torch.save(dict(classifier)),
        "metrics.pt": _saved({"weight": torch.ones(2), "loss": np.float64(0.25)}),
        "module.pt": _saved(torch.nn.Linear(2, 2)),
        "scripted.pt": _scripted(),
        "page.pt": b"<!DOCTYPE html>\n<html></html>\n",
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\n",
        "empty.pt": b"",
        "plain.pkl": b"\x80\x04}q\x00.",
        "half.pt": _saved({"weight": torch.ones(200)})[:1000],
        "half.safetensors": safetensors.torch.save({"w": torch.ones(200)})[:-100],
        "twice.pt": _with_two_pickles(),
        "arrays.npz": _npz(),
        **_tiny_llama(),
    }


@pytest.fixture(scope="session")
def models(s3_client: Any, s3_server: SeaweedFS) -> str:
    """The bucket of the documentation, which keeps versions, with all that its pages load."""
    names = [bucket["Name"] for bucket in s3_client.list_buckets()["Buckets"]]
    with aws_environment(s3_server.environment()):
        if BUCKET not in names:
            s3_client.create_bucket(Bucket=BUCKET)
        s3_client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        for key, body in _objects().items():
            s3_client.put_object(Bucket=BUCKET, Key=key, Body=body)
    return BUCKET


# -- Python ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs_and_prints_what_the_page_says(
    page: str, aws_env: SeaweedFS, models: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__page__"}
    printed = ""
    for block in _blocks(page):
        if block.language == "python":
            code = compile(block.text, f"{page}:{block.line}", "exec")
            if not block.marker.startswith("not run: "):
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(code, namespace)
                printed = output.getvalue()
        elif block.marker == "prints":
            assert re.fullmatch(_pattern(block.text), printed, re.DOTALL), f"{page}:{block.line}: {printed}"


def _pattern(text: str) -> str:
    return ".*".join(map(re.escape, text.split("…")))


def test_markers_are_ones_that_mean_something() -> None:
    for page in PAGES:
        for block in _blocks(page):
            assert re.fullmatch(r"|prints|benchmark|not run: \S.*", block.marker), (page, block.line)
            assert block.marker != "prints" or block.language == "text", (page, block.line)


# -- links -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for match in _LINK.finditer(_FENCE.sub("", PAGES[page])):
        if match["name"]:
            assert f"::: {match['name']}\n" in PAGES["docs/api.md"], f"{page}: {match[0]}"
        elif not re.match(r"https?://", match["target"]):
            _check_link(page, match["target"])


def _check_link(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists(), f"{page} links to {target}: there is no such file"
    if anchor:
        assert anchor in _anchors(path.read_text(encoding="utf-8")), (
            f"{page} links to {target}: no such heading"
        )


def _anchors(text: str) -> set[str]:
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_navigation_names_every_page() -> None:
    named = set(
        re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}


# -- completeness ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", torchwick.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert f"::: torchwick.{name}\n" in PAGES["docs/api.md"]


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_a_section(name: str) -> None:
    assert f"\n## {name}\n" in PAGES["docs/errors.md"]


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for requirement in required:
        name = re.split(r"[\[<>=; ]", requirement)[0]
        assert name == "torchwick" or f"`{name}`" in PAGES["docs/dependencies.md"], requirement


def test_command_line_options_are_shown() -> None:
    from typer.main import get_command

    from torchwick.cli import app

    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert f"`torchwick {name}`" in PAGES["docs/cli.md"]
        for option in (option for parameter in command.params for option in parameter.opts):
            assert option in PAGES["docs/cli.md"], f"torchwick {name} {option}"


@pytest.mark.parametrize("page", PAGES)
def test_words(page: str) -> None:
    text = re.sub(r'"[^"]*"', "", _prose(page))  # quoted, a word may be spoken of
    assert not re.findall(r"(?i)\b(?:blob|chunk|download)\w*", text)


# -- commands ----------------------------------------------------------------------------------------------


def test_documented_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, text in PAGES.items():
        code = " ".join([*re.findall(r"`([^`\n]+)`", text), *(block.text for block in _blocks(page))])
        for target in re.findall(r"(?<!\w)make (demo|test|lint|bench|docs|clean)\b", code):
            assert f"\n{target}:" in makefile, f"{page}: make {target}"
