"""Bytes are held against what S3 keeps of them, or what the caller knows, and nothing else is returned."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import torchwick
from checkpoints import ODD_CHECKPOINTS, legacy
from checkpoints.base import quiet, save_bytes
from checkpoints.zipcraft import Record, saved_records, under, write_zip
from faults import Cut, FlipByte, IgnoreRange, S3Error, SetHeaders, Stall, Trickle, Truncate
from faulty import FaultyServer
from oracle import assert_same
from torchwick import (
    AccessDeniedError,
    FormatError,
    IntegrityError,
    LoadReport,
    MemoryLimitError,
    ObjectChangedError,
    TransferError,
)
from trials import PART, PARTS, WAYS, Way, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults import Fault, Length, Reply, Request

PATH = "models/new.pt"
URI = f"s3://{PATH}"
ALGORITHMS = ["crc64nvme", "crc32c", "crc32"]
DEFERRED, SPARSE, LEGACY, SAFETENSORS, SCRIPT = WAYS
PROMPT = 3.0  # seconds, on a busy machine
SHORT = replace(PARTS, timeout=0.3)


def _load(uri: str, **options: Any) -> tuple[Any, LoadReport]:
    reports: list[LoadReport] = []
    with quiet():
        value = torchwick.load(uri, on_report=reports.append, **{"transfer": PARTS, **options})
    return value, reports[0]


def _verified(way: Way, uri: str = URI, **options: Any) -> str | None:
    """Load, and return the checksum that was compared."""
    value, report = _load(uri, weights_only=way.weights_only, **options)
    assert way.holds(value)
    return report.verified


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _asks_for_parts(request: Request) -> bool:
    return request.query.startswith("attributes")


def _is_object(request: Request) -> bool:
    return not request.query or request.query.startswith("x-id")


each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


@pytest.fixture(scope="module")
def lasting() -> Iterator[FaultyServer]:
    """One server for all tests: a new one takes a new client of botocore, which takes longer than a load."""
    with FaultyServer() as server:
        yield server


@pytest.fixture
def faulty_s3(
    lasting: FaultyServer, monkeypatch: pytest.MonkeyPatch, isolated_environment: None
) -> FaultyServer:
    lasting.behave()
    for name, value in lasting.environment().items():
        monkeypatch.setenv(name, value)
    return lasting


@pytest.fixture
def server(faulty_s3: FaultyServer) -> FaultyServer:
    """A server with a model, and the checksum of it."""
    faulty_s3.put(PATH, DEFERRED.content, checksum="crc64nvme")
    return faulty_s3


# -- what a real server keeps ------------------------------------------------------------------------------


@pytest.mark.usefixtures("aws_env")
class TestARealServer:
    @each_way
    @pytest.mark.parametrize("algorithm", [None, "CRC64NVME", "CRC32C", "CRC32"])
    def test_what_it_keeps(self, way: Way, algorithm: str | None, bucket: str, s3_client: Any) -> None:
        chosen = {} if algorithm is None else {"ChecksumAlgorithm": algorithm}
        s3_client.put_object(Bucket=bucket, Key="model", Body=way.content, **chosen)
        name = (algorithm or "CRC32").lower()
        assert _verified(way, f"s3://{bucket}/model") == name
        assert _verified(way, f"s3://{bucket}/model", verify=True) == name
        assert _verified(way, f"s3://{bucket}/model", verify=False) is None

    def test_a_digest(self, bucket: str, s3_client: Any) -> None:
        s3_client.put_object(Bucket=bucket, Key="model", Body=DEFERRED.content)
        uri, right = f"s3://{bucket}/model", _sha256(DEFERRED.content)
        assert _verified(DEFERRED, uri, sha256=right) == "sha256"
        with pytest.raises(IntegrityError):
            _load(uri, sha256=_sha256(b""))

    def test_parts_that_it_does_not_list(self, bucket: str, s3_client: Any) -> None:
        upload = s3_client.create_multipart_upload(Bucket=bucket, Key="model", ChecksumAlgorithm="CRC32")
        content = save_bytes({"w": torch.arange(1_500_000)})
        pieces = [content[: 5 << 20], content[5 << 20 :]]
        told = []
        for number, piece in enumerate(pieces, 1):
            names = {"Bucket": bucket, "Key": "model", "UploadId": upload["UploadId"], "PartNumber": number}
            answer = s3_client.upload_part(Body=piece, ChecksumAlgorithm="CRC32", **names)
            told.append({key: answer[key] for key in ("ETag", "ChecksumCRC32")} | {"PartNumber": number})
        s3_client.complete_multipart_upload(
            Bucket=bucket, Key="model", UploadId=upload["UploadId"], MultipartUpload={"Parts": told}
        )
        _, report = _load(f"s3://{bucket}/model")
        assert report.verified is None
        with pytest.raises(IntegrityError, match="no checksum"):
            _load(f"s3://{bucket}/model", verify=True)


# -- right bytes -------------------------------------------------------------------------------------------


class TestRightBytes:
    @each_way
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("uploaded_in", [None, 1 << 30, 150_001])
    def test_of_the_whole_and_of_parts(
        self, way: Way, algorithm: str, uploaded_in: int | None, faulty_s3: FaultyServer
    ) -> None:
        faulty_s3.put(PATH, way.content, checksum=algorithm, uploaded_in=uploaded_in)
        assert _verified(way) == algorithm
        assert _verified(way, transfer=replace(PARTS, part_size=1 << 30, connections=1)) == algorithm

    def test_more_parts_than_one_answer_lists(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, DEFERRED.content, checksum="crc32", uploaded_in=400)
        assert _verified(DEFERRED) == "crc32"
        assert len(list(filter(_asks_for_parts, faulty_s3.requests))) == 3

    @each_way
    @pytest.mark.parametrize("text", ["lower", "upper"])
    @pytest.mark.parametrize("scheme", ["s3", "web", "file"])
    def test_a_digest(
        self, way: Way, text: str, scheme: str, faulty_s3: FaultyServer, tmp_path: Path
    ) -> None:
        (tmp_path / "model").write_bytes(way.content)
        url = faulty_s3.put(PATH, way.content)
        uri = {"s3": URI, "web": url, "file": str(tmp_path / "model")}[scheme]
        assert _verified(way, uri, sha256=getattr(_sha256(way.content), text)()) == "sha256"

    @each_way
    @pytest.mark.parametrize("length", ["content-length", "chunked"])
    def test_a_server_without_ranges(self, way: Way, length: Length, faulty_s3: FaultyServer) -> None:
        url = faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        faulty_s3.on(IgnoreRange(length), where=_is_object)
        digest = _sha256(way.content)
        for uri in (url, URI):
            assert _verified(way, uri, sha256=digest) == "sha256"
            with pytest.raises(IntegrityError):
                _load(uri, weights_only=way.weights_only, sha256=_sha256(b""))
        if length == "content-length":
            assert _verified(way, verify=True) == "crc64nvme"
        else:
            assert _verified(way) is None
            with pytest.raises(IntegrityError, match="could be compared"):
                _load(URI, weights_only=way.weights_only, verify=True)

    def test_parts_from_a_server_without_ranges(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content, checksum="crc64nvme", uploaded_in=150_000)
        faulty_s3.on(IgnoreRange(), where=_is_object)
        assert _verified(SAFETENSORS) is None
        with pytest.raises(IntegrityError, match="could be compared"):
            _load(URI, verify=True)

    @each_way
    @pytest.mark.parametrize("fault", [Cut(1000), Truncate(1000), S3Error(503, "SlowDown")])
    @pytest.mark.parametrize("by", [{}, {"sha256"}])
    def test_parts_that_were_resumed(
        self, way: Way, fault: Fault, by: set[str], faulty_s3: FaultyServer
    ) -> None:
        faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        for nth in (2, 4, 7):
            faulty_s3.on(fault, nth=nth)
        given = {"sha256": _sha256(way.content)} if by else {}
        assert _verified(way, **given) == ("sha256" if by else "crc64nvme")

    @pytest.mark.parametrize(
        "given", [{}, {"sha256": _sha256(SAFETENSORS.content)}], ids=["stored", "digest"]
    )
    @pytest.mark.parametrize("fault", [Stall(1000), Stall(-1)], ids=repr)
    def test_a_race_that_the_racer_won(
        self, given: dict[str, str], fault: Fault, faulty_s3: FaultyServer
    ) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content, checksum="crc64nvme")
        faulty_s3.on(fault, where=lambda request: (request.range or (0,))[0] > 500_000, nth=1)
        value, report = _load(URI, transfer=replace(PARTS, timeout=30), **given)
        assert SAFETENSORS.holds(value)
        assert report.verified == ("sha256" if given else "crc64nvme")
        assert report.retries == 0  # the line that stalled was not waited for

    @pytest.mark.parametrize("given", [{}, {"sha256": ""}], ids=["stored", "digest"])
    @pytest.mark.parametrize(
        "content",
        [
            save_bytes({"w": torch.arange(10)}),
            save_bytes({}),
            save_bytes({"w": torch.empty(0), "v": torch.empty(0, 7)}),
            save_bytes({"w": torch.arange(10)}, _use_new_zipfile_serialization=False),
            safetensors.torch.save({"w": torch.arange(10)}),
            safetensors.torch.save({}),
            safetensors.torch.save({"w": torch.empty(0), "v": torch.arange(200_000), "x": torch.empty(0)}),
        ],
        ids=["tiny", "no tensor", "empty", "legacy", "safetensors", "no safetensor", "some empty"],
    )
    def test_little_and_nothing(self, content: bytes, given: dict[str, str], faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, content, checksum="crc32c")
        given = {"sha256": _sha256(content)} if given else {}
        _, report = _load(URI, **given)
        assert report.verified == ("sha256" if given else "crc32c")

    def test_a_gap_that_no_tensor_fills(self, faulty_s3: FaultyServer) -> None:
        content = _with_a_gap(600_000)
        faulty_s3.put(PATH, content, checksum="crc64nvme")
        value, report = _load(URI)
        assert (list(value), report.verified) == (["weight", "bias"], "crc64nvme")
        _, report = _load(URI, verify=False)
        assert report.bytes_read < len(content)

    def test_a_gap_too_large_to_be_read_unasked(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, _with_a_gap(2_000_000), checksum="crc64nvme")
        assert _load(URI)[1].verified is None
        assert _load(URI, verify=True)[1].verified == "crc64nvme"
        with pytest.raises(MemoryLimitError, match="no tensor holds"):
            _load(URI, transfer=replace(PARTS, memory_limit=1_000_000), verify=True)

    @pytest.mark.parametrize("case", ODD_CHECKPOINTS, ids=lambda case: case.name)
    def test_every_odd_file(self, case: Any, faulty_s3: FaultyServer, tmp_path: Path) -> None:
        if not case.loads or case.map_location is not None or case.name.startswith("zip_duplicate"):
            return  # two records of one name are refused, where torch takes either
        case.build(tmp_path / "model")
        content = (tmp_path / "model").read_bytes()
        faulty_s3.put(PATH, content, checksum="crc64nvme")
        with case.setting():
            expected = torch.load(tmp_path / "model", **case.options)
            for given in ({"verify": True}, {"sha256": _sha256(content)}):
                value, report = _load(URI, **case.options, **given)
                assert_same(value, expected)
                assert report.verified == ("sha256" if "sha256" in given else "crc64nvme")

    def test_an_exported_program(self, faulty_s3: FaultyServer) -> None:
        buffer = io.BytesIO()
        with quiet():
            torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), buffer)
        faulty_s3.put(PATH, buffer.getvalue(), checksum="crc64nvme")
        assert _load(URI, weights_only=False)[1].verified == "crc64nvme"
        digest = _sha256(buffer.getvalue())
        assert _load(URI, weights_only=False, sha256=digest)[1].verified == "sha256"


def _with_a_gap(size: int) -> bytes:
    """A .pt with a record before its storages that no pickle mentions, and that is in no small read."""
    records = saved_records({"weight": torch.arange(100_000), "bias": torch.arange(100_000)})
    at = next(at for at, record in enumerate(records) if record.name == "data/1")
    return write_zip(under("archive", [*records[:at], Record("notes", bytes(size)), *records[at:]]))


# -- wrong bytes -------------------------------------------------------------------------------------------


class TestWrongBytes:
    @each_way
    @pytest.mark.parametrize("given", [{}, {"sha256": ""}], ids=["stored", "digest"])
    def test_wherever_they_are(self, way: Way, given: dict[str, str], faulty_s3: FaultyServer) -> None:
        """In headers, pickles, tensors, directories, and what lies between them."""
        faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        given = {"sha256": _sha256(way.content)} if given else {}
        size = len(way.content)
        for at in (0, 5, 40, 300, 900, *range(1000, size, size // 12), size - 600, size - 30, size - 1):
            faulty_s3.behave()
            faulty_s3.on(FlipByte(at))
            with pytest.raises((IntegrityError, FormatError)) as caught:
                _load(URI, weights_only=way.weights_only, **given)
            if 2000 < at < size - 20_000:  # among the numbers, which no reader can find fault with
                assert type(caught.value) is IntegrityError

    @each_way
    def test_in_one_of_two_readings(self, way: Way, faulty_s3: FaultyServer) -> None:
        """A flipped byte is seen in an answer that is used, and no matter in one that is not."""
        faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        for nth in range(1, 13):
            for at in (200_000, way.offset(4) + 50, len(way.content) - 100_000):
                faulty_s3.behave()
                faulty_s3.on(FlipByte(at), nth=nth, where=_is_object)
                try:
                    value, _ = _load(URI, weights_only=way.weights_only)
                except (IntegrityError, FormatError):
                    continue
                assert way.holds(value)

    def test_where_two_small_reads_overlap(self, faulty_s3: FaultyServer) -> None:
        """The head and the tail of a small archive share bytes: either copy may be the one that is used."""
        kept = {"a": torch.arange(60_000.0), "b": torch.arange(60_000.0, 75_000.0)}
        content = save_bytes(kept)
        faulty_s3.put(PATH, content, checksum="crc64nvme")
        at = content.index(kept["b"].numpy().tobytes()) + 1000
        assert at < 256 << 10 < at + kept["b"].nbytes - 1000
        for where in (lambda request: (request.range or (1,))[0] > 0, lambda request: True):
            faulty_s3.behave()
            faulty_s3.on(FlipByte(at), where=where)
            with pytest.raises(IntegrityError):
                _load(URI)

    @pytest.mark.parametrize("way", [LEGACY, SAFETENSORS], ids=lambda way: way.name)
    def test_in_one_of_two_streams(self, way: Way, faulty_s3: FaultyServer) -> None:
        """Without ranges the first bytes come twice, and tensors in them are from the first time."""
        faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        for nth in (1, 2):
            faulty_s3.behave()
            faulty_s3.on(IgnoreRange(), where=_is_object)
            faulty_s3.on(FlipByte(200_000), nth=nth, where=_is_object)
            with pytest.raises(IntegrityError):
                _load(URI)

    def test_the_part_is_named(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content, checksum="crc32c", uploaded_in=300_000)
        faulty_s3.on(FlipByte(500_000), where=_is_object)
        with pytest.raises(IntegrityError, match="part that ends at byte 600000"):
            _load(URI)

    @pytest.mark.parametrize("verify", ["auto", True])
    def test_the_error_tells_both(self, verify: Any, server: FaultyServer) -> None:
        server.on(FlipByte(DEFERRED.offset(5)))
        with pytest.raises(IntegrityError) as caught:
            _load(URI, verify=verify)
        error = caught.value
        assert (error.uri, error.algorithm) == (URI, "crc64nvme")
        assert error.expected != error.found
        assert str(error.expected) in str(error)
        assert str(error.found) in str(error)
        assert not any(isinstance(value, torch.Tensor) for value in vars(error).values())
        twin = pickle.loads(pickle.dumps(error))
        assert (str(twin), vars(twin)) == (str(error), vars(error))

    def test_it_may_be_left_out(self, server: FaultyServer) -> None:
        server.on(FlipByte(DEFERRED.offset(5)))
        _, report = _load(URI, verify=False)
        assert report.verified is None
        assert not any(request.method == "HEAD" for request in server.requests)

    def test_a_race_that_brought_them(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content, checksum="crc64nvme")
        faulty_s3.on(Stall(1000), where=lambda request: (request.range or (0,))[0] > 500_000, nth=1)
        faulty_s3.on(FlipByte(550_000))
        with pytest.raises(IntegrityError):
            _load(URI, transfer=replace(PARTS, timeout=30))


class TestDigests:
    @each_way
    def test_a_wrong_one(self, way: Way, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        wrong = _sha256(b"another file")
        with pytest.raises(IntegrityError, match="pinned") as caught:
            _load(URI, weights_only=way.weights_only, sha256=wrong)
        error = caught.value
        assert (error.algorithm, error.expected, error.found) == ("sha256", wrong, _sha256(way.content))

    @pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "xy" * 32, "ab" * 32 + "\n", " " + "ab" * 32])
    def test_what_is_none(self, text: str, server: FaultyServer) -> None:
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            _load(URI, sha256=text)
        assert server.requests == []

    def test_it_is_the_only_one_that_counts(self, server: FaultyServer) -> None:
        server.on(SetHeaders({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}), method="HEAD")
        assert _verified(DEFERRED, sha256=_sha256(DEFERRED.content), verify=True) == "sha256"

    @pytest.mark.parametrize("container", ["zip", "legacy", "tar"])
    def test_nothing_runs_before_it_is_right(
        self, container: str, faulty_s3: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trace = tmp_path / "it ran"
        program = Touches(trace)
        if container == "tar":
            monkeypatch.setattr(legacy, "_tar_pickle", lambda: pickle.dumps(program, 2))
            content = legacy._tar()
        else:
            value = {"weight": torch.arange(100_000), "program": program}
            content = save_bytes(value, _use_new_zipfile_serialization=container == "zip")
        faulty_s3.put(PATH, content, checksum="crc64nvme")
        with pytest.raises(IntegrityError):
            _load(URI, weights_only=False, sha256=_sha256(b""))
        assert not trace.exists()
        _, report = _load(URI, weights_only=False, sha256=_sha256(content))
        assert report.verified == "sha256"
        assert trace.exists()


class Touches:
    """A pickle that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# -- the question ------------------------------------------------------------------------------------------


class TestTheQuestion:
    def test_it_is_refused(self, server: FaultyServer) -> None:
        server.on(S3Error(403, "AccessDenied"), method="HEAD")
        assert _verified(DEFERRED) is None
        with pytest.raises(AccessDeniedError):
            _load(URI, verify=True)

    def test_the_parts_are_refused(self, server: FaultyServer) -> None:
        server.put(PATH, DEFERRED.content, checksum="crc32", uploaded_in=100_000)
        server.on(S3Error(403, "AccessDenied"), where=_asks_for_parts)
        assert _verified(DEFERRED) is None
        assert not any(
            "list-type" in request.query for request in server.requests
        )  # no one has to be told why
        with pytest.raises(AccessDeniedError):
            _load(URI, verify=True)

    @pytest.mark.parametrize("fault", [Cut(0), S3Error(503, "SlowDown"), S3Error(500, "InternalError")])
    @pytest.mark.parametrize("verify", ["auto", True])
    def test_it_fails_once(self, fault: Fault, verify: Any, server: FaultyServer) -> None:
        server.on(fault, method="HEAD", nth=1)
        assert _verified(DEFERRED, verify=verify) == "crc64nvme"

    def test_its_connection_is_reset_once(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, DEFERRED.content, checksum="crc64nvme", uploaded_in=100_000)
        faulty_s3.on(Cut(100), where=_asks_for_parts, nth=1)
        assert _verified(DEFERRED, verify=True) == "crc64nvme"

    @pytest.mark.parametrize("verify", ["auto", True])
    def test_its_answer_comes_byte_by_byte(self, verify: Any, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, DEFERRED.content, checksum="crc64nvme", uploaded_in=20_000)
        faulty_s3.on(Trickle(1, 0.05), where=_asks_for_parts)
        began = time.monotonic()
        if verify is True:
            with pytest.raises(TransferError, match="checksum could not be had"):
                _load(URI, transfer=replace(PARTS, timeout=0.3), verify=True)
        else:
            assert _verified(DEFERRED, transfer=replace(PARTS, timeout=0.3)) is None
        assert time.monotonic() - began < PROMPT

    @pytest.mark.parametrize("fault", [S3Error(503, "SlowDown"), Stall(-1)], ids=["busy", "silent"])
    def test_it_fails_for_ever(self, fault: Fault, server: FaultyServer) -> None:
        server.on(fault, method="HEAD")
        began = time.monotonic()
        assert _verified(DEFERRED, transfer=SHORT) is None
        with pytest.raises(TransferError, match="checksum could not be had"):
            _load(URI, transfer=SHORT, verify=True)
        assert time.monotonic() - began < PROMPT

    @pytest.mark.parametrize("verify", ["auto", True])
    @pytest.mark.parametrize("status", [412, 404])
    def test_it_tells_of_a_change(self, verify: Any, status: int, server: FaultyServer) -> None:
        server.on(S3Error(status, "x"), method="HEAD")
        with pytest.raises(ObjectChangedError):
            _load(URI, verify=verify)

    @pytest.mark.parametrize("verify", ["auto", True])
    def test_the_parts_tell_of_a_change(self, verify: Any, faulty_s3: FaultyServer) -> None:
        """GetObjectAttributes takes no condition: its answer may be about a version that came just then."""
        other = DEFERRED.content[:-100_000] + bytes(100_000)
        faulty_s3.put(PATH, DEFERRED.content, checksum="crc32", uploaded_in=100_000)

        def overwrite() -> None:
            faulty_s3.put(PATH, other, checksum="crc32", uploaded_in=100_000)

        faulty_s3.on(overwrite, where=_asks_for_parts, nth=1)
        with pytest.raises(ObjectChangedError):
            _load(URI, verify=verify)

    @pytest.mark.parametrize(
        "headers",
        [
            {"x-amz-checksum-crc64nvme": None},
            {"x-amz-checksum-crc64nvme": "not base64!"},
            {"x-amz-checksum-crc64nvme": "AAAA"},
            {"x-amz-checksum-crc64nvme": None, "x-amz-checksum-sha256": "AAAA"},
            {"x-amz-checksum-type": "COMPOSITE"},
            {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA=-3"},
        ],
        ids=str,
    )
    def test_what_is_no_checksum(self, headers: dict[str, str | None], server: FaultyServer) -> None:
        server.on(SetHeaders(headers), method="HEAD")
        assert _verified(DEFERRED) is None
        with pytest.raises(IntegrityError, match="no checksum"):
            _load(URI, verify=True)

    @pytest.mark.parametrize(
        "change",
        [
            lambda page: page.replace(b"<Size>100000</Size>", b"", 1),
            lambda page: page.replace(b"<Size>100000</Size>", b"<Size>99999</Size>", 1),
            lambda page: page.replace(b"ChecksumCRC32>", b"ChecksumOther>", 2),
            lambda page: page.replace(b"<IsTruncated>false", b"<IsTruncated>true"),
            lambda page: page.partition(b"<ObjectParts>")[0] + b"</GetObjectAttributesResponse>",
            lambda page: b"",
            lambda page: b"\x00not XML",
        ],
        ids=["no size", "another size", "no checksum", "no end", "no parts", "empty", "not XML"],
    )
    def test_a_list_that_is_not_whole(
        self, change: Callable[[bytes], bytes], faulty_s3: FaultyServer
    ) -> None:
        faulty_s3.put(PATH, DEFERRED.content, checksum="crc32", uploaded_in=100_000)
        faulty_s3.on(Changed(change), where=_asks_for_parts)
        assert _verified(DEFERRED) in (None, "crc32")
        pages = list(filter(_asks_for_parts, faulty_s3.requests))
        assert len(pages) <= 2

    def test_a_server_that_sends_the_object_for_the_list(self, faulty_s3: FaultyServer) -> None:
        """One that does not know `?attributes` answers as if it were not there: no one reads all of that."""
        content = save_bytes({"w": torch.arange(1_000_000)})
        faulty_s3.put(PATH, content)
        faulty_s3.on(SetHeaders({"x-amz-checksum-crc32": "AAAAAA==-2"}), method="HEAD")
        faulty_s3.on(Trickle(1 << 20, 0.5), where=_asks_for_parts)
        began = time.monotonic()
        _, report = _load(URI)
        assert report.verified is None
        assert time.monotonic() - began < PROMPT

    @pytest.mark.parametrize("verify", ["auto", True])
    def test_ctrl_c_while_it_is_not_answered(self, verify: Any, server: FaultyServer) -> None:
        asked = threading.Event()
        server.on(Stall(-1), method="HEAD")
        server.on(asked.set, method="HEAD")
        script = (
            "import sys, threading, torch, torch.serialization, torchwick\n"
            "config = torchwick.TransferConfig(timeout=30)\n"
            f"try: torchwick.load({URI!r}, verify={verify!r}, transfer=config)\n"
            "except KeyboardInterrupt:\n"
            "    print([t.name for t in threading.enumerate() if t.name.startswith('torchwick-')])\n"
        )
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert asked.wait(30)
                time.sleep(1)  # the rest arrives, and the load waits for nothing else
                os.kill(process.pid, signal.SIGINT)
                began = time.monotonic()
                out, _ = process.communicate(timeout=30)
            finally:
                process.kill()
        assert time.monotonic() - began < PROMPT
        assert (process.returncode, out) == (0, "[]\n")

    def test_an_error_of_the_load_does_not_wait_for_it(self, server: FaultyServer) -> None:
        server.on(Stall(-1), method="HEAD")
        server.on(S3Error(403, "AccessDenied"), nth=2)
        began = time.monotonic()
        with pytest.raises(AccessDeniedError):
            _load(URI, transfer=replace(PARTS, timeout=30))
        assert time.monotonic() - began < PROMPT


@pytest.mark.usefixtures("aws_env")
def test_nothing_to_verify_by(tmp_path: Path, faulty: FaultyServer) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(DEFERRED.content)
    for uri in (str(path), faulty.put(PATH, DEFERRED.content)):
        assert _verified(DEFERRED, uri) is None
        with pytest.raises(IntegrityError, match="no checksum"):
            _load(uri, verify=True)


class TestShapesOnly:
    """No bytes are read, so that none can be verified; none are read to be verified, either."""

    @pytest.mark.parametrize("way", [DEFERRED, SAFETENSORS], ids=lambda way: way.name)
    @pytest.mark.parametrize("faking", [False, True], ids=["meta", "fake"])
    def test_it(self, way: Way, faking: bool, faulty_s3: FaultyServer) -> None:
        def load(**given: Any) -> tuple[Any, LoadReport]:
            if faking:
                with FakeTensorMode():
                    return _load(URI, **given)
            return _load(URI, map_location="meta", **given)

        faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        value, report = load()
        assert {name: tensor.shape for name, tensor in value.items()} == {
            name: tensor.shape for name, tensor in state().items()
        }
        assert report.verified is None
        assert report.bytes_read < len(way.content) - PART
        for given in ({"verify": True}, {"sha256": _sha256(way.content)}):
            with pytest.raises(ValueError, match="no bytes are read"):
                load(**given)


class Changed:
    """Answer with a body that was changed."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self._change = change

    def apply(self, request: Request, reply: Reply) -> None:
        reply.body = self._change(reply.body)
