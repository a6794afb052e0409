"""What TensorBoard shows of a run beside its curves."""

import time
from typing import Any, ClassVar

from fsspec.core import url_to_fs
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams

from minigpt.training.callbacks import tensorboard
from minigpt.training.checkpoints import RunCheckpoint


class TensorBoardExtras(Callback):
    """What TensorBoard has beside the curves: which of them share a chart, the run's settings, the best loss for the
    table of hyperparameters, whose first metric it is, and the embeddings of the characters for the projector.

    The first two stand in a file of their own, written anew when a run goes on. Of a folder's files TensorBoard goes by
    the first that has them. So a branch, which begins with copies of its parent's files, shows its own settings.

    Args:
        checkpoint: knows the best loss so far.
    """

    # The tab Custom Scalars. Tags are regular expressions, held against the beginning of a tag.
    LAYOUT: ClassVar = {
        "Loss": {
            "nats per token, training and validation": ["Multiline", ["(train|val)/loss$"]],
            "bits per character, training and validation": ["Multiline", ["(train|val)/bits_per_char$"]],
        },
        "Learning rates": {"learning rates": ["Multiline", ["(train/)?lr-"]]},  # as Lightning's own logger names them
        "Gradient": {"gradient norm": ["Multiline", ["train/grad_norm"]]},
        "Speed": {"characters per second": ["Multiline", ["train/tokens_per_second$"]]},
    }
    FILE = "events.out.tfevents.0.settings"
    LIMITS = ("max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val", "precision")

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (writer := tensorboard(trainer)):
            return
        data = trainer.datamodule.hparams if trainer.datamodule else {}  # type: ignore[attr-defined]
        settings = {**data, **pl_module.hparams, **{name: getattr(trainer, name) for name in self.LIMITS}}
        settings = {k: v if isinstance(v, int | float) else str(v) for k, v in settings.items() if k != "vocabulary"}
        # Without the first summary, the experiment of which TensorBoard would think this run a part, it looks at all
        # runs for what differs between them, and shows that first.
        _, *session = hparams(settings, {})
        events = [event_pb2.Event(file_version="brain.Event:2")]
        events += [event_pb2.Event(summary=summary) for summary in (custom_scalars(self.LAYOUT), *session)]
        files, folder = url_to_fs(writer.log_dir)
        with files.open(f"{folder}/{self.FILE}", "wb") as file:
            records = RecordWriter(file)
            for event in events:
                event.wall_time = time.time()
                records.write(event.SerializeToString())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (writer := tensorboard(trainer)) and trainer.state.fn == "fit" and not trainer.sanity_checking:
            best = min(float(trainer.callback_metrics["val/loss"]), self.checkpoint.best_score)
            writer.add_scalar("best/val_loss", best, trainer.global_step - 1)  # like Lightning

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        embeddings = pl_module.gpt.token_embedding.weight.detach().float().cpu()
        # Under FSDP, which was not run, this process holds a part of them, as one row.
        if (writer := tensorboard(trainer)) and embeddings.dim() == 2:
            names = map(pl_module.tokenizer.label, range(len(embeddings)))
            labels = ["space" if name == " " else repr(name)[1:-1] for name in names]
            writer.add_embedding(embeddings, labels, tag="characters", global_step=trainer.global_step)
