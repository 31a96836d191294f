"""How long `torch.distributed.checkpoint.load` takes from S3, beside AWS's own back end for it.

    python -m benchmarks.dcp_read --size-gb 1 --ranks 1 2

torch's `FileSystemWriter` writes the checkpoint, in four files as four ranks would have. nginx serves it at
85 MB/s per connection, which is what S3 gives. Each run is a fresh group of processes over gloo with torch
imported; the clock runs from making the reader to the last tensor, on the slowest rank, and then the tensors
are compared with those that were saved. Both readers keep their defaults; s3torchconnector's is the reader
that it recommends for this, `dcp_optimized`. Rounds are interleaved, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.server import BUCKET, KINDS, Server, serve

MODULE = "benchmarks.dcp_read"
STEP = "step-1000"
LAYERS = 48
FILES = 4
READERS = ("torchwick", "s3torchconnector")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the loading of a distributed checkpoint.")
    parser.add_argument("--size-gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--server", choices=KINDS, default="slow")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        _run([sys.executable, "-m", MODULE, "write", f"{folder}/{STEP}", str(wishes.size_gb)], os.environ)
        size = sum(path.stat().st_size for path in Path(folder, STEP).iterdir())
        print(f"{size / 1e9:.2f} GB in {FILES} files, {KINDS[wishes.server]}, {os.cpu_count()} cores")
        with serve(Path(folder)) as server:
            for ranks in wishes.ranks:
                _compare(server, wishes.server, ranks, wishes.rounds, wishes.size_gb)


def _compare(server: Server, kind: str, ranks: int, rounds: int, size_gb: float) -> None:
    taken: dict[str, list[float]] = {reader: [] for reader in READERS}
    for number in range(rounds):
        for reader in READERS if number % 2 else reversed(READERS):
            taken[reader].append(_group(server, kind, reader, ranks, size_gb))
    pairs = zip(taken["s3torchconnector"], taken["torchwick"], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    print(f"{ranks} rank{'s' * (ranks > 1)}")
    for reader, seconds in taken.items():
        print(
            f"  {reader:<17} {statistics.median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})"
        )
    print(f"  {statistics.median(ratios):.2f} times as fast  ({min(ratios):.2f} to {max(ratios):.2f})")


def _group(server: Server, kind: str, reader: str, ranks: int, size_gb: float) -> float:
    """Run a group of processes, and return the seconds of the slowest."""
    with tempfile.TemporaryDirectory() as meeting:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", MODULE, "read", reader, str(size_gb), meeting],
                env=server.environment(kind) | {"RANK": str(rank), "WORLD_SIZE": str(ranks)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{reader} failed: what its processes wrote to stderr says why")
    return max(float(json.loads(output)["seconds"]) for output in outputs)


def _run(command: list[str], environment: Any) -> None:
    subprocess.run(command, env=environment, check=True)


def _shapes(size_gb: float) -> dict[str, tuple[int, ...]]:
    """Weights and biases as of a transformer, with 12 rows² to a layer."""
    rows = int((size_gb * 1e9 / 4 / LAYERS / 12) ** 0.5) // 16 * 16
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        for name, factor in (("q", 1), ("k", 1), ("v", 1), ("o", 1), ("up", 4), ("down", 4)):
            shapes[f"layers.{layer}.{name}.weight"] = (rows * factor, rows)
            shapes[f"layers.{layer}.{name}.bias"] = (rows * factor,)
    return shapes


def _values(name: str, shape: tuple[int, ...]) -> Any:
    import torch

    return torch.full(shape, float(sum(name.encode())))


def write(folder: str, size_gb: str) -> None:
    import torch.distributed.checkpoint as dcp

    warnings.simplefilter("ignore")
    state = {name: _values(name, shape) for name, shape in _shapes(float(size_gb)).items()}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, thread_count=FILES), no_dist=True)


def read(reader: str, size_gb: str, meeting: str) -> None:
    """Load as one rank of several, each with its rows, and print the seconds."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import DTensor, Shard

    warnings.simplefilter("ignore")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}/group", rank=rank, world_size=ranks)
    mesh = dist.init_device_mesh("cpu", (ranks,))
    state: dict[str, Any] = {}
    for name, shape in _shapes(float(size_gb)).items():
        local = torch.empty(shape[0] // ranks, *shape[1:])  # no page of it is touched
        state[name] = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    dist.barrier()
    began = time.perf_counter()
    dcp.load(state, storage_reader=_reader(reader))
    seconds = time.perf_counter() - began
    for name, tensor in state.items():
        local = tensor.to_local()
        assert torch.equal(local, _values(name, tuple(local.shape))), name
    print(json.dumps({"seconds": seconds}))
    dist.destroy_process_group()


def _reader(name: str) -> Any:
    if name == "torchwick":
        from torchwick.distributed import S3Reader

        return S3Reader(f"s3://{BUCKET}/{STEP}")
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client
    from s3torchconnector.dcp import S3StorageReader

    region = os.environ["AWS_REGION"]
    reader = S3StorageReader(region, f"s3://{BUCKET}/{STEP}")
    # It has no setting for an endpoint, but takes the client that S3Checkpoint, which has, would make.
    config, endpoint = S3ClientConfig(force_path_style=True), os.environ["AWS_ENDPOINT_URL"]
    reader.fs._client = S3Client(region=region, endpoint=endpoint, s3client_config=config)  # noqa: SLF001
    return reader


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(*sys.argv[2:])
    elif sys.argv[1:2] == ["read"]:
        read(*sys.argv[2:])
    else:
        main()
