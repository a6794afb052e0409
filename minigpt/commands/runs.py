"""``runs``: the runs of this folder beside each other."""

import csv as csv_format
import json as json_format
import math
import re
import shutil
import statistics
import sys
import textwrap
from collections import Counter
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from minigpt.commands import call, print_as_json
from minigpt.errors import UserError
from minigpt.records import LOG_DIR, METRICS, SCORED, read_rows

Run = dict[str, Any]  # what is printed of a run, and its "settings" as text
SHAPE = {"layers": "model.n_layer", "width": "model.n_embd", "heads": "model.n_head", "window": "data.block_size"}
# Settings that change no loss.
NEUTRAL = re.compile(
    r"name|ckpt_path|init_from|(sampler|film|checkpoint)\..*|trainer\.(logger|enable_\w+|log_every_n_steps|profiler|default_root_dir)"
    r"|data\.(data_dir|mirror|num_workers|max_unpacked_gb|scoring_batch_size|predict_corpus|vocabulary)"
)


def main(command: str, args: list[str]) -> None:
    """Show runs as the arguments say."""
    call(runs, args, f"minigpt {command}")


def runs(name: str | None = None, against: str | None = None, csv: bool = False, json: bool = False) -> None:
    """Compare the runs in lightning_logs: what each was given, and the lowest validation loss that it reached.

    Args:
        name: only the runs of this name.
        against: NAME/version_N, or NAME for the newest one: how the others differ from this run, setting by setting.
        csv: print comma-separated values, a row for each run.
        json: print JSON.
    """
    every = sorted(read_runs(), key=lambda run: (run["name"], run["version"]))
    shown = [run for run in every if name in (None, run["name"])]
    wanted = Path(against or "").as_posix().removeprefix(f"{LOG_DIR}/")
    bases = [run for run in every if wanted in (run["name"], run["run"])]
    for flag, given, found in (("name", name, shown), ("against", against, bases)):
        if given and not found:
            raise UserError(f"--{flag} {given}: there is no such run in {LOG_DIR}, seen from {Path.cwd()}.")
    for _, group in groupby(shown, key=lambda run: run["name"]):
        compare(list(group))
    for run in shown if against else ():
        run |= differences(run, bases[-1]["settings"])
        known = None not in (run["best_loss"], bases[-1]["best_loss"])
        run["loss_difference"] = run["best_loss"] - bases[-1]["best_loss"] if known else None
    data = [{key: value for key, value in run.items() if key != "settings"} for run in shown]
    if json:
        print_as_json(data)
    elif csv:
        flat = [{key: "" if value in (None, {}) else as_text(value) for key, value in run.items()} for run in data]
        writer = csv_format.DictWriter(sys.stdout, flat[0] if flat else (), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    elif not shown:
        print(f"There is no run in {LOG_DIR}, seen from {Path.cwd()}.")
    elif against:
        print_against(shown, bases[-1])
    else:
        print_table(shown)


def read_runs() -> list[Run]:
    """All runs under ``lightning_logs``; those that can't be read are named on stderr."""
    found = []
    for folder in LOG_DIR.glob("*/version_*"):
        try:
            found.append(read_run(folder))
        except (OSError, ValueError, RecursionError, yaml.YAMLError, csv_format.Error) as error:
            print(f"Passed over {folder}: {' '.join(str(error).split())[:120]}", file=sys.stderr)
    return found


def read_run(folder: Path) -> Run:
    """What the text files in a run's folder, and the names of its checkpoints, tell of it."""
    config = read_mapping(folder / "config.yaml")
    groups = {group: value if isinstance(value, dict) else {"": value} for group, value in config.items()}
    given = {f"{group}.{key}".rstrip("."): value for group in groups for key, value in groups[group].items()}
    if not {"data.corpus", *SHAPE.values()} <= given.keys() or not folder.name[8:].isdecimal():
        raise ValueError("it is not a run of this program")
    branch = read_mapping(folder / "run.json") if (folder / "run.json").exists() else {}
    rows = read_rows(folder / METRICS)
    names = [match for path in folder.glob("checkpoints/*.ckpt") if (match := SCORED.fullmatch(path.name))]
    losses = {int(match[1]): float(match[2]) for match in names}  # all that older runs have
    losses |= {int(row["step"]): float(row["val/loss"]) for row in rows if row.get("val/loss")}
    scored = ((loss, step) for step, loss in losses.items() if math.isfinite(loss))
    best_loss, best_step = min(scored, default=(None, None))
    steps = max([*losses, *(int(row["step"]) for row in rows)], default=0)
    limit, patience = given.get("trainer.max_steps"), given.get("early_stopping.patience")
    planned = limit if isinstance(limit, int) and limit > 0 else None
    stale = sum(step > (best_step or 0) for step in losses)  # validations since the best
    return {
        "run": f"{folder.parent.name}/{folder.name}",
        "name": folder.parent.name,
        "version": int(folder.name[8:]),
        "corpus": given["data.corpus"],
        **{word: given[key] for word, key in SHAPE.items()},
        "seed": given.get("seed_everything"),
        "steps": steps,
        "planned_steps": planned,
        "complete": planned is None or steps >= planned or (isinstance(patience, int) and stale >= patience),
        "best_loss": best_loss,
        "best_step": best_step,
        "seconds": float(rows[-1]["seconds"]) if rows else None,
        "parent": branch.get("parent"),
        "parent_step": branch.get("parent_step"),
        "taken": branch.get("taken", "all") if branch else None,  # of the parent
        "settings": {key: as_text(value) for key, value in given.items()},
    }


def read_mapping(path: Path) -> dict[str, Any]:
    """A file of YAML, or of JSON, which is YAML too."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast
    value = yaml.load(path.read_bytes(), loader)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no settings")
    return value


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json_format.dumps(value, ensure_ascii=False, default=str)


def differences(run: Run, base: dict[str, str]) -> Run:
    """The settings of a run that are not those of ``base``, and what is there instead."""
    differs = {k: v for k, v in run["settings"].items() if base.get(k, v) != v and not NEUTRAL.fullmatch(k)}
    return {"differs": differs, "instead_of": {key: base[key] for key in differs}}


def compare(group: list[Run]) -> None:
    """Add to runs of one name how each differs from most of them, and the spread of the loss over seeds alone."""
    keys = {key for run in group for key in run["settings"]} - {"seed_everything"}
    given = {key: [run["settings"][key] for run in group if key in run["settings"]] for key in keys}
    usual = {key: Counter(values).most_common(1)[0][0] for key, values in given.items()}
    for run in group:
        run |= differences(run, usual)
    for run in group:
        alike = [other for other in group if other["differs"] == run["differs"] and not other["parent"]]
        losses = {
            as_text(other["seed"]): other["best_loss"] for other in alike if other["complete"] and other["best_loss"]
        }
        several = run in alike and run["complete"] and len(losses) > 1
        run["seeds"] = len(losses) if several else None
        run["seeds_mean"] = statistics.mean(losses.values()) if several else None
        run["seeds_deviation"] = statistics.stdev(losses.values()) if several else None  # of the sample


def print_table(shown: list[Run]) -> None:
    """A block for each name: what most of its runs are, a line for each, and the spread over seeds."""
    rows = [("version", "steps", "seed", "best loss", "at step", "time"), *map(cells, shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    room = max(shutil.get_terminal_size().columns - len(lines[0]) - 4, 26)  # for what a run differs in
    for name, pairs in groupby(zip(shown, lines[1:], strict=True), key=lambda pair: pair[0]["name"]):
        group = list(pairs)
        shapes = Counter(tuple(as_text(run[key]) for key in ("corpus", *SHAPE)) for run, _ in group)
        corpus, layers, width, heads, window = shapes.most_common(1)[0][0]
        print(f"{name}: {corpus}, {layers} layers x {width} wide, {heads} heads, window {window}")
        print(f"{lines[0]}  differs")
        spreads: dict[str, None] = {}  # in order, each once
        for run, line in group:
            differs = ", ".join(f"{key} {value}" for key, value in run["differs"].items())
            if run["seeds"]:
                loss, deviation = run["seeds_mean"], run["seeds_deviation"]
                what = f"{run['seeds']} seeds{differs and ', ' + differs}"
                spreads[f"{what}: mean {loss:.4f}, sample standard deviation {deviation:.4f}"] = None
            if run["parent"]:
                parent = re.sub(r".*?([^/\\]+)[/\\](version_\d+)[/\\].*", r"\1/\2", str(run["parent"]))
                what = "weights of" if run["taken"] == "weights" else "from"
                differs += f"{differs and ', '}{what} {parent} at step {run['parent_step']}"
            wrapped = textwrap.wrap(differs, room, break_on_hyphens=False) or [""]
            print(f"\n{'':{len(line) + 4}}".join([f"{line}  {wrapped[0]}".rstrip(), *wrapped[1:]]))
        print("\n".join([*spreads, ""]))


def cells(run: Run) -> tuple[str, ...]:
    """What a line of the table says of a run."""
    steps = f"{run['steps']}/{run['planned_steps'] or '?'}"
    best = ("", "") if run["best_loss"] is None else (f"{run['best_loss']:.4f}", str(run["best_step"]))
    time = "" if run["seconds"] is None else str(timedelta(seconds=round(run["seconds"])))
    return str(run["version"]), steps, str(run["seed"]), *best, time


def print_against(shown: list[Run], base: Run) -> None:
    """For each run the difference of its loss, and the settings that are not those of ``base``."""
    for run in shown:
        loss = "no loss yet" if run["best_loss"] is None else f"best loss {run['best_loss']:.4f}"
        change = "" if run["loss_difference"] is None else f", {run['loss_difference']:+.4f}"
        print(f"{run['run']}: {loss}{change} against {base['run']}")
        for key, value in run["differs"].items():
            print(f"    {key} {value} instead of {run['instead_of'][key]}")
