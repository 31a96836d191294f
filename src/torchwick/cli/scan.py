"""``torchwick scan``: tell what the pickles of a checkpoint would import, and whether that is dangerous."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchwick.cli.failing import told
from torchwick.cli.options import s3_options
from torchwick.config import S3Config
from torchwick.inspection import Finding, ScanReport
from torchwick.inspection import scan as look_at

__all__ = ["scan"]

_STYLES = {"dangerous": "bold red", "unknown": "yellow", "safe": "green"}  # in the order of the table
_NOT_SCANNED = 2  # exit status; 1 is the verdict


@s3_options
def scan(
    uri: Annotated[str, typer.Argument(help="s3://bucket/key, https://…, or a local path.")],
    *,
    everything: Annotated[bool, typer.Option("--all", help="Show what is safe, too, name by name.")] = False,
    s3: S3Config,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell what a checkpoint's pickles would import, without loading it.

    The exit status is 1 if anything is dangerous, 2 if the object could not be scanned.
    """
    with told(as_json=as_json, s3=s3, status=_NOT_SCANNED):
        report = look_at(uri, s3=s3)
    if as_json:
        json.dump(report.to_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(Console(), report, everything=everything)
    if report.verdict == "dangerous":
        raise typer.Exit(1)


def _print(console: Console, report: ScanReport, *, everything: bool) -> None:
    verdict = Text(report.verdict, _STYLES[report.verdict])
    console.print(Text.assemble((report.uri, "bold"), f" ({report.format}): ", verdict), soft_wrap=True)
    shown = [
        finding
        for verdict in _STYLES
        for finding in report.findings
        if finding.verdict == verdict and (everything or verdict != "safe")
    ]
    if shown:
        console.print(_table(shown))
    rest = len(report.findings) - len(shown)
    if rest:
        console.print(Text(f"{rest} more {'name is' if rest == 1 else 'names are'} safe (--all shows them)"))
    if not report.findings:
        console.print(Text("It names nothing that would be imported."))
    requests = "1 request" if report.requests == 1 else f"{report.requests} requests"
    console.print(Text(f"{report.bytes_read:,} bytes read in {requests}", style="dim"))


def _table(findings: list[Finding]) -> Table:
    table = Table("verdict", "name", "rule", "where")
    for column in table.columns[1:]:
        column.overflow = "fold"
    for finding in findings:
        verdict = Text(finding.verdict, _STYLES[finding.verdict])
        table.add_row(verdict, Text(finding.name), Text(finding.rule), Text(finding.where))
    return table
