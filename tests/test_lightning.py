"""A Trainer and a Fabric of Lightning save to S3, and go on from there as if they had never stopped."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import torchwick
from conftest import run_python
from faults import S3Error
from oracle import assert_same
from torchwick import PutOptions, S3Config
from torchwick.integrations.lightning import TorchwickCheckpointIO
from torchwick.integrations.s3_filesystem import S3FileSystem
from torchwick.integrations.under_way import UnderWay

if TYPE_CHECKING:
    from conftest import Put
    from faulty import FaultyServer
    from torchwick.demo.server import SeaweedFS

pytestmark = [
    # Lightning 2.6 asks torch 2.13 in a way that is going out of use.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # It would have more workers, for four batches.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # Three batches an epoch, and a log interval of fifty steps.
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
    # Whoever goes on saves to where they saved before.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


class Line(LightningModule):
    """Two layers that learn a line; its loss is worst at step `bump`."""

    def __init__(self, width: int = 4, bump: int = -1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Linear(width, 1)
        )
        self.bump = bump

    def _loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.layers(inputs), targets)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self._loss(batch)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        worse = 10.0 if self.current_epoch == self.bump else 0.0
        self.log("loss", self._loss(batch) + worse - self.current_epoch)

    def test_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log("test_loss", self._loss(batch))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(12, 2, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4)


def new_model(**options: Any) -> Line:
    torch.manual_seed(0)
    return Line(**options)


def trainer(*callbacks: Any, plugin: TorchwickCheckpointIO | None = None, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        plugins=[plugin or TorchwickCheckpointIO()],
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def fit(it: Trainer, model: LightningModule, ckpt_path: str | None = None) -> Trainer:
    it.fit(model, data(), data(), ckpt_path=ckpt_path)
    return it


@pytest.fixture
def run(aws_env: SeaweedFS, shared_bucket: str, request: pytest.FixtureRequest) -> str:
    """A directory in S3 of the test's own."""
    return f"s3://{shared_bucket}/lightning/{request.node.name}/"


@pytest.fixture
def keys(s3_client: Any, shared_bucket: str, run: str) -> Any:
    """Return the names of what is in that directory."""

    def names() -> list[str]:
        prefix = run.removeprefix(f"s3://{shared_bucket}/")
        found = s3_client.list_objects_v2(Bucket=shared_bucket, Prefix=prefix).get("Contents", [])
        return [entry["Key"].removeprefix(prefix) for entry in found]

    return names


@pytest.fixture(autouse=True)
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a file in the directory it works in, or in that for temporary files."""
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    for folder in (here, temporary):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    assert [*here.iterdir(), *temporary.iterdir()] == []


def read(client: Any, uri: str) -> Any:
    """What torch.load makes of the object that boto3 fetches."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return torch.load(io.BytesIO(body), weights_only=True)


def test_the_best_are_kept_and_the_others_removed(run: str, keys: Any, s3_client: Any) -> None:
    best = ModelCheckpoint(run, filename="{epoch}", monitor="loss", save_top_k=2, save_last=True)
    model = new_model(bump=2)
    fit(trainer(best, max_epochs=4), model)
    assert keys() == ["epoch=1.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert best.best_model_path == f"{run}epoch=3.ckpt"
    stored = read(s3_client, best.best_model_path)
    assert_same(stored["state_dict"], dict(model.state_dict()), storages=False)
    assert (stored["epoch"], stored["global_step"]) == (3, 12)


def test_it_goes_on_as_if_it_had_never_stopped(run: str, s3_client: Any) -> None:
    whole = new_model()
    fit(trainer(ModelCheckpoint(f"{run}whole/", save_last=True), max_epochs=4), whole)
    fit(trainer(ModelCheckpoint(run, save_last=True), max_epochs=2), new_model())
    torch.manual_seed(99)
    resumed = Line()
    after = fit(trainer(ModelCheckpoint(run, save_last=True), max_epochs=4), resumed, f"{run}last.ckpt")
    assert (after.current_epoch, after.global_step) == (4, 12)
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()), storages=False)
    mine, theirs = read(s3_client, f"{run}last.ckpt"), read(s3_client, f"{run}whole/last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_same(mine[part], theirs[part], storages=False)


def test_last_and_best_are_found(run: str) -> None:
    best = ModelCheckpoint(run, filename="{epoch}", monitor="loss", save_last=True)
    fit(trainer(best, max_epochs=2), new_model())
    new = trainer(ModelCheckpoint(run, filename="{epoch}", monitor="loss", save_last=True), max_epochs=3)
    fit(new, new_model(), "last")
    assert new.ckpt_path == f"{run}last.ckpt"
    assert new.global_step == 9
    for name in ("best", "last"):
        results = new.test(dataloaders=data(), ckpt_path=name, verbose=False)
        assert new.ckpt_path == f"{run}{'epoch=2' if name == 'best' else 'last'}.ckpt"
        assert results[0]["test_loss"] > 0
    new.validate(dataloaders=data(), ckpt_path=f"{run}epoch=2.ckpt", verbose=False)
    assert new.ckpt_path == f"{run}epoch=2.ckpt"


def test_no_last_in_an_empty_directory(run: str) -> None:
    it = trainer(ModelCheckpoint(run, save_last=True), max_epochs=1)
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        fit(it, new_model(), "last")
    assert it.global_step == 3


def test_every_so_many_steps(run: str, keys: Any) -> None:
    often = ModelCheckpoint(run, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(trainer(often, max_epochs=2), new_model())
    assert keys() == ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]
