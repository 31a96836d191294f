"""The files the loader is judged on: odd checkpoints, odd safetensors, lies, and things that are neither."""

from __future__ import annotations

from checkpoints.base import OddCheckpoint, Outcome
from checkpoints.devices import DEVICES
from checkpoints.foreign import FOREIGN
from checkpoints.hostile import HOSTILE, Attack
from checkpoints.legacy import LEGACY
from checkpoints.not_models import NOT_MODELS
from checkpoints.objects import OBJECTS
from checkpoints.safetensors import SAFETENSORS
from checkpoints.tensors import TENSORS
from checkpoints.zip import ZIPS

__all__ = ["HOSTILE", "NOT_MODELS", "ODD_CHECKPOINTS", "SAFETENSORS", "Attack", "OddCheckpoint", "Outcome"]

ODD_CHECKPOINTS: tuple[OddCheckpoint, ...] = (*OBJECTS, *TENSORS, *FOREIGN, *DEVICES, *ZIPS, *LEGACY)
