"""Loads without end, with faults at random, and nothing left behind: `make soak`.

Chance decides on formats, settings and faults, some of which come together. Each load has to end, within
bounds, with exactly the tensors that were stored or with an error of torchwick's. At the end no thread,
socket, memory file or memory may be left.

    SOAK_SECONDS   how long; 600
    SOAK_SEED      what chance begins with; another one each time, which is printed
"""

from __future__ import annotations

import collections
import gc
import hashlib
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trustme

import torchwick
from checkpoints.base import quiet
from faulty import FaultyServer
from oracle import assert_same
from torchwick import LoadReport, S3Config, TorchwickError, TransferConfig
from torchwick.demo.environment import aws_environment
from torchwick.store import _open_store
from trials import PART, WAYS, Way
from troubles import STAGES, TROUBLES, Trial

AT_ONCE = 3  # loads
LIMIT = 30.0  # seconds for one load
ROUND = 10  # batches that one server serves: connections that stall stay with it to its end
MOST_GROWTH = 100 << 20  # bytes, after the warm-up; a tenth of what 1000 loads would leave if each left all
WARM = 0.25  # of the time: memory grows while everything, new clients too, happens for the first time


@dataclass
class Case:
    """One load: what is loaded, how, and what goes wrong meanwhile."""

    way: Way
    uri: str
    options: dict[str, Any]
    troubles: list[str]
    trial: Trial

    def run(self) -> str:
        """Load, and return what came of it in a word.

        Raises:
            AssertionError: it is not what was stored.
        """
        reports: list[LoadReport] = []
        began = time.monotonic()
        try:
            loaded = torchwick.load(self.uri, on_report=reports.append, **self.options)
        except TorchwickError as error:
            return type(error).__name__
        finally:
            assert time.monotonic() - began < LIMIT, self
        if self.way.holds(loaded) or self._is_the_other(loaded):
            return "right, verified" if reports[0].verified else "right"
        flipped = any("flipped" in title for title in self.troubles)
        assert flipped, self
        assert reports[0].verified is None, self
        return "a flipped byte, unverified"

    def _is_the_other(self, loaded: Any) -> bool:
        """Whether it is what the object was overwritten with, before its first byte was read."""
        if not any("overwritten" in title for title in self.troubles):
            return False
        try:
            assert_same(loaded, self.way.oracle(self.trial.other), storages=self.way.method != "filled")
        except Exception:  # noqa: BLE001 - whatever the oracle finds wrong with it
            return False
        return True


@dataclass
class Soak:
    """The run: servers one after the other, and what came of the loads."""

    chance: random.Random
    ends: float
    authority: trustme.CA
    ca_file: Path
    outcomes: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    met: collections.Counter[str] = field(default_factory=collections.Counter)

    def run(self) -> None:
        """Load until the time is over."""
        warm_at = time.monotonic() + WARM * (self.ends - time.monotonic())
        before: Left | None = None
        while time.monotonic() < self.ends:
            self._round()
            if before is None and time.monotonic() > warm_at:
                before = Left.now()
        left = Left.now()
        print_line(f"\n{sum(self.outcomes.values())} loads; left: {left}, after the warm-up: {before}")
        left.check(before or left)

    def _round(self) -> None:
        secure = self.chance.random() < 0.3
        tls = {"authority": self.authority, "ca_file": self.ca_file} if secure else {}
        with FaultyServer(**tls) as server, ThreadPoolExecutor(AT_ONCE) as pool:  # type: ignore[arg-type]
            for _ in range(ROUND):
                if time.monotonic() > self.ends:
                    break
                cases = [self._case(server, f"models/{at}") for at in range(AT_ONCE)]
                for case, outcome in zip(cases, pool.map(Case.run, cases), strict=True):
                    self.outcomes[outcome, case.way.name] += 1
                    self.met.update(case.troubles or ["nothing"])
                server.behave()
                server.most_at_once, server.reset_handshakes = None, range(0)

    def _case(self, server: FaultyServer, path: str) -> Case:
        chance, way = self.chance, self.chance.choice(WAYS)
        url = server.put(
            path,
            way.content,
            checksum=chance.choice([None, "crc64nvme", "crc32", "crc32c"]),
            uploaded_in=chance.choice([None, None, 150_000]),
        )
        trial = Trial(server, path, way, "start")
        troubles = chance.sample([each for each in TROUBLES if each.mixes], chance.choice([0, 1, 1, 2, 3]))
        for each in troubles:
            each.arrange(Trial(server, path, way, chance.choice(STAGES)))
        options: dict[str, Any] = {
            "weights_only": way.weights_only,
            "verify": chance.choice(["auto", "auto", True, False]),
            "s3": S3Config(endpoint_url=server.endpoint_url, ca_bundle=_bundle(server)),
            "transfer": TransferConfig(
                part_size=chance.choice([PART // 7, PART, 3 * PART, "auto"]),
                connections=chance.choice([1, 4, 16, "auto"]),
                timeout=chance.choice([0.3, 0.5, 2.0]),
                max_attempts=chance.choice([2, 5]),
            ),
        }
        if chance.random() < 0.2:
            options["sha256"] = hashlib.sha256(chance.choice([way.content, b""])).hexdigest()
        uri = url if chance.random() < 0.2 else f"s3://{path}"
        return Case(way, uri, options, [each.title for each in troubles], trial)


def _bundle(server: FaultyServer) -> str | None:
    return None if server.ca_file is None else str(server.ca_file)


@dataclass(frozen=True)
class Left:
    """What a process holds."""

    threads: int
    sockets: int
    memory_files: int
    resident: int

    @classmethod
    def now(cls) -> Left:
        """Count, after letting go of the connections that are kept for the next load."""
        _open_store.cache_clear()
        gc.collect()
        names = [_target(each) for each in Path("/proc/self/fd").iterdir()]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            threads=sum(thread.name.startswith("torchwick-") for thread in threading.enumerate()),
            sockets=sum(name.startswith("socket:") for name in names),
            memory_files=sum("memfd:" in name for name in names),
            resident=pages * os.sysconf("SC_PAGESIZE"),
        )

    def check(self, before: Left) -> None:
        """Fail if anything was left behind."""
        assert (self.threads, self.sockets, self.memory_files) == (0, 0, 0), self
        assert self.resident - before.resident < MOST_GROWTH, (before, self)

    def __str__(self) -> str:
        mib = self.resident / (1 << 20)
        return (
            f"{self.threads} threads, {self.sockets} sockets, {self.memory_files} memory files, {mib:.0f} MiB"
        )


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the one that the listing itself had open
        return ""


def print_line(text: str) -> None:
    """Print at once: whoever watches a long run wants to see it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_tables(soak: Soak) -> None:
    """Print how many loads of which format ended how, and what they met."""
    names = [way.name for way in WAYS]
    print_line("".join(f"{text:>14}" for text in ("", *names)).replace(" " * 14, f"{'outcome':28}", 1))
    for outcome in sorted({outcome for outcome, _ in soak.outcomes}):
        print_line(f"{outcome:28}" + "".join(f"{soak.outcomes[outcome, name]:14}" for name in names))
    print_line(f"\n{'met':60}{'loads':>8}")
    for title, count in soak.met.most_common():
        print_line(f"{title:60}{count:8}")


def main() -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    seed = int(os.environ.get("SOAK_SEED", time.time_ns()))
    print_line(f"SOAK_SECONDS={seconds:g} SOAK_SEED={seed}")
    variables = {"AWS_ACCESS_KEY_ID": "AKIASOAK", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}
    with ExitStack() as open_:
        folder = Path(open_.enter_context(TemporaryDirectory()))
        open_.enter_context(aws_environment(variables))
        open_.enter_context(quiet())
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        soak = Soak(random.Random(seed), time.monotonic() + seconds, authority, folder / "ca.pem")
        try:
            soak.run()
        finally:
            print_tables(soak)


if __name__ == "__main__":
    main()
