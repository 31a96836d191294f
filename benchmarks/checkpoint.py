"""The checkpoint every row loads: made once, kept in benchmarks/out/, described by a manifest.

The shapes are TinyLlama-1.1B's (https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0, config.json):
22 layers of 9 tensors, an embedding, a final norm and a head, which is 201 tensors and 2.2 GB in bfloat16.
Another size keeps the count and scales every dimension.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OUT = Path(__file__).parent / "out"
FULL_SIZE_GB = 2.2
LAYERS = 22
TAIL = 1 << 20
CHECKED_TENSOR = "model.layers.11.mlp.down_proj.weight"


@dataclass(frozen=True)
class Artifact:
    """One file as the server gives it: its size, and the CRC-32 of its last mebibyte."""

    size: int
    tail_crc: int


@dataclass(frozen=True)
class Manifest:
    """What a load must yield to count."""

    tensors: int
    checked_crc: int
    artifacts: dict[str, Artifact]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the manifest that `ensure` left."""
        fields = json.loads(path.read_text())
        artifacts = {name: Artifact(**artifact) for name, artifact in fields.pop("artifacts").items()}
        return cls(artifacts=artifacts, **fields)


def manifest_path(size_gb: float) -> Path:
    """Where the manifest of this size lies, beside `model.pt` and `model.safetensors`."""
    return OUT / f"checkpoint-{size_gb:g}gb" / "manifest.json"


def ensure(size_gb: float) -> Path:
    """Return the folder of the checkpoint, generating it first where it is missing."""
    manifest = manifest_path(size_gb)
    # The manifest is written last, so a run cut short leaves none and the next run starts over.
    if not manifest.exists():
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps(asdict(_generate(manifest.parent, size_gb)), indent=2))
    return manifest.parent


def crc_of(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    import torch

    return zlib.crc32(tensor.detach().contiguous().view(torch.uint8).numpy().data)


def shapes(size_gb: float) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor."""
    scale = math.sqrt(size_gb / FULL_SIZE_GB)
    hidden, inner, key_value, vocabulary = (
        max(8, round(dimension * scale / 8) * 8) for dimension in (2048, 5632, 256, 32000)
    )
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    return {
        "model.embed_tokens.weight": (vocabulary, hidden),
        **{f"model.layers.{i}.{part}.weight": shape for i in range(LAYERS) for part, shape in layer.items()},
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }


def _generate(folder: Path, size_gb: float) -> Manifest:
    import safetensors.torch
    import torch

    torch.manual_seed(0)
    tensors = {
        name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-1, 1)
        for name, shape in shapes(size_gb).items()
    }
    torch.save(tensors, folder / "model.pt")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return Manifest(
        tensors=len(tensors),
        checked_crc=crc_of(tensors[CHECKED_TENSOR]),
        artifacts={name: _describe(folder / name) for name in ("model.pt", "model.safetensors")},
    )


def _describe(path: Path) -> Artifact:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL))
        return Artifact(size=size, tail_crc=zlib.crc32(file.read()))
