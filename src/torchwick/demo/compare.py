"""Times torchwick and boto3 on one object, each load in a fresh process, the two taking turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from torchwick.errors import TorchwickError

Loader = Literal["torchwick", "boto3"]

ROUNDS: Final = 3
TIMEOUT: Final = 900.0  # seconds for one load
# A file, not `-m`: see timed.py. By its path, because importing it would import torch here.
TIMED: Final = Path(__file__).with_name("timed.py")


class DemoError(TorchwickError):
    """The demo found a difference, or a load of its failed."""


@dataclass(frozen=True)
class Timing:
    """What one way of loading took.

    Attributes:
        seconds: Median time from the first import to the loaded tensors.
        peak_bytes: Most memory held on top of Python with torch imported.
    """

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Comparison:
    """The two ways of loading one object.

    Attributes:
        torchwick: `torchwick.load`.
        boto3: `get_object`, then `torch.load` or `safetensors.torch.load`.
    """

    torchwick: Timing
    boto3: Timing


def compare(uri: str) -> Comparison:
    """Load the object several times each way; reach S3 through the AWS_* environment variables."""
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(time_load("torchwick", uri))
        theirs.append(time_load("boto3", uri))
    return Comparison(_summary(ours), _summary(theirs))


def time_load(loader: Loader, uri: str) -> Timing:
    """Load the object once in a process of its own.

    Raises:
        DemoError: The process failed; shows the end of what it wrote.
    """
    result = subprocess.run(  # noqa: S603 - this interpreter, our own file
        [sys.executable, "-P", str(TIMED), loader, uri],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if result.returncode != 0:
        raise DemoError(f"loading it with {loader} failed:\n{result.stderr[-2000:]}", uri=uri)
    return Timing(**json.loads(result.stdout))


def _summary(timings: list[Timing]) -> Timing:
    return Timing(
        seconds=statistics.median(each.seconds for each in timings),
        peak_bytes=max(each.peak_bytes for each in timings),
    )
