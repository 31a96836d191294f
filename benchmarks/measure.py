"""Wall time, CPU time and peak memory of one call in this process."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Measurement:
    """What one load cost. `peak_bytes` counts from what the process held before it."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def measure(load: Callable[[str], object], uri: str) -> tuple[Measurement, object]:
    """Load once, and return what it cost along with what it returned."""
    _forget_peak()
    resident = _status_bytes("VmRSS")
    cpu, wall = _cpu_seconds(), time.perf_counter()
    loaded = load(uri)
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    return Measurement(wall, cpu, _status_bytes("VmHWM") - resident), loaded


def _forget_peak() -> None:
    # Importing torch may have peaked above what it holds now, which would hide a small load's own peak:
    # https://docs.kernel.org/filesystems/proc.html, "clear_refs".
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
