"""Each fault at each stage of a load of each format: the right tensors or the right error, in bounded time.

`TORCHWICK_WRITE_PAGES=1 pytest tests/test_faults.py` writes the outcomes into docs/faults.md.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import torchwick
from checkpoints.base import quiet
from faulty import FaultyServer
from torchwick import LoadReport, TorchwickError
from torchwick.demo.environment import aws_environment
from torchwick.store import _open_store
from torchwick.transfer import retry
from trials import PARTS, WAYS, Way
from troubles import NOTHING, RETRIED, RIGHT, STAGES, TROUBLES, UNNOTICED, Stage, Trial, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trustme

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
LIMIT = 5.0  # seconds for one load, on a busy machine; each ends in a fraction of one

CELLS = [(trouble, way, stage) for trouble in TROUBLES for way in WAYS for stage in STAGES]


class Bench:
    """Brings every fault about once, whenever it is first asked for."""

    def __init__(self, plain: FaultyServer, secure: Callable[[], FaultyServer]) -> None:
        self._plain = plain
        self._secure = secure
        self._seen: dict[tuple[str, str, Stage], str] = {}

    def outcome(self, trouble: Trouble, way: Way, stage: Stage) -> str:
        """Return what came of it, in the words of the page."""
        key = (trouble.title, way.name, stage)
        if key not in self._seen:
            nothing = trouble.expected(way, stage) == NOTHING
            self._seen[key] = NOTHING if nothing else self._bring_about(trouble, way, stage)
        return self._seen[key]

    def _bring_about(self, trouble: Trouble, way: Way, stage: Stage) -> str:
        path = f"models/{len(self._seen)}"
        config = replace(PARTS, max_attempts=trouble.attempts, timeout=trouble.timeout)
        with self._server(trouble) as server, aws_environment(server.environment()):
            server.put(path, way.content, checksum=trouble.checksum)
            trouble.arrange(Trial(server, path, way, stage))
            reports: list[LoadReport] = []
            began = time.monotonic()
            try:
                with quiet():
                    loaded = torchwick.load(
                        f"s3://{path}",
                        weights_only=way.weights_only,
                        on_report=reports.append,
                        transfer=config,
                    )
            except TorchwickError as error:
                return type(error).__name__
            finally:
                assert time.monotonic() - began < LIMIT
            if not way.holds(loaded):
                return UNNOTICED if reports[0].verified is None else "wrong tensors, said to be verified"
            return RETRIED if reports[0].retries else RIGHT

    @contextmanager
    def _server(self, trouble: Trouble) -> Iterator[FaultyServer]:
        if trouble.alone:
            with self._secure() if "TLS" in trouble.title else FaultyServer() as server:
                yield server
        else:
            self._plain.behave()
            yield self._plain


@pytest.fixture(scope="module")
def bench(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    ca_file = tmp_path_factory.mktemp("faults") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with (
        pytest.MonkeyPatch.context() as patch,
        FaultyServer() as plain,
    ):
        patch.setattr(retry, "_FIRST_WAIT", 0.01)  # test_survival.py is about waiting
        yield Bench(plain, lambda: FaultyServer(authority=authority, ca_file=ca_file))


@pytest.mark.parametrize(
    ("trouble", "way", "stage"), CELLS, ids=[f"{t.title}-{w.name}-{stage}" for t, w, stage in CELLS]
)
def test_the_outcome(trouble: Trouble, way: Way, stage: Stage, bench: Bench) -> None:
    assert bench.outcome(trouble, way, stage) == trouble.expected(way, stage)


@pytest.mark.parametrize("scheme", ["s3", "web"])
def test_a_store_that_no_one_uses_closes_its_connections(
    scheme: str, faulty_s3: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)  # records outlive the load
    url = faulty_s3.put("models/new.pt", WAYS[0].content)
    torchwick.load(url if scheme == "web" else "s3://models/new.pt", transfer=PARTS)
    assert faulty_s3.open_connections > 0
    _open_store.cache_clear()
    gc.collect()
    deadline = time.monotonic() + LIMIT
    while faulty_s3.open_connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert faulty_s3.open_connections == 0


# -- the page ----------------------------------------------------------------------------------------------

_GENERATED = re.compile(r"<!-- faults -->\n.*<!-- end -->", re.DOTALL)


def test_the_page_shows_every_fault(bench: Bench) -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = _GENERATED.sub(lambda _: _table(bench), page)
    if os.environ.get("TORCHWICK_WRITE_PAGES"):
        PAGE.write_text(written, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == written


def _table(bench: Bench) -> str:
    rows = [row for trouble in TROUBLES for row in _rows(trouble, bench)]
    lines = ["| fault | start | middle | last | many |", "| --- | --- | --- | --- | --- |", *rows]
    return "\n".join(["<!-- faults -->", "", *lines, "", "<!-- end -->"])


def _rows(trouble: Trouble, bench: Bench) -> list[str]:
    """One row where all formats behave alike, else one for each kind of behaviour."""
    outcomes = {way.name: tuple(bench.outcome(trouble, way, stage) for stage in STAGES) for way in WAYS}
    alike = itertools.groupby(sorted(outcomes, key=lambda name: outcomes[name]), key=outcomes.__getitem__)
    groups = [(cells, list(names)) for cells, names in alike]
    which = ["" if len(groups) == 1 else f" ({'; '.join(names)})" for _, names in groups]
    return [
        f"| {trouble.title}{of} | {' | '.join(cells)} |" for of, (cells, _) in zip(which, groups, strict=True)
    ]
