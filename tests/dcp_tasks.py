"""What ranks do in the tests of distributed checkpoints: each function runs in every rank of a group."""

from __future__ import annotations

import os
import pickle
import signal
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from torchwick import S3Config, TransferConfig
from torchwick.distributed import S3Reader, S3Writer

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def whole(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return ((torch.arange(torch.Size(shape).numel()) * (seed + 1)) % 251).to(dtype).view(shape)


def plain_state(seed: int) -> dict[str, torch.Tensor]:
    """Tensors as they are on one rank: small ones, and such as are read straight into their memory."""
    return {
        "rows": whole(seed, 6, 4),
        "uneven": whole(seed, 7, 3),
        "columns": whole(seed, 4, 7),
        "one": whole(seed, 1, 5),
        "empty": whole(seed, 0, 5),
        "cube": whole(seed, 3, 4, 5),
        "bf16": whole(seed, 8, 4, dtype=torch.bfloat16),
        "large": whole(seed, 1024, 640),
        "tall": whole(seed, 300_001, 3),
        "wide": whole(seed, 512, 1500),
        "turned": whole(seed, 700, 1000).t(),
        "half": whole(seed, 2000, 800, dtype=torch.float16),
    }


PLACEMENTS = {"columns": 1, "wide": 1, "cube": 2}


def cut(tensor: torch.Tensor, dim: int) -> DTensor:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(tensor, mesh, [Shard(dim)])


def state(seed: int) -> dict[str, Any]:
    """The same, cut for the ranks, and what is not cut."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    cuts = {name: cut(t, PLACEMENTS.get(name, 0)) for name, t in plain_state(seed).items()}
    return {
        "model": cuts
        | {
            "replicated": distribute_tensor(whole(seed, 3, 3), mesh, [Replicate()]),
            "plain": whole(seed, 500, 300),
            "scalar": torch.tensor(seed * 1.5),
        },
        "step": seed,
        "schedule": {"lr": [0.1 * seed, "cosine"], "last": None},
    }


def differing(found: Any, expected: Any, name: str = "") -> list[str]:
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return [f"{name}: {sorted(found)}"]
        return [one for key in expected for one in differing(found[key], expected[key], f"{name}.{key}")]
    if isinstance(expected, DTensor):
        return differing(found.to_local(), expected.to_local(), name)
    if isinstance(expected, torch.Tensor):
        return [] if found.dtype == expected.dtype and torch.equal(found, expected) else [name]
    return [] if found == expected else [name]


def writer(kind: str, uri: str, **options: Any) -> Any:
    return FileSystemWriter(uri) if kind == "torch" else S3Writer(uri, **options)


def reader(kind: str, uri: str, **options: Any) -> Any:
    return FileSystemReader(uri) if kind == "torch" else S3Reader(uri, **options)


def save(uri: str, seed: int, kind: str = "ours") -> None:
    save_distributed(state(seed), storage_writer=writer(kind, uri))


def load(uri: str, seed: int, kind: str = "ours") -> list[str]:
    """Load into other values, and return the names of what is not as it was saved."""
    found = state(seed + 1)
    load_distributed(found, storage_reader=reader(kind, uri))
    return differing(found, state(seed))


def load_otherwise(uri: str, seed: int) -> list[str]:
    """Load what was cut by rows as columns, and the reverse."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    kept = {name: t for name, t in plain_state(seed).items() if t.dim() == 2}

    def turned(seed: int) -> dict[str, Any]:
        tensors = plain_state(seed)
        return {
            name: distribute_tensor(tensors[name], mesh, [Shard(1 - PLACEMENTS.get(name, 0))])
            for name in kept
        }

    found = {"model": turned(seed + 1)}
    load_distributed(found, storage_reader=S3Reader(uri))
    return differing(found, {"model": turned(seed)})


def two_dimensions(uri: str) -> list[str]:
    """Save on a mesh of 2 by 2, and load on the same ranks in a row."""
    mesh = init_device_mesh("cpu", (2, 2))
    value = whole(1, 1000, 700)
    save_distributed(
        {"w": distribute_tensor(value, mesh, [Shard(0), Shard(1)])}, storage_writer=S3Writer(uri)
    )
    found = {"w": cut(torch.zeros_like(value), 0)}
    load_distributed(found, storage_reader=S3Reader(uri))
    return differing(found, {"w": cut(value, 0)})


def _model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def _train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(12, 32, generator=generator)  # the same on all ranks, however many these are
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


def train_and_save(uri: str) -> list[float]:
    """Train, save, go on; return the losses after the save."""
    model, optimizer = _model()
    for step in range(3):
        _train(model, optimizer, step)
    weights, states = get_state_dict(model, optimizer)
    save_distributed({"model": weights, "optimizer": states, "step": 3}, storage_writer=S3Writer(uri))
    return [_train(model, optimizer, step) for step in range(3, 6)]


def resume(uri: str) -> list[float]:
    """Go on where the save was; return the losses."""
    model, optimizer = _model()
    weights, states = get_state_dict(model, optimizer)
    found: dict[str, Any] = {"model": weights, "optimizer": states, "step": 0}
    load_distributed(found, storage_reader=S3Reader(uri))
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    return [_train(model, optimizer, step) for step in range(found["step"], found["step"] + 3)]


def save_async(uri: str, seed: int, process: bool) -> None:
    """Save in the background, and change the tensors meanwhile."""
    value = state(seed)
    by: dict[str, Any] = {}
    if process:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        by = {"async_checkpointer_type": AsyncCheckpointerType.PROCESS}
    future: Any = async_save(value, storage_writer=S3Writer(uri), **by)
    for tensor in value["model"].values():
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    getattr(future, "upload_completion", future).result()


class _Breaking(DefaultSavePlanner):
    """Breaks off a save on one rank, when it has come half way."""

    def __init__(self, rank: int, action: str) -> None:
        super().__init__()
        self._due, self._action, self._left = dist.get_rank() == rank, action, 8

    def resolve_data(self, write_item: Any) -> Any:
        self._left -= 1
        if self._due and not self._left:
            if self._action == "write":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._action == "raise":
                raise OSError("it broke")
        return super().resolve_data(write_item)


class _Killed(S3Writer):
    """Dies where it should commit."""

    def finish(self, *_: Any, **_more: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def save_broken(uri: str, seed: int, rank: int, action: str) -> list[Any]:
    """Save, but for one rank; return what was raised."""
    many = {f"layer.{n}": cut(whole(seed, 3000, 600), 0) for n in range(12)}
    transfer = TransferConfig(part_size=5 << 20)
    into = (_Killed if action == "finish" else S3Writer)(uri, transfer=transfer)
    try:
        save_distributed(many, storage_writer=into, planner=_Breaking(rank, action))
    except CheckpointException as error:
        return described(error)
    except RuntimeError as error:  # gloo, where a rank was killed
        return [type(error).__name__]
    return []


def described(error: CheckpointException) -> list[Any]:
    """Return of each rank's failure: its rank, classes and text, after a journey."""
    failures = pickle.loads(pickle.dumps({rank: failed for rank, (failed, _) in error.failures.items()}))
    return [
        (rank, [kind.__name__ for kind in type(failed).__mro__], str(failed))
        for rank, failed in sorted(failures.items())
    ]


def load_failing(uri: str, seed: int, attempts: int = 8) -> list[Any]:
    """Load in vain; return what was raised."""
    found = state(seed)
    try:
        load_distributed(found, storage_reader=S3Reader(uri, transfer=TransferConfig(max_attempts=attempts)))
    except CheckpointException as error:
        return described(error)
    return []


def save_failing(uri: str, seed: int, overwrite: bool = True) -> list[Any]:
    """Save in vain; return what was raised."""
    try:
        save_distributed(state(seed), storage_writer=S3Writer(uri, overwrite=overwrite))
    except CheckpointException as error:
        return described(error)
    return []


def each_for_itself(uri: str) -> list[str]:
    """Save and load without coordination: each rank has a description of its own."""
    value = {"w": whole(dist.get_rank(), 1000, 300), "rank": dist.get_rank()}
    save_distributed(value, storage_writer=S3Writer(uri), use_collectives=False)
    dist.barrier()
    found = {"w": torch.zeros(1000, 300), "rank": -1}
    load_distributed(found, storage_reader=S3Reader(uri))
    return differing(found, value)


def alone(uri: str, seed: int) -> list[str]:
    """Load all of it in one rank of several, without the others."""
    found = {"model": plain_state(seed + 1)}
    if dist.get_rank() == 1:
        load_distributed(found, storage_reader=S3Reader(uri, s3=S3Config()), no_dist=True)
        return differing(found, {"model": plain_state(seed)})
    return []
