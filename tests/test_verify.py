"""`verify` sees every byte within little memory, finds what is wrong, and says what it could not tell."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from checkpoints.base import quiet
from checkpoints.zipcraft import Record, saved_records, under, write_zip
from conftest import run_python
from faults import Cut, FlipByte, IgnoreRange, S3Error, Stall
from faulty import FaultyServer
from torchwick import FormatError, ObjectNotFoundError, Progress, TransferConfig, TransferError
from torchwick.cli import app
from torchwick.inspection import NotFinite, Verification, verify
from trials import PARTS, WAYS, Way, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults import Request

PATH = "models/new.pt"
URI = f"s3://{PATH}"
ALGORITHMS = ["crc64nvme", "crc32c", "crc32"]
OPENED = [way for way in WAYS if way.name != ".pt, sparse"]
DEFERRED, LEGACY, SAFETENSORS, SCRIPT = OPENED
TIGHT = replace(PARTS, memory_limit=300_000)  # four parts
NAN, INF = math.nan, math.inf

each_way = pytest.mark.parametrize("way", OPENED, ids=lambda way: way.name)


@pytest.fixture(scope="module")
def lasting() -> Iterator[FaultyServer]:
    """One server for all tests: a new one takes a new client of botocore."""
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


def look(uri: str | Path = URI, **options: Any) -> Verification:
    return verify(uri, **{"transfer": PARTS, **options})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_object(request: Request) -> bool:
    return request.method == "GET" and (not request.query or request.query.startswith("x-id"))


def problems(found: Verification) -> list[str]:
    return [problem for object_ in found.objects for problem in object_.problems]


class TestRightBytes:
    @each_way
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("uploaded_in", [None, 150_001])
    def test_against_what_the_store_keeps(
        self, way: Way, algorithm: str, uploaded_in: int | None, faulty_s3: FaultyServer
    ) -> None:
        faulty_s3.put(PATH, way.content, checksum=algorithm, uploaded_in=uploaded_in)
        for config in (PARTS, TIGHT, TransferConfig()):
            found = look(transfer=config)
            assert (found.verdict, found.complete, problems(found)) == ("ok", True, [])
            (object_,) = found.objects
            assert object_.checksums == (algorithm,)
            assert (object_.uri, object_.size, object_.unverified) == (URI, len(way.content), None)
            assert object_.records == (way in (DEFERRED, SCRIPT))
            assert found.bytes_read >= len(way.content)

    @each_way
    @pytest.mark.parametrize("kept", [None, "crc32c"])
    def test_against_a_digest(self, way: Way, kept: str | None, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, way.content, checksum=kept)
        found = look(sha256=sha256(way.content).upper())
        assert (found.verdict, found.complete) == ("ok", True)
        assert found.objects[0].checksums == ("sha256", *([kept] if kept else []))

    def test_in_order_while_the_first_part_is_late(self, faulty_s3: FaultyServer) -> None:
        """Parts that came before it are kept, within the ceiling, until it is there."""
        faulty_s3.put(PATH, SAFETENSORS.content)
        faulty_s3.on(Stall(1000), nth=2, where=is_object)  # the first is that of the header
        found = look(sha256=sha256(SAFETENSORS.content), transfer=replace(TIGHT, timeout=1))
        assert (found.verdict, found.objects[0].checksums) == ("ok", ("sha256",))

    @pytest.mark.parametrize("way", [LEGACY, SAFETENSORS], ids=lambda way: way.name)
    @pytest.mark.parametrize("broken", [False, True])
    def test_a_server_without_ranges(self, way: Way, broken: bool, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, way.content, checksum="crc64nvme", uploaded_in=150_001)
        faulty_s3.on(IgnoreRange(), where=is_object)
        if broken:
            faulty_s3.on(Cut(500_000), nth=2, where=is_object)
        found = look(sha256=sha256(way.content), finite=True)
        assert (found.verdict, problems(found), found.not_finite) == ("ok", [], ())
        assert found.objects[0].checksums == ("sha256", "crc64nvme")
        assert found.objects[0].size == len(way.content)
        assert look(sha256=sha256(b"")).verdict == "failed"

    def test_a_real_server(self, aws_env: Any, put: Any, shared_bucket: str) -> None:
        found = verify(put(shared_bucket, "verify/new.pt", DEFERRED.content))
        assert (found.verdict, found.objects[0].checksums) == ("ok", ("crc32",))

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "new.pt").write_bytes(DEFERRED.content)
        found = look(tmp_path / "new.pt")
        assert (found.verdict, found.complete) == ("ok", False)
        assert found.objects[0].unverified == "the store keeps no checksum"
        assert found.objects[0].records

    def test_records_without_a_crc32(self, tmp_path: Path) -> None:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(state(), tmp_path / "new.pt")
        finally:
            torch.serialization.set_crc32_options(True)
        found = look(tmp_path / "new.pt")
        assert (found.verdict, found.objects[0].records) == ("ok", False)

    def test_how_far_it_is(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content)
        told: list[Progress] = []
        look(progress=told.append)
        assert (told[-1].uri, told[-1].done, told[-1].total) == (URI, *[len(SAFETENSORS.content)] * 2)


class TestWrongBytes:
    @each_way
    def test_wherever_they_are(self, way: Way, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, way.content, checksum="crc64nvme")
        size = len(way.content)
        for at in (0, 40, 900, *range(1000, size, size // 7), size - 30, size - 1):
            faulty_s3.behave()
            faulty_s3.on(FlipByte(at))
            try:
                found = look()
            except FormatError:
                assert not 2000 < at < size - 20_000  # which no reader can find fault with
            else:
                assert found.verdict == "failed"
                assert any("crc64nvme" in problem for problem in problems(found))

    def test_a_digest(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content)
        faulty_s3.on(FlipByte(500_000))
        found = look(sha256=sha256(SAFETENSORS.content))
        assert found.verdict == "failed"
        assert "sha256" in problems(found)[0]

    def test_the_part_is_named(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content, checksum="crc32c", uploaded_in=300_000)
        faulty_s3.on(FlipByte(500_000))
        assert "part that ends at byte 600000" in problems(look())[0]

    def test_a_record(self, tmp_path: Path) -> None:
        """Where no one keeps a checksum, the archive itself has one of each record."""
        content = bytearray(DEFERRED.content)
        content[DEFERRED.offset(4) + 50] ^= 1
        (tmp_path / "new.pt").write_bytes(content)
        assert problems(look(tmp_path / "new.pt")) == [
            "record 'data/4' has another CRC-32 than the archive's directory says"
        ]

    @pytest.mark.parametrize("config", [PARTS, TIGHT, TransferConfig()])
    @pytest.mark.parametrize(
        ("way", "before"), [(DEFERRED, 0), (SCRIPT, 0), (LEGACY, 8)], ids=lambda x: getattr(x, "name", x)
    )
    def test_a_landmark(self, way: Way, before: int, config: TransferConfig, tmp_path: Path) -> None:
        content = bytearray(way.content)
        at = content.rindex(b"PK\3\4", 0, way.offset(7)) if not before else way.offset(7) - before
        content[at] ^= 1
        (tmp_path / "new.pt").write_bytes(content)
        assert f"something else than belongs there is at byte {at}" in problems(
            look(tmp_path / "new.pt", transfer=config)
        )

    def test_an_object_that_was_cut_short(self, faulty_s3: FaultyServer) -> None:
        for way in OPENED:
            faulty_s3.put(PATH, way.content[:-10_000])
            with pytest.raises(FormatError):
                look()

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ObjectNotFoundError):
            verify(tmp_path / "none.pt")

    def test_what_cannot_be_read(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content)
        faulty_s3.on(S3Error(500, "InternalError"), where=lambda r: (r.range or (0,))[0] > 500_000)
        with pytest.raises(TransferError):
            look(transfer=replace(PARTS, max_attempts=2))

    @pytest.mark.parametrize(("what", "uploaded_in"), [("HEAD", None), ("attributes", 300_000)])
    def test_a_store_that_does_not_tell(
        self, what: str, uploaded_in: int | None, faulty_s3: FaultyServer
    ) -> None:
        faulty_s3.put(PATH, SAFETENSORS.content, checksum="crc32", uploaded_in=uploaded_in)
        faulty_s3.on(
            S3Error(403, "AccessDenied"), method=None, where=lambda r: r.method == what or what in r.query
        )
        found = look()
        assert (found.verdict, found.complete) == ("ok", False)
        assert str(found.objects[0].unverified).startswith("the store does not tell its checksum: ")

    def test_a_digest_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="64 hexadecimal"):
            verify(URI, sha256="abc")


def shards(folder: Path, checkpoint: dict[str, torch.Tensor], count: int = 3) -> None:
    """Write a checkpoint as Hugging Face does, over several files."""
    names = {
        name: f"model-{at % count + 1:05}-of-{count:05}.safetensors" for at, name in enumerate(checkpoint)
    }
    for shard in set(names.values()):
        inside = {name: checkpoint[name] for name in checkpoint if names[name] == shard}
        safetensors.torch.save_file(inside, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


class TestDirectories:
    def test_all_that_is_wrong_is_told(self, faulty_s3: FaultyServer, tmp_path: Path) -> None:
        shards(tmp_path, state())
        for path in sorted(tmp_path.iterdir()):
            faulty_s3.put(f"models/sharded/{path.name}", path.read_bytes(), checksum="crc64nvme")
        uri = "s3://models/sharded/"
        assert (look(uri).verdict, len(look(uri).objects), look(uri).complete) == ("ok", 3, True)
        faulty_s3.on(FlipByte(200_000), where=lambda request: "00002-of" not in request.path)
        found = look(uri)
        assert found.verdict == "failed"
        assert [len(object_.problems) for object_ in found.objects] == [1, 0, 1]
        assert found.objects[2].uri == f"{uri}model-00003-of-00003.safetensors"

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        shards(tmp_path, state())
        (tmp_path / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(FormatError, match="00002"):
            verify(f"{tmp_path}/")

    def test_a_digest_is_of_one_object(self, tmp_path: Path) -> None:
        shards(tmp_path, state())
        with pytest.raises(ValueError, match="directory"):
            verify(f"{tmp_path}/", sha256="0" * 64)

    def test_distributed(self, tmp_path: Path) -> None:
        values = {"w": torch.arange(90_000.0).view(300, 300), "v": torch.tensor([NAN, INF, -INF, 1, NAN])}
        with quiet():
            dcp.state_dict_saver.save(values, checkpoint_id=tmp_path / "step", no_dist=True)
        found = look(f"{tmp_path}/step/", finite=True)
        assert (found.format, found.tensors) == ("dcp", 2)
        assert found.not_finite == (NotFinite("v", "F32", 2, 1, 1),)
        assert not problems(found)


FLOATING = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
]


def expected_counts(tensor: torch.Tensor) -> tuple[int, int, int]:
    """What torch itself counts, over the whole tensor in double precision."""
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    wide = tensor.to(torch.float64)
    return int(wide.isnan().sum()), int((wide == INF).sum()), int((wide == -INF).sum())


@st.composite
def odd_values(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype with elements that are not finite, as some view of its storage."""
    dtype = draw(st.sampled_from(FLOATING))
    numel = draw(st.sampled_from([1, 6, 60, 90_000]))
    part = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
    plain = torch.ones(numel * (2 if dtype in part else 1))
    for at in draw(st.lists(st.integers(0, plain.numel() - 1), max_size=5)):
        plain[at] = draw(st.sampled_from([NAN, INF, -INF, 0.5]))
    plain = plain.to(part.get(dtype, dtype))
    tensor = torch.view_as_complex(plain.view(-1, 2)) if dtype in part else plain
    if numel % 6:
        return tensor
    views = [tensor, tensor.view(2, -1).t(), tensor.view(-1, 3)[:, 1:], tensor[2:], tensor[:1].expand(5)]
    return draw(st.sampled_from(views if dtype not in part else [*views, tensor.conj()]))


class TestFinite:
    @hypothesis.settings(
        max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
    )
    @hypothesis.given(
        tensors=st.lists(odd_values(), min_size=1, max_size=4),
        part_size=st.sampled_from([70_001, 100_003, 1 << 24]),
        new=st.booleans(),
        tied=st.booleans(),
    )
    def test_it_counts_as_torch_does(
        self, tensors: list[torch.Tensor], part_size: int, new: bool, tied: bool, tmp_path: Path
    ) -> None:
        named = {f"t{at}": tensor for at, tensor in enumerate(tensors)}
        if tied:
            named |= {"tied": tensors[0], "within": tensors[-1].reshape(-1)[:3]}
        kinds = {tensor.dtype for tensor in tensors}
        new = new or bool(kinds - {torch.float16, torch.bfloat16, torch.float32, torch.float64})
        torch.save(named, tmp_path / "new.pt", _use_new_zipfile_serialization=new)
        with quiet():  # torch has words about complex32
            found = verify(tmp_path / "new.pt", finite=True, transfer=TransferConfig(part_size=part_size))
        assert found.not_finite is not None
        counted = {f.name: (f.nan, f.positive, f.negative) for f in found.not_finite}
        told = {name: expected_counts(tensor) for name, tensor in named.items()}
        assert counted == {name: counts for name, counts in told.items() if any(counts)}
        assert found.verdict == ("failed" if counted else "ok")

    @pytest.mark.parametrize("part_size", [99_991, 65_537])
    def test_elements_that_two_parts_share(self, part_size: int, tmp_path: Path) -> None:
        """Every element is odd, so that each one that a boundary cuts is counted, and once."""
        values = {"d": torch.full((70_000,), NAN, dtype=torch.float64), "h": torch.full((9,), -INF)}
        safetensors.torch.save_file(values, tmp_path / "m.safetensors")
        config = TransferConfig(part_size=part_size, memory_limit=1 << 20)
        found = verify(tmp_path / "m.safetensors", finite=True, transfer=config)
        assert found.not_finite is not None
        assert {(f.name, f.nan, f.negative) for f in found.not_finite} == {("d", 70_000, 0), ("h", 0, 9)}

    def test_the_other_byteorder(self, tmp_path: Path) -> None:
        swapped = torch.tensor([1.0, NAN, 2.0, INF]).view(torch.uint8).view(-1, 4).flip(1).view(torch.float32)
        records = [
            Record(r.name, b"big") if r.name == "byteorder" else r
            for r in saved_records({"w": swapped.view(-1).clone()})
        ]
        (tmp_path / "new.pt").write_bytes(write_zip(under("archive", records)))
        found = verify(tmp_path / "new.pt", finite=True)
        assert found.not_finite == (NotFinite("w", "F32", 1, 1, 0),)

    def test_whole_numbers_are_finite(self, tmp_path: Path) -> None:
        torch.save({"i": torch.full((9,), -1), "b": torch.ones(3, dtype=torch.bool)}, tmp_path / "new.pt")
        assert verify(tmp_path / "new.pt", finite=True).not_finite == ()

    def test_only_if_asked(self, tmp_path: Path) -> None:
        torch.save({"w": torch.tensor([NAN])}, tmp_path / "new.pt")
        found = verify(tmp_path / "new.pt")
        assert (found.verdict, found.not_finite) == ("ok", None)


_MEMORY = """
import resource, sys
import torchwick
from torchwick.inspection import verify
import torchwick.store, torchwick.transfer, awscrt.checksums, torchwick.inspection.verify_objects
if sys.argv[2] == "finite":
    import torch, torchwick.inspection.verify_finite
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
config = torchwick.TransferConfig(memory_limit="64MB")
options = {"sha256": sys.argv[3]} if sys.argv[3] else {}
found = verify(sys.argv[1], finite=sys.argv[2] == "finite", transfer=config, **options)
assert found.objects[0].size > 400_000_000, found
print(peak() - before, found.verdict, "torch" in sys.modules)
"""


@pytest.mark.parametrize("what", ["bytes", "finite"])
@pytest.mark.parametrize("digest", ["", "0" * 64], ids=["no digest", "digest"])
def test_memory_stays_flat(what: str, digest: str, tmp_path: Path) -> None:
    """A file of 400 MB, all of it a hole."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [100_000_000], "data_offsets": [0, 400_000_000]}})
    with (tmp_path / "m.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 400_000_000)
    grown, verdict, torch_there = run_python(_MEMORY, str(tmp_path / "m.safetensors"), what, digest).split()
    assert verdict == ("failed" if digest else "ok")
    assert torch_there == str(what == "finite")
    assert int(grown) * 1024 < 100_000_000


class TestCommand:
    def _run(self, *arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def test_sound(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, DEFERRED.content, checksum="crc64nvme")
        result = self._run(URI)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0] == f"{URI} (torch zip, 9 tensors): ok"
        assert "crc64nvme, its records' crc32" in result.stdout
        assert "no checksum" not in result.stdout

    def test_damaged(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put(PATH, DEFERRED.content, checksum="crc64nvme")
        faulty_s3.on(FlipByte(DEFERRED.offset(5)))
        result = self._run(URI, "--json")
        assert result.exit_code == 1
        told = json.loads(result.stdout)
        assert (told["verdict"], told["complete"], told["not_finite"]) == ("failed", True, None)
        assert len(told["objects"][0]["problems"]) == 2
        assert "failed" in self._run(URI).stdout

    def test_what_could_not_be_told(self, tmp_path: Path) -> None:
        (tmp_path / "m.safetensors").write_bytes(SAFETENSORS.content)
        result = self._run(tmp_path / "m.safetensors")
        assert result.exit_code == 0
        assert "the store keeps no checksum" in result.stdout
        assert "It was held against no checksum of all bytes." in result.stdout

    def test_a_digest(self, tmp_path: Path) -> None:
        (tmp_path / "new.pt").write_bytes(DEFERRED.content)
        assert self._run(tmp_path / "new.pt", "--sha256", sha256(DEFERRED.content)).exit_code == 0
        assert self._run(tmp_path / "new.pt", "--sha256", sha256(b"")).exit_code == 1
        assert self._run(tmp_path / "new.pt", "--sha256", "abc").exit_code == 2

    def test_names_are_no_markup(self, tmp_path: Path) -> None:
        torch.save({"[red]w[/red]\x1b[2J": torch.tensor([NAN])}, tmp_path / "new.pt")
        result = self._run(tmp_path / "new.pt", "--finite")
        assert result.exit_code == 1
        assert "[red]w[/red]\\x1b[2J" in result.stdout
        assert "\x1b" not in result.stdout

    def test_all_finite(self, tmp_path: Path) -> None:
        torch.save({"w": torch.ones(2)}, tmp_path / "new.pt")
        result = self._run(tmp_path / "new.pt", "--finite", "--memory-limit", "1MB")
        assert (result.exit_code, "All elements are finite." in result.stdout) == (0, True)

    def test_what_is_not_whole_is_a_failure_and_what_is_not_there_none(self, tmp_path: Path) -> None:
        (tmp_path / "new.pt").write_bytes(DEFERRED.content[:-10_000])
        result = self._run(tmp_path / "new.pt")
        assert (result.exit_code, "FormatError" in result.stderr) == (1, True)
        result = self._run(tmp_path / "none.pt", "--json")
        assert (result.exit_code, json.loads(result.stdout)["error"]["type"]) == (2, "ObjectNotFoundError")

    def test_torch_is_not_needed(self, tmp_path: Path) -> None:
        (tmp_path / "new.pt").write_bytes(DEFERRED.content)
        script = (
            "import sys\n"
            "from torchwick.cli import app\n"
            "try:\n"
            "    app(['verify', sys.argv[1], '--json'])\n"
            "except SystemExit as ended:\n"
            "    assert not ended.code\n"
            "print('torch' in sys.modules)\n"
        )
        assert run_python(script, str(tmp_path / "new.pt")).endswith("False\n")
