"""Amazon's own addresses: what botocore makes of a bucket, an ARN or a region is where the bytes come from.

A proxy leads every host to the fault server, whose certificate names Amazon's hosts: names, TLS and both
planes are as they are in AWS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import torchwick
from checkpoints.base import save_bytes
from faults import Answer
from faulty import FaultyServer
from oracle import assert_same
from relay import Relay
from torchwick import AccessDeniedError, ObjectNotFoundError, S3Config, StoreError, TransferConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trustme

STATE = {"weight": torch.arange(100_000, dtype=torch.float32)}
MODEL = save_bytes(STATE)
PARTS = TransferConfig(part_size=150_000, connections=2, max_attempts=2, timeout=2)
ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/readers"
HOSTS = (
    "s3.us-west-2.amazonaws.com",
    "*.s3.us-west-2.amazonaws.com",
    "*.s3.eu-west-1.amazonaws.com",
    "*.s3.dualstack.us-west-2.amazonaws.com",
    "*.s3-accesspoint.eu-west-1.amazonaws.com",
    "*.s3express-usw2-az1.us-west-2.amazonaws.com",
)


@pytest.fixture
def amazon(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_environment: None
) -> Iterator[FaultyServer]:
    """The fault server as all of Amazon's hosts; it holds a model under the key new.pt of every bucket."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with (
        FaultyServer(authority=authority, ca_file=ca_file, hosts=HOSTS) as server,
        Relay(leads_to=("127.0.0.1", int(server.endpoint_url.rpartition(":")[2]))) as relay,
    ):
        variables = server.environment() | {"HTTPS_PROXY": relay.url, "AWS_DEFAULT_REGION": "us-west-2"}
        del variables["AWS_ENDPOINT_URL"], variables["AWS_REGION"]
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        server.put("new.pt", MODEL)
        server.put("models/new.pt", MODEL)
        yield server


def _hosts(server: FaultyServer) -> set[str]:
    return {request.headers["host"] for request in server.requests}


@pytest.mark.parametrize(
    ("uri", "config", "host", "path"),
    [
        ("s3://models/new.pt", S3Config(), "models.s3.us-west-2.amazonaws.com", "new.pt"),
        ("s3://models/new.pt", S3Config(region="eu-west-1"), "models.s3.eu-west-1.amazonaws.com", "new.pt"),
        (
            "s3://models/new.pt",
            S3Config(addressing_style="path"),
            "s3.us-west-2.amazonaws.com",
            "models/new.pt",
        ),
        (
            f"s3://{ACCESS_POINT}/new.pt",
            S3Config(),
            "readers-123456789012.s3-accesspoint.eu-west-1.amazonaws.com",
            "new.pt",
        ),
    ],
)
def test_where_the_bytes_come_from(
    uri: str, config: S3Config, host: str, path: str, amazon: FaultyServer
) -> None:
    assert_same(torchwick.load(uri, s3=config, transfer=PARTS), STATE)
    assert _hosts(amazon) == {host}
    assert {request.path for request in amazon.requests} == {path}
    assert len(amazon.requests) > 2


def test_settings_of_the_environment(amazon: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    assert_same(torchwick.load("s3://models/new.pt", transfer=PARTS), STATE)
    assert _hosts(amazon) == {"models.s3.dualstack.us-west-2.amazonaws.com"}


def test_addressing_of_the_profile(
    amazon: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n    addressing_style = path\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    torchwick.load("s3://models/new.pt", transfer=PARTS)
    assert _hosts(amazon) == {"s3.us-west-2.amazonaws.com"}


class TestExpress:
    """S3 Express One Zone: a session is made first, and its keys sign."""

    BUCKET = "models--usw2-az1--x-s3"
    HOST = f"{BUCKET}.s3express-usw2-az1.us-west-2.amazonaws.com"
    SESSION = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<CreateSessionResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Credentials>'
        "<SessionToken>s3ssion</SessionToken><SecretAccessKey>hush</SecretAccessKey>"
        "<AccessKeyId>ASIASESSION</AccessKeyId><Expiration>2099-01-01T00:00:00Z</Expiration>"
        "</Credentials></CreateSessionResult>"
    )

    def test_a_load(self, amazon: FaultyServer) -> None:
        amazon.on(Answer(200, self.SESSION.encode()), where=lambda request: "session" in request.query)
        assert_same(torchwick.load(f"s3://{self.BUCKET}/new.pt", transfer=PARTS), STATE)
        assert _hosts(amazon) == {self.HOST}
        asked, *reads = amazon.requests
        assert "session" in asked.query
        assert all(request.headers["x-amz-s3session-token"] == "s3ssion" for request in reads)
        assert all("Credential=ASIASESSION" in request.headers["authorization"] for request in reads)

    def test_no_session(self, amazon: FaultyServer) -> None:
        denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        amazon.on(Answer(403, denied), where=lambda request: "session" in request.query)
        with pytest.raises(AccessDeniedError, match=f"s3://{self.BUCKET}/new.pt.*asked as access key AK"):
            torchwick.load(f"s3://{self.BUCKET}/new.pt", transfer=PARTS)


class TestAnotherRegion:
    @pytest.mark.parametrize("status", [301, 400])
    def test_it_is_found(self, status: int, amazon: FaultyServer) -> None:
        code = "PermanentRedirect" if status == 301 else "AuthorizationHeaderMalformed"
        refusal = f"<Error><Code>{code}</Code><Region>eu-west-1</Region></Error>".encode()
        amazon.on(
            Answer(status, refusal, {"x-amz-bucket-region": "eu-west-1"}),
            where=lambda request: "us-west-2" in request.headers["host"],
        )
        assert_same(torchwick.load("s3://models/new.pt", transfer=PARTS), STATE)
        reads = [request for request in amazon.requests if "eu-west-1" in request.headers["host"]]
        assert len(reads) > 2
        assert all("/eu-west-1/s3/aws4_request" in request.headers["authorization"] for request in reads)

    def test_it_cannot_be_found(self, amazon: FaultyServer) -> None:
        refusal = b"<Error><Code>PermanentRedirect</Code></Error>"
        amazon.on(Answer(301, refusal))
        amazon.on(Answer(403), method="HEAD")
        with pytest.raises(StoreError, match="the bucket is in another region") as caught:
            torchwick.load("s3://models/new.pt", transfer=PARTS)
        assert "AWS_DEFAULT_REGION" in str(caught.value.hint)

    def test_redirects_without_end(self, amazon: FaultyServer) -> None:
        amazon.on(Answer(301, b"<Error><Code>PermanentRedirect</Code></Error>"), method=None)
        with pytest.raises(StoreError, match="redirects every request"):
            torchwick.load("s3://models/new.pt", transfer=PARTS)


def test_an_access_point_that_is_not_there(amazon: FaultyServer) -> None:
    amazon.on(Answer(404, b"<Error><Code>NoSuchAccessPoint</Code></Error>"))
    with pytest.raises(ObjectNotFoundError, match="there is no such access point"):
        torchwick.load(f"s3://{ACCESS_POINT}/new.pt", transfer=PARTS)
