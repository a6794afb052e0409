"""The subcommands that train and score, wired by LightningCLI."""

import logging
import os
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from minigpt.cost import TRAINING, check_memory
from minigpt.errors import UserError, building_from
from minigpt.run import LOG_DIR, find_checkpoint, new_run_folder, read_checkpoint, sole_owner
from minigpt.text.baselines import ladder, show
from minigpt.text.tokenizer import TOKENIZERS
from minigpt.training.callbacks import (
    NatsWriter,
    ProgressBar,
    TensorBoardExtras,
    TextSampler,
    TrainingCurves,
    training_curves,
)
from minigpt.training.checkpoints import FiniteCheck, GracefulStop, RunCheckpoint, Stopped, WholeCheckpointIO
from minigpt.training.data import CharDataModule
from minigpt.training.machine import choose_precision, keep_freed_memory
from minigpt.training.metrics import SCORES
from minigpt.training.module import GPTLightningModule

# What a checkpoint of a run holds, beside its hyperparameters.
PARTS: dict[str, type] = {
    "state_dict": dict,
    "datamodule_hyper_parameters": dict,
    "global_step": int,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "pytorch-lightning_version": str,
}


class RunConfig(SaveConfigCallback):
    """Keeps a run's settings in its folder, as a config that starts the same run afresh."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.config = self.config.clone()
            self.config.ckpt_path = None
            self.config.data.vocabulary = None
            super().setup(trainer, pl_module, stage)


class MiniGPTCLI(LightningCLI):
    """Wires model, data, trainer and callbacks; lets a checkpoint's own settings prevail."""

    makes_run = True  # whether ``fit`` trains, into a folder of its own

    def __init__(self, args: list[str], until_done: ExitStack) -> None:
        self.until_done = until_done
        self.checkpoint_path: Path | None = None
        self.run_folder: Path | None = None  # of the run to resume
        self.checkpoint: dict[str, Any] = {}
        # Let a wrong flag be an exception, told in one paragraph, instead of a page of usage; no half-written flags.
        strict: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            GPTLightningModule,
            CharDataModule,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "gradient_clip_val": 1.0,
                "val_check_interval": 500,
                "check_val_every_n_epoch": None,  # so that val_check_interval counts batches across epochs
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data module shares out each batch itself
            },
            seed_everything_default=1337,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs=strict | dict.fromkeys(self.subcommands(), strict),
            args=args,
        )

    # Parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name",
            type=str | None,
            help=f"The run's folder is {LOG_DIR}/NAME/version_N. By default the name of the first config file.",
        )
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("data.block_size", "model.block_size")
        parser.link_arguments("data.tokenizer", "model.tokenizer")
        parser.link_arguments("data.vocabulary", "model.vocabulary", apply_on="instantiate")
        parser.add_lightning_class_args(TextSampler, "sampler")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults(
            {
                "early_stopping.monitor": "val/loss",
                "early_stopping.patience": 10,
                "early_stopping.check_on_train_epoch_end": False,  # there is no new score at the end of an epoch
            }
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument("--output", type=str | None, help="The CSV file to write; by default TEXT.nats.csv.")
            parser.set_defaults({"return_predictions": False})
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        with building_from("One of the settings"):
            self.config = parser.parse_args(args)
        command = self.config.subcommand
        settings = self.config[command]
        for path in settings.config or []:
            with building_from(f"The config {path.relative}"):
                check_groups(str(path.relative), yaml.safe_load(path.read_text()) or {})
        if not settings.name and settings.config:
            settings.name = Path(getattr(settings.config[0], "relative", "minigpt")).stem
        if settings.name and (settings.name == ".." or Path(settings.name).name != settings.name):
            raise UserError(f"--name {settings.name!r} is a path; a run's name is one folder under {LOG_DIR}.")
        if settings.ckpt_path:
            path = find_checkpoint(settings.ckpt_path, settings.name)
            with building_from(f"The checkpoint {path}"):
                self._parse_beside_checkpoint(args, path)
        elif command != "fit":
            raise UserError(f"{command} needs a trained model: --ckpt_path FILE, or --ckpt_path last (or best).")
        elif not settings.config and not any(arg.startswith("--model") for arg in args):
            raise UserError(
                "fit needs a recipe: --config configs/quickstart.yaml, say. Without one it would train "
                "all of GPT-1's 12 layers. Your own text is one flag more: --data.corpus FILE."
            )

    def _parse_ckpt_path(self) -> None:
        """Not as Lightning does it, which lets the checkpoint overrule flags in silence."""

    def _parse_beside_checkpoint(self, args: list[str], path: Path) -> None:
        """Parse again with the checkpoint's settings as defaults, and refuse what contradicts them."""
        command, *flags = args
        checkpoint = read_checkpoint(path)
        for part, kind in PARTS.items():
            if not isinstance(checkpoint.get(part), kind):
                raise UserError(f"{path} is not a checkpoint of a run: it was not made by minigpt fit. (No {part}.)")
        model = dict(checkpoint["hyper_parameters"])
        data = dict(checkpoint["datamodule_hyper_parameters"])
        data["vocabulary"] = model.pop("vocabulary")
        self.run_folder = path.parent.parent if path.parent.name == "checkpoints" else None
        if command == "fit" and self.run_folder and (self.run_folder / "config.yaml").is_file():
            flags = ["--config", str(self.run_folder / "config.yaml"), *flags]
        own = {f"data.{k}": v for k, v in data.items()} | {f"model.{k}": v for k, v in model.items()}
        # Some settings are given in one place and linked to the others.
        own["seed_everything"] = own.pop("data.seed")
        del own["model.seed"], own["model.block_size"], own["model.tokenizer"]
        parser = self._subcommand_parsers[command]
        parser.set_defaults(own)
        if command == "fit" and "precision" in checkpoint:  # unless the user asks for another
            parser.set_defaults({"trainer.precision": checkpoint["precision"]})
        self.config = self.parser.parse_args([command, *flags])
        settings = self.config[command]
        settings.ckpt_path = str(path)
        settings.data.vocabulary = settings.data.vocabulary or data["vocabulary"]
        settings.name = self.run_folder.parent.name if self.run_folder else settings.name
        free = {"data.scoring_batch_size", "data.corpus"}  # a corpus may have moved; its content is compared later
        if command == "predict":
            free |= {"data.encoding"}
        elif command != "fit" and settings.data.corpus != data["corpus"]:
            free |= {f"data.{k}" for k in ("val_fraction", "test_fraction", "val_corpus", "test_corpus", "encoding")}
        for key, value in own.items():
            if key not in free and settings[key] != value:
                raise UserError(
                    f"{key} is given as {settings[key]!r}, but the checkpoint {path} was made with {value!r}. "
                    "A checkpoint keeps its own settings: leave out the flag, or the --config that sets it; "
                    "or start a new run without --ckpt_path."
                )
        self.checkpoint_path, self.checkpoint = path, checkpoint
        # Lightning starts further processes with the same arguments. They must not look for "last" or "best" again,
        # which another run may have become by then; of two flags the later one counts.
        sys.argv += ["--ckpt_path", str(path)]

    # Building

    def before_instantiate_classes(self) -> None:
        assert self.subcommand is not None
        trainer = self.config[self.subcommand].trainer
        if trainer.precision is None:
            trainer.precision, reason = choose_precision(trainer.accelerator)
            say(f"Precision: {trainer.precision}, because {reason}.")
        if self.subcommand != "fit":
            self.save_config_callback = None
            return
        if trainer.deterministic is None and self.config[self.subcommand].model.compile:
            trainer.deterministic = True  # compiled, the gradient of the embedding would be added up in any order
        for key in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval", "gradient_clip_val"):
            value = trainer[key]
            if isinstance(value, int | float) and not (value > 0 or (value == 0 and key == "gradient_clip_val")):
                raise UserError(f"trainer.{key} is {value}; it must be more than 0.")
        if not isinstance(trainer.val_check_interval, int | float | None):
            raise UserError(
                f"trainer.val_check_interval is {trainer.val_check_interval!r}; it must be a number of batches, or a "
                "fraction of an epoch. A run that validates by the clock could not be repeated."
            )
        if not isinstance(patience := self.config[self.subcommand].early_stopping.patience, int):
            raise UserError(f"early_stopping.patience is {patience}; it must be a number of validations.")
        monitor = self.config[self.subcommand].early_stopping.monitor
        if monitor not in (scores := [f"val/{name}" for name in SCORES]):
            raise UserError(f"early_stopping.monitor is {monitor!r}; what is scored is {', '.join(scores)}.")
        interval, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
        if isinstance(interval, int) and interval % accumulated:
            raise UserError(
                f"trainer.val_check_interval = {interval} counts batches; with accumulate_grad_batches = {accumulated} "
                f"it would validate in the middle of an optimizer step. Make it a multiple of {accumulated}."
            )
        if self.checkpoint_path:
            self._check_something_is_left(trainer.max_steps, trainer.max_epochs)
            say(f"Resuming {self.checkpoint_path} after step {self.checkpoint['global_step']}.")
        elif self.makes_run:
            say(f"A new run on {self.config[self.subcommand].data.corpus}.")

    def _check_something_is_left(self, max_steps: int, max_epochs: int | None) -> None:
        epochs = self.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        progress = {"max_steps": (self.checkpoint["global_step"], max_steps), "max_epochs": (epochs, max_epochs)}
        for limit, (done, end) in progress.items():
            if end is not None and 0 <= end <= done:
                raise UserError(
                    f"The run of {self.checkpoint_path} is complete: it has done {done} of {limit} = {end}. "
                    f"To train it further, give a larger --trainer.{limit}."
                )

    def instantiate_classes(self) -> None:
        with building_from("One of the settings"):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        users = trainer.callbacks if isinstance(trainer.callbacks, list) else [c for c in [trainer.callbacks] if c]
        first: list[Any] = []
        own: list[Any] = [ProgressBar()] if trainer.enable_progress_bar is not False else []
        plugins = trainer.plugins if isinstance(trainer.plugins, list) else [p for p in [trainer.plugins] if p]
        kwargs["plugins"] = [*plugins, WholeCheckpointIO()]
        if self.subcommand == "fit":
            if not self.makes_run:
                kwargs["logger"] = False
            elif not trainer.fast_dev_run:
                rank = rank_zero_only.rank  # type: ignore[attr-defined]
                folder = self.run_folder or new_run_folder(
                    LOG_DIR / (self._get(self.config, "name") or "minigpt"), rank
                )
                kwargs["default_root_dir"] = str(folder)
                self.until_done.enter_context(sole_owner(folder, rank))
                if trainer.logger in (None, True):
                    kwargs["logger"] = self._tensorboard_logger(folder)
                if kwargs.get("logger") or trainer.logger:
                    own.append(LearningRateMonitor(logging_interval="step"))
            checkpoint = self._get(self.config_init, "checkpoint")
            # The curves before the sampler, whose time they would else count; then nothing but a sound state goes on.
            first += [TrainingCurves(), FiniteCheck(checkpoint)]
            own += [TensorBoardExtras(), GracefulStop(checkpoint)]
        else:
            kwargs["logger"] = False
            if self.subcommand == "predict":
                own.append(NatsWriter(self._get(self.config, "output")))
        # Lightning puts the configurable callbacks, sampler, checkpoint and early stopping, between these two.
        kwargs["callbacks"] = [*first, *users]
        self.trainer_defaults["callbacks"] = own
        return super().instantiate_trainer(**kwargs)

    def _tensorboard_logger(self, folder: Path) -> TensorBoardLogger:
        return TensorBoardLogger(
            folder.parent.parent,
            name=folder.parent.name,
            version=folder.name,
            default_hp_metric=False,
            purge_step=self.checkpoint.get("global_step"),  # what was logged after the checkpoint is logged again
        )

    def after_instantiate_classes(self) -> None:
        config = self.model.gpt.config
        if self.subcommand == "fit":
            self.datamodule.check_share(self.trainer.world_size)
            if self.trainer.strategy.root_device.type == "cpu":
                floats = TRAINING[self.model.hparams["optimizer"]]
                check_memory(config, floats, self.datamodule.batch_size // self.trainer.world_size)
            device = self.trainer.strategy.root_device.type
            whole = config.fused and device != "cpu"  # the rule of model.py, as far as it concerns training
            attention = "PyTorch's kernel" if whole else "its parts one by one"
            if 0 <= self.trainer.max_steps <= (warmup := self.model.hparams["warmup_steps"]):
                say(f"Warning: the learning rate rises until step {warmup}, and training ends before that.")
            compiled = "compiled for training" if self.model.hparams["compile"] else "nothing is compiled"
            say(f"Computing in {self.trainer.precision} on {device}; attention: {attention}; {compiled}.")
        for note in dict.fromkeys(note for text in self.datamodule.texts.values() for note in text.notes):
            say(note)
        if config.vocab_size == 1:
            say("Warning: the corpus has a single character, over and over. There is nothing to learn from it.")
        say(
            f"Model: {config.n_layer} layers x {config.n_embd} wide, {config.n_head} heads, {config.norm}-norm; "
            f"window {config.block_size}; {config.vocab_size} characters; "
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters."
        )

    # Afterwards

    def after_test(self) -> None:
        """Show what the test loss means: beside it, what simple means need for the same characters."""
        tokenizer = TOKENIZERS[self.datamodule.tokenizer](self.datamodule.vocabulary)
        places = self.datamodule.splits()["test"]
        ids = self.datamodule.texts["test"].ids()[places.start : places.stop]
        rungs = ladder(ids, np.array(tokenizer.character_counts()))
        own = float(self.trainer.callback_metrics["test/bits_per_char"])
        say("\n".join(["How predictable the test split is:", *show(rungs, own)]))

    def after_fit(self) -> None:
        checkpoint = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint))
        best, last = checkpoint.best_path, checkpoint.last_path
        step = self.trainer.global_step
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        stopping = self._get(self.config_init, "early_stopping")
        if stopping.wait_count >= stopping.patience:
            say(f"\nStopped early: {stopping.monitor} has not improved for {stopping.wait_count} validations.")
        if best is None:
            say(f"\nTrained to step {step}, without validation. The model: {last}")
        else:
            say(f"\nBest: {checkpoint.best_score:.4f} nats per character on the validation split, in {best}")
        further = (
            f"max_steps {2 * step}" if self.trainer.max_steps > 0 else f"max_epochs {2 * self.trainer.current_epoch}"
        )
        for curves in training_curves(self.trainer):
            if curves.rates:
                rate = statistics.median(curves.rates)
                say(
                    f"Speed: {rate:,.0f} characters a second, {curves.utilisation(self.model, rate):.0%} of this "
                    f"machine's {curves.peak / 1e9:,.0f} GFLOP/s (bare matrix products, {self.trainer.precision})."
                )
        say(
            f"  let it write:    {program()} generate --ckpt_path {shlex.quote(str(best or last))}\n"
            f"  train it on:     {program()} fit --ckpt_path {shlex.quote(str(last))} --trainer.{further}\n"
            f"  see its curves:  {tensorboard_command(last)}"
        )


def train(command: str, args: list[str], cli: Callable[[list[str], ExitStack], MiniGPTCLI] = MiniGPTCLI) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        command: which of them.
        args: the rest of the command line.
        cli: what to do it with.

    Raises:
        UserError: the user asked for something that can't be; the message says what and why.
        SystemExit: the run was stopped by a signal, after it was saved.
    """
    for talker in ("fabric.utilities", "pytorch.utilities"):  # devices that are not there, tips, defaults taken
        for topic in ("rank_zero", "seed"):
            logging.getLogger(f"lightning.{talker}.{topic}").setLevel(logging.WARNING)
    # What Lightning would advise against is meant: batches cost nothing to gather, and a split may be short.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*infer the batch indices.*")
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # of no use to those that score
    warnings.filterwarnings("ignore", module="lightning", category=FutureWarning)
    keep_freed_memory()
    try:
        with ExitStack() as until_done:
            cli([command, *args], until_done)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except Stopped as stop:
        say(
            f"\nStopped after step {stop.step}; nothing is lost.\n"
            f"  go on:           {program()} fit --ckpt_path {shlex.quote(str(stop.path))}\n"
            f"  see its curves:  {tensorboard_command(stop.path)}"
        )
        raise


def check_groups(file: str, settings: dict[str, Any]) -> None:
    """Refuse a config with a word where a group of settings belongs, which the parser would pass over in silence."""
    groups = {"data", "model", "trainer", "sampler", "checkpoint", "early_stopping"}
    for name in groups & set(settings):
        if not isinstance(settings[name], dict):
            raise UserError(f"{file}: {name} is {settings[name]!r}; it must be a group of settings, {name}: {{...}}.")


def program() -> str:
    """How the user called this program."""
    return "minigpt" if Path(sys.argv[0]).name == "minigpt" else "python -m minigpt"


def tensorboard_command(checkpoint: Path) -> str:
    return f"tensorboard --logdir {shlex.quote(os.path.relpath(checkpoint.parent.parent))}"


@rank_zero_only
def say(text: str) -> None:
    """Tell the user, once, however many processes there are."""
    print(text, flush=True)


def main(command: str, args: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` from its arguments."""
    train(command, args)
