"""What a run that goes on takes from its checkpoint, where it goes on, and when it can't."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Timer

from minigpt.errors import UserError
from minigpt.model import GPTConfig
from minigpt.run import RunFolder
from minigpt.training.checkpoints import GROUPS
from minigpt.training.flags import LINKS
from minigpt.training.module import what_is_trained

# What a checkpoint of a run holds, beside its hyperparameters.
PARTS = (
    "state_dict datamodule_hyper_parameters global_step loops optimizer_states lr_schedulers pytorch-lightning_version"
)
# What a resume takes from the run's own config alone: a checkpoint from elsewhere could name a URL.
PLACES = ("data_dir", "mirror", "num_workers", "max_unpacked_gb")
# Texts in the trainer's settings that can name no code but Lightning's and this program's: no other path, no file.
NO_FOREIGN_CODE = re.compile(r"(lightning|minigpt)(\.\w+)+|[\w+,:-]*")
# What no resume can change, for the weights and the optimizer's state have this form.
FIXED = {f.name for f in dataclasses.fields(GPTConfig)} - {"embd_pdrop", "attn_pdrop", "resid_pdrop"}
FIXED |= {"optimizer", "tokenizer", "freeze"}


def why_branch(checkpoint: dict[str, Any], home: RunFolder | None, name: str | None, branch: bool) -> str:
    """Why going on from a checkpoint begins a new run; empty where it goes on in its own, ``home``.

    A run is never set back, and its settings never change.

    Args:
        checkpoint: what it holds.
        home: the run that keeps it, if one does.
        name: that of the new run, if the user gave one.
        branch: whether the user asks for a new run.
    """
    if branch:
        return "as --branch asks"
    if home is None:
        return "because it lies in no run's folder"
    if name not in (None, home.name):
        return "as --name asks"
    newest = home.newest_step()
    return f"because its own run has come to step {newest}" if newest > checkpoint["global_step"] else ""


def check_parts(path: Path, checkpoint: dict[str, Any], parts: Sequence[str]) -> None:
    """Raise a UserError unless a learner's own ``parts`` are in their places where they were in the checkpoint's run.

    That is for the wing that puts them in to do, before it calls ``fit``.
    """
    before = checkpoint.get("own_parts", [])
    if set(before) != set(parts):
        whose = f"parts of a learner's own, {', '.join(before)}" if before else "the program's own parts alone"
        command = "learn train" if before else "fit"
        raise UserError(
            f"The run of {path} was trained with {whose}. Go on with the same: python -m minigpt {command} "
            f"--ckpt_path {path}. Or begin a new run with other parts: add --branch true."
        )


def check_end(path: Path, checkpoint: dict[str, Any], settings: Any) -> None:
    """Raise a UserError where the run of a checkpoint is at the end that the settings give it."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    for limit, done in (("max_steps", checkpoint["global_step"]), ("max_epochs", epochs)):
        end = settings.trainer[limit]
        if end is not None and 0 <= end <= done:
            raise UserError(
                f"The run of {path} is complete: it has done {done} of {limit} = {end}. "
                f"To train it further, give a larger --trainer.{limit}."
            )
    states, stopping = checkpoint["callbacks"], settings.early_stopping
    # Beside ours there may be others, which the user gives; older versions had ours alone, by Lightning's name.
    ours = [key for key in states if key.startswith("minigpt.EarlyStopping")]
    ours = ours or [key for key in states if key.startswith("EarlyStopping")]
    waited = max((states[key]["wait_count"] for key in ours), default=0)
    if waited >= stopping.patience:
        raise UserError(
            f"The run of {path} was stopped early: {stopping.monitor} had not improved for {waited} validations. "
            f"To train it further, give --early_stopping.patience more than {waited}."
        )
    used, given = states.get("Timer", {}).get("time_elapsed", {}).get("train", 0), settings.trainer.max_time
    if used and (seconds := Timer(given).time_remaining()) is not None and used >= seconds:
        raise UserError(
            f"The run of {path} has used up its max_time: {used:.0f} of {seconds:.0f} seconds. To train it "
            "further, give a longer --trainer.max_time, which counts from the beginning of the run."
        )


def own_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The settings of *what* is trained, by their flags, without the vocabulary."""
    model, data = what_is_trained(checkpoint["hyper_parameters"]), checkpoint.get("datamodule_hyper_parameters", {})
    own = {f"model.{k}": v for k, v in model.items() if k != "vocabulary"} | {f"data.{k}": v for k, v in data.items()}
    return {LINKS.get(key, key): value for key, value in own.items()}


def settings_of_run(checkpoint: dict[str, Any], home: RunFolder | None, command: str) -> dict[str, Any]:
    """What the checkpoint's run was given, and a command goes on with unless the user gives something else."""
    config: dict[str, Any] = {}
    if home and home.config.is_file():
        config = yaml.safe_load(home.config.read_text(encoding="utf-8")) or {}
    settings = checkpoint.get("settings") or config  # older versions keep them in the config only
    kept: dict[str, Any] = {}
    if command == "fit":
        for group in GROUPS:
            kept |= {f"{group}.{name}": value for name, value in settings.get(group, {}).items()}
        kept |= {f"data.{name}": config["data"][name] for name in PLACES if name in config.get("data", {})}
        kept |= {"name": settings.get("name"), "model.compile": settings.get("model", {}).get("compile", False)}
    if command != "predict":
        kept |= {"fast": settings.get("fast"), "trainer.precision": checkpoint.get("precision")}
        kept |= {"threads": checkpoint.get("how", {}).get("threads")}
    return kept


def names_no_foreign_code(value: Any) -> bool:
    """Whether a setting from a file can bring in no code but Lightning's and this program's."""
    if isinstance(value, dict | list):
        return all(map(names_no_foreign_code, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, str) or NO_FOREIGN_CODE.fullmatch(value) is not None
