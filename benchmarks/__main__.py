"""The command: generate the checkpoint, serve it, run the rounds, show and write the report."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import checkpoint, machine
from benchmarks.report import COLUMNS, Report
from benchmarks.rounds import Failure, Run, play, turns, warm_up
from benchmarks.rows import BASE, ROWS
from benchmarks.server import KINDS, NginxMissingError, find_nginx, serve
from benchmarks.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _parse()
    console = Console()
    try:
        find_nginx()
    except NginxMissingError as error:
        sys.exit(str(error))
    with console.status("generating the checkpoint, once"):
        checkpoint.ensure(options.size_gb)
    runs, failures = _run(options, console)
    report = _report(options, runs, failures)
    report.write(checkpoint.OUT)
    _show(report, console)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all rows (default: 5)")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=_ONLY)
    parser.add_argument("--server", nargs="+", choices=KINDS, default=list(KINDS), help="default: all three")
    parser.add_argument("--size-gb", type=float, default=checkpoint.FULL_SIZE_GB, help="default: 2.2")
    options = parser.parse_args()
    # Every ratio needs it.
    options.only = list(dict.fromkeys([BASE, *options.only]))
    return options


_ONLY = f"rows to run beside `{BASE}`, which always runs; of: {', '.join(ROWS)} (default: all)"


def _run(options: argparse.Namespace, console: Console) -> tuple[list[Run], list[Failure]]:
    runs: list[Run] = []
    failures: list[Failure] = []
    manifest = checkpoint.manifest_path(options.size_gb)
    planned = list(turns(options.rounds, options.server, options.only))
    columns = [
        TextColumn("{task.description:<45}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with serve(manifest.parent) as server, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(planned))
        for kind in options.server:
            progress.update(task, description=f"warming up · {kind}")
            warm_up(server, kind, manifest)
        for turn in planned:
            label = f"round {turn.round} of {options.rounds} · {turn.server} · {turn.row}"
            progress.update(task, description=label)
            # A row that failed once on a server would fail, and perhaps time out, in every other round too.
            if not any(failure.turn[1:] == turn[1:] for failure in failures):
                outcome = play(server, turn, manifest)
                if isinstance(outcome, Run):
                    runs.append(outcome)
                else:
                    failures.append(outcome)
            progress.advance(task)
        progress.update(task, description="done")
    return runs, failures


def _report(options: argparse.Namespace, runs: Sequence[Run], failures: Sequence[Failure]) -> Report:
    manifest = checkpoint.Manifest.read(checkpoint.manifest_path(options.size_gb))
    size = manifest.artifacts["model.pt"].size
    return Report(
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        checkpoint=f"{manifest.tensors} tensors in bfloat16, {size / 1e9:.2f} GB",
        machine=machine.describe(),
        versions=machine.versions(),
        lines=summarise(runs),
        runs=runs,
        failures=failures,
    )


def _show(report: Report, console: Console) -> None:
    for server in report.servers():
        table = Table(title=KINDS[server], title_justify="left", box=box.SIMPLE_HEAD)
        for number, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if number else "left", no_wrap=number in (0, 2))
        for line in report.table(server):
            table.add_row(*line)
        console.print(table)
    for sentence in report.not_run():
        console.print(f"not run: {sentence}", style="yellow", markup=False)
    console.print(f"Written: {checkpoint.OUT / 'report.md'} and report.json beside it", style="dim")


if __name__ == "__main__":
    main()
