"""The ranks of device meshes: those that share the parameters of a module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from torchwick.ranks.members import keys_of

__all__ = ["MeshMembers", "members_of"]


class MeshMembers:
    """The ranks of a mesh, as an agreement wants them."""

    def __init__(self, ranks: list[int]) -> None:
        self.rank = ranks.index(dist.get_rank())
        self.size = len(ranks)
        name = hashlib.sha256(json.dumps(ranks).encode()).hexdigest()[:16]
        self.store = keys_of(dist.group.WORLD, f"mesh-{name}")

    def abandon(self) -> None:
        """Do nothing: the module that is sharded keeps its meshes."""


def members_of(meshes: Sequence[Any]) -> MeshMembers:
    """Return the ranks of the largest mesh: those of the others are among them, or wait for none of these."""
    roots = [_root(mesh) for mesh in meshes]
    largest = max(roots, key=lambda mesh: mesh.mesh.numel())
    return MeshMembers(sorted(largest.mesh.flatten().tolist()))


def _root(mesh: Any) -> Any:
    """Return the mesh that one is a part of."""
    find: Callable[[], Any] | None = getattr(mesh, "_get_root_mesh", None)
    if find is not None:
        return find()
    from torch.distributed.device_mesh import _mesh_resources

    return _mesh_resources.get_root_mesh(mesh)
