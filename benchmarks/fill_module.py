"""What `torchwick.load_model` costs beside `torchwick.load` of the same bytes: time, and memory.

    python -m benchmarks.fill_module --rounds 7

Whole processes, in turn, against nginx on this machine. Each way is a process of its own, which imports torch
and makes the module before its clock starts. Peak memory counts from what the process held then.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.checkpoint import ensure, shapes
from benchmarks.server import BUCKET, KINDS, serve

if TYPE_CHECKING:
    import torch

WIDE = "wide.safetensors"  # the same shapes for a module half as large, in float32
WAYS = {
    "load": "torchwick.load",
    "cpu": "load_model, module on the CPU",
    "meta": "load_model, module on meta",
    "cast": "load_model, float32 to bfloat16, module on meta",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare load_model with load.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size-gb", type=float, default=2.2)
    parser.add_argument("--server", choices=sorted(KINDS), default="plain")
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options.way, options.uri, options.size_gb)))
        return
    folder = ensure(options.size_gb)
    _ensure_wide(folder, options.size_gb)
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with serve(folder) as server:
        shuffle = random.Random(0).sample  # what a process leaves of the machine's memory is the next one's
        for number in range(options.rounds + 1):
            for way in shuffle([*WAYS], len(WAYS)):
                one = _timed(way, options.size_gb, server.environment(options.server))
                if number:  # the first brings the files into the page cache
                    taken[way].append(one)
    _report(taken)


def run(way: str, uri: str, size_gb: float) -> dict[str, float]:
    """Fill a module in one way, and return what it cost."""
    import torch

    import torchwick
    from benchmarks.measure import measure

    if way == "load":
        cost, state = measure(torchwick.load, uri)
        assert isinstance(state, dict)
        held = sum(tensor.nbytes for tensor in state.values())
        return asdict(cost) | {"model": held}
    with torch.device("cpu" if way == "cpu" else "meta"):
        module = build(shapes(size_gb / 2 if way == "cast" else size_gb), torch.bfloat16)
    cost, _ = measure(lambda at: torchwick.load_model(module, at), uri)
    return asdict(cost) | {"model": sum(parameter.nbytes for parameter in module.parameters())}


def build(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> torch.nn.Module:
    """Return a module that has parameters of these names."""
    import torch

    root = torch.nn.Module()
    for name, shape in shapes.items():
        module = root
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, torch.nn.Parameter(torch.ones(shape, dtype=dtype)))
    return root


def _ensure_wide(folder: Path, size_gb: float) -> None:
    if (folder / WIDE).exists():
        return
    import safetensors.torch
    import torch

    tensors = {name: torch.rand(shape) for name, shape in shapes(size_gb / 2).items()}
    safetensors.torch.save_file(tensors, folder / f"{WIDE}.new")
    (folder / f"{WIDE}.new").rename(folder / WIDE)


def _timed(way: str, size_gb: float, environment: dict[str, str]) -> dict[str, float]:
    uri = f"s3://{BUCKET}/{WIDE if way == 'cast' else 'model.safetensors'}"
    # As installed, modules are compiled once: a process that may not keep them would time the compiler.
    environment = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = ["-m", "benchmarks.fill_module", "--way", way, "--uri", uri, "--size-gb", str(size_gb)]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, env=environment
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _report(taken: dict[str, list[dict[str, float]]]) -> None:
    for way, costs in taken.items():
        walls = [cost["wall_s"] / load["wall_s"] for cost, load in zip(costs, taken["load"], strict=True)]
        cpus = [cost["cpu_s"] / load["cpu_s"] for cost, load in zip(costs, taken["load"], strict=True)]
        peak = statistics.median(cost["peak_bytes"] for cost in costs)
        model = costs[0]["model"]
        print(
            f"{WAYS[way]:<48} wall {statistics.median(walls):5.2f} x ({min(walls):.2f} to {max(walls):.2f})"
            f"  CPU {statistics.median(cpus):5.2f} x  peak {peak / 1e6:6.0f} MB, {peak / model:.3f} x"
            f" the {model / 1e6:.0f} MB of the tensors"
        )


if __name__ == "__main__":
    main()
