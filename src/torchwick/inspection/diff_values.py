"""Compares the elements of tensors, step by step, so that the memory it takes does not grow with them."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from torchwick.checkpoint import Checkpoint
from torchwick.inspection.diff import ValueDifference
from torchwick.inspection.diff_steps import Step, read_step, steps
from torchwick.report import Progress, ProgressCallback

__all__ = ["Elements", "compare"]

_SHARES = 8
"""A step takes this part of the memory: two sides that are compared, two that are read meanwhile, and as many
again where elements do not lie one behind the other and are put so."""
_AT_ONCE = 1 << 18  # elements compared in one go: some 16 MiB in double precision, all intermediates included
_WIDE = (torch.int64, torch.uint64)

Sides = tuple[Checkpoint, Checkpoint]
Read = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def compare(
    sides: Sides,
    pairs: Mapping[str, tuple[str, str]],
    memory_limit: int,
    on_progress: ProgressCallback | None = None,
) -> dict[str, ValueDifference]:
    """Compare the values of all pairs of one shape.

    Args:
        sides: the checkpoints.
        pairs: the names in both, by the name that stands for both.
        memory_limit: bytes that may be held at once.
        on_progress: told after each step of the bytes of the first side.

    Raises:
        StoreError: they cannot be read.
    """
    infos = {name: (sides[0].info(one), sides[1].info(other)) for name, (one, other) in pairs.items()}
    alike = [(name, both) for name, both in infos.items() if both[0].shape == both[1].shape]
    found = {name: Elements() for name, _ in alike}
    done, total = 0, sum(one.nbytes for _, (one, _) in alike)
    for step, (left, right) in _read_ahead(sides, steps(alike, max(1, memory_limit // _SHARES)), pairs):
        for name in step.names:
            one, other = (read.pop(own) for read, own in zip((left, right), pairs[name], strict=True))
            done += one.nbytes
            found[name].add(one, other)
            del one, other  # the next step is being read into memory of its own
        if on_progress is not None:
            on_progress(Progress(sides[0].uri, done, total, 0))
    return {name: elements.result() for name, elements in found.items()}


def _read_ahead(
    sides: Sides, of: Iterator[Step], pairs: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[Step, Read]]:
    """Yield steps and what was read of both sides, the next step being read meanwhile."""
    pool = ThreadPoolExecutor(len(sides), thread_name_prefix="torchwick-diff")
    ahead: collections.deque[tuple[Step, list[Future[dict[str, torch.Tensor]]]]] = collections.deque()
    try:
        for step in of:
            own = [replace(step, names=tuple(pairs[name][side] for name in step.names)) for side in (0, 1)]
            ahead.append((step, [pool.submit(read_step, *both) for both in zip(sides, own, strict=True)]))
            if len(ahead) > 1:
                yield _awaited(*ahead.popleft())
        while ahead:
            yield _awaited(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _awaited(step: Step, futures: list[Future[dict[str, torch.Tensor]]]) -> tuple[Step, Read]:
    left, right = futures
    return step, (left.result(), right.result())


class Elements:
    """Adds up how the elements of two tensors differ."""

    def __init__(self) -> None:
        self._identical = True
        self._numel = self._differing = 0
        self._largest = self._relative = self._sum = 0.0

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Compare two tensors of one shape, or the same parts of them.

        Example:
            >>> elements = Elements()
            >>> elements.add(torch.tensor([1, 2]), torch.tensor([1, 4]))
            >>> elements.result().differing, elements.result().largest, elements.result().relative
            (1, 2.0, 0.5)
        """
        flat, against = _flat(one), _flat(other)
        for at in range(0, flat.numel(), _AT_ONCE):
            some = (elements[at : at + _AT_ONCE].contiguous() for elements in (flat, against))
            self._add(*some)

    def _add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        self._numel += one.numel()
        if one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            return
        self._identical = False
        apart, magnitude = _apart(one, other)
        differ = apart > 0
        self._differing += int(differ.sum())
        self._largest = max(self._largest, float(apart.max()))
        self._sum += float(apart.sum())
        # Where one is infinite the quotient is none: they differ by all there is.
        relative = torch.where(differ, apart / magnitude, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
        self._relative = max(self._relative, float(relative.max()))

    def result(self) -> ValueDifference:
        """Return what was found."""
        return ValueDifference(
            identical=self._identical,
            differing=self._differing,
            largest=self._largest,
            relative=self._relative,
            mean=self._sum / self._numel if self._numel else 0.0,
        )


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements one behind the other, as they are looked at."""
    tensor = tensor.resolve_conj().resolve_neg()
    return _unpacked(tensor) if tensor.dtype == _packed_dtype() else tensor.reshape(-1)


def _packed_dtype() -> torch.dtype | None:
    """Return the dtype of two elements in a byte, which a torch before 2.8 does not have."""
    return getattr(torch, "float4_e2m1fn_x2", None)


def _unpacked(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of a float4, of which torch itself casts none (OCP MX, E2M1: the lower first)."""
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    table = torch.cat([table, -table])
    octets = tensor.reshape(-1).view(torch.uint8).long()
    return table[torch.stack([octets & 15, octets >> 4], 1).view(-1)]


def _apart(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the absolute differences of elements, and the larger magnitude of both, in double precision."""
    a, b = _double(one), _double(other)
    magnitude = torch.maximum(a.abs(), b.abs())
    if one.dtype in _WIDE and other.dtype in _WIDE:
        (high, low), (high_b, low_b) = _halves(one), _halves(other)
        return ((high - high_b) * 2.0**32 + (low - low_b)).abs(), magnitude
    alike = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(alike, 0.0, (a - b).abs())
    return apart.nan_to_num(nan=math.inf, posinf=math.inf), magnitude


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _halves(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the upper and the lower half of 64-bit numbers: double precision has room for 53 bits."""
    bits = tensor.view(torch.int64)
    high = bits >> 32
    if tensor.dtype == torch.uint64:
        high = high & 0xFFFFFFFF
    return high.double(), (bits & 0xFFFFFFFF).double()
