"""Load a model on every rank of a job, so that each byte leaves S3 once.

    torchrun --nproc-per-node 4 examples/group_load.py s3://bucket/model.safetensors
    python examples/group_load.py s3://bucket/model.safetensors

The second line makes a group of one rank. Each rank says what it read itself; together that is the model.
"""

from __future__ import annotations

import os
import sys
import tempfile

import torch.distributed as dist

import torchwick
import torchwick.distributed


def main(uri: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ:  # which torchrun sets
            dist.init_process_group("gloo")
        else:
            dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        try:
            state = torchwick.distributed.load(uri, progress=dist.get_rank() == 0, on_report=say)
        except torchwick.GroupError as error:
            raise SystemExit(f"rank {dist.get_rank()}: {error}") from error
        size = sum(tensor.nbytes for tensor in state.values())
        print(f"rank {dist.get_rank()}: {len(state)} tensors, {size / 1e6:,.1f} MB")
        dist.destroy_process_group()


def say(report: torchwick.LoadReport) -> None:
    print(f"rank {dist.get_rank()}: read {report.bytes_read / 1e6:,.1f} MB of it in {report.seconds:.1f} s")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
