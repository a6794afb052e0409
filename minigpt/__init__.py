"""GPT-1 from scratch in PyTorch, and one command to train it on any text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigpt.generation import Writer

__version__ = "0.1.0"

from minigpt.errors import UserError


def load(ckpt_path: str | Path, device: str = "cpu") -> Writer:
    """A trained model that writes::

        model = minigpt.load("best.ckpt")
        print(model.generate("ROMEO:", max_new_tokens=300, temperature=0.8))

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run in ``lightning_logs``.
        device: where to compute, as PyTorch names it.

    Raises:
        UserError: there is no such checkpoint, it is not a whole checkpoint of minigpt, or the device can't be used.
    """
    # Here, so that ``import minigpt`` alone doesn't wait for torch.
    from minigpt.generation import Writer, quicken
    from minigpt.run import find_checkpoint, load_gpt

    gpt, tokenizer = load_gpt(find_checkpoint(str(ckpt_path)))
    try:
        gpt.to(device)
        gpt.token_embedding.weight[0, 0].item()  # "meta" is a device that holds nothing
    # the kinds that PyTorch raises for a device that isn't there
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise UserError(f"The device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    return Writer(quicken(gpt), tokenizer)
