"""Servers, buckets and a clean environment for the tests."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import trustme

from faulty import FaultyServer
from torchwick.demo.environment import aws_environment, is_network_setting
from torchwick.demo.server import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON_PATIENCE = 60.0  # seconds that a script in a process of its own may take
LEFTOVER_PATIENCE = 2.0  # seconds that threads of a finished load may take to end


class Put(Protocol):
    """Stores an object and returns its s3:// URI."""

    def __call__(self, bucket: str, key: str, content: bytes | Path) -> str: ...


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes in which no piece is found at another place."""
    return random.Random(seed).randbytes(size)


def run_python(script: str, *arguments: str, **variables: str) -> str:
    """Run a script in a process of its own, and return what it printed; fail with what it complained of."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PYTHON_PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide the developer's own AWS settings and proxies from every test."""
    for name in filter(is_network_setting, list(os.environ)):
        monkeypatch.delenv(name)
    empty = tmp_path_factory.getbasetemp() / "empty"
    empty.touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(empty))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(empty))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fail a test after which threads of the library are still alive."""
    yield
    deadline = time.monotonic() + LEFTOVER_PATIENCE
    while (alive := _library_threads()) and time.monotonic() < deadline:
        alive[0].join(timeout=deadline - time.monotonic())
    assert not alive, f"threads left behind: {alive}"


def _library_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("torchwick-")]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[SeaweedFS]:
    """A real S3 server for the whole session."""
    server = SeaweedFS()
    with aws_environment(server.environment()):
        server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_client(s3_server: SeaweedFS) -> Iterator[Any]:
    """A boto3 client for the real S3 server."""
    with aws_environment(s3_server.environment()):
        client = s3_server.client()
    yield client
    client.close()


@pytest.fixture
def bucket(s3_client: Any) -> str:
    """A new bucket on the real S3 server."""
    name = f"test-{uuid.uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def shared_bucket(s3_client: Any) -> str:
    """One bucket for all tests that choose keys of their own: making a bucket takes a fifth of a second."""
    name = f"shared-{uuid.uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def put(s3_client: Any) -> Put:
    """Store bytes, or a file, on the real S3 server: `put(bucket, key, content)` returns the URI."""

    def store(bucket: str, key: str, content: bytes | Path) -> str:
        if isinstance(content, Path):
            s3_client.upload_file(str(content), bucket, key)
        else:
            s3_client.put_object(Bucket=bucket, Key=key, Body=content)
        return f"s3://{bucket}/{key}"

    return store


@pytest.fixture
def aws_env(s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, isolated_environment: None) -> SeaweedFS:
    """Point the AWS_* variables at the real S3 server for one test."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """A server that misbehaves on cue, over plain HTTP."""
    with FaultyServer() as server:
        yield server


@pytest.fixture
def faulty_s3(
    faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch, isolated_environment: None
) -> FaultyServer:
    """The server that misbehaves on cue, as the S3 that the AWS_* variables name."""
    for name, value in faulty.environment().items():
        monkeypatch.setenv(name, value)
    return faulty


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing listens, and nothing will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that only the tests know."""
    return trustme.CA()


@pytest.fixture
def faulty_tls(authority: trustme.CA, tmp_path: Path) -> Iterator[FaultyServer]:
    """A server that misbehaves on cue, over TLS; its `ca_file` is the authority to trust."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with FaultyServer(authority=authority, ca_file=ca_file) as server:
        yield server
