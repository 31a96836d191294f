"""One contract for every store: what a connection answers does not depend on where the bytes live."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conftest import random_bytes
from faults import Stall, Truncate
from torchwick import AccessDeniedError, ObjectChangedError, ObjectNotFoundError, S3Config, StoreError
from torchwick.store import Connection, Listing, ObjectInfo, Store, open_store
from torchwick.store.web import WebStore
from torchwick.uri import URI, parse

if TYPE_CHECKING:
    from conftest import Put
    from faulty import FaultyServer

SIZE = 300_000
CONTENT = random_bytes(SIZE)
TIMEOUT = 30.0  # seconds; far longer than any of these tests may take
PROMPT = 1.0  # seconds within which an abort must be felt


@dataclasses.dataclass
class Place:
    """A store, and how to put an object there.

    Attributes:
        put: stores bytes under a name, and returns their address.
        config: how to reach the store.
        server: the server behind it, where that one counts connections and misbehaves on cue.
    """

    put: Callable[[str, bytes], str]
    config: S3Config = dataclasses.field(default_factory=S3Config)
    server: FaultyServer | None = None

    def store(self, uri: URI) -> Store:
        return open_store(uri, self.config, TIMEOUT)


SERVED = ["web", "web-tls", "s3", "s3-tls"]
PLACES = ["file", "s3-real", *SERVED]


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    name: str = request.param
    if name == "file":
        return Place(lambda key, content: _write(tmp_path / key, content))
    if name == "s3-real":
        request.getfixturevalue("aws_env")
        bucket: str = request.getfixturevalue("shared_bucket")
        put: Put = request.getfixturevalue("put")
        folder = uuid.uuid4().hex
        return Place(lambda key, content: put(bucket, f"{folder}/{key}", content))
    server: FaultyServer = request.getfixturevalue("faulty_tls" if name.endswith("-tls") else "faulty")
    if name.startswith("web"):
        config = S3Config(ca_bundle=str(server.ca_file)) if server.ca_file else S3Config()
        return Place(lambda key, content: server.put(f"bucket/{key}", content), config, server)
    for variable, value in server.environment().items():
        monkeypatch.setenv(variable, value)

    def put_s3(key: str, content: bytes) -> str:
        server.put(f"bucket/{key}", content)
        return f"s3://bucket/{key}"

    return Place(put_s3, server=server)


def _write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)
listable = pytest.mark.parametrize("place", ["file", "s3-real", "s3", "s3-tls"], indirect=True)
over_the_wire = pytest.mark.parametrize("place", SERVED, indirect=True)


@pytest.fixture
def uri(place: Place) -> URI:
    return parse(place.put("model.pt", CONTENT))


@pytest.fixture
def store(place: Place, uri: URI) -> Store:
    return place.store(uri)


@pytest.fixture
def connection(store: Store) -> Iterator[Connection]:
    connected = store.connect()
    yield connected
    connected.release()


def read(connection: Connection, uri: URI, start: int, stop: int | None, **options: Any) -> bytes:
    """Ask for a range, and read all that comes."""
    return read_with_info(connection, uri, start, stop, **options)[0]


def read_with_info(
    connection: Connection, uri: URI, start: int, stop: int | None, *, step: int = 1 << 16, **options: Any
) -> tuple[bytes, ObjectInfo]:
    """Ask for a range, read all that comes into buffers of `step` bytes, and tell whose bytes they are."""
    received, buffer = bytearray(), memoryview(bytearray(step))
    body = connection.get(uri, start, stop, **options)
    try:
        while count := body.readinto(buffer):
            received += buffer[:count]
    finally:
        body.close()
    return bytes(received), body.info


@everywhere
class TestRanges:
    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 1), (0, SIZE), (5, 10), (SIZE - 1, SIZE), (5, None), (0, None), (7, SIZE + 9), (-3, None)],
    )
    def test_the_bytes_asked_for(
        self, connection: Connection, uri: URI, start: int, stop: int | None
    ) -> None:
        assert read(connection, uri, start, stop) == CONTENT[start:stop]

    def test_more_from_the_end_than_there_is(self, connection: Connection, uri: URI) -> None:
        assert read(connection, uri, -SIZE - 9, None) == CONTENT

    def test_beyond_the_end_is_nothing(self, connection: Connection, uri: URI) -> None:
        assert read(connection, uri, SIZE, SIZE + 10) == b""

    def test_the_body_says_where_it_begins_and_ends(self, connection: Connection, uri: URI) -> None:
        body = connection.get(uri, 7, SIZE + 9)
        assert (body.start, body.stop) == (7, SIZE)
        body.close()

    def test_one_connection_answers_again_and_again(self, connection: Connection, uri: URI) -> None:
        for start in range(0, 50, 10):
            assert read(connection, uri, start, start + 10) == CONTENT[start : start + 10]

    def test_a_body_may_be_left_half_read(self, connection: Connection, uri: URI) -> None:
        body = connection.get(uri, 0, SIZE)
        body.readinto(memoryview(bytearray(10)))
        body.close()
        assert read(connection, uri, 5, 10) == CONTENT[5:10]

    @pytest.mark.parametrize("step", [1, 7, 8191, 8192, 8193, SIZE + 1])
    def test_buffers_small_and_large(self, connection: Connection, uri: URI, step: int) -> None:
        stop = min(SIZE, 2000 * step)
        assert read(connection, uri, 5, stop, step=step) == CONTENT[5:stop]

    def test_small_and_large_buffers_in_turn(self, connection: Connection, uri: URI) -> None:
        body, received = connection.get(uri, 0, SIZE), bytearray()
        for step in (1, 9000, 3, 100_000, 8192, SIZE):
            buffer = memoryview(bytearray(step))
            received += buffer[: body.readinto(buffer)]
        while count := body.readinto(buffer):
            received += buffer[:count]
        assert bytes(received) == CONTENT
        body.close()

    def test_not_a_byte_beyond_the_answer_is_touched(self, connection: Connection, uri: URI) -> None:
        buffer = memoryview(bytearray(b"\xaa" * 100))
        body = connection.get(uri, 0, 10)
        while body.readinto(buffer):
            pass
        assert bytes(buffer[10:]) == b"\xaa" * 90
        body.close()


@everywhere
class TestObjects:
    def test_it_is_described(self, connection: Connection, uri: URI) -> None:
        _, info = read_with_info(connection, uri, 5, 10)
        assert (info.uri, info.size, info.ranged, info.version) == (uri, SIZE, True, None)
        assert info.etag

    def test_the_description_does_not_depend_on_the_range(self, connection: Connection, uri: URI) -> None:
        ranges = [(0, 10), (5, None), (-3, None), (0, SIZE)]
        assert len({read_with_info(connection, uri, *asked)[1] for asked in ranges}) == 1

    def test_the_pinned_version_is_read(self, connection: Connection, uri: URI) -> None:
        _, info = read_with_info(connection, uri, 0, 1)
        assert read(connection, uri, 5, 10, pinned=info) == CONTENT[5:10]

    def test_another_version_than_the_pinned_one(
        self, place: Place, connection: Connection, uri: URI
    ) -> None:
        _, info = read_with_info(connection, uri, 0, 1)
        place.put("model.pt", CONTENT[::-1])
        with pytest.raises(ObjectChangedError) as caught:
            read(connection, uri, 5, 10, pinned=info)
        assert caught.value.uri == str(uri)

    def test_another_size_than_the_pinned_one(self, place: Place, connection: Connection, uri: URI) -> None:
        _, info = read_with_info(connection, uri, 0, 1)
        place.put("model.pt", CONTENT[:1000])
        with pytest.raises(ObjectChangedError):
            read(connection, uri, 5, 10, pinned=info)

    def test_there_is_none(self, connection: Connection, uri: URI) -> None:
        missing = dataclasses.replace(uri, key=f"{uri.key}.missing")
        with pytest.raises(ObjectNotFoundError) as caught:
            connection.get(missing, 0, 10)
        assert caught.value.uri == str(missing)
        assert read(connection, uri, 5, 10) == CONTENT[5:10]  # the connection goes on

    def test_zero_bytes(self, place: Place, connection: Connection) -> None:
        empty = parse(place.put("empty.pt", b""))
        received, info = read_with_info(connection, empty, 0, 10)
        assert (received, info.size, info.uri) == (b"", 0, empty)

    def test_one_byte(self, place: Place, connection: Connection) -> None:
        tiny = parse(place.put("tiny.pt", b"x"))
        assert read(connection, tiny, 0, 1 << 18) == b"x"

    def test_two_objects_in_turn(self, place: Place, connection: Connection, uri: URI) -> None:
        other = parse(place.put("other.pt", CONTENT[::-1]))
        for _ in range(2):
            assert read(connection, uri, 5, 10) == CONTENT[5:10]
            assert read(connection, other, 5, 10) == CONTENT[::-1][5:10]

    def test_something_is_done_while_waiting(self, connection: Connection, uri: URI) -> None:
        calls: list[str] = []
        read(connection, uri, 5, 10, while_waiting=lambda: calls.append("called"))
        assert calls == ["called"]


@pytest.fixture
def directory(place: Place) -> URI:
    """A directory with one object in it."""
    return parse(place.put("llama/model.pt", CONTENT).removesuffix("model.pt"))


@pytest.fixture
def lister(place: Place, directory: URI) -> Iterator[Connection]:
    connected = place.store(directory).connect()
    yield connected
    connected.release()


def names(listing: Listing | None, directory: URI) -> list[str]:
    """The names in a listing; their addresses must lead back to them."""
    assert listing is not None
    found = [info.uri.key.removeprefix(directory.key) for info in listing]
    assert [info.uri for info in listing] == [directory.child(name) for name in found]
    return found


@listable
class TestListing:
    ODD = (
        "a b.pt",
        "a+b.pt",
        "a%20b.pt",
        "50%.pt",
        "модель 🙂.pt",
        "a&b=c.pt",
        "<a>.pt",
        "'a'.pt",
        "#1.pt",
        "?.pt",
    )

    def test_what_lies_directly_in_it(self, place: Place, lister: Connection, directory: URI) -> None:
        for name in ("llama/config.json", "llama/old/model.pt", "llama2/model.pt", "llama.pt", "above.pt"):
            place.put(name, b"{}")
        listing = lister.list(directory)
        assert names(listing, directory) == ["config.json", "model.pt"]
        assert listing is not None
        assert [info.size for info in listing] == [2, SIZE]

    def test_directories_in_it(self, place: Place, lister: Connection, directory: URI) -> None:
        for name in ("llama/a b/model.pt", "llama/old/1/model.pt", "llama/old/2.pt", "llama2/model.pt"):
            place.put(name, b"{}")
        entries = lister.entries(directory)
        assert entries is not None
        shown = [(info.uri.key.removeprefix(directory.key), info.size) for info in entries]
        assert shown == [("a b/", None), ("model.pt", SIZE), ("old/", None)]

    def test_it_need_not_have_its_slash(self, lister: Connection, directory: URI) -> None:
        bare = dataclasses.replace(directory, key=directory.key.rstrip("/"))
        assert lister.list(bare) == lister.list(directory) != []

    def test_any_name(self, place: Place, lister: Connection, directory: URI) -> None:
        for name in self.ODD:
            place.put(f"llama/{name}", CONTENT[:10])
        listing = lister.list(directory)
        assert names(listing, directory) == sorted([*self.ODD, "model.pt"])
        assert listing is not None
        for info in listing:
            assert read(lister, info.uri, 0, 5, pinned=info) == CONTENT[:5]

    def test_any_name_of_the_directory(self, place: Place, lister: Connection) -> None:
        odd = parse(place.put("a b+c%20 модель/model.pt", CONTENT).removesuffix("model.pt"))
        assert names(lister.list(odd), odd) == ["model.pt"]

    def test_one_that_holds_only_others(self, place: Place, lister: Connection, directory: URI) -> None:
        place.put("llama/steps/1/model.pt", CONTENT)
        assert lister.list(directory.child("steps").as_directory()) == []

    def test_zero_bytes(self, place: Place, lister: Connection, directory: URI) -> None:
        place.put("llama/empty.pt", b"")
        listing = lister.list(directory)
        assert listing is not None
        assert [info.size for info in listing] == [0, SIZE]

    def test_it_pins_what_it_lists(self, lister: Connection, directory: URI) -> None:
        listed = lister.list(directory)
        assert listed is not None
        received, info = read_with_info(lister, listed[0].uri, 5, 10, pinned=listed[0])
        assert received == CONTENT[5:10]
        assert (info.uri, info.size, info.etag) == (listed[0].uri, listed[0].size, listed[0].etag)

    @pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:1000]], ids=["bytes", "size"])
    def test_what_was_overwritten_since(
        self, place: Place, lister: Connection, directory: URI, content: bytes
    ) -> None:
        listed = lister.list(directory)
        assert listed is not None
        place.put("llama/model.pt", content)
        with pytest.raises(ObjectChangedError):
            read(lister, listed[0].uri, 0, 10, pinned=listed[0])

    def test_reads_go_on_over_the_same_connection(self, lister: Connection, directory: URI) -> None:
        for _ in range(2):
            assert names(lister.list(directory), directory) == ["model.pt"]
            assert read(lister, directory.child("model.pt"), 5, 10) == CONTENT[5:10]


@pytest.mark.parametrize("place", ["web", "web-tls"], indirect=True)
def test_the_web_lists_nothing(lister: Connection, directory: URI) -> None:
    assert lister.list(directory) is None
    assert lister.entries(directory) is None
    assert read(lister, directory.child("model.pt"), 5, 10) == CONTENT[5:10]


@pytest.mark.parametrize("place", ["s3-real", "s3", "s3-tls"], indirect=True)
class TestListingOfS3:
    def test_a_prefix_of_nothing(self, lister: Connection, directory: URI) -> None:
        assert lister.list(directory.child("none").as_directory()) == []

    def test_the_object_that_stands_for_it(self, place: Place, lister: Connection, directory: URI) -> None:
        place.put("llama/", b"")
        assert names(lister.list(directory), directory) == ["model.pt"]

    def test_a_whole_bucket(self, place: Place, lister: Connection, directory: URI) -> None:
        root = dataclasses.replace(directory, key="")
        listing = lister.list(root)
        assert listing is not None
        assert not any("/" in info.uri.key for info in listing)

    def test_more_than_a_page(self, place: Place, lister: Connection) -> None:
        shards = [f"{number:05}.pt" for number in range(1005)]
        if place.server is None:
            with ThreadPoolExecutor(8) as pool:
                uris = list(pool.map(lambda name: place.put(f"many/{name}", b"x"), shards))
        else:
            uris = [place.put(f"many/{name}", b"x") for name in shards]
        many = parse(uris[0].removesuffix(shards[0]))
        assert names(lister.list(many), many) == shards


@pytest.mark.parametrize("place", ["file"], indirect=True)
class TestListingOfFiles:
    def test_there_is_none(self, lister: Connection, directory: URI) -> None:
        with pytest.raises(ObjectNotFoundError, match="no such directory") as caught:
            lister.list(directory.child("none"))
        assert caught.value.uri == f"{directory}none/"

    def test_it_is_a_file(self, lister: Connection, directory: URI) -> None:
        with pytest.raises(StoreError, match="it is a file"):
            lister.list(directory.child("model.pt"))

    def test_it_may_not_be_read(
        self, lister: Connection, directory: URI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: str) -> None:  # as the system does, though not to root
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("os.scandir", refuse)
        with pytest.raises(AccessDeniedError, match="Check its mode"):
            lister.list(directory)

    def test_a_directory_is_no_object(self, lister: Connection, directory: URI) -> None:
        with pytest.raises(StoreError, match="is a directory"):
            lister.get(directory, 0, 10)

    def test_links(self, lister: Connection, directory: URI) -> None:
        folder = Path(directory.key)  # as the cache of huggingface_hub keeps them
        (folder / "kept").mkdir()
        (folder / "kept" / "5ec3e7").write_bytes(CONTENT[:10])
        (folder / "linked.pt").symlink_to(Path("kept", "5ec3e7"))
        (folder / "linked").symlink_to("kept")
        (folder / "dangling.pt").symlink_to("none")
        os.mkfifo(folder / "pipe")
        listing = lister.list(directory)
        assert names(listing, directory) == ["linked.pt", "model.pt"]
        assert listing is not None
        assert read(lister, listing[0].uri, 0, 10, pinned=listing[0]) == CONTENT[:10]


@everywhere
class TestEnds:
    def test_an_aborted_connection_reads_no_more(self, store: Store, uri: URI) -> None:
        connection = store.connect()
        read(connection, uri, 0, 10)
        connection.abort()
        for _ in range(2):
            with pytest.raises(OSError):  # noqa: PT011 - whichever the network raises
                read(connection, uri, 0, SIZE)
        connection.release()

    def test_the_next_connection_is_not_aborted(self, store: Store, uri: URI) -> None:
        connection = store.connect()
        connection.abort()
        connection.release()
        after = store.connect()
        assert read(after, uri, 5, 10) == CONTENT[5:10]
        after.release()

    def test_a_reset_connection_goes_on(self, connection: Connection, uri: URI) -> None:
        connection.get(uri, 0, SIZE).readinto(memoryview(bytearray(10)))
        connection.reset()
        connection.reset()
        assert read(connection, uri, 5, 10) == CONTENT[5:10]

    def test_connections_at_once(self, store: Store, uri: URI) -> None:
        first, second = store.connect(), store.connect()
        one, two = first.get(uri, 0, 10), second.get(uri, 10, 20)
        buffers = [memoryview(bytearray(10)) for _ in range(2)]
        assert [one.readinto(buffers[0]), two.readinto(buffers[1])] == [10, 10]
        assert bytes(buffers[0]) + bytes(buffers[1]) == CONTENT[:20]
        one.close()
        two.close()
        first.release()
        second.release()


@over_the_wire
class TestLines:
    @staticmethod
    def _server(place: Place) -> FaultyServer:
        assert place.server is not None
        return place.server

    def test_one_line_serves_many_requests(self, place: Place, connection: Connection, uri: URI) -> None:
        for start in range(5):
            read(connection, uri, start, start + 10)
        assert self._server(place).connections == 1

    def test_a_refusal_keeps_the_line(self, place: Place, connection: Connection, uri: URI) -> None:
        with pytest.raises(ObjectNotFoundError):
            connection.get(dataclasses.replace(uri, key=f"{uri.key}.missing"), 0, 10)
        read(connection, uri, 0, 10)
        reads = [request for request in self._server(place).requests if request.range is not None]
        assert len({request.connection for request in reads}) == 1  # S3's reason was asked for over another

    def test_a_released_line_serves_the_next_connection(self, place: Place, store: Store, uri: URI) -> None:
        for _ in range(3):
            connection = store.connect()
            read(connection, uri, 0, 10)
            connection.release()
        assert self._server(place).connections == 1

    def test_a_half_read_answer_costs_the_line(self, place: Place, connection: Connection, uri: URI) -> None:
        connection.get(uri, 0, SIZE).close()
        read(connection, uri, 0, 10)
        assert self._server(place).connections == 2

    def test_a_line_that_the_server_closed(self, place: Place, connection: Connection, uri: URI) -> None:
        server = self._server(place)
        server.on(Truncate(10), nth=1)  # after which it closes, with nothing of these ten bytes missing
        assert read(connection, uri, 0, 10) == CONTENT[:10]
        assert read(connection, uri, 5, 10) == CONTENT[5:10]

    @pytest.mark.parametrize("after", [-1, 0, 1000], ids=["head", "body", "middle"])
    def test_an_abort_wakes_a_stalled_read(self, place: Place, store: Store, uri: URI, after: int) -> None:
        server, asked = self._server(place), threading.Event()
        server.on(Stall(after))
        server.on(asked.set)
        connection, errors = store.connect(), list[Exception]()

        def read_on() -> None:
            try:
                read(connection, uri, 0, SIZE)
            except OSError as error:
                errors.append(error)

        reader = threading.Thread(target=read_on)
        reader.start()
        assert asked.wait(TIMEOUT)
        started = time.monotonic()
        connection.abort()
        reader.join(TIMEOUT)
        assert time.monotonic() - started < PROMPT
        assert len(errors) == 1
        connection.release()


def test_a_forgotten_store_closes_its_lines(faulty: FaultyServer) -> None:
    uri = parse(faulty.put("bucket/model.pt", CONTENT))
    store = WebStore(S3Config(), TIMEOUT, secure=False)
    connection = store.connect()
    read(connection, uri, 0, 10)
    connection.release()
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        del store, connection
        gc.collect()
    assert complaints == []
