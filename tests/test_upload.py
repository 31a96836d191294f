"""Uploads to a real S3 server: every byte arrives, appears only when all are there, and nothing is left."""

from __future__ import annotations

import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest

from conftest import random_bytes
from torchwick import S3Config, TransferConfig
from torchwick.config import PutOptions
from torchwick.errors import ObjectExistsError, URIError
from torchwick.saving.s3_folder import S3Folder
from torchwick.store import open_writable
from torchwick.transfer import Receipt, Uploads
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torchwick.demo.server import SeaweedFS

MIB = 1 << 20
SMALL_PARTS = TransferConfig(part_size=5 * MIB, connections=4)


def pieces(content: bytes, size: int) -> Iterator[memoryview]:
    """The content in writes of one size."""
    view = memoryview(content)
    return (view[start : start + size] for start in range(0, len(view), size))


@pytest.fixture
def uploads(aws_env: SeaweedFS) -> Callable[..., Uploads]:
    """Makes a group of uploads to the real server."""

    def make(config: TransferConfig = SMALL_PARTS, **more: Any) -> Uploads:
        return Uploads(open_writable(parse("s3://any/key"), S3Config(), config.timeout), config, **more)

    return make


def send(
    group: Uploads, uri: str, writes: Iterable[memoryview | bytes], size: int, *, overwrite: bool = False
) -> Receipt:
    with group:
        upload = group.begin(parse(uri), size, overwrite=overwrite)
        for data in writes:
            upload.write(data)
        upload.end()
        return group.complete()[0]


def stored(client: Any, bucket: str, key: str) -> bytes:
    content: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def unfinished(client: Any, bucket: str, prefix: str = "") -> list[str]:
    listed = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    return [upload["Key"] for upload in listed.get("Uploads", [])]


@pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 17 * MIB])
@pytest.mark.parametrize("written", [3 * MIB + 7, 1 << 30], ids=["odd-writes", "one-write"])
def test_every_byte_arrives_and_its_checksum_is_confirmed(
    uploads: Callable[..., Uploads], s3_client: Any, shared_bucket: str, size: int, written: int
) -> None:
    content, key = random_bytes(size), f"sizes/{size}-{written}"
    receipt = send(uploads(), f"s3://{shared_bucket}/{key}", pieces(content, written), size)
    assert stored(s3_client, shared_bucket, key) == content
    head = s3_client.head_object(Bucket=shared_bucket, Key=key, ChecksumMode="ENABLED")
    assert (receipt.size, receipt.etag, receipt.checksum) == (size, head["ETag"], "crc64nvme")
    assert head["ChecksumCRC64NVME"]
    parts = -(-size // (5 * MIB))
    assert receipt.requests == (1 if size < 5 * MIB else parts + 2)
    assert receipt.retries == 0


def test_many_tiny_writes_are_joined(
    uploads: Callable[..., Uploads], s3_client: Any, shared_bucket: str
) -> None:
    chosen = random.Random(1)
    writes = [random_bytes(chosen.choice([1, 7, 100, 3000, 20_000]), seed) for seed in range(4000)]
    content = b"".join(writes)
    receipt = send(uploads(), f"s3://{shared_bucket}/tiny", writes, len(content))
    assert stored(s3_client, shared_bucket, "tiny") == content
    assert receipt.requests == -(-len(content) // (5 * MIB)) + 2


@pytest.mark.parametrize("size", [100, 6 * MIB], ids=["one-request", "parts"])
def test_what_exists_is_not_overwritten(
    uploads: Callable[..., Uploads], s3_client: Any, bucket: str, size: int
) -> None:
    s3_client.put_object(Bucket=bucket, Key="model", Body=b"precious")
    with pytest.raises(ObjectExistsError, match=f"s3://{bucket}/model.*overwrite=True"):
        send(uploads(), f"s3://{bucket}/model", [bytes(size)], size)
    assert stored(s3_client, bucket, "model") == b"precious"
    assert unfinished(s3_client, bucket) == []
    send(uploads(), f"s3://{bucket}/model", [bytes(size)], size, overwrite=True)
    assert stored(s3_client, bucket, "model") == bytes(size)


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_what_is_broken_off_leaves_nothing(
    uploads: Callable[..., Uploads], s3_client: Any, bucket: str, raised: type[BaseException]
) -> None:
    def writes() -> Iterator[bytes]:
        yield random_bytes(12 * MIB)
        assert unfinished(s3_client, bucket) == ["model"]
        raise raised

    with pytest.raises(raised):
        send(uploads(), f"s3://{bucket}/model", writes(), 20 * MIB)
    assert unfinished(s3_client, bucket) == []
    assert "Contents" not in s3_client.list_objects_v2(Bucket=bucket)


def test_what_is_left_without_completing_leaves_nothing(
    uploads: Callable[..., Uploads], s3_client: Any, bucket: str
) -> None:
    with uploads() as group:
        upload = group.begin(parse(f"s3://{bucket}/model"), 6 * MIB, overwrite=False)
        upload.write(bytes(6 * MIB))
        upload.end()
        group.wait()
        assert unfinished(s3_client, bucket) == ["model"]
    assert unfinished(s3_client, bucket) == []


@pytest.mark.parametrize("written", [5 * MIB, 7 * MIB], ids=["less", "more"])
def test_what_is_written_must_be_what_was_announced(
    uploads: Callable[..., Uploads], s3_client: Any, bucket: str, written: int
) -> None:
    with pytest.raises(ValueError, match="announced"):
        send(uploads(), f"s3://{bucket}/model", [bytes(written)], 6 * MIB)
    assert unfinished(s3_client, bucket) == []


def test_nothing_is_completed_before_its_end(uploads: Callable[..., Uploads], bucket: str) -> None:
    with uploads() as group:
        group.begin(parse(f"s3://{bucket}/model"), 6 * MIB, overwrite=False)
        with pytest.raises(ValueError, match="not all of it was written"):
            group.complete()


@pytest.mark.parametrize("size", [100, 6 * MIB], ids=["one-request", "parts"])
def test_options_are_kept_with_the_object(
    uploads: Callable[..., Uploads], s3_client: Any, shared_bucket: str, size: int
) -> None:
    options = PutOptions(
        content_type="application/x-model",
        tags={"team": "a & b", "stage": "x=y"},
        metadata={"step": "12 000"},
    )
    key = f"options-{size}"
    send(uploads(options=options), f"s3://{shared_bucket}/{key}", [bytes(size)], size)
    head = s3_client.head_object(Bucket=shared_bucket, Key=key)
    assert (head["ContentType"], head["Metadata"]) == ("application/x-model", {"step": "12 000"})
    tags = s3_client.get_object_tagging(Bucket=shared_bucket, Key=key)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "a & b", "stage": "x=y"}


def test_several_objects_appear_together_and_in_order(
    aws_env: SeaweedFS, s3_client: Any, bucket: str
) -> None:
    s3_client.put_object(Bucket=bucket, Key="m/old", Body=b"outdated")
    contents = {"a": random_bytes(11 * MIB), "b": random_bytes(6 * MIB, 1), "index": b"{}"}
    with S3Folder(parse(f"s3://{bucket}/m"), overwrite=False, transfer=SMALL_PARTS) as folder:
        folder.reserve(sum(map(len, contents.values())))
        for name, content in contents.items():
            with folder.create(name, len(content)) as sink:
                sink.write(content)
        assert [entry["Key"] for entry in s3_client.list_objects_v2(Bucket=bucket)["Contents"]] == ["m/old"]
        folder.commit(outdated=["old"])
    found = [entry["Key"] for entry in s3_client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert found == ["m/a", "m/b", "m/index"]
    assert {name: stored(s3_client, bucket, f"m/{name}") for name in contents} == contents
    assert list(folder.receipts) == ["a", "b", "index"]
    assert folder.connections >= 1


def commit_three(folder: S3Folder, before: Callable[[], object]) -> None:
    for name in "abc":
        with folder.create(name, 6 * MIB) as sink:
            sink.write(bytes(6 * MIB))
    before()
    folder.commit()


def test_a_folder_takes_back_what_had_appeared(aws_env: SeaweedFS, s3_client: Any, bucket: str) -> None:
    folder = S3Folder(parse(f"s3://{bucket}/m/"), overwrite=False, transfer=SMALL_PARTS)
    with pytest.raises(ObjectExistsError, match="m/b"), folder:
        commit_three(folder, lambda: s3_client.put_object(Bucket=bucket, Key="m/b", Body=b"precious"))
    assert [entry["Key"] for entry in s3_client.list_objects_v2(Bucket=bucket)["Contents"]] == ["m/b"]
    assert stored(s3_client, bucket, "m/b") == b"precious"
    assert unfinished(s3_client, bucket) == []


def test_progress_reaches_the_end(uploads: Callable[..., Uploads], shared_bucket: str) -> None:
    told: list[int] = []
    with uploads(on_progress=lambda done, connections: told.append(done)) as group:
        for name, size in (("progress/a", 100), ("progress/b", 6 * MIB), ("progress/c", 50)):
            upload = group.begin(parse(f"s3://{shared_bucket}/{name}"), size, overwrite=True)
            upload.write(bytes(size))
            upload.end()
        group.complete()
    assert told[-1] == 6 * MIB + 150


def test_in_a_bucket_with_versions_nothing_of_a_failed_folder_stays(
    aws_env: SeaweedFS, s3_client: Any, bucket: str
) -> None:
    s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    folder = S3Folder(parse(f"s3://{bucket}/m/"), overwrite=False, transfer=SMALL_PARTS)
    with pytest.raises(ObjectExistsError, match="m/c"), folder:
        commit_three(folder, lambda: s3_client.put_object(Bucket=bucket, Key="m/c", Body=b"precious"))
    listed = s3_client.list_object_versions(Bucket=bucket)
    assert [version["Key"] for version in listed["Versions"]] == ["m/c"]
    assert "DeleteMarkers" not in listed


def test_the_version_is_told(uploads: Callable[..., Uploads], s3_client: Any, bucket: str) -> None:
    s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for size in (100, 6 * MIB):
        receipt = send(uploads(), f"s3://{bucket}/model", [bytes(size)], size, overwrite=True)
        assert receipt.version == s3_client.head_object(Bucket=bucket, Key="model")["VersionId"]


def test_memory_that_is_held_is_bounded(uploads: Callable[..., Uploads], bucket: str) -> None:
    """The writer waits for the senders: no more than the limit and one part lie unsent."""
    told: list[int] = []
    config = TransferConfig(part_size=5 * MIB, connections=1, memory_limit=10 * MIB)
    with uploads(config, on_progress=lambda done, connections: told.append(done)) as group:
        upload = group.begin(parse(f"s3://{bucket}/model"), 60 * MIB, overwrite=False)
        for written in range(12):
            upload.write(bytes(5 * MIB))
            assert sum(sender.there for sender in group._crew._senders) >= (written - 2) * 5 * MIB
        upload.end()
        group.wait()
        group.complete()
    assert told == sorted(told)
    assert told[-1] == 60 * MIB


@pytest.mark.parametrize("uri", ["s3://bucket/key?versionId=1", "s3://bucket/folder/"])
def test_only_objects_are_written(uploads: Callable[..., Uploads], uri: str) -> None:
    with uploads() as group, pytest.raises(URIError, match="cannot be written to"):
        group.begin(parse(uri), 1, overwrite=False)


@pytest.mark.parametrize("uri", ["https://host/model.pt", "/some/model.pt"])
def test_only_s3_is_uploaded_to(uri: str) -> None:
    with pytest.raises(URIError, match="only to S3"):
        open_writable(parse(uri), S3Config(), 5.0)


def test_options_pickle_and_refuse_what_cannot_be_sent() -> None:
    options = PutOptions(storage_class="STANDARD_IA", tags={"a": "b"})
    assert pickle.loads(pickle.dumps(options)) == options
    for wrong in (
        {"metadata": {"name": "Grüße"}},
        {"metadata": {"na me": "x"}},
        {"metadata": {"name": "two\nlines"}},
        {"content_type": "a\r\nb"},
        {"server_side_encryption": "none"},
        {"kms_key_id": "alias/mine"},
        {"expected_bucket_owner": "me"},
    ):
        with pytest.raises(ValueError, match=f"PutOptions.{next(iter(wrong))}"):
            PutOptions(**wrong)
