"""``torchwick inspect``: show what a checkpoint holds, of which only the headers are read.

The names in it are a stranger's: each goes through `_shown` before it reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from torchwick.checkpoint import open
from torchwick.cli.failing import told
from torchwick.cli.options import s3_options
from torchwick.cli.shown import printable
from torchwick.config import S3Config
from torchwick.diagnosis.words import count_text, size_text
from torchwick.inspection.summary import Amount, Module, Summary, summarize

if TYPE_CHECKING:
    from torchwick.checkpoint import TensorInfo

__all__ = ["inspect"]

_SCREEN = 40  # lines of the tree that fit on one
_MOST_LISTED = 6  # texts, objects or places in one line
_TIMES = "\N{MULTIPLICATION SIGN}"
_COUNTS = ((10**12, "T"), (10**9, "B"), (10**6, "M"))

_Row = tuple[str, ...]
_Line = tuple[int, str, Module]


@s3_options
def inspect(
    uri: Annotated[
        str,
        typer.Argument(help="s3://bucket/key, https://…, or a local path; or a directory: s3://bucket/dir/."),
    ],
    *,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show every tensor and where its bytes are.")
    ] = False,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Levels of the tree; as many as fit on a screen if left out.")
    ] = None,
    s3: S3Config,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every tensor.")] = False,
) -> None:
    """Show what a checkpoint holds, without loading it: modules, tensors, dtypes, sizes."""
    with told(as_json=as_json, s3=s3), open(uri, s3=s3) as ckpt:
        summary = summarize(ckpt)
    if as_json:
        json.dump(summary.to_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(summary, _tensors(summary) if tensors else _modules(summary, depth))


def _print(summary: Summary, table: Iterable[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)

    def written(text: str) -> str:
        return text.encode(console.encoding, "backslashreplace").decode(console.encoding)

    console.print(Text(written(printable(summary.uri)), style="bold"))
    facts = dict(_facts(summary))
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(Text.assemble((f"{name:<{width}}  ", "dim"), written(fact)))
    # Not by rich, which would take apart and measure every line of what may be a hundred thousand.
    console.file.write(written("\n".join(["", *table, ""])))


# -- facts -------------------------------------------------------------------------------------------------


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "format", summary.format
    if len(summary.objects) != 1:
        names = (_object(summary, fact.uri) for fact in summary.objects)
        yield "objects", f"{len(summary.objects):,}: {_few(names, len(summary.objects))}"
    size = "not told by the server" if summary.size is None else size_text(summary.size)
    yield "size", size
    tied = f", {size_text(summary.tied_bytes)} of it shared" if summary.tied_bytes else ""
    yield "tensors", f"{summary.total.tensors:,}, of {size_text(summary.total.bytes)}{tied}"
    yield "parameters", _count(summary.total.parameters)
    if summary.dtypes:
        yield "dtypes", ", ".join(_dtype(*item) for item in summary.dtypes.items())
    for name, texts in (("metadata", summary.metadata), ("besides", summary.others)):
        if texts:
            yield name, _few((f"{key}: {text}" for key, text in texts.items()), len(texts))
    of = "" if summary.size is None else f" of {size_text(summary.size)}"
    yield "read", f"{size_text(summary.bytes_read)}{of} in {count_text(summary.requests, 'request')}"


def _dtype(dtype: str, amount: Amount) -> str:
    return f"{amount.tensors:,} {dtype} ({size_text(amount.bytes)})"


def _few(texts: Iterable[str], count: int) -> str:
    """Return the first of so many texts."""
    shown = [printable(text) for text, _ in zip(texts, range(_MOST_LISTED), strict=False)]
    return ", ".join(shown) + (f" and {count - _MOST_LISTED:,} more" if count > _MOST_LISTED else "")


def _object(summary: Summary, uri: str) -> str:
    """Return an object's URI as it is below the checkpoint's."""
    return uri.removeprefix(summary.uri)


def _count(number: int) -> str:
    """Return a number of parameters as models are spoken of.

    Example:
        >>> _count(1_100_048_384), _count(512)
        ('1.1 B', '512')
    """
    for unit, name in _COUNTS:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:,}"


# -- tables ------------------------------------------------------------------------------------------------


def _tensors(summary: Summary) -> Iterator[str]:
    rows = (
        (printable(name) or "''", info.dtype, str([*info.shape]), f"{info.nbytes:,}", _places(summary, info))
        for name, info in summary.tensors.items()
    )
    return _aligned([("name", "dtype", "shape", "bytes", "where"), *rows], (_left, _left, _left, _right))


def _places(summary: Summary, info: TensorInfo) -> str:
    """Return the half-open ranges that a tensor's bytes are in."""
    places = (f"{_object(summary, uri)} {start}-{stop}".lstrip() for uri, start, stop in info.places)
    return _few(places, len(info.places))


def _modules(summary: Summary, depth: int | None) -> Iterator[str]:
    """Yield the lines of the tree."""
    lines = list(_lines(summary.modules))
    shown = [line for line in lines if line[0] < (depth or _fitting(lines))]
    most = len(shown) if depth else _SCREEN
    rows = [_row(summary, *line) for line in shown[:most]]
    yield from _aligned(rows, (_left, _left, _right, _right, _right))
    if len(shown) > most:
        yield f"… and {len(shown) - most:,} more (--depth 1 shows them)"


def _lines(module: Module, level: int = 0) -> Iterator[_Line]:
    """Yield what is under a module with its level; what has one thing under it is one line with that."""
    for child in module.children:
        name, last = child.name, child
        while last.dtype is None and len(last.children) == 1:
            last = last.children[0]
            name += f".{last.name}"
        times = last.copies // module.copies
        yield level, name + (f" {_TIMES}{times}" if times > 1 else ""), last
        yield from _lines(last, level + 1)


def _fitting(lines: list[_Line]) -> int:
    """Return how many levels fit on a screen; at least one."""
    levels = Counter(level for level, _, _ in lines)
    total = depth = 0
    while depth in levels and (total := total + levels[depth]) <= _SCREEN:
        depth += 1
    return max(depth, 1)


def _row(summary: Summary, level: int, name: str, module: Module) -> _Row:
    amount = module.amount
    share = amount.bytes / summary.total.bytes if summary.total.bytes else 0.0
    return (
        "  " * level + (printable(name) or "''"),
        _contents(module),
        _count(amount.parameters),
        size_text(amount.bytes),
        f"{share:.1%}",
    )


def _contents(module: Module) -> str:
    """Return the dtype and shape of a tensor, or how many there are."""
    if module.dtype is None:
        return count_text(module.amount.tensors, "tensor")
    more = module.amount.tensors - module.copies
    own = f"{module.dtype} {[*(module.shape or ())]}"
    return f"{own} and {count_text(more, 'tensor')}" if more else own


def _left(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def _right(text: str, width: int) -> str:
    return " " * (width - _cells(text)) + text


def _aligned(rows: list[_Row], aligns: tuple[Callable[[str, int], str], ...]) -> Iterator[str]:
    """Yield rows as lines, in columns as wide as their widest cells; those beyond `aligns` as they are."""
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=False)]
        yield "  ".join([*cells, *row[len(aligns) :]]).rstrip()


def _cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) if text.isascii() else _cells_of_wide(text)


def _cells_of_wide(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
