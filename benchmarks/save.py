"""How long saving a model to S3 takes, and how much memory, beside the ways that boto3 leaves.

    TMPDIR=/dev/shm python -m benchmarks.save --rounds 5

Whole processes, in turn, each against a SeaweedFS of its own on this machine, whose data lie where TMPDIR
says: on a RAM disk, so that no disk is measured. A process makes its model first; then its clock starts, with
the import of the client. `upload_file` is boto3's of a file of the same bytes that is in the page cache
already: it neither makes the model nor serialises it, and every ratio is taken against it, within a round.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import measure
from torchwick.demo.environment import aws_environment
from torchwick.demo.server import SeaweedFS

BUCKET = "models"
TENSORS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description="Time saves to S3.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-gb", type=float, default=2.2)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        _run_row(given.row, given.size_gb, given.file)
    else:
        _compare(given.only, given.rounds, given.size_gb)


def _compare(rows: list[str], rounds: int, size_gb: float) -> None:
    taken: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        files = {ending: Path(folder) / f"model.{ending}" for ending in ("pt", "safetensors")}
        _write(files, size_gb)
        for number in range(rounds):
            for row in rows[number % len(rows) :] + rows[: number % len(rows)]:
                taken[row].append(_fresh(row, size_gb, files))
    for row, runs in taken.items():
        beside = [one["wall_s"] / other["wall_s"] for one, other in zip(runs, taken[rows[0]], strict=True)]
        wall, cpu, peak = (statistics.median(run[key] for run in runs) for key in ("wall_s", "cpu_s", "peak"))
        print(
            f"{row:<22} {wall:6.2f} s  {statistics.median(beside):5.2f} x ({min(beside):.2f} to"
            f" {max(beside):.2f})  CPU {cpu:6.2f} s  memory {peak / 1e6:7.0f} MB"
        )


def _fresh(row: str, size_gb: float, files: dict[str, Path]) -> dict[str, float]:
    """Run a row in a process of its own, and with a server of its own."""
    with SeaweedFS() as server, aws_environment(server.environment()):
        server.client().create_bucket(Bucket=BUCKET)
        file = files["safetensors" if "safetensors" in row else "pt"]
        arguments = ["--row", row, "--size-gb", str(size_gb), "--file", str(file)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.save", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        size = server.client().head_object(Bucket=BUCKET, Key=file.name)["ContentLength"]
        if abs(size - file.stat().st_size) > 4096:
            raise RuntimeError(f"{row} stored {size} bytes")
    run: dict[str, float] = json.loads(done.stdout)
    return run


def _model(size_gb: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layers.{n}.weight": torch.rand(int(size_gb * 1e9) // 4 // TENSORS) for n in range(TENSORS)}


def _write(files: dict[str, Path], size_gb: float) -> None:
    import safetensors.torch

    state = _model(size_gb)
    torch.save(state, files["pt"])
    safetensors.torch.save_file(state, files["safetensors"])


def _run_row(row: str, size_gb: float, file: str) -> None:
    from_memory = not row.startswith("upload_file")
    state = _model(size_gb) if from_memory else {}
    cost, _ = measure(lambda key: ROWS[row](state, file, key), Path(file).name)
    print(json.dumps({"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "peak": cost.peak_bytes}))


def _client() -> Any:
    import boto3

    return boto3.client("s3")


def _upload_file(_state: dict[str, torch.Tensor], file: str, key: str) -> None:
    _client().upload_file(file, BUCKET, key)


def _torchwick(state: dict[str, torch.Tensor], _file: str, key: str) -> None:
    import torchwick

    torchwick.save(state, f"s3://{BUCKET}/{key}")


def _bytesio_pt(state: dict[str, torch.Tensor], _file: str, key: str) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    _client().upload_fileobj(buffer, BUCKET, key)


def _bytesio_safetensors(state: dict[str, torch.Tensor], _file: str, key: str) -> None:
    import safetensors.torch

    _client().upload_fileobj(io.BytesIO(safetensors.torch.save(state)), BUCKET, key)


ROWS: dict[str, Callable[[dict[str, torch.Tensor], str, str], None]] = {
    "upload_file": _upload_file,
    "torchwick-pt": _torchwick,
    "torchwick-safetensors": _torchwick,
    "bytesio-pt": _bytesio_pt,
    "bytesio-safetensors": _bytesio_safetensors,
}


if __name__ == "__main__":
    main()
