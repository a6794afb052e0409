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


def orthogonalise(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix like this one, but with singular values near 1: five Newton-Schulz steps (Jordan et al. 2024).

    Args:
        matrix: (rows, columns).
        dtype: what to compute in.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype).mT if tall else matrix.to(dtype)  # the product with itself is then the smaller one
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, so that a matrix moves in all directions alike (Jordan et al. 2024).

    It is meant for matrices between hidden vectors only. :class:`torch.optim.Muon` is the same, but always computes
    in bfloat16, which takes 20 times as long as float32 where the processor has no instructions for it.

    Args:
        params: parameters of rank 2, or groups of them.
        lr: learning rate; that of a matrix with more rows than columns is the root of their ratio larger.
        momentum: decay of the running mean of the gradient, in Nesterov's form.
        weight_decay: as AdamW has it.
        dtype: what the steps are made orthogonal in.
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if not (state := self.state[matrix]):
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                step = orthogonalise(matrix.grad.lerp(mean, group["momentum"]), self.dtype)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(step, alpha=-group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1])))


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the hidden matrices and AdamW for the rest, as one optimizer.

    It is one, because Lightning's automatic optimization, which clips, accumulates and schedules, allows only one:
    both parts share its groups and its state.

    Args:
        matrices: the parameters that Muon takes, each of rank 2.
        groups: the parameter groups that AdamW takes.
        muon: settings of :class:`Muon`.
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
            Muon([{"name": "muon", "params": matrices}], **muon),
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

    It rises in a straight line to 1 at step ``warmup_steps``, if the run is that long; without a warm-up it begins
    there. Then it falls to 0 at ``max_steps``: along half a cosine (GPT-1 paper, section 4.1), in a straight line, or,
    "constant", not before the last ``decay_fraction`` of all steps, and then in a straight line.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step > max(warmup_steps, max_steps - 1):
        return 0.0
    start = max_steps * (1 - decay_fraction) if schedule == "constant" else 0.0
    start = max(start, warmup_steps)
    progress = max(0.0, step - start) / max(1, max_steps - start)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
