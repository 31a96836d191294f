"""Let a process that has no credentials load a model, for ten minutes, through a presigned URL.

    python examples/serve_from_presigned_url.py s3://bucket/model.pt

Here both halves run in one process. In earnest, `presign` runs where the credentials are, and only the URL
goes to the machine that loads. Whoever has the URL may read the object until then: treat it as a secret.
"""

from __future__ import annotations

import sys

import boto3

import torchwick

LIFETIME = 600  # seconds


def presign(uri: str) -> str:
    """Return an https:// URL that reads this one object without credentials."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    url: str = client.generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=LIFETIME
    )
    return url


def main(uri: str) -> None:
    state = torchwick.load(presign(uri), map_location="cpu", progress=True)
    print(f"{len(state)} tensors, {sum(tensor.nbytes for tensor in state.values()) / 1e6:,.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
