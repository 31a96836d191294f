"""Train, save model and optimizer to S3, and go on from there when called again.

    python examples/resume_training.py s3://bucket/run/last.pt

The model is read into the memory that it has already; the optimizer goes on with the same parameters.
"""

from __future__ import annotations

import sys

import torch

import torchwick

STEPS = 20


def resume(uri: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load what the run before left, and return how many steps it took: 0 if there is none."""
    try:
        torchwick.load_model(model, uri, keys="model.*", rename=("model.", ""))
    except torchwick.ObjectNotFoundError:
        return 0
    # Reads the model's bytes, too: the optimizer's state is nested, and keys= gives a flat dict.
    checkpoint = torchwick.load(uri)
    optimizer.load_state_dict(checkpoint["optimizer"])
    return int(checkpoint["step"])


def main(uri: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    begin = resume(uri, model, optimizer)
    inputs, loss = torch.randn(256, 64), torch.zeros(())
    for _ in range(STEPS):
        loss = model(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": begin + STEPS}
    torchwick.save(state, uri)
    print(f"steps {begin + 1} to {begin + STEPS}, loss {loss.item():.6f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
