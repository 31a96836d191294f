"""The tensors that a group wants of a checkpoint: each rank reads its share, and all get the whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch

from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.request import wanted
from torchwick.checkpoint.streaming import Stream
from torchwick.checkpoint.verification import StoredSums, Verify
from torchwick.checkpoint.watch import Watch
from torchwick.distributed.exchange import Exchange, Plan
from torchwick.distributed.shares import owners_of
from torchwick.errors import FormatError, GroupError
from torchwick.formats.catalog import Catalog
from torchwick.loading.feeding import ANY
from torchwick.loading.selected import Selection
from torchwick.ranks.agreement import Agreement
from torchwick.ranks.members import Members
from torchwick.report import ProgressCallback
from torchwick.store import StoredChecksum
from torchwick.transfer import Sums
from torchwick.transfer.checksum import Piece

__all__ = ["GroupSelection"]

_AHEAD = 512 << 20  # bytes that are read ahead where no limit was given, as when one rank loads for itself


class GroupSelection(Selection):
    """What every rank of a group wants of a checkpoint.

    Args:
        catalog: where the tensors are.
        objects: where that is, the same on every rank.
        names: which.
        on_progress: called about ten times a second, or None.
        agreement: with the other ranks.
        checksums: what the store keeps of each object, or None.
    """

    def __init__(
        self,
        catalog: Catalog,
        objects: Objects,
        names: Sequence[str],
        on_progress: ProgressCallback | None,
        *,
        agreement: Agreement[Members],
        checksums: Mapping[str, StoredChecksum | None],
    ) -> None:
        super().__init__(catalog, objects, names, on_progress)
        self._agreement = agreement
        self._checksums = checksums

    def _of(self, catalog: Catalog, names: Sequence[str]) -> Selection:
        return GroupSelection(
            catalog,
            self._objects,
            names,
            self._on_progress,
            agreement=self._agreement,
            checksums=self._checksums,
        )

    def read(self, *, verify: Verify, sha256: str | None) -> dict[str, torch.Tensor]:
        """Return the tensors, on the CPU."""
        return self.move(torch.device("cpu"), None, verify=verify, sha256=sha256)

    def fill(
        self,
        targets: Mapping[str, torch.Tensor],
        *,
        verify: Verify,
        sha256: str | None,  # noqa: ARG002 - no rank sees the bytes in their order: no one can ask for it
        writing: AbstractContextManager[object] = ANY,
    ) -> None:
        """Have the group read the tensors into others, which are alike on every rank.

        Raises:
            FormatError: the server sends no ranges, so that there are no shares.
            GroupError: the ranks do not want the same, or one of them failed.
        """
        if not all(source.size is not None and source.info.ranged for source in self.sources):
            hint = "torchwick.load reads it as a whole, on each rank."
            message = "the server sends no ranges, which ranks could share"
            raise FormatError(message, uri=self._objects.uri, hint=hint)
        members = self._agreement.members
        catalog = replace(self._catalog, entries={name: self._entries[name] for name in targets})
        plan = Plan(catalog, self._objects, targets, members.size)
        self._compare(plan)
        watches = self._watched(plan, verify=verify)
        exchange = Exchange(plan, self._agreement, self._objects.uri)
        self._total = sum(group.nbytes for group in plan.wanted)
        stream = Stream(
            plan.shares[members.rank],
            plan.cut,
            self._objects,
            into=exchange.into,
            watches=_of_rank(members.rank, plan, watches),
            ahead=_AHEAD,
            called=plan.name_of.__getitem__,
            on_progress=partial(self._go_on, exchange),
        )
        self._agreement.ready()
        with writing:
            with stream:
                exchange.run(iter(stream))
            self._conclude(watches)
        self.tell_end()

    def _go_on(self, exchange: Exchange, done: int, connections: int) -> None:
        self._agreement.check()
        self.tell(min(done + exchange.received, self._total), connections)

    def _compare(self, plan: Plan) -> None:
        """Refuse a plan that is not the first rank's."""
        if self._agreement.members.rank == 0:
            self._agreement.tell("digest", plan.digest)
        elif self._agreement.hear("digest") != plan.digest:
            message = "this rank does not want the same tensors, shapes or dtypes as the first one"
            hint = "Call it with the same arguments, and the same module, on every rank."
            raise GroupError(message, uri=self._objects.uri, hint=hint, rank=self._agreement.members.rank)

    def _watched(self, plan: Plan, *, verify: Verify) -> dict[str, Watch]:
        """Return the watch over each object, of all that any rank reads of it."""
        watches = {}
        for name, source in zip(self._objects.names, self.sources, strict=True):
            kept = self._checksums[name]
            if kept is not None and verify is not False:
                source.expected = partial(StoredSums, kept, required=verify is True)
            watches[name] = source.watch(wanted(name, plan.wanted, self._objects))
        return watches

    def _conclude(self, watches: Mapping[str, Watch]) -> None:
        """Wait until every rank has all, and hold what they saw together against what the store keeps.

        Raises:
            IntegrityError: the bytes are others; on every rank.
        """
        agreement, mine = self._agreement, f"sums/{self._agreement.members.rank}"
        agreement.tell(mine, _sums_as_text(watches))
        if agreement.members.rank == 0:
            said = [agreement.hear(f"sums/{rank}") for rank in range(agreement.members.size)]
            _hear(said, watches)
            agreement.tell("verdict", "good")
        else:
            agreement.hear("verdict")
        agreement.part()
        for name, source in zip(self._objects.names, self.sources, strict=True):
            if isinstance(watches[name].witness, Sums):
                kept = self._checksums[name]
                source.verified = None if kept is None else kept.algorithm


def _of_rank(rank: int, plan: Plan, watches: Mapping[str, Watch]) -> dict[str, Watch]:
    """Return what a rank itself reads and sees of it."""
    mine = {}
    for name, watch in watches.items():
        owners = owners_of(watch.besides, name, plan.shares)
        besides = [range_ for range_, owner in zip(watch.besides, owners, strict=True) if owner == rank]
        mine[name] = Watch(watch.witness, besides, watch.stops)
    return mine


def _sums_as_text(watches: Mapping[str, Watch]) -> str:
    """Return what was seen of each object, as text."""
    return json.dumps(
        {
            name: [(piece.start, piece.stop, piece.value) for piece in watch.witness.pieces]
            for name, watch in watches.items()
            if isinstance(watch.witness, Sums)
        }
    )


def _hear(said: Sequence[str], watches: Mapping[str, Watch]) -> None:
    """Add what others saw to what was seen here, and hold it against what the store keeps."""
    of_ranks = [json.loads(text) for text in said]
    for name, watch in watches.items():
        if isinstance(watch.witness, Sums):
            known = set(watch.witness.pieces)
            others = {Piece(*piece) for sums in of_ranks for piece in sums[name]} - known
            for piece in others:
                watch.witness.arrived(piece.start, piece.stop, piece.value)
            watch.finish()
