"""Where a learner's own functions stand in the program, and what form each takes there.

Each place is named by where it stands. Nothing else of the program changes, so a checkpoint is an ordinary one.
"""

import math
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt import fast, generation, optim
from minigpt.errors import UserError
from minigpt.model import KeyValueCache
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
