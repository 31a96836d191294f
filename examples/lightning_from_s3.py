"""Train with PyTorch Lightning, keep the checkpoints in S3, and go on from the last one after a break.

    pip install 'torchwick[lightning]'
    python examples/lightning_from_s3.py s3://bucket/run/

Checkpoints are saved in the background, and never touch a disk.
"""

from __future__ import annotations

import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from torchwick.integrations.lightning import TorchwickCheckpointIO


class Sum(LightningModule):
    """Learns to add."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.layer(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main(directory: str) -> None:
    inputs = torch.rand(256, 4)
    data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=32)
    checkpoints = ModelCheckpoint(directory, filename="{epoch}", save_last=True)
    trainer = Trainer(
        accelerator="cpu",
        plugins=[TorchwickCheckpointIO(background=True)],
        callbacks=[checkpoints],
        max_epochs=5,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(Sum(), data, ckpt_path="last")
    print(f"from {trainer.ckpt_path}: {trainer.global_step} steps, saved as {checkpoints.last_model_path}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
