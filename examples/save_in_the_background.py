"""Train, and save every few steps without waiting for the network.

    python examples/save_in_the_background.py s3://bucket/run/

What is saved are the weights at the time of the call. `result()` waits for the last save; a failure of one
before it would be raised where the next begins.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future

import torch

import torchwick


def main(directory: str) -> None:
    model = torch.nn.Linear(64, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saving: Future[torchwick.SaveReport] | None = None
    for step in range(1, 31):
        loss = model(torch.randn(16, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            if saving is not None:
                saving.result()  # raises if it failed
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            saving = torchwick.save_async(state, f"{directory}step-{step}.pt")
    if saving is not None:
        report = saving.result()
        print(f"{report.uri}: {report.size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
