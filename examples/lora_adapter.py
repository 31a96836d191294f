"""Put a LoRA adapter from S3 onto its base model, which comes from S3 as well.

    pip install 'torchwick[transformers]' peft
    python examples/lora_adapter.py s3://bucket/base/ s3://bucket/adapter/

Both directories are as save_pretrained writes them. The adapter's weights are read into the modules that peft
made for them. A second adapter would get another name, and share the base model.
"""

from __future__ import annotations

import json
import sys

from peft import LoraConfig, get_peft_model

import torchwick
from torchwick.integrations.transformers import from_pretrained

NAME = "default"


def main(base: str, adapter: str) -> None:
    with torchwick.open_file(f"{adapter}adapter_config.json") as file:
        config = LoraConfig(**json.load(file))
    model = get_peft_model(from_pretrained(base), config, adapter_name=NAME)

    def named(name: str) -> str:
        """In the file the adapter has no name: …q_proj.lora_A.weight."""
        stem, _, last = name.rpartition(".")
        return f"{stem}.{NAME}.{last}"

    # The base model's own weights are not in the file, and are here already.
    missing, unexpected = torchwick.load_model(
        model, f"{adapter}adapter_model.safetensors", rename=named, strict=False
    )
    lacking = [name for name in missing if ".lora_" in name]
    if lacking or unexpected:
        raise SystemExit(f"the adapter does not fit: it lacks {lacking}, and has {unexpected} besides")
    adapted = [name for name, _ in model.named_parameters() if ".lora_" in name]
    print(f"{type(model.get_base_model()).__name__} with {len(adapted)} tensors of an adapter")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
