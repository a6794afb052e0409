"""GPT-1 from scratch in PyTorch, and one command to train it on any text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from minigpt.glassbox.trace import Model

__version__ = "0.1.0"

from minigpt.errors import UserError

Precision = Literal["float32", "bfloat16"]


def load(
    ckpt_path: str | Path, device: str = "cpu", fast: bool | None = None, precision: Precision = "float32"
) -> Model:
    """A trained model that writes, and that one can look into::

        model = minigpt.load("best.ckpt")
        print(model.generate("ROMEO:", max_new_tokens=300, temperature=0.8))
        print(model.trace("ROMEO:"))

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        device: where to compute, as PyTorch names it: cpu, cuda, mps.
        fast: compute by fast layers with a key-value cache; by default where they give what model.py gives.
        precision: bfloat16 computes under torch.autocast.

    Raises:
        UserError: there is no such checkpoint, it is not a whole one of minigpt, or device or precision can't be used.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}; it must be {' or '.join(get_args(Precision))}.")
    # Here, so that ``import minigpt`` alone doesn't wait for torch.
    import torch

    from minigpt.fast import apply
    from minigpt.glassbox.trace import Model
    from minigpt.run import find_checkpoint, load_gpt

    path = find_checkpoint(str(ckpt_path))
    gpt, tokenizer = load_gpt(path)
    try:
        gpt.to(device)
        gpt.token_embedding.weight[0, 0].item()  # "meta" is a device that holds nothing
    # the kinds that PyTorch raises for a device that isn't there
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise UserError(f"The device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    apply(gpt, fast)
    return Model(gpt, tokenizer, fast, getattr(torch, precision), f"{path} on {device}, in {precision}")
