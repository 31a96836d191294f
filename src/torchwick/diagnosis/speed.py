"""How fast bytes come: how long one waits for the first, and how many follow in a second."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

from torchwick.config import TransferConfig
from torchwick.diagnosis.case import Case
from torchwick.diagnosis.findings import Finding
from torchwick.diagnosis.words import count_text, duration_text, size_text
from torchwick.transfer import Fill, Listed, Transfer, plan

__all__ = ["latency", "rate"]

_TIMES = 5  # requests; the median of five leaves out two odd ones
_FAR = 0.1  # seconds; within a region S3 takes 0.01 to 0.03
_SCRATCH = 16 << 20  # bytes of memory that everything is read into, over and over
_OVER_ONE = 64 << 20  # bytes; at the 85 MB/s of one connection to S3, a second's worth and no more
_OVER_MANY = 256 << 20
_LONGEST = 2.5  # seconds for each of the two
_FEWEST = 1 << 20  # bytes; of less, the first byte's wait is most


def latency(case: Case) -> Finding:
    """Take the median time of requests for one byte, over a connection that is open already.

    Raises:
        StoreError: a request was refused.
        OSError: the network failed.
    """
    uri, info = case.target, case.info
    if not info.size or not info.ranged:
        return Finding("unknown", "it takes ranges to measure")
    times, byte = [], memoryview(bytearray(1))
    connection = case.store.connect()
    try:
        for _ in range(_TIMES + 1):
            started = time.perf_counter()
            body = connection.get(uri, 0, 1, info)
            body.readinto(byte)
            body.close()
            times.append(time.perf_counter() - started)
    finally:
        connection.release()
    median = statistics.median(times[1:])  # the first one may have opened the connection
    facts = {"seconds": median, "slowest": max(times[1:])}
    found = f"{duration_text(median)} for one byte"
    if median > _FAR:
        advice = "Run nearer to the store, in its region: each request waits long for its first byte."
        return Finding("note", found, advice, facts)
    return Finding("ok", found, facts=facts)


def rate(case: Case) -> Finding:
    """Measure the bytes a second over one connection and over many, and say what that means.

    Raises:
        StoreError: a part could not be read.
    """
    size = case.info.size
    if size is None or size < _FEWEST:
        told = "an unknown number of bytes" if size is None else size_text(size)
        return Finding("unknown", f"{told}: too little to measure")
    one, _ = _measure(case, replace(case.transfer, connections=1), min(size, _OVER_ONE))
    facts: dict[str, object] = {"one": one}
    found = f"{size_text(one)}/s over one connection"
    best = one
    if case.info.ranged:
        many, connections = _measure(case, case.transfer, min(size, _OVER_MANY))
        facts |= {"many": many, "connections": connections}
        found += f", {size_text(many)}/s over {count_text(connections, 'connection')}"
        best = max(one, many)
    facts["estimate"] = size / best
    return Finding("ok", f"{found}: {size_text(size)} take about {duration_text(size / best)}", facts=facts)


class _EnoughError(Exception):
    """Ends a measurement that has run long enough."""


def _measure(case: Case, config: TransferConfig, amount: int) -> tuple[float, int]:
    """Read up to `amount` bytes for up to 2.5 s; return the bytes a second, and the connections used."""
    scratch = memoryview(bytearray(min(_SCRATCH, amount)))
    starts = range(0, amount, len(scratch))
    fills = [Fill(start, scratch[: min(len(scratch), amount - start)]) for start in starts]
    there, most, started = 0, 1, time.perf_counter()

    def watch(done: int, connections: int) -> None:
        nonlocal there, most
        there, most = done, max(most, connections)
        if time.perf_counter() - started > _LONGEST:
            raise _EnoughError

    parts = plan(case.info, fills, config.part_size)
    try:
        tally = Transfer(case.store, Listed(parts), config, watch).run()
    except _EnoughError:
        return max(1, there) / (time.perf_counter() - started), most
    return amount / (time.perf_counter() - started), tally.connections
