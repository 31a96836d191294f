"""S3 as it is met: who asks, what is refused and why, which keys there are, and what goes over the wire."""

from __future__ import annotations

import base64
import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

import torchwick
from checkpoints.base import save_bytes
from conftest import run_python
from faults import Answer, Cut, S3Error, SlowDown
from oracle import assert_same
from relay import Relay
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
    URIError,
    uri,
)
from torchwick.errors import BusyError
from torchwick.store import Listing, ObjectInfo, open_store, s3_listing
from torchwick.store.base import check_pinned
from torchwick.store.callers import Callers
from torchwick.uri import parse

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Put
    from faults import Fault
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

STATE = {"weight": torch.arange(500_000, dtype=torch.float32)}
MODEL = save_bytes(STATE)
OTHER = save_bytes({"weight": -STATE["weight"]})
ROLE_GIVEN = (
    b"<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIAREADER</AccessKeyId>"
    b"<SecretAccessKey>hush</SecretAccessKey><SessionToken>t0ken</SessionToken>"
    b"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
)
PARTS = TransferConfig(part_size=500_000, connections=2)
URI = "s3://models/new.pt"


@pytest.fixture
def stored(faulty_s3: FaultyServer) -> FaultyServer:
    """The fault server as S3, with a model of several parts."""
    faulty_s3.put("models/new.pt", MODEL)
    return faulty_s3


@pytest.fixture
def real(aws_env: SeaweedFS, shared_bucket: str, put: Put) -> str:
    """A small model on the real S3 server."""
    return put(shared_bucket, "new.pt", MODEL)


def _keys_used(server: FaultyServer) -> list[str]:
    """The access key that signed each request."""
    return [
        request.headers["authorization"].partition("Credential=")[2].partition("/")[0]
        for request in server.requests
    ]


class TestCustomerKeys:
    """SSE-C, against the real server, which encrypts and decrypts in earnest."""

    KEY = bytes(range(32))

    @pytest.fixture
    def encrypted(self, aws_env: SeaweedFS, shared_bucket: str, s3_client: Any) -> str:
        s3_client.put_object(
            Bucket=shared_bucket,
            Key="encrypted.pt",
            Body=MODEL,
            SSECustomerAlgorithm="AES256",
            SSECustomerKey=self.KEY,
        )
        return f"s3://{shared_bucket}/encrypted.pt"

    @pytest.mark.parametrize("key", [KEY, base64.b64encode(KEY).decode()], ids=["bytes", "base64"])
    def test_the_right_key(self, encrypted: str, key: bytes | str) -> None:
        assert_same(torchwick.load(encrypted, s3=S3Config(sse_customer_key=key), transfer=PARTS), STATE)

    def test_no_key(self, encrypted: str) -> None:
        with pytest.raises(StoreError, match="sse_customer_key"):
            torchwick.load(encrypted)

    def test_another_key(self, encrypted: str) -> None:
        with pytest.raises(StoreError, match="sse_customer_key"):
            torchwick.load(encrypted, s3=S3Config(sse_customer_key=bytes(32)))

    def test_a_key_where_none_belongs(self, stored: FaultyServer) -> None:
        said = "The encryption parameters are not applicable to this object."
        stored.on(S3Error(400, "InvalidRequest", said))
        with pytest.raises(StoreError, match=r"is not encrypted.*Leave out"):
            torchwick.load(URI, s3=S3Config(sse_customer_key=self.KEY))

    def test_it_travels_in_headers_alone(self, stored: FaultyServer) -> None:
        torchwick.load(URI, s3=S3Config(sse_customer_key=self.KEY), transfer=PARTS)
        told = base64.b64encode(self.KEY).decode()
        for request in stored.requests:
            assert request.headers["x-amz-server-side-encryption-customer-key"] == told
            assert not request.query.replace("x-id=GetObject", "")


class TestLesserStores:
    """Stores that lack something of Amazon's S3 are read all the same, without a setting for it."""

    def test_no_conditional_reads(self, stored: FaultyServer) -> None:
        conditional = S3Error(501, "NotImplemented", "A header you provided implies functionality")
        stored.on(conditional, where=lambda request: "if-match" in request.headers)
        assert_same(torchwick.load(URI, transfer=PARTS), STATE)

    def test_a_change_is_seen_without_conditional_reads(self, stored: FaultyServer) -> None:
        stored.on(S3Error(501, "NotImplemented"), where=lambda request: "if-match" in request.headers)
        stored.on(lambda: stored.put("models/new.pt", OTHER), nth=6)
        with pytest.raises(ObjectChangedError):
            torchwick.load(URI, transfer=PARTS)

    def test_what_is_not_there_is_not_asked_for_again(self, stored: FaultyServer) -> None:
        stored.on(S3Error(501, "NotImplemented"))
        with pytest.raises(StoreError, match="NotImplemented"):
            torchwick.load(URI, transfer=PARTS)
        assert len(stored.requests) <= 2

    @pytest.mark.parametrize("etag", [None, 'W/"weak"', "bare-of-quotes", '""'])
    def test_odd_tags(self, etag: str | None, stored: FaultyServer) -> None:
        stored.put("models/new.pt", MODEL, etag=etag)
        assert_same(torchwick.load(URI, transfer=PARTS), STATE)

    @pytest.mark.parametrize("etag", [None, 'W/"weak"'])
    def test_a_change_is_seen_without_tags(self, etag: str | None, stored: FaultyServer) -> None:
        stored.put("models/new.pt", MODEL, etag=etag)
        stored.on(lambda: stored.put("models/new.pt", OTHER, etag=etag), nth=4)
        with pytest.raises(ObjectChangedError):
            torchwick.load(URI, transfer=PARTS)

    def test_no_head_requests(self, stored: FaultyServer) -> None:
        stored.on(S3Error(501, "NotImplemented"), method="HEAD")
        assert_same(torchwick.load(URI, transfer=PARTS), STATE)

    def test_no_checksum_is_asked_for_where_none_is_wanted(self, stored: FaultyServer) -> None:
        torchwick.load(URI, transfer=PARTS, verify=False)
        assert not any("x-amz-checksum-mode" in request.headers for request in stored.requests)

    def test_virtual_addressing_where_it_is_wanted(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = int(stored.endpoint_url.rpartition(":")[2])
        stored.put("new.pt", MODEL)
        config = S3Config(endpoint_url="http://store.example.com", addressing_style="virtual")
        with Relay(leads_to=("127.0.0.1", port)) as relay:
            monkeypatch.setenv("HTTP_PROXY", relay.url)
            assert_same(torchwick.load(URI, s3=config, transfer=PARTS), STATE)
            assert relay.hosts() == {"models.store.example.com"}


class TestWhoAsks:
    def test_the_right_keys(self, real: str) -> None:
        assert_same(torchwick.load(real), STATE)

    def test_a_wrong_secret(self, real: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wr0ng")
        with pytest.raises(CredentialsError) as caught:
            torchwick.load(real)
        assert caught.value.code == "SignatureDoesNotMatch"
        assert caught.value.uri == real
        assert caught.value.hint
        assert "wr0ng" not in str(caught.value)

    def test_an_unknown_key(self, real: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
        with pytest.raises(CredentialsError, match="does not know this access key") as caught:
            torchwick.load(real)
        assert caught.value.code == "InvalidAccessKeyId"
        assert caught.value.request_id

    def test_nobody_where_a_name_is_needed(self, real: str) -> None:
        with pytest.raises(AccessDeniedError) as caught:
            torchwick.load(real, s3=S3Config(anonymous=True))
        assert caught.value.uri == real

    def test_nobody_where_all_may_read(self, stored: FaultyServer) -> None:
        assert_same(torchwick.load(URI, s3=S3Config(anonymous=True)), STATE)
        assert not any("authorization" in request.headers for request in stored.requests)

    def test_no_credentials_at_all(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(CredentialsError, match="no AWS credentials were found") as caught:
            torchwick.load(URI)
        assert "AWS_PROFILE" in str(caught.value.hint)
        assert "anonymous=True" in str(caught.value.hint)
        assert stored.requests == []

    def test_credentials_that_come_later(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        credentials = tmp_path / "credentials"
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
        with pytest.raises(CredentialsError):
            torchwick.load(URI)
        credentials.write_text("[default]\naws_access_key_id=AKIALATE\naws_secret_access_key=x\n")
        assert_same(torchwick.load(URI), STATE)
        assert set(_keys_used(stored)) == {"AKIALATE"}

    def test_a_profile(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        credentials = tmp_path / "credentials"
        credentials.write_text("[work]\naws_access_key_id=AKIAWORK\naws_secret_access_key=x\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
        torchwick.load(URI, s3=S3Config(profile="work"))
        assert set(_keys_used(stored)) == {"AKIAWORK"}

    def test_a_profile_that_is_not_there(self, stored: FaultyServer) -> None:
        with pytest.raises(CredentialsError, match="missing-profile") as caught:
            torchwick.load(URI, s3=S3Config(profile="missing-profile"))
        assert caught.value.uri == URI

    def test_a_service_that_is_busy_is_asked_again(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", stored.endpoint_url)
        stored.on(S3Error(503, "ServiceUnavailable"), method="POST", nth=range(1, 3))  # botocore's own two
        stored.on(Answer(200, ROLE_GIVEN), method="POST", nth=range(3, 99))
        role = S3Config(role_arn="arn:aws:iam::123456789012:role/reader")
        assert_same(torchwick.load(URI, s3=role, transfer=PARTS), STATE)
        assert set(_keys_used(stored)[3:]) == {"ASIAREADER"}

    def test_a_process_made_by_fork_while_credentials_are_found(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        config = tmp_path / "config"
        program = tmp_path / "slow"
        answer = '{"Version": 1, "AccessKeyId": "AKIASLOW", "SecretAccessKey": "hush"}'
        asked = tmp_path / "asked"
        program.write_text(f"#!/bin/sh\ntouch {asked}\nsleep 1\necho '{answer}'\n")
        program.chmod(0o700)
        config.write_text(f"[default]\ncredential_process = {program}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        script = (
            "import multiprocessing, os, sys, threading, time, torchwick\n"
            "slow = threading.Thread(target=torchwick.load, args=(sys.argv[1],)); slow.start()\n"
            "while not os.path.exists(sys.argv[2]): time.sleep(0.01)\n"
            "fork = multiprocessing.get_context('fork')\n"
            "child = fork.Process(target=torchwick.load, args=(sys.argv[1],)); child.start()\n"
            "child.join(40); print(child.exitcode); child.kill(); slow.join()\n"
        )
        assert run_python(script, URI, str(asked)) == "0\n"

    def test_threads_that_replace_each_others_caller(self, stored: FaultyServer) -> None:
        callers = Callers(S3Config(), 5, lambda _: None)

        def come_and_go(_: int) -> None:
            for _ in range(3):
                callers.replace(callers.fresh())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(come_and_go, range(4)))
        assert callers.fresh() is callers.fresh()

    def test_a_half_given_key(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(CredentialsError):
            torchwick.load(URI)

    def test_another_key_in_the_environment_is_seen(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torchwick.load(URI)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECOND")
        torchwick.load(URI)
        assert _keys_used(stored)[-1] == "AKIASECOND"


class TestWhatIsRefused:
    def test_a_missing_key(self, aws_env: SeaweedFS, shared_bucket: str) -> None:
        with pytest.raises(ObjectNotFoundError, match="no such object") as caught:
            torchwick.load(f"s3://{shared_bucket}/missing.pt")
        assert caught.value.code == "NoSuchKey"

    def test_a_missing_bucket(self, aws_env: SeaweedFS) -> None:
        with pytest.raises(ObjectNotFoundError, match="no such bucket") as caught:
            torchwick.load("s3://missing-bucket/new.pt")
        assert caught.value.code == "NoSuchBucket"

    def test_a_bucket_of_an_impossible_name(self, aws_env: SeaweedFS) -> None:
        with pytest.raises(URIError, match=r"s3://Some Bucket/new[.]pt: that is no name of a bucket"):
            torchwick.load("s3://Some Bucket/new.pt")

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (403, "AccessDenied", AccessDeniedError),
            (403, "RequestTimeTooSkewed", CredentialsError),
            (400, "ExpiredToken", CredentialsError),
            (403, "InvalidToken", CredentialsError),
            (403, "InvalidObjectState", StoreError),
            (404, "NoSuchVersion", ObjectNotFoundError),
            (412, "PreconditionFailed", ObjectChangedError),
            (400, "SomethingNew", StoreError),
        ],
    )
    def test_by_name(self, stored: FaultyServer, status: int, code: str, kind: type[StoreError]) -> None:
        stored.on(S3Error(status, code))
        with pytest.raises(kind) as caught:
            torchwick.load(URI)
        assert type(caught.value) is kind
        assert (caught.value.code, caught.value.request_id) == (code, "FAULTY")
        assert code in str(caught.value)
        assert caught.value.uri == URI

    def test_nothing_there_answers(
        self, faulty_s3: FaultyServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
        started = time.monotonic()
        with pytest.raises(TransferError, match="tried 2 times") as caught:
            torchwick.load(URI, transfer=TransferConfig(max_attempts=2))
        assert time.monotonic() - started < 8  # not the 10 s of the timeout
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert "AWS_ENDPOINT_URL" in str(caught.value.hint)

    def test_a_host_that_no_one_knows(self, faulty_s3: FaultyServer) -> None:
        config = S3Config(endpoint_url="http://nowhere.invalid", addressing_style="path")
        with pytest.raises(TransferError) as caught:
            torchwick.load(URI, s3=config, transfer=TransferConfig(max_attempts=1))
        assert "DNS" in str(caught.value.hint)

    @pytest.mark.parametrize("endpoint", ["localhost:9000", "nonsense", "ftp://host"])
    def test_an_endpoint_that_is_no_url(self, faulty_s3: FaultyServer, endpoint: str) -> None:
        with pytest.raises(StoreError, match=r"https?://"):
            torchwick.load(URI, s3=S3Config(endpoint_url=endpoint))

    @pytest.mark.parametrize("status", [400, 403, 404])
    def test_a_page_where_s3_should_be(self, stored: FaultyServer, status: int) -> None:
        page = b"<!DOCTYPE html><html><body>Hello<br></body></html>"
        stored.on(Answer(status, page, {"Content-Type": "text/html"}))
        with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
            torchwick.load(URI)

    def test_a_page_in_the_models_place(self, stored: FaultyServer) -> None:
        page = b"<!DOCTYPE html><html><body>Hello<br></body></html>"
        stored.on(Answer(200, page, {"Content-Type": "text/html"}))
        with pytest.raises(FormatError, match="an HTML page"):
            torchwick.load(URI)


class TestKeysAndVersions:
    @pytest.mark.parametrize(
        "key",
        [
            "a folder/new model.pt",
            "модель/größe 模型 🙂.pt",
            "100%.pt",
            "50%25.pt",
            "a+b.pt",
            "what?.pt",
            "what?x=1&y=2.pt",
            "#1.pt",
            "a=b&c;d,e:f@g.pt",
            "'quoted' \"twice\" `thrice`.pt",
            "~tilde*star!(paren).pt",
        ],
    )
    def test_any_key(self, aws_env: SeaweedFS, shared_bucket: str, put: Put, key: str) -> None:
        reports: list[LoadReport] = []
        assert_same(torchwick.load(put(shared_bucket, key, MODEL), on_report=reports.append), STATE)
        assert reports[0].uri == f"s3://{shared_bucket}/{key}"

    def test_versions(self, aws_env: SeaweedFS, bucket: str, s3_client: Any) -> None:
        s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        old = s3_client.put_object(Bucket=bucket, Key="new.pt", Body=OTHER)["VersionId"]
        new = s3_client.put_object(Bucket=bucket, Key="new.pt", Body=MODEL)["VersionId"]
        reports: list[LoadReport] = []
        uri = f"s3://{bucket}/new.pt"
        assert_same(torchwick.load(uri, transfer=PARTS, on_report=reports.append), STATE)
        loaded = torchwick.load(f"{uri}?versionId={old}", transfer=PARTS, on_report=reports.append)
        assert_same(loaded, {"weight": -STATE["weight"]})
        assert [report.version for report in reports] == [new, old]

    def test_a_version_that_is_not_there(self, aws_env: SeaweedFS, bucket: str, s3_client: Any) -> None:
        s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        s3_client.put_object(Bucket=bucket, Key="new.pt", Body=MODEL)
        with pytest.raises(ObjectNotFoundError):
            torchwick.load(f"s3://{bucket}/new.pt?versionId={'0' * 32}")

    def test_every_part_is_of_the_version_asked_for(self, stored: FaultyServer) -> None:
        torchwick.load(f"{URI}?versionId=v7", transfer=PARTS)
        assert len(stored.requests) > 3
        assert {"versionId=v7"} == {
            request.query.replace("&x-id=GetObject", "") for request in stored.requests
        }


class TestOnTheWire:
    @pytest.fixture(autouse=True)
    def token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", "t0ken")

    def test_every_request_but_the_first_is_pinned(self, stored: FaultyServer) -> None:
        reports: list[LoadReport] = []
        torchwick.load(URI, transfer=PARTS, on_report=reports.append)
        first, *others = stored.requests
        assert "if-match" not in first.headers
        assert {request.headers["if-match"] for request in others} == {reports[0].etag}
        assert len(others) >= 4

    def test_one_signature_serves_them_all(self, stored: FaultyServer) -> None:
        torchwick.load(URI, transfer=PARTS, verify=False)
        assert len({request.headers["authorization"] for request in stored.requests}) == 1
        assert len({request.range for request in stored.requests}) == len(stored.requests)

    def test_credentials_are_in_headers_alone(self, stored: FaultyServer) -> None:
        torchwick.load(URI, transfer=PARTS)
        for request in stored.requests:
            assert request.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIAFAULTY/")
            assert request.headers["x-amz-security-token"] == "t0ken"
            for secret in ("amz-", "t0ken", "akiafaulty", "signature"):
                assert secret not in request.query.lower()

    def test_nothing_is_asked_for_compressed(self, stored: FaultyServer) -> None:
        torchwick.load(URI, transfer=PARTS)
        assert {request.headers.get("accept-encoding") for request in stored.requests} == {"identity"}

    def test_the_region_is_signed(self, stored: FaultyServer) -> None:
        torchwick.load(URI, s3=S3Config(region="eu-west-3"))
        assert "/eu-west-3/s3/aws4_request" in stored.requests[0].headers["authorization"]

    def test_who_pays(self, stored: FaultyServer) -> None:
        torchwick.load(URI, transfer=PARTS, s3=S3Config(requester_pays=True))
        for request in stored.requests:
            assert request.headers["x-amz-request-payer"] == "requester"
            assert "x-amz-request-payer" in request.headers["authorization"]

    def test_the_endpoint_given_in_code_wins(
        self, stored: FaultyServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
        assert_same(torchwick.load(URI, s3=S3Config(endpoint_url=stored.endpoint_url)), STATE)

    def test_an_endpoint_for_s3_alone(
        self, stored: FaultyServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", stored.endpoint_url)
        assert_same(torchwick.load(URI), STATE)

    def test_over_tls(self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        faulty_tls.put("models/new.pt", MODEL)
        assert_same(torchwick.load(URI, transfer=PARTS), STATE)

    def test_an_authority_given_in_code(
        self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_CA_BUNDLE")
        faulty_tls.put("models/new.pt", MODEL)
        with pytest.raises(TransferError) as caught:
            torchwick.load(URI)
        assert "AWS_CA_BUNDLE" in str(caught.value.hint)
        assert caught.value.attempts == 1  # another attempt would meet the same certificate
        assert_same(torchwick.load(URI, s3=S3Config(ca_bundle=str(faulty_tls.ca_file))), STATE)

    def test_an_authority_that_is_not_there(
        self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        missing = str(tmp_path / "missing.pem")
        started = time.monotonic()
        with pytest.raises(torchwick.TorchwickError, match=r"missing\.pem"):
            torchwick.load(URI, s3=S3Config(ca_bundle=missing))
        assert time.monotonic() - started < 8  # not the 10 s of the timeout


class TestExpiry:
    """Signatures and credentials end while loads go on."""

    @pytest.mark.parametrize(
        ("status", "code"), [(403, "ExpiredToken"), (400, "ExpiredToken"), (403, "RequestTimeTooSkewed")]
    )
    def test_a_signature_refused_in_the_middle_is_made_anew(
        self, stored: FaultyServer, status: int, code: str
    ) -> None:
        stored.on(S3Error(status, code), nth=3)
        assert_same(torchwick.load(URI, transfer=PARTS), STATE)

    def test_renewed_credentials_sign_the_rest(
        self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self._use_short_lived_credentials(monkeypatch, tmp_path)
        stored.on(S3Error(400, "ExpiredToken"), nth=3)
        one = TransferConfig(part_size=500_000, connections=1)
        assert_same(torchwick.load(URI, transfer=one, verify=False), STATE)
        used = _keys_used(stored)
        assert used[0] == used[1] == used[2]
        assert used[3] != used[2]
        assert set(used[3:]) == {used[3]}

    def test_credentials_that_stay_refused(self, stored: FaultyServer) -> None:
        stored.on(S3Error(400, "ExpiredToken"), nth=range(3, 99))
        with pytest.raises(CredentialsError, match="have expired") as caught:
            torchwick.load(URI, transfer=PARTS)
        assert caught.value.hint
        assert len(stored.requests) < 9

    @staticmethod
    def _use_short_lived_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Let a program give credentials that end so soon that botocore asks for new ones at every use."""
        script, count = tmp_path / "credentials.py", tmp_path / "count"
        script.write_text(
            "import datetime, json, pathlib, sys\n"
            "count = pathlib.Path(sys.argv[1])\n"
            "number = int(count.read_text()) + 1 if count.exists() else 1\n"
            "count.write_text(str(number))\n"
            "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=11)\n"
            "print(json.dumps({'Version': 1, 'AccessKeyId': f'AKIA{number}', 'SecretAccessKey': 'x',\n"
            "                  'SessionToken': 't', 'Expiration': end.isoformat()}))\n"
        )
        config = tmp_path / "config"
        config.write_text(f"[default]\ncredential_process = {sys.executable} {script} {count}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


class TestRegions:
    """A bucket in another region than the configured one: S3 says which, and the load goes there."""

    @pytest.mark.parametrize(
        ("status", "code"),
        [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed"), (307, "TemporaryRedirect")],
    )
    def test_it_is_signed_anew_for_the_right_one(self, stored: FaultyServer, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>Go there.</Message><Region>eu-west-3</Region></Error>"
        headers = {"Content-Type": "application/xml", "x-amz-bucket-region": "eu-west-3"}
        stored.on(
            Answer(status, body.encode(), headers),
            where=lambda request: "/eu-west-3/" not in request.headers["authorization"],
        )
        assert_same(torchwick.load(URI, transfer=PARTS), STATE)
        refused, *others = stored.requests
        assert "/us-east-1/" in refused.headers["authorization"]
        assert len(others) > 3
        assert all("/eu-west-3/" in request.headers["authorization"] for request in others)


def _page(contents: str, more: str = "<IsTruncated>false</IsTruncated>") -> Answer:
    return Answer(200, f"<ListBucketResult>{more}{contents}</ListBucketResult>".encode())


def _entry(key: str, etag: str) -> str:
    return f"<Contents><Key>{key}</Key><ETag>{etag}</ETag><Size>{len(MODEL)}</Size></Contents>"


class TestDirectories:
    """Listings, and why there are none."""

    DIRECTORY = parse("s3://models/llama/")
    MORE = "<IsTruncated>true</IsTruncated>"

    @pytest.fixture
    def sharded(self, faulty_s3: FaultyServer) -> FaultyServer:
        faulty_s3.put("models/llama/1.pt", MODEL)
        return faulty_s3

    @staticmethod
    def _list(directory: uri.URI = DIRECTORY, **options: Any) -> Listing | None:
        connection = open_store(directory, S3Config(**options), 5.0).connect()
        try:
            return connection.list(directory)
        finally:
            connection.release()

    def test_denied_without_a_reason(self, sharded: FaultyServer) -> None:
        sharded.on(S3Error(403, "AccessDenied", "Access Denied"))
        with pytest.raises(AccessDeniedError, match=r"^s3://models/llama/: .*asked as access key") as caught:
            self._list()
        assert "s3:ListBucket" in str(caught.value.hint)
        assert "model.safetensors.index.json" in str(caught.value.hint)
        assert len(sharded.requests) == 1

    @pytest.mark.parametrize(
        ("said", "hint"),
        [
            ("not authorized to perform: s3:ListBucket on resource: x", "grant s3:ListBucket on it"),
            ("not authorized to perform: s3:ListBucket with an explicit deny in it", "Look for Deny"),
            ("Request has expired", "clock"),
        ],
    )
    def test_denied_for_a_reason(self, sharded: FaultyServer, said: str, hint: str) -> None:
        sharded.on(S3Error(403, "AccessDenied", said))
        with pytest.raises(AccessDeniedError) as caught:
            self._list()
        assert hint in str(caught.value.hint)

    def test_public_objects_that_may_not_be_listed(self, sharded: FaultyServer) -> None:
        sharded.on(S3Error(403, "AccessDenied", "Access Denied"))
        with pytest.raises(AccessDeniedError, match="name one object of the directory"):
            self._list(anonymous=True)
        assert "authorization" not in sharded.requests[0].headers

    def test_a_refused_object_is_looked_for_in_a_listing(self, sharded: FaultyServer) -> None:
        sharded.on(S3Error(403, "AccessDenied", "Access Denied"), path="models/llama/1.pt")
        with pytest.raises(AccessDeniedError, match="It exists"):
            torchwick.load("s3://models/llama/1.pt")

    def test_a_missing_bucket(self, aws_env: SeaweedFS) -> None:
        with pytest.raises(ObjectNotFoundError, match="no such bucket"):
            self._list(parse("s3://missing-bucket/llama/"))

    def test_a_busy_store(self, sharded: FaultyServer) -> None:
        sharded.on(SlowDown(retry_after=3), nth=1)
        with pytest.raises(BusyError) as caught:
            self._list()
        assert (caught.value.retry_after, caught.value.uri) == (3, "s3://models/llama/")
        listing = self._list()
        assert listing is not None
        assert len(listing) == 1

    def test_a_broken_connection(self, sharded: FaultyServer) -> None:
        sharded.on(Cut(after=20), nth=1)
        with pytest.raises((OSError, http.client.HTTPException)):
            self._list()
        assert self._list()

    @pytest.mark.parametrize("answer", [S3Error(501, "NotImplemented"), Answer(501, b"Not here")])
    def test_a_store_that_lists_nothing(self, sharded: FaultyServer, answer: Fault) -> None:
        sharded.on(answer)
        assert self._list() is None

    def test_expired_credentials_are_looked_for_afresh(self, sharded: FaultyServer) -> None:
        assert self._list()
        sharded.on(S3Error(400, "ExpiredToken"), nth=1)
        assert self._list()

    def test_another_region(self, sharded: FaultyServer) -> None:
        moved = S3Error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-3"})
        sharded.on(moved, where=lambda request: "/eu-west-3/" not in request.headers["authorization"])
        assert self._list()

    def test_it_goes_through_the_proxy(self, sharded: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        port = int(sharded.endpoint_url.rpartition(":")[2])
        with Relay(leads_to=("127.0.0.1", port)) as relay:
            monkeypatch.setenv("HTTP_PROXY", relay.url)
            assert self._list(endpoint_url="http://store.example.com", addressing_style="path")
            assert relay.hosts() == {"store.example.com"}

    def test_what_is_asked(self, sharded: FaultyServer) -> None:
        self._list(requester_pays=True, sse_customer_key=bytes(32))
        asked = sharded.requests[0]
        assert asked.path == "models"
        assert set(asked.query.split("&")) == {
            "list-type=2",
            "prefix=llama%2F",
            "delimiter=%2F",
            "encoding-type=url",
        }
        assert asked.headers["x-amz-request-payer"] == "requester"
        assert not any("customer" in name for name in asked.headers)

    def test_all_of_a_bucket(self, sharded: FaultyServer) -> None:
        sharded.put("models/above.pt", MODEL)
        listing = self._list(parse("s3://models/"))
        assert listing is not None
        assert [str(info.uri) for info in listing] == ["s3://models/above.pt"]
        assert "prefix" not in sharded.requests[0].query

    def test_an_upload_in_parts(self, aws_env: SeaweedFS, bucket: str, s3_client: Any) -> None:
        upload = s3_client.create_multipart_upload(Bucket=bucket, Key="llama/1.pt")["UploadId"]
        about = {"Bucket": bucket, "Key": "llama/1.pt", "UploadId": upload}
        parts = [
            {
                "PartNumber": number,
                "ETag": s3_client.upload_part(**about, PartNumber=number, Body=bytes(5 << 20))["ETag"],
            }
            for number in (1, 2)
        ]
        s3_client.complete_multipart_upload(**about, MultipartUpload={"Parts": parts})
        listing = self._list(parse(f"s3://{bucket}/llama/"))
        assert listing is not None
        connection = open_store(self.DIRECTORY, S3Config(), 5.0).connect()
        body = connection.get(listing[0].uri, 0, 10, listing[0])
        assert (body.info.etag, body.info.size) == (listing[0].etag, 10 << 20)
        body.close()
        connection.release()

    @pytest.mark.parametrize(
        ("told", "etag"), [("&quot;a&quot;", '"a"'), ("a", '"a"'), ("W/&quot;a&quot;", 'W/"a"'), ("", None)]
    )
    def test_odd_tags(self, sharded: FaultyServer, told: str, etag: str | None) -> None:
        sharded.on(_page(_entry("llama/1.pt", told)))
        listing = self._list()
        assert listing == [ObjectInfo(self.DIRECTORY.child("1.pt"), len(MODEL), etag)]

    def test_a_tag_without_its_quotes_is_the_same_tag(self) -> None:
        address = self.DIRECTORY.child("1.pt")
        check_pinned(ObjectInfo(address, 7, "a"), ObjectInfo(address, 7, '"a"'))
        with pytest.raises(ObjectChangedError):
            check_pinned(ObjectInfo(address, 7, "b"), ObjectInfo(address, 7, '"a"'))

    @pytest.mark.parametrize("key", ["other/1.pt", "llama", "", "../llama/1.pt"])
    def test_a_key_from_elsewhere(self, sharded: FaultyServer, key: str) -> None:
        sharded.on(_page(_entry(key, "a")))
        with pytest.raises(StoreError, match="is not in it") as caught:
            self._list()
        assert caught.value.uri == "s3://models/llama/"

    def test_a_folder_that_lies_elsewhere(self, sharded: FaultyServer) -> None:
        sharded.on(_page("<CommonPrefixes><Prefix>other/old/</Prefix></CommonPrefixes>"))
        with pytest.raises(StoreError, match="'other/old/', which is not in it"):
            self._list()

    def test_a_store_that_knows_no_delimiter(self, sharded: FaultyServer) -> None:
        sharded.on(
            _page(_entry("llama/2.pt", "a") + _entry("llama/old/1.pt", "a") + _entry("llama/1.pt", "a"))
        )
        listing = self._list()
        assert listing is not None
        assert [info.uri.key for info in listing] == ["llama/1.pt", "llama/2.pt"]

    @pytest.mark.parametrize("token", ["", "<NextContinuationToken>7</NextContinuationToken>"])
    def test_a_page_that_leads_nowhere(self, sharded: FaultyServer, token: str) -> None:
        sharded.on(_page(_entry("llama/1.pt", "a"), self.MORE + token))
        with pytest.raises(StoreError, match="not how to ask for it"):
            self._list()
        assert len(sharded.requests) <= 2

    @pytest.mark.parametrize("contents", ["", "<CommonPrefixes><Prefix>llama/a/</Prefix></CommonPrefixes>"])
    def test_pages_without_end(
        self, sharded: FaultyServer, contents: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3_listing, "_MOST_ENTRIES", 500)
        turn = "<NextContinuationToken>{}</NextContinuationToken>"
        sharded.on(_page(contents, self.MORE + turn.format(1)))
        sharded.on(
            _page(contents, self.MORE + turn.format(2)),
            where=lambda request: "continuation-token=1" in request.query,
        )
        with pytest.raises(StoreError, match="more than 500 objects") as caught:
            self._list()
        assert "deeper folder" in str(caught.value.hint)
        assert len(sharded.requests) == 5

    def test_a_page_where_s3_should_be(self, sharded: FaultyServer) -> None:
        sharded.on(Answer(200, b"<!DOCTYPE html><html><br>Hello</html>", {"Content-Type": "text/html"}))
        with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
            self._list()

    def test_a_model_in_the_listings_place(self, sharded: FaultyServer) -> None:
        sharded.on(Answer(200, bytes(5 << 20)))
        with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
            self._list()

    def test_a_bucket_without_objects_holds_no_model(self, faulty_s3: FaultyServer) -> None:
        with pytest.raises(torchwick.FormatError, match=r"^s3://models/: the directory is empty"):
            torchwick.load("s3://models/")

    def test_a_directory_is_loaded_as_one(self, sharded: FaultyServer) -> None:
        assert torchwick.load("s3://models/llama/").keys() == torchwick.load("s3://models/llama/1.pt").keys()


def test_a_change_is_never_loaded_as_a_mix(stored: FaultyServer) -> None:
    stored.on(lambda: stored.put("models/new.pt", OTHER), nth=4)
    with pytest.raises(ObjectChangedError):
        torchwick.load(URI, transfer=PARTS)


def test_a_model_deleted_in_the_middle(stored: FaultyServer) -> None:
    stored.on(lambda: stored.delete("models/new.pt"), nth=4)
    with pytest.raises(ObjectChangedError):
        torchwick.load(URI, transfer=PARTS)


def test_the_next_load_sees_the_new_model(stored: FaultyServer) -> None:
    torchwick.load(URI, transfer=PARTS)
    stored.put("models/new.pt", OTHER)
    assert_same(torchwick.load(URI, transfer=PARTS), {"weight": -STATE["weight"]})


def test_no_secret_is_shown_by_an_error(stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t0ken")
    stored.on(S3Error(403, "SignatureDoesNotMatch"))
    with pytest.raises(CredentialsError) as caught:
        torchwick.load(URI)
    shown = json.dumps([str(caught.value), repr(caught.value), repr(vars(caught.value))])
    for secret in ("not-checked", "t0ken", "AWS4-HMAC"):
        assert secret not in shown
