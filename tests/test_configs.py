"""Every recipe is sound: it can be read, its model has the shape it says, and it trains."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

from conftest import ROOT, make_text, run_minigpt
from minigpt.model import GPT, GPTConfig
from minigpt.training.module import GPTLightningModule
from test_cli import curve

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains(config: Path, workplace: Path) -> None:
    """A few steps, with the sizes that cost time made small."""
    (workplace / "long.txt").write_text(make_text(30_000))
    small = ("--data.corpus", "long.txt", "--data.batch_size", 4, "--model.n_layer", 1, "--model.n_embd", 48)
    accumulated = yaml.safe_load(config.read_text())["trainer"].get("accumulate_grad_batches", 1)
    short = ("--trainer.max_steps", 2, "--trainer.val_check_interval", accumulated, "--trainer.limit_val_batches", 1)
    result = run_minigpt("fit", "--config", config, *small, *short, "--sampler.every_n_steps", 0)
    assert result.code == 0, result.err
    name = yaml.safe_load(config.read_text())["name"]
    assert name == config.stem
    assert torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_the_gpt1_recipe_is_gpt1() -> None:
    recipe = yaml.safe_load((ROOT / "configs" / "gpt1.yaml").read_text())
    shape = {k: v for k, v in recipe["model"].items() if k in GPTConfig.__dataclass_fields__}
    with torch.device("meta"):
        gpt = GPT(GPTConfig(vocab_size=40_478, block_size=recipe["data"]["block_size"], **shape))
    assert sum(p.numel() for p in gpt.parameters()) == 116_534_784
    assert recipe["data"]["batch_size"] * recipe["trainer"]["accumulate_grad_batches"] == 64
    assert recipe["trainer"]["max_epochs"] == 100
    defaults = {name: p.default for name, p in inspect.signature(GPTLightningModule).parameters.items()}
    published = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "norm": "post", "positions": "learned"}
    published |= {"optimizer": "adamw", "learning_rate": 2.5e-4, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999}
    published |= {"eps": 1e-8, "schedule": "cosine", "warmup_steps": 2000}
    assert (defaults | recipe["model"]).items() >= published.items()


def test_the_script_for_a_cluster_gives_each_gpu_as_many_windows_and_makes_steps_of_64() -> None:
    script = (ROOT / "configs" / "devices" / "slurm.sh").read_text()
    nodes, gpus, batch, accumulated = (
        int(re.findall(rf"--{flag}[= ](\d+)", script)[0])
        for flag in ("nodes", "gpus-per-node", "data.batch_size", "trainer.accumulate_grad_batches")
    )
    assert batch % (nodes * gpus) == 0
    assert batch * accumulated == 64


def test_the_debug_recipe_learns_one_batch_by_heart(workplace: Path) -> None:
    result = run_minigpt("fit", "--config", ROOT / "configs" / "debug.yaml", "--data.corpus", "text.txt")
    assert result.code == 0, result.err
    assert curve(Path("lightning_logs/debug/version_0"), "train/loss")[-1][1] < 0.05


def test_a_run_is_named_after_the_recipe_not_after_what_is_laid_over_it(workplace: Path) -> None:
    recipe = yaml.safe_load(Path("tiny.yaml").read_text())
    del recipe["name"]
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    Path("over.yaml").write_text("model: {warmup_steps: 50}\n")
    result = run_minigpt("fit", "--config", "mine.yaml", "--config", "over.yaml", "--trainer.max_steps", 8)
    assert result.code == 0, result.err
    assert Path("lightning_logs/mine/version_0").is_dir()
    assert "the learning rate rises until step 50, and training ends before that" in result.out
