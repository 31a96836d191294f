"""Load exactly one file, and where that fails, say what to do: by the kind of failure, then by a diagnosis.

    python examples/load_or_say_why.py s3://bucket/model.pt SHA256

What a service does with each kind of failure differs: an absent model may be normal, a transfer that failed
may be tried again, and a file that is not the pinned one must never be served.
"""

from __future__ import annotations

import sys
from typing import Any

import torchwick

MODEL_IS_OPTIONAL, TRY_AGAIN, CALL_SOMEONE = 3, 4, 5


def load(uri: str, sha256: str) -> Any:
    """Return the model, or end the process with a status that says what to do."""
    try:
        return torchwick.load(uri, map_location="cpu", sha256=sha256)
    except torchwick.TorchwickError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = _status(error)
    for number, advice in enumerate(torchwick.doctor(uri).advice, 1):
        print(f"{number}. {advice}", file=sys.stderr)
    raise SystemExit(status)


def _status(error: torchwick.TorchwickError) -> int:
    if isinstance(error, torchwick.ObjectNotFoundError):
        return MODEL_IS_OPTIONAL
    return TRY_AGAIN if error.retryable else CALL_SOMEONE


def main(uri: str, sha256: str) -> None:
    state = load(uri, sha256)
    print(f"{len(state)} tensors, exactly the file {sha256[:12]}…")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
