"""``torchwick diff``: tell what is different in two checkpoints."""

from __future__ import annotations

import json
import math
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchwick.cli.failing import told
from torchwick.cli.options import s3_options
from torchwick.cli.shown import shown
from torchwick.config import S3Config, TransferConfig
from torchwick.inspection import Difference, TensorPair
from torchwick.inspection import diff as compare

__all__ = ["diff"]

_NOT_COMPARED = 2  # exit status; 1 is: different
_MOST_SHOWN = 50  # rows, unless all are asked for

Row = tuple[Text, ...]


@s3_options
def diff(
    a: Annotated[str, typer.Argument(help="s3://bucket/key, a directory, https://…, or a local path.")],
    b: Annotated[str, typer.Argument(help="What it is compared with.")],
    *,
    values: Annotated[bool, typer.Option(help="Compare values, not only names, dtypes and shapes.")] = True,
    strip: Annotated[str, typer.Option(help="Taken from names that begin with it, such as module.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Show what is equal, too, and every row.")
    ] = False,
    s3: S3Config,
    memory_limit: Annotated[str, typer.Option(help="Bytes held at once; 1 GiB if left out.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell what is different in two checkpoints: names, dtypes, shapes and values.

    The exit status is 0 if they are equal, 1 if they are different, 2 if one could not be read.
    """
    with told(as_json=as_json, s3=s3, status=_NOT_COMPARED):
        found = compare(
            a,
            b,
            values=values,
            strip=strip,
            progress=sys.stderr.isatty(),
            s3=s3,
            transfer=TransferConfig(memory_limit=memory_limit),
        )
    if as_json:
        json.dump(found.to_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(Console(), found, everything=everything)
    if not found.equal:
        raise typer.Exit(1)


def _print(console: Console, found: Difference, *, everything: bool) -> None:
    verdict = Text("equal", "green") if found.equal else Text("different", "bold red")
    heading = Text.assemble("A ", shown(found.a, "bold"), "\nB ", shown(found.b, "bold"), "\n", verdict)
    console.print(heading, soft_wrap=True)
    if found.same_object:
        console.print(Text("They are the same object, in the same version: no value was read."))
    rows = [*_alone(found), *map(_row, found.different)]
    rows += [_row(pair) for pair in found.tensors if pair.equal] if everything else []
    shown_rows = rows if everything else rows[:_MOST_SHOWN]
    if shown_rows:
        console.print(_table(shown_rows))
    if len(rows) > len(shown_rows):
        console.print(Text(f"and {len(rows) - len(shown_rows)} more (--all shows them)"))
    console.print(Text(_summary(found)))


def _table(rows: list[Row]) -> Table:
    table = Table("tensor", "difference")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    return table


def _alone(found: Difference) -> list[Row]:
    rows = [(name, "only in A") for name in found.only_in_a]
    rows += [(name, "only in B") for name in found.only_in_b]
    return [(shown(name), Text(where, "yellow")) for name, where in rows]


def _row(pair: TensorPair) -> Row:
    lines = [*_headers(pair), *_values(pair)]
    return shown(pair.name), Text("\n".join(lines) or "equal", "green" if pair.equal else "")


def _headers(pair: TensorPair) -> list[str]:
    shapes = [f"[{', '.join(map(str, shape))}]" for shape in pair.shapes]
    sides = {"dtype": pair.dtypes, "shape": shapes}
    return [f"{what}: A {one}, B {other}" for what, (one, other) in sides.items() if one != other]


def _values(pair: TensorPair) -> list[str]:
    values = pair.values
    if values is None or values.identical:
        return []
    if values.equal:
        return ["values: equal, in other bits"]
    numbers = {"largest": values.largest, "relative": values.relative, "mean": values.mean}
    told = ", ".join(f"{name} {number:.3g}" for name, number in numbers.items())
    return [f"values: {values.differing:,} of {math.prod(pair.shapes[0]):,} differ; {told}"]


def _summary(found: Difference) -> str:
    common, different = len(found.tensors), len(found.different)
    of = "" if found.values or found.same_object else ", values not compared"
    return (
        f"{common} in both: {common - different} equal, {different} different{of}; "
        f"{len(found.only_in_a)} only in A, {len(found.only_in_b)} only in B"
    )
