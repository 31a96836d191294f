"""The doctor finds what is wrong and says what to do, goes on with what can be tried, and tells no secret."""

from __future__ import annotations

import json
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

import torchwick
from checkpoints.base import save_bytes
from conftest import random_bytes
from faults import Answer, Cut, S3Error, SetHeaders, Stall
from faulty import FaultyServer
from relay import Relay
from torchwick import Diagnosis, S3Config, TransferConfig, URIError
from torchwick.cli import app
from torchwick.cli.doctor import _print
from torchwick.diagnosis import Check
from torchwick.diagnosis.case import Case
from torchwick.diagnosis.machine import judge_torch, unsafe_loads
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trustme

    from conftest import Put
    from torchwick.demo.server import SeaweedFS

MODEL = save_bytes({"weight": torch.arange(500_000, dtype=torch.float32)})
URI = "s3://models/new.pt"
QUICK = TransferConfig(timeout=0.5)
SECRET = "s3cr3tKeyThatNobodyMayRead"
TOKEN = "t0kenThatNobodyMayRead"
ARN = "arn:aws:iam::123456789012:user/reader"
CALLER = f"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<GetCallerIdentityResult><Arn>{ARN}</Arn><UserId>AIDA</UserId><Account>123456789012</Account>
</GetCallerIdentityResult></GetCallerIdentityResponse>""".encode()
ROLE = "arn:aws:iam::123456789012:role/reader"
ASSUMED = f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>AROA:x</AssumedRoleId><Arn>{ROLE}</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>ASIAASSUMEDROLE1</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>
<SessionToken>{TOKEN}</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleResult></AssumeRoleResponse>""".encode()
LISTED = b"<ListBucketResult><Contents><Key>new.pt</Key></Contents></ListBucketResult>"
XML = {"Content-Type": "text/xml"}


@pytest.fixture
def stored(faulty_s3: FaultyServer) -> FaultyServer:
    """The fault server as S3, with a model."""
    faulty_s3.put("models/new.pt", MODEL)
    return faulty_s3


@pytest.fixture
def real(aws_env: SeaweedFS, shared_bucket: str, put: Put) -> str:
    """A model on the real S3 server."""
    return put(shared_bucket, "doctored.pt", MODEL)


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch, isolated_environment: None) -> Iterator[FaultyServer]:
    """A stand-in for STS, which says whatever a test lets it say."""
    with FaultyServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.endpoint_url)
        yield server


def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


def _failed(diagnosis: Diagnosis) -> list[str]:
    return [check.topic for check in diagnosis.checks if check.status == "failed"]


def _cause(check: Check) -> Any:
    """The topic because of which a check was not tried."""
    assert check.status == "unknown"
    return check.facts["because_of"]


def _run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


class TestHealthy:
    def test_nothing_to_do(self, real: str) -> None:
        diagnosis = torchwick.doctor(real)
        assert diagnosis.ok
        assert diagnosis.advice == []
        assert {check.status for check in diagnosis.checks} <= {"ok", "note", "unknown"}
        assert diagnosis["object"].facts["size"] == len(MODEL)
        assert diagnosis["format"].facts["format"] == "zip"
        assert diagnosis["bucket"].facts["listed"]
        assert diagnosis["storage"].facts["class"] == "STANDARD"
        assert diagnosis["latency"].facts["seconds"] > 0
        assert diagnosis["rate"].facts["estimate"] > 0
        assert diagnosis["clock"].status == "ok"

    def test_without_an_object(self, aws_env: SeaweedFS) -> None:
        diagnosis = torchwick.doctor()
        assert diagnosis.ok
        assert diagnosis.uri is None
        assert diagnosis["http"].status == "ok"
        with pytest.raises(KeyError):
            _ = diagnosis["object"]

    def test_where_each_setting_came_from(self, stored: FaultyServer) -> None:
        diagnosis = torchwick.doctor(URI, s3=S3Config(addressing_style="path"))
        assert diagnosis["region"].facts == {"region": "us-east-1", "source": "AWS_DEFAULT_REGION"}
        assert diagnosis["endpoint"].facts["source"] == "AWS_ENDPOINT_URL"
        assert diagnosis["endpoint"].facts["endpoint"] == stored.endpoint_url
        assert diagnosis["addressing"].facts == {"addressing_style": "path"}
        assert diagnosis["credentials"].facts["source"] == "environment variables"
        assert "AWS_SECRET_ACCESS_KEY" in diagnosis["variables"].facts["variables"]
        given = torchwick.doctor(URI, s3=S3Config(endpoint_url=stored.endpoint_url, region="eu-west-3"))
        assert given["region"].facts["source"] == "S3Config.region"
        assert given["endpoint"].facts["source"] == "S3Config.endpoint_url"

    def test_settings_of_a_profile(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        config = tmp_path / "config"
        config.write_text(
            f"[profile work]\nregion=eu-west-3\nendpoint_url={stored.endpoint_url}\n"
            f"aws_access_key_id=AKIAPROFILEWORK1\naws_secret_access_key={SECRET}\n"
        )
        _no_keys(monkeypatch)
        for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        diagnosis = torchwick.doctor(URI, s3=S3Config(profile="work"))
        assert diagnosis.ok
        assert diagnosis["profile"].facts["source"] == "S3Config.profile"
        assert diagnosis["region"].facts == {"region": "eu-west-3", "source": "the profile"}
        assert diagnosis["endpoint"].facts["source"] == "the profile"
        assert diagnosis["credentials"].facts["access_key"] == "AKIA…ORK1"
        results = [tried["result"] for tried in diagnosis["credentials"].facts["sources"]]
        assert results == ["nothing there"] * (len(results) - 1) + ["found"]

    def test_a_model_large_enough_to_be_measured_is_read_into_little_memory(
        self, stored: FaultyServer
    ) -> None:
        stored.put("models/large.pt", MODEL[:4096] + random_bytes(24 << 20))
        facts = torchwick.doctor("s3://models/large.pt")["rate"].facts
        assert facts["one"] > 0
        assert facts["many"] > 0
        assert facts["connections"] > 1

    def test_a_small_object_is_not_measured(self, stored: FaultyServer) -> None:
        stored.put("models/small.pt", save_bytes({"weight": torch.ones(3)}))
        diagnosis = torchwick.doctor("s3://models/small.pt")
        assert diagnosis.ok
        assert diagnosis["rate"].status == "unknown"


class TestWhoAsks:
    def test_no_credentials(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        _no_keys(monkeypatch)
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["credentials"]
        tried = [source["source"] for source in diagnosis["credentials"].facts["sources"]]
        assert tried[0] == "environment variables"
        assert len(tried) > 5
        assert "AWS_PROFILE" in diagnosis.advice[0]
        assert _cause(diagnosis["object"]) == _cause(diagnosis["rate"]) == "credentials"
        assert diagnosis["http"].status == "ok"

    def test_half_of_the_keys(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["credentials"]
        assert "environment variables cannot be used" in diagnosis["credentials"].found
        assert diagnosis["credentials"].facts["sources"][1]["result"] == "nothing there"
        assert "together" in diagnosis.advice[0]

    def test_a_process_that_fails(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        config = tmp_path / "config"
        config.write_text("[default]\ncredential_process = /no/such/program\n")
        _no_keys(monkeypatch)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["credentials"]
        assert "credential process" in diagnosis["credentials"].found
        assert diagnosis.advice

    @pytest.mark.parametrize("printed", ["{", '{"Version": 1}', f'{{"SecretAccessKey": "{SECRET}"'])
    def test_a_process_that_prints_something_else(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str
    ) -> None:
        (tmp_path / "printed").write_text(printed)
        config = tmp_path / "config"
        config.write_text(f"[default]\ncredential_process = cat {tmp_path / 'printed'}\n")
        _no_keys(monkeypatch)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["credentials"]
        assert SECRET not in json.dumps(diagnosis.to_dict())

    def test_credentials_that_are_over(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-01T00:00:00Z")
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["credentials"]
        assert "expired" in diagnosis["credentials"].found
        assert "Renew" in diagnosis.advice[0]

    def test_a_short_secret_does_not_eat_words(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        assert "access key" in torchwick.doctor(URI)["credentials"].found

    def test_a_profile_that_is_not_there(self, stored: FaultyServer) -> None:
        diagnosis = torchwick.doctor(URI, s3=S3Config(profile="nobodys"))
        assert _failed(diagnosis) == ["profile"]
        assert "nobodys" in diagnosis["profile"].found
        assert _cause(diagnosis["http"]) == _cause(diagnosis["object"]) == "profile"

    def test_a_wrong_secret(self, real: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        diagnosis = torchwick.doctor(real)
        assert _failed(diagnosis) == ["bucket"]
        assert diagnosis["bucket"].facts["code"] == "SignatureDoesNotMatch"
        assert "secret key" in diagnosis.advice[0]
        assert SECRET not in json.dumps(diagnosis.to_dict())

    def test_nobody(self, stored: FaultyServer) -> None:
        diagnosis = torchwick.doctor(URI, s3=S3Config(anonymous=True))
        assert diagnosis.ok
        assert "nobody" in diagnosis["credentials"].found
        assert not any("authorization" in request.headers for request in stored.requests)

    def test_nobody_where_a_name_is_needed(self, real: str) -> None:
        diagnosis = torchwick.doctor(real, s3=S3Config(anonymous=True))
        assert _failed(diagnosis) == ["object"]
        assert any("anonymous" in advice for advice in diagnosis.advice)

    def test_whom_sts_takes_the_keys_for(self, stored: FaultyServer, sts: FaultyServer) -> None:
        sts.on(Answer(200, CALLER, XML), method="POST")
        diagnosis = torchwick.doctor(URI)
        assert diagnosis["identity"].facts == {"arn": ARN, "account": "123456789012"}

    def test_keys_that_sts_does_not_know(self, stored: FaultyServer, sts: FaultyServer) -> None:
        said = b"<ErrorResponse><Error><Code>InvalidClientTokenId</Code><Message>No</Message></Error>"
        sts.on(Answer(403, said + b"</ErrorResponse>", XML), method="POST")
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["identity"]
        assert diagnosis.advice
        assert diagnosis["object"].status == "ok"  # the store has the last word

    def test_a_store_that_has_no_sts(self, stored: FaultyServer) -> None:
        stored.on(S3Error(403, "SignatureDoesNotMatch"), method="POST")
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["identity"].status == "unknown"
        assert diagnosis["identity"].found.startswith("not asked: ")
        assert "POST" not in [request.method for request in stored.requests]

    def test_an_address_of_sts_that_is_none(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "nonsense")
        diagnosis = torchwick.doctor(URI)
        assert diagnosis["identity"].status == "warning"
        assert "AWS_ENDPOINT_URL_STS" in diagnosis.advice[0]
        assert diagnosis["object"].status == "ok"
        diagnosis = torchwick.doctor(URI, s3=S3Config(role_arn=ROLE))
        assert _failed(diagnosis) == ["credentials"]
        assert "AWS_ENDPOINT_URL_STS" in diagnosis.advice[0]

    def test_sts_out_of_reach(
        self, stored: FaultyServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{closed_port}")
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["identity"].status == "unknown"

    def test_keys_of_another_store_are_not_sent_to_amazon(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", stored.endpoint_url)
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["identity"].status == "unknown"
        assert "not Amazon's" in diagnosis["identity"].found

    def test_a_role(self, stored: FaultyServer, sts: FaultyServer) -> None:
        sts.on(Answer(200, ASSUMED, XML), method="POST", nth=1)
        sts.on(Answer(200, CALLER, XML), method="POST", nth=2)
        diagnosis = torchwick.doctor(URI, s3=S3Config(role_arn=ROLE))
        assert diagnosis.ok
        facts = diagnosis["credentials"].facts
        assert (facts["role"], facts["access_key"], facts["temporary"]) == (ROLE, "ASIA…OLE1", True)
        assert facts["expires"].startswith("2999-01-01")
        told = json.dumps(diagnosis.to_dict())
        assert SECRET not in told
        assert TOKEN not in told

    def test_a_role_that_may_not_be_assumed(self, stored: FaultyServer, sts: FaultyServer) -> None:
        said = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>No</Message></Error></ErrorResponse>"
        sts.on(Answer(403, said, XML), method="POST")
        diagnosis = torchwick.doctor(URI, s3=S3Config(role_arn=ROLE))
        assert _failed(diagnosis) == ["credentials"]
        assert ROLE in diagnosis["credentials"].found
        assert "trust policy" in diagnosis.advice[0]

    @pytest.mark.parametrize(
        "answer",
        [Answer(503), Answer(405, b"no"), Answer(200, b"<html><br></html>")],
        ids=["busy", "no", "page"],
    )
    def test_a_role_where_there_is_no_sts(self, stored: FaultyServer, answer: Answer) -> None:
        stored.on(answer, method="POST")
        diagnosis = torchwick.doctor(URI, s3=S3Config(role_arn=ROLE))
        assert _failed(diagnosis) == ["credentials"]
        advice = "STS is not available; does the store have STS? Set AWS_ENDPOINT_URL_STS."
        assert diagnosis.advice == [advice]

    def test_a_role_whose_sts_is_out_of_reach(
        self, stored: FaultyServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{closed_port}")
        diagnosis = torchwick.doctor(URI, s3=S3Config(role_arn=ROLE))
        assert _failed(diagnosis) == ["credentials"]
        assert "Open the way" in diagnosis.advice[0]
        assert "login" not in diagnosis.advice[0]

    def test_a_setting_that_should_be_a_number(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "soon")
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["credentials"]
        assert diagnosis.advice[0].startswith("Correct the AWS configuration")

    def test_a_setting_that_should_be_a_section(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "config").write_text("[default]\ns3 = path\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["endpoint"]
        assert diagnosis.advice[0].startswith("Correct the AWS configuration")


class TestSettings:
    @pytest.mark.parametrize("named", [None, "us-east-1"], ids=["none else", "another"])
    def test_the_region_that_botocore_does_not_read(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, named: str | None
    ) -> None:
        monkeypatch.setenv("AWS_REGION", "eu-west-3")
        if named is None:
            monkeypatch.delenv("AWS_DEFAULT_REGION")
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["region"].status == "warning"
        assert diagnosis["region"].facts["region"] == named
        assert "AWS_DEFAULT_REGION" in diagnosis.advice[0]

    def test_the_region_given_in_code_is_the_last_word(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_REGION", "eu-west-3")
        assert torchwick.doctor(s3=S3Config(region="us-west-2"))["region"].status == "ok"

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (None, "there is no file {}"),
            ("no certificate\n", "{} holds no certificate"),
            (
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
                "{} holds a certificate that is broken",
            ),
        ],
        ids=["missing", "not PEM", "broken"],
    )
    def test_a_bundle_that_cannot_be_read(
        self,
        faulty_tls: FaultyServer,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        content: str | None,
        told: str,
    ) -> None:
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        bundle = tmp_path / "authority.pem"
        if content is not None:
            bundle.write_text(content)
        diagnosis = torchwick.doctor(URI, s3=S3Config(ca_bundle=str(bundle)), transfer=QUICK)
        assert _failed(diagnosis) == ["authorities"]
        assert diagnosis["authorities"].found == f"{told.format(bundle)}, from S3Config.ca_bundle"
        assert diagnosis.advice == [f"Correct S3Config.ca_bundle: {told.format(bundle)}."]
        assert _cause(diagnosis["tls"]) == _cause(diagnosis["object"]) == "authorities"

    def test_over_plain_http_it_is_a_warning(self, stored: FaultyServer) -> None:
        diagnosis = torchwick.doctor(URI, s3=S3Config(ca_bundle="/no/such/file.pem"))
        assert diagnosis["authorities"].status == "warning"
        assert diagnosis["object"].status == "ok"

    @pytest.mark.parametrize(
        ("url", "advice"),
        [
            ("localhost:9000", "Write http://localhost:9000: the http:// is missing."),
            ("store.example", "Write https://store.example: the https:// is missing."),
            ("http://[::1", "Write the endpoint as https://host or http://host:port."),
            ("http://localhost:port", "Write the endpoint as https://host or http://host:port."),
        ],
    )
    def test_an_endpoint_that_is_none(self, stored: FaultyServer, url: str, advice: str) -> None:
        diagnosis = torchwick.doctor(URI, s3=S3Config(endpoint_url=url))
        assert _failed(diagnosis) == ["endpoint"]
        assert diagnosis.advice == [advice]
        assert _cause(diagnosis["object"]) == "endpoint"
        assert SECRET not in json.dumps(diagnosis.to_dict())

    def test_a_mistake_of_ours_is_no_finding(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def mistaken(_: object) -> None:
            raise KeyError("a mistake")

        monkeypatch.setattr("torchwick.diagnosis.network.parsedate_to_datetime", mistaken)
        with pytest.raises(KeyError, match="a mistake"):
            torchwick.doctor(URI)

    def test_a_bucket_that_is_none(self, stored: FaultyServer) -> None:
        diagnosis = torchwick.doctor("s3://no such bucket/new.pt")
        assert _failed(diagnosis) == ["endpoint"]
        assert "name" in diagnosis.advice[0]

    @pytest.mark.parametrize("uri", ["gs://models/new.pt", "s3://models", ""])
    def test_an_address_that_is_none(self, uri: str) -> None:
        with pytest.raises(URIError):
            torchwick.doctor(uri)


class TestNetwork:
    def test_nothing_listens(self, faulty_s3: FaultyServer, closed_port: int) -> None:
        s3 = S3Config(endpoint_url=f"http://127.0.0.1:{closed_port}")
        diagnosis = torchwick.doctor(URI, s3=s3, transfer=QUICK)
        assert _failed(diagnosis) == ["tcp"]
        assert str(closed_port) in diagnosis.advice[0]
        assert _cause(diagnosis["bucket"]) == "tcp"

    def test_a_name_that_is_not_known(self, faulty_s3: FaultyServer) -> None:
        s3 = S3Config(endpoint_url="http://store.invalid", addressing_style="path")
        diagnosis = torchwick.doctor(URI, s3=s3, transfer=QUICK)
        assert _failed(diagnosis) == ["dns"]
        assert "store.invalid" in diagnosis["dns"].found

    def test_a_name_that_can_be_none(self) -> None:
        diagnosis = torchwick.doctor("http://a..b/new.pt", transfer=QUICK)
        assert _failed(diagnosis) == ["dns"]
        assert diagnosis["dns"].found == "a..b is not known: it is no name of a host"

    def test_a_bucket_in_the_name_of_a_host_that_is_not_known(self, faulty_s3: FaultyServer) -> None:
        s3 = S3Config(endpoint_url="http://store.invalid", addressing_style="virtual")
        diagnosis = torchwick.doctor(URI, s3=s3, transfer=QUICK)
        assert "models.store.invalid" in diagnosis["dns"].found
        assert 'addressing_style="path"' in diagnosis.advice[0]

    def test_a_connection_that_nobody_takes(self, faulty_s3: FaultyServer) -> None:
        with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            for filler in (first, second):  # whose backlog is full: it drops what comes next
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            s3 = S3Config(endpoint_url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
            started = time.monotonic()
            diagnosis = torchwick.doctor(URI, s3=s3, transfer=QUICK)
        assert _failed(diagnosis) in (["tcp"], ["http"])
        assert time.monotonic() - started < 8

    def test_a_server_that_is_silent(self, stored: FaultyServer) -> None:
        stored.on(Stall(after=-1), method=None)
        started = time.monotonic()
        diagnosis = torchwick.doctor(URI, transfer=QUICK)
        assert _failed(diagnosis) == ["http"]
        assert time.monotonic() - started < 8

    def test_a_server_that_hangs_up(self, stored: FaultyServer) -> None:
        stored.on(Cut(after=0), path="models/new.pt")
        diagnosis = torchwick.doctor(URI, transfer=QUICK)
        assert _failed(diagnosis) == ["object"]
        assert "network" in diagnosis.advice[0]

    def test_tls(self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        faulty_tls.put("models/new.pt", MODEL)
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        facts = diagnosis["tls"].facts
        assert facts["version"].startswith("TLSv1.")
        assert facts["issuer"]
        assert facts["expires"] > "2026"

    def test_a_certificate_that_is_not_trusted(
        self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_CA_BUNDLE")
        diagnosis = torchwick.doctor(URI, transfer=QUICK)
        assert _failed(diagnosis) == ["tls"]
        assert "AWS_CA_BUNDLE" in diagnosis.advice[0]

    def test_a_server_without_tls(self, stored: FaultyServer) -> None:
        s3 = S3Config(endpoint_url=stored.endpoint_url.replace("http:", "https:"))
        diagnosis = torchwick.doctor(URI, s3=s3, transfer=QUICK)
        assert _failed(diagnosis) == ["tls"]
        assert diagnosis["tls"].found == "the server does not speak TLS there"
        assert diagnosis.advice == ["Write http:// in the endpoint, or use its TLS port."]

    def test_a_handshake_that_is_not_answered(self, faulty_s3: FaultyServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            s3 = S3Config(endpoint_url=f"https://127.0.0.1:{silent.getsockname()[1]}")
            diagnosis = torchwick.doctor(URI, s3=s3, transfer=QUICK)
        assert _failed(diagnosis) == ["tls"]
        assert diagnosis["tls"].found == "no answer to the TLS handshake within 0.5 s"
        assert "TLS" in diagnosis.advice[0]

    @pytest.mark.parametrize(("minutes", "direction"), [(20, "behind"), (-20, "ahead of")])
    def test_a_clock_that_is_off(self, stored: FaultyServer, minutes: int, direction: str) -> None:
        date = formatdate(time.time() + 60 * minutes, usegmt=True)
        stored.on(SetHeaders({"Date": date}), method=None)
        diagnosis = torchwick.doctor(URI)
        assert diagnosis["clock"].status == "warning"
        assert diagnosis["clock"].found == f"20 minutes {direction} the server's"
        assert "NTP" in diagnosis.advice[0]

    def test_a_clock_that_is_a_little_off(self, stored: FaultyServer) -> None:
        stored.on(SetHeaders({"Date": formatdate(time.time() - 60, usegmt=True)}), method=None)
        assert torchwick.doctor(URI)["clock"].status == "ok"

    @pytest.mark.parametrize("date", ["soon", "Mon, 99 Foo 2026 99:99:99 GMT"])
    def test_a_clock_that_cannot_be_read(self, stored: FaultyServer, date: str) -> None:
        stored.on(SetHeaders({"Date": date}), method=None)
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["clock"].status == "unknown"

    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
    def test_a_proxy_that_is_none(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, "nonsense.invalid")
        diagnosis = torchwick.doctor(URI, transfer=QUICK)
        assert _failed(diagnosis) == ["dns"]
        advice = (
            f"The proxy named in {variable}, nonsense.invalid, is unknown: correct the variable, or unset it."
        )
        assert diagnosis.advice == [advice]

    def test_a_proxy_that_does_not_run(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, closed_port: int
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
        diagnosis = torchwick.doctor(URI, transfer=QUICK)
        assert _failed(diagnosis) == ["tcp"]
        advice = f"No proxy listens at 127.0.0.1:{closed_port}: correct HTTP_PROXY, or unset it."
        assert diagnosis.advice == [advice]

    @pytest.mark.parametrize("password", ["s1x@s2x/s3x", "s1x/s2x@s3x", "s1x@s2x@s3x", "s1x?s2x@s3x"])
    def test_a_proxys_password_that_is_not_quoted(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, password: str
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", stored.endpoint_url)  # for what botocore says of it
        monkeypatch.setenv("HTTP_PROXY", f"http://me:{password}@127.0.0.1:9")
        diagnosis = torchwick.doctor(URI, transfer=QUICK)
        with_role = torchwick.doctor(URI, s3=S3Config(role_arn=ROLE), transfer=QUICK)
        told = json.dumps([diagnosis.to_dict(), with_role.to_dict()])
        assert not [part for part in ("s1x", "s2x", "s3x") if part in told]
        assert diagnosis.advice

    @pytest.mark.parametrize("scheme", [True, False], ids=["http", "without a scheme"])
    def test_a_proxy(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, scheme: bool) -> None:
        with Relay(password=SECRET) as relay:
            monkeypatch.setenv("HTTP_PROXY", relay.url if scheme else relay.url.partition("//")[2])
            diagnosis = torchwick.doctor(URI, transfer=QUICK)
        assert diagnosis.ok
        assert diagnosis["proxy"].facts["proxy"] == f"127.0.0.1:{relay.port}"
        assert SECRET not in json.dumps(diagnosis.to_dict())

    def test_amazon(self, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        ca_file = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        hosts = ("*.s3.us-west-2.amazonaws.com", "sts.us-west-2.amazonaws.com")
        with (
            FaultyServer(authority=authority, ca_file=ca_file, hosts=hosts) as server,
            Relay(leads_to=("127.0.0.1", int(server.endpoint_url.rpartition(":")[2]))) as relay,
        ):
            server.put("new.pt", MODEL)
            server.on(Answer(200, CALLER, XML), method="POST")
            variables = server.environment() | {"HTTPS_PROXY": relay.url, "AWS_DEFAULT_REGION": "us-west-2"}
            del variables["AWS_ENDPOINT_URL"], variables["AWS_REGION"]
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == [], diagnosis
        assert diagnosis["endpoint"].facts["amazon"]
        assert diagnosis["endpoint"].facts["source"] == "Amazon's own"
        assert diagnosis["addressing"].facts["addressing_style"] == "virtual"
        assert diagnosis["identity"].facts["arn"] == ARN
        assert diagnosis["tcp"].facts["port"] == relay.port
        assert "models.s3.us-west-2.amazonaws.com" in relay.hosts()

    def test_a_proxy_that_wants_a_password(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Relay(password=SECRET) as relay:
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{relay.port}")
            diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["http"]
        assert "password" in diagnosis.advice[0]

    def test_a_proxy_that_refuses_a_tunnel(
        self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        with Relay(refuses=403) as relay:
            monkeypatch.setenv("HTTPS_PROXY", relay.url)
            diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["tls"]
        assert "NO_PROXY" in diagnosis.advice[0]

    def test_a_proxy_that_is_passed_by(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["proxy"].facts == {"proxy": None, "bypassed": True}


class TestObject:
    def test_a_key_that_is_missing(self, real: str) -> None:
        diagnosis = torchwick.doctor(real.replace("doctored", "docterd"))
        assert _failed(diagnosis) == ["object"]
        assert diagnosis.advice == [f"Did you mean {real}?"]
        assert _cause(diagnosis["format"]) == "object"

    def test_a_bucket_that_is_missing(self, aws_env: SeaweedFS) -> None:
        diagnosis = torchwick.doctor("s3://no-such-bucket-of-ours/new.pt")
        assert _failed(diagnosis) == ["bucket"]
        assert "bucket's name" in diagnosis.advice[0]

    def test_a_bucket_that_may_not_be_listed(self, stored: FaultyServer) -> None:
        stored.on(S3Error(403, "AccessDenied"), where=lambda request: "list-type" in request.query)
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["bucket"].status == "note"
        assert diagnosis["bucket"].facts == {"listed": False, "code": "AccessDenied"}

    @pytest.mark.parametrize("status", [403, 404])
    @pytest.mark.parametrize("page", [b"<html><body>no</body></html>", b"<p>no<br>", b""])
    def test_a_web_server_in_the_place_of_s3(self, stored: FaultyServer, status: int, page: bytes) -> None:
        stored.on(Answer(status, page), where=lambda request: "list-type" in request.query)
        diagnosis = torchwick.doctor(URI)
        assert diagnosis["bucket"].status == "warning"
        assert "something that is not S3 answered" in diagnosis["bucket"].found
        assert "AWS_ENDPOINT_URL" in diagnosis.advice[0]
        assert diagnosis["object"].status == "ok"  # a gateway may let objects through, and nothing else

    def test_a_bucket_in_another_region(self, stored: FaultyServer) -> None:
        answer = Answer(200, LISTED, {**XML, "x-amz-bucket-region": "eu-west-3"})
        stored.on(answer, where=lambda request: "list-type" in request.query)
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["bucket"].facts["region"] == "eu-west-3"
        assert "eu-west-3" in diagnosis.advice[0]

    def test_an_object_that_may_not_be_read(self, stored: FaultyServer) -> None:
        stored.on(S3Error(403, "AccessDenied"), path="models/new.pt")
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["object"]
        assert "s3:GetObject" in diagnosis.advice[0]

    def test_what_is_no_model(self, stored: FaultyServer) -> None:
        stored.put("models/new.pt", b"<!DOCTYPE html><html></html>")
        diagnosis = torchwick.doctor(URI)
        assert _failed(diagnosis) == ["format"]
        assert "HTML" in diagnosis["format"].found

    def test_an_object_of_no_bytes(self, stored: FaultyServer) -> None:
        stored.put("models/new.pt", b"")
        assert _failed(torchwick.doctor(URI)) == ["format"]

    def test_how_it_is_stored(self, stored: FaultyServer) -> None:
        headers = {
            "x-amz-storage-class": "STANDARD_IA",
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-checksum-crc64nvme": "AAAAAAAAAAA=",
            "x-amz-checksum-type": "FULL_OBJECT",
        }
        stored.put("models/new.pt", MODEL, headers=headers)
        facts = torchwick.doctor(URI)["storage"].facts
        assert facts == {"class": "STANDARD_IA", "encryption": "aws:kms", "checksum": "CRC64NVME"}

    def test_metadata_that_may_not_be_read(self, stored: FaultyServer) -> None:
        stored.on(S3Error(403, "AccessDenied"), method="HEAD", path="models/new.pt")
        diagnosis = torchwick.doctor(URI)
        assert diagnosis.ok
        assert diagnosis["storage"].status == "unknown"

    def test_a_web_address(self, faulty: FaultyServer) -> None:
        url = faulty.put("new.pt", MODEL) + f"?X-Amz-Signature={SECRET}"
        diagnosis = torchwick.doctor(url)
        assert diagnosis.ok
        assert diagnosis["rate"].status == "ok"
        assert "credentials" not in [check.topic for check in diagnosis.checks]
        assert SECRET not in json.dumps(diagnosis.to_dict())
        assert all(SECRET not in request.query for request in faulty.requests if request.method == "HEAD")

    def test_a_web_address_that_is_missing(self, faulty: FaultyServer) -> None:
        assert _failed(torchwick.doctor(faulty.url("none.pt"))) == ["object"]

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "new.pt").write_bytes(MODEL)
        diagnosis = torchwick.doctor(tmp_path / "new.pt")
        assert diagnosis.ok
        topics = [check.topic for check in diagnosis.checks]
        assert topics == ["versions", "torch", "capacity", "object", "format", "room", "rate"]

    def test_a_folder(self, tmp_path: Path) -> None:
        diagnosis = torchwick.doctor(tmp_path)
        assert _failed(diagnosis) == ["object"]
        assert diagnosis.advice == ["It is a directory: name a file in it."]

    def test_a_key_with_an_at_sign_is_told_whole(self, real: str) -> None:
        torchwick_uri = real.replace("doctored", "docterd@2")
        assert torchwick_uri in json.dumps(torchwick.doctor(torchwick_uri).to_dict())

    def test_no_connection_stays_open(self, faulty: FaultyServer, stored: FaultyServer) -> None:
        for uri in (URI, faulty.put("new.pt", MODEL)):
            case = Case(parse(uri), S3Config(), TransferConfig())
            for _ in range(2):
                connection = case.store.connect()
                body = connection.get(parse(uri), 0, 1)
                body.readinto(memoryview(bytearray(1)))
                body.close()
                connection.release()
                case.close()
        assert stored.connections == 4

    def test_a_file_that_is_missing(self, tmp_path: Path) -> None:
        diagnosis = torchwick.doctor(tmp_path / "none.pt")
        assert _failed(diagnosis) == ["object"]
        assert diagnosis.advice == ["Check the path."]


class TestMachine:
    @pytest.mark.parametrize(
        ("version", "bugs"),
        [
            ("2.5.1+cu121", ["CVE-2025-32434", "CVE-2026-24747"]),
            ("2.6.0", ["CVE-2026-24747"]),
            ("2.9.1", ["CVE-2026-24747"]),
            ("2.10.0", []),
            ("3.0.0a0+gitabc", []),
        ],
    )
    def test_versions_of_torch_with_known_bugs(self, version: str, bugs: list[str]) -> None:
        assert [bug.name for bug in unsafe_loads(version)] == bugs
        finding = judge_torch(version)
        assert finding.status == ("warning" if bugs else "ok")
        assert all(bug in finding.found for bug in bugs)

    def test_the_most_urgent_advice_comes_first(self) -> None:
        checks = (
            Check("machine", "torch", "warning", "old", "Upgrade."),
            Check("network", "tcp", "failed", "closed", "Open it."),
            Check("object", "object", "failed", "closed", "Open it."),
        )
        diagnosis = Diagnosis(None, checks)
        assert diagnosis.advice == ["Open it.", "Upgrade."]
        assert not diagnosis.ok


class TestCommand:
    def test_tables(self, real: str) -> None:
        result = _run(real)
        assert result.exit_code == 0
        for told in ("Machine", "Settings", "Who asks", "Network", "Object", "Speed", "✓", "nothing to do"):
            assert told in result.stdout
        assert result.stderr == ""

    def test_what_to_do(self, real: str) -> None:
        result = _run(real.replace("doctored", "docterd"))
        assert result.exit_code == 1
        assert "What to do" in result.stdout
        assert "✗" in result.stdout
        assert "latency, rate" in result.stdout

    def test_nothing_that_could_be_advised(self, capsys: pytest.CaptureFixture[str]) -> None:
        failed = Check("object", "object", "failed", "it cannot be read")
        _print(Console(), Diagnosis(None, (failed,)))
        told = capsys.readouterr().out
        assert told.endswith("Something failed, and there is no advice for it: see above.\n")

    def test_json(self, real: str) -> None:
        result = _run(real, "--json")
        assert result.exit_code == 0
        told = json.loads(result.stdout)
        assert (told["uri"], told["ok"], told["advice"]) == (real, True, [])
        assert {"section", "topic", "status", "found", "advice", "facts"} == told["checks"][0].keys()

    def test_json_of_what_failed(self, tmp_path: Path) -> None:
        result = _run(str(tmp_path / "none.pt"), "--json")
        assert result.exit_code == 1
        assert not json.loads(result.stdout)["ok"]

    def test_an_address_that_is_none(self) -> None:
        result = _run("gs://models/new.pt")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("URIError")

    def test_without_an_object(self, aws_env: SeaweedFS) -> None:
        assert _run().exit_code == 0

    @pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
    def test_no_secret_is_told(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, as_json: list[str]
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
        # A server that repeats what it was sent.
        stored.on(S3Error(403, "Odd", f"You sent {TOKEN} and {SECRET}"), path="models/new.pt")
        monkeypatch.setenv("AWS_ENDPOINT_URL", stored.endpoint_url.replace("//", f"//me:{SECRET}@"))
        for address in (URI, "s3://models/none.pt"):
            told = _run(address, *as_json).output
            assert SECRET not in told
            assert TOKEN not in told


class TestMessages:
    """A load that fails points here."""

    def test_of_a_load(self, stored: FaultyServer) -> None:
        stored.on(S3Error(403, "AccessDenied"))
        result = CliRunner().invoke(app, ["load", URI])
        assert result.stderr.endswith(f"\nTo find out more: torchwick doctor {URI}\n")

    def test_of_a_load_with_options(self, stored: FaultyServer, tmp_path: Path) -> None:
        stored.on(S3Error(403, "AccessDenied"))
        (tmp_path / "key").write_bytes(bytes(32))
        endpoint = stored.endpoint_url.replace("//", f"//me:{SECRET}@")
        options = (
            "--region",
            "eu-west-3",
            "--requester-pays",
            "--sse-customer-key-file",
            str(tmp_path / "key"),
        )
        result = CliRunner().invoke(app, ["load", URI, *options])
        told = f"torchwick doctor {URI} --region eu-west-3 --requester-pays --sse-customer-key-file …\n"
        assert result.stderr.endswith(told)
        result = CliRunner().invoke(app, ["load", URI, "--endpoint-url", endpoint])
        assert SECRET not in result.stderr.partition("To find out more")[2]

    def test_not_where_the_reason_is_clear(self, stored: FaultyServer) -> None:
        assert "doctor" not in CliRunner().invoke(app, ["load", "s3://models/none.pt"]).stderr

    def test_not_in_json(self, stored: FaultyServer) -> None:
        stored.on(S3Error(403, "AccessDenied"))
        result = CliRunner().invoke(app, ["load", URI, "--json"])
        assert json.loads(result.stdout)["error"]["type"] == "AccessDeniedError"
        assert result.stderr == ""

    def test_not_with_an_address_that_is_secret(self, faulty: FaultyServer) -> None:
        faulty.on(S3Error(403, "AccessDenied"))
        result = CliRunner().invoke(app, ["load", faulty.url(f"new.pt?X-Amz-Signature={SECRET}")])
        assert result.stderr.endswith("torchwick doctor URI\n")
