"""What Lightning's users write: a plain Trainer, callbacks and settings of their own."""

import copy
import csv
import importlib.util
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy

from conftest import assert_clear_error, run_minigpt
from minigpt import cost, model
from minigpt.errors import UserError
from minigpt.run import RunFolder, read_checkpoint
from minigpt.training import module as module_file
from minigpt.training.callbacks import TextSampler
from minigpt.training.checkpoints import RunCheckpoint
from minigpt.training.data import CharDataModule
from minigpt.training.module import GPTLightningModule

SHAPE: dict[str, Any] = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
CALLBACKS = "lightning.pytorch.callbacks."


def make_trainer(max_steps: int = 4, **settings: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    interval: dict[str, Any] = {"val_check_interval": 2, "check_val_every_n_epoch": None, "log_every_n_steps": 2}
    return Trainer(**{"accelerator": "cpu", "max_steps": max_steps, **quiet, **interval, **settings})


def make_parts(cls: type[GPTLightningModule] = GPTLightningModule, **settings: Any) -> tuple[Any, CharDataModule]:
    data = CharDataModule(Path("text.txt"), block_size=16, batch_size=8)
    return cls(data.vocabulary, warmup_steps=2, **SHAPE, **settings), data


def test_a_plain_trainer_logs_the_training_loss_and_counts_nothing_for_ever(workplace: Path) -> None:
    module, data = make_parts()
    trainer = make_trainer(logger=CSVLogger("curves"), enable_checkpointing=False)
    trainer.fit(module, data)
    with Path(trainer.log_dir or "", "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["1", "3"]
    assert module.train_nats.update_count == 0


@pytest.mark.parametrize("ours", [True, False])
def test_a_plain_trainer_finds_its_best_checkpoint_and_resumes(workplace: Path, ours: bool) -> None:
    theirs = ModelCheckpoint("kept", monitor="val/loss", save_top_k=1, every_n_train_steps=2)
    module, data = make_parts()
    trainer = make_trainer(callbacks=[RunCheckpoint() if ours else theirs], default_root_dir="kept")
    trainer.fit(module, data)
    best: str = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    (scores,) = trainer.test(datamodule=data, ckpt_path="best", verbose=False)
    other, data = make_parts()
    assert make_trainer().test(other, data, ckpt_path=best, verbose=False) == [scores]
    longer = make_trainer(6, enable_checkpointing=False)
    longer.fit(*make_parts(), ckpt_path=best)
    assert longer.global_step == 6


class Subclass(GPTLightningModule):
    """A user's own, with a setting and an optimizer."""

    def __init__(self, vocabulary: str, extra: float = 0.5, **settings: Any) -> None:
        super().__init__(vocabulary, **settings)
        self.extra = extra
        self.save_hyperparameters("extra")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([{"params": [p]} for p in self.parameters()], lr=0.1)


def test_a_subclass_keeps_its_setting_its_optimizer_and_the_clipping(workplace: Path) -> None:
    module, data = make_parts(Subclass, extra=0.25)
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    trainer = make_trainer(1, gradient_clip_val=1e-3, enable_checkpointing=False)
    trainer.fit(module, data)
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert module.grad_norm > 0
    assert (after - before).norm() == pytest.approx(1e-4, rel=0.01), "the rate times the norm that it is clipped to"
    trainer.save_checkpoint("mine.ckpt", weights_only=False)
    restored = Subclass.load_from_checkpoint("mine.ckpt", map_location="cpu")
    assert restored.extra == 0.25
    longer = make_trainer(2, enable_checkpointing=False)
    longer.fit(restored, data, ckpt_path="mine.ckpt")
    assert [group["lr"] for group in longer.optimizers[0].param_groups] == [0.1] * len(list(module.parameters()))
    assert CharDataModule.load_from_checkpoint("mine.ckpt").settings == data.settings
    with pytest.raises(UserError, match="weights_only"):
        Subclass.load_from_checkpoint("mine.ckpt", weights_only=False)  # type: ignore[arg-type]


def test_a_new_setting_of_the_model_is_counted(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider(model.GPT):
        def __init__(self, config: model.GPTConfig) -> None:
            super().__init__(config)
            self.more = torch.nn.Linear(config.n_embd, 10**6)

    monkeypatch.setattr(module_file, "GPT", Wider)
    monkeypatch.setattr(cost, "memory_of_machine", lambda: 10**8)
    assert_clear_error(run_minigpt("fit", "--config", "tiny.yaml"), "has 17,00", "parameters")


def test_callbacks_of_ones_own_live_beside_ours_also_on_resume(workplace: Path) -> None:
    Path("own.yaml").write_text(
        "trainer:\n  enable_progress_bar: true\n  callbacks:\n"
        f"  - class_path: {CALLBACKS}TQDMProgressBar\n"
        f"  - {{class_path: {CALLBACKS}EarlyStopping, init_args: {{monitor: val/loss, patience: 5, "
        "check_on_train_epoch_end: false}}\n"
        f"  - {{class_path: {CALLBACKS}ModelCheckpoint, init_args: {{save_last: true, every_n_train_steps: 4, "
        "save_top_k: 1}}\n"
    )
    fit = ("fit", "--config", "tiny.yaml", "--config", "own.yaml", "--threads", 1)
    first = run_minigpt(*fit, "--trainer.max_steps", 8)
    assert first.code == 0, first.err
    run = Path("lightning_logs/tiny/version_0")
    assert (run / "model_checkpoint" / "last.ckpt").is_file()
    ours = {path.name for path in (run / "checkpoints").iterdir()}
    assert len(ours) == 2
    assert "last.ckpt" in ours
    again = run_minigpt(*fit, "--ckpt_path", "last", "--trainer.max_steps", 16)
    assert again.code == 0, again.err
    assert len(list((run / "checkpoints").iterdir())) == 2
    states = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert len([key for key in states if "EarlyStopping" in key]) == 2
    assert (run / "model_checkpoint" / "last.ckpt").is_file()
    alone = run_minigpt("fit", "--ckpt_path", "last", "--trainer.max_steps", 24)
    assert alone.code == 0, alone.err
    assert "Not restored" in alone.out
    assert "--trainer.callbacks. Give it again" in alone.out


@pytest.mark.parametrize("flags", ["--trainer.profiler simple", "--trainer.fast_dev_run true"])
def test_settings_of_the_trainer_work(workplace: Path, flags: str) -> None:
    result = run_minigpt("fit", "--config", "tiny.yaml", "--trainer.max_steps", 2, *flags.split())
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--seed_everything true", "seed_everything"),
        ("--trainer.barebones true", "docs/python.md"),
        ("--trainer.enable_checkpointing false", "trainer.enable_checkpointing"),
    ],
)
def test_what_no_run_can_go_by_is_refused(workplace: Path, flags: str, words: str) -> None:
    assert_clear_error(run_minigpt("fit", "--config", "tiny.yaml", *flags.split()), words)


def test_sampling_under_fsdp_is_refused_instead_of_hanging() -> None:
    trainer: Any = types.SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(UserError, match=r"sampler\.every_n_steps 0"):
        TextSampler().setup(trainer, None, "fit")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("WandbLogger", "WandbLogger can't be used: Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip"),
        ("CSVLogger", "CSVLogger can't be used: the following arguments are required: save_dir."),
        ("lightning.pytorch.loggers.NoLogger", "can't be used: module 'lightning.pytorch.loggers' has no attribute"),
    ],
)
def test_a_logger_that_cannot_be_had_is_told_in_two_lines(workplace: Path, flags: str, words: str) -> None:
    if flags == "WandbLogger" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is there")
    result = run_minigpt("fit", "--config", "tiny.yaml", "--trainer.logger", flags)
    assert_clear_error(result, words)
    assert len(result.err[result.err.index("minigpt: ") :]) < 300
    assert not list(Path("lightning_logs").rglob("version_*"))


class StubLogger(CSVLogger):
    """One that keeps to itself what it is told, as those do that send it away."""

    told: ClassVar[list[dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.told.append(metrics)


def test_a_logger_of_ones_own_is_told_all_curves(workplace: Path) -> None:
    flags = ("--trainer.logger", "test_python.StubLogger", "--trainer.logger.save_dir", "away")
    assert run_minigpt("fit", "--config", "tiny.yaml", *flags, "--trainer.max_steps", 8).code == 0
    names = set().union(*StubLogger.told)
    assert {"train/loss", "train/grad_norm_max", "val/loss", "val/bits_per_byte", "lr-AdamW/decay"} <= names
    assert Path("lightning_logs/tiny/version_0/metrics.csv").exists()


@pytest.mark.skipif(importlib.util.find_spec("psutil") is not None, reason="psutil is there")
def test_a_package_that_a_callback_lacks_is_named(workplace: Path) -> None:
    monitor = f"--trainer.callbacks+={CALLBACKS}DeviceStatsMonitor"
    assert_clear_error(run_minigpt("fit", "--config", "tiny.yaml", monitor), "pip install -U 'psutil'")


class KeepACopy(Callback):
    """Keeps a copy of the module as it is after a step, as averages of weights are made."""

    copies: ClassVar[list[GPTLightningModule]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, GPTLightningModule)
        self.copies.append(copy.deepcopy(pl_module))


def test_a_module_in_training_can_be_copied(workplace: Path) -> None:
    result = run_minigpt("fit", "--config", "tiny.yaml", "--trainer.callbacks", "test_python.KeepACopy")
    assert result.code == 0, result.err
    assert len(KeepACopy.copies) == 24
    trained = read_checkpoint(RunFolder.first("tiny").last)["state_dict"]
    for name, weight in KeepACopy.copies[-1].state_dict().items():
        assert torch.equal(weight, trained[name]), name
