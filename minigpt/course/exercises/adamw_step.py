"""One step of AdamW."""

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

LESSON = 9
TITLE = "One step of AdamW"
STUB = '''
import torch


def adamw_step(parameter, gradient, moment_1, moment_2, step, rate, beta_1, beta_2, eps, weight_decay):
    """One step of Adam with decoupled weight decay (Loshchilov and Hutter 2019; Kingma and Ba 2015).

    Args:
        parameter, gradient: of one shape.
        moment_1, moment_2: running means of the gradient and of its square; 0 before the first step.
        step: the number of this step, from 1 on.
        rate: the learning rate.
        beta_1, beta_2: what stays of the running means in each step.
        eps: added to the root.
        weight_decay: the parameter shrinks by rate * weight_decay of itself, whatever its gradient.

    Returns:
        the new parameter, moment_1 and moment_2
    """
    raise NotImplementedError
'''
HINTS = [
    "After the first step moment_1 is only (1 - beta_1) * gradient. By what must it be divided to be the gradient?",
    "Everything has the shape of the parameter; step, rate, betas, eps and decay are numbers.",
    "m1 = b1 m1 + (1 - b1) g; m2 = b2 m2 + (1 - b2) g^2; corrected: m / (1 - b ** step); "
    "p = p - rate * decay * p - rate * m1' / (sqrt(m2') + eps)",
    "minigpt/optim.py uses torch.optim.AdamW; its documentation writes the algorithm out",
]
Step = Callable[..., tuple[Tensor, Tensor, Tensor]]


def inputs(generator: torch.Generator) -> tuple[Tensor | float | int, ...]:
    shape = sizes(generator, 2)
    parameter, gradient, moment_1 = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    moment_2 = 0.01 * torch.rand(shape, generator=generator, dtype=torch.float64)
    step = int(torch.randint(1, 9, (), generator=generator))
    low, spread = torch.tensor([[0.05, 0.85, 0.93, 0.01, 0.1], [0.1, 0.07, 0.05, 0.01, 0.2]], dtype=torch.float64)
    numbers = low + spread * torch.rand(5, generator=generator, dtype=torch.float64)
    return parameter, gradient, moment_1, moment_2, step, *numbers.tolist()


def specification(
    parameter: Tensor,
    gradient: Tensor,
    moment_1: Tensor,
    moment_2: Tensor,
    step: int,
    rate: float,
    beta_1: float,
    beta_2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    new = parameter.clone(), moment_1.clone(), moment_2.clone()
    for i in range(parameter.shape[0]):
        for j in range(parameter.shape[1]):
            p, g = float(parameter[i, j]), float(gradient[i, j])
            m1 = beta_1 * float(moment_1[i, j]) + (1 - beta_1) * g
            m2 = beta_2 * float(moment_2[i, j]) + (1 - beta_2) * g * g
            corrected_1, corrected_2 = m1 / (1 - beta_1**step), m2 / (1 - beta_2**step)
            p -= rate * weight_decay * p
            p -= rate * corrected_1 / (corrected_2**0.5 + eps)
            new[0][i, j], new[1][i, j], new[2][i, j] = p, m1, m2
    return new


def _step(correct: bool = True, decay: str = "decoupled", eps_inside: bool = False, squared: bool = True) -> Step:
    """AdamW, and with other arguments what goes wrong with it."""

    def stepped(
        p: Tensor, g: Tensor, m1: Tensor, m2: Tensor, t: int, rate: float, b1: float, b2: float, eps: float, wd: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        if decay == "coupled":
            g = g + wd * p
        m1, m2 = b1 * m1 + (1 - b1) * g, b2 * m2 + (1 - b2) * (g * g if squared else g)
        c1, c2 = (m1 / (1 - b1**t), m2 / (1 - b2**t)) if correct else (m1, m2)
        root = (c2 + eps).sqrt() if eps_inside else c2.abs().sqrt() + eps
        shrunk = {"decoupled": p * (1 - rate * wd), "whole": p * (1 - wd), "grown": p * (1 + rate * wd)}.get(decay, p)
        new = shrunk - rate * c1 / root
        return new * (1 - rate * wd) if decay == "after" else new, m1, m2

    return stepped


solution = _step()

WRONG = [
    (
        "The bias correction is missing: divide the moments by 1 - beta ** step, or the first steps are wrong.",
        _step(correct=False),
    ),
    (
        "You add the decay to the gradient: that is Adam with L2, not AdamW. Shrink the parameter by itself.",
        _step(decay="coupled"),
    ),
    ("The weight decay is missing.", _step(decay="none")),
    ("You shrink the parameter after the step: shrink it before, so that the step stays whole.", _step(decay="after")),
    ("Your decay isn't multiplied by the learning rate.", _step(decay="whole")),
    ("Your decay has the wrong sign: the parameter shrinks.", _step(decay="grown")),
    ("Your eps stands under the root: it is added to the root.", _step(eps_inside=True)),
    ("Your second moment is the mean of the gradient: wanted is that of its square.", _step(squared=False)),
    (
        "Your step goes uphill: take it from the parameter.",
        lambda p, g, m1, m2, t, r, *rest: (
            2 * p * (1 - r * rest[3]) - solution(p, g, m1, m2, t, r, *rest)[0],
            *solution(p, g, m1, m2, t, r, *rest)[1:],
        ),
    ),
    (
        "You count steps from 0: the first is step 1.",
        lambda p, g, m1, m2, t, *rest: solution(p, g, m1, m2, t + 1, *rest),
    ),
    (
        "You return the corrected moments: keep the plain running means, and correct a copy.",
        lambda p, g, m1, m2, t, r, b1, b2, *rest: (lambda new: (new[0], new[1] / (1 - b1**t), new[2] / (1 - b2**t)))(
            solution(p, g, m1, m2, t, r, b1, b2, *rest)
        ),
    ),
    ("The betas are swapped.", lambda p, g, m1, m2, t, r, b1, b2, *rest: solution(p, g, m1, m2, t, r, b2, b1, *rest)),
]
