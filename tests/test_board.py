"""What TensorBoard shows of a run, read from the event files by its own code."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

from conftest import run_minigpt
from minigpt.glassbox.callback import BLUE, ORANGE, attention_image, loss_by_position, surprisal_image
from minigpt.run import RunFolder, read_checkpoint

LAST = "lightning_logs/tiny/version_0/checkpoints/last.ckpt"
ASK = RequestContext()


class Board:
    """TensorBoard's server for all runs in ``lightning_logs``, asked without a port."""

    def __init__(self) -> None:
        self.runs = EventMultiplexer().AddRunsFromDirectory("lightning_logs")
        self.runs.Reload()
        plugins: dict[str, Any] = {}
        provider = MultiplexerDataProvider(self.runs, "lightning_logs")
        self.context = TBContext(data_provider=provider, plugin_name_to_instance=plugins, logdir="lightning_logs")
        self.scalars = plugins["scalars"] = ScalarsPlugin(self.context)

    def curve(self, run: str, tag: str) -> list[tuple[int, float]]:
        """The points of a curve."""
        points, _ = self.scalars.scalars_impl(ASK, tag, run, "", "json")
        return [(step, value) for _, step, value in points]

    def charts(self, run: str) -> dict[str, list[list[str]]]:
        """The curves that each chart of the tab Custom Scalars has of a run, by the chart's category, in order."""
        plugin = CustomScalarsPlugin(self.context)
        return {
            category["title"]: [
                sorted(curve for tag in chart["multiline"]["tag"] for curve in self._matching(plugin, run, tag))
                for chart in category["chart"]
            ]
            for category in json.loads(plugin.layout_impl(ASK, ""))["category"]
        }

    def _matching(self, plugin: CustomScalarsPlugin, run: str, tag: str) -> list[str]:
        return list(plugin.scalars_impl(ASK, run, tag, "")["tag_to_events"])

    def columns(self) -> tuple[list[str], str]:
        """The settings in the table of hyperparameters, in order; and its first metric."""
        handler = get_experiment.Handler(ASK, Context(self.context), "", api_pb2.GetExperimentRequest())
        experiment = handler.run()
        return [info.name for info in experiment.hparam_infos], experiment.metric_infos[0].name.tag

    def row(self, run: str) -> tuple[dict[str, Any], float]:
        """A run's settings in that table, and its first metric."""
        request = api_pb2.ListSessionGroupsRequest(allowed_statuses=range(4), slice_size=9)
        groups = list_session_groups.Handler(ASK, Context(self.context), "", request).run().session_groups
        (group,) = (group for group in groups if group.name == run)
        settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
        return settings, group.metric_values[0].value


def test_the_loss_comes_first_then_learning_rates_and_no_epoch(in_trained: Path) -> None:
    charts = Board().charts("tiny/version_0")
    assert list(charts) == ["Loss", "Learning rates", "Gradient", "Speed"]
    assert charts["Loss"] == [["train/loss", "val/loss"], ["train/bits_per_char", "val/bits_per_char"]]
    assert charts["Learning rates"] == [["train/lr-AdamW/decay", "train/lr-AdamW/no_decay"]]
    assert charts["Gradient"] == [["train/grad_norm", "train/grad_norm_max"]]
    assert charts["Speed"] == [["train/tokens_per_second"]]
    tags = sorted(Board().scalars.index_impl(ASK, "")["tiny/version_0"])  # as the tab Time Series has them
    assert tags[:2] == ["best/val_loss", "train/bits_per_char"]
    assert "epoch" not in tags


def test_what_differs_between_runs_is_shown_before_what_does_not(in_trained: Path) -> None:
    fit = ("fit", "--sampler.every_n_steps", 0)
    assert run_minigpt(*fit, "--config", "tiny.yaml", "--model.optimizer", "muon", "--data.batch_size", 4).code == 0
    branch = ("--branch", "true", "--model.learning_rate", 0.5, "--trainer.max_steps", 32)
    assert run_minigpt(*fit, "--ckpt_path", LAST, *branch).code == 0
    board = Board()
    settings, metric = board.columns()
    assert settings[:5] == ["batch_size", "learning_rate", "max_steps", "optimizer", "accumulate_grad_batches"]
    assert metric == "best/val_loss"
    (first, best), (branched, after) = board.row("tiny/version_0"), board.row("tiny/version_2")
    assert (first["learning_rate"], first["max_steps"]) == (0.003, 24)
    assert (branched["learning_rate"], branched["max_steps"]) == (0.5, 32), "not its parent's"
    assert after <= best, "the best so far, not the last"


def test_a_run_that_goes_on_shows_its_settings_and_layout_once(in_trained: Path) -> None:
    before = Board().charts("tiny/version_0")
    assert run_minigpt("fit", "--ckpt_path", LAST, "--trainer.max_steps", 32).code == 0
    board = Board()
    assert board.charts("tiny/version_0") == before
    assert board.row("tiny/version_0")[0]["max_steps"] == 32
    steps, best = zip(*board.curve("tiny/version_0", "best/val_loss"), strict=True)
    assert steps == (7, 15, 23, 31)
    assert list(best) == sorted(best, reverse=True)


def test_the_glass_box_shows_the_model_in_training_and_changes_no_bit_of_it(in_trained: Path) -> None:
    Path("box.yaml").write_text("trainer: {callbacks: [minigpt.glassbox.callback.GlassBox]}")
    fit = ("fit", "--config", "tiny.yaml", "--sampler.every_n_steps", 0)
    assert run_minigpt(*fit, "--config", "box.yaml").code == 0
    without, with_it = (RunFolder(Path(f"lightning_logs/tiny/version_{n}")) for n in (0, 1))
    one, two = (read_checkpoint(run.last)["state_dict"] for run in (without, with_it))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())

    assert run_minigpt("fit", "--ckpt_path", str(with_it.last), "--trainer.max_steps", 32).code == 0
    board, steps = Board(), [-1, 0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 23, 24, 31]
    events = EventAccumulator(str(with_it.path), size_guidance={"images": 0}).Reload()
    for name in ("within/attention", "within/surprisal"):
        assert [image.step for image in events.Images(name)] == steps
    assert events.Images("within/attention")[0].width == 2 * 66
    tags = board.scalars.index_impl(ASK, "")["tiny/version_1"]
    shown = {tag for tag in tags if tag.startswith("within/loss_after/")}
    assert shown == {f"within/loss_after/{name}" for name in ("001", "002-003", "004-007", "008-015")}
    assert [step for step, _ in board.curve("tiny/version_1", "within/loss_after/001")] == steps


def test_without_tensorboard_the_glass_box_says_that_it_shows_nothing(workplace: Path) -> None:
    Path("box.yaml").write_text("trainer: {logger: false, callbacks: [minigpt.glassbox.callback.GlassBox]}")
    result = run_minigpt("fit", "--config", "tiny.yaml", "--config", "box.yaml", "--trainer.max_steps", 8)
    assert result.code == 0
    assert "GlassBox shows nothing: it needs a TensorBoard logger" in result.out


def test_what_the_glass_box_draws_has_the_place_and_the_strength_of_what_it_saw() -> None:
    pattern = torch.eye(16).expand(2, 3, 16, 16)
    image = attention_image(pattern)
    assert image.shape == (2 * 66, 3 * 66, 3)  # a row for each block, a column for each head
    assert image[1, 1].tolist() == list(BLUE)
    assert image[1, 60].tolist() == [255, 255, 255]
    assert attention_image(torch.eye(300).expand(1, 1, 300, 300)).shape == (130, 130, 3)
    text = surprisal_image(list("a\nb"), torch.tensor([math.nan, 0.0, 20.0]))
    assert text.shape == (2 * 22, 2 * 12, 3)  # a line end begins a line
    assert [text[y, 1].tolist() for y in (1, 23)] == [[255, 255, 255], list(ORANGE)]
    assert loss_by_position(torch.tensor([[math.nan, 1, 2, 4]])) == {"001": 1, "002-003": 3}
