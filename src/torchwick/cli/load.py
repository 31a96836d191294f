"""``torchwick load``: load a checkpoint, and tell how it went."""

from __future__ import annotations

import json
import resource
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import torchwick
from torchwick.cli.failing import told
from torchwick.cli.options import s3_options
from torchwick.config import S3Config, TransferConfig
from torchwick.report import LoadReport

if TYPE_CHECKING:
    from torchwick.cli.contents import Contents

__all__ = ["load"]


@s3_options
def load(
    uri: Annotated[str, typer.Argument(help="s3://bucket/key, https://…, or a local path.")],
    *,
    map_location: Annotated[str | None, typer.Option(help="Where tensors go: cpu, cuda:0, meta.")] = None,
    weights_only: Annotated[
        bool, typer.Option(help="Refuse pickles that import anything but tensors and containers.")
    ] = True,
    verify: Annotated[
        bool | None,
        typer.Option(help="Hold the bytes against S3's checksum; if left out, where there is one."),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="The SHA-256 that the file has to have.")] = None,
    s3: S3Config,
    connections: Annotated[
        int | None, typer.Option(min=1, help="Connections at once; adapts if left out.")
    ] = None,
    memory_limit: Annotated[str, typer.Option(help="Bytes held beside the tensors, such as 2GB.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Load a checkpoint into memory, and show what it holds and what loading it took."""
    from torchwick.cli.contents import look  # imports torch, whose import is no part of the time shown

    reports: list[LoadReport] = []
    with told(as_json=as_json, s3=s3):
        value = torchwick.load(
            uri,
            map_location,
            weights_only=weights_only,
            verify="auto" if verify is None else verify,
            sha256=sha256,
            progress=sys.stderr.isatty(),
            on_report=reports.append,
            s3=s3,
            transfer=TransferConfig(connections=connections or "auto", memory_limit=memory_limit),
        )
    facts = _facts(look(value), reports[0])
    if as_json:
        json.dump(facts, sys.stdout)
        sys.stdout.write("\n")
    else:
        Console().print(_table(facts))


def _facts(contents: Contents, report: LoadReport) -> dict[str, Any]:
    return report.to_dict() | {
        "tensors": contents.tensors,
        "dtypes": contents.dtypes,
        "tensor_bytes": contents.bytes,
        "bytes_per_second": report.size / report.seconds,
        "peak_memory": _peak_memory(),
    }


def _peak_memory() -> int:
    """Bytes of the largest this process has been, torch included (getrusage(2): kilobytes on Linux)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _table(facts: dict[str, Any]) -> Table:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in facts["dtypes"].items())
    table = Table(title=facts["uri"], show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = {
        "format": f"{facts['format']} ({facts['method']})",
        "tensors": f"{facts['tensors']:,}" + (f": {dtypes}" if dtypes else ""),
        "bytes": f"{facts['size']:,}",
        "time": f"{facts['seconds']:.2f} s, {facts['bytes_per_second'] / 1e9:.2f} GB/s",
        "requests": f"{facts['requests']}, of which {facts['retries']} were retries",
        "connections": f"{facts['connections']}",
        "verified": facts["verified"] or "no",
        "version": " ".join(filter(None, (facts["version"], facts["etag"]))) or "unknown",
        "peak memory": f"{facts['peak_memory'] / 1e9:.2f} GB of the whole process",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table
