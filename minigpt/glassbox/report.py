"""The page on a finished run: what it is, how good it is, what is inside, what it writes. One file, without scripts."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml

from minigpt.cost import flops_per_token
from minigpt.glassbox.lens import lens
from minigpt.glassbox.svg import Bar, Line, attention_maps, bar_chart, glyph_table, line_chart
from minigpt.glassbox.trace import Trace, Traceable, trace
from minigpt.records import METRICS, read_rows
from minigpt.run import RunFolder, read_checkpoint

MARK = b"<!-- minigpt report, SHA-256 of all before this: "
NEWLINES = ("\n", "\\x0a")  # as a tokenizer of characters and one of bytes show them
BLANKS = {" ": "\u00b7", "\t": "\u2192", **dict.fromkeys(NEWLINES, "\u21b5")}
# Characters that HTML may not hold, as those that Unicode has to show them.
CONTROL = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
MOST_BITS = 8  # where the colour of surprise ends
BINS = 120  # points of the training curve
MAP = 64  # characters of an attention map
COLUMNS = 26  # of the lens
SAMPLES, LENGTH, TEMPERATURE = 3, 400, 0.8


def render(**parts: Any) -> str:
    """The page of these parts, as report.html places them. Every text in it is escaped but those that are markup."""
    source = resources.files("minigpt.glassbox").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(source).render(most_bits=MOST_BITS, **parts)
    return page.translate(CONTROL)


def learning(rows: Sequence[dict[str, str]], step: int) -> dict[str, Any] | None:
    """The curves of a run up to a step, from the rows of its metrics.csv; None where nothing was logged."""
    rows = [row for row in rows if int(row["step"]) <= step]
    trained, validated = (points(rows, f"{split}/loss") for split in ("train", "val"))
    if not trained:
        return None
    size = -(-len(trained) // BINS)  # logged steps that make one point of the curve
    bins = [trained[i : i + size] for i in range(0, len(trained), size)]
    means = [(np.mean([x for x, _ in part]), np.mean([y for _, y in part])) for part in bins]
    extremes = [(min(y for _, y in part), max(y for _, y in part)) for part in bins] if size > 1 else []
    lines = [Line("training", means, "quiet", extremes)]
    lines += [Line(f"validation {validated[-1][1]:.3f}", validated)] if validated else []
    # Decayed and other weights of AdamW have the same rate.
    names = {name: "Muon" if name.endswith("/muon") else "AdamW" for name in rows[0] if name.startswith("lr-")}
    rates = {label: points(rows, name) for name, label in names.items()}
    kinds = {"AdamW": "quiet" if "Muon" in rates else "accent", "Muon": "accent"}
    rate_lines = [Line(label, curve, kinds[label]) for label, curve in rates.items() if curve]
    loss = line_chart("Loss over training", lines, "optimizer steps", "loss, nats per character")
    rate = line_chart("Learning rate over training", rate_lines, "optimizer steps", "learning rate", height=170)
    return {
        "loss": loss,
        "rate": rate if rate_lines else None,
        "size": size,
        "train": trained[-1][1],
        "validations": validated,
        "seconds": float(rows[-1]["seconds"]),
    }


def points(rows: Sequence[dict[str, str]], name: str) -> list[tuple[float, float]]:
    """The steps at which a quantity was logged, each with its value."""
    found = ((int(row["step"]), float(row[name])) for row in rows if row.get(name))
    return [(x, y) for x, y in found if math.isfinite(y)]


def coloured(tokens: Sequence[str], bits: Sequence[float], titles: Sequence[str]) -> list[dict[str, Any]]:
    """Tokens as the page shows them: white space visible, the colour by what each cost."""
    return [
        {
            "shown": visible(token),
            "after": "\n" if token in NEWLINES else "",
            "blank": token in BLANKS,
            "level": 0 if math.isnan(cost) else round(9 * min(cost / MOST_BITS, 1)),
            "title": title,
        }
        for token, cost, title in zip(tokens, bits, titles, strict=True)
    ]


def visible(token: str) -> str:
    """A token in which white space can be seen."""
    return BLANKS.get(token, token)


def titles_of(traced: Trace) -> list[str]:
    """What a mouse over each character of a traced text tells."""
    told = [f"{visible(traced.tokens[0])}: the first, so nothing predicts it"]
    for t, bits in enumerate(traced.bits.tolist()[1:], 1):
        guesses = ", ".join(f"{visible(token)} {p:.0%}" for token, p in traced.expected(t - 1))
        told.append(f"{visible(traced.tokens[t])}: {bits:.1f} bits; expected {guesses}")
    return told


def inside(model: Traceable, text: str, names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What the model does with an excerpt: what each character cost, all attention, and what each stage expects."""
    traced = trace(model, text)
    tokens = [visible(token) for token in traced.tokens]
    length = len(tokens)
    maps = attention_maps(
        f"Attention of all heads on the first {min(MAP, length)} characters",
        traced.pattern[..., :MAP, :MAP].numpy(),
        names,
    )
    # Each column is the character that is to be predicted, so each stage is read one position before it.
    shown = slice(max(1, length - COLUMNS), length)
    said = lens(traced)[:, shown.start - 1 : shown.stop - 1].softmax(-1).max(-1)
    stages = ["embedding", *(f"{part} {i}" for i in range(len(traced.gpt.blocks)) for part in ("attention", "block"))]
    glyphs = [[visible(traced.tokenizer.label(i)) for i in row] for row in said.indices.tolist()]
    table = glyph_table("What each stage of the model expects", tokens[shown], stages, glyphs, said.values.numpy())
    bits = traced.bits.tolist()
    return {
        "text": coloured(traced.tokens, bits, titles_of(traced)),
        "bits": float(np.mean(bits[1:])),
        "length": length,
        "maps": maps,
        "map": min(MAP, length),
        "lens": table,
        "columns": len(tokens[shown]),
    }


def was_written_here(path: Path) -> bool:
    """Whether a file is such a page, as it was written: whoever has changed it since has made it theirs."""
    if not path.is_file():
        return False
    body, mark, digest = path.read_bytes().rpartition(MARK)
    return bool(mark) and digest == signature(body)


def signature(body: bytes) -> bytes:
    """How a page of that body ends."""
    return f"{hashlib.sha256(body).hexdigest()} -->\n".encode()


def configuration(checkpoint: dict[str, Any], model: Traceable, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """What the run was, from its checkpoint and its curves."""
    config, data = model.gpt.config, checkpoint.get("datamodule_hyper_parameters", {})
    settings, how = checkpoint.get("settings", {}), checkpoint.get("how", {})
    batch = data.get("batch_size", 0) * (settings.get("trainer", {}).get("accumulate_grad_batches") or 1)
    tokens = checkpoint["global_step"] * batch * config.block_size
    seconds = [float(row["seconds"]) for row in rows if int(row["step"]) <= checkpoint["global_step"]]
    return {
        "parameters": sum(p.numel() for p in model.gpt.parameters()),
        "steps": checkpoint["global_step"],
        "tokens": tokens,
        "flops": tokens * flops_per_token(config),
        "seconds": seconds[-1] if seconds else None,
        "machine": how,
        "corpus": data.get("corpus"),
        "optimizer": checkpoint["hyper_parameters"].get("optimizer"),
        "seed": data.get("seed"),
        "lightning": checkpoint.get("pytorch-lightning_version"),
    }


def recipe(folder: RunFolder | None, checkpoint: dict[str, Any]) -> str:
    """The settings of a run as YAML, from its folder or else from its checkpoint, without those that are null."""
    if folder and folder.config.exists():
        settings = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    else:
        model = {k: v for k, v in checkpoint["hyper_parameters"].items() if k != "vocabulary"}
        settings = {**checkpoint.get("settings", {}), "model": model}
        settings["data"] = checkpoint.get("datamodule_hyper_parameters", {})

    def given(value: Any) -> Any:
        return {k: given(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    return yaml.safe_dump(given(settings), sort_keys=False, allow_unicode=True)


def duration(seconds: float) -> str:
    """A time as one says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def standing(bits: float, interval: tuple[float, float], known: dict[str, float], vocabulary: int) -> dict[str, Any]:
    """The model among the baselines, in bits per character."""
    rows = [Bar(name, value, f"{value:.3f}") for name, value in known.items()]
    rows.append(Bar("this model", bits, f"{bits:.3f}", own=True, interval=interval))
    rows.sort(key=lambda bar: -bar.value)
    best, least = min((value, name) for name, value in known.items() if name in ("gzip", "xz"))[::-1], min(known.values())
    words = (
        f"The model needs {bits:.3f} bits for a character, {best[0]} {best[1]:.3f}: {comparison(bits, best[1])}. "
        f"It is as unsure as if it had to choose among {2**bits:.1f} equally likely characters each time, out of "
        f"{vocabulary}."
    )
    if least < bits:
        worse = ", ".join(name for name, value in known.items() if value < bits)
        words += f" Below it are {worse}: see how they are counted before you compare."
    return {
        "bars": bar_chart("Bits per character of the model and of the baselines", rows, "bits per character"),
        "low": f"{interval[0]:.3f}",
        "high": f"{interval[1]:.3f}",
        "vocabulary": vocabulary,
        "words": words,
    }


def comparison(value: float, other: float) -> str:
    """How much less one value is than another, or more."""
    return f"{abs(1 - value / other):.0%} {'less' if value < other else 'more'}"


def marked(text: str, passages: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """A text in parts, each with whether it lies in one of the passages, which may overlap."""
    copied = np.zeros(len(text) + 1, bool)
    for start, end in passages:
        copied[start:end] = True
    edges = [0, *(np.flatnonzero(np.diff(copied[:-1])) + 1).tolist(), len(text)]
    return [(text[a:b], bool(copied[a])) for a, b in itertools.pairwise(edges) if a < b]


def make(model: Any, path: Path, version: str, say: Callable[[str], None]) -> tuple[bytes, dict[str, Any]]:
    """The page on the run that a checkpoint is from, and its figures as plain data.

    Args:
        model: what ``minigpt.load`` makes of the checkpoint.
        path: the checkpoint.
        version: of this program.
        say: is told each stage.
    """
    checkpoint, folder = read_checkpoint(path), RunFolder.of(path)
    step, config = checkpoint["global_step"], model.gpt.config
    missing = []
    rows = read_rows(folder.path / METRICS) if folder else []
    if not rows:
        missing.append("no curves")
    samples = write(model)
    excerpt = samples[0].text[: config.block_size]
    names = [[f"{i}.{h}" for h in range(config.n_head)] for i in range(config.n_layer)]
    page = render(
        name=f"{folder.name}/{folder.path.name}" if folder else path.stem,
        version=version,
        date=f"{datetime.date.today():%-d %B %Y}",
        checkpoint=str(path),
        step=step,
        summary="Summary",
        facts=[("validation loss", "1.62", "nats per character")],
        missing=missing,
        learning=learning(rows, step),
        inside=inside(model, excerpt, names),
        excerpt_is="This is what the model wrote itself.",
        configuration=[("model", "x")],
        recipe="bla: 3",
        reproduce="",
    )
    return page.encode("utf-8", "replace"), {}


def write(model: Any) -> Any:
    *_, samples = model.write([""] * SAMPLES, max_new_tokens=LENGTH, temperature=TEMPERATURE)
    return samples


