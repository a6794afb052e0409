"""The flags of the commands that train and score: their defaults and links, their types and their help."""

import inspect
import re
from argparse import SUPPRESS
from functools import reduce
from operator import or_
from typing import Any, get_args

from jsonargparse import ArgumentParser

from minigpt.model import GPTConfig

# Each setting on the left takes its value from the one on the right.
LINKS = {
    "model.fast": "fast",
    "model.seed": "seed_everything",
    "data.seed": "seed_everything",
    "model.block_size": "data.block_size",
    "model.tokenizer": "data.tokenizer",
}
DEFAULTS = {
    "trainer.gradient_clip_val": 1.0,
    "trainer.val_check_interval": 500,
    "trainer.check_val_every_n_epoch": None,  # so that val_check_interval counts batches across epochs
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_model_summary": False,
    "trainer.use_distributed_sampler": False,  # the data module shares out each batch itself
    "early_stopping.monitor": "val/loss",
    "early_stopping.patience": 10,
    "early_stopping.check_on_train_epoch_end": False,  # there is no new score at the end of an epoch
}
# What each field of GPTConfig means, from the comments beside them.
SHAPES = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(GPTConfig), re.MULTILINE))
# Of the groups that are Lightning's, the flags that most people need; --help all shows the others.
OFTEN = {
    "trainer.max_steps": "optimizer steps until training ends",
    "trainer.max_epochs": "epochs until training ends",
    "trainer.max_time": "time until training ends, as DD:HH:MM:SS, that of all resumes together",
    "trainer.val_check_interval": "batches between validations; 0.25 validates after each quarter of an epoch",
    "trainer.limit_val_batches": "batches to validate on; 0.25 is a quarter of the split",
    "trainer.accumulate_grad_batches": "batches whose gradients add up to one optimizer step",
    "trainer.gradient_clip_val": "the norm that no gradient exceeds; 0 lets it be",
    "trainer.precision": "bf16-mixed, 32-true and others; by default bf16-mixed where the hardware computes in it",
    "trainer.devices": "how many devices train together",
    "early_stopping.patience": "validations without an improvement after which training ends",
    "early_stopping.min_delta": "what is less is no improvement",
    "early_stopping.stopping_threshold": "a loss that is good enough to end training",
}


def correct(parser: ArgumentParser) -> None:
    """Give the model's sizes their texts, and let whole numbers be counts: 1 is one batch, and 1.0 all of them.

    Which of the two ``typing.Union[int, float]`` tries first depends on what else was imported.
    """
    action: Any
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if {int, float} <= set(kinds):
            action._typehint = reduce(or_, sorted(kinds, key=lambda kind: {int: 0, float: 1}.get(kind, 2)))
        if (name := action.dest.removeprefix("model.")) in SHAPES:
            action.help = SHAPES[name]


def order_help(parser: ArgumentParser, command: str, everything: bool) -> None:
    """Show the settings of this program first, then the trainer's: the most needed ones, or ``everything``."""
    parser.usage = f"minigpt {command} --config RECIPE [--GROUP.SETTING VALUE ...]"
    parser.description = "The settings that people need most. --help all shows all those of Lightning too."
    for action in parser._actions:
        theirs = action.dest.startswith(("trainer", "early_stopping")) or action.metavar == "CONFIG"
        if not everything and (theirs or type(action).__name__ in ("_ActionHelpClassPath", "ActionLink")):
            action.help = OFTEN.get(action.dest, SUPPRESS)
    groups: list[Any] = parser._action_groups  # type: ignore[assignment]
    groups.sort(key=lambda group: "Customize every aspect" in str(group.title))
