"""What a run leaves in its folder to be read by anybody, without PyTorch: the curves, and losses in names of files."""

import csv
import io
import math
import re
from collections.abc import Iterable, Set
from pathlib import Path

LOG_DIR = Path("lightning_logs")
SCORED = re.compile(r"step(\d+)-val(\d+\.\d+)\.ckpt")  # the name of a checkpoint: its step and validation loss
METRICS = "metrics.csv"  # in the folder of a run: a row for each step that was logged, a column for each quantity


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a ``metrics.csv``, without any that a killed process left unfinished; none if there is no file.

    ``step`` is the number of optimizer steps done, ``seconds`` the time trained so far. A cell is empty where nothing
    was logged.

    Raises:
        OSError, csv.Error: the file can't be read.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [row for row in rows if row.get("step", "").isdecimal() and None not in row and None not in row.values()]


def as_lines(columns: Iterable[str], rows: Iterable[dict[str, str]]) -> bytes:
    """Rows as the lines of a CSV file."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, list(columns), lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def film_steps(end: int, per_doubling: float, most: float = math.inf, kept: Set[int] = frozenset()) -> set[int]:
    """Steps spaced by logarithm: 0, the powers of 2 with ``per_doubling`` - 1 steps between two of them, and ``end``.

    Where these and the steps ``kept`` before would be more than ``most``, every second one is left out until they are
    not; there are none where not even the first and the last would be few enough.
    """
    density = per_doubling
    while density:
        powers = (round(2 ** (k / density)) for k in range(int(density * math.log2(max(end, 1))) + 1))
        steps = {0, end, *(power for power in powers if power <= end)}
        if len(steps | kept) <= most:
            return steps
        density = density / 2 if len(steps) > 3 else 0
    return set()
