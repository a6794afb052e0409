"""A learner's own functions in the place of the program's, while it trains a recipe.

Each place is named by where it stands. Nothing else of the program changes, so the checkpoint is an ordinary one.
"""

import math
import pkgutil
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt import fast, generation, optim
from minigpt.course.check import check
from minigpt.course.child import load, one_thread
from minigpt.course.lesson import Step
from minigpt.course.progress import Folder, command
from minigpt.errors import UserError
from minigpt.fast import apply
from minigpt.model import GPT, GPTConfig, KeyValueCache
from minigpt.run import find_checkpoint, read_checkpoint
from minigpt.sampling import Sampling

Own = Callable[..., Any]  # what a learner has written
MARK = "training.module.GPTLightningModule.own_parts"  # what training asks and writes into each checkpoint


def attending(attend: Own) -> Own:
    def method(self: Any, query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
        return attend(query_BHTD, key_BHSD, value_BHSD).to(query_BHTD.dtype)

    return method


def splitting(split_heads: Own) -> Own:
    def forward(self: Any, x_BTC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        B, T, C = x_BTC.shape
        query_BHTD, key_BHSD, value_BHSD = split_heads(self.qkv(x_BTC), self.n_head)
        if cache is not None:
            key_BHSD, value_BHSD = cache.append(torch.stack((key_BHSD, value_BHSD)))
        y_BHTD = self.attend(query_BHTD, key_BHSD, value_BHSD)
        return self.dropout(self.projection(y_BHTD.transpose(1, 2).reshape(B, T, C)))

    return forward


def norming(layer_norm: Own) -> Own:
    def forward(self: Any, x_BTC: Tensor) -> Tensor:
        return layer_norm(x_BTC, self.weight, self.bias, self.eps)

    return forward


def stacking(block: Own) -> Own:
    def forward(self: Any, x_BTC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        attention = partial(self.attention, cache=cache)
        return block(x_BTC, attention, self.feed_forward, lambda x: self.residual_middle(self.norm_1(x)), self.norm_2)

    return forward


def assembling(gpt: Own) -> Own:
    def forward(self: Any, ids_BT: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        start = caches[0].length if caches else 0
        if (end := start + ids_BT.shape[1]) > self.config.block_size:
            raise ValueError(f"The sequence has {end} tokens, more than block_size = {self.config.block_size}.")
        blocks: list[Own] = [partial(block, cache=caches[i] if caches else None) for i, block in enumerate(self.blocks)]
        # What the exercise says nothing of, dropout and the size of tokens beside sines, goes before the first block.
        scale = math.sqrt(self.config.n_embd) if self.config.positions == "sinusoidal" else 1.0
        first = blocks[0]
        blocks[0] = lambda x_BTC: first(self.embedding_dropout(scale * x_BTC))
        position_TC = self.position_embedding(torch.arange(start, end, device=ids_BT.device)) / scale
        return gpt(ids_BT.long(), self.token_embedding.weight, position_TC, blocks, self.final_norm)

    return forward


def placing(position_table: Own) -> Own:
    def __init__(self: Any, block_size: int, n_embd: int) -> None:  # noqa: N807 - it becomes one
        nn.Module.__init__(self)
        self.register_buffer("table", position_table(block_size, n_embd).float(), False)

    return __init__


def losing(cross_entropy: Own) -> Own:
    def character_nats(self: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids_BT, targets_BT = batch
        logits_BTV = self.gpt(ids_BT).float()
        nats_BT = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(targets_BT)
        if not self.training:  # scores need the cost of each character, which a mean doesn't tell
            return nats_BT
        nats_BT = nats_BT.detach()
        return nats_BT - nats_BT.mean() + cross_entropy(logits_BTV, targets_BT)  # so that their mean is the learner's

    return character_nats


def stepping(adamw_step: Own) -> type[torch.optim.AdamW]:
    class OwnAdamW(torch.optim.AdamW):
        """PyTorch's groups and state, so that a checkpoint is as always; the learner's step."""

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                numbers = group["lr"], *group["betas"], group["eps"], group["weight_decay"]
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step(parameter, *numbers)
            return loss

        def _step(self, parameter: Tensor, *numbers: float) -> None:
            if not (state := self.state[parameter]):
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            kept = parameter, state["exp_avg"], state["exp_avg_sq"]
            new = adamw_step(parameter.detach(), parameter.grad, *kept[1:], int(state["step"]), *numbers)
            for old, value in zip(kept, new, strict=True):
                old.copy_(value)

    return OwnAdamW


def scheduling(learning_rate: Own) -> Own:
    reference = optim.learning_rate_factor

    def learning_rate_factor(
        step: int,
        schedule: optim.Schedule,
        warmup_steps: int,
        max_steps: int,
        decay_fraction: float,
        rewarm_start: int = 0,
        rewarm_steps: int = 0,
    ) -> float:
        if rewarm_start <= step < rewarm_start + rewarm_steps:
            rising = (step - rewarm_start) / rewarm_steps
            return rising * learning_rate_factor(step, schedule, warmup_steps, max_steps, decay_fraction)
        if warmup_steps >= max_steps or step >= max_steps:  # of which the exercise says nothing
            return reference(step, schedule, warmup_steps, max_steps, decay_fraction)
        return float(learning_rate(step, 1.0, warmup_steps, max_steps))

    return learning_rate_factor


def choosing(choose: Own) -> Own:
    reference = generation.next_ids

    def next_ids(logits_BV: Tensor, window_BT: Tensor, sampling: Sampling, uniform_B1: Tensor) -> Tensor:
        if sampling != Sampling(sampling.temperature, sampling.top_k):
            raise UserError("choose knows temperature and top_k alone: leave out top_p, min_p and repetition_penalty.")
        if logits_BV.isnan().any():
            return reference(logits_BV, window_BT, sampling, uniform_B1)  # which says it
        ids = []
        for logits_V, uniform in zip(logits_BV.double(), uniform_B1.flatten().tolist(), strict=True):
            top_k = None if sampling.top_k is None else min(sampling.top_k, len(logits_V))
            ids.append(int(choose(logits_V.clone(), sampling.temperature, top_k, uniform)))
        return torch.tensor(ids)

    return next_ids


@dataclass(frozen=True)
class Place:
    """Where a learner's function goes."""

    name: str  # what it takes the place of, below minigpt
    adapted: Callable[[Own], Any]  # the function in the form of what stands there
    # The settings that it is right for, and why.
    settings: dict[str, Any] = field(default_factory=dict)
    why: str = ""


PLACES = {
    "cross_entropy": Place("training.module.GPTLightningModule.character_nats", losing),
    "attend": Place(
        "model.CausalSelfAttention.attend", attending, {"model.attn_pdrop": 0}, "attend drops nothing of the pattern"
    ),
    "split_heads": Place("model.CausalSelfAttention.forward", splitting),
    "position_table": Place(
        "model.SinusoidalEmbedding.__init__",
        placing,
        {"model.positions": "sinusoidal"},
        "learned positions need no table",
    ),
    "layer_norm": Place("model.LayerNorm.forward", norming),
    "block": Place("model.Block.forward", stacking, {"model.norm": "post"}, "block is GPT-1's, which norms each sum"),
    "learning_rate": Place(
        "training.module.learning_rate_factor", scheduling, {"model.schedule": "cosine"}, "learning_rate is a cosine"
    ),
    "adamw_step": Place("optim.AdamW", stepping),
    "gpt": Place("model.GPT.forward", assembling),
    "choose": Place("generation.next_ids", choosing),
}


@contextmanager
def in_place(functions: dict[str, Own]) -> Iterator[None]:
    """While this lasts, the program computes by the learner's functions, each at its :class:`Place`.

    A layer that one of them is in has no fast layer, not even with ``--fast true``.
    """
    with ExitStack() as undo:
        replaced = {PLACES[name].name: PLACES[name].adapted(function) for name, function in functions.items()}
        for name, value in {**replaced, MARK: tuple(functions)}.items():
            owner, _, attribute = name.rpartition(".")
            holder = pkgutil.resolve_name(f"minigpt.{owner}")
            undo.callback(setattr, holder, attribute, getattr(holder, attribute))
            setattr(holder, attribute, value)
            if holder in fast.FAST:
                undo.callback(fast.FAST.update, {holder: fast.FAST.pop(holder)})
        yield


def settings_for(names: list[str], args: list[str]) -> list[str]:
    """The flags that these parts need beside those that are given; a UserError where one of those contradicts."""
    flags = []
    for name in names:
        place = PLACES[name]
        for key, value in place.settings.items():
            for given in given_values(args, f"--{key}"):
                is_zero = value == 0 and not given.strip("0.")  # 0.0, say
                if given != str(value) and not is_zero:
                    raise UserError(f"--{key} {given} doesn't go with your {name}: {place.why}. Leave the flag out.")
            flags += [f"--{key}", str(value)]
    return flags


def given_values(args: list[str], flag: str) -> list[str]:
    """What the arguments give for a flag."""
    apart = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == flag]
    return apart + [arg.removeprefix(f"{flag}=") for arg in args if arg.startswith(f"{flag}=")]


def slower(functions: dict[str, Own]) -> str:
    """How much longer a training step takes than by the fast layers, as a sentence: measured here and now."""
    settings = {key: value for name in functions for key, value in PLACES[name].settings.items()}
    norm, positions = settings.get("model.norm", "pre"), settings.get("model.positions", "learned")
    shape = {"vocab_size": 70, "block_size": 128, "n_layer": 3, "n_head": 4, "n_embd": 128}  # quickstart's
    config = GPTConfig(**shape, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, norm=norm, positions=positions)
    usual = GPT(config)
    apply(usual, fast=True)
    with in_place(functions):
        own = GPT(config)
        loss = functions.get("cross_entropy", mean_nats)
        if (seconds := step_seconds(own, loss, 1, 8)) > 1:
            return (
                f"Your parts take {seconds:.1f} seconds for a window of 8 characters: a training takes hours or days. "
                "Write them without loops in Python; the third hint shows how."
            )
        seconds = step_seconds(own, loss, 4, 128)
    before = step_seconds(usual, mean_nats, 4, 128)
    return (
        f"A training step takes {seconds / before:.1f} times as long with your parts as with the fast layers (measured "
        "now, on one core, in 32 bits, with a model of quickstart's shape; fit itself may take 16 bits, and be faster "
        "still)."
    )


@contextmanager
def blaming(folder: Folder) -> Iterator[None]:
    """Let a UserError tell where an error of the learner's own parts arose."""
    try:
        yield
    except Exception as error:
        frames = [it for it in traceback.extract_tb(error.__traceback__) if Path(it.filename).parent == folder.path]
        if not frames:
            raise
        raise UserError(
            f"Your part passes its check, which computes in 64 bits, but not in training, which computes in 32 and in "
            f"other shapes. {frames[-1].filename}, line {frames[-1].lineno}, {frames[-1].line}: {error}. Give each "
            "tensor that you make the type of an input: dtype=x.dtype."
        ) from error


def mean_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


@one_thread()
def step_seconds(gpt: GPT, loss: Own, batch: int, length: int) -> float:
    """What a step of training takes of one core, the least of some; others may be at work on this machine."""
    optimizer = optim.AdamW(gpt.parameters(), lr=1e-3)
    ids_BT = torch.randint(gpt.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(3):
        start = time.process_time()
        loss(gpt(ids_BT), ids_BT).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(time.process_time() - start)
        if found[-1] > 2:
            break
    return min(found)


def train(settings: Namespace) -> None:
    """Train a recipe with the learner's own parts in the place of the program's."""
    folder, flags = Folder(), settings.flags
    names = chosen(folder, settings.mine, flags)
    functions = {name: getattr(load(folder.answer(name)), name) for name in names}
    needed = settings_for(names, flags)
    for name in names:
        print(f"{PLACES[name].name} = my.{name}")
        for key, value in PLACES[name].settings.items():
            print(f"    with --{key} {value}, because {PLACES[name].why}")
    if set(names) - {"learning_rate", "choose"}:
        with blaming(folder):
            print(slower(functions), flush=True)
    if not given_values(flags, "--ckpt_path"):
        recipe = [] if given_values(flags, "--config") else ["--config", "quickstart"]  # first: later flags win
        flags = [*recipe, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", *flags]
    with in_place(functions):
        settings.call("fit", [*flags, *needed])
    with folder.changed() as progress:
        whole = ["all"] if set(names) == PLACES.keys() else []
        progress.trained = list(dict.fromkeys([*progress.trained, *names, *whole]))
    print("The checkpoint is like any other: validate, generate and explain compute it by the program's own parts.")


def chosen(folder: Folder, named: list[str], flags: list[str]) -> list[str]:
    """The parts to train with: those that are named; of "all", those that are right; by default the checkpoint's.

    Raises:
        UserError: there is none, or one that is named has no place in the program, or isn't right.
    """
    checkpoint, run = given_values(flags, "--ckpt_path"), given_values(flags, "--name")
    if checkpoint and not named:
        named = read_checkpoint(find_checkpoint(checkpoint[-1], run[-1] if run else None)).get("own_parts", [])
    wrong = [name for name in named if name not in PLACES and name != "all"]
    if wrong or not named:
        said = f"{', '.join(wrong)} has no place in the program. " if wrong else ""
        raise UserError(
            f"{said}Name parts of your own: --mine attend --mine block, say. There are places for {', '.join(PLACES)}."
        )
    faults = {name: fault(folder, name) for name in (PLACES if "all" in named else named)}
    for name in named:
        if what := faults.get(name):
            raise UserError(f"Your {name} isn't right yet, so nothing is trained with it. {what}")
    if left := [name for name in faults if faults[name]]:
        print(f"Without your {', '.join(left)}: not right yet. {command('check NAME')} tells why.")
    if len(left) == len(faults):
        raise UserError(f"None of your parts is right yet, so there is nothing to train with. Go on with: {command()}")
    return [name for name in faults if not faults[name]]


def fault(folder: Folder, name: str) -> str:
    """What is wrong with the learner's answer as it stands; nothing if it passes its check, now or before."""
    path, digest = folder.answer(name), folder.digest(name)
    if not digest:
        return f"There is no {path} yet. Begin it with: {command(f'check {name}')}"
    if folder.done(Step("write", name), folder.progress()):
        return ""
    result = check(name, path)
    folder.keep_result(name, digest, result.passed)
    return "" if result.passed else result.message
