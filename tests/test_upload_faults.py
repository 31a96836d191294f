"""Uploads through faults: the right object or an error that says what happened, and nothing left behind."""

from __future__ import annotations

import base64
import logging
import pickle
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from conftest import random_bytes
from faults import (
    Answer,
    ErrorInSuccess,
    Instead,
    Lost,
    Prefix,
    S3Error,
    SetHeaders,
    Sip,
    SlowDown,
    Stall,
    Unread,
)
from torchwick import S3Config, TransferConfig
from torchwick.config import PutOptions
from torchwick.errors import (
    AccessDeniedError,
    CredentialsError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    TorchwickError,
    TransferError,
)
from torchwick.saving.s3_folder import S3Folder
from torchwick.store import open_writable
from torchwick.transfer import Receipt, Uploads
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from faults import Request
    from faulty import FaultyServer

MIB = 1 << 20
CONTENT = random_bytes(12 * MIB)  # three parts
PATH = "bucket/model"
URI = f"s3://{PATH}"
QUICK = TransferConfig(part_size=5 * MIB, connections=2, timeout=0.7, max_attempts=4)
KEY = random_bytes(32, seed=7)
REFUSED = Instead(S3Error(403, "AccessDenied", "Access Denied"))


def upload(
    content: bytes = CONTENT,
    *,
    overwrite: bool = False,
    config: TransferConfig = QUICK,
    s3: S3Config | None = None,
    uri: str = URI,
    **more: Any,
) -> Receipt:
    store = open_writable(parse(uri), s3 or S3Config(), config.timeout)
    with Uploads(store, config, **more) as group:
        one = group.begin(parse(uri), len(content), overwrite=overwrite)
        one.write(content)
        one.end()
        return group.complete()[0]


def is_complete(request: Request) -> bool:
    return request.query.startswith("uploadId=")


def asked(server: FaultyServer, method: str) -> list[Request]:
    return [request for request in server.requests if request.method == method]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchwick.transfer.retry._FIRST_WAIT", 0.02)


@pytest.fixture(params=[True, False], ids=["overwriting", "conditional"])
def overwrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class TestRequests:
    def test_bodies_are_neither_hashed_nor_announced(self, faulty_s3: FaultyServer) -> None:
        upload()
        for request in asked(faulty_s3, "PUT"):
            assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
            assert "expect" not in request.headers
            assert "x-amz-checksum-crc64nvme" in request.headers
        [begin, complete] = asked(faulty_s3, "POST")
        assert begin.headers["x-amz-checksum-type"] == "FULL_OBJECT"
        assert complete.headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD"
        assert complete.headers["if-none-match"] == "*"

    def test_the_customers_key_goes_with_what_is_written(self, faulty_s3: FaultyServer) -> None:
        upload(s3=S3Config(sse_customer_key=KEY))
        header = "x-amz-server-side-encryption-customer-key"
        written = [request for request in faulty_s3.requests if request.method in ("PUT", "POST")]
        assert [request.headers[header] for request in written] == [base64.b64encode(KEY).decode()] * 5

    def test_options_go_with_the_beginning(self, faulty_s3: FaultyServer) -> None:
        options = PutOptions(
            storage_class="STANDARD_IA",
            server_side_encryption="aws:kms",
            kms_key_id="alias/models",
            bucket_key_enabled=True,
            expected_bucket_owner="123456789012",
        )
        for content in (CONTENT, b"small"):
            faulty_s3.behave()
            upload(content, options=options, overwrite=True)
            headers = faulty_s3.requests[0].headers
            assert headers["x-amz-storage-class"] == "STANDARD_IA"
            assert headers["x-amz-server-side-encryption"] == "aws:kms"
            assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/models"
            assert headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
            for request in faulty_s3.requests:
                assert request.headers["x-amz-expected-bucket-owner"] == "123456789012"

    def test_the_connections_serve_the_next_upload(self, faulty_s3: FaultyServer) -> None:
        for _ in range(4):
            upload(overwrite=True)
        assert faulty_s3.connections == 2

    @pytest.mark.parametrize("content", [CONTENT, b"small"], ids=["parts", "one-request"])
    def test_a_bucket_in_another_region_is_found(self, faulty_s3: FaultyServer, content: bytes) -> None:
        elsewhere = S3Error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"})
        for method in ("POST", "PUT"):
            faulty_s3.on(
                Unread(0, elsewhere),
                method=method,
                where=lambda r: "eu-west-1" not in r.headers["authorization"],
            )
        upload(content)
        assert faulty_s3.content(PATH) == content


class TestParts:
    @pytest.mark.parametrize(
        "fault",
        [
            Instead(SlowDown()),
            Instead(S3Error(500, "InternalError")),
            Instead(S3Error(400, "BadDigest")),
            Unread(0, "reset"),
            Unread(2 * MIB, "reset"),
            Unread(2 * MIB, "stall"),
            Unread(0, S3Error(503, "SlowDown")),
            Unread(2 * MIB, S3Error(503, "SlowDown")),
            Lost(),
            Stall(-1),
            SetHeaders({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}),
        ],
        ids=str,
    )
    def test_one_that_fails_is_sent_again(self, faulty_s3: FaultyServer, fault: Any) -> None:
        faulty_s3.on(fault, nth=2, method="PUT")
        receipt = upload()
        assert faulty_s3.content(PATH) == CONTENT
        assert receipt.retries <= 1  # a connection that was reset when it was used again counts for none
        assert (receipt.requests, receipt.checksum) == (5 + receipt.retries, "crc64nvme")
        assert faulty_s3.uploads.pending == {}

    def test_a_success_before_all_was_sent_is_none(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.buffer_little()
        faulty_s3.on(Unread(MIB, Answer(200, headers={"ETag": '"early"'})), nth=2, method="PUT")
        upload()
        assert faulty_s3.content(PATH) == CONTENT

    def test_one_that_always_fails_ends_the_upload(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Unread(MIB, "reset"), method="PUT", where=lambda r: "partNumber=2" in r.query)
        with pytest.raises(TransferError, match=f"{URI}: could not be written, tried 4 times") as caught:
            upload()
        assert caught.value.range == (5 * MIB, 10 * MIB)
        assert caught.value.hint
        assert faulty_s3.uploads.pending == {}
        assert faulty_s3.content(PATH) is None

    @pytest.mark.parametrize("after", [0, MIB])
    def test_a_refusal_before_the_body_is_read_is_named(self, faulty_s3: FaultyServer, after: int) -> None:
        faulty_s3.on(Unread(after, S3Error(403, "AccessDenied", "Access Denied")), method="PUT")
        with pytest.raises(AccessDeniedError, match=r"writing it is not allowed.*s3:PutObject"):
            upload()
        assert faulty_s3.uploads.pending == {}

    @pytest.mark.parametrize("after", [0, MIB])
    def test_a_refusal_before_the_body_is_read_is_named_over_tls(
        self, faulty_tls: FaultyServer, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        for name, value in faulty_tls.environment().items():
            monkeypatch.setenv(name, value)
        upload(overwrite=True)
        assert faulty_tls.content(PATH) == CONTENT
        faulty_tls.on(Unread(after, S3Error(403, "AccessDenied", "Access Denied")), method="PUT")
        with pytest.raises(StoreError, match=r"writing it is not allowed"):
            upload(overwrite=True)
        assert faulty_tls.uploads.pending == {}

    def test_damage_that_stays_is_named(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Instead(S3Error(400, "BadDigest")), method="PUT")
        with pytest.raises(TransferError, match=r"what arrived at the store is not what was sent.*BadDigest"):
            upload()
        assert faulty_s3.uploads.pending == {}

    def test_a_busy_store_gets_fewer_connections(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.most_at_once = 2
        config = TransferConfig(part_size=5 * MIB, connections=6, timeout=5.0)
        content = random_bytes(60 * MIB)
        receipt = upload(content, config=config)
        assert faulty_s3.content(PATH) == content
        assert receipt.size == len(content)

    def test_a_line_that_is_slow_is_not_dead(self, faulty_s3: FaultyServer) -> None:
        """Most of a part is in the kernel's buffer long before a slow line has taken it."""
        faulty_s3.buffer_little()
        faulty_s3.on(Sip(256 << 10, every=0.2), method="PUT", nth=1)
        config = TransferConfig(part_size=5 * MIB, connections=1, timeout=0.5)
        assert upload(CONTENT[: 6 * MIB], config=config).retries == 0

    def test_a_line_that_takes_next_to_nothing_is_given_up(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.buffer_little()
        faulty_s3.on(Sip(64, every=0.2), method="PUT", nth=1)
        config = TransferConfig(part_size=5 * MIB, connections=1, timeout=1.0)
        assert upload(CONTENT[: 6 * MIB], config=config).retries == 1

    def test_retry_after_is_respected(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Instead(SlowDown(retry_after=1)), nth=1, method="PUT")
        began = time.monotonic()
        upload()
        assert time.monotonic() - began > 1


class TestBeginning:
    def test_a_missing_bucket_is_named_before_anything_is_sent(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Instead(S3Error(404, "NoSuchBucket")), method="POST")
        with pytest.raises(ObjectNotFoundError, match=f"{URI}: there is no such bucket"):
            upload()
        assert asked(faulty_s3, "PUT") == []

    def test_a_lost_answer_is_asked_for_again_and_said(
        self, faulty_s3: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        faulty_s3.on(Lost(), nth=1, method="POST")
        with caplog.at_level(logging.WARNING, "torchwick"):
            upload()
        assert faulty_s3.content(PATH) == CONTENT
        assert "an upload may have been begun" in caplog.text


class TestCompleting:
    @pytest.mark.parametrize(
        "fault",
        [
            Instead(S3Error(500, "InternalError")),
            Instead(SlowDown()),
            Instead(ErrorInSuccess("InternalError")),
            Instead(ErrorInSuccess("SlowDown")),
            S3Error(500, "InternalError"),
            ErrorInSuccess("InternalError"),
            Lost(),
            Stall(-1),
        ],
        ids=str,
    )
    def test_what_fails_or_seems_to_is_asked_again(
        self, faulty_s3: FaultyServer, fault: Any, overwrite: bool
    ) -> None:
        faulty_s3.on(fault, nth=1, method="POST", where=is_complete)
        receipt = upload(overwrite=overwrite)
        assert faulty_s3.content(PATH) == CONTENT
        assert (receipt.checksum, receipt.size, receipt.retries) == ("crc64nvme", len(CONTENT), 1)
        assert faulty_s3.uploads.pending == {}

    def test_white_space_keeps_the_connection_alive(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Prefix(), method="POST", where=is_complete)
        assert upload().retries == 0

    def test_a_refusal_in_a_success_is_one(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Instead(ErrorInSuccess("AccessDenied")), method="POST", where=is_complete)
        with pytest.raises(AccessDeniedError, match="writing it is not allowed"):
            upload()
        assert faulty_s3.uploads.pending == {}

    @pytest.mark.parametrize("content", [CONTENT, b"small"], ids=["parts", "one-request"])
    def test_a_lost_answer_is_found_by_the_tag_where_no_checksum_is_kept(
        self, faulty_s3: FaultyServer, content: bytes
    ) -> None:
        faulty_s3.uploads.checksums = "ignored"
        lose_the_answer(faulty_s3, content)
        receipt = upload(content)
        assert (receipt.checksum, receipt.retries) == (None, 1)
        assert faulty_s3.content(PATH) == content

    @pytest.mark.parametrize("content", [CONTENT, b"small"], ids=["parts", "one-request"])
    def test_what_cannot_be_told_is_said(self, faulty_s3: FaultyServer, content: bytes) -> None:
        faulty_s3.uploads.checksums, faulty_s3.uploads.opaque = "ignored", True
        lose_the_answer(faulty_s3, content)
        with pytest.raises(TransferError, match=f"{URI}: .*cannot be told.*Look at it") as caught:
            upload(content)
        assert caught.value.hint

    def test_what_may_not_be_looked_at_is_said(self, faulty_s3: FaultyServer) -> None:
        lose_the_answer(faulty_s3, CONTENT)
        faulty_s3.on(S3Error(403, "AccessDenied"), method="HEAD")
        with pytest.raises(TransferError, match="cannot be told"):
            upload()

    @pytest.mark.parametrize("content", [CONTENT, b"small"], ids=["parts", "one-request"])
    def test_another_object_is_not_taken_for_ones_own(self, faulty_s3: FaultyServer, content: bytes) -> None:
        lose_the_answer(faulty_s3, content)
        another = bytes(len(content))
        faulty_s3.on(lambda: faulty_s3.put(PATH, another, checksum="crc64nvme"), nth=1, method="HEAD")
        with pytest.raises(ObjectExistsError):
            upload(content)

    def test_an_upload_that_someone_aborted_is_said(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(faulty_s3.uploads.pending.clear, method="POST", where=is_complete)
        with pytest.raises(StoreError, match=r"ended before it was complete.*Write it again"):
            upload()

    @pytest.mark.parametrize("content", [CONTENT, b"small"], ids=["parts", "one-request"])
    def test_what_came_up_meanwhile_stays(self, faulty_s3: FaultyServer, content: bytes) -> None:
        faulty_s3.put(PATH, b"precious")
        with pytest.raises(ObjectExistsError, match=f"{URI}: there is an object already"):
            upload(content)
        assert faulty_s3.content(PATH) == b"precious"
        assert faulty_s3.uploads.pending == {}
        assert asked(faulty_s3, "HEAD") == []

    @pytest.mark.parametrize("content", [CONTENT, b"small"], ids=["parts", "one-request"])
    def test_a_store_without_conditions_is_named(self, faulty_s3: FaultyServer, content: bytes) -> None:
        faulty_s3.uploads.conditions = False
        with pytest.raises(StoreError, match=r"cannot write only where nothing is.*overwrite=True"):
            upload(content)
        assert faulty_s3.uploads.pending == {}
        upload(content, overwrite=True)
        assert faulty_s3.content(PATH) == content

    def test_an_object_that_is_there_nonetheless_is_told_of(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Lost(), method="POST", where=is_complete)
        with pytest.raises(TransferError, match=r"could not be written.*but it is there"):
            upload()
        assert faulty_s3.content(PATH) == CONTENT

    def test_other_bytes_at_the_store_are_an_error(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Instead(S3Error(400, "BadDigest")), method="POST", where=is_complete)
        with pytest.raises(IntegrityError, match="does not have the bytes"):
            upload()
        assert faulty_s3.uploads.pending == {}

    def test_another_checksum_in_the_answer_is_an_error(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(SetHeaders({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}), method="PUT")
        with pytest.raises(IntegrityError, match="does not have the bytes") as caught:
            upload(b"small")
        assert caught.value.found == "0" * 16


def lose_the_answer(server: FaultyServer, content: bytes) -> None:
    """Lose the answer to what makes the object appear."""
    if content is CONTENT:
        server.on(Lost(), nth=1, method="POST", where=is_complete)
    else:
        server.on(Lost(), nth=1, method="PUT")


class TestChecksums:
    @pytest.mark.parametrize("refusal", [(501, "NotImplemented"), (400, "InvalidRequest")])
    @pytest.mark.parametrize("content", [CONTENT, b"small"], ids=["parts", "one-request"])
    def test_a_store_that_refuses_them_gets_none(
        self, faulty_s3: FaultyServer, refusal: tuple[int, str], content: bytes
    ) -> None:
        faulty_s3.uploads.checksums, faulty_s3.uploads.refusal = "refused", refusal
        assert upload(content).checksum is None
        assert faulty_s3.content(PATH) == content
        before = len(faulty_s3.requests)
        assert upload(content, overwrite=True).checksum is None
        again = faulty_s3.requests[before:]
        assert len(again) == (5 if content is CONTENT else 1)  # it is remembered
        assert not any(name.startswith("x-amz-checksum") for request in again for name in request.headers)

    def test_a_store_that_ignores_them_confirms_none(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.uploads.checksums = "ignored"
        assert upload().checksum is None
        assert faulty_s3.content(PATH) == CONTENT

    def test_a_store_that_says_nothing_is_asked(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.uploads.quiet = True
        assert upload().checksum == "crc64nvme"
        assert len(asked(faulty_s3, "HEAD")) == 1


class TestAborting:
    @pytest.mark.parametrize(
        "fault", [Lost(), Instead(SlowDown()), Instead(S3Error(500, "InternalError"))], ids=str
    )
    def test_an_abort_that_fails_is_asked_again(self, faulty_s3: FaultyServer, fault: Any) -> None:
        faulty_s3.on(REFUSED, nth=2, method="PUT")
        faulty_s3.on(fault, nth=1, method="DELETE")
        with pytest.raises(AccessDeniedError) as caught:
            upload()
        assert faulty_s3.uploads.pending == {}
        assert "remains" not in str(caught.value)

    def test_what_cannot_be_aborted_is_said_in_the_error(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(REFUSED, nth=2, method="PUT")
        faulty_s3.on(Instead(S3Error(403, "AccessDenied")), method="DELETE")
        with pytest.raises(AccessDeniedError, match="AbortIncompleteMultipartUpload") as caught:
            upload()
        [name] = faulty_s3.uploads.pending
        assert name in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_what_cannot_be_aborted_is_said_in_the_log(
        self, faulty_s3: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        faulty_s3.on(Instead(SlowDown()), method="DELETE")
        with pytest.raises(KeyboardInterrupt):
            upload(on_progress=interrupted)
        [name] = faulty_s3.uploads.pending
        assert name in caplog.text
        assert "AbortIncompleteMultipartUpload" in caplog.text

    def test_what_cannot_be_aborted_is_an_error_by_itself(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Instead(S3Error(403, "AccessDenied")), method="DELETE")
        group = Uploads(open_writable(parse(URI), S3Config(), QUICK.timeout), QUICK)
        with pytest.raises(StoreError, match="could not be aborted"), group:
            group.begin(parse(URI), 6 * MIB, overwrite=False)

    def test_a_part_in_flight_is_stopped_before_the_abort(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Unread(MIB, "stall"), method="PUT")
        config = TransferConfig(part_size=5 * MIB, connections=2, timeout=30.0)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            upload(config=config, on_progress=interrupted)
        assert time.monotonic() - began < 10
        methods = [request.method for request in faulty_s3.requests]
        assert methods[methods.index("DELETE") :] == ["DELETE", "DELETE"]  # asked whether anything is left
        assert faulty_s3.uploads.pending == {}


def interrupted(done: int, connections: int) -> None:
    if connections:
        raise KeyboardInterrupt


class TestCredentials:
    def test_those_that_expire_in_the_middle_are_renewed(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Unread(MIB, S3Error(400, "ExpiredToken")), nth=2, method="PUT")
        upload()
        assert faulty_s3.content(PATH) == CONTENT

    def test_those_that_stay_expired_are_named(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(Instead(S3Error(400, "ExpiredToken")), method="PUT")
        with pytest.raises(CredentialsError, match="expired"):
            upload()
        assert faulty_s3.uploads.pending == {}

    def test_no_secret_is_in_any_message(
        self, faulty_s3: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        key = base64.b64encode(KEY).decode()
        for code, method in (("AccessDenied", "PUT"), ("InvalidRequest", "DELETE"), ("SlowDown", "PUT")):
            faulty_s3.behave()
            faulty_s3.on(Instead(S3Error(403, code, f"not with {key} and not-checked")), method=method)
            with caplog.at_level(logging.DEBUG), pytest.raises((TorchwickError, KeyboardInterrupt)) as caught:
                upload(
                    s3=S3Config(sse_customer_key=KEY),
                    on_progress=interrupted if method == "DELETE" else None,
                )
            told = [str(caught.value), repr(caught.value), caplog.text, *traces(caught.value)]
            assert not any(key in text or "AWS4-HMAC" in text for text in told)


def traces(error: BaseException | None) -> Iterator[str]:
    """The local variables of every frame that an error, or what it was made from, came through."""
    while error is not None:
        frame = error.__traceback__
        while frame is not None:
            if (
                "torchwick" in frame.tb_frame.f_code.co_filename
                and "tests" not in frame.tb_frame.f_code.co_filename
            ):
                yield repr(
                    {name: value for name, value in frame.tb_frame.f_locals.items() if name != "self"}
                )[:4000]
            frame = frame.tb_next
        error = error.__cause__


class TestFolders:
    def test_the_new_model_is_in_place_when_an_old_object_cannot_be_deleted(
        self, faulty_s3: FaultyServer
    ) -> None:
        faulty_s3.put("bucket/m/old", b"outdated")
        faulty_s3.on(Instead(S3Error(403, "AccessDenied")), method="DELETE")
        folder = S3Folder(parse("s3://bucket/m/"), overwrite=True, transfer=QUICK)
        with pytest.raises(StoreError, match="s3://bucket/m/old: all that was written is in place"), folder:
            write(folder, {"new": CONTENT}, outdated=["old"])
        assert faulty_s3.content("bucket/m/new") == CONTENT
        assert list(folder.receipts) == ["new"]

    def test_what_cannot_be_taken_back_is_said(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("bucket/m/b", b"precious")
        faulty_s3.on(
            Instead(S3Error(403, "AccessDenied")), method="DELETE", where=lambda r: not is_complete(r)
        )
        folder = S3Folder(parse("s3://bucket/m/"), overwrite=False, transfer=QUICK)
        with pytest.raises(ObjectExistsError, match="s3://bucket/m/a is there already"), folder:
            write(folder, {"a": b"first", "b": CONTENT})
        assert faulty_s3.uploads.pending == {}

    def test_small_objects_beyond_a_bound_go_ahead(
        self, faulty_s3: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torchwick.transfer.uploads._MOST_KEPT", 3 * MIB)
        contents = {name: random_bytes(2 * MIB, seed) for seed, name in enumerate("abc")}
        with S3Folder(parse("s3://bucket/m/"), overwrite=False, transfer=QUICK) as folder:
            write(folder, contents)
        assert {name: faulty_s3.content(f"bucket/m/{name}") for name in contents} == contents
        assert [receipt.requests for receipt in folder.receipts.values()] == [1, 3, 3]


def write(folder: S3Folder, contents: dict[str, bytes], outdated: Sequence[str] = ()) -> None:
    for name, content in contents.items():
        with folder.create(name, len(content)) as sink:
            sink.write(content)
    folder.commit(outdated)


AT_RANDOM = (
    Instead(SlowDown()),
    Instead(S3Error(500, "InternalError")),
    S3Error(500, "InternalError"),
    Instead(ErrorInSuccess("InternalError")),
    Lost(),
    Stall(-1),
    Unread(0, "reset"),
    Unread(MIB, S3Error(503, "SlowDown")),
    Instead(S3Error(400, "MalformedXML")),
)


@pytest.mark.parametrize("seed", range(6))
def test_faults_at_random(faulty_s3: FaultyServer, seed: int) -> None:
    """The right object and nothing else, or an error that tells of whatever is left."""
    chosen = random.Random(seed)
    faulty_s3.uploads.checksums = chosen.choice(["kept", "kept", "ignored"])

    def now_and_then(request: Request) -> bool:
        # An upload whose beginning was lost has no name to abort it by.
        return "uploads" not in request.query and chosen.random() < 0.08

    for fault in AT_RANDOM:
        for method in ("PUT", "POST", "DELETE", "HEAD"):
            if method != "HEAD" or "ErrorInSuccess" not in str(fault):  # such an answer has no body
                faulty_s3.on(fault, method=method, where=now_and_then)
    content = CONTENT if seed % 3 else b"small"
    config = TransferConfig(part_size=5 * MIB, connections=3, timeout=0.3, max_attempts=5)
    told = outcome(content, config, overwrite=bool(seed % 2))
    assert bool(faulty_s3.uploads.pending) <= ("AbortIncompleteMultipartUpload" in told)
    if told == "uploaded" or "it is there" in told:
        assert faulty_s3.content(PATH) == content
    elif not any(said in told for said in ("it may be there", "cannot be told")):
        assert faulty_s3.content(PATH) is None


def outcome(content: bytes, config: TransferConfig, *, overwrite: bool) -> str:
    try:
        upload(content, config=config, overwrite=overwrite)
    except TorchwickError as error:
        return str(error)
    return "uploaded"
