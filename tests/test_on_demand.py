"""Stand-ins for tensors: each is handed out once, whatever the order, on any thread, until the load ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch

import torchwick
from faults import S3Error, Stall
from torchwick import S3Config, TransferConfig
from torchwick.checkpoint.opening import open_objects
from torchwick.integrations.on_demand import OnDemand, asking_order
from torchwick.store import open_store
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from faulty import FaultyServer

STATE = {f"layers.{number}.weight": torch.full((64, 1024), float(number)) for number in range(12)}
STATE["steps"] = torch.arange(7)
NAMES = sorted(STATE, key=asking_order)
PATH = "bucket/model.safetensors"


@pytest.fixture
def opened(faulty_s3: FaultyServer) -> Callable[..., OnDemand]:
    """Open the checkpoint, on the server that misbehaves."""
    faulty_s3.put(PATH, safetensors.torch.save(STATE), checksum="crc64nvme")

    def make(**settings: object) -> OnDemand:
        uri, config = parse(f"s3://{PATH}"), TransferConfig(**settings)  # type: ignore[arg-type]
        return OnDemand(*open_objects(uri, open_store(uri, S3Config(), config.timeout), config), None)

    return make


@pytest.mark.parametrize(
    "order", [NAMES, NAMES[::-1], NAMES[1::2] + NAMES[::2]], ids=["asked", "back", "odd"]
)
@pytest.mark.parametrize("limit", ["auto", "300KB"])
def test_tensors_in_any_order(limit: str, order: list[str], opened: Callable[..., OnDemand]) -> None:
    with opened(memory_limit=limit) as tensors:
        stand_ins = tensors.stand_ins()
        for name in order:
            assert torch.equal(stand_ins[name][...], STATE[name])
        tensors.finish()


def test_tensors_on_many_threads(opened: Callable[..., OnDemand]) -> None:
    with opened(memory_limit="600KB") as tensors, ThreadPoolExecutor(8) as pool:
        found = dict(zip(NAMES, pool.map(tensors.take, NAMES), strict=True))
        tensors.finish()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_nothing_is_read_twice_in_the_order_of_names(
    opened: Callable[..., OnDemand], faulty_s3: FaultyServer
) -> None:
    tensors = opened(memory_limit="600KB")
    faulty_s3.requests.clear()
    with tensors:
        for name in NAMES:
            tensors.take(name)
        tensors.finish()
    ranges = [request.range for request in faulty_s3.requests if request.range]
    bytes_read = sum((stop or 0) - start for start, stop in ranges)
    assert bytes_read <= sum(tensor.nbytes for tensor in STATE.values())


def test_a_tensor_that_is_asked_for_again_is_another(opened: Callable[..., OnDemand]) -> None:
    with opened() as tensors:
        first, second = tensors.take("steps"), tensors.take("steps")
        assert torch.equal(first, second)
        assert first.data_ptr() != second.data_ptr()


def test_a_stand_in_says_what_it_stands_for(opened: Callable[..., OnDemand]) -> None:
    with opened() as tensors:
        weight, steps = (tensors.stand_ins()[name] for name in ("layers.3.weight", "steps"))
        assert (weight.dtype, weight.get_dtype(), weight.is_floating_point()) == (torch.float32, "F32", True)
        assert (steps.dtype, steps.get_dtype(), steps.is_floating_point()) == (torch.int64, "I64", False)
        assert weight.shape == tuple(weight.get_shape()) == (64, 1024)
        assert torch.equal(weight[3:5, ::2], STATE["layers.3.weight"][3:5, ::2])


def test_a_failure_reaches_all_who_ask(opened: Callable[..., OnDemand], faulty_s3: FaultyServer) -> None:
    tensors = opened()
    faulty_s3.on(S3Error(403, "AccessDenied"), path=PATH)
    with tensors:
        for name in NAMES:
            with pytest.raises(torchwick.AccessDeniedError):
                tensors.take(name)
        with pytest.raises(torchwick.AccessDeniedError):
            tensors.finish()


def test_who_waits_is_woken_when_the_load_ends(
    opened: Callable[..., OnDemand], faulty_s3: FaultyServer
) -> None:
    tensors = opened(connections=1)
    faulty_s3.on(Stall(1000), path=PATH)
    with ThreadPoolExecutor(4) as pool:
        with tensors:
            waiting = [pool.submit(tensors.take, name) for name in NAMES[1:5]]
            deadline = time.monotonic() + 10
            while threading.active_count() < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
        for future in waiting:
            with pytest.raises(ValueError, match="the load has ended"):
                future.result(10)
    with pytest.raises(ValueError, match="the load has ended"):
        tensors.take("steps")


def test_one_tensor_larger_than_the_limit(opened: Callable[..., OnDemand]) -> None:
    with (
        pytest.raises(torchwick.MemoryLimitError, match=r"layers\.\d+\.weight"),
        opened(memory_limit="100KB"),
    ):
        pass
