"""One timed load in a process of its own, so that its memory and its imports are counted whole.

    python -P timed.py {torchwick,boto3} s3://bucket/key

prints `{"seconds": …, "peak_bytes": …}`. torch is imported before the clock starts; boto3, botocore,
safetensors and torchwick itself are imported after. Run it as a file: `python -m` would import torchwick
before the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch


def load_with_torchwick(uri: str) -> Any:
    """Load with torchwick, its settings taken from the environment."""
    import torchwick

    return torchwick.load(uri)


def load_with_boto3(uri: str) -> Any:
    """Load as people do without torchwick: read the whole object, then parse it."""
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    if key.endswith(".safetensors"):
        import safetensors.torch

        return safetensors.torch.load(body)
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


LOADERS = {"torchwick": load_with_torchwick, "boto3": load_with_boto3}


def memory(field: str) -> int:
    """Return a memory field of this process in bytes: `VmRSS`, resident now, or `VmHWM`, its peak."""
    # Not resource.getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise LookupError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


def reset_peak() -> None:
    """Let `VmHWM` start again from what is resident now: importing torch has a peak of its own."""
    with contextlib.suppress(OSError):  # sandboxes may lack the file; that peak is far below a model's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> None:
    """Load one model and print what that took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("loader", choices=LOADERS)
    parser.add_argument("uri")
    arguments = parser.parse_args()
    reset_peak()
    before = memory("VmRSS")
    start = time.perf_counter()
    state = LOADERS[arguments.loader](arguments.uri)
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    del state
    json.dump({"seconds": seconds, "peak_bytes": peak}, sys.stdout)


if __name__ == "__main__":
    main()
