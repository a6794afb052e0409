"""Epochs are counted in one place, Lightning's; batches go on from one to the next whatever ends an epoch."""

from pathlib import Path

import pytest

from conftest import run_minigpt
from minigpt.run import RunFolder, read_checkpoint
from minigpt.training.proof import read_curves

RUN = RunFolder.first("tiny")
# 5,400 characters to train on are 43 batches of 8 windows of 16; as 1,350 to a batch, 4.
LARGE = ("--data.batch_size", 85)


@pytest.mark.parametrize(
    ("limits", "epochs", "steps"),
    [
        ((*LARGE, "--trainer.limit_train_batches", "3"), 4, 12),
        (("--trainer.limit_train_batches", "0.25"), 5, 45),
        (("--trainer.limit_train_batches", "10", "--trainer.accumulate_grad_batches", "4"), 4, 12),
        ((*LARGE, "--trainer.reload_dataloaders_every_n_epochs", "1"), 3, 12),
        ((*LARGE, "--data.num_workers", "1", "--trainer.limit_train_batches", "2"), 3, 6),
        (("--trainer.overfit_batches", "2"), 6, 12),
    ],
)
def test_every_epoch_is_as_long_as_the_limits_say(
    workplace: Path, limits: tuple[str, ...], epochs: int, steps: int
) -> None:
    flags = ("--config", "tiny.yaml", "--trainer.max_steps", -1, "--trainer.max_epochs", epochs)
    interval = ("--trainer.val_check_interval", 4, "--sampler.every_n_steps", 0)
    result = run_minigpt("fit", *flags, *interval, *limits)
    assert result.code == 0, result.err
    checkpoint = read_checkpoint(RUN.last)
    assert checkpoint["global_step"] == steps
    assert checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == epochs
    curves = read_curves(RUN)
    assert curves["val/loss"][-1][0] == steps - 1, "the last weights are scored"
    assert checkpoint["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-12), "the rate has fallen to 0"
    if "--trainer.overfit_batches" in limits:
        losses = [loss for _, loss in curves["train/loss"]]
        assert sorted(losses, reverse=True)[:2] != losses[-2:], "what is seen again and again is learned"


def test_new_loaders_go_on_with_the_next_batch(workplace: Path) -> None:
    flags = ("--config", "tiny.yaml", *LARGE, "--trainer.max_steps", 12, "--sampler.every_n_steps", 0)
    curves = []
    for name, reload in (("whole", 0), ("anew", 1)):
        result = run_minigpt("fit", *flags, "--name", name, "--trainer.reload_dataloaders_every_n_epochs", reload)
        assert result.code == 0, result.err
        curves.append(read_curves(RunFolder.first(name))["train/loss"])
    assert curves[0] == curves[1]
