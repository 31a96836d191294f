"""An object on the fault server, and the transfers that read it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from conftest import random_bytes
from torchwick import S3Config, TransferConfig
from torchwick.store import ObjectInfo, Store, open_store
from torchwick.transfer import Budget, Fill, Listed, Tally, Transfer, plan
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from faulty import FaultyServer

MIB = 1 << 20
SIZE = 4 * MIB + 123
CONTENT = random_bytes(SIZE)
PATH = "bucket/model.pt"


@dataclasses.dataclass
class Served:
    """An object on the fault server, of which one byte has been read already."""

    server: FaultyServer
    store: Store
    info: ObjectInfo

    def __post_init__(self) -> None:
        self.memory = bytearray(self.info.size or 0)
        self._asked_before = len(self.server.requests)

    def read(
        self,
        config: TransferConfig,
        on_progress: Callable[[int, int], object] | None = None,
        budget: Budget | None = None,
    ) -> Tally:
        """Read the object into `memory`."""
        parts = plan(self.info, [Fill(0, memoryview(self.memory))], config.part_size)
        return Transfer(self.store, Listed(parts), config, on_progress, budget=budget).run()

    def patient(self, timeout: float) -> Served:
        """The same object, read with another timeout."""
        return dataclasses.replace(self, store=open_store(self.info.uri, S3Config(), timeout))

    @property
    def asked(self) -> list[tuple[int, int | None] | None]:
        """The ranges that transfers asked for."""
        return [request.range for request in self.server.requests[self._asked_before :]]


def serve(
    server: FaultyServer,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    content: bytes = CONTENT,
    timeout: float = 5.0,
) -> Served:
    """Store `content` on the server, and read its first byte as ``"web"`` or ``"s3"`` object."""
    url = server.put(PATH, content)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    uri = parse(url if scheme == "web" else f"s3://{PATH}")
    store = open_store(uri, S3Config(), timeout)
    connection = store.connect()
    body = connection.get(uri, 0, 1)
    body.readinto(memoryview(bytearray(1)))
    body.close()
    connection.release()
    return Served(server, store, body.info)
