"""Which files of a directory are the model, and what the index says that maps names to shards.

The names are those that transformers and diffusers write and look for, in the order in which transformers
prefers them (transformers/modeling_utils.py): safetensors before torch, one file before an index of several.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchwick.errors import FormatError

__all__ = ["KNOWN", "Index", "choose", "read_index"]

_log = logging.getLogger("torchwick")

KNOWN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
)
"""Files that are a model, or the index of one, the preferred first."""
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_INDEX = ".index.json"
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")
_MOST_NAMED = 8  # files in a message
_MOST_SHARDS = 10_000  # of each the header is read; the largest models have some hundreds
_NOT_MODELS = (
    "training_args.bin",
    "optimizer.bin",
    "scheduler.bin",
    "rng_state.pth",
    "optimizer.pt",
    "scheduler.pt",
)
_HINT = "Name one of its files, or a directory with a model in it."


@dataclass(frozen=True)
class Index:
    """What an index says.

    Attributes:
        shard_of: the file that each tensor is in, by the tensor's name.
        metadata: what else it says, as texts.
    """

    shard_of: dict[str, str]
    metadata: dict[str, str]


def choose(names: Sequence[str], uri: object) -> list[str]:
    """Return the file or index that is the directory's model, or all the shards of one without an index.

    Args:
        names: of the files in the directory.
        uri: the directory, for messages.

    Raises:
        FormatError: none is, some are missing, or it is not clear which.

    Example:
        >>> choose(["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "dir/")
        ['model.safetensors.index.json']
        >>> choose(["b-00002-of-00002.safetensors", "b-00001-of-00002.safetensors"], "dir/")
        ['b-00001-of-00002.safetensors', 'b-00002-of-00002.safetensors']
    """
    known = [name for name in KNOWN if name in names]
    if known:
        if len(known) > 1:
            _log.info("%s: of %s, the first is taken", uri, ", ".join(known))
        return known[:1]
    indexes = [name for name in names if name.endswith(_INDEX)]
    if indexes:
        return _only(indexes, uri)
    for ending in _ENDINGS:
        found = sorted(name for name in names if name.endswith(ending) and name not in _NOT_MODELS)
        if found:
            return _shards(found, uri)
    if not names:
        raise FormatError("the directory is empty", uri=uri, hint=_HINT)
    raise FormatError(f"no model is in the directory, only {_few(names)}", uri=uri, hint=_HINT)


def _only(found: list[str], uri: object) -> list[str]:
    if len(found) > 1:
        raise FormatError(
            f"several models are in the directory: {_few(found)}", uri=uri, hint="Name one of them."
        )
    return found


def _shards(found: list[str], uri: object) -> list[str]:
    """Return the files if they are one, or the numbered shards of one model, all of them."""
    numbered = [match for name in found if (match := _NUMBERED.fullmatch(name))]
    if not numbered:
        return _only(found, uri)
    sets = sorted({(match[1], match[3], match[4]) for match in numbered})
    if len(sets) > 1 or len(numbered) < len(found):
        several = [f"{stem}-*-of-{count}{ending}" for stem, count, ending in sets]
        return _only([*several, *(name for name in found if not _NUMBERED.fullmatch(name))], uri)
    stem, count, ending = sets[0]
    wanted = [f"{stem}-{number:05}-of-{count}{ending}" for number in range(1, int(count) + 1)]
    missing = sorted(set(wanted).difference(found))
    if missing:
        hint = "Upload it again, whole."
        raise FormatError(f"shards are missing from the directory: {_few(missing)}", uri=uri, hint=hint)
    return _only(found, uri) if set(found) != set(wanted) else found


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(name[:200] for name in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")


def read_index(data: bytes, uri: object) -> Index:
    """Read an index.

    Raises:
        FormatError: it is none.

    Example:
        >>> read_index(b'{"weight_map": {"w": "model-00001-of-00001.safetensors"}}', "index.json").shard_of
        {'w': 'model-00001-of-00001.safetensors'}
    """
    try:
        said = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
        texts = _texts(said)
    except (ValueError, RecursionError) as error:
        raise _corrupt(f"it is no JSON: {str(error)[:200]}", uri) from None
    shard_of = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise _corrupt("it lacks the weight_map from names to files", uri)
    if not shard_of:
        raise _corrupt("its weight_map is empty", uri)
    if len(set(shard_of.values())) > _MOST_SHARDS:
        raise _corrupt(f"it names more than {_MOST_SHARDS} files", uri)
    return Index(shard_of, texts)


def _texts(said: Any) -> dict[str, str]:
    metadata = said.get("metadata") if isinstance(said, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # readers differ in which they take
        raise ValueError("a name occurs twice")
    return found


def _corrupt(message: str, uri: object) -> FormatError:
    return FormatError(f"the index cannot be read: {message}", uri=uri, hint="Upload the directory again.")
