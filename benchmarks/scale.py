"""A model of how long a load takes on 1 to 1,000 hosts: by each rank itself, shared and exchanged, sharded.

    python -m benchmarks.scale                 # the table, and docs/scale.svg
    python -m benchmarks.scale --size-gb 1.004 --check 3.78 5.22 2.49 5.32 3.77

It is arithmetic: every resource that a way uses takes so long, and the slowest decides. `--check` holds it
against what `benchmarks.group_load` measured on one machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

GB, MIB = 1e9, 1 << 20
HOSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
_SVG = "http://www.w3.org/2000/svg"
PICTURE = Path(__file__).parents[1] / "docs" / "scale.svg"


@dataclass(frozen=True)
class Cluster:
    """What a load runs on.

    Attributes:
        size: bytes of the model.
        ranks: on each host, each of which wants the whole, or its shard.
        connections: of each rank; torchwick opens 64 at the most (`transfer/pace.py`).
        of_connection: bytes a second. 85 MB/s: "one concurrent request for each 85-90 MB/s of desired network
            throughput" (Amazon S3 user guide, performance design patterns).
        to_store: bytes a second of a host's network card, to the store. 12.5 GB/s: 100 Gbit/s.
        between: bytes a second that a host gets from others; the same, if `one_card`.
        one_card: whether the store and the other hosts are reached over the same card.
        exchange: bytes a second that a rank sends and receives in broadcasts. 1.0 GB/s: gloo, measured here.
        requests: a second, of one prefix. 5,500: Amazon S3 user guide, optimizing performance.
        part: bytes of a request. 16 MiB: `transfer/plan.py`.
        latency: seconds before the first byte of the tensors: two answers of 100 ms (Amazon S3 user guide,
            optimizing performance: 100 to 200 ms for small objects).
    """

    size: float = 140 * GB  # 70 billion parameters of two bytes
    ranks: int = 8
    connections: int = 64
    of_connection: float = 85e6
    to_store: float = 12.5 * GB
    between: float = 12.5 * GB
    one_card: bool = True
    exchange: float = 1.0 * GB
    requests: float = 5500.0
    part: float = 16.0 * MIB
    latency: float = 0.2

    def read(self, hosts: int, of_host: float) -> float:
        """Seconds until every host has so many bytes from the store."""
        rate = min(self.ranks * self.connections * self.of_connection, self.to_store)
        asked = hosts * of_host / self.part
        return self.latency + max(of_host / rate, asked / self.requests)


def alone(cluster: Cluster, hosts: int) -> float:
    """Every rank reads the whole."""
    return cluster.read(hosts, cluster.ranks * cluster.size)


def shared(cluster: Cluster, hosts: int) -> float:
    """Every rank reads a share, and they exchange them; both go on at once."""
    ranks = hosts * cluster.ranks
    own = cluster.size / hosts
    others = cluster.size - own  # what a host has to get from others, once: broadcasts go on within it
    between = others / cluster.between
    card = (own + others) / cluster.to_store if cluster.one_card else 0.0
    exchange = cluster.size * (1 - 1 / ranks) / cluster.exchange
    return max(cluster.read(hosts, own), between, card, exchange)


def sharded(cluster: Cluster, hosts: int) -> float:
    """Every rank reads what it keeps, and no more."""
    return cluster.read(hosts, cluster.size / hosts)


WAYS: dict[str, tuple[str, Callable[[Cluster, int], float], str]] = {
    "alone": ("each rank by itself", alone, "#c0392b"),
    "gloo": ("shared, exchanged by gloo", shared, "#2471a3"),
    "fast": ("shared, exchanged at 100 GB/s a rank over cards of their own", shared, "#1e8449"),
    "sharded": ("sharded: each rank keeps its part", sharded, "#7d3c98"),
}
CLUSTERS = {
    name: replace(Cluster(), exchange=100 * GB, between=400 * GB, one_card=False)
    if name == "fast"
    else Cluster()
    for name in WAYS
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict how loads scale.")
    parser.add_argument(
        "--check", type=float, nargs=5, metavar="S", help="seconds of 1 rank, 2 alone and shared, 4 the same"
    )
    parser.add_argument("--size-gb", type=float, default=0.5, help="of what was measured")
    options = parser.parse_args()
    if options.check:
        check(options.check, options.size_gb * GB)
        return
    print("| hosts | " + " | ".join(title for title, _, _ in WAYS.values()) + " |")
    print("| ---: |" + " ---: |" * len(WAYS))
    for hosts in HOSTS:
        times = (way(CLUSTERS[name], hosts) for name, (_, way, _) in WAYS.items())
        print(f"| {hosts:,} | " + " | ".join(f"{seconds:,.1f} s" for seconds in times) + " |")
    PICTURE.write_text(picture(), encoding="utf-8")


def check(measured: Sequence[float], size: float) -> None:
    """Print what was measured beside what the model says of one machine.

    All ranks share the machine's cores, which every byte passes: as it comes from the server, or from another
    rank. One rank by itself tells what a load costs before its first byte, four tell what the cores let
    through; the other three figures are predictions.
    """
    one, two_alone, two_shared, four_alone, four_shared = measured
    before = max(0.0, one - size / _OF_RANK)
    machine = 4 * size / (four_alone - before)
    print(f"given: {before:.2f} s before the first byte, {machine / 1e6:.0f} MB/s through all cores")

    def by_themselves(ranks: int) -> float:
        return before + max(size / _OF_RANK, ranks * size / machine)

    def together(ranks: int) -> float:
        work = size + (ranks - 1) * size * _EXCHANGED
        return before + max(size / ranks / _OF_RANK, work / machine)

    for what, took, said in (
        ("2 ranks, each by itself", two_alone, by_themselves(2)),
        ("2 ranks, shared", two_shared, together(2)),
        ("4 ranks, shared", four_shared, together(4)),
    ):
        print(f"{what}: {took:.2f} s measured, {said:.2f} s predicted, {said / took - 1:+.0%}")


_OF_RANK = 4 * 85e6
"""Bytes a second of a rank in `benchmarks.group_load`: connections, and what the server gives each."""
_EXCHANGED = 0.3
"""What a byte from another rank costs the cores, as part of what one costs that comes from the server.

Broadcasts of four ranks moved 1,023 MB/s here, each byte received three times: 3,069 MB/s. One rank by
itself, without the server's limit, loaded 870 MB/s once it had begun.
"""


def picture() -> str:
    """Return the plot as SVG: seconds by hosts, both scales logarithmic."""
    from math import log10

    left, top, width, height = 70, 20, 560, 330
    lowest, highest = -1, 5  # powers of ten of seconds

    def x(hosts: float) -> float:
        return left + width * log10(hosts) / 3

    def y(seconds: float) -> float:
        return top + height * (highest - log10(seconds)) / (highest - lowest)

    lines = [
        f'<svg xmlns="{_SVG}" viewBox="0 0 660 500" font-family="sans-serif" font-size="12">',
        '<rect width="660" height="500" fill="white"/>',
    ]
    for power in range(lowest, highest + 1):
        at = y(10**power)
        text = f"{10**power:,g} s"
        lines.append(f'<path d="M{left} {at:.1f}h{width}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for hosts in (1, 10, 100, 1000):
        at = x(hosts)
        lines.append(f'<path d="M{at:.1f} {top}v{height}" stroke="#ddd"/>')
        lines.append(f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{hosts:,}</text>')
    lines.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">hosts</text>')
    for number, (name, (title, way, color)) in enumerate(WAYS.items()):
        points = " ".join(f"{x(hosts):.1f},{y(way(CLUSTERS[name], hosts)):.1f}" for hosts in HOSTS)
        at = top + height + 60 + 20 * number
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        lines.append(f'<path d="M{left} {at - 4}h24" stroke="{color}" stroke-width="2"/>')
        lines.append(f'<text x="{left + 32}" y="{at}">{title}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    main()
