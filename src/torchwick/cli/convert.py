"""``torchwick convert``: write a checkpoint of any format, wherever it is, as safetensors."""

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
from torchwick.config import S3Config, TransferConfig
from torchwick.saving import Conversion
from torchwick.saving import convert as write

__all__ = ["convert"]

_MOST_NAMED = 4  # of many names in one line


@s3_options
def convert(
    src: Annotated[str, typer.Argument(help="s3://bucket/key, https://…, or a local path; or a directory.")],
    dst: Annotated[str, typer.Argument(help="new.safetensors, or a directory: new/; local, or in S3.")],
    *,
    dtype: Annotated[
        str | None, typer.Option(help="What floating-point tensors are cast to: bf16, fp16, float8_e4m3fn, …")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Bytes of one file of a directory, such as 5GB.")
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option(help="A tensor, or a pattern such as 'model.*'; may be repeated.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(help="A beginning of names and its new form, such as 'model.='; may be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    copy_ties: Annotated[
        bool, typer.Option("--copy-ties", help="Write tensors that have several names once for each.")
    ] = False,
    s3: S3Config,
    connections: Annotated[
        int | None, typer.Option(min=1, help="Connections at once; adapts if left out.")
    ] = None,
    memory_limit: Annotated[str, typer.Option(help="Bytes held at once, such as 2GB.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Write a checkpoint of any format as safetensors, tensor by tensor, and show what was written."""
    import torch  # noqa: F401 - whose import is no part of the time shown

    with told(as_json=as_json, s3=s3):
        report = write(
            src,
            dst,
            dtype=dtype,
            max_shard_size=max_shard_size,
            keys=keys or None,
            rename=dict(map(_prefixes, rename or [])),
            overwrite=overwrite,
            copy_ties=copy_ties,
            progress=sys.stderr.isatty(),
            s3=s3,
            transfer=TransferConfig(connections=connections or "auto", memory_limit=memory_limit),
        )
    if as_json:
        json.dump(report.to_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        Console().print(_table(report))


def _prefixes(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise ValueError(f"--rename takes OLD=NEW, not {text!r}")
    return old, new


def _table(report: Conversion) -> Table:
    table = Table(show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rate = sum(file.size for file in report.files) / report.seconds
    casts = ", ".join(f"{count} from {dtype}" for dtype, count in report.casts.items())
    rows = {
        "source": f"{report.source} ({report.format})",
        "files": _few([f"{file.uri} ({file.size:,} bytes)" for file in report.files], "\n"),
        "tensors": f"{report.tensors:,}, {report.tensor_bytes:,} bytes",
        f"cast to {report.dtype}": casts or "none",
        "other names": _few([f"{other} is {name}" for other, name in report.ties.items()]),
        "left out": _few([f"{name}: {text}" for name, text in report.left_out.items()]),
        "read": f"{report.bytes_read:,} bytes",
        "requests": f"{report.requests}, of which {report.retries} were retries",
        "time": f"{report.seconds:.2f} s, {rate / 1e9:.2f} GB/s",
    }
    for name, text in rows.items():
        if text and (report.dtype or not name.startswith("cast")):
            table.add_row(name, Text(text))
    return table


def _few(texts: list[str], between: str = ", ") -> str:
    more = len(texts) - _MOST_NAMED
    return between.join([*texts[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])
