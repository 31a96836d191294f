"""Look inside a checkpoint of any size, and read no more of it than is needed.

python examples/look_inside.py s3://bucket/model.pt
"""

from __future__ import annotations

import sys

import torchwick


def main(uri: str) -> None:
    with torchwick.open(uri) as ckpt:
        print(f"{ckpt.uri}: {ckpt.format}, {len(ckpt)} tensors")
        largest = max(ckpt, key=lambda name: ckpt.info(name).nbytes)
        info = ckpt.info(largest)
        print(f"largest: {largest}, {info.dtype} {list(info.shape)}, {info.nbytes:,} bytes")
        print(f"its first row: {tuple(ckpt.get_slice(largest)[:1].shape)}")
        traffic = ckpt.traffic
        print(f"{traffic.bytes_read:,} bytes read in {traffic.requests} requests")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
