"""Any web server will do: with ranges or without, with tags or without, presigned, redirected, over TLS."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
import safetensors.torch
import torch

import torchwick
from checkpoints.base import save_bytes
from faults import Answer, Cut, Framing, IgnoreRange, Redirect, S3Error, SetHeaders, Truncate
from oracle import assert_same
from torchwick import (
    AccessDeniedError,
    CredentialsError,
    FormatError,
    LoadReport,
    ObjectChangedError,
    ObjectNotFoundError,
    S3Config,
    StoreError,
    TransferConfig,
    TransferError,
)

if TYPE_CHECKING:
    from conftest import Put
    from faults import Length
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

STATE = {"weight": torch.arange(500_000, dtype=torch.float32), "bias": torch.ones(3, dtype=torch.bfloat16)}
OTHER = {"weight": -STATE["weight"], "bias": STATE["bias"]}
PARTS = TransferConfig(part_size=500_000, connections=2)


def _encode(kind: str, state: dict[str, torch.Tensor]) -> bytes:
    if kind == "safetensors":
        return safetensors.torch.save(state)
    return save_bytes(state, _use_new_zipfile_serialization=kind == "zip")


def _decode(kind: str, content: bytes) -> Any:
    return safetensors.torch.load(content) if kind == "safetensors" else torch.load(io.BytesIO(content))


KINDS = ["zip", "legacy", "safetensors"]
MODELS = {kind: _encode(kind, STATE) for kind in KINDS}
MODEL = MODELS["zip"]

every_kind = pytest.mark.parametrize("kind", KINDS)
lengths = pytest.mark.parametrize("length", ["content-length", "chunked", "until-close"])


def _assert_loads(url: str, kind: str = "zip") -> LoadReport:
    reports: list[LoadReport] = []
    loaded = torchwick.load(url, transfer=PARTS, on_report=reports.append)
    expected = _decode(kind, MODELS[kind])
    if kind == "safetensors":
        expected = {name: expected[name] for name in loaded}
    assert_same(loaded, expected, storages=kind != "safetensors")
    return reports[0]


class TestPresigned:
    def test_it_loads(self, aws_env: SeaweedFS, shared_bucket: str, put: Put, s3_client: Any) -> None:
        url = self._sign(s3_client, put, shared_bucket, "presigned model.pt")
        report = _assert_loads(url)
        assert "Signature" not in report.uri
        assert report.uri.endswith("/presigned%20model.pt?…")

    def test_no_credentials_are_sent(self, faulty_s3: FaultyServer) -> None:
        _assert_loads(faulty_s3.put("models/new.pt", MODEL) + "?X-Amz-Signature=5ec3e7")
        assert not any("authorization" in request.headers for request in faulty_s3.requests)
        assert {request.query for request in faulty_s3.requests} == {"X-Amz-Signature=5ec3e7"}

    def test_a_changed_signature(
        self, aws_env: SeaweedFS, shared_bucket: str, put: Put, s3_client: Any
    ) -> None:
        url = self._sign(s3_client, put, shared_bucket, "new.pt")
        with pytest.raises((AccessDeniedError, CredentialsError)) as caught:
            torchwick.load(url.replace("Signature=", "Signature=A"))
        assert "Signature=" not in str(caught.value)
        assert "signature included" in str(caught.value.hint)

    def test_an_expired_one(self, faulty: FaultyServer) -> None:
        faulty.on(S3Error(403, "AccessDenied", "Request has expired"))
        with pytest.raises(AccessDeniedError, match="expired") as caught:
            torchwick.load(faulty.put("new.pt", MODEL) + "?X-Amz-Signature=5ec3e7")
        assert "new presigned URL" in str(caught.value.hint)
        assert "5ec3e7" not in str(caught.value)

    @staticmethod
    def _sign(s3_client: Any, put: Put, bucket: str, key: str) -> str:
        put(bucket, key, MODEL)
        url: str = s3_client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
        return url


class TestWithoutRanges:
    """Servers that send everything, whatever is asked for."""

    @every_kind
    @lengths
    def test_it_loads(self, faulty: FaultyServer, kind: str, length: Length) -> None:
        faulty.on(IgnoreRange(length))
        report = _assert_loads(faulty.put("model", MODELS[kind]), kind)
        assert report.size == len(MODELS[kind])

    @every_kind
    def test_a_stream_that_breaks_starts_again(self, faulty: FaultyServer, kind: str) -> None:
        faulty.on(IgnoreRange())
        faulty.on(Cut(1_000_000), nth=2)
        assert _assert_loads(faulty.put("model", MODELS[kind]), kind).retries == 1

    @pytest.mark.parametrize("kind", ["zip", "legacy"])
    def test_a_stream_without_an_end_that_breaks_starts_again(self, faulty: FaultyServer, kind: str) -> None:
        faulty.on(IgnoreRange("chunked"))
        faulty.on(Truncate(1_000_000), nth=2)
        assert _assert_loads(faulty.put("model", MODELS[kind]), kind).retries == 1

    @every_kind
    @lengths
    def test_overwritten_in_between(self, faulty: FaultyServer, kind: str, length: Length) -> None:
        faulty.on(IgnoreRange(length))
        url = faulty.put("model", MODELS[kind])
        faulty.on(lambda: faulty.put("model", _encode(kind, OTHER)), nth=2)
        with pytest.raises(ObjectChangedError):
            torchwick.load(url, transfer=PARTS)

    def test_a_small_model(self, faulty: FaultyServer) -> None:
        faulty.on(IgnoreRange())
        small = save_bytes({"a": torch.ones(3)})
        assert_same(torchwick.load(faulty.put("model", small)), {"a": torch.ones(3)})

    @lengths
    def test_what_is_no_model(self, faulty: FaultyServer, length: Length) -> None:
        faulty.on(IgnoreRange(length))
        with pytest.raises(FormatError, match="HTML"):
            torchwick.load(faulty.put("model", b"<!DOCTYPE html><html></html>"))

    @lengths
    def test_what_was_cut_short(self, faulty: FaultyServer, length: Length) -> None:
        faulty.on(IgnoreRange(length))
        with pytest.raises(FormatError):
            torchwick.load(faulty.put("model", MODEL[:1_000_000]))


class TestTags:
    @every_kind
    @pytest.mark.parametrize(
        "headers",
        [
            {"ETag": 'W/"weak"'},
            {"ETag": None},
            {"Last-Modified": None},
            {"ETag": 'W/"weak"', "Last-Modified": None},
            {"ETag": None, "Last-Modified": None},
        ],
        ids=["weak", "no tag", "no date", "weak and no date", "neither"],
    )
    def test_it_loads(self, faulty: FaultyServer, kind: str, headers: dict[str, str | None]) -> None:
        faulty.on(SetHeaders(headers))
        etag = headers.get("ETag", "md5")
        _assert_loads(faulty.put("model", MODELS[kind], etag=etag), kind)

    @every_kind
    @pytest.mark.parametrize("etag", ['W/"weak"', None])
    def test_a_date_pins_the_version(self, faulty: FaultyServer, kind: str, etag: str | None) -> None:
        url = faulty.put("model", MODELS[kind], etag=etag)
        faulty.on(lambda: faulty.put("model", _encode(kind, OTHER), etag=etag), nth=3)
        with pytest.raises(ObjectChangedError):
            torchwick.load(url, transfer=PARTS)
        assert all("if-unmodified-since" in request.headers for request in faulty.requests[1:])

    def test_with_nothing_to_pin_by_parts_never_mix(self, faulty: FaultyServer) -> None:
        faulty.on(SetHeaders({"ETag": None, "Last-Modified": None}))
        url = faulty.put("model", MODELS["safetensors"], etag=None)
        faulty.on(lambda: faulty.put("model", _encode("safetensors", OTHER), etag=None), nth=3)
        _assert_loads(url, "safetensors")

    def test_the_tag_is_reported(self, faulty: FaultyServer) -> None:
        assert _assert_loads(faulty.put("model", MODEL, etag='"v7"')).etag == '"v7"'


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_they_are_followed(self, faulty: FaultyServer, status: int) -> None:
        faulty.put("elsewhere", MODEL)
        faulty.on(Redirect(faulty.url("elsewhere"), status), path="model")
        _assert_loads(faulty.url("model"))

    @pytest.mark.parametrize("location", ["/a/elsewhere", "elsewhere", "../a/elsewhere"])
    def test_to_a_path(self, faulty: FaultyServer, location: str) -> None:
        faulty.put("a/elsewhere", MODEL)
        faulty.on(Redirect(location), path="a/model")
        _assert_loads(faulty.url("a/model"))

    def test_what_signed_the_first_address_stays_there(self, faulty: FaultyServer) -> None:
        faulty.put("elsewhere", MODEL)
        faulty.on(Redirect(faulty.url("elsewhere")), path="model")
        _assert_loads(faulty.url("model?token=5ec3e7"))
        assert not any("token" in request.query for request in faulty.requests if request.path == "elsewhere")

    def test_in_a_circle(self, faulty: FaultyServer) -> None:
        faulty.on(Redirect(faulty.url("model")))
        with pytest.raises(StoreError, match="redirected more than"):
            torchwick.load(faulty.url("model"))
        assert len(faulty.requests) < 9

    def test_out_of_tls(self, faulty: FaultyServer, faulty_tls: FaultyServer) -> None:
        faulty_tls.on(Redirect(faulty.put("model", MODEL)))
        with pytest.raises(StoreError, match="https"):
            torchwick.load(faulty_tls.url("model"), s3=S3Config(ca_bundle=str(faulty_tls.ca_file)))
        assert faulty.requests == []

    def test_into_tls(self, faulty: FaultyServer, faulty_tls: FaultyServer) -> None:
        faulty.on(Redirect(faulty_tls.put("model", MODEL)))
        config = S3Config(ca_bundle=str(faulty_tls.ca_file))
        assert_same(torchwick.load(faulty.url("model"), s3=config), _decode("zip", MODEL))

    @pytest.mark.parametrize("location", ["ftp://127.0.0.1/model", "file:///etc/passwd", ""])
    def test_to_nowhere(self, faulty: FaultyServer, location: str) -> None:
        faulty.on(Redirect(location))
        with pytest.raises(StoreError) as caught:
            torchwick.load(faulty.url("model"), transfer=TransferConfig(max_attempts=2))
        assert not isinstance(caught.value, TransferError)


class TestTLS:
    def test_an_unknown_authority(self, faulty_tls: FaultyServer) -> None:
        with pytest.raises(TransferError) as caught:
            torchwick.load(faulty_tls.put("model", MODEL))
        assert "AWS_CA_BUNDLE" in str(caught.value.hint)
        assert caught.value.attempts == 1

    def test_an_authority_given_in_code(self, faulty_tls: FaultyServer) -> None:
        url = faulty_tls.put("model", MODEL)
        loaded = torchwick.load(url, transfer=PARTS, s3=S3Config(ca_bundle=str(faulty_tls.ca_file)))
        assert_same(loaded, _decode("zip", MODEL))

    def test_an_authority_named_where_the_hint_says(
        self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(faulty_tls.ca_file))
        _assert_loads(faulty_tls.put("model", MODEL))

    def test_a_cut_is_resumed(self, faulty_tls: FaultyServer) -> None:
        faulty_tls.on(Cut(100_000), nth=3)
        config, reports = S3Config(ca_bundle=str(faulty_tls.ca_file)), list[LoadReport]()
        url = faulty_tls.put("model", MODEL)
        loaded = torchwick.load(url, transfer=PARTS, s3=config, on_report=reports.append)
        assert_same(loaded, _decode("zip", MODEL))
        assert reports[0].retries == 1

    def test_plain_http_at_a_tls_port(self, faulty: FaultyServer) -> None:
        url = faulty.put("model", MODEL).replace("http:", "https:")
        with pytest.raises(TransferError):
            torchwick.load(url, transfer=TransferConfig(max_attempts=2))


class TestRefusals:
    @pytest.mark.parametrize("status", [404, 410])
    def test_nothing_there(self, faulty: FaultyServer, status: int) -> None:
        faulty.on(Answer(status, b"nothing here"))
        with pytest.raises(ObjectNotFoundError) as caught:
            torchwick.load(faulty.url("model"))
        assert caught.value.code == str(status)

    @pytest.mark.parametrize("status", [401, 403])
    def test_not_for_everyone(self, faulty: FaultyServer, status: int) -> None:
        faulty.on(Answer(status))
        with pytest.raises(AccessDeniedError):
            torchwick.load(faulty.url("model"))

    @pytest.mark.parametrize("status", [400, 405, 418, 501])
    def test_anything_else(self, faulty: FaultyServer, status: int) -> None:
        faulty.on(Answer(status))
        with pytest.raises(StoreError, match=str(status)):
            torchwick.load(faulty.url("model"))
        assert len(faulty.requests) == 1

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_later(self, faulty: FaultyServer, status: int) -> None:
        faulty.on(Answer(status), nth=1)
        assert _assert_loads(faulty.put("model", MODEL)).retries == 1


@pytest.mark.parametrize("path", ["modèle ü.pt", "a b.pt", "100%25.pt", "a%20b.pt", "ключ.pt"])
def test_a_url_as_people_type_it(faulty: FaultyServer, path: str) -> None:
    faulty.put(unquote(path), MODEL)
    _assert_loads(f"{faulty.endpoint_url}/{path}")


def test_framing_by_the_end_of_the_connection_is_no_trap_for_ranges(faulty: FaultyServer) -> None:
    faulty.on(Framing("until-close"))
    _assert_loads(faulty.put("model", MODEL))


def test_ranges_in_chunks(faulty: FaultyServer) -> None:
    faulty.on(Framing("chunked"))
    _assert_loads(faulty.put("model", MODEL))
