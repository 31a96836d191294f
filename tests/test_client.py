"""A client offers every verb of the module, with its settings in the place of theirs."""

from __future__ import annotations

import inspect
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

import torchwick
from checkpoints.base import save_bytes
from oracle import assert_same
from torchwick import Client, S3Config, TransferConfig

if TYPE_CHECKING:
    from conftest import Put
    from torchwick.demo.server import SeaweedFS

SETTINGS = {"s3", "transfer"}


def _verbs() -> dict[str, Any]:
    functions = {name: getattr(torchwick, name) for name in torchwick.__all__}
    return {
        name: function
        for name, function in functions.items()
        if inspect.isfunction(function) and inspect.signature(function).parameters.keys() >= SETTINGS
    }


def test_there_are_verbs() -> None:
    assert "load" in _verbs()


@pytest.mark.parametrize("name", _verbs())
def test_it_takes_what_the_module_takes(name: str) -> None:
    wanted = [
        parameter
        for parameter in inspect.signature(_verbs()[name]).parameters.values()
        if parameter.name not in SETTINGS
    ]
    assert list(inspect.signature(getattr(Client(), name)).parameters.values()) == wanted


def test_its_settings_are_used(
    s3_server: SeaweedFS, shared_bucket: str, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"weight": torch.arange(1000)}
    uri = put(shared_bucket, "client.pt", save_bytes(state))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    client = Client(
        s3=S3Config(endpoint_url=s3_server.endpoint_url, region=s3_server.region),
        transfer=TransferConfig(connections=1),
    )
    reports: list[torchwick.LoadReport] = []
    assert_same(client.load(uri, on_report=reports.append), state)
    assert reports[0].connections == 1


def test_it_crosses_process_borders() -> None:
    client = Client(s3=S3Config(region="eu-west-1"), transfer=TransferConfig(connections=3))
    assert pickle.loads(pickle.dumps(client)) == client
