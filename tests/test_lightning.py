"""A Trainer and a Fabric of Lightning save to S3, and go on from there as if they had never stopped."""

from __future__ import annotations

import io
import os
import pickle
import socket
import threading
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import torchwick
from conftest import run_python
from faults import Instead, S3Error
from oracle import assert_same
from torchwick import Progress, PutOptions, S3Config, TransferConfig
from torchwick.integrations.lightning import TorchwickCheckpointIO
from torchwick.integrations.s3_filesystem import S3FileSystem
from torchwick.integrations.under_way import UnderWay

if TYPE_CHECKING:
    from collections.abc import Iterator

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


REFUSED = Instead(S3Error(403, "AccessDenied", "Access Denied"))


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

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self._loss(batch)

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        worse = 10.0 if self.current_epoch == self.bump else 0.0
        self.log("loss", self._loss(batch) + worse - self.current_epoch)

    def test_step(self, batch: list[torch.Tensor]) -> None:
        self.log("test_loss", self._loss(batch))

    def configure_optimizers(self) -> Any:
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


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that asks anyone but this machine."""
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        assert address[0] in ("127.0.0.1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)


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
    assert_same(stored["state_dict"], model.state_dict(), storages=False)
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


def test_saving_and_loading_without_callbacks(run: str, s3_client: Any) -> None:
    model = new_model(width=7)
    it = fit(trainer(max_epochs=1, enable_checkpointing=False), model)
    it.save_checkpoint(f"{run}whole.ckpt")
    it.save_checkpoint(f"{run}weights.ckpt", weights_only=True)
    assert "optimizer_states" not in read(s3_client, f"{run}weights.ckpt")
    assert_same(read(s3_client, f"{run}whole.ckpt")["state_dict"], model.state_dict(), storages=False)
    loaded = Line.load_from_checkpoint(f"{run}whole.ckpt")
    assert loaded.hparams["width"] == 7
    assert_same(loaded.state_dict(), model.state_dict(), storages=False)


def test_a_fabric(run: str, s3_client: Any) -> None:
    plugin = TorchwickCheckpointIO(background=True)
    fabric = Fabric(accelerator="cpu", plugins=[plugin])
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model, optimizer = fabric.setup(model, optimizer)
    fabric.save(f"{run}state.ckpt", {"model": model, "optimizer": optimizer, "step": 3})
    with torch.no_grad():
        model.weight.zero_()
    rest = fabric.load(f"{run}state.ckpt", {"model": model, "optimizer": optimizer})
    assert rest == {"step": 3}
    assert_same(dict(model.state_dict()), weights, storages=False)
    plugin.teardown()
    assert_same(dict(read(s3_client, f"{run}state.ckpt")["model"]), weights, storages=False)


def test_options_and_progress(run: str, shared_bucket: str, s3_client: Any) -> None:
    seen: list[Progress] = []
    options = PutOptions(metadata={"run": "7"}, content_type="application/x-checkpoint")
    plugin = TorchwickCheckpointIO(options=options, progress=seen.append)
    plugin.save_checkpoint({"w": torch.ones(3)}, f"{run}a.ckpt")
    head = s3_client.head_object(Bucket=shared_bucket, Key=f"{run}a.ckpt".partition(shared_bucket)[2][1:])
    assert (head["Metadata"], head["ContentType"]) == ({"run": "7"}, "application/x-checkpoint")
    assert seen[-1].done == seen[-1].total == head["ContentLength"]
    seen.clear()
    plugin.load_checkpoint(f"{run}a.ckpt")
    assert seen[-1].done == seen[-1].total


def test_settings_reach_lightnings_callbacks_too(
    run: str, aws_env: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name)
    s3 = S3Config(endpoint_url=aws_env.endpoint_url, addressing_style="path")
    for steps in 3, 6:
        last = ModelCheckpoint(run, save_last=True)  # made before the settings are known
        plugin = TorchwickCheckpointIO(s3=s3, transfer=TransferConfig(connections=2))
        it = fit(
            trainer(last, plugin=plugin, max_epochs=steps // 3), new_model(), "last" if steps > 3 else None
        )
        assert it.global_step == steps


def test_it_pickles() -> None:
    plugin = TorchwickCheckpointIO(s3=S3Config(region="eu-west-1"), background=True)
    data = pickle.dumps(plugin)
    S3FileSystem.defaults = torchwick.Client()
    pickle.loads(data).teardown()
    assert S3FileSystem.defaults.s3 == S3Config(region="eu-west-1")


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_there(run: str) -> None:
    plugin = TorchwickCheckpointIO()
    plugin.save_checkpoint({"w": torch.ones(3)}, f"{run}last.ckpt")
    with pytest.raises(torchwick.ObjectNotFoundError, match=f"Did you mean {run}last.ckpt") as caught:
        fit(trainer(plugin=plugin, max_epochs=1), new_model(), f"{run}lats.ckpt")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_bucket_that_is_not_there_is_told_before_training(aws_env: SeaweedFS) -> None:
    it = trainer(ModelCheckpoint("s3://no-such-bucket/run/"), max_epochs=1)
    with pytest.raises(torchwick.ObjectNotFoundError, match="no such bucket"):
        fit(it, new_model())
    assert it.global_step == 0


def test_a_refused_save_ends_the_training(faulty_s3: FaultyServer) -> None:
    faulty_s3.on(REFUSED, method="PUT")
    it = trainer(ModelCheckpoint("s3://bucket/run/"), max_epochs=3)
    with pytest.raises(torchwick.AccessDeniedError, match=r"^s3://bucket/run/epoch=0-step=3.ckpt: "):
        fit(it, new_model())
    assert it.global_step == 3


def test_code_in_a_checkpoint_is_not_run(run: str) -> None:
    plugin = TorchwickCheckpointIO()
    plugin.save_checkpoint({"run": Path("a")}, f"{run}a.ckpt")
    for safe in (None, True):
        with pytest.raises(torchwick.UnsafePickleError, match=r"pathlib\.PosixPath"):
            plugin.load_checkpoint(f"{run}a.ckpt", weights_only=safe)
    assert plugin.load_checkpoint(f"{run}a.ckpt", weights_only=False) == {"run": Path("a")}


def test_storage_options_are_not_for_it(run: str, keys: Any) -> None:
    it = fit(trainer(max_epochs=1, enable_checkpointing=False), new_model())
    with pytest.raises(TypeError, match="storage_options are not for TorchwickCheckpointIO"):
        it.save_checkpoint(f"{run}a.ckpt", storage_options={"acl": "private"})
    assert keys() == []


# -- other places ------------------------------------------------------------------------------------------


def test_a_directory_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "run"
    model = new_model()
    best = ModelCheckpoint(folder, filename="{epoch}", monitor="loss", save_last="link")
    fit(trainer(best, plugin=TorchwickCheckpointIO(background=True), max_epochs=3), model)
    assert sorted(path.name for path in folder.iterdir()) == ["epoch=2.ckpt", "last.ckpt"]
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    assert_same(stored["state_dict"], model.state_dict(), storages=False)
    again = ModelCheckpoint(folder, filename="{epoch}", monitor="loss", save_last=True)
    it = fit(trainer(again, max_epochs=4), new_model(), "last")
    assert it.global_step == 12
    monkeypatch.setenv("HOME", str(tmp_path))
    it.save_checkpoint("~/deep/home.ckpt")
    assert (tmp_path / "deep" / "home.ckpt").is_file()


def test_other_filesystems_are_lightnings(keys: Any) -> None:
    plugin = TorchwickCheckpointIO(background=True)
    plugin.save_checkpoint({"w": torch.ones(3)}, "memory://run/a.ckpt")
    assert_same(plugin.load_checkpoint("memory://run/a.ckpt"), {"w": torch.ones(3)})
    plugin.remove_checkpoint("memory://run/a.ckpt")
    assert not fsspec.filesystem("memory").exists("memory://run/a.ckpt")


def test_a_path_that_lost_a_slash(run: str) -> None:
    with pytest.raises(torchwick.URIError, match=r"pathlib\.Path folds"):
        TorchwickCheckpointIO().save_checkpoint({}, Path(run) / "a.ckpt")


# -- in the background -------------------------------------------------------------------------------------


class Now(Callback):
    """Does something when an epoch begins."""

    def __init__(self, epoch: int, do: Any) -> None:
        self.epoch = epoch
        self.do = do

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self.do()


def test_training_goes_on(faulty_s3: FaultyServer) -> None:
    gate, there = threading.Event(), []

    def go_on() -> None:
        there.append(faulty_s3.content("bucket/run/epoch=0.ckpt"))
        gate.set()

    faulty_s3.on(lambda: gate.wait(20), method="PUT", nth=1)
    every = ModelCheckpoint("s3://bucket/run/", filename="{epoch}", monitor="loss", save_top_k=-1)
    plugin = TorchwickCheckpointIO(background=True)
    fit(trainer(every, Now(1, go_on), plugin=plugin, max_epochs=3), new_model())
    assert there == [None]
    for epoch in range(3):
        stored = torch.load(io.BytesIO(faulty_s3.content(f"bucket/run/epoch={epoch}.ckpt") or b""))
        assert stored["epoch"] == epoch


def test_what_is_saved_is_what_was_there_at_the_time(run: str, keys: Any, s3_client: Any) -> None:
    for background in (False, True):
        every = ModelCheckpoint(
            f"{run}{background}/", filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        plugin = TorchwickCheckpointIO(background=background)
        fit(trainer(every, plugin=plugin, max_epochs=2), new_model())
    names = [name.partition("/")[2] for name in keys() if name.startswith("True/")]
    assert len(names) == 6
    for name in names:
        ours, theirs = read(s3_client, f"{run}True/{name}"), read(s3_client, f"{run}False/{name}")
        for part in ("state_dict", "optimizer_states", "epoch", "global_step"):
            assert_same(ours[part], theirs[part], storages=False)


def test_names_are_given_once_though_nothing_is_there_yet(faulty_s3: FaultyServer) -> None:
    gate = threading.Event()
    faulty_s3.on(lambda: gate.wait(20), method="PUT", nth=1)
    every = ModelCheckpoint(
        "s3://bucket/run/", filename="same", every_n_train_steps=1, monitor="step", save_top_k=-1
    )
    plugin = TorchwickCheckpointIO(background=True)
    it = trainer(every, Now(1, gate.set), plugin=plugin, max_epochs=2, limit_train_batches=1)
    fit(it, new_model())
    steps = [
        torch.load(io.BytesIO(faulty_s3.content(f"bucket/run/{name}.ckpt") or b""))["global_step"]
        for name in ("same", "same-v1")
    ]
    assert steps == [1, 2]
    assert not S3FileSystem.coming


def test_a_failure_is_raised_by_a_later_save(faulty_s3: FaultyServer) -> None:
    faulty_s3.on(REFUSED, method="PUT", nth=1)
    every = ModelCheckpoint("s3://bucket/run/", filename="{epoch}", monitor="loss", save_top_k=-1)
    it = trainer(every, plugin=TorchwickCheckpointIO(background=True), max_epochs=9)
    with pytest.raises(torchwick.AccessDeniedError, match=r"^s3://bucket/run/epoch=0.ckpt: "):
        fit(it, new_model())
    assert it.global_step <= 9  # of 27: two saves are under way at the most
    assert not S3FileSystem.coming


def test_a_failure_is_raised_at_the_end_and_the_old_one_stays(faulty_s3: FaultyServer) -> None:
    faulty_s3.on(REFUSED, method="PUT", nth=2)
    only = ModelCheckpoint("s3://bucket/run/", filename="{epoch}")
    plugin = TorchwickCheckpointIO(background=True)
    with pytest.raises(torchwick.AccessDeniedError, match=r"^s3://bucket/run/epoch=1.ckpt: "):
        fit(trainer(only, plugin=plugin, max_epochs=2), new_model())
    assert torch.load(io.BytesIO(faulty_s3.content("bucket/run/epoch=0.ckpt") or b""))["epoch"] == 0
    assert faulty_s3.content("bucket/run/epoch=1.ckpt") is None
    plugin.teardown()  # it has been told


def test_old_ones_are_removed_in_the_background_too(run: str, keys: Any) -> None:
    best = ModelCheckpoint(run, filename="{epoch}", monitor="loss", save_top_k=2, save_last=True)
    plugin = TorchwickCheckpointIO(background=True)
    fit(trainer(best, plugin=plugin, max_epochs=5), new_model(bump=3))
    assert keys() == ["epoch=2.ckpt", "epoch=4.ckpt", "last.ckpt"]


class TestUnderWay:
    def begun(self, saves: UnderWay, name: str) -> Future[None]:
        future: Future[None] = Future()
        saves.begin(name, lambda: future)
        return future

    def test_the_oldest_makes_room(self) -> None:
        saves, done = UnderWay(), []
        first, second = self.begun(saves, "a"), self.begun(saves, "b")
        waiting = threading.Thread(target=lambda: done.append(self.begun(saves, "c")), name="torchwick-test")
        waiting.start()
        second.set_result(None)
        waiting.join(0.2)
        assert not done
        first.set_result(None)
        waiting.join(5)
        done.pop().set_result(None)
        saves.finish()

    def test_one_of_the_same_name_comes_first(self) -> None:
        saves, done = UnderWay(), []
        first = self.begun(saves, "a")
        waiting = threading.Thread(target=lambda: done.append(self.begun(saves, "a")), name="torchwick-test")
        waiting.start()
        waiting.join(0.2)
        assert not done
        first.set_result(None)
        waiting.join(5)
        done.pop().set_result(None)
        saves.finish()

    def test_what_is_saved_again_is_not_deleted(self) -> None:
        saves, deleted = UnderWay(), []
        first = self.begun(saves, "a")
        saves.delete("b", lambda: deleted.append("b"))
        self.begun(saves, "b").set_result(None)
        first.set_result(None)
        saves.finish()
        assert deleted == []

    def test_with_nothing_under_way_it_is_deleted_at_once(self) -> None:
        deleted: list[str] = []
        UnderWay().delete("a", lambda: deleted.append("a"))
        assert deleted == ["a"]

    def test_all_failures_are_told_and_all_ends_awaited(self) -> None:
        saves, deleted = UnderWay(), []
        first, second = self.begun(saves, "a"), self.begun(saves, "b")
        saves.delete("old", lambda: deleted.append("old"))
        first.set_exception(OSError("no a"))
        second.set_exception(OSError("no b"))
        with pytest.raises(OSError, match="no a") as caught:
            saves.finish()
        assert caught.value.__notes__ == ["Another one failed as well: no b"]
        saves.finish()
        assert deleted == []


# -- the filesystem ----------------------------------------------------------------------------------------


class TestFileSystem:
    @pytest.fixture
    def fs(self, run: str) -> fsspec.AbstractFileSystem:
        filesystem, _ = fsspec.url_to_fs(run)
        assert isinstance(filesystem, S3FileSystem)
        for name in ("a.txt", "deep/b.txt", "deep/er/c.txt", "deep.txt"):
            filesystem.pipe(f"{run}{name}", name.encode())
        return filesystem

    def test_looking(self, fs: fsspec.AbstractFileSystem, run: str) -> None:
        bare = run.removeprefix("s3://").rstrip("/")
        names = ["a.txt", "deep", "deep.txt"]
        assert sorted(fs.ls(run, detail=False)) == [f"{bare}/{name}" for name in names]
        assert {entry["name"]: (entry["type"], entry["size"]) for entry in fs.ls(bare)} == {
            f"{bare}/a.txt": ("file", 5),
            f"{bare}/deep": ("directory", 0),
            f"{bare}/deep.txt": ("file", 8),
        }
        assert fs.ls(f"{run}a.txt", detail=False) == [f"{bare}/a.txt"]
        assert fs.find(run) == [
            f"{bare}/{name}" for name in ("a.txt", "deep.txt", "deep/b.txt", "deep/er/c.txt")
        ]
        assert fs.info(f"{run}a.txt")["size"] == fs.size(f"{run}a.txt") == 5
        for name, kind in [("a.txt", "file"), ("deep", "directory"), ("deep/", "directory"), ("dee", None)]:
            path = run + name
            assert (fs.exists(path), fs.isfile(path), fs.isdir(path)) == (
                kind is not None,
                kind == "file",
                kind == "directory",
            )
        assert abs(fs.modified(f"{run}a.txt") - datetime.now(UTC)) < timedelta(minutes=5)

    def test_what_is_not_there(self, fs: fsspec.AbstractFileSystem, run: str) -> None:
        for ask in (fs.ls, fs.info, fs.modified, fs.rm, fs.open):
            with pytest.raises(torchwick.ObjectNotFoundError):
                ask(f"{run}none")

    def test_reading(self, fs: fsspec.AbstractFileSystem, run: str) -> None:
        with fs.open(f"{run}a.txt", "r") as text:
            assert text.read() == "a.txt"
        assert fs.cat(f"{run}deep/b.txt") == b"deep/b.txt"
        state = {"w": torch.arange(1 << 18)}
        TorchwickCheckpointIO().save_checkpoint(state, f"{run}w.pt")
        with fs.open(f"{run}w.pt") as file:
            assert_same(torch.load(file), state)

    def test_writing(self, fs: fsspec.AbstractFileSystem, run: str) -> None:
        with fs.open(f"{run}new.yaml", "w") as text:
            text.write("a: 1\n")
        assert fs.cat(f"{run}new.yaml") == b"a: 1\n"
        large = os.urandom(6 << 20)
        fs.pipe(f"{run}large", large)
        assert fs.cat(f"{run}large") == large
        with pytest.raises(torchwick.ObjectExistsError), fs.open(f"{run}new.yaml", "xb") as file:
            file.write(b"b")
        for name, content in ("new.yaml", b"a: 1\nb: 2\n"), ("newer.yaml", b"b: 2\n"):
            with fs.open(f"{run}{name}", "a") as text:
                text.write("b: 2\n")
            assert fs.cat(f"{run}{name}") == content
        with pytest.raises(ValueError, match=r"not r\+b"):
            fs.open(f"{run}new.yaml", "r+b")

    def test_what_fails_is_not_written(self, fs: fsspec.AbstractFileSystem, run: str) -> None:
        def fail_after() -> None:
            with fs.transaction:
                with fs.open(f"{run}new", "wb") as file:
                    file.write(b"whole")
                raise ZeroDivisionError

        def fail_inside() -> None:
            with fs.open(f"{run}new", "wb") as file:
                file.write(b"half")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_inside()
        with pytest.raises(ZeroDivisionError):
            fail_after()
        assert not fs.exists(f"{run}new")
        with fs.transaction:
            with fs.open(f"{run}new", "wb") as file:
                file.write(b"whole")
            assert not fs.exists(f"{run}new")
        assert fs.cat(f"{run}new") == b"whole"

    def test_deleting(self, fs: fsspec.AbstractFileSystem, run: str, keys: Any) -> None:
        with pytest.raises(torchwick.URIError, match="recursive=True"):
            fs.rm(f"{run}deep")
        fs.rm(f"{run}deep", recursive=True, maxdepth=1)
        assert sorted(keys()) == ["a.txt", "deep.txt", "deep/er/c.txt"]
        fs.rm(f"{run}deep", recursive=True)
        fs.pipe({f"{run}[a].txt": b"", f"{run}a*": b""})
        fs.rm([f"{run}[a].txt", f"{run}a*"])
        assert keys() == ["a.txt", "deep.txt"]

    @pytest.mark.parametrize("ask", ["exists", "isdir", "isfile", "ls"])
    def test_what_cannot_be_asked_is_no_no(self, ask: str, faulty_s3: FaultyServer) -> None:
        faulty_s3.on(S3Error(403, "AccessDenied", "Access Denied"), method=None)
        with pytest.raises(torchwick.AccessDeniedError):
            getattr(fsspec.filesystem("s3"), ask)("s3://bucket/run")

    def test_lightning_without_the_plugin(self, run: str, s3_client: Any) -> None:
        best = ModelCheckpoint(run, filename="{epoch}", monitor="loss", save_last=True)
        model, it = new_model(), trainer(best, max_epochs=2)
        it.strategy.checkpoint_io = TorchCheckpointIO()
        fit(it, model)
        assert_same(read(s3_client, f"{run}last.ckpt")["state_dict"], model.state_dict(), storages=False)
        best.to_yaml()
        logger = CSVLogger(run, "log")
        logger.log_metrics({"loss": 2.5}, step=1)
        logger.finalize("success")
        assert fsspec.filesystem("s3").cat(f"{run}log/version_0/metrics.csv") == b"loss,step\r\n2.5,1\r\n"
        assert CSVLogger(run, "log").version == 1
        with fsspec.open(f"{run}best_k_models.yaml", "r") as text:
            assert text.read().startswith(f"{run}epoch=1.ckpt: ")


def test_s3fs_is_left_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "s3fs.py").write_text("")
    script = """
import fsspec
from torchwick.integrations.s3_filesystem import register
register()
print("s3" in fsspec.registry)
"""
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    assert run_python(script, PYTHONPATH=path) == "False\n"


def test_the_package_of_the_older_name(run: str) -> None:
    import pytorch_lightning

    class Model(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            loss: torch.Tensor = self.layer(batch[0]).sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    plugins: list[Any] = [TorchwickCheckpointIO()]
    for epochs, path in (1, None), (2, f"{run}last.ckpt"):
        it = pytorch_lightning.Trainer(
            accelerator="cpu",
            plugins=plugins,
            callbacks=[pytorch_lightning.callbacks.ModelCheckpoint(run, save_last=True)],
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        it.fit(Model(), data(), ckpt_path="last" if path else None)
        assert (it.ckpt_path, it.global_step) == (path, 3 * epochs)
