"""What ranks do with modules that are sharded over them; see `ranks`."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

import torchwick
from ranks import Shown, shown
from torchwick import LoadReport, Progress
from torchwick.loading import together

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, of its own modules
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WIDTH = 515  # which four ranks do not share evenly


class Net(nn.Module):
    """Layers of odd sizes, small and large, and a buffer."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width + 1)
        self.norm = nn.BatchNorm1d(2 * width + 1)
        self.down = nn.Linear(2 * width + 1, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.down(self.norm(self.up(x)).relu()))
        return result


def _fsdp(model: Net, mesh: DeviceMesh) -> None:
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _tensor_parallel(model: Net, mesh: DeviceMesh) -> None:
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def shard(model: Net, how: str) -> Net:
    """Shard a module over all ranks."""
    ranks = dist.get_world_size()
    if how == "fsdp":
        _fsdp(model, init_device_mesh("cpu", (ranks,)))
    elif how == "tensor parallel":
        _tensor_parallel(model, init_device_mesh("cpu", (ranks,)))
    elif how == "hybrid":
        _fsdp(model, init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard")))
    else:
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("data", "tensor"))
        _tensor_parallel(model, mesh["tensor"])
        _fsdp(model, mesh["data"])
    return model


def whole(model: nn.Module) -> Shown:
    """What a sharded module holds, put together."""
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return shown(state)


def fill(
    rank: int, uri: str, how: str, device: str, width: int = WIDTH, **options: Any
) -> tuple[Shown, LoadReport, bool]:
    """Fill a sharded module; return what is in it, the report, and whether its memory stayed the same."""
    torch.manual_seed(rank)
    with torch.device(device):
        model = Net(width)
    shard(model, how)
    before = [_address(parameter) for parameter in model.parameters()]
    reports: list[LoadReport] = []
    torchwick.load_model(model, uri, on_report=reports.append, **options)
    stayed = before == [_address(parameter) for parameter in model.parameters()]
    return whole(model), reports[0], stayed


def _address(parameter: torch.Tensor) -> int:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return 0 if local.is_meta else local.data_ptr()


def losses_of(model: nn.Module) -> list[float]:
    """Train for two steps, on the same data on every rank."""
    inputs = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train(rank: int, uri: str, device: str) -> list[float]:
    """Fill a module, on the CPU one that was used before, and go on to train it."""
    with torch.device(device):
        model = Net()
    shard(model, "fsdp")
    if device == "cpu":
        model(torch.randn(8, WIDTH)).sum().backward()
    torchwick.load_model(model, uri)
    return losses_of(model)


def die(rank: int, uri: str, who: int, timeout: float) -> Shown:
    """Fill; one of the ranks ends in the middle."""
    together.TIMEOUT = timeout

    def end(_: Progress) -> None:
        if rank == who:
            os._exit(1)

    model = shard(Net(), "tensor parallel")
    torchwick.load_model(model, uri, progress=end)
    return whole(model)


def misfit(rank: int, uri: str) -> str:
    """Fill a module of another size."""
    try:
        torchwick.load_model(shard(Net(WIDTH + 4), "fsdp"), uri)
    except torchwick.StateDictError as error:
        return str(error)
    raise AssertionError("it fitted")
