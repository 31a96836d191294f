"""What a group load costs beside each rank loading for itself: bytes that are read, and time.

    python -m benchmarks.group_load --rounds 3 --size-gb 0.5

Ranks are processes on this machine, over gloo. nginx serves at 85 MB/s per connection, or without a limit.
The clock starts when all ranks have imported torch and made their group. Bytes are what ranks received.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.checkpoint import ensure
from benchmarks.server import BUCKET, KINDS, serve

WAYS = {"alone": "each rank by itself", "group": "torchwick.distributed.load"}
PATIENCE = 300.0  # seconds of a rank


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare group loads with loads of each rank by itself.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size-gb", type=float, default=0.5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--connections", type=int, default=4, help="of each rank")
    parser.add_argument("--server", choices=sorted(KINDS), default="slow")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options.way, options.rank, options.ranks[0], options.port, options.connections)))
        return
    folder = ensure(options.size_gb)
    size = (folder / "model.safetensors").stat().st_size
    print(f"{size / 1e6:.0f} MB, {KINDS[options.server]}, {options.connections} connections a rank")
    with serve(folder) as server:
        environment = server.environment(options.server)
        for ranks in options.ranks:
            taken: dict[str, list[tuple[float, int]]] = {way: [] for way in WAYS}
            for number in range(options.rounds + 1):
                for way in WAYS:
                    one = _timed(way, ranks, options.connections, environment)
                    if number:  # the first brings the file into the page cache
                        taken[way].append(one)
            _report(ranks, size, taken)


def run(way: str, rank: int, ranks: int, port: int, connections: int) -> dict[str, float]:
    """Load on one rank, and return what it took."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    import torchwick
    import torchwick.distributed

    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=PATIENCE)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=patience)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=patience)
    settings = torchwick.TransferConfig(connections=connections)
    reports: list[torchwick.LoadReport] = []
    uri = f"s3://{BUCKET}/model.safetensors"
    dist.barrier()
    began = time.perf_counter()
    if way == "group":
        torchwick.distributed.load(uri, transfer=settings, on_report=reports.append)
    else:
        torchwick.load(uri, transfer=settings, on_report=reports.append)
    seconds = time.perf_counter() - began
    dist.barrier()
    dist.destroy_process_group()
    return {"seconds": seconds, "bytes": reports[0].bytes_read}


def _timed(way: str, ranks: int, connections: int, environment: dict[str, str]) -> tuple[float, int]:
    """Return the time of the slowest rank, and the bytes that all of them read."""
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = ["-m", "benchmarks.group_load", "--way", way, "--ranks", str(ranks), "--port", str(store.port)]
    processes = [
        subprocess.Popen(
            [sys.executable, *command, "--rank", str(rank), "--connections", str(connections)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    told = [json.loads(process.communicate(timeout=PATIENCE)[0]) for process in processes]
    return max(one["seconds"] for one in told), int(sum(one["bytes"] for one in told))


def _report(ranks: int, size: int, taken: dict[str, list[tuple[float, int]]]) -> None:
    for way, runs in taken.items():
        seconds = [one for one, _ in runs]
        sent = statistics.median(count for _, count in runs)
        print(
            f"{ranks} ranks, {WAYS[way]:<28} {statistics.median(seconds):6.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f})  {sent / size:.3f} x the model was read"
        )


if __name__ == "__main__":
    main()
