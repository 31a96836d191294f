"""Ranks that fill a sharded module: all read one version, and none is left waiting for another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from torchwick.checkpoint.objects import Objects
from torchwick.errors import ObjectChangedError
from torchwick.loading.sharded import Place, ShardedPlace
from torchwick.report import Progress, ProgressCallback

if TYPE_CHECKING:
    from torchwick.ranks.agreement import Agreement
    from torchwick.ranks.meshes import MeshMembers

__all__ = ["TIMEOUT", "Ranks", "together"]

TIMEOUT = 60.0  # seconds without a sign of life of a rank


class Ranks(Protocol):
    """Those that fill the module."""

    def heeded(self, on_progress: ProgressCallback | None) -> ProgressCallback | None:
        """Return a callback that looks for the failure of another rank as well."""
        ...

    def all_have_read(self) -> None:
        """Wait until every rank has."""
        ...


class _Alone:
    """One process, which waits for no one."""

    def heeded(self, on_progress: ProgressCallback | None) -> ProgressCallback | None:
        return on_progress

    def all_have_read(self) -> None:
        """Go on."""


class _Together:
    """Several, which agree through the key-value store of torch.distributed."""

    def __init__(self, agreement: Agreement[MeshMembers]) -> None:
        self._agreement = agreement

    def heeded(self, on_progress: ProgressCallback | None) -> ProgressCallback | None:
        def heed(progress: Progress) -> None:
            self._agreement.check()
            if on_progress is not None:
                on_progress(progress)

        return heed

    def all_have_read(self) -> None:
        self._agreement.ready()

    def compare(self, objects: Objects) -> None:
        """Refuse to read another version than the first rank.

        Raises:
            ObjectChangedError: it was overwritten since that opened it.
        """
        versions = json.dumps(objects.versions)
        if self._agreement.members.rank == 0:
            self._agreement.tell("versions", versions)
        elif self._agreement.hear("versions") != versions:
            message = "it was overwritten while the ranks opened it"
            raise ObjectChangedError(message, uri=objects.uri, hint="Load it again.")


@contextmanager
def together(places: Iterable[Place], objects: Objects) -> Iterator[Ranks]:
    """Yield the ranks that share what is filled, all of them having come.

    Args:
        places: where the checkpoint's tensors go.
        objects: the checkpoint.

    Raises:
        GroupError: a rank failed, is gone or did not come.
        ObjectChangedError: the ranks see different versions.
    """
    meshes = [place.mesh for place in places if isinstance(place, ShardedPlace)]
    if not meshes:
        yield _Alone()
        return
    from torchwick.ranks.agreement import Agreement
    from torchwick.ranks.meshes import members_of

    with Agreement(members_of(meshes), TIMEOUT) as agreement, agreement.patient():
        agreement.arrive()
        ranks = _Together(agreement)
        ranks.compare(objects)
        yield ranks
