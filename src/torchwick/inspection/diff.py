"""`diff`: what is different in two checkpoints, tensor by tensor, whatever their formats."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torchwick.checkpoint.progress import watched
from torchwick.config import S3Config, TransferConfig
from torchwick.report import ProgressCallback
from torchwick.uri import parse

if TYPE_CHECKING:
    from torchwick.checkpoint import Checkpoint
    from torchwick.checkpoint.objects import Objects

__all__ = ["Difference", "TensorPair", "ValueDifference", "diff"]

_HELD = 1 << 30  # bytes held at once where no limit was given


@dataclass(frozen=True)
class ValueDifference:
    """How the elements of two tensors of one shape differ.

    NaN is equal to NaN. Where only one of two is NaN, or they are different infinities, they differ by
    infinity.

    Attributes:
        identical: whether all bits are the same.
        differing: how many elements differ in value; -0.0 is 0.0.
        largest: the largest absolute difference.
        relative: the largest difference, relative to the larger of both magnitudes.
        mean: the mean absolute difference, over all elements.
    """

    identical: bool
    differing: int
    largest: float
    relative: float
    mean: float

    @property
    def equal(self) -> bool:
        """Whether all elements have the same value."""
        return not self.differing


@dataclass(frozen=True)
class TensorPair:
    """A name that is in both checkpoints.

    Attributes:
        name: without the prefix that was to be stripped.
        dtypes: in the one and in the other, as safetensors spells them.
        shapes: in the one and in the other.
        values: how the elements differ; None where they were not compared: the shapes differ, it was not
            asked for, or both are the same object.
    """

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    values: ValueDifference | None

    @property
    def equal(self) -> bool:
        """Whether no difference was found."""
        alike = self.dtypes[0] == self.dtypes[1] and self.shapes[0] == self.shapes[1]
        return alike and (self.values is None or self.values.equal)


@dataclass(frozen=True)
class Difference:
    """What `diff` found.

    Attributes:
        a: the one checkpoint, as text without secrets.
        b: the other.
        same_object: whether both are the same version of the same objects, of which nothing was read.
        values: whether values were compared.
        only_in_a: names that only `a` has.
        only_in_b: names that only `b` has.
        tensors: those that both have, in the order of the bytes of `a`.

    Example:
        >>> Difference("old.pt", "new.pt", False, True, (), ("head.bias",), ()).equal
        False
    """

    a: str
    b: str
    same_object: bool
    values: bool
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    tensors: tuple[TensorPair, ...]

    @property
    def equal(self) -> bool:
        """Whether no difference was found."""
        return not (self.only_in_a or self.only_in_b) and all(pair.equal for pair in self.tensors)

    @property
    def different(self) -> tuple[TensorPair, ...]:
        """Those of `tensors` that are different."""
        return tuple(pair for pair in self.tensors if not pair.equal)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain types, for JSON, which has no infinity: it is the text ``"inf"``."""
        tensors = [_pair_to_dict(pair) for pair in self.tensors]
        return {"equal": self.equal, **asdict(self), "tensors": tensors}


def _pair_to_dict(pair: TensorPair) -> dict[str, Any]:
    told = {"equal": pair.equal, **asdict(pair)}
    if pair.values is not None:
        told["values"] = {
            name: "inf" if value == math.inf else value for name, value in asdict(pair.values).items()
        }
    return told


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    values: bool = True,
    strip: str = "",
    progress: bool | ProgressCallback = False,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> Difference:
    """Tell what is different in two checkpoints: names, dtypes, shapes and values.

    Tensors are compared by name, in whatever formats, objects or shards they are. Values are read and
    compared piece by piece, both sides in step and the next piece while one is compared: no more than
    ``TransferConfig.memory_limit`` is held at once, by default 1 GiB. Differences are computed in double
    precision; those of whole numbers are exact. What is in a checkpoint besides tensors is not compared.

    Args:
        a: the one: an object, or a directory, as for `torchwick.open`.
        b: the other.
        values: compare values; otherwise only headers are read.
        strip: what is taken away from names that begin with it, such as ``"module."``, on both sides.
        progress: True for a bar on standard error, or a function, as for `torchwick.load`; it counts the
            bytes of `a` that were compared.
        s3: who asks and which S3, for both; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory.

    Returns:
        What was found. If `a` and `b` are the same version of the same object, no value is read, and it
        says so.

    Raises:
        URIError: `a` or `b` is no address.
        ValueError: two tensors have one name without what is to be stripped.
        FormatError: one is no checkpoint, or corrupt, or one that can only be loaded as a whole.
        StoreError: one cannot be read.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"w": torch.ones(3), "b": torch.ones(1)}, f"{folder}/old.pt")
        ...     torch.save({"module.w": torch.tensor([1.0, 1.5, 1.0])}, f"{folder}/new.pt")
        ...     found = diff(f"{folder}/old.pt", f"{folder}/new.pt", strip="module.")
        >>> found.equal, found.only_in_a, found.only_in_b
        (False, ('b',), ())
        >>> found.tensors[0].values.differing, found.tensors[0].values.largest
        (1, 0.5)
    """
    config = transfer or TransferConfig()
    (left, left_objects), (right, right_objects) = (_open(uri, s3 or S3Config(), config) for uri in (a, b))
    with left, right:
        names, others = (_stripped(checkpoint, strip) for checkpoint in (left, right))
        same = _identity(left_objects) is not None and _identity(left_objects) == _identity(right_objects)
        pairs = {name: (names[name], others[name]) for name in names if name in others}
        found: Mapping[str, ValueDifference] = {}
        if values and not same:
            from torchwick.inspection.diff_values import compare  # imports torch

            with watched(progress) as on_progress:
                found = compare((left, right), pairs, _memory_limit(config), on_progress)
        return Difference(
            a=left.uri,
            b=right.uri,
            same_object=same,
            values=values and not same,
            only_in_a=tuple(name for name in names if name not in others),
            only_in_b=tuple(name for name in others if name not in names),
            tensors=tuple(_pair(name, left, right, pairs[name], found.get(name)) for name in pairs),
        )


def _open(uri: str | os.PathLike[str], s3: S3Config, config: TransferConfig) -> tuple[Checkpoint, Objects]:
    # Imported here, so that importing this costs no import of HTTP and TLS.
    from torchwick.checkpoint import Checkpoint
    from torchwick.checkpoint.opening import open_objects
    from torchwick.store import open_store

    address = parse(uri)
    catalog, objects = open_objects(address, open_store(address, s3, config.timeout), config)
    return Checkpoint(catalog, objects), objects


def _identity(objects: Objects) -> object:
    """Return what only the same version of the same objects has, or None where the store gives no tags.

    A tag alone does not tell: a web server makes it from a date and a size.
    """
    infos = [objects[name].info for name in objects.names]
    known = [(info.uri, info.size, info.etag or info.modified) for info in infos]
    return known if all(size is not None and tag is not None for _, size, tag in known) else None


def _stripped(checkpoint: Checkpoint, strip: str) -> dict[str, str]:
    """Return the names in the order of the bytes, by what is left of them."""
    names = {name.removeprefix(strip): name for name in checkpoint.offset_keys()}
    if len(names) != len(checkpoint):
        twice = next(name for name in checkpoint if names[name.removeprefix(strip)] != name)
        raise ValueError(
            f"{checkpoint.uri}: without {strip!r} two tensors are called {twice.removeprefix(strip)[:100]!r}"
        )
    return names


def _memory_limit(config: TransferConfig) -> int:
    limit = config.memory_bytes()
    return min(limit, _HELD) if config.memory_limit == "auto" else limit


def _pair(
    name: str, left: Checkpoint, right: Checkpoint, names: tuple[str, str], found: ValueDifference | None
) -> TensorPair:
    one, other = left.info(names[0]), right.info(names[1])
    return TensorPair(name, (one.dtype, other.dtype), (one.shape, other.shape), found)
