"""What a benchmark leaves behind: report.json with every run, and report.md for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from benchmarks.server import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.rounds import Failure, Run
    from benchmarks.summary import Line, Spread

COLUMNS = (
    "row",
    "time ÷ fill",
    "least to most",
    "CPU ÷ fill",
    "peak ÷ object",
    "time, s",
)


@dataclass(frozen=True)
class Report:
    """All there is to say about one benchmark."""

    command: str
    checkpoint: str
    machine: dict[str, str]
    versions: dict[str, str]
    lines: Sequence[Line]
    runs: Sequence[Run]
    failures: Sequence[Failure]

    def servers(self) -> list[str]:
        """The servers that at least one row ran on."""
        return list(dict.fromkeys(line.server for line in self.lines))

    def table(self, server: str) -> list[tuple[str, ...]]:
        """The cells of one server's table, without its header."""
        return [cells(line) for line in self.lines if line.server == server]

    def not_run(self) -> list[str]:
        """One sentence per row and server that failed."""
        return [
            f"{turn.row} on {turn.server}, round {turn.round}: {failure.reason}"
            for failure in self.failures
            for turn in [failure.turn]
        ]

    def write(self, folder: Path) -> None:
        """Write both files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(_as_json(self), indent=2) + "\n")
        (folder / "report.md").write_text(_as_markdown(self))


def cells(line: Line) -> tuple[str, ...]:
    """One line of the table, ratios first."""
    return (
        line.row,
        _middle(line.wall_ratio),
        _ends(line.wall_ratio),
        _middle(line.cpu_ratio),
        _middle(line.memory_per_object),
        _middle(line.wall_s),
    )


def _middle(spread: Spread | None) -> str:
    return f"{spread.median:.2f}" if spread else ""


def _ends(spread: Spread | None) -> str:
    return f"{spread.least:.2f} to {spread.greatest:.2f}" if spread else ""


def _as_json(report: Report) -> dict[str, object]:
    return {
        **asdict(report),
        "runs": [_flat(run) for run in report.runs],
        "failures": [_flat(failure) for failure in report.failures],
    }


def _flat(outcome: Run | Failure) -> dict[str, object]:
    fields = asdict(outcome)
    return {**fields.pop("turn")._asdict(), **fields}


def _as_markdown(report: Report) -> str:
    sections = ["# Benchmark report", f"Checkpoint: {report.checkpoint}.", _READING]
    for server in report.servers():
        sections += [f"## {KINDS[server]}", _markdown_table(COLUMNS, report.table(server))]
    sections += ["## Not run", _bullets(report.not_run()) or "Every row ran on every server asked for."]
    sections += ["## Machine", _markdown_table(("what", "value"), report.machine.items())]
    sections += ["## Versions", _markdown_table(("what", "version"), report.versions.items())]
    sections += ["## Again", f"From the repository root:\n\n    {report.command}"]
    return "\n\n".join(sections) + "\n"


_READING = """\
Each row is a whole process, timed from after `import torch` until its tensors are there. Ratios are to `fill`
on the same server in the same round; the table gives their median over the rounds, and their ends. Seconds
belong to this machine alone. What each row does, and why `fill` is the measure: `benchmarks/README.md`."""


def _markdown_table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    header = tuple(header)
    lines = [header, ("---",) + ("---:",) * (len(header) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
