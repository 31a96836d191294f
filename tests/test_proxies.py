"""Proxies of the environment: both planes go through them, and say so where they refuse."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

import torchwick
from checkpoints.base import save_bytes
from oracle import assert_same
from relay import Relay
from torchwick import AccessDeniedError, CredentialsError, StoreError, TransferConfig, TransferError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Put
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

STATE = {"weight": torch.arange(200_000, dtype=torch.float32)}
MODEL = save_bytes(STATE)
PARTS = TransferConfig(part_size=200_000, connections=2, max_attempts=2, timeout=2)
OUTSIDE = "http://s3.example.com"  # a host that only a proxy can lead to


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as relay:
        yield relay


@pytest.fixture
def stored(faulty_s3: FaultyServer) -> FaultyServer:
    faulty_s3.put("models/new.pt", MODEL)
    return faulty_s3


@pytest.fixture
def real(shared_bucket: str, put: Put) -> str:
    """A small model on the real S3 server."""
    return put(shared_bucket, "proxied.pt", MODEL)


@pytest.fixture(params=["http_proxy", "HTTP_PROXY"])
def variable(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _leading_to(server: FaultyServer, **options: str | int) -> Relay:
    port = int(server.endpoint_url.rpartition(":")[2])
    return Relay(leads_to=("127.0.0.1", port), **options)  # type: ignore[arg-type]


class TestPlain:
    def test_a_real_server(
        self, aws_env: SeaweedFS, real: str, relay: Relay, variable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, relay.url)
        assert_same(torchwick.load(real, transfer=PARTS), STATE)
        assert len(relay.requests) > 2
        assert relay.hosts() == {aws_env.endpoint_url.removeprefix("http://")}

    def test_a_web_address(self, stored: FaultyServer, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", relay.url)
        assert_same(torchwick.load(stored.url("models/new.pt"), transfer=PARTS), STATE)
        assert relay.requests

    def test_a_host_that_only_the_proxy_knows(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _leading_to(stored) as relay:
            monkeypatch.setenv("AWS_ENDPOINT_URL", OUTSIDE)
            monkeypatch.setenv("HTTP_PROXY", relay.url.removeprefix("http://"))
            assert_same(torchwick.load("s3://models/new.pt", transfer=PARTS), STATE)
            assert relay.hosts() == {"s3.example.com"}
        assert all(request.headers["host"] == "s3.example.com" for request in stored.requests)

    @pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "example.com,127.0.0.1"])
    def test_an_exempt_host(
        self, stored: FaultyServer, relay: Relay, exempt: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", relay.url)
        monkeypatch.setenv("NO_PROXY", exempt)
        assert_same(torchwick.load("s3://models/new.pt", transfer=PARTS), STATE)
        assert not relay.requests

    def test_a_proxy_set_after_the_first_load(
        self, stored: FaultyServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torchwick.load("s3://models/new.pt", transfer=PARTS)
        monkeypatch.setenv("HTTP_PROXY", relay.url)
        torchwick.load("s3://models/new.pt", transfer=PARTS)
        assert relay.requests


class TestSecure:
    def test_through_a_tunnel(
        self, faulty_tls: FaultyServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faulty_tls.put("models/new.pt", MODEL)
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HTTPS_PROXY", relay.url)
        assert_same(torchwick.load("s3://models/new.pt", transfer=PARTS), STATE)
        assert {asked.method for asked in relay.requests} == {"CONNECT"}

    def test_the_proxy_of_the_other_scheme_is_left_alone(
        self, faulty_tls: FaultyServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", relay.url)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(faulty_tls.ca_file))
        url = faulty_tls.put("models/new.pt", MODEL)
        assert_same(torchwick.load(url, transfer=PARTS), STATE)
        assert not relay.requests

    def test_the_name_in_the_certificate_is_the_hosts(
        self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _leading_to(faulty_tls) as relay:
            monkeypatch.setenv("HTTPS_PROXY", relay.url)
            monkeypatch.setenv("AWS_CA_BUNDLE", str(faulty_tls.ca_file))
            with pytest.raises(TransferError, match=r"s3\.example\.com"):
                torchwick.load("https://s3.example.com/models/new.pt", transfer=PARTS)


@pytest.mark.parametrize("scheme", ["http", "https"])
class TestRefusals:
    @pytest.fixture(autouse=True)
    def asking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "AKIAPROXIED",
            "AWS_SECRET_ACCESS_KEY": "not-checked",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)

    @pytest.fixture(params=["s3://models/new.pt", "web"])
    def uri(self, request: pytest.FixtureRequest, scheme: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"{scheme}://s3.example.com")
        return f"{scheme}://s3.example.com/models/new.pt" if request.param == "web" else request.param

    def test_no_password(self, uri: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with Relay(password="open sesame") as relay:
            monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{relay.port}")
            with pytest.raises(CredentialsError, match="wants a user name and password") as caught:
                torchwick.load(uri, transfer=PARTS)
        assert caught.value.uri == uri
        assert str(relay.port) in str(caught.value)

    def test_a_wrong_password_is_not_shown(
        self, uri: str, scheme: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with Relay(password="open sesame") as relay:
            monkeypatch.setenv(f"{scheme}_proxy", f"http://me:hush@127.0.0.1:{relay.port}")
            with pytest.raises(CredentialsError) as caught:
                torchwick.load(uri, transfer=PARTS)
        assert "hush" not in f"{caught.value}{caught.value!r}{caplog.text}"

    def test_it_forbids_the_host(self, uri: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with Relay(refuses=403) as relay:
            monkeypatch.setenv(f"{scheme}_proxy", relay.url)
            with pytest.raises(AccessDeniedError):
                torchwick.load(uri, transfer=PARTS)

    def test_it_is_not_there(
        self, uri: str, scheme: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{closed_port}")
        with pytest.raises(TransferError, match=f"the proxy 127.0.0.1:{closed_port}"):
            torchwick.load(uri, transfer=PARTS)

    def test_it_cannot_reach_the_host(self, uri: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with Relay(refuses=502) as relay:
            monkeypatch.setenv(f"{scheme}_proxy", relay.url)
            with pytest.raises(TransferError) as caught:
                torchwick.load(uri, transfer=PARTS)
        assert caught.value.attempts == 2

    @pytest.mark.parametrize(
        "address", ["https://127.0.0.1:1", "socks5://127.0.0.1:1", "http://", "http://a:b:c"]
    )
    def test_one_that_cannot_be_used(
        self, uri: str, scheme: str, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(f"{scheme}_proxy", address)
        with pytest.raises(StoreError, match=f"{scheme.upper()}_PROXY") as caught:
            torchwick.load(uri, transfer=PARTS)
        assert caught.value.uri == uri


def test_a_password_with_odd_letters(stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Relay(password="o:p@n/") as relay:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:o%3Ap%40n%2F@127.0.0.1:{relay.port}")
        assert_same(torchwick.load("s3://models/new.pt", transfer=PARTS), STATE)
