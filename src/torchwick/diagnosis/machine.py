"""The machine: which versions, which known bugs among them, how much processor and memory."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from torchwick.config import TransferConfig
from torchwick.diagnosis.findings import Finding
from torchwick.diagnosis.words import count_text, size_text
from torchwick.transfer.pace import cores

__all__ = ["Bug", "available_memory", "capacity", "torch_version", "unsafe_loads", "versions"]


@dataclass(frozen=True)
class Bug:
    """A bug that makes ``weights_only=True`` unsafe.

    Attributes:
        name: its number in the list of Common Vulnerabilities and Exposures.
        fixed: the first version of torch without it: major, minor.
        what: what a hostile checkpoint can do.
    """

    name: str
    fixed: tuple[int, int]
    what: str


_BUGS = (
    Bug("CVE-2025-32434", (2, 6), "a checkpoint can run code in spite of weights_only=True"),
    Bug("CVE-2026-24747", (2, 10), "a checkpoint can corrupt memory in spite of weights_only=True"),
)


def unsafe_loads(torch: str) -> tuple[Bug, ...]:
    """Return the bugs that make ``weights_only=True`` unsafe in a version of torch.

    Example:
        >>> [bug.name for bug in unsafe_loads("2.9.1+cu128")]
        ['CVE-2026-24747']
        >>> unsafe_loads("2.10.0")
        ()
    """
    numbers = re.match(r"(\d+)\.(\d+)", torch)
    if numbers is None:
        return ()
    own = (int(numbers[1]), int(numbers[2]))
    return tuple(bug for bug in _BUGS if own < bug.fixed)


def versions() -> Finding:
    """Tell the versions. They are read from the packages' metadata: nothing is imported for it."""
    numbers = {
        "torchwick": version("torchwick"),
        "Python": platform.python_version(),
        "botocore": version("botocore"),
    }
    system = f"{platform.system()} {platform.machine()}"
    found = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return Finding("ok", f"{found}, {system}", facts={**numbers, "system": system})


def torch_version() -> Finding:
    """Tell torch's version, and what is known to be unsafe in it."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Finding("failed", "it is not installed", "Install torch: https://pytorch.org/get-started.")
    return judge_torch(found)


def judge_torch(found: str) -> Finding:
    """Say what a version of torch means for whoever loads checkpoints of others."""
    bugs = unsafe_loads(found)
    facts = {"torch": found, "bugs": [bug.name for bug in bugs]}
    if not bugs:
        return Finding("ok", found, facts=facts)
    safe = ".".join(map(str, max(bug.fixed for bug in bugs)))
    told = "; ".join(f"{bug.what} ({bug.name})" for bug in bugs)
    advice = f"Upgrade torch to {safe} or later, and load only checkpoints that you trust until then."
    return Finding("warning", f"{found}: {told}", advice, facts)


def capacity() -> Finding:
    """Tell the processor cores and the memory that this process may use."""
    memory = available_memory()
    facts = {"cores": cores(), "available_memory": memory}
    return Finding(
        "ok", f"{count_text(cores(), 'core')}, {size_text(memory)} of memory to be had", facts=facts
    )


def available_memory() -> int:
    """Return the bytes of memory this process may still take."""
    return 2 * TransferConfig(memory_limit="auto").memory_bytes()  # "auto" is half of it
