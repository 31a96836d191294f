"""Checkpoints whose storages say they lived elsewhere, and the map_location that brings them home."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch

from checkpoints.base import OddCheckpoint, Outcome, save_bytes, written
from checkpoints.objects import state_dict

_NEEDS_CUDA: Outcome = "spooled" if torch.cuda.is_available() else "error"
_NEEDS_MPS: Outcome = "spooled" if torch.backends.mps.is_available() else "error"


def saved_on(location: str, **save_options: Any) -> bytes:
    """A state dict whose storages carry this location tag, as if saved on that device."""
    with patch.object(torch.serialization, "location_tag", lambda _storage: location):
        return save_bytes(dict(state_dict()), **save_options)


def _keep(storage: Any, _location: str) -> Any:
    return storage


def _leave(_storage: Any, _location: str) -> None:
    """Return nothing: torch then follows the tag."""


def _on(name: str, location: str, path: Outcome, map_location: Any = None, note: str = "") -> OddCheckpoint:
    return written(f"on_{name}", lambda: saved_on(location), path, map_location=map_location, note=note)


DEVICES: tuple[OddCheckpoint, ...] = (
    _on("cpu_to_cpu", "cpu", "deferred", "cpu"),
    _on("cpu_to_cpu_device", "cpu", "deferred", torch.device("cpu")),
    _on("cpu_to_cuda", "cpu", _NEEDS_CUDA, "cuda:0"),
    _on("cpu_to_meta", "cpu", "deferred", "meta", note="nothing is fetched; torch.load drops the ties"),
    _on("cpu_to_meta_device", "cpu", "deferred", torch.device("meta")),
    _on("cpu_to_nowhere", "cpu", "error", "nowhere"),
    _on("cpu_other_dict", "cpu", "deferred", {"cuda:0": "cpu"}),
    _on("cpu_empty_dict", "cpu", "deferred", {}),
    _on("cpu_dict_to_meta", "cpu", "spooled", {"cpu": "meta"}, note="the storages are read, then dropped"),
    _on("cpu_callable", "cpu", "spooled", _keep),
    _on("cpu_callable_none", "cpu", "spooled", _leave),
    _on("cuda", "cuda:0", _NEEDS_CUDA),
    _on("cuda_to_cpu", "cuda:0", "deferred", "cpu"),
    _on("cuda_to_cpu_device", "cuda:0", "deferred", torch.device("cpu")),
    _on("cuda_dict", "cuda:0", "deferred", {"cuda:0": "cpu"}),
    _on(
        "cuda_wrong_dict",
        "cuda:1",
        _NEEDS_CUDA if torch.cuda.device_count() > 1 else "error",
        {"cuda:0": "cpu"},
    ),
    _on("cuda_callable", "cuda:0", "spooled", _keep),
    _on("cuda_callable_none", "cuda:0", _NEEDS_CUDA, _leave),
    _on("cuda_to_meta", "cuda:0", "deferred", "meta"),
    _on("mps", "mps", _NEEDS_MPS),
    _on("mps_to_cpu", "mps", "deferred", "cpu"),
    _on("unknown_device", "tpu:7", "error"),
    _on("unknown_device_to_cpu", "tpu:7", "deferred", "cpu"),
    _on("meta_with_bytes", "meta", "either", note="records hold bytes, the tensors come out meta"),
    _on("meta_with_bytes_to_cpu", "meta", "deferred", "cpu"),
    written(
        "legacy_on_cuda",
        lambda: saved_on("cuda:0", _use_new_zipfile_serialization=False),
        _NEEDS_CUDA,
    ),
    written(
        "legacy_on_cuda_to_cpu",
        lambda: saved_on("cuda:0", _use_new_zipfile_serialization=False),
        "deferred",
        map_location="cpu",
    ),
    written(
        "legacy_on_cpu_to_meta",
        lambda: saved_on("cpu", _use_new_zipfile_serialization=False),
        "either",
        map_location="meta",
        note="torch reads through the bytes and keeps none",
    ),
)
