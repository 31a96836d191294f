"""Secrets stay secret in odd places too: second loads, Ctrl-C, redirects, endpoints, proxies, caches."""

from __future__ import annotations

import gc
import logging
import signal
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch

import torchwick
from causes import CUSTOMER_KEY, MODEL, PASSWORD, QUICK, SECRET_KEY, SECRETS, TOKEN, URI
from faults import Answer, Redirect, S3Error, Stall
from relay import Relay
from torchwick import Client, S3Config, StoreError, TransferConfig
from torchwick.store import _environment, open_store
from torchwick.uri import parse

if TYPE_CHECKING:
    from pathlib import Path

    from faulty import FaultyServer


@pytest.fixture
def stored(faulty_s3: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    faulty_s3.put("models/resnet.pt", MODEL)
    return faulty_s3


def _with_locals(error: BaseException) -> str:
    below = error.__traceback__.tb_next if error.__traceback__ else None
    return "".join(traceback.TracebackException(type(error), error, below, capture_locals=True).format())


def _signatures(server: FaultyServer) -> list[str]:
    signed = (request.headers.get("authorization", "") for request in server.requests)
    return [text.rpartition("Signature=")[2] for text in signed if "Signature=" in text]


def _assert_hidden(text: str, server: FaultyServer) -> None:
    for secret in (*SECRETS, *_signatures(server)):
        assert secret not in text


class TestLogs:
    def test_a_request_that_repeats_a_signature(
        self, stored: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        torchwick.load(URI, transfer=QUICK)
        stored.delete("models/resnet.pt")
        with pytest.raises(torchwick.ObjectNotFoundError) as caught:
            torchwick.load(URI, transfer=QUICK)
        assert caplog.text
        _assert_hidden(caplog.text + _with_locals(caught.value), stored)

    def test_a_request_that_is_answered_with_its_own_token(self, stored: FaultyServer) -> None:
        torchwick.load(URI, transfer=QUICK)
        stored.on(S3Error(400, "Odd", f"what is {TOKEN}?"))
        with pytest.raises(StoreError, match="what is …") as caught:
            torchwick.load(URI, transfer=QUICK)
        _assert_hidden(str(caught.value) + _with_locals(caught.value), stored)

    def test_a_listing_that_is_refused(self, stored: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        directory = parse("s3://models/llama/")
        connection = open_store(directory, S3Config(sse_customer_key=CUSTOMER_KEY), 5.0).connect()
        stored.on(S3Error(403, "AccessDenied", f"{TOKEN} may not"))
        with pytest.raises(torchwick.AccessDeniedError) as caught:
            connection.list(directory)
        connection.release()
        assert stored.requests
        _assert_hidden(f"{caught.value}{vars(caught.value)}{caplog.text}{_with_locals(caught.value)}", stored)


class TestTracebacks:
    @pytest.mark.parametrize("warm", [False, True])
    def test_ctrl_c_while_an_answer_is_awaited(self, warm: bool, stored: FaultyServer) -> None:
        config = S3Config(sse_customer_key=CUSTOMER_KEY)
        if warm:
            torchwick.load(URI, s3=config, transfer=QUICK)
        stored.on(Stall(after=-1))
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt) as caught:
                torchwick.load(URI, s3=config, transfer=TransferConfig(timeout=5))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        _assert_hidden(_with_locals(caught.value), stored)

    def test_a_service_that_is_out_of_reach(
        self, stored: FaultyServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{closed_port}")
        role = S3Config(role_arn="arn:aws:iam::123456789012:role/reader")
        once = TransferConfig(max_attempts=1)
        with pytest.raises(torchwick.TransferError, match="Could not connect") as caught:
            torchwick.load(URI, s3=role, transfer=once)
        _assert_hidden(_with_locals(caught.value), stored)

    def test_of_a_large_model_are_short(self, stored: FaultyServer) -> None:
        def fails(_: torchwick.Progress) -> None:
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more") as caught:
            torchwick.load(URI, transfer=QUICK, progress=fails)
        assert len(_with_locals(caught.value)) < 10**6

    def test_a_failure_keeps_nothing_of_its_caller_alive(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

        def fails() -> weakref.ref[torch.Tensor]:
            large = torch.ones(3)
            with pytest.raises(torchwick.CredentialsError):
                torchwick.load(URI)
            return weakref.ref(large)

        kept = fails()
        gc.collect()
        assert kept() is None


class TestSettings:
    def test_the_cache_of_stores_knows_keys_by_their_digest(self, stored: FaultyServer) -> None:
        assert SECRET_KEY not in _environment()
        assert len(_environment()) == 64

    @pytest.mark.parametrize(
        "url", [f"http://me:{PASSWORD}@127.0.0.1:1", f"http://me:{PASSWORD}@localhost:x"]
    )
    def test_a_password_in_an_endpoint(
        self, url: str, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ValueError, match="leave them out") as refused:
            Client(s3=S3Config(endpoint_url=url))
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreError) as caught:
            torchwick.load(URI, transfer=QUICK)
        assert PASSWORD not in f"{refused.value}{caught.value}"

    def test_a_customers_key_does_not_go_to_a_proxy(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Relay() as relay:
            monkeypatch.setenv("HTTP_PROXY", relay.url)
            with pytest.raises(StoreError, match="plain HTTP"):
                torchwick.load(URI, s3=S3Config(sse_customer_key=CUSTOMER_KEY))
            assert not relay.requests

    def test_a_proxy_whose_password_is_not_escaped(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:p@{PASSWORD}/word@127.0.0.1:9")
        with pytest.raises(StoreError, match="not escaped") as caught:
            torchwick.load(URI)
        assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        f"/a b?X-Amz-Signature={PASSWORD}",
        f"http://me:{PASSWORD}@localhost:1/",
        f"http://[bad/{PASSWORD}",
        f"ftp://host/{PASSWORD}",
        f"/d\xe9j\xe0?{PASSWORD}",
        "/d\u00e9j\u00e0 vu".encode().decode("latin-1") + f"?{PASSWORD}",
    ],
)
def test_redirects_to_odd_places(location: str, faulty: FaultyServer) -> None:
    url = faulty.put("models/resnet.pt", MODEL)
    faulty.on(Redirect(location), nth=1)
    with pytest.raises(StoreError) as caught:
        torchwick.load(url, transfer=QUICK)
    assert PASSWORD not in str(caught.value)
    assert not isinstance(caught.value, torchwick.CredentialsError)


def test_a_refusal_of_any_length_is_read_in_part(stored: FaultyServer) -> None:
    torchwick.load(URI, transfer=QUICK)
    stored.on(Answer(403, b"<Error><Code>AccessDenied</Code>" + bytes(30_000_000)))
    with pytest.raises(StoreError):
        torchwick.load(URI, transfer=QUICK)


def test_stores_close_their_lines(stored: FaultyServer) -> None:
    torchwick.load(URI, transfer=QUICK)
    store: Any = open_store(parse(URI), S3Config(), QUICK.timeout)
    assert store._lines._idle
    store.close()
    assert not store._lines._idle
    torchwick.load(URI, transfer=QUICK)


def test_an_exchange_that_was_broken_off_leaves_no_line(stored: FaultyServer, tmp_path: Path) -> None:
    """The next load meets no answer to a request of the last one."""
    stored.on(Stall(after=-1), nth=1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            torchwick.load(URI, transfer=TransferConfig(timeout=5))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    reports: list[torchwick.LoadReport] = []
    torchwick.load(URI, transfer=TransferConfig(timeout=5), on_report=reports.append)
    assert reports[0].retries == 0
