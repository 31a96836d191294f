"""Runs every row once per round and server, so that a slow minute of the machine hits all rows alike."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rows import BASE, ROWS
from benchmarks.server import BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.server import Server

TIMEOUT_S = 600


class Turn(NamedTuple):
    """One process to run."""

    round: int
    server: str
    row: str


@dataclass(frozen=True)
class Run:
    """What a process reported."""

    turn: Turn
    wall_s: float
    cpu_s: float
    peak_bytes: int
    object_bytes: int


@dataclass(frozen=True)
class Failure:
    """Why a process reported nothing."""

    turn: Turn
    reason: str


def turns(rounds: int, servers: Sequence[str], rows: Sequence[str]) -> Iterator[Turn]:
    """All turns, round by round. The order of rows changes with the round, the same way every time."""
    shuffle = random.Random(0).sample
    for number in range(1, rounds + 1):
        for server in servers:
            for row in shuffle(rows, len(rows)):
                yield Turn(number, server, row)


def warm_up(server: Server, kind: str, manifest: Path) -> None:
    """Bring both files into the page cache, and memory into the hands of a virtual machine."""
    for file in ("model.pt", "model.safetensors"):
        _process(server, kind, BASE, file, manifest)


def play(server: Server, turn: Turn, manifest: Path) -> Run | Failure:
    """Run one process to its end."""
    try:
        process = _process(server, turn.server, turn.row, ROWS[turn.row].file, manifest)
    except subprocess.TimeoutExpired:
        return Failure(turn, f"still running after {TIMEOUT_S} s")
    if process.returncode != 0:
        last_lines = process.stderr.strip().splitlines()[-1:]
        return Failure(turn, last_lines[0] if last_lines else f"exit status {process.returncode}")
    return Run(turn, **json.loads(process.stdout.splitlines()[-1]))


def _process(
    server: Server, kind: str, row: str, file: str, manifest: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.run_row", row, f"s3://{BUCKET}/{file}", manifest],
        cwd=Path(__file__).parent.parent,
        env=server.environment(kind),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
