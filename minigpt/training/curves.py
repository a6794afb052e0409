"""The curves of a run: for TensorBoard, and as a table, ``metrics.csv``, that a spreadsheet opens."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from minigpt.files import written_whole
from minigpt.records import METRICS, as_lines, read_rows


class TensorBoard(TensorBoardLogger):
    """Lightning's, with the learning rates behind the losses, for TensorBoard goes by the alphabet; and without a chart
    of the epoch, which Lightning adds to all that a model logs."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        super().log_metrics({f"train/{k}" if k.startswith("lr-") else k: v for k, v in kept.items()}, step)


class MetricsCSV(Logger):
    """Writes ``metrics.csv``: a row for each step that is logged, a column for each quantity.

    A row is appended when the next one begins, or when a checkpoint is about to be written. The file is written anew,
    whole, only where a column is added. So it is never torn, and reaches at least to the last checkpoint.
    (Lightning's CSVLogger deletes the rows of a run that is resumed, and writes those of one step apart.)

    Args:
        folder: of the run.
        step: the optimizer steps that were done before; rows of later ones, from a run that was killed, are dropped.
    """

    name = version = ""  # the folder is the run's own

    def __init__(self, folder: Path, step: int = 0) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._kept = step  # the rows in the file that stay as they are end with this step
        self._end = 0  # and at this byte; 0 until the file is there
        self._rows: list[dict[str, str]] = []  # those after it; the last one may still grow
        self._columns: dict[str, str] = {}
        self._began = time.monotonic()

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_graph(self, *args: Any) -> None:
        """Go on where the file ends. Lightning calls this when all is checked and training begins."""
        rows = [row for row in read_rows(self.path) if int(row["step"]) <= self._kept]
        before = rows[-1] if rows else {}
        self._columns = {name: name for name in before}
        self._began = time.monotonic() - float(before.get("seconds") or 0)

    @rank_zero_only
    def log_hyperparams(self, *args: Any) -> None:
        """They are in the run's ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        newest = self._rows[-1]["step"] if self._rows else "0"
        done = newest if step is None else str(step + 1)  # Lightning numbers steps from 0
        if not self._rows or newest != done:
            self.save()
            self._rows.append({"step": done, "seconds": f"{time.monotonic() - self._began:.2f}"})
        self._rows[-1] |= {name: plain(value) for name, value in metrics.items() if hasattr(value, "__float__")}

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        try:
            self._write()
        except PermissionError:  # on Windows, while a spreadsheet shows the file; the rows wait for the next time
            return

    def _write(self) -> None:
        *finished, growing = self._rows
        new = {name: name for row in self._rows for name in row if name not in self._columns}
        if new or not self._end:
            kept = [row for row in read_rows(self.path) if int(row["step"]) <= self._kept]
            columns = self._columns | new
            with written_whole(self.path) as file:
                file.write(as_lines(columns, [columns, *kept, *finished]))
                end = file.tell()
                file.write(as_lines(columns, [growing]))
            self._columns = columns
        else:
            with self.path.open("r+b") as file:
                file.seek(self._end)
                lines = as_lines(self._columns, finished)
                end = self._end + len(lines)
                file.write(lines + as_lines(self._columns, [growing]))
                file.truncate()
        self._end, self._rows = end, [growing]
        if finished:
            self._kept = int(finished[-1]["step"])


def plain(value: Any) -> str:
    """A number as a plain decimal, as few digits as tell its float32, which TensorBoard keeps too."""
    return np.format_float_positional(np.float32(value), trim="-")
