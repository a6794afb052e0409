"""Training around the GPT: the loss, the scores, the learning rate."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import MeanMetric

from minigpt import optim
from minigpt.cost import make_config
from minigpt.errors import UserError, building_from
from minigpt.fast import apply
from minigpt.model import GPT
from minigpt.optim import Schedule, learning_rate_factor, make_optimizer
from minigpt.run import FORMAT, read_checkpoint
from minigpt.text.tokenizer import TOKENIZERS
from minigpt.training.metrics import Scores

HOW = ("fast", "compile", "fused")  # how a model is computed, not what is trained; older checkpoints hold some


def logs_step(trainer: Trainer, step: int) -> bool:
    """Whether optimizer step ``step``, counted from 1, is one whose loss is logged."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


def looks_at_step(trainer: Trainer, step: int) -> bool:
    """Whether the run waits for the device and for the other processes after optimizer step ``step``.

    That is where the step is logged, and after every 50th in any case; the same on every process.
    """
    return logs_step(trainer, step) or step % 50 == 0


def step_is_done(trainer: Trainer) -> bool:
    """Whether the batch that has just been trained on was the last one of an optimizer step."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def what_is_trained(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint of any version holds of its model, without those that tell how it is computed."""
    return {name: value for name, value in hyperparameters.items() if name not in HOW}


class GPTLightningModule(LightningModule):
    """A GPT that learns to predict the next character. Losses are in nats per character.

    The defaults are GPT-1's own, from the shape to the optimizer.

    Args:
        vocabulary: the characters that the ids number; taken from the data.
        tokenizer: "char" or "byte", or "bpe" of an imported model: what an id stands for; taken from the data.
        optimizer: "adamw" as GPT-1, or "muon": Muon for the matrices inside the blocks and AdamW for the rest,
            which needs far fewer steps.
        learning_rate: the peak learning rate of AdamW.
        muon_learning_rate: the peak learning rate of Muon.
        muon_momentum: decay of Muon's running mean of the gradient.
        schedule: how learning rates fall to 0 until the end of training: "cosine" as GPT-1, "linear", or "constant",
            which falls in a straight line in the last ``decay_fraction`` of all steps only.
        warmup_steps: optimizer steps in which learning rates rise to their peak.
        decay_fraction: see ``schedule``.
        weight_decay: decoupled decay of matrices and embeddings.
        beta1: decay of AdamW's running mean of the gradient.
        beta2: decay of AdamW's running mean of the squared gradient.
        eps: added to the denominator of AdamW's update.
        freeze: a part of the model that doesn't train, or a list of them: token_embedding, position_embedding, blocks,
            blocks.0, blocks.0.attention, final_norm and the like.
        rewarm_start: the step from which on learning rates rise from 0 once more; set by --rewarm.
        rewarm_steps: optimizer steps in which they do; 0 for not.
        seed: decides what dropout drops.
        fast: compute by the layers of :mod:`minigpt.fast`; see :func:`minigpt.fast.apply`.
        compile: train with kernels that ``torch.compile`` makes for this model, instead of PyTorch's own one by one.
            On a CPU it needs a C++ compiler and half a minute, gains little, and loses where there is dropout.
            It turns on ``trainer.deterministic``, without which no such run could be repeated to the bit.
        gpt: the fields of :class:`~minigpt.model.GPTConfig`.

    Raises:
        UserError: a setting is out of range.
    """

    # What stands in its place of a learner's own, set by ``learn train``; such a run goes on with the same alone.
    own_parts: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        vocabulary: str,
        tokenizer: Literal["char", "byte", "bpe"] = "char",
        optimizer: Literal["adamw", "muon"] = "adamw",
        learning_rate: float = 2.5e-4,
        muon_learning_rate: float = 0.02,
        muon_momentum: float = 0.95,
        schedule: Schedule = "cosine",
        warmup_steps: int = 2000,
        decay_fraction: float = 0.3,
        weight_decay: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        freeze: str | list[str] | None = None,
        rewarm_start: int = 0,
        rewarm_steps: int = 0,
        seed: int = 1337,
        fast: bool | None = None,
        compile: bool = False,
        **gpt: Any,
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "__class__", "gpt", *HOW)}
        super().__init__()
        limits = {
            "learning_rate": (0 < learning_rate < math.inf, "more than 0"),
            "muon_learning_rate": (0 < muon_learning_rate < math.inf, "more than 0"),
            "muon_momentum": (0 <= muon_momentum < 1, "at least 0 and less than 1"),
            "warmup_steps": (warmup_steps >= 0, "at least 0"),
            "decay_fraction": (0 <= decay_fraction <= 1, "from 0 to 1"),
            "weight_decay": (0 <= weight_decay < math.inf, "at least 0"),
            "rewarm_steps": (rewarm_steps >= 0, "at least 0"),
        }
        for name, (kept, limit) in limits.items():
            if not kept:
                raise UserError(f"model.{name} is {settings[name]}; it must be {limit}.")
        self.tokenizer = TOKENIZERS[tokenizer](vocabulary)
        config = make_config(vocab_size=len(self.tokenizer.vocabulary), **gpt)
        self.gpt = GPT(config)
        optim.freeze(dict(self.gpt.named_parameters()), [freeze] if isinstance(freeze, str) else freeze or [])
        # Defaults included: a checkpoint must not depend on those that this program has when it is read.
        shape = {k: v for k, v in dataclasses.asdict(config).items() if k != "vocab_size"}
        self.save_hyperparameters(settings | shape, logger=False)
        self.fast = fast
        self.computes_by = apply(self.gpt, fast)  # a clause, such as "fast layers"
        self.compiled = compile
        # Beside the model, not in its place: the weights keep their names, and scoring and writing, whose shapes
        # vary, are not compiled anew for each.
        self.training_nats = torch.compile(self.character_nats) if compile else self.character_nats
        self.train_nats = MeanMetric(nan_strategy="disable")
        self.val_scores = Scores(self.tokenizer)
        self.test_scores = Scores(self.tokenizer)
        self.schedule: torch.optim.lr_scheduler.LambdaLR | None = None
        self.weights: list[nn.Parameter] = []  # to look for them takes a hundredth of a small model's step
        self.grad_norm = torch.tensor(math.nan)  # of the last step, before clipping
        self.batch_nats_BT = torch.empty(0)  # of the last batch of this device
        self.begun = False  # whether it has met any batch
        self.parents: list[dict[str, Any]] = []  # the models that its weights came from one after another, oldest first
        self.has_curves = False  # whether a callback logs train_nats and empties it; else this module logs the loss

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        strict: bool = True,
        weights_only: Literal[True] = True,
        **settings: Any,
    ) -> Self:
        """The model of a checkpoint, also of an older version; ``settings`` go before the checkpoint's own.

        It comes to the CPU, or to ``map_location``. Only plain values are read, so ``weights_only`` can't be False.
        """
        if not weights_only:
            raise UserError("Checkpoints are read with weights_only=True alone: others could run code of anybody's.")
        checkpoint = read_checkpoint(Path(checkpoint_path))
        module = cls(**what_is_trained(checkpoint["hyper_parameters"]) | settings)
        module.load_state_dict(checkpoint["state_dict"], strict)
        return module.to(map_location or "cpu")

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits of the next character; see :meth:`minigpt.model.GPT.forward`."""
        return self.gpt(ids_BT)

    def character_nats(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The cross-entropy of every target, in nats, (B, T); 0 where a target is not scored."""
        ids_BT, targets_BT = batch
        logits_BTV = self.gpt(ids_BT).float()
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(targets_BT)

    # Training

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # What dropout drops in this batch depends on the batch's number alone, so that a resumed run drops the same.
        what = [self.hparams["seed"], self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank]
        key = int(np.random.SeedSequence(what).generate_state(1, np.uint64)[0])
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(key)  # 50 times faster than torch.manual_seed
        else:
            torch.manual_seed(key)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.begun = True
        nats_BT = self.training_nats(batch)
        self.batch_nats_BT = nats_BT.detach()
        loss = nats_BT.mean()
        if logs_step(self.trainer, self.trainer.global_step + 1):
            if self.has_curves:
                self.train_nats.update(loss.detach())
            else:
                self.log("train/loss", loss.detach(), sync_dist=True)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip with a fused optimizer under bf16-mixed, although nothing is scaled there.
        if gradient_clip_algorithm == "value":
            raise UserError("trainer.gradient_clip_algorithm = value is not supported; gradients are clipped by norm.")
        self.weights = self.weights or list(self.parameters())  # where configure_optimizers is a user's own
        # FSDP, whose devices hold parts of the gradients, brings its own. (Not run.)
        clip = getattr(self.trainer.model, "clip_grad_norm_", partial(nn.utils.clip_grad_norm_, self.weights))
        self.grad_norm = clip(gradient_clip_val or math.inf)

    def configure_optimizers(self) -> Any:
        self.weights = list(self.parameters())
        max_steps = self.trainer.estimated_stepping_batches
        if math.isinf(max_steps):
            raise UserError("The learning rate falls until training ends, so give an end: --trainer.max_steps N.")
        names = ("schedule", "warmup_steps", "decay_fraction", "rewarm_start", "rewarm_steps")
        settings = {name: self.hparams[name] for name in names}
        factor = partial(learning_rate_factor, max_steps=int(max_steps), **settings)
        optimizer = self.make_optimizer(str(self.trainer.precision))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let the settings of this model stand where a checkpoint has brought back those that it was made with.

        It says so where the learning rate is another one by that, because training ends later for instance.
        """
        if (schedule := self.schedule) is None or not self.trainer.ckpt_path:
            return
        groups, before, rates = schedule.optimizer.param_groups, schedule.get_last_lr(), []
        fresh = self.make_optimizer(str(self.trainer.precision)).param_groups
        for group, new, factor in zip(groups, fresh, schedule.lr_lambdas, strict=True):
            rates.append(new["lr"] * factor(schedule.last_epoch))
            group |= {k: v for k, v in new.items() if k != "params"} | {"initial_lr": new["lr"], "lr": rates[-1]}
        schedule.base_lrs, schedule._last_lr = [new["lr"] for new in fresh], rates
        if rates != before:
            told = dict.fromkeys(f"{new:.3g} instead of {old:.3g}" for old, new in zip(before, rates, strict=True))
            end = int(self.trainer.estimated_stepping_batches)
            self.print(f"The learning rate goes on at {', '.join(told)}: it follows its schedule until step {end}.")

    def make_optimizer(self, precision: str) -> torch.optim.Optimizer:
        """The optimizer of all weights that train, for a precision as Lightning names it."""
        weights = {name: weight for name, weight in self.gpt.named_parameters() if weight.requires_grad}
        with building_from("The optimizer"):
            return make_optimizer(weights, self.hparams, precision)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take up the weights of a checkpoint; a UserError if they are not those of this model."""
        with building_from("The checkpoint's state_dict"):
            return super().load_state_dict(state_dict, strict, assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning asks no callback before bare weights are saved. (A module that kept a callback itself could not be
        # copied while it trains.)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "before_saving"):  # raises where the weights are not worth it
                callback.before_saving(self.trainer)
        checkpoint["minigpt_format"] = FORMAT
        checkpoint["precision"] = str(self.trainer.precision)  # a resumed run must compute in the same
        checkpoint["how"] = self.how(self.trainer)
        checkpoint["parents"] = self.parents
        if self.own_parts:
            checkpoint["own_parts"] = list(self.own_parts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.parents = checkpoint.get("parents", [])

    def how(self, trainer: Trainer) -> dict[str, Any]:
        """What may change the last bits of what a run computes, but not what it computes."""
        return {
            "precision": str(trainer.precision),
            "layers": self.computes_by,
            "device": trainer.strategy.root_device.type,
            "threads": torch.get_num_threads() if trainer.strategy.root_device.type == "cpu" else None,
            "devices": trainer.world_size,
            "compile": self.compiled,
        }

    # Scoring

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.val_scores.update(self.predict_step(batch, batch_idx), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_scores.update(self.predict_step(batch, batch_idx), batch[1])

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The nats of every scored character of the batch, in the order of the text, (number of them,)."""
        self.begun = True
        return self.character_nats(batch)[batch[1] >= 0]

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val", self.val_scores)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test", self.test_scores)

    def _log_scores(self, split: str, scores: Scores) -> None:
        # The metrics have already gathered all devices; averaging equal numbers once more only quiets a warning.
        self.log_dict({f"{split}/{name}": value for name, value in scores.compute().items()}, sync_dist=True)
        scores.reset()
