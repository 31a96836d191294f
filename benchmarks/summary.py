"""From runs to lines of the table: medians, and ratios taken within a round.

A ratio compares two processes that ran within the same round, so that a drift of the machine over the whole
benchmark cancels; its median over the rounds is what the table leads with.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.rows import BASE, ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.rounds import Run


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of one quantity over the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Line:
    """One row on one server. The ratios are to `fill` of the same round, and empty where it did not run."""

    server: str
    row: str
    rounds: int
    wall_ratio: Spread | None
    cpu_ratio: Spread | None
    memory_per_object: Spread
    wall_s: Spread
    cpu_s: Spread


def summarise(runs: Iterable[Run]) -> list[Line]:
    """One line per server and row, in the order of the registry."""
    by_line: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_line[run.turn.server, run.turn.row].append(run)
    servers = dict.fromkeys(server for server, _ in by_line)
    return [
        _line(by_line[server, row], by_line.get((server, BASE), []))
        for server in servers
        for row in ROWS
        if (server, row) in by_line
    ]


def _line(runs: list[Run], base_runs: list[Run]) -> Line:
    bases = {run.turn.round: run for run in base_runs}
    pairs = [(run, bases[run.turn.round]) for run in runs if run.turn.round in bases]
    return Line(
        server=runs[0].turn.server,
        row=runs[0].turn.row,
        rounds=len(runs),
        wall_ratio=Spread.of([run.wall_s / base.wall_s for run, base in pairs]) if pairs else None,
        cpu_ratio=Spread.of([run.cpu_s / base.cpu_s for run, base in pairs]) if pairs else None,
        memory_per_object=Spread.of([run.peak_bytes / run.object_bytes for run in runs]),
        wall_s=Spread.of([run.wall_s for run in runs]),
        cpu_s=Spread.of([run.cpu_s for run in runs]),
    )
