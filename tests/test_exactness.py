"""`load` gives what torch.load and safetensors give on the same file, or refuses as they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import torchwick
from checkpoints import NOT_MODELS, ODD_CHECKPOINTS, SAFETENSORS, OddCheckpoint
from oracle import assert_same
from torchwick import LoadReport
from torchwick.formats import torch_zip
from torchwick.transfer import ranges

CASES = {case.name: case for case in ODD_CHECKPOINTS}
AMBIGUOUS = {name for name in CASES if name.startswith("zip_duplicate")}
"""Two records of one name: torch takes one of them, which a scanner may not have seen. We refuse."""

ELSEWHERE = ("on_", "legacy_on_")
MISSING_DEVICE = {name for name, case in CASES.items() if case.path == "error" and name.startswith(ELSEWHERE)}
"""Saved on, or sent to, a device that is not here: what torch raises is about the machine, not the file."""

WHOLE = ("whole", 256 << 10)
NARROW = ("narrow", 600)


@pytest.fixture
def edges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How much of a file is fetched before it is laid out: all of these small files, or nearly nothing."""
    name, size = request.param
    monkeypatch.setattr(ranges, "READ_AHEAD", size)
    monkeypatch.setattr(torch_zip, "TAIL", size)
    return str(name)


def _combinations() -> list[object]:
    """Every case with both edges, but for comments, which push the directory out of a narrow tail."""
    return [
        pytest.param(edges, name, id=f"{edges[0]}-{name}")
        for edges in (WHOLE, NARROW)
        for name in CASES
        if edges is WHOLE or "comment" not in name
    ]


both_edges = pytest.mark.parametrize("edges", [WHOLE, NARROW], ids=["whole", "narrow"], indirect=True)


@pytest.mark.parametrize(("edges", "name"), _combinations(), indirect=["edges"])
def test_odd_checkpoint(name: str, edges: str, tmp_path: Path) -> None:
    case, path = CASES[name], tmp_path / "model.pt"
    case.build(path)
    with case.setting():
        if name in AMBIGUOUS:
            _refuses(torchwick.FormatError, path, case)
        elif case.loads:
            _loads_alike(path, case)
        elif case.path == "pt2" and not case.weights_only:
            exported = torchwick.load(path, **case.options)
            assert isinstance(exported, torch.export.ExportedProgram)
        elif case.path in ("refused", "torchscript", "pt2"):
            _refuses(torchwick.UnsafePickleError, path, case)
        elif name in MISSING_DEVICE or not case.weights_only:
            _refuses((torchwick.FormatError, RuntimeError, AttributeError, ImportError), path, case)
        else:
            _refuses(torchwick.FormatError, path, case)


def _loads_alike(path: Path, case: OddCheckpoint) -> None:
    reports: list[LoadReport] = []
    jit_load: Any = torch.jit.load
    loaded = torchwick.load(path, **case.options, on_report=reports.append)
    oracle: object = jit_load(path) if case.path == "torchscript" else torch.load(path, **case.options)
    assert_same(loaded, oracle)
    if case.path in ("deferred", "spooled"):
        assert reports[0].method == case.path


def _refuses(kind: type[Exception] | tuple[type[Exception], ...], path: Path, case: OddCheckpoint) -> None:
    with pytest.raises(kind) as caught:
        torchwick.load(path, **case.options)
    if isinstance(caught.value, torchwick.TorchwickError):
        assert str(path) in str(caught.value)


@both_edges
@pytest.mark.parametrize("name", SAFETENSORS)
def test_odd_safetensors(name: str, edges: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[name]())
    loaded, expected = torchwick.load(path), safetensors.torch.load_file(path)
    if name == "empties":  # safetensors orders tensors without bytes at random
        expected = {key: expected[key] for key in loaded}
    assert_same(loaded, expected, storages=False)


@both_edges
@pytest.mark.parametrize("name", NOT_MODELS)
def test_not_a_model(name: str, edges: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(NOT_MODELS[name])
    with pytest.raises(torchwick.FormatError) as caught:
        torchwick.load(path)
    assert str(path) in str(caught.value)
