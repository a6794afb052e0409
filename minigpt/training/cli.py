"""The subcommands that train and score, wired by LightningCLI: their settings, and what is built and run by them."""

import logging
import os
import re
import shlex
import statistics
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from minigpt.cost import TRAINING, check_memory
from minigpt.errors import UserError, building_from
from minigpt.files import written_whole
from minigpt.run import LOG_DIR, RunFolder, find_checkpoint, new_run_folder, read_checkpoint, sole_owner
from minigpt.text.baselines import baselines, table
from minigpt.training.callbacks import (
    NatsWriter,
    ProgressBar,
    TensorBoardExtras,
    TextSampler,
    TrainingCurves,
    make_tokenizer,
)
from minigpt.training.checkpoints import FiniteCheck, GracefulStop, RunCheckpoint, Stopped, WholeCheckpointIO
from minigpt.training.curves import MetricsCSV
from minigpt.training.data import CharDataModule
from minigpt.training.machine import choose_precision, keep_freed_memory
from minigpt.training.metrics import SCORES
from minigpt.training.module import GPTLightningModule, what_is_trained

# The groups of settings that are neither the model's nor the data's; a checkpoint keeps them for a resume.
GROUPS = ("trainer", "sampler", "checkpoint", "early_stopping")
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
# What a checkpoint of a run holds, beside its hyperparameters.
PARTS = (
    "state_dict datamodule_hyper_parameters global_step loops optimizer_states lr_schedulers pytorch-lightning_version"
)
# What a resume takes from the run's own config alone: a checkpoint from elsewhere could name a URL.
PLACES = ("data_dir", "mirror", "num_workers", "max_unpacked_gb")
# Texts in the trainer's settings that can name no code but Lightning's and this program's: no other path, no file.
NO_FOREIGN_CODE = re.compile(r"(lightning|minigpt)(\.\w+)+|[\w+,:-]*")


class RunConfig(Callback):
    """Keeps a run's settings in its checkpoints, and in its folder as a config that starts the same run afresh."""

    def __init__(self, config: str) -> None:
        self.config = config
        settings = yaml.safe_load(config)
        self.kept = {name: settings[name] for name in ("name", "fast", *GROUPS)}
        self.kept["model"] = {"compile": settings["model"]["compile"]}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = RunFolder(Path(trainer.strategy.broadcast(trainer.default_root_dir)))  # the first process's
        if trainer.is_global_zero:
            with written_whole(folder.config) as file:
                file.write(self.config.encode())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self.kept


class MiniGPTCLI(LightningCLI):
    """One command: its settings, those of its checkpoint among them; then data, model and trainer, made of them.

    Args:
        command: a method of the trainer.
        args: of the command line.
        until_done: keeps the run's folder from other processes.
    """

    makes_run = True  # whether ``fit`` trains, into a folder of its own

    def __init__(self, command: str, args: list[str], until_done: ExitStack) -> None:
        self.command, self.args, self.until_done = command, args, until_done
        self.checkpoint_path: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.run: RunFolder | None = None  # the one to resume
        # Lightning's own subcommands would build the parsers of all four. A wrong flag is an exception, told in one
        # paragraph, instead of a page of usage; there are no half-written flags.
        strict = {"prog": f"minigpt {command}", "description": "", "exit_on_error": False, "allow_abbrev": False}
        with building_from("One of the settings"):
            super().__init__(
                GPTLightningModule,
                CharDataModule,
                args=args,
                run=False,
                parser_kwargs=strict,
                save_config_callback=None,  # see RunConfig
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    # Settings

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=1337, help="Decides all that is drawn by chance.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        name = f"The run's folder is {LOG_DIR}/NAME/version_N. By default the name of the first config file."
        parser.add_argument("--name", type=str | None, help=name)
        fast = "Compute by fast layers (true) or by model.py's formulas (false); by default as model.py allows."
        parser.add_argument("--fast", type=bool | None, help=fast)
        parser.add_lightning_class_args(TextSampler, "sampler")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        for target, source in LINKS.items():
            parser.link_arguments(source, target)
        parser.link_arguments("data.vocabulary", "model.vocabulary", apply_on="instantiate")
        checkpoint = "A checkpoint file; or last or best, of the newest run."
        parser.add_argument("--ckpt_path", type=str | None, help=checkpoint)
        given = self.subcommands()[self.command] | {"ckpt_path", "weights_only"}
        parser.add_method_arguments(Trainer, self.command, skip=given)
        parser.set_defaults(DEFAULTS)
        if self.command == "predict":
            parser.add_argument("--output", type=str | None, help="The CSV file to write; by default TEXT.nats.csv.")
            parser.set_defaults({"return_predictions": False, "trainer.precision": "32-true"})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self._parse()
        if self.config.ckpt_path:
            path = self.checkpoint_path = find_checkpoint(self.config.ckpt_path, self.config.name)
            self.run = RunFolder.of(path)
            with building_from(f"The checkpoint {path}"):
                self._parse_beside_checkpoint(path)
        if self.config.trainer.precision is None:
            self.config.trainer.precision, reason = choose_precision(self.config.trainer.accelerator)
            say(f"Precision: {self.config.trainer.precision}, because {reason}.")
        if self.command == "fit":
            self._check_training()

    def _parse(self) -> None:
        self.config = settings = self.parser.parse_args(self.args)
        for path in settings.config or []:
            with building_from(f"The config {path.relative}"):
                file = yaml.safe_load(path.read_text()) or {}
            # The parser would pass over a word where a group belongs in silence.
            for group in {"model", "data", *GROUPS} & set(file):
                if not isinstance(file[group], dict):
                    raise UserError(f"{path.relative}: {group} is {file[group]!r}; it must be a group of settings.")
        if not settings.name and settings.config:
            settings.name = Path(settings.config[0].relative).stem
        check_name(settings.name)
        if self.command != "fit" and not settings.ckpt_path:
            raise UserError(f"{self.command} needs a trained model: --ckpt_path FILE, or --ckpt_path last (or best).")
        if not (settings.ckpt_path or settings.config or any(arg.startswith("--model") for arg in self.args)):
            raise UserError(
                "fit needs a recipe: --config configs/quickstart.yaml, say. Without one it would train "
                "all of GPT-1's 12 layers. Your own text is one flag more: --data.corpus FILE."
            )

    def _parse_beside_checkpoint(self, path: Path) -> None:
        """Parse again with the checkpoint's settings as defaults, and refuse what contradicts it."""
        self.checkpoint = checkpoint = read_checkpoint(path)
        if missing := set(PARTS.split()) - checkpoint.keys():
            raise UserError(f"{path} is not a checkpoint of a run of minigpt fit: it holds no {', '.join(missing)}.")
        model, data = what_is_trained(checkpoint["hyper_parameters"]), checkpoint["datamodule_hyper_parameters"]
        vocabulary = model.pop("vocabulary")
        own = {f"data.{k}": v for k, v in data.items()} | {f"model.{k}": v for k, v in model.items()}
        own = {k: v for k, v in own.items() if k not in LINKS} | {"seed_everything": data["seed"]}
        self.parser.set_defaults(own | self._settings_of_run())
        self.config = settings = self.parser.parse_args(self.args)
        settings.ckpt_path = str(path)
        settings.data.vocabulary = settings.data.vocabulary or vocabulary
        settings.name = self.run.name if self.run else settings.name
        check_name(settings.name)
        free = {"data.scoring_batch_size", "data.corpus"}  # a corpus may have moved; its content is compared later
        if self.command == "predict":
            free |= {"data.encoding"}
        elif self.command != "fit" and settings.data.corpus != data["corpus"]:
            free |= {f"data.{k}" for k in ("val_fraction", "test_fraction", "val_corpus", "test_corpus", "encoding")}
        for key, value in own.items():
            if key not in free and settings[key] != value:
                raise UserError(
                    f"{key} is given as {settings[key]!r}, but the checkpoint {path} was made with {value!r}. "
                    "A checkpoint keeps its own settings: leave out the flag, or the --config that sets it; "
                    "or start a new run without --ckpt_path."
                )
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        for limit, done in (("max_steps", checkpoint["global_step"]), ("max_epochs", epochs)):
            end = settings.trainer[limit]
            if self.command == "fit" and end is not None and 0 <= end <= done:
                raise UserError(
                    f"The run of {path} is complete: it has done {done} of {limit} = {end}. "
                    f"To train it further, give a larger --trainer.{limit}."
                )
        # Lightning starts further processes with the same arguments. They must not look for "last" or "best" again,
        # which another run may have become by then; of two flags the later one counts.
        sys.argv += ["--ckpt_path", str(path)]

    def _settings_of_run(self) -> dict[str, Any]:
        """What the checkpoint's run was given, and this command goes on with unless the user gives something else."""
        config: dict[str, Any] = {}
        if self.run and self.run.config.is_file():
            config = yaml.safe_load(self.run.config.read_text(encoding="utf-8")) or {}
        settings = self.checkpoint.get("settings") or config  # older versions keep them in the config only
        kept: dict[str, Any] = {}
        if self.command == "fit":
            for group in GROUPS:
                kept |= {f"{group}.{name}": value for name, value in settings.get(group, {}).items()}
            kept |= {f"data.{name}": config["data"][name] for name in PLACES if name in config.get("data", {})}
            kept |= {"name": settings.get("name"), "model.compile": settings.get("model", {}).get("compile", False)}
        if self.command != "predict":
            kept |= {"fast": settings.get("fast"), "trainer.precision": self.checkpoint.get("precision")}
        trainer = {key: value for key, value in kept.items() if key.startswith("trainer.")}
        for key in [key for key, value in trainer.items() if not names_no_foreign_code(value)]:
            del kept[key]
            if not any(arg.startswith(f"--{key}") for arg in self.args):
                say(f"Not restored, because it may name code from elsewhere: --{key}. Give it again to have it.")
        return {key: value for key, value in kept.items() if key in self.config}

    def _check_training(self) -> None:
        """Refuse settings of ``fit`` that Lightning takes, but that no run can go by."""
        trainer, stopping = self.config.trainer, self.config.early_stopping
        interval, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
        parts = isinstance(interval, float) and interval > 0
        whole = isinstance(interval, int) and interval > 0 and accumulated > 0 and interval % accumulated == 0
        scores = [f"val/{name}" for name in SCORES]
        limits = {
            "trainer.accumulate_grad_batches": (accumulated > 0, "more than 0"),
            "trainer.check_val_every_n_epoch": (trainer.check_val_every_n_epoch != 0, "more than 0"),
            "trainer.gradient_clip_val": ((trainer.gradient_clip_val or 0) >= 0, "at least 0, which is off"),
            "trainer.val_check_interval": (
                interval is None or parts or whole,
                f"a number of batches that ends an optimizer step, a multiple of {accumulated} "
                "(accumulate_grad_batches), or a part of an epoch; not a time, by which no run could be repeated",
            ),
            "early_stopping.patience": (isinstance(stopping.patience, int), "a number of validations"),
            "early_stopping.monitor": (stopping.monitor in scores, f"what is scored: {', '.join(scores)}"),
        }
        for name, (kept, limit) in limits.items():
            if not kept:
                raise UserError(f"{name} is {self.config[name]!r}; it must be {limit}.")

    # Building

    def before_instantiate_classes(self) -> None:
        settings = self.config
        if self.command == "fit" and self.checkpoint_path:
            say(f"Resuming {self.checkpoint_path} after step {self.checkpoint['global_step']}.")
        elif self.command == "fit" and self.makes_run:
            say(f"A new run on {settings.data.corpus}.")
        if settings.model.compile and settings.trainer.deterministic is None:
            settings.trainer.deterministic = True  # the gradient of the embedding would be added up in any order

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer, checkpoint = self.config_init.trainer, self.config_init.checkpoint
        own: dict[str, Any] = {"logger": False, "plugins": [*listed(trainer.plugins), WholeCheckpointIO()]}
        # The curves come before the sampler, whose time they would else count; then only a sound state goes on.
        self.curves = TrainingCurves()
        callbacks = [self.curves, FiniteCheck(checkpoint), *listed(trainer.callbacks), self.config_init.sampler]
        callbacks += [checkpoint, self.config_init.early_stopping, TensorBoardExtras(), GracefulStop(checkpoint)]
        if trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if self.command == "predict":
            callbacks.append(NatsWriter(self.config.output))
        if self.command == "fit" and self.makes_run and not trainer.fast_dev_run:
            own |= self._in_run_folder(trainer.logger)
            checkpoint.folder = Path(own["default_root_dir"])
            record = self.config.clone()
            record.ckpt_path = record.data.vocabulary = None
            callbacks.append(RunConfig(self.parser.dump(record, skip_unset=False)))
        if own["logger"]:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        return Trainer(**{**trainer, **own, "callbacks": callbacks})

    def _in_run_folder(self, logger: Any) -> dict[str, Any]:
        """Settings of the trainer that let it write into the run's folder, which nobody else has until all is done."""
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        folder = self.run.path if self.run else new_run_folder(LOG_DIR / (self.config.name or "minigpt"), rank)
        self.until_done.enter_context(sole_owner(folder, rank))
        step = self.checkpoint.get("global_step")  # what was logged after the checkpoint is logged again
        if logger in (None, True):
            logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=step)
        return {"default_root_dir": str(folder), "logger": [*listed(logger or None), MetricsCSV(folder, step or 0)]}

    def after_instantiate_classes(self) -> None:
        """Say by what is computed, and what the model is; refuse what is too large."""
        config, how = self.model.gpt.config, self.model.how(self.trainer)
        line = "Computing in {precision} on {device} with {layers}".format(**how)
        if self.command == "fit":
            self.datamodule.check_share(self.trainer.world_size)
            if how["device"] == "cpu":
                floats = TRAINING[self.model.hparams["optimizer"]]
                check_memory(config, floats, self.datamodule.batch_size // self.trainer.world_size)
            if 0 <= self.trainer.max_steps <= (warmup := self.model.hparams["warmup_steps"]):
                say(f"Warning: the learning rate rises until step {warmup}, and training ends before that.")
            line += "; compiled for training" if how["compile"] else "; nothing is compiled"
        else:
            del how["compile"]  # is for training
        say(f"{line}.")
        before = {"precision": self.checkpoint.get("precision")} | dict(self.checkpoint.get("how", {}))
        changes = [f"{name} {before[name]}" for name in how if before.get(name) not in (None, how[name])]
        if changes and self.command != "predict":
            say(f"The run computed otherwise so far: {', '.join(changes)}. The last digits may differ.")
        for note in dict.fromkeys(note for text in self.datamodule.texts.values() for note in text.notes):
            say(note)
        if config.vocab_size == 1:
            say("Warning: the corpus has a single character, over and over. There is nothing to learn from it.")
        say(
            f"Model: {config.n_layer} layers x {config.n_embd} wide, {config.n_head} heads, {config.norm}-norm; "
            f"window {config.block_size}; {config.vocab_size} characters; "
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters."
        )

    # Running

    def carry_out(self) -> None:
        """Let the trainer do it, between what this class has to do ``before_`` and ``after_`` the command."""
        names = ("ckpt_path", "verbose", "return_predictions")
        arguments = {name: self.config[name] for name in names if name in self.config}
        getattr(self, f"before_{self.command}", lambda: None)()
        try:
            getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, **arguments)
        except (MisconfigurationException, ValueError):
            if self.model.begun:
                raise
            with building_from("One of the settings"):  # Lightning looks at some only now
                raise
        getattr(self, f"after_{self.command}", lambda: None)()

    def after_test(self) -> None:
        """Show what the test loss means: beside it, the bits per character of simple baselines."""
        counts = np.array(make_tokenizer(self.model).character_counts())
        ids = self.datamodule.texts["test"].ids(self.datamodule.splits()["test"])
        own = float(self.trainer.callback_metrics["test/bits_per_char"])
        lines = table(baselines(ids, counts), own)
        say("\n".join(["How predictable the test split is:", *lines]))

    def after_fit(self) -> None:
        if self.config.trainer.fast_dev_run:
            return
        checkpoint, stopping, trainer = self.config_init.checkpoint, self.config_init.early_stopping, self.trainer
        best, last, step = checkpoint.best_path, checkpoint.run.last, trainer.global_step
        if stopping.wait_count >= stopping.patience:
            say(f"\nStopped early: {stopping.monitor} has not improved for {stopping.wait_count} validations.")
        if best is None:
            say(f"\nTrained to step {step}, without validation. The model: {last}")
        else:
            say(f"\nBest: {checkpoint.best_score:.4f} nats per character on the validation split, in {best}")
        if self.curves.rates:
            rate = statistics.median(self.curves.rates)
            say(
                f"Speed: {rate:,.0f} characters a second, {self.curves.utilisation(self.model, rate):.0%} of this "
                f"machine's {self.curves.peak / 1e9:,.0f} GFLOP/s (bare matrix products, {trainer.precision})."
            )
        further = f"max_steps {2 * step}" if trainer.max_steps > 0 else f"max_epochs {2 * trainer.current_epoch}"
        say(
            f"  let it write:    {program()} generate --ckpt_path {shlex.quote(str(best or last))}\n"
            f"  train it on:     {program()} fit --ckpt_path {shlex.quote(str(last))} --trainer.{further}\n"
            f"  see its curves:  {tensorboard_command(checkpoint.run)}"
        )


def train(command: str, args: list[str], cli: type[MiniGPTCLI] = MiniGPTCLI) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``, by a wiring of its own if need be.

    Raises:
        UserError: the user asked for something that can't be; the message says what and why.
        SystemExit: the run was stopped by a signal, after it was saved.
    """
    for talker in ("fabric.utilities", "pytorch.utilities"):  # devices that are not there, tips, defaults taken
        for topic in ("rank_zero", "seed"):
            logging.getLogger(f"lightning.{talker}.{topic}").setLevel(logging.WARNING)
    # What Lightning would advise against is meant: batches cost nothing to gather, a split may be short, and to score
    # needs no callback of training.
    unwanted = "does not have many workers|smaller than the logging interval|callbacks used to create the checkpoint"
    warnings.filterwarnings("ignore", f".*({unwanted})")
    warnings.filterwarnings("ignore", module="lightning", category=FutureWarning)
    keep_freed_memory()
    try:
        with ExitStack() as until_done:
            cli(command, args, until_done).carry_out()
    except Stopped as stop:
        say(
            f"\nStopped after step {stop.step}; nothing is lost.\n"
            f"  go on:           {program()} fit --ckpt_path {shlex.quote(str(stop.run.last))}\n"
            f"  see its curves:  {tensorboard_command(stop.run)}"
        )
        raise


def main(command: str, args: list[str]) -> None:
    """Train, or score a trained model, as ``command`` says: ``fit``, ``validate``, ``test`` or ``predict``."""
    train(command, args)


def names_no_foreign_code(value: Any) -> bool:
    """Whether a setting from a file can bring in no code but Lightning's and this program's."""
    if isinstance(value, dict | list):
        return all(map(names_no_foreign_code, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, str) or NO_FOREIGN_CODE.fullmatch(value) is not None


def check_name(name: str | None) -> None:
    """Refuse a name of a run that would lead out of the folder of all runs."""
    if name and (name == ".." or Path(name).name != name):
        raise UserError(f"--name {name!r} is a path; a run's name is one folder under {LOG_DIR}.")


def listed(value: Any) -> list[Any]:
    """One thing or several or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def program() -> str:
    """How the user called this program."""
    return "minigpt" if Path(sys.argv[0]).name == "minigpt" else "python -m minigpt"


def tensorboard_command(run: RunFolder) -> str:
    return f"tensorboard --logdir {shlex.quote(os.path.relpath(run.path))}"


@rank_zero_only
def say(text: str) -> None:
    """Tell the user, once, however many processes there are."""
    print(text, flush=True)
