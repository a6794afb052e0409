"""The model that a new run goes on from: what the run takes of its shape, recipe, vocabulary and weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.run import RunFolder, load_gpt, read_checkpoint
from minigpt.text.tokenizer import UNKNOWN, name_characters
from minigpt.training.data import CharDataModule
from minigpt.training.resume import own_settings, settings_of_run

# Settings that only the parent's own can be right for, because its weights have this form.
SHAPE = ("data.tokenizer", "model.n_layer", "model.n_head", "model.n_embd", "model.norm", "model.positions")
# Settings that a new run doesn't take from its parent: of the text, and what is to be chosen anew.
NOT_TAKEN = {
    *("data.corpus", "data.val_corpus", "data.test_corpus", "data.suffixes", "data.encoding", "data.mirror"),
    *("model.freeze", "model.rewarm_start", "model.rewarm_steps", "trainer.precision", "threads"),
}


class Parent:
    """A checkpoint whose weights a new run begins with: one of any run, or a frame of a film.

    Args:
        path: its file.

    Raises:
        UserError: there is no sound model in it, or one whose tokenizer training doesn't know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = read_checkpoint(path)
        self.step = self.checkpoint.get("global_step", 0)
        # A frame lies beside the checkpoints of its run.
        kept = path.parent.with_name("checkpoints") / path.name if path.parent.name == "film" else path
        self.home = RunFolder.of(kept)
        kind = self.checkpoint["hyper_parameters"].get("tokenizer", "char")
        if kind not in ("char", "byte"):
            raise UserError(f"{path} reads text by the tokenizer {kind}; fit trains on characters and bytes only.")
        self.gpt, self.tokenizer = load_gpt(path)
        self.config = self.gpt.config
        if not all(weight.isfinite().all() for weight in self.gpt.parameters()):
            raise UserError(f"Weights in {path} are not finite: its run diverged. Take an earlier checkpoint.")

    def settings(self) -> dict[str, Any]:
        """What it was trained by, as far as a run on another text goes by it too."""
        kept = settings_of_run(self.checkpoint, self.home, "fit") | own_settings(self.checkpoint)
        if self.home:
            kept["name"] = self.home.name
        return {key: value for key, value in kept.items() if key not in NOT_TAKEN}

    def check(self, settings: Any) -> None:
        """Raise a UserError where settings contradict the shape, or lack what no parent has."""
        own = {"data.tokenizer": self.checkpoint["hyper_parameters"].get("tokenizer", "char")}
        own |= {key: getattr(self.config, key.removeprefix("model.")) for key in SHAPE[1:]}
        for key, value in own.items():
            if settings[key] != value:
                raise UserError(
                    f"{key} is given as {settings[key]!r}, but the model of {self.path} has {value!r}. A model keeps "
                    "its shape: leave out the flag, or the --config that sets it. The window (data.block_size), the "
                    "dropout rates and the recipe are free."
                )
        if not settings.data.corpus:
            raise UserError("--init_from goes on with a text, the same or another one: --data.corpus FILE.")
        if settings.data.vocabulary is not None:
            raise UserError("data.vocabulary can't be given with --init_from: it is the model's, and what is new.")
        trainer = settings.trainer
        if trainer.max_steps < 0 and trainer.max_epochs is None and trainer.max_time is None:
            raise UserError(
                f"{self.path} doesn't hold how long its run was to train. Give --trainer.max_steps N and what else you "
                "want of a recipe, or a --config."
            )

    def taken(self, settings: Any) -> str:
        """What a new run takes from it, as a clause."""
        model, data, trainer = settings.model, settings.data, settings.trainer
        rate = model.learning_rate if model.optimizer == "adamw" else model.muon_learning_rate
        end = f"{trainer.max_epochs} epochs" if trainer.max_steps < 0 else f"{trainer.max_steps} steps"
        return (
            f", with the weights of {self.path} after step {self.step}, and by its recipe where nothing else "
            f"is given: {model.optimizer} at {rate:g}, {model.warmup_steps} steps of warm-up, {end} of "
            f"{data.batch_size} windows of {data.block_size}"
        )

    def lineage(self) -> list[dict[str, Any]]:
        """The models that a run that begins with this one descends from, oldest first: plain data, without paths."""
        name = f"{self.home.name}/{self.home.path.name}" if self.home else self.path.name
        corpus = self.checkpoint.get("datamodule_hyper_parameters", {}).get("corpus", [])
        texts = [Path(text).name for text in ([corpus] if isinstance(corpus, str) else corpus)]
        return [*self.checkpoint.get("parents", []), {"parent": name, "parent_step": self.step, "corpus": texts}]

    @torch.no_grad()
    def give_weights(self, gpt: GPT) -> None:
        """Copy the weights into a fresh model, in which embeddings may have more rows, or fewer positions.

        New characters stay as they were drawn for the fresh model: N(0, 0.02). New positions begin as copies of the old
        ones, from the first on again: drawn ones cost most of what the weights gain (benchmarks/NOTES.md).

        Raises:
            UserError: there are new rows in an embedding that is frozen.
        """
        for name, old in self.gpt.named_parameters():
            new = gpt.get_parameter(name)
            if len(new) > len(old) and not new.requires_grad:
                raise UserError(
                    f"model.freeze names {name.removesuffix('.weight')}, but this text or window needs "
                    f"{len(new) - len(old)} new rows in it, which would stay as they begin. Let it train, or give "
                    "the model only characters and positions that it knows."
                )
            if name == "position_embedding.weight":
                new.copy_(old[torch.arange(len(new)) % len(old)])
            else:
                new[: len(old)] = old
        del self.gpt  # the memory is needed for training

    def news(self, data: CharDataModule) -> Iterator[str]:
        """What a user should know of how the model is enlarged for a text."""
        known, now = self.tokenizer.vocabulary, data.vocabulary
        if data.tokenizer == "char":
            new, unknown = now[len(known) :].replace(UNKNOWN, ""), UNKNOWN in now[len(known) :]
            met = set().union(*(text.characters for text in data.texts.values()))
            yield (
                f"Characters: {len(now)}, of which {len(now) - len(known)} are new"
                f"{f': {name_characters(new)}' if new else ''}{', the unknown symbol' if unknown else ''}. "
                f"Known ones that don't occur in this text, and stay: {len(set(known) - met - {UNKNOWN})}."
            )
        if data.block_size > (size := self.config.block_size) and self.config.positions == "learned":
            yield f"Positions {size + 1} to {data.block_size} of the window begin as copies of those from 1 on."
