"""Load a model of transformers, and its tokenizer if it has one, straight from S3.

    pip install 'torchwick[transformers]'
    python examples/transformers_from_s3.py s3://bucket/model/

The directory is one that save_pretrained wrote. Its weights touch no disk.
"""

from __future__ import annotations

import sys

from transformers import AutoTokenizer

import torchwick
from torchwick.integrations.transformers import from_pretrained


def main(uri: str) -> None:
    model = from_pretrained(uri, progress=True)
    size = sum(parameter.nbytes for parameter in model.parameters())
    print(f"{type(model).__name__}, {model.dtype}, {size / 1e6:,.1f} MB")
    try:
        tokenizer = from_pretrained(uri, AutoTokenizer)
    except torchwick.FormatError as error:
        print(f"no tokenizer: {error.message[:80]}")
    else:
        print(f"{type(tokenizer).__name__}, {len(tokenizer)} tokens")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
