"""`diff` finds every difference, by as many as it is, whatever the formats and however little memory."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from checkpoints.base import quiet, save_bytes
from conftest import run_python
from faults import S3Error
from torchwick import AccessDeniedError, FormatError, ObjectNotFoundError, Progress, TransferConfig
from torchwick.cli import app
from torchwick.inspection import Difference, ValueDifference, diff

if TYPE_CHECKING:
    from collections.abc import Iterable

    from faulty import FaultyServer

NAN, INF = math.nan, math.inf
STATE = {
    "embed": torch.arange(60_000.0).view(300, 200),
    "half": torch.linspace(-1, 1, 7).to(torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
}


def put(path: Path, state: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        path.write_bytes(save_bytes(state))
    return path


def compared(folder: Path, one: Any, other: Any, **options: Any) -> ValueDifference:
    """Compare two tensors, and return how their values differ."""
    sides = [put(folder / f"{side}.pt", {"w": value}) for side, value in zip("ab", (one, other), strict=True)]
    with quiet():
        (pair,) = diff(*sides, **options).tensors
    assert pair.values is not None
    return pair.values


class TestEqual:
    @pytest.mark.parametrize("a", ["a.pt", "a.safetensors"])
    @pytest.mark.parametrize("b", ["b.pt", "b.safetensors"])
    def test_in_whatever_format(self, a: str, b: str, tmp_path: Path) -> None:
        found = diff(put(tmp_path / a, STATE), put(tmp_path / b, STATE))
        assert found.equal
        assert not found.same_object
        assert {pair.name for pair in found.tensors} == set(STATE)
        assert all(pair.values == ValueDifference(True, 0, 0.0, 0.0, 0.0) for pair in found.tensors)

    def test_however_it_lies_there(self, tmp_path: Path) -> None:
        base = torch.arange(60_000.0)
        tied = {"w": base.view(300, 200).t(), "v": base, "x": base[3:9:2], "e": base[:1].expand(1000, 7)}
        plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tied.items()}
        a, b = put(tmp_path / "a.pt", tied), put(tmp_path / "b.safetensors", plain)
        for limit in (10_000, 300_000, "1GB"):
            assert diff(a, b, transfer=TransferConfig(memory_limit=limit)).equal

    def test_distributed_and_sharded(self, tmp_path: Path) -> None:
        with quiet():
            dcp.state_dict_saver.save(dict(STATE), checkpoint_id=tmp_path / "step", no_dist=True)
        a = put(tmp_path / "a.safetensors", STATE)
        assert diff(f"{tmp_path}/step/", a).equal
        (tmp_path / "sharded").mkdir()
        for number, names in enumerate((["embed", "mask"], ["half", "steps", "none"]), 1):
            path = tmp_path / "sharded" / f"model-{number:05}-of-00002.safetensors"
            put(path, {name: STATE[name] for name in names})
        for limit in (100_000, "1GB"):
            config = TransferConfig(memory_limit=limit)
            assert diff(f"{tmp_path}/step/", f"{tmp_path}/sharded/", transfer=config).equal

    def test_bits_that_mean_the_same(self, tmp_path: Path) -> None:
        nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
        values = compared(tmp_path, torch.tensor([0.0, *nans]), torch.tensor([-0.0, *nans.flip(0)]))
        assert values == ValueDifference(False, 0, 0.0, 0.0, 0.0)
        assert values.equal


class TestSameObject:
    def test_it_is_said_and_nothing_is_read(self, faulty_s3: FaultyServer) -> None:
        faulty_s3.put("models/a.pt", save_bytes({"w": torch.ones(500_000)}))
        found = diff("s3://models/a.pt", "s3://models/a.pt")
        assert (found.equal, found.same_object, found.values) == (True, True, False)
        assert found.tensors[0].values is None
        assert len(faulty_s3.requests) <= 4

    def test_another_key_of_the_same_tag_is_read(self, faulty_s3: FaultyServer) -> None:
        """A tag may be made from a date and a size."""
        for key, value in (("a", 1.0), ("b", 2.0)):
            faulty_s3.put(f"models/{key}.pt", save_bytes({"w": torch.full((9,), value)}), etag='"tag"')
        found = diff("s3://models/a.pt", "s3://models/b.pt")
        assert (found.same_object, found.equal) == (False, False)

    def test_another_version_is_read(self, faulty_s3: FaultyServer, tmp_path: Path) -> None:
        faulty_s3.put("models/a.pt", save_bytes({"w": torch.ones(9)}))
        a = put(tmp_path / "a.pt", {"w": torch.ones(9)})
        assert not diff("s3://models/a.pt", a).same_object


class TestNames:
    def test_those_that_only_one_has(self, tmp_path: Path) -> None:
        a = put(tmp_path / "a.pt", {"w": torch.ones(2), "old": torch.ones(3)})
        b = put(tmp_path / "b.safetensors", {"w": torch.ones(2), "new": torch.ones(3)})
        found = diff(a, b)
        assert (found.only_in_a, found.only_in_b, found.equal) == (("old",), ("new",), False)
        assert [pair.name for pair in found.tensors] == ["w"]

    def test_a_prefix_on_either_side(self, tmp_path: Path) -> None:
        a = put(tmp_path / "a.pt", {"module.w": torch.ones(2), "b": torch.ones(3)})
        b = put(tmp_path / "b.pt", {"w": torch.ones(2), "module.b": torch.ones(3)})
        assert diff(a, b, strip="module.").equal
        assert not diff(a, b).tensors

    def test_a_prefix_that_makes_two_of_one_name(self, tmp_path: Path) -> None:
        a = put(tmp_path / "a.pt", {"module.w": torch.ones(2), "w": torch.ones(3)})
        with pytest.raises(ValueError, match="two tensors are called 'w'"):
            diff(a, a, strip="module.")

    def test_names_that_look_like_patterns(self, tmp_path: Path) -> None:
        state = {"w*": torch.ones(2), "w1": torch.zeros(2), "[w]": torch.ones(1)}
        assert diff(put(tmp_path / "a.pt", state), put(tmp_path / "b.safetensors", state)).equal


class TestHeaders:
    def test_shapes(self, tmp_path: Path) -> None:
        a, b = (
            put(tmp_path / "a.pt", {"w": torch.ones(2, 3)}),
            put(tmp_path / "b.pt", {"w": torch.ones(3, 2)}),
        )
        found = diff(a, b)
        assert not found.equal
        (pair,) = found.different
        assert (pair.shapes, pair.values) == (((2, 3), (3, 2)), None)

    def test_dtypes_are_a_difference_and_values_are_compared(self, tmp_path: Path) -> None:
        exact = torch.tensor([1.0, 1.0078125 + 2**-12])
        a, b = put(tmp_path / "a.pt", {"w": exact}), put(tmp_path / "b.pt", {"w": exact.bfloat16()})
        (pair,) = diff(a, b).different
        assert pair.dtypes == ("F32", "BF16")
        assert pair.values is not None
        assert (pair.values.differing, pair.values.largest) == (1, 2**-12)

    def test_values_may_be_left_out(self, tmp_path: Path) -> None:
        a, b = put(tmp_path / "a.pt", {"w": torch.ones(2)}), put(tmp_path / "b.pt", {"w": torch.zeros(2)})
        found = diff(a, b, values=False)
        assert (found.equal, found.values, found.tensors[0].values) == (True, False, None)


def exactly(one: Iterable[Any], other: Iterable[Any]) -> tuple[int, float, float]:
    """How many differ, by how much at most, and on average; in fractions, one by one."""
    apart: list[float | Fraction] = []
    for a, b in zip(one, other, strict=True):
        if a == b or (math.isnan(a) and math.isnan(b)):
            apart.append(Fraction(0))
        elif math.isfinite(a) and math.isfinite(b):
            apart.append(abs(Fraction(a) - Fraction(b)))
        else:
            apart.append(INF)
    return sum(d > 0 for d in apart), float(max(apart)), float(sum(apart)) / len(apart)


NUMBERS = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.uint32,
        torch.int64,
        torch.uint64,
    ),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
]


def numbers(tensor: torch.Tensor) -> list[Any]:
    """The elements as Python's numbers."""
    floating = tensor.dtype.is_floating_point
    return (tensor.to(torch.float64) if floating else tensor).reshape(-1).tolist()


class TestValues:
    @hypothesis.settings(
        max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
    )
    @hypothesis.given(
        data=st.data(),
        dtype=st.sampled_from(NUMBERS),
        limit=st.sampled_from([1000, 4096, "1GB"]),
        shape=st.sampled_from([(96,), (8, 12), (2, 3, 16), (1,), ()]),
    )
    def test_any_bits_of_any_dtype(
        self, data: st.DataObject, dtype: torch.dtype, limit: Any, shape: tuple[int, ...], tmp_path: Path
    ) -> None:
        size = math.prod(shape) * dtype.itemsize
        bits = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
        flips = data.draw(st.dictionaries(st.integers(0, size - 1), st.integers(0, 255), max_size=4))
        others = bits[:]
        for at, value in flips.items():
            others[at] = value
        if dtype == torch.bool:
            bits, others = (bytearray(b & 1 for b in both) for both in (bits, others))
        one, other = (
            torch.frombuffer(both, dtype=torch.uint8).view(dtype).view(shape) for both in (bits, others)
        )
        found = compared(tmp_path, one, other, transfer=TransferConfig(memory_limit=limit))
        differing, largest, mean = exactly(numbers(one), numbers(other))
        assert (found.differing, found.identical) == (differing, bits == others)
        assert found.largest == pytest.approx(largest, rel=1e-12)
        assert found.mean == pytest.approx(mean, rel=1e-12)

    def test_whole_numbers_beyond_double_precision(self, tmp_path: Path) -> None:
        values = compared(tmp_path, torch.tensor([2**62, -(2**62)]), torch.tensor([2**62 + 1, -(2**62)]))
        assert (values.differing, values.largest) == (1, 1.0)

    def test_relative(self, tmp_path: Path) -> None:
        values = compared(tmp_path, torch.tensor([4.0, 100.0, 0.0]), torch.tensor([3.0, 101.0, 0.0]))
        assert (values.largest, values.relative) == (1.0, 0.25)
        assert values.mean == pytest.approx(2 / 3)

    def test_what_is_not_finite(self, tmp_path: Path) -> None:
        values = compared(tmp_path, torch.tensor([NAN, INF, -INF, 1.0]), torch.tensor([NAN, INF, -INF, 2.0]))
        assert (values.differing, values.largest, values.relative) == (1, 1.0, 0.5)
        for one, other in ((NAN, 1.0), (1.0, INF), (INF, -INF)):
            values = compared(tmp_path, torch.tensor([one]), torch.tensor([other]))
            assert (values.differing, values.largest, values.relative, values.mean) == (1, INF, INF, INF)

    def test_complex_ones(self, tmp_path: Path) -> None:
        one = torch.tensor([3 + 4j, 1 + 1j])
        values = compared(tmp_path, one, torch.tensor([0j, 1 + 1j]))
        assert (values.differing, values.largest, values.relative) == (1, 5.0, 1.0)
        assert compared(tmp_path, one.conj(), one.conj().resolve_conj()).equal

    def test_float4(self, tmp_path: Path) -> None:
        def file(name: str, octets: bytes) -> Path:
            header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
            (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + octets)
            return tmp_path / name

        found = diff(file("a.safetensors", b"\x10\x27"), file("b.safetensors", b"\x18\xa7"))
        (pair,) = found.tensors
        assert pair.values is not None  # 0 and -0 are one; the last is 1 and -1
        assert (pair.values.differing, pair.values.largest) == (1, 2.0)

    def test_many_tensors_and_large_ones(self, tmp_path: Path) -> None:
        one = {f"t{at}": torch.full((at * 300 + 1,), float(at)) for at in range(40)}
        other = {name: tensor.clone() for name, tensor in one.items()}
        for at in (0, 7, 39):
            other[f"t{at}"][-1] += 0.5
        a, b = put(tmp_path / "a.pt", one), put(tmp_path / "b.safetensors", other)
        for limit in (20_000, 100_000, "1GB"):
            found = diff(a, b, transfer=TransferConfig(memory_limit=limit))
            assert {pair.name for pair in found.different} == {"t0", "t7", "t39"}


def test_how_far_it_is(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a.pt", STATE), put(tmp_path / "b.safetensors", STATE)
    told: list[Progress] = []
    diff(a, b, progress=told.append, transfer=TransferConfig(memory_limit=500_000))
    total = sum(tensor.nbytes for tensor in STATE.values())
    assert len(told) > 3
    assert [progress.done for progress in told] == sorted({progress.done for progress in told})
    assert (told[-1].uri, told[-1].done, told[-1].total) == (str(a), total, total)


class TestRefused:
    def test_what_cannot_be_read(self, faulty_s3: FaultyServer, tmp_path: Path) -> None:
        state = {f"t{at}": torch.ones(250_000) for at in range(8)}
        faulty_s3.put("models/b.pt", save_bytes(state))
        faulty_s3.on(
            S3Error(403, "AccessDenied"), where=lambda r: 5_000_000 < (r.range or (0,))[0] < 7_000_000
        )
        config = TransferConfig(memory_limit=8_000_000)
        with pytest.raises(AccessDeniedError):
            diff(put(tmp_path / "a.pt", state), "s3://models/b.pt", transfer=config)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        a = put(tmp_path / "a.pt", STATE)
        with pytest.raises(ObjectNotFoundError):
            diff(a, tmp_path / "none.pt")

    def test_what_is_cut_short(self, tmp_path: Path) -> None:
        a = put(tmp_path / "a.pt", STATE)
        (tmp_path / "b.pt").write_bytes(a.read_bytes()[:-1000])
        with pytest.raises(FormatError):
            diff(a, tmp_path / "b.pt")


_MEMORY = """
import resource, sys, torch, torchwick
import torchwick.store, torchwick.transfer, torchwick.inspection.diff_values
from torchwick.inspection import diff
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
found = diff(*sys.argv[1:], transfer=torchwick.TransferConfig(memory_limit="64MB"))
assert [pair.values.differing for pair in found.tensors] == [1, 0]
print(peak() - before)
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Two files of 240 MB, all but one byte of which are holes."""
    places = {"w": (0, 200_000_000), "v": (200_000_000, 240_000_000)}
    header = json.dumps(
        {
            name: {"dtype": "F16", "shape": [(stop - start) // 2], "data_offsets": [start, stop]}
            for name, (start, stop) in places.items()
        }
    )
    for name in ("a.safetensors", "b.safetensors"):
        with (tmp_path / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header.encode())
            file.truncate(8 + len(header) + 240_000_000)
    with (tmp_path / "b.safetensors").open("r+b") as file:
        file.seek(150_000_000)
        file.write(b"\1")
    grown = run_python(_MEMORY, str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert int(grown) * 1024 < 130_000_000


class TestCommand:
    def _run(self, *arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, ["diff", *map(str, arguments)], env={"COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    @pytest.fixture
    def sides(self, tmp_path: Path) -> tuple[Path, Path]:
        a = put(tmp_path / "a.pt", {"w": torch.ones(3), "v": torch.ones(4), "same": torch.ones(1)})
        state = {"w": torch.tensor([1.0, 1.5, 1.0]), "v": torch.ones(2, 2).half(), "same": torch.ones(1)}
        return a, put(tmp_path / "b.safetensors", state | {"[red]new\x1b[2J": torch.ones(1)})

    def test_different(self, sides: tuple[Path, Path]) -> None:
        result = self._run(*sides)
        assert result.exit_code == 1
        assert "different" in result.stdout
        for told in (
            "values: 1 of 3 differ; largest 0.5, relative 0.333, mean 0.167",
            "dtype: A F32, B F16",
            "shape: A [4], B [2, 2]",
            "[red]new\\x1b[2J",
            "3 in both: 1 equal, 2 different; 0 only in A, 1 only in B",
        ):
            assert told in result.stdout
        assert "same" not in result.stdout
        assert "same" in self._run(*sides, "--all").stdout

    def test_equal(self, sides: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "c.pt").write_bytes(sides[0].read_bytes())
        result = self._run(sides[0], tmp_path / "c.pt")
        assert (result.exit_code, "equal" in result.stdout) == (0, True)

    def test_the_same(self, sides: tuple[Path, Path]) -> None:
        result = self._run(sides[0], sides[0])
        assert (result.exit_code, "the same object" in result.stdout) == (0, True)

    def test_json(self, sides: tuple[Path, Path]) -> None:
        result = self._run(*sides, "--json")
        assert result.exit_code == 1
        told = json.loads(result.stdout)
        assert told["equal"] is False
        tensors = {tensor["name"]: tensor for tensor in told["tensors"]}
        assert tensors["w"]["values"]["largest"] == 0.5
        assert tensors["v"] == {
            "equal": False,
            "name": "v",
            "dtypes": ["F32", "F16"],
            "shapes": [[4], [2, 2]],
            "values": None,
        }

    def test_json_has_no_infinity(self, tmp_path: Path) -> None:
        a, b = (
            put(tmp_path / "a.pt", {"w": torch.tensor([NAN])}),
            put(tmp_path / "b.pt", {"w": torch.ones(1)}),
        )
        told = self._run(a, b, "--json").stdout
        assert "Infinity" not in told
        assert json.loads(told)["tensors"][0]["values"]["largest"] == "inf"

    def test_a_prefix(self, tmp_path: Path) -> None:
        a, b = (
            put(tmp_path / "a.pt", {"module.w": torch.ones(1)}),
            put(tmp_path / "b.pt", {"w": torch.ones(1)}),
        )
        assert self._run(a, b, "--strip", "module.").exit_code == 0

    def test_what_could_not_be_compared(self, sides: tuple[Path, Path], tmp_path: Path) -> None:
        result = self._run(sides[0], tmp_path / "none.pt")
        assert (result.exit_code, "ObjectNotFoundError" in result.stderr) == (2, True)
        result = self._run(sides[0], tmp_path / "none.pt", "--json")
        assert (result.exit_code, json.loads(result.stdout)["error"]["type"]) == (2, "ObjectNotFoundError")

    def test_many_rows(self, tmp_path: Path) -> None:
        a = put(tmp_path / "a.pt", {f"t{at:03}": torch.ones(1) for at in range(80)})
        b = put(tmp_path / "b.pt", {f"t{at:03}": torch.zeros(1) for at in range(80)})
        assert "and 30 more (--all shows them)" in self._run(a, b).stdout
        assert "t079" in self._run(a, b, "--all").stdout

    def test_torch_is_needed_for_values_only(self, sides: tuple[Path, Path]) -> None:
        script = (
            "import sys\n"
            "from torchwick.cli import app\n"
            "try:\n"
            "    app(['diff', *sys.argv[1:], '--no-values', '--json'])\n"
            "except SystemExit as ended:\n"
            "    assert ended.code == 1\n"
            "print('torch' in sys.modules)\n"
        )
        assert run_python(script, *map(str, sides)).endswith("False\n")


def test_it_is_of_plain_types() -> None:
    found = Difference("a", "b", False, True, ("x",), (), ())
    assert json.loads(json.dumps(found.to_dict()))["only_in_a"] == ["x"]
