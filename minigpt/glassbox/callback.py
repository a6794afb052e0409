"""What the glass box shows of a model in training, in TensorBoard."""

import io
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from minigpt.errors import UserError
from minigpt.glassbox.heads import scores
from minigpt.glassbox.trace import Activations, observe
from minigpt.records import film_steps
from minigpt.text.tokenizer import CharTokenizer

SHOWN = {" ": "·", "\n": "", "\t": "»"}  # white space; a line end, which Pillow's own font lacks a sign for, is drawn
BLUE, ORANGE, WHITE = (8, 48, 107), (230, 97, 1), (255, 255, 255)


class GlassBox(Callback):
    """Shows in TensorBoard what a model in training sees, at the steps of the film: the attention maps of all heads,
    a text coloured by surprisal, the loss by position in the window, and the scores of the heads.

    The text is the first window of the validation split. Losses and scores are means over up to 4 windows, fewer of a
    large model. Nothing of the run changes by it. A config names it: ``trainer.callbacks:
    [minigpt.glassbox.callback.GlassBox]``.

    Args:
        per_doubling: how often it looks each time that the number of steps doubles.
    """

    def __init__(self, per_doubling: float = 3) -> None:
        if not 0 < per_doubling < math.inf:
            raise UserError(f"GlassBox's per_doubling is {per_doubling}; it must be more than 0.")
        self.per_doubling = per_doubling
        self._writer: SummaryWriter | None = None
        self._steps: set[int] = set()
        self._newest = -1  # the last step that was shown

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("Under FSDP no device has the whole model to look into: leave GlassBox out.")

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not writers or "val" not in getattr(data, "texts", {}):
            print("GlassBox shows nothing: it needs a TensorBoard logger and a validation split.", flush=True)
            return
        self._writer = writers[0]
        self._steps = film_steps(int(trainer.estimated_stepping_batches), self.per_doubling)
        config = pl_module.gpt.config
        room = 2**22 // (config.n_layer * config.n_head * config.block_size**2)  # so many numbers in all patterns
        ids = data.texts["val"].ids(data.splits()["val"])
        windows = ids[: max(len(ids) // config.block_size, 1) * config.block_size]
        windows = windows.reshape(-1, min(config.block_size, len(ids)))
        chosen = np.linspace(0, len(windows) - 1, min(max(room, 1), 4, len(windows))).astype(int)
        self._ids_BT = torch.from_numpy(windows[chosen].astype(np.int64))
        self._newest = trainer.global_step  # shown before, if the run goes on
        if self._newest == 0:
            self._show(trainer, pl_module)

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step in self._steps and trainer.global_step != self._newest:
            self._show(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._writer and trainer.global_step != self._newest:  # it ended early
            self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, module: Any) -> None:
        assert self._writer
        self._newest = trainer.global_step
        show(self._writer, observe(module.gpt, self._ids_BT), module.tokenizer, trainer.global_step - 1)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "skip_time"):  # this is no time of training
                callback.skip_time()


def show(writer: SummaryWriter, seen: Activations, tokenizer: CharTokenizer, step: int) -> None:
    """Write what was seen of a batch of windows, (B, T), under a step as Lightning numbers them."""
    labels = [tokenizer.label(int(i)) for i in seen.ids_BT[0]]
    add_image(writer, "within/attention", attention_image(seen.pattern[:, 0]), step)  # TensorBoard sorts: behind val/
    add_image(writer, "within/surprisal", surprisal_image(labels, seen.bits[0]), step)
    for name, nats in loss_by_position(seen.nats).items():
        writer.add_scalar(f"within/loss_after/{name}", nats, step)
    for kind, scores_LH in scores(seen, tokenizer).items():
        for layer, of_heads in enumerate(scores_LH.tolist()):
            for head, score in enumerate(of_heads):
                if not math.isnan(score):
                    writer.add_scalar(f"within/{kind.replace(' ', '_')}/{layer}.{head}", score, step)


def add_image(writer: SummaryWriter, tag: str, pixels: np.ndarray, step: int) -> None:
    """As the writer's own, which takes three times as long to compress; of pixels (H, W, 3), uint8."""
    png, (height, width, channels) = io.BytesIO(), pixels.shape
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    shown = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png.getvalue())
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)


def loss_by_position(nats_BT: Tensor) -> dict[str, float]:
    """The mean loss after so many characters of context, by powers of 2: nats, by "001", "002-003", "004-007"."""
    found, begin, length = {}, 1, nats_BT.shape[1]
    while begin < length:
        end = min(2 * begin, length) - 1
        name = f"{begin:03}" if end == begin else f"{begin:03}-{end:03}"
        found[name] = float(nats_BT[:, begin : end + 1].double().mean())
        begin *= 2
    return found


def attention_image(pattern_LHTS: Tensor) -> np.ndarray:
    """The maps of all heads, a row for each block: from white, 0, to dark, 1, by the square root; uint8, (H, W, 3).

    A map has 64 to 128 pixels a side. Of a long window each pixel is the strongest weight of those it stands for.
    """
    maps = pattern_LHTS.detach().cpu().sqrt()
    if maps.shape[-1] > 128:
        maps = F.adaptive_max_pool2d(maps, 128)
    maps = maps.repeat_interleave(scale := math.ceil(64 / maps.shape[-1]), -1).repeat_interleave(scale, -2)
    maps = F.pad(maps, (1, 1, 1, 1), value=0.3)  # a thin line around each
    return mixed(maps.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), BLUE)


def surprisal_image(labels: list[str], bits_T: Tensor) -> np.ndarray:
    """A text, each character on a ground from white, 0 bits, to orange, 8 bits; uint8, (H, W, 3).

    The first character, which nothing predicts, has no colour.
    """
    columns, width, height = 48, 12, 22
    places, row, column = [], 0, 0
    for label in labels:
        if column == columns:
            row, column = row + 1, 0
        places.append((column, row))
        row, column = (row + 1, 0) if label == "\n" else (row, column + 1)
    image = Image.new("RGB", ((max(places)[0] + 1) * width, (row + 1) * height), WHITE)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    grounds = mixed((bits_T.detach().cpu().nan_to_num() / 8).clamp(0, 1), ORANGE)
    for (x, y), label, ground in zip(places, labels, grounds, strict=True):
        corner = (x * width, y * height)
        pen.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 3), fill=tuple(ground.tolist()))
        pen.text((corner[0] + width / 2, corner[1] + 16), SHOWN.get(label, label), "black", font, anchor="ms")
        if label == "\n":
            pen.line(
                [(corner[0] + a, corner[1] + b) for a, b in ((9, 5), (9, 13), (3, 13), (5, 11), (3, 13), (5, 15))],
                "black",
            )
    return np.asarray(image)


def mixed(shares: Tensor, colour: tuple[int, int, int]) -> np.ndarray:
    """White with a share, 0 to 1, of a colour: uint8, of the shape of the shares and 3."""
    white, full = torch.tensor(WHITE), torch.tensor(colour)
    return (white + shares.unsqueeze(-1) * (full - white)).round().to(torch.uint8).numpy()
