"""Optimizers and the learning rate: AdamW as GPT-1 has it, or Muon for the hidden matrices with AdamW for the rest."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "linear", "constant"]


def decay_groups(parameters: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The parameters, by their names, in two groups: decayed, and not.

    Matrices decay, the embeddings among them; biases and the gains of layer norms don't (GPT-1 paper, section 4.1).
    Names tell which is which, because a device that holds a part of a matrix sees it without its shape.
    """
    spared = {name for name in parameters if name.endswith(".bias") or "norm" in name}
    return [
        {
            "name": "decay",
            "params": [p for n, p in parameters.items() if n not in spared],
            "weight_decay": weight_decay,
        },
        {"name": "no_decay", "params": [p for n, p in parameters.items() if n in spared], "weight_decay": 0.0},
    ]


def hidden_matrices(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The matrices inside the blocks, which map hidden vectors to hidden vectors; no embedding is among them."""
    return {name: p for name, p in parameters.items() if "blocks." in name and p.dim() == 2}


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the hidden matrices and AdamW for the rest, as one optimizer.

    Muon makes each step of a matrix orthogonal, so that it moves all directions alike. It is meant for matrices
    between hidden vectors only. One optimizer, because Lightning clips, accumulates and schedules by itself only
    where there is just one: the two share this one's groups and state.

    Args:
        matrices: the parameters that Muon takes, each of rank 2.
        groups: the parameter groups that AdamW takes.
        muon: settings of :class:`torch.optim.Muon`.
        adamw: settings of :class:`torch.optim.AdamW`.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        muon: dict[str, Any],
        adamw: dict[str, Any],
    ) -> None:
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon([{"name": "muon", "params": matrices}], **muon),
            torch.optim.AdamW(groups, **adamw),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the groups and the state that were saved; see :meth:`torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)  # puts new ones in the place of those that were shared
        self._share()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of both; ``closure``, if given, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def learning_rate_factor(
    step: int, schedule: Schedule, warmup_steps: int, max_steps: int, decay_fraction: float
) -> float:
    """The learning rate of optimizer step ``step``, from 0 on, as a fraction of its peak.

    It rises in a straight line and reaches 1 at step ``warmup_steps``; with a warm-up of 0 it begins there. Then it
    falls to 0 at ``max_steps``: along half a cosine (GPT-1 paper, section 4.1), in a straight line, or, "constant",
    not before the last ``decay_fraction`` of all steps, and then in a straight line.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step > max(warmup_steps, max_steps - 1):
        return 0.0
    start = max_steps * (1 - decay_fraction) if schedule == "constant" else 0.0
    start = max(start, warmup_steps)
    progress = max(0.0, step - start) / max(1, max_steps - start)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
