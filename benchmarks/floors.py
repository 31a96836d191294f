"""Two floors: the bytes read and dropped, and the bytes read into memory that stays.

Neither signs a request nor knows a format. No loader in Python can beat `drain` on the same connections, and
none that returns new tensors can beat `fill`: it, too, must write each byte once into fresh memory.
"""

from __future__ import annotations

import http.client
import os
import ssl
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

PART = 8 << 20
CONNECTIONS = 16
TLS_CONNECTIONS = 6


class Part(NamedTuple):
    """A range of the object, end exclusive."""

    start: int
    end: int


def connections() -> int:
    """How many connections the floors open.

    Over TLS each connection's thread decrypts as well, and more of them bring nothing on a few cores.
    """
    return TLS_CONNECTIONS if os.environ["AWS_ENDPOINT_URL"].startswith("https:") else CONNECTIONS


def drain(uri: str) -> int:
    """Read the object into one small buffer per connection, reused; return how many bytes came."""

    def reused_buffer() -> Callable[[Part], memoryview]:
        buffer = memoryview(bytearray(PART))
        return lambda part: buffer[: part.end - part.start]

    return _fetch(uri, object_size(uri), reused_buffer)


def fill(uri: str) -> torch.Tensor:
    """Read the object into one new buffer of its size."""
    import torch

    size = object_size(uri)
    buffer = torch.empty(size, dtype=torch.uint8)
    whole = buffer.numpy().data
    _fetch(uri, size, lambda: lambda part: whole[part.start : part.end])
    return buffer


def object_size(uri: str) -> int:
    """Size of the object, by HEAD."""
    connection = _connect()
    connection.request("HEAD", _path(uri))
    return int(connection.getresponse().headers["Content-Length"])


def _fetch(uri: str, size: int, destinations: Callable[[], Callable[[Part], memoryview]]) -> int:
    parts = deque(Part(start, min(start + PART, size)) for start in range(0, size, PART))

    def work() -> int:
        connection, destination, received = _connect(), destinations(), 0
        while True:
            try:
                part = parts.popleft()
            except IndexError:
                return received
            received += _read(connection, _path(uri), part, destination(part))

    count = connections()
    with ThreadPoolExecutor(count) as pool:
        return sum(future.result() for future in [pool.submit(work) for _ in range(count)])


def _read(connection: http.client.HTTPConnection, path: str, part: Part, into: memoryview) -> int:
    connection.request("GET", path, headers={"Range": f"bytes={part.start}-{part.end - 1}"})
    response = connection.getresponse()
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        raise RuntimeError(f"asked for a range, got status {response.status}")
    received = 0
    while received < len(into) and (count := response.readinto(into[received:])):
        received += count
    response.close()
    return received


def _connect() -> http.client.HTTPConnection:
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    if endpoint.scheme == "https":
        trust = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
        return http.client.HTTPSConnection(endpoint.netloc, context=trust)
    return http.client.HTTPConnection(endpoint.netloc)


def _path(uri: str) -> str:
    return uri.removeprefix("s3:/")
