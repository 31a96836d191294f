"""How long `torchwick inspect` takes from start to end, beside importing botocore and making a client of it.

    python -m benchmarks.inspect_start --rounds 15

Whole processes, in turn, against SeaweedFS on this machine. What the requests themselves take is measured
apart, in a process that has opened the model before, since it depends on the distance to the store and on
nothing else: `start` is the command without it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from torchwick.demo.environment import aws_environment
from torchwick.demo.models import PACKAGED
from torchwick.demo.server import SeaweedFS

BUCKET = "models"
BASELINE = """
import botocore.session
botocore.session.get_session().create_client(
    "s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
)
"""
ROUND_TRIPS = """
import sys, time, torchwick
torchwick.open(sys.argv[1])
began = time.perf_counter()
torchwick.open(sys.argv[1])
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the start of torchwick inspect.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with SeaweedFS() as server, aws_environment(server.environment()):
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        for model in filter(None, (packaged.find() for packaged in PACKAGED)):
            client.upload_file(str(model.path), BUCKET, model.key)
            _report(f"s3://{BUCKET}/{model.key}", rounds)


def _report(uri: str, rounds: int) -> None:
    commands = {
        "botocore": ["-c", BASELINE],
        "inspect": ["-m", "torchwick", "inspect", uri],
    }
    taken: dict[str, list[float]] = {name: [] for name in (*commands, "requests")}
    for number in range(rounds + 1):
        for name, command in commands.items():
            seconds, _ = _timed(command)
            if number:  # the first of each compiles what is not compiled yet
                taken[name].append(seconds)
        if number:
            taken["requests"].append(float(_timed(["-c", ROUND_TRIPS, uri])[1]))
    starts = [whole - part for whole, part in zip(taken["inspect"], taken["requests"], strict=True)]
    print(uri)
    for name, seconds_of in {**taken, "start": starts}.items():
        ratios = [one / other for one, other in zip(seconds_of, taken["botocore"], strict=True)]
        print(
            f"  {name:<9} {statistics.median(seconds_of) * 1000:6.1f} ms  {statistics.median(ratios):5.2f} x"
            f"  ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _timed(arguments: list[str]) -> tuple[float, str]:
    """Run Python, and return its seconds from start to end, and what it printed."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=variables
    )
    return time.perf_counter() - began, done.stdout


if __name__ == "__main__":
    main()
