"""``torchwick doctor``: find out what a load would meet, and tell what to do about it."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchwick.cli.failing import told
from torchwick.cli.options import s3_options
from torchwick.config import S3Config, TransferConfig
from torchwick.diagnosis import Check, Diagnosis
from torchwick.diagnosis.doctor import diagnose

__all__ = ["doctor"]

_SECTIONS = {
    "machine": "Machine",
    "settings": "Settings",
    "access": "Who asks",
    "network": "Network",
    "object": "Object",
    "speed": "Speed",
}
_MARKS = {
    "ok": ("✓", "green"),
    "note": ("·", "cyan"),
    "unknown": ("?", "dim"),
    "warning": ("!", "bold yellow"),
    "failed": ("✗", "bold red"),
}


@s3_options
def doctor(
    uri: Annotated[
        str | None, typer.Argument(help="s3://bucket/key, https://…, or a local path.", show_default=False)
    ] = None,
    *,
    s3: S3Config,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte after which a connection counts as dead.")
    ] = TransferConfig.timeout,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Look at all that a load depends on: machine, settings, credentials, network, object, speed."""
    with told(as_json=as_json, s3=s3):
        found = _watched(uri, s3, TransferConfig(timeout=timeout))
    if as_json:
        json.dump(found.to_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(Console(), found)
    if not found.ok:
        raise typer.Exit(1)


def _watched(uri: str | None, s3: S3Config, transfer: TransferConfig) -> Diagnosis:
    """Make the diagnosis; a terminal shows meanwhile what is being looked at."""
    if not sys.stderr.isatty():
        return diagnose(uri, s3, transfer, lambda _: None)
    with Console(stderr=True).status("") as status:
        return diagnose(uri, s3, transfer, lambda topic: status.update(f"looking at: {topic}"))


def _print(console: Console, found: Diagnosis) -> None:
    """Print the checks by section, and then what to do."""
    if found.uri is not None:
        console.print(Text(found.uri, style="bold"), soft_wrap=True)
    widest = max(len(check.topic) for check in found.checks)
    for section, checks in groupby(found.checks, key=lambda check: check.section):
        console.print()
        console.print(Text(_SECTIONS[section], style="bold"))
        console.print(_table(list(checks), widest))
    console.print()
    console.print(Text("What to do" if found.advice else _nothing_to_do(found), style="bold"))
    advice = _grid()
    for number, text in enumerate(found.advice, 1):
        advice.add_row(f"{number}.", Text(text))
    if found.advice:
        console.print(advice)


def _nothing_to_do(found: Diagnosis) -> str:
    if found.ok:
        return "There is nothing to do."
    return "Something failed, and there is no advice for it: see above."


def _grid() -> Table:
    return Table(show_header=False, box=None, padding=(0, 1))


def _table(checks: list[Check], widest: int) -> Table:
    table = _grid()
    table.add_column(no_wrap=True)
    table.add_column(style="dim", min_width=widest, no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        if "because_of" not in check.facts:
            mark, style = _MARKS[check.status]
            shown = style if check.status in ("warning", "failed", "unknown") else ""
            table.add_row(Text(mark, style), check.topic, Text(check.found, shown))
    untried = [check for check in checks if "because_of" in check.facts]
    for reason, skipped in groupby(untried, key=lambda check: check.found):
        mark, style = _MARKS["unknown"]
        told = f"{reason}: {', '.join(check.topic for check in skipped)}"
        table.add_row(Text(mark, style), "", Text(told, style))
    return table
