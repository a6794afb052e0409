"""The subcommands that train and score, wired by LightningCLI: their settings, and what is built and run by them."""

import logging
import math
import os
import shlex
import statistics
import subprocess
import sys
import traceback
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from minigpt.cost import TRAINING, check_memory
from minigpt.errors import UserError, building_from, parse_arguments
from minigpt.run import LOG_DIR, RunFolder, find_checkpoint, new_run_folder, read_checkpoint, sole_owner, written_at
from minigpt.text.baselines import baselines, table
from minigpt.training.board import TensorBoardExtras
from minigpt.training.callbacks import (
    EarlyStopping,
    NatsWriter,
    ProgressBar,
    TextSampler,
    TrainingCurves,
)
from minigpt.training.checkpoints import (
    GROUPS,
    FiniteCheck,
    GracefulStop,
    Outlet,
    RunCheckpoint,
    Stopped,
    WholeCheckpointIO,
)
from minigpt.training.curves import MetricsCSV, TensorBoard
from minigpt.training.data import CharDataModule
from minigpt.training.film import Film
from minigpt.training.flags import DEFAULTS, LINKS, correct, order_help
from minigpt.training.machine import choose_precision, choose_threads, keep_freed_memory
from minigpt.training.metrics import SCORES
from minigpt.training.module import GPTLightningModule
from minigpt.training.parent import Parent
from minigpt.training.resume import (
    FIXED,
    PARTS,
    check_end,
    check_parts,
    names_no_foreign_code,
    own_settings,
    settings_of_run,
    why_branch,
)


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
        self.home: RunFolder | None = None  # the run that keeps the checkpoint, if one does
        self.parent: Parent | None = None  # whose weights a new run begins with
        self.branching = ""  # why a resume begins a new run; empty where it goes on in the checkpoint's own
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
                save_config_callback=None,  # see RunCheckpoint
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
        threads = "Threads that compute on a CPU; by default as many as are fastest when a run begins."
        parser.add_argument("--threads", type=int | None, help=threads)
        parser.add_lightning_class_args(TextSampler, "sampler")
        parser.add_lightning_class_args(Film, "film")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        for target, source in LINKS.items():
            parser.link_arguments(source, target)
        parser.link_arguments("data.vocabulary", "model.vocabulary", apply_on="instantiate")
        checkpoint = "A checkpoint file; or last or best, of the newest run."
        parser.add_argument("--ckpt_path", type=str | None, help=checkpoint)
        if self.command == "fit":
            branch = "With --ckpt_path: go on in a new run, by settings that may differ from the checkpoint's."
            parser.add_argument("--branch", type=bool, default=False, help=branch)
            rewarm = "With --ckpt_path: learning rates rise from 0 once more, in so many steps."
            parser.add_argument("--rewarm", type=int | None, help=rewarm)
            parent = "A checkpoint whose weights a new run begins with, on --data.corpus."
            parser.add_argument("--init_from", type=str | None, help=parent)
        given = self.subcommands()[self.command] | {"ckpt_path", "weights_only"}
        parser.add_method_arguments(Trainer, self.command, skip=given)
        parser.set_defaults(DEFAULTS)
        correct(parser)
        if self.command == "predict":
            parser.add_argument("--output", type=str | None, help="The CSV file to write; by default TEXT.nats.csv.")
            parser.set_defaults({"return_predictions": False, "trainer.precision": "32-true"})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self._parse()
        if self.config.get("init_from"):
            self.parent = Parent(find_checkpoint(self.config.init_from))
            with building_from(f"The checkpoint {self.parent.path}"):
                self._parse_beside_parent(self.parent)
        elif self.config.ckpt_path:
            path = self.checkpoint_path = find_checkpoint(self.config.ckpt_path, self.config.name)
            self.home = RunFolder.of(path)
            with building_from(f"The checkpoint {path}"):
                self._parse_beside_checkpoint(path)
        if self.config.trainer.precision is None:
            self.config.trainer.precision, reason = choose_precision(self.config.trainer.accelerator)
            say(f"Precision: {self.config.trainer.precision}, because {reason}.")
        if (folder := self.config.trainer.default_root_dir) is not None:
            raise UserError(
                f"trainer.default_root_dir is {str(folder)!r}; but a run has one folder, {LOG_DIR}/NAME/version_N, "
                "seen from where the program is called. --name gives the NAME; from another folder, all lies there."
            )
        if self.command == "fit":
            self._check_training()

    def _parse(self) -> None:
        if {"-h", "--help"} & set(self.args):
            order_help(self.parser, self.command, everything="all" in self.args)
        self.config = settings = parse_arguments(self.parser, self.args)
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
        parent = settings.get("init_from")
        if parent and settings.ckpt_path:
            raise UserError(
                "--init_from begins a new run and --ckpt_path goes on with one, so only one of them can be given. "
                "(The config of a run that began with --init_from holds it; --ckpt_path needs no config.)"
            )
        if not (parent or settings.ckpt_path or settings.config or any(arg.startswith("--model") for arg in self.args)):
            raise UserError(
                "fit needs a recipe: --config configs/quickstart.yaml, say. Without one it would train "
                "all of GPT-1's 12 layers. Your own text is one flag more: --data.corpus FILE."
            )
        if self.command == "fit" and not settings.ckpt_path and (settings.branch or settings.rewarm is not None):
            raise UserError("--branch and --rewarm are about a run that goes on: name it with --ckpt_path.")

    def _parse_beside_checkpoint(self, path: Path) -> None:
        """Parse again with the checkpoint's settings as defaults, and refuse what contradicts it."""
        self.checkpoint = checkpoint = read_checkpoint(path)
        if self.command == "fit" and "film" in checkpoint:
            raise UserError(
                f"{path} is a frame of a film. It has the weights alone, in float16, so no run can resume from it; "
                "it can write and be scored. To train further, name a checkpoint of the run: last or best. Or begin a "
                "new run with its weights: --init_from."
            )
        if checkpoint["hyper_parameters"].get("tokenizer") == "bpe" and self.command != "predict":
            raise UserError(
                f"{path} reads pieces of words, by a tokenizer from elsewhere that may lose a part of the text, so no "
                f"loss per character can be told, and {self.command} knows characters and bytes only. generate, chat "
                "and trace work with it, and predict gives the nats per token of a text."
            )
        going_on = {"loops", "optimizer_states", "lr_schedulers"}  # what needs them is a run that goes on
        parts = set(PARTS.split()) - (going_on if self.command != "fit" else set())
        if (missing := parts - checkpoint.keys()) == going_on:
            raise UserError(
                f"{path} has the weights alone, as export and import write them, and no state of an optimizer, so no "
                "run can go on from it; it can write and be scored. To train it further, begin a new run from it: "
                f"fit --init_from {path}."
            )
        if missing:
            raise UserError(f"{path} is not a checkpoint of a run of minigpt fit: it holds no {', '.join(missing)}.")
        own, data = own_settings(checkpoint), checkpoint["datamodule_hyper_parameters"]
        if self.command == "fit":
            own["seed_everything"] = data["seed"]  # without which the next batches would be others
        self._parse_again(own, settings_of_run(checkpoint, self.home, self.command))
        settings = self.config
        settings.ckpt_path = str(path)
        settings.data.vocabulary = settings.data.vocabulary or checkpoint["hyper_parameters"]["vocabulary"]
        if self.command == "fit":
            name = settings.name if self._given("name") else None
            self.branching = why_branch(checkpoint, self.home, name, settings.branch)
        settings.name = self.home.name if self.home and not self._given("name") else settings.name
        check_name(settings.name)
        free = {"data.eval_batch_size", "data.corpus"}  # a corpus may have moved; its content is compared later
        if self.command == "predict":
            free |= {"data.encoding", "data.suffixes"}
        elif self.command == "fit" and settings.branch:
            free |= {key for key in own if key.rpartition(".")[2] not in FIXED}
        elif self.command != "fit" and settings.data.corpus != data["corpus"]:
            splits = ("val_fraction", "test_fraction", "val_corpus", "test_corpus")
            free |= {f"data.{k}" for k in (*splits, "encoding", "suffixes")}
        changes = {key: value for key, value in own.items() if settings[key] != value}
        for key in changes.keys() - free:
            raise UserError(
                f"{key} is given as {settings[key]!r}, but the checkpoint {path} was made with {own[key]!r}. "
                "A checkpoint keeps its own settings: leave out the flag, or the --config that sets it. "
                + ("" if key.rpartition(".")[2] in FIXED else "To change it from here on, add --branch true. ")
                + "Or start a new run without --ckpt_path."
            )
        self.changes = [f"{key} {settings[key]} instead of {value}" for key, value in changes.items()]
        if self.command == "fit":
            check_end(path, checkpoint, settings)
            if not settings.branch:
                check_parts(path, checkpoint, GPTLightningModule.own_parts)
            if settings.rewarm is not None:
                settings.model.rewarm_start, settings.model.rewarm_steps = checkpoint["global_step"], settings.rewarm
        # Lightning starts further processes with the same arguments. They must not look for "last" or "best" again,
        # which another run may have become by then; of two flags the later one counts.
        sys.argv += ["--ckpt_path", str(path)]

    def _parse_again(self, own: dict[str, Any], kept: dict[str, Any]) -> None:
        """Parse with other defaults: a checkpoint's ``own`` settings, and those that its run ``kept``."""
        foreign = {k for k, v in kept.items() if k.startswith("trainer.") and not names_no_foreign_code(v)}
        for key in sorted(foreign):
            if not self._given(key):
                say(f"Not restored, because it may name code from elsewhere: --{key}. Give it again to have it.")
        self.parser.set_defaults(own | {k: v for k, v in kept.items() if k in self.config and k not in foreign})
        self.config = parse_arguments(self.parser, self.args)

    def _parse_beside_parent(self, parent: Parent) -> None:
        """Parse again with the settings of the parent's run as defaults, but for those of its text."""
        name, kept = self.config.name, parent.settings()
        self._parse_again({"data.corpus": ""}, kept)
        settings = self.config
        parent.check(settings)
        settings.name = name or settings.name
        check_name(settings.name)
        settings.init_from, settings.data.base_vocabulary = str(parent.path), parent.tokenizer.vocabulary
        sys.argv += ["--init_from", str(parent.path)]  # see above

    def _given(self, flag: str) -> bool:
        return any(arg.split("=")[0] == f"--{flag}" for arg in self.args)

    def _check_training(self) -> None:
        """Refuse settings of ``fit`` that Lightning takes, but that no run can go by."""
        trainer, stopping = self.config.trainer, self.config.early_stopping
        interval, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
        if isinstance(interval, float) and trainer.check_val_every_n_epoch is None:
            trainer.check_val_every_n_epoch = 1  # of each epoch a part
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
            "trainer.enable_checkpointing": (trainer.enable_checkpointing is not False, "true, for a run is kept"),
            "trainer.barebones": (not trainer.barebones, "false; docs/python.md trains with Lightning's Trainer alone"),
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
            where = f" in a new run, {self.branching}" if self.branching else ""
            with_what = f", with {', '.join(self.changes)}" if self.changes else ""
            say(f"Resuming {self.checkpoint_path} after step {self.checkpoint['global_step']}{where}{with_what}.")
        elif self.checkpoint_path:
            say(f"The model is {self.checkpoint_path}, after step {self.checkpoint['global_step']}.")
        elif self.makes_run:
            say(f"A new run on {settings.data.corpus}{self.parent.taken(settings) if self.parent else ''}.")
        if settings.model.compile and settings.trainer.deterministic is None:
            settings.trainer.deterministic = True  # the gradient of the embedding would be added up in any order

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer, checkpoint = self.config_init.trainer, self.config_init.checkpoint
        if self.command == "fit" and self.checkpoint:  # now, for in what follows files are made
            self.datamodule.setup("fit")
            self.datamodule.check_same_text(self.checkpoint["CharDataModule"])
        if self.parent:
            self.parent.give_weights(self.model.gpt)
            self.model.parents = self.parent.lineage()
        logger = False if trainer.logger is None else trainer.logger
        own: dict[str, Any] = {"logger": logger, "plugins": [*listed(trainer.plugins), WholeCheckpointIO()]}
        # The curves come before the sampler, whose time they would else count; then only a sound state goes on.
        self.curves = TrainingCurves()
        callbacks = [self.curves, FiniteCheck(checkpoint), *listed(trainer.callbacks), self.config_init.sampler]
        callbacks += [self.config_init.film, checkpoint, self.config_init.early_stopping]
        callbacks += [TensorBoardExtras(checkpoint), GracefulStop(checkpoint)]
        if trainer.enable_progress_bar is not False and not any(isinstance(c, AnyProgressBar) for c in callbacks):
            callbacks.append(ProgressBar())
        if self.command == "predict":
            callbacks.append(NatsWriter(self.config.output))
        if self.command == "fit" and self.makes_run and not trainer.fast_dev_run:
            own |= self._in_run_folder(trainer)
            checkpoint.folder = Path(own["default_root_dir"])
            for given in callbacks:
                if isinstance(given, ModelCheckpoint) and given.dirpath is None:  # it may write a last.ckpt too
                    given.dirpath = str((checkpoint.folder / "model_checkpoint").resolve())
            record = self.config.clone()
            record.ckpt_path = record.rewarm = record.data.vocabulary = record.data.base_vocabulary = None
            record.branch = False
            for name in ("corpus", "val_corpus", "test_corpus"):  # of the standard input, the file that keeps it
                record.data[name] = getattr(self.datamodule.settings, name)
            checkpoint.config = self.parser.dump(record, skip_unset=False)
        if own["logger"]:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        return Trainer(**{**trainer, **own, "callbacks": callbacks})

    def _in_run_folder(self, trainer: Any) -> dict[str, Any]:
        """Settings of the trainer that let it write into the run's folder, which nobody else has until all is done."""
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        home, new = self.home, self.home is None or bool(self.branching)
        run = RunFolder(new_run_folder(LOG_DIR / (self.config.name or "minigpt"), rank)) if new or not home else home
        self.until_done.enter_context(sole_owner(run.path, rank, new))
        if self.checkpoint_path and new and rank == 0:
            run.begin_with(self.checkpoint_path, self.checkpoint)
        if self.parent and rank == 0:
            run.note_parent(self.parent.path, self.parent.step, taken="weights")
        for logger in listed(trainer.logger):
            if rank == 0 and isinstance(logger, CSVLogger) and (rows := Path(logger.log_dir, "metrics.csv")).exists():
                rows.rename(rows.with_name(f"metrics.{written_at(rows)}.csv"))  # or the logger would delete it
        step = self.checkpoint.get("global_step")  # what was logged after the checkpoint is logged again
        logger = trainer.logger
        if logger in (None, True):
            logger = TensorBoard(run.path, name="", version="", default_hp_metric=False, purge_step=step)
        loggers = [*listed(logger or None), MetricsCSV(run.path, step or 0)]
        return {"default_root_dir": str(run.path), "logger": loggers}

    def after_instantiate_classes(self) -> None:
        """Say by what is computed, and what the model is; refuse what is too large."""
        config, parameters = self.model.gpt.config, sum(p.numel() for p in self.model.parameters())
        frozen = sum(p.numel() for p in self.model.parameters() if not p.requires_grad)
        if self.trainer.strategy.root_device.type == "cpu":
            self._set_threads()
        how = self.model.how(self.trainer)
        line = "Computing in {precision} on {device} with {layers}".format(**how)
        line += f", {how['threads']} thread{'s' * (how['threads'] > 1)}" if how["threads"] else ""
        if self.command == "fit":
            self.datamodule.check_share(self.trainer.world_size)
            if how["device"] == "cpu":
                floats = 1 + (TRAINING[self.model.hparams["optimizer"]] - 1) * (1 - frozen / parameters)
                check_memory(config, floats, self.datamodule.batch_size // self.trainer.world_size, parameters)
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
        for note in self.parent.news(self.datamodule) if self.parent else ():
            say(note)
        if config.vocab_size == 1:
            say("Warning: the corpus has a single character, over and over. There is nothing to learn from it.")
        tokens = "pieces of words" if self.config.data.tokenizer == "bpe" else "characters"
        say(
            f"Model: {config.n_layer} layers x {config.n_embd} wide, {config.n_head} heads, {config.norm}-norm; "
            f"window {config.block_size}; {config.vocab_size} {tokens}; "
            f"{parameters:,} parameters{f', {frozen:,} of them frozen' if frozen else ''}."
        )

    def _set_threads(self) -> None:
        """Compute with as many threads as the user or the checkpoint says; a new run with as many as are fastest."""
        threads, new = self.config.threads, self.command == "fit" and not self.checkpoint_path
        if threads is None and new and self.trainer.world_size == 1:  # of several, each has its part of the cores
            precision = str(self.trainer.precision)
            threads = choose_threads(self.model.gpt.config, self.datamodule.batch_size, precision)
            if threads < torch.get_num_threads():
                say(f"{threads} of {torch.get_num_threads()} threads, which is faster at this moment (see --threads).")
        if threads is not None:
            if threads < 1:
                raise UserError(f"threads is {threads}; it must be at least 1.")
            torch.set_num_threads(threads)

    # Running

    def carry_out(self) -> None:
        """Let the trainer do it, between what this class has to do ``before_`` and ``after_`` the command."""
        names = ("ckpt_path", "verbose", "return_predictions")
        arguments = {name: self.config[name] for name in names if name in self.config}
        getattr(self, f"before_{self.command}", lambda: None)()
        try:
            getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, **arguments)
        except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
            raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            if self.model.begun or raised_in.is_relative_to(Path(__file__).parents[1]):  # the latter is a bug of ours
                raise
            with building_from("One of the settings"):  # Lightning looks at some only now
                raise
        getattr(self, f"after_{self.command}", lambda: None)()

    def after_test(self) -> None:
        """Show what the test loss means: beside it, the bits per character of simple baselines."""
        counts, data = np.array(self.model.tokenizer.character_counts()), self.datamodule
        scored = self.trainer.num_test_batches[0] * data.settings.eval_batch_size * data.block_size
        ids = data.texts["test"].ids(data.splits()["test"][: scored * self.trainer.world_size])
        own = float(self.trainer.callback_metrics["test/bits_per_char"])
        lines = table(baselines(ids, counts), own)
        say("\n".join([f"How predictable the {len(ids):,} characters scored are:", *lines]))

    def after_fit(self) -> None:
        if self.config.trainer.fast_dev_run:
            return
        checkpoint, trainer = self.config_init.checkpoint, self.trainer
        best, last, step = checkpoint.best_path, checkpoint.run.last, trainer.global_step
        why, further = self._ending()
        if why:
            say(f"\nStopped after step {step}: {why}.")
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
        say(
            f"  let it write:    {program()} generate --ckpt_path {quoted(str(best or last))}\n"
            f"  train it on:     {program()} {training()} --ckpt_path {quoted(str(last))}{further}\n"
            f"  see its curves:  {tensorboard_command(checkpoint.run)}"
        )

    def _ending(self) -> tuple[str, str]:
        """Why training ended before its end, if it did, and the flag by which it goes on."""
        stopping, trainer = self.config_init.early_stopping, self.trainer
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if stopping.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            why = f"{stopping.monitor} has not improved for {stopping.wait_count} validations"
            return why, f" --early_stopping.patience {2 * stopping.wait_count}"
        if stopping.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            return stopping.stopping_reason_message.removesuffix(". Signaling Trainer to stop."), ""
        for timer in (callback for callback in callbacks if isinstance(callback, Timer)):
            if (left := timer.time_remaining()) is not None and left <= 0:
                minutes, seconds = divmod(math.ceil(2 * timer.time_elapsed()), 60)
                hours, minutes = divmod(minutes, 60)
                more = "{:02}:{:02}".format(*divmod(hours, 24)) + f":{minutes:02}:{seconds:02}"
                return "its max_time is over", f" --trainer.max_time {more}"
        if 0 < trainer.max_steps <= trainer.global_step:
            return "", f" --trainer.max_steps {2 * trainer.global_step}"
        return "", f" --trainer.max_epochs {2 * trainer.current_epoch}"


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
    # Of what a CSV logger finds in its folder, nothing will be deleted: see _in_run_folder.
    unwanted = "does not have many workers|smaller than the logging interval|callbacks used to create the checkpoint"
    unwanted += "|Experiment logs directory"
    warnings.filterwarnings("ignore", f".*({unwanted})")
    warnings.filterwarnings("ignore", module="lightning", category=FutureWarning)
    keep_freed_memory()
    if command == "fit":
        Outlet.put_in()
    try:
        with ExitStack() as until_done:
            cli(command, args, until_done).carry_out()
    except Stopped as stop:
        say(
            f"\nStopped after step {stop.step}; nothing is lost.\n"
            f"  go on:           {program()} {training()} --ckpt_path {quoted(str(stop.run.last))}\n"
            f"  see its curves:  {tensorboard_command(stop.run)}"
        )
        raise


def main(command: str, args: list[str]) -> None:
    """Train, or score a trained model, as ``command`` says: ``fit``, ``validate``, ``test`` or ``predict``."""
    train(command, args)


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


def training() -> str:
    """The command that goes on with a run: with a learner's own parts, if this one is trained with such."""
    return "learn train" if GPTLightningModule.own_parts else "fit"


def quoted(text: str) -> str:
    """A word of a command, as the shell of this system takes it."""
    return shlex.quote(text) if os.name == "posix" else subprocess.list2cmdline([text])


def tensorboard_command(run: RunFolder) -> str:
    return f"tensorboard --logdir {quoted(os.path.relpath(run.path))}"


@rank_zero_only
def say(text: str) -> None:
    """Tell the user, once, however many processes there are."""
    print(text, flush=True)
