"""The process of one row: `python -m benchmarks.run_row NAME URI MANIFEST` prints one line of JSON.

torch is imported before the clock starts, as every program that loads a model has it. All else that a row
needs is imported, connected and loaded while the clock runs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch  # noqa: F401

from benchmarks.check import check
from benchmarks.checkpoint import Manifest
from benchmarks.measure import measure
from benchmarks.rows import ROWS


def main(name: str, uri: str, manifest_path: str) -> None:
    """Load, measure, check, print."""
    row, manifest, file = ROWS[name], Manifest.read(Path(manifest_path)), uri.rpartition("/")[2]
    measurement, loaded = measure(row.load, uri)
    size = manifest.artifacts[file].size
    if row.ram_disk:
        # The file is memory like any other, but it belongs to no process until its pages are touched, and
        # nothing has touched them yet. s5cmd's own few buffers are left out, in its favour.
        measurement = dataclasses.replace(measurement, peak_bytes=measurement.peak_bytes + size)
    check(loaded, manifest, file)
    print(json.dumps({**dataclasses.asdict(measurement), "object_bytes": size}))


if __name__ == "__main__":
    main(*sys.argv[1:])
