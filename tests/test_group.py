"""Loads by a process group: all ranks get the whole, each byte leaves the store once, all fail as one."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import random
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch._C._distributed_c10d import HashStore

import ranks
import torchwick
import torchwick.distributed
from checkpoints.base import quiet, save_bytes
from faults import FlipByte, S3Error, SetHeaders, Trickle
from ranks import Outcome, Ranks, Shown, Tied, shown, small
from torchwick import GroupError, TransferConfig
from torchwick.checkpoint.layout import Group
from torchwick.distributed.shares import units
from torchwick.distributed.sharing import from_bytes
from torchwick.ranks.agreement import Agreement
from torchwick.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from faults import Request
    from faulty import FaultyServer

SIZE = 4
URI = "s3://models/model.safetensors"
SHORT = 4.0  # seconds without a sign of life


def _state(layers: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Large and small tensors, of several dtypes."""
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        state[f"layers.{layer}.weight"] = torch.randn(257, 1001)
        state[f"layers.{layer}.norm"] = torch.randn(1001)
        state[f"layers.{layer}.half"] = torch.randn(333, 77).to(torch.bfloat16)
    return state | {"steps": torch.tensor(7), "none": torch.empty(0, 3), "mask": torch.rand(99) > 0.5}


STATE = _state()
BODY = safetensors.torch.save(STATE)


@pytest.fixture(scope="module")
def group() -> Iterator[Ranks]:
    """Four processes."""
    pool = Ranks(SIZE)
    yield pool
    pool.close()


@pytest.fixture
def served(faulty_s3: FaultyServer) -> FaultyServer:
    """The model, with the checksum that S3 keeps."""
    faulty_s3.put("models/model.safetensors", BODY, checksum="crc64nvme")
    return faulty_s3


def _values(outcomes: list[Outcome]) -> list[Any]:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes]


def _sent(server: FaultyServer, path: str = "") -> int:
    """Bytes that the server was asked for."""
    return sum(
        (request.range[1] or 0) - request.range[0]
        for request in server.requests
        if request.range is not None and request.path.startswith(path) and request.method == "GET"
    )


def _errors(outcomes: list[Outcome], kind: type[BaseException]) -> list[Any]:
    """The errors of all ranks that are there: all of them raised that."""
    errors = [outcome.error for outcome in outcomes if not outcome.gone]
    assert max(outcome.leaving for outcome in outcomes) < 5
    for error in errors:
        assert type(error) is kind, "\n".join(getattr(error, "__notes__", [repr(error)]))
    return errors


class TestEveryRankGetsTheWhole:
    def test_safetensors(self, group: Ranks, served: FaultyServer) -> None:
        body = safetensors.torch.save(STATE | {"large": torch.randn(2100, 1024)})
        served.put("models/model.safetensors", body, checksum="crc64nvme")
        expected = shown(safetensors.torch.load(body))
        values = _values(group.run(ranks.load, uri=URI, environment=served.environment()))
        assert [value for value, _ in values] == [expected] * SIZE
        assert {report.verified for _, report in values} == {"crc64nvme"}
        assert len(body) <= _sent(served) <= 1.02 * len(body)
        assert sum(report.bytes_read for _, report in values) == _sent(served)
        assert max(report.bytes_read for _, report in values) < 0.3 * len(body)
        assert [request.method for request in served.requests].count("HEAD") == 1

    def test_a_state_dict_of_torch(self, group: Ranks, served: FaultyServer) -> None:
        tied = torch.randn(2500, 1024)
        value = {"model": STATE | {"tied": tied, "transposed": torch.randn(30, 200).t()}, "again": tied}
        body = save_bytes(value | {"epoch": 3, "large": torch.randn(2100, 1024)})
        served.put("models/model.pt", body, checksum="crc64nvme")
        expected = _flat(torch.load(io.BytesIO(body)))
        values = _values(group.run(ranks.load, uri="s3://models/model.pt", environment=served.environment()))
        assert [value for value, _ in values] == [expected] * SIZE
        assert {report.verified for _, report in values} == {"crc64nvme"}
        assert _sent(served) <= 1.02 * len(body)
        ties = group.run(
            ranks.load_ties,
            uri="s3://models/model.pt",
            first="model.tied",
            second="again",
            environment=served.environment(),
        )
        assert _values(ties) == [True] * SIZE

    def test_the_legacy_format(self, group: Ranks, served: FaultyServer) -> None:
        body = save_bytes(
            {"a": STATE["layers.0.weight"], "b": STATE["mask"]}, _use_new_zipfile_serialization=False
        )
        served.put("models/old.pt", body)
        values = _values(group.run(ranks.load, uri="s3://models/old.pt", environment=served.environment()))
        assert [value for value, _ in values] == [_flat(torch.load(io.BytesIO(body)))] * SIZE

    def test_a_directory_of_shards(self, group: Ranks, served: FaultyServer) -> None:
        names = [f"model-{number + 1:05}-of-00003.safetensors" for number in range(3)]
        weight_map: dict[str, str] = {}
        total = 0
        for number, file in enumerate(names):
            mine = {name: STATE[name] for name in list(STATE)[number::3]}
            body = safetensors.torch.save(mine)
            total += len(body)
            served.put(f"models/sharded/{file}", body, checksum="crc64nvme")
            weight_map |= dict.fromkeys(mine, file)
        index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        served.put("models/sharded/model.safetensors.index.json", index)
        values = _values(group.run(ranks.load, uri="s3://models/sharded", environment=served.environment()))
        assert [dict(sorted(value.items())) for value, _ in values] == [
            dict(sorted(shown(STATE).items()))
        ] * SIZE
        assert {report.verified for _, report in values} == {"crc64nvme"}
        assert _sent(served, "models/sharded/model-") <= 1.02 * total
        heads = [request.path for request in served.requests if request.method == "HEAD"]
        assert len(heads) == len(set(heads)) == 3

    def test_a_distributed_checkpoint(self, group: Ranks, tmp_path: Path) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        state = {name: STATE[name] for name in ("layers.0.weight", "layers.1.norm", "mask")}
        with quiet():
            save(dict(state), checkpoint_id=tmp_path, no_dist=True)
        values = _values(group.run(ranks.load, uri=str(tmp_path), environment={}))
        assert [dict(sorted(value.items())) for value, _ in values] == [
            dict(sorted(shown(state).items()))
        ] * SIZE

    def test_thousands_of_tiny_tensors(self, group: Ranks, served: FaultyServer) -> None:
        state = {f"{number:05}.bias": torch.full((37,), number) for number in range(2000)}
        served.put("models/tiny.safetensors", safetensors.torch.save(state))
        uri = "s3://models/tiny.safetensors"
        values = _values(group.run(ranks.load, uri=uri, environment=served.environment()))
        assert [value for value, _ in values] == [shown(state)] * SIZE
        counts = _values(group.run(ranks.count_broadcasts, uri=uri, environment=served.environment()))
        assert max(counts) <= 2 * SIZE

    def test_some_keys(self, group: Ranks, served: FaultyServer) -> None:
        keys = ["steps", "layers.1*.half"]
        values = _values(group.run(ranks.load, uri=URI, keys=keys, environment=served.environment()))
        wanted = ["steps", *(f"layers.{n}.half" for n in (1, *range(10, 16)))]
        expected = {name: shown(STATE)[name] for name in wanted}
        assert [value for value, _ in values] == [expected] * SIZE
        assert _sent(served) < 0.2 * len(BODY)

    @pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), (torch.float64, torch.float64)])
    def test_cast(self, group: Ranks, served: FaultyServer, dtype: Any, kind: torch.dtype) -> None:
        expected = shown({n: t.to(kind) if t.is_floating_point() else t for n, t in STATE.items()})
        limit = TransferConfig(memory_limit="4MiB", part_size=256 << 10)
        values = _values(
            group.run(ranks.load, uri=URI, dtype=dtype, transfer=limit, environment=served.environment())
        )
        assert [value for value, _ in values] == [expected] * SIZE

    def test_within_the_memory_limit(self, group: Ranks, served: FaultyServer) -> None:
        state = {f"{number}": torch.randn(1024, 1024) for number in range(24)}
        served.put("models/wide.safetensors", safetensors.torch.save(state))
        limit = TransferConfig(memory_limit="16MiB")
        arguments: dict[str, Any] = {
            "uri": "s3://models/wide.safetensors",
            "dtype": "bf16",
            "transfer": limit,
        }
        environment = served.environment()
        _values(group.run(ranks.peak, environment=environment, **arguments))  # imports, and finds credentials
        peaks = _values(group.run(ranks.peak, environment=environment, **arguments))
        result = 24 * (2 << 20)
        assert max(peaks) < result + (16 << 20) + (16 << 20)  # the rest is threads, and what they read

    def test_on_meta(self, group: Ranks, served: FaultyServer) -> None:
        outcomes = group.run(ranks.load_on_meta, uri=URI, environment=served.environment())
        assert _values(outcomes) == [{name: tuple(tensor.shape) for name, tensor in STATE.items()}] * SIZE

    def test_a_real_server(self, group: Ranks, aws_env: Any, shared_bucket: str, put: Any) -> None:
        uri = put(shared_bucket, "group.safetensors", BODY)
        values = _values(group.run(ranks.load, uri=uri, environment=aws_env.environment()))
        assert [value for value, _ in values] == [shown(STATE)] * SIZE
        assert {report.verified for _, report in values} == {"crc32"}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Shown:
    found: Shown = {}
    for name, item in value.items():
        if isinstance(item, torch.Tensor):
            found |= shown({f"{prefix}{name}": item})
        elif isinstance(item, dict):
            found |= _flat(item, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("seed", range(20))
def test_units_become_complete_in_their_order(seed: int) -> None:
    chance = random.Random(seed)
    sizes = {f"{n}": chance.choice([10, 300_000, 900_000, 1 << 20, 3 << 20]) for n in range(60)}
    share = [Group((key,), ()) for key in sizes]
    made = units(share, sizes, 0, most=chance.choice([1 << 20, 2 << 20, 16 << 20]))
    places = [[int(key) for key in unit.keys] for unit in made]
    assert sorted(itertools.chain.from_iterable(places)) == list(range(60))
    assert all(place == sorted(place) for place in places)
    assert [place[-1] for place in places] == sorted(place[-1] for place in places)


class TestGroups:
    def test_of_one_rank(self, group: Ranks, served: FaultyServer) -> None:
        ((value, report),) = _values(group.run(ranks.load, uri=URI, size=1, environment=served.environment()))
        assert (value, report.verified) == (shown(STATE), "crc64nvme")

    def test_of_some_of_the_ranks(self, group: Ranks, served: FaultyServer) -> None:
        outcomes = group.run(
            ranks.load_in_subgroup, uri=URI, members=[1, 3], environment=served.environment()
        )
        assert _values(outcomes) == [None, shown(STATE), None, shown(STATE)]

    def test_not_of_this_process(self, group: Ranks, served: FaultyServer) -> None:
        outcomes = group.run(ranks.load_alone, uri=URI, of=0, size=2, environment=served.environment())
        assert outcomes[0].value == shown(STATE)
        assert isinstance(outcomes[1].error, ValueError)

    def test_none_at_all(self) -> None:
        with pytest.raises(ValueError, match="init_process_group"):
            torchwick.distributed.load(URI)


class TestModules:
    @pytest.fixture
    def model(self, served: FaultyServer) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        model = Tied()
        state = dict(model.state_dict())
        served.put("models/tied.pt", save_bytes(state), checksum="crc64nvme")
        return state

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize("module_dtype", [None, torch.bfloat16])
    def test_filled(
        self,
        group: Ranks,
        served: FaultyServer,
        model: dict[str, torch.Tensor],
        device: str,
        module_dtype: torch.dtype | None,
    ) -> None:
        outcomes = group.run(
            ranks.load_model,
            uri="s3://models/tied.pt",
            device=device,
            module_dtype=module_dtype,
            environment=served.environment(),
        )
        kind = module_dtype or torch.float32
        expected = shown({n: t.to(kind) if t.is_floating_point() else t for n, t in model.items()})
        for state, result, in_place in _values(outcomes):
            assert state == expected
            assert result == ([], [])
            assert in_place

    def test_cast(self, group: Ranks, served: FaultyServer, model: dict[str, torch.Tensor]) -> None:
        outcomes = group.run(
            ranks.load_model,
            uri="s3://models/tied.pt",
            device="meta",
            dtype="bf16",
            environment=served.environment(),
        )
        expected = shown({n: t.bfloat16() if t.is_floating_point() else t for n, t in model.items()})
        assert [state for state, _, _ in _values(outcomes)] == [expected] * SIZE

    def test_it_does_not_fit(self, group: Ranks, served: FaultyServer) -> None:
        outcomes = group.run(ranks.load_model, uri=URI, device="cpu", environment=served.environment())
        _errors(outcomes, torchwick.StateDictError)

    def test_partly_filled(self, group: Ranks, served: FaultyServer, model: dict[str, torch.Tensor]) -> None:
        served.on(FlipByte(400_000), path="models/tied.pt")
        outcomes = group.run(
            ranks.load_model, uri="s3://models/tied.pt", device="cpu", environment=served.environment()
        )
        for error in _errors(outcomes, torchwick.IntegrityError):
            assert "The module is partly filled" in str(error)


class TestAllFailAsOne:
    def test_a_flipped_byte(self, group: Ranks, served: FaultyServer) -> None:
        served.put("models/other.safetensors", BODY)
        served.on(FlipByte(9_000_000), path=URI[5:])
        then = "s3://models/other.safetensors"
        outcomes = group.run(ranks.load_twice, uri=URI, then=then, environment=served.environment())
        for kind, text, state in _values(outcomes):
            assert kind == "IntegrityError"
            assert "crc64nvme" in text
            assert "new process group" not in text
            assert state == shown(STATE)

    def test_no_checksum(self, group: Ranks, served: FaultyServer) -> None:
        served.put("models/model.safetensors", BODY)
        outcomes = group.run(ranks.load, uri=URI, verify=True, environment=served.environment())
        _errors(outcomes, torchwick.IntegrityError)

    def test_no_such_object(self, group: Ranks, served: FaultyServer) -> None:
        outcomes = group.run(ranks.load, uri="s3://models/none.safetensors", environment=served.environment())
        for error in _errors(outcomes, torchwick.ObjectNotFoundError):
            assert error.uri == "s3://models/none.safetensors"

    def test_an_overwritten_object(self, group: Ranks, served: FaultyServer) -> None:
        served.put("models/other.safetensors", BODY)
        served.on(lambda: served.put("models/model.safetensors", BODY[::-1]), nth=6, path=URI[5:])
        outcomes = group.run(
            ranks.load_twice,
            uri=URI,
            then="s3://models/other.safetensors",
            transfer=small(),
            environment=served.environment(),
        )
        for kind, text, state in _values(outcomes):
            assert kind == "ObjectChangedError"
            assert "overwritten" in text
            assert "new process group" not in text
            assert state == shown(STATE)

    def test_one_rank_may_not_read(self, group: Ranks, served: FaultyServer) -> None:
        served.put("models/other.safetensors", BODY)
        served.on(S3Error(403, "AccessDenied"), method=None, path=URI[5:], where=_is_of_rank_2)
        environment = served.environment()
        outcomes = group.run(
            ranks.load_twice,
            uri=URI,
            then="s3://models/other.safetensors",
            environment=lambda rank: environment | ({"AWS_ACCESS_KEY_ID": "AKIARANK2"} if rank == 2 else {}),
        )
        for kind, text, state in _values(outcomes):
            assert kind == "GroupError"
            assert "rank 2 of 4 failed: AccessDeniedError: s3://models/model.safetensors: " in text
            assert state == shown(STATE)

    def test_a_rank_that_never_arrives(self, group: Ranks, served: FaultyServer) -> None:
        outcomes = group.run(ranks.stay_away, uri=URI, who=3, timeout=1.0, environment=served.environment())
        assert outcomes.pop().error is None
        for error in _errors(outcomes, GroupError):
            assert error.rank == 3
            assert "it did not come within 1 s" in str(error)

    def test_a_rank_that_hangs(self, group: Ranks, served: FaultyServer) -> None:
        served.on(Trickle(64 << 10, 0.02))
        outcomes = group.run(
            ranks.hang, uri=URI, who=2, seconds=6.0, timeout=1.0, environment=served.environment()
        )
        for error in _errors(outcomes, GroupError):
            assert error.rank == 2
            assert "no sign of life" in str(error)

    def test_a_slow_rank_that_lives(self, group: Ranks, served: FaultyServer) -> None:
        served.on(Trickle(128 << 10, 0.08), where=_is_of_rank_2)
        environment = served.environment()
        outcomes = group.run(
            ranks.load,
            uri=URI,
            timeout=1.0,
            environment=lambda rank: environment | ({"AWS_ACCESS_KEY_ID": "AKIARANK2"} if rank == 2 else {}),
        )
        assert [value for value, _ in _values(outcomes)] == [shown(STATE)] * SIZE
        assert min(outcome.seconds for outcome in outcomes) > 1.5

    def test_a_progress_function_that_raises(self, group: Ranks, served: FaultyServer) -> None:
        served.on(Trickle(64 << 10, 0.01))
        outcomes = group.run(ranks.complain, uri=URI, who=2, environment=served.environment())
        assert type(outcomes.pop(2).error) is LookupError
        for error in _errors(outcomes, GroupError):
            assert (error.rank, error.cause) == (2, "LookupError: LookupError was raised there")
            assert "hush" not in str(error)

    def test_ranks_that_want_different_tensors(self, group: Ranks, served: FaultyServer) -> None:
        keys = [None, None, "layers.0.*", None]
        outcomes = group.run(ranks.differ, uris=[URI] * SIZE, keys=keys, environment=served.environment())
        for error in _errors(outcomes, GroupError):
            assert error.rank == 2
            assert "does not want the same" in str(error)

    def test_ranks_that_want_different_objects(self, group: Ranks, served: FaultyServer) -> None:
        uris = [URI, URI, URI, "s3://models/other.safetensors"]
        outcomes = group.run(ranks.differ, uris=uris, keys=[None] * SIZE, environment=served.environment())
        for error in _errors(outcomes, GroupError):
            assert error.rank == 3
            assert "was asked for s3://models/other.safetensors" in str(error)

    def test_a_server_without_ranges(self, group: Ranks, faulty: FaultyServer) -> None:
        from faults import IgnoreRange

        url = faulty.put("model.safetensors", BODY)
        faulty.on(IgnoreRange())
        faulty.on(SetHeaders({"Accept-Ranges": "none"}))
        outcomes = group.run(ranks.load, uri=url, environment={})
        for error in _errors(outcomes, torchwick.FormatError):
            assert "no ranges" in str(error)

    def test_a_rank_that_dies(self, group: Ranks, served: FaultyServer) -> None:
        served.on(Trickle(64 << 10, 0.01))
        outcomes = group.run(ranks.die, uri=URI, who=3, timeout=SHORT, environment=served.environment())
        assert [outcome.gone for outcome in outcomes] == [False, False, False, True]
        for error in _errors(outcomes, GroupError):
            assert error.rank == 3
            assert "rank 3 of 4 failed: it is gone" in str(error) or "no sign of life" in str(error)
            assert "new process group" in str(error)
        assert max(outcome.seconds for outcome in outcomes) < SHORT + 5
        served.behave()
        again = group.run(ranks.load, uri=URI, size=3, environment=served.environment())
        assert [value for value, _ in _values(again)] == [shown(STATE)] * 3


class TestAgreement:
    def test_a_store_that_is_gone(self) -> None:
        class Mortal:
            """A store that can be switched off."""

            def __init__(self) -> None:
                self.inner = HashStore()
                self.gone = False

            def __getattr__(self, name: str) -> Any:
                if self.gone:
                    raise RuntimeError("Connection reset by peer")
                return getattr(self.inner, name)

        store = Mortal()
        members: Any = SimpleNamespace(rank=0, size=2, store=store, abandon=lambda: None)

        def look() -> None:
            with Agreement(members, 2.0) as agreement:
                store.gone = True
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    agreement.check()
                    time.sleep(0.01)

        with pytest.raises(GroupError, match="key-value store does not answer") as caught:
            look()
        assert caught.value.rank is None

    def test_ranks_tell_each_other_nothing_but_plain_data(self) -> None:
        with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
            from_bytes(pickle.dumps(os.system), LocalStore(), TransferConfig())


def _is_of_rank_2(request: Request) -> bool:
    return "AKIARANK2" in request.headers.get("authorization", "")
