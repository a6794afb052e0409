"""Optimizers and the learning rate: AdamW as GPT-1 has it, or Muon for the hidden matrices with AdamW for the rest."""

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from minigpt.errors import UserError

Schedule = Literal["cosine", "linear", "constant"]


def make_optimizer(parameters: dict[str, nn.Parameter], h: Any, precision: str) -> torch.optim.Optimizer:
    """The optimizer of a GPT.

    Args:
        parameters: all that train, by name.
        h: the hyperparameters of :class:`~minigpt.training.module.GPTLightningModule`.
        precision: of the run, as Lightning names it.
    """
    # 16-mixed scales gradients, and the fused kernel would take them as they are.
    adamw = {"lr": h.learning_rate, "betas": (h.beta1, h.beta2), "eps": h.eps, "fused": precision != "16-mixed"}
    if h.optimizer == "adamw":
        return AdamW(decay_groups(parameters, h.weight_decay), **adamw)
    matrices = hidden_matrices(parameters)
    if not matrices and any("blocks." in name and decays(name) for name in parameters):  # under FSDP
        raise UserError("model.optimizer = muon needs whole matrices on each device; use adamw, or ddp.")
    others = {name: p for name, p in parameters.items() if name not in matrices}
    muon = {"lr": h.muon_learning_rate, "momentum": h.muon_momentum, "weight_decay": h.weight_decay}
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    return MuonAdamW(list(matrices.values()), decay_groups(others, h.weight_decay), muon, adamw, dtype)


def decay_groups(parameters: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The parameters, by their names, in two groups: decayed, and not.

    Matrices decay, the embeddings among them; biases and the gains of layer norms don't (GPT-1 paper, section 4.1).
    Names tell which is which, because a device that holds a part of a matrix sees it without its shape.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in parameters.items():
        groups["decay" if decays(name) else "no_decay"].append(parameter)
    rates = {"decay": weight_decay, "no_decay": 0.0}
    return [{"name": name, "params": params, "weight_decay": rates[name]} for name, params in groups.items()]


def decays(name: str) -> bool:
    """Whether the parameter of this name is a matrix."""
    return not name.endswith(".bias") and "norm" not in name


def freeze(parameters: dict[str, nn.Parameter], parts: list[str]) -> None:
    """Let the parameters inside some parts of a GPT keep their values, whatever it is trained on.

    Args:
        parameters: all of them, by name.
        parts: names of modules, such as "token_embedding" or "blocks.0.attention", or of parameters.

    Raises:
        UserError: there is nothing to train in a part, or nothing is left to train.
    """
    for part in parts:
        inside = [name for name in parameters if f"{name}.".startswith(f"{part}.")]
        if not inside:
            names = dict.fromkeys(re.findall(r"^(?:blocks\.\d+|\w+)", "\n".join(parameters), re.MULTILINE))
            raise UserError(
                f"model.freeze names {part!r}, in which there is nothing to train. There are: {', '.join(names)}; "
                "blocks, which is all of these; and what lies in them, such as blocks.0.attention."
            )
        for name in inside:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("model.freeze names all parts of the model, so there is nothing left to train.")


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


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the hidden matrices and AdamW for the rest, as one optimizer.

    Muon is momentum whose steps are made orthogonal, so that a matrix moves in all directions alike (Jordan et al.
    2024). :class:`torch.optim.Muon` is the same, but always computes in bfloat16, which takes 20 times as long as
    float32 where the processor has no instructions for it. It is one optimizer with AdamW, because Lightning's
    automatic optimization, which clips, accumulates and schedules, allows only one.

    Args:
        matrices: the parameters that Muon takes, each of rank 2.
        groups: the parameter groups that AdamW takes.
        muon: settings of Muon's group: "lr", which for a matrix with more rows than columns is the root of their ratio
            larger; "momentum", the decay of the running mean of the gradient, in Nesterov's form; and "weight_decay",
            as AdamW has it.
        adamw: settings of :class:`torch.optim.AdamW`.
        dtype: what Muon's steps are made orthogonal in.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        muon: dict[str, float],
        adamw: dict[str, Any],
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype
        self.adamw = AdamW(groups, **adamw)
        super().__init__([{"name": "muon", "params": matrices, **muon}, *self.adamw.param_groups], {})

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of both; ``closure``, if given, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # AdamW works on groups and state that are kept here, where schedules and checkpoints find those of both.
        muon, *self.adamw.param_groups = self.param_groups
        self.adamw.state = self.state
        self.adamw.step()
        self._muon_step(**muon)
        return loss

    @torch.no_grad()
    def _muon_step(
        self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float, **_: object
    ) -> None:
        for matrix in params:
            if matrix.grad is None:
                continue
            if not (state := self.state[matrix]):
                state["momentum_buffer"] = torch.zeros_like(matrix)
            mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
            step = orthogonalise(matrix.grad.lerp(mean, momentum), self.dtype)
            matrix.mul_(1 - lr * weight_decay)
            matrix.add_(step, alpha=-lr * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1])))


def learning_rate_factor(
    step: int,
    schedule: Schedule,
    warmup_steps: int,
    max_steps: int,
    decay_fraction: float,
    rewarm_start: int = 0,
    rewarm_steps: int = 0,
) -> float:
    """The learning rate of optimizer step ``step``, from 0 on, as a fraction of its peak.

    It rises in a straight line to 1 at step ``warmup_steps``, if the run is that long; without a warm-up it begins
    there. Then it falls to 0 at ``max_steps``: along half a cosine (GPT-1 paper, section 4.1), in a straight line, or,
    "constant", not before the last ``decay_fraction`` of all steps, and then in a straight line. From step
    ``rewarm_start`` on, it rises from 0 to all this once more, in ``rewarm_steps`` steps.
    """
    if rewarm_start <= step < rewarm_start + rewarm_steps:
        rising = (step - rewarm_start) / rewarm_steps
        return rising * learning_rate_factor(step, schedule, warmup_steps, max_steps, decay_fraction)
    if step < warmup_steps:
        return step / warmup_steps
    if step > max(warmup_steps, max_steps - 1):
        return 0.0
    start = max_steps * (1 - decay_fraction) if schedule == "constant" else 0.0
    start = max(start, warmup_steps)
    progress = max(0.0, step - start) / max(1, max_steps - start)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
