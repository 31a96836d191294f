"""Load a state dict from S3, and say what is in it.

    python examples/load_state_dict.py s3://bucket/model.pt
    python examples/load_state_dict.py s3://bucket/model.safetensors

Credentials, region and endpoint are found as boto3 finds them: in the AWS_* environment variables, in
~/.aws, or from the machine's role.
"""

from __future__ import annotations

import sys

import torchwick


def main(uri: str) -> None:
    state = torchwick.load(uri, map_location="cpu", progress=True)
    for name, tensor in state.items():
        print(f"{name:60} {tensor.dtype!s:15} {tuple(tensor.shape)}")
    print(f"{len(state)} tensors, {sum(tensor.nbytes for tensor in state.values()) / 1e6:,.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
