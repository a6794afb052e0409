"""The optimizer and the learning rate, as GPT-1 has them: AdamW with decay groups, warm-up and cosine."""

import math
from typing import Any

from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters in two groups: decayed, and not.

    Tensors of rank 2 and more decay, the embeddings among them; biases and the gains of layer norms don't
    (GPT-1 paper, section 4.1).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"name": "decay", "params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, warmup_steps: int, max_steps: int) -> float:
    """The learning rate of optimizer step ``step``, from 0 on, as a fraction of its peak.

    It rises in a straight line, reaches 1 at step ``warmup_steps`` and falls along half a cosine to 0 at
    ``max_steps`` (GPT-1 paper, section 4.1). With a warm-up of 0 it begins at the peak.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
