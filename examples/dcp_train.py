"""Train a sharded model, with its checkpoints in S3; run it again, with more or fewer ranks, and it goes on.

    torchrun --standalone --nproc-per-node 4 examples/dcp_train.py s3://bucket/run-7
    torchrun --standalone --nproc-per-node 3 examples/dcp_train.py s3://bucket/run-7

It runs on processors alone, in seconds. On GPUs the group is "cpu:gloo,cuda:nccl", and the mesh "cuda".
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from torchwick import ObjectNotFoundError
from torchwick.distributed import S3Reader, S3Writer

STEPS = 3


class Training(Stateful):
    """All that has to be there again: weights, the optimizer's state, and how far it is."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved, each rank its part."""
        weights, state = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": state, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was loaded."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self.step = state_dict["step"]


def main(uri: str) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    training = Training(model, torch.optim.AdamW(model.parameters()))
    try:
        dcp.load({"training": training}, storage_reader=S3Reader(uri))
    except CheckpointException as error:
        if not all(isinstance(cause, ObjectNotFoundError) for cause, _ in error.failures.values()):
            raise
    say(f"{dist.get_world_size()} ranks go on at step {training.step}")
    for _ in range(STEPS):
        data = torch.randn(32, 64, generator=torch.Generator().manual_seed(training.step))
        loss = (model(data) - data).square().mean()
        loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.step += 1
        say(f"step {training.step}: loss {loss.item():.4f}")
    # While it uploads, the checkpoint before it is the one that is read.
    dcp.save({"training": training}, storage_writer=S3Writer(uri))
    say(f"saved to {uri}")
    dist.destroy_process_group()


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
