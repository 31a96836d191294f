"""Save a model in shards, beside the one that is there, and replace that once the new one is whole.

    python examples/save_shards.py s3://bucket/model/

A reader finds the old model until the index of the new one is there, and the new one from then on.
"""

from __future__ import annotations

import sys

import torch

import torchwick


def main(directory: str) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
    try:
        report = torchwick.save_model(model, directory, max_shard_size="1MB", delete_replaced=True)
    except torchwick.TorchwickError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    for file in report.files:
        print(f"{file.uri}: {file.size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
