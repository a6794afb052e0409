"""The page on a finished run: what it is, how good it is, what is inside, what it writes. One file, without scripts.

``report.html`` has the words and the style; here is what they are about. Jinja escapes all that is not markup of ours.
"""

import dataclasses
import datetime
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.generation import Sample
from minigpt.glassbox.copying import SIZES, Shared, copying
from minigpt.glassbox.heads import HeadScores, head_scores
from minigpt.glassbox.learning import Learned, learned
from minigpt.glassbox.lens import lens
from minigpt.glassbox.signed import signed
from minigpt.glassbox.svg import Bar, Line, attention_maps, bar_chart, glyph_table, line_chart
from minigpt.glassbox.trace import Intervention, Trace, Traceable, observe
from minigpt.glassbox.validation import (
    MOST,
    Passage,
    Validation,
    by_class,
    by_position,
    mean_and_interval,
    nats_per_bit,
    open_corpus,
    passages,
    score,
)
from minigpt.glassbox.where import BLANKS, NEWLINES, visible
from minigpt.records import METRICS, read_rows
from minigpt.run import RunFolder, read_checkpoint
from minigpt.text.baselines import baselines
from minigpt.text.corpus import DataSettings
from minigpt.text.tokenizer import ByteTokenizer

KIND = "report"  # as its signature names it
# Characters that HTML may not hold, and what Unicode has to show them.
CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
CONTROL |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
MOST_BITS = 8  # where the colour of surprise ends
BINS = 120  # points of the training curve
MAP = 64  # characters of an attention map
COLUMNS = 26  # of the lens
EXCERPT = 256  # characters whose surprisal is shown
WINDOWS = 32  # that each frame of a film reads
PASSAGES = 3  # hardest ones, and easiest ones
SAMPLES = 3
Point = tuple[float, float]  # of a curve: step and value


def make(
    model: Any,
    path: Path,
    version: str,
    say: Callable[[str], None],
    corpus: str | None = None,
    max_new_tokens: int = 400,
    temperature: float = 0.8,
) -> tuple[bytes, dict[str, Any]]:
    """The page on the run that a checkpoint is from, and its figures as plain data.

    Args:
        model: what ``minigpt.load`` makes of the checkpoint.
        path: the checkpoint.
        version: of this program.
        say: is told each stage.
        corpus: where the text is now, if it isn't where the run found it.
        max_new_tokens: characters of a sample.
        temperature: of the samples.

    Raises:
        UserError: a corpus was given, and it isn't the one that the model was trained on.
    """
    checkpoint, folder, missing = read_checkpoint(path), RunFolder.of(path), list[str]()
    config, tokenizer = model.gpt.config, model.tokenizer
    unit = "byte" if isinstance(tokenizer, ByteTokenizer) else "character"
    rows = read_rows(folder.path / METRICS) if folder else []
    settings = read_settings(folder, checkpoint)
    figures: dict[str, Any] = {"checkpoint": str(path), "heads_off": None, "heads": []}
    figures |= facts_of(checkpoint, model, rows)
    say("Reading the curves")
    curves = learning(rows, checkpoint["global_step"], unit)
    if not curves:
        missing.append(
            f"There are no curves: {folder.path} holds no {METRICS}."
            if folder
            else "There are no curves: the checkpoint lies outside the folder of its run, which keeps them."
        )
    say("Writing samples")  # first, for a model that has diverged ends here
    *_, samples = model.write([""] * SAMPLES, max_new_tokens=max_new_tokens, temperature=temperature, seed=1)
    found = good = places = None
    try:
        data = data_of(checkpoint, settings, corpus)
    except UserError as error:
        if corpus:
            raise
        missing.append(
            "The text isn't at hand, so what is measured on it is missing: the loss, the baselines, the passages, "
            f"what is copied. {error} Where it lies now is told with --corpus."
        )
    else:
        say("Scoring the validation split")
        found = score(model, data)
        loss, interval = mean_and_interval(found.nats)
        ids = found.corpus.ids(found.places)[:]
        characters_of = np.array(tokenizer.character_counts())
        per_bit = nats_per_bit(found)
        figures |= {
            "loss": loss,
            "loss_interval": interval,
            "bits_per_char": loss / per_bit,
            "bits_interval": interval and [nats / per_bit for nats in interval],
            "whole_split": found.complete,
            "baselines": baselines(ids, characters_of),
        }
        good = standing(figures)
        places = where(found, unit)
    history = None
    if found and folder and folder.frames():
        say("Watching the film")
        try:
            history = watch(learned(folder.path, windows=WINDOWS), unit)
            figures["learned"] = history["learned"]
        except UserError as error:
            missing.append(f"What was learned when is missing. {error}")
    say("Looking for what is copied")
    writes = writing(samples, found, unit)
    figures["samples"] = writes["rows"]
    say("Looking inside")
    names = [[f"{i}.{h}" for h in range(config.n_head)] for i in range(config.n_layer)]
    if found:
        figures["heads_off"] = worth = switched_off(model, found)
        names = [[f"{i}.{h}  {round(bits, 2) + 0.0:+.2f}" for h, bits in enumerate(row)] for i, row in enumerate(worth)]
        scored = scored_heads(model, found)
        figures["heads"] = [dataclasses.asdict(row) for row in scored.rows] if scored else []
        middle = (found.places.start + found.places.stop) // 2
        ids = found.corpus.ids(range(middle, found.places.stop))[: min(config.block_size, EXCERPT)]
    else:
        written = "".join(part for part, _ in writes["samples"][0]["parts"])
        ids = tokenizer.encode(written)[: min(config.block_size, EXCERPT)]
    page = render(
        name=f"{folder.name}/{folder.path.name}" if folder else path.stem,
        version=version,
        date="{0.day} {0:%B %Y}".format(datetime.date.today()),
        figures=figures,
        config=config,
        unit=unit,
        vocabulary=len(tokenizer.vocabulary),
        missing=missing,
        learning=curves,
        standing=good,
        validation=found,
        where=places,
        inside=inside(model, ids, names) if len(ids) > 1 else None,
        history=history,
        writes=writes,
        temperature=temperature,
        recipe=yaml.safe_dump(given(settings), sort_keys=False, allow_unicode=True),
    )
    return signed(page.encode("utf-8", "replace"), KIND), figures


def render(**parts: Any) -> str:
    """The page of these parts, as report.html places them."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"duration": duration, "scaled": scaled}
    source = resources.files("minigpt.glassbox").joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(most_bits=MOST_BITS, **parts)
    return page.translate(CONTROL)


def facts_of(checkpoint: dict[str, Any], model: Traceable, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """What the run was, from its checkpoint and its curves."""
    data, settings = checkpoint.get("datamodule_hyper_parameters", {}), checkpoint.get("settings", {})
    step, config = checkpoint["global_step"], model.gpt.config
    batch = data.get("batch_size", 0) * (settings.get("trainer", {}).get("accumulate_grad_batches") or 1)
    tokens = step * batch * config.block_size
    seconds = [float(row["seconds"]) for row in rows if int(row["step"]) <= step]
    return {
        "step": step,
        "parameters": sum(parameter.numel() for parameter in model.gpt.parameters()),
        "tokens": tokens,
        "flops": tokens * flops_per_token(config),
        "seconds": seconds[-1] if seconds else None,
        "corpus": data.get("corpus"),
        "sha256": checkpoint.get("CharDataModule", {}).get("sha256", "").partition(" ")[0] or None,
        "optimizer": checkpoint["hyper_parameters"].get("optimizer"),
        "seed": data.get("seed"),
        "computed": checkpoint.get("how"),
        "lightning": checkpoint.get("pytorch-lightning_version"),
    }


def read_settings(folder: RunFolder | None, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, from its folder or else from its checkpoint."""
    if folder and folder.config.exists():
        settings: dict[str, Any] = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        return settings
    model = {name: value for name, value in checkpoint["hyper_parameters"].items() if name != "vocabulary"}
    data = checkpoint.get("datamodule_hyper_parameters", {})
    return {**checkpoint.get("settings", {}), "data": data, "model": model}


def data_of(checkpoint: dict[str, Any], settings: dict[str, Any], corpus: str | None) -> DataSettings:
    """The text of a run, where it lies now: see :func:`~minigpt.glassbox.validation.open_corpus`."""
    return open_corpus(checkpoint, **given({"corpus": corpus, "data_dir": settings.get("data", {}).get("data_dir")}))


def given(value: Any) -> Any:
    """Settings without those that are null."""
    return {k: given(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def duration(seconds: float) -> str:
    """A time as one says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def scaled(value: float) -> tuple[str, str]:
    """A large number in the words that it is said in."""
    for power, word in ((1e15, "quadrillion"), (1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= power:
            return f"{value / power:,.3g}", word
    return f"{value:,.0f}", ""


def learning(rows: Sequence[dict[str, str]], step: int, unit: str) -> dict[str, Any] | None:
    """The curves of a run from the rows of its metrics.csv, with a step marked; None where nothing was logged."""
    trained, validated = (points(rows, f"{split}/loss") for split in ("train", "val"))
    if not trained:
        return None
    bins = binned(trained, BINS)
    size, means = len(bins[0]), [mean_of(part) for part in bins]
    extremes = [(min(y for _, y in part), max(y for _, y in part)) for part in bins] if size > 1 else []
    lines = [Line("training", means, "quiet", extremes)]
    lines += [Line("validation", validated)] if validated else []
    # All weights that AdamW steps have the same rate.
    names = {name: "Muon" if name.endswith("/muon") else "AdamW" for name in rows[0] if name.startswith("lr-")}
    rates = {label: points(rows, name) for name, label in names.items()}
    kinds = {"AdamW": "quiet" if "Muon" in rates else "accent", "Muon": "accent"}
    rate_lines = [Line(label, curve, kinds[label]) for label, curve in rates.items() if curve]
    mark = (step, f"step {step:,}") if step < int(rows[-1]["step"]) else None
    return {
        "loss": line_chart("Loss over training", lines, "optimizer steps", f"loss, nats per {unit}", mark=mark),
        "rate": line_chart("Learning rate over training", rate_lines, "optimizer steps", "learning rate", height=180)
        if rate_lines
        else None,
        "size": size,
        "validated": len(validated),
        "marked": mark is not None,
    }


def points(rows: Sequence[dict[str, str]], name: str) -> list[Point]:
    """The steps at which a quantity was logged, each with its value."""
    found = ((int(row["step"]), float(row[name])) for row in rows if row.get(name))
    return [(x, y) for x, y in found if math.isfinite(y)]


def binned(curve: Sequence[Point], most: int) -> list[Sequence[Point]]:
    """A curve cut into at most so many parts of the same number of points, but for the last."""
    size = -(-len(curve) // most)
    return [curve[i : i + size] for i in range(0, len(curve), size)] if curve else []


def mean_of(part: Sequence[Point]) -> Point:
    return float(np.mean([x for x, _ in part])), float(np.mean([y for _, y in part]))


def standing(figures: dict[str, Any]) -> dict[str, Any]:
    """The model among the baselines, in bits per character."""
    bits = figures["bits_per_char"]
    bars = [Bar(name, value, f"{value:.3f}") for name, value in figures["baselines"].items()]
    bars.append(Bar("this model", bits, f"{bits:.3f}", own=True, interval=figures["bits_interval"]))
    bars.sort(key=lambda bar: -bar.value)
    title = "Bits per character of the model and of the baselines"
    return {
        "bars": bar_chart(title, bars, "bits per character"),
        "below": [bar.name for bar in bars if bar.value < bits],
    }


def where(found: Validation, unit: str) -> dict[str, Any]:
    """Where in a window and on which characters the model loses much or little, and the passages at both ends."""
    nats, error, counts = by_position(found)
    mean, error, T = nats / math.log(2), error / math.log(2), len(nats)
    # Of many positions, some that lie evenly on a logarithmic axis.
    shown = np.unique(np.geomspace(1, T, 48).round().astype(int)) - 1
    line = Line(
        "this model",
        [(t + 1, float(mean[t])) for t in shown.tolist()],
        band=[(float(mean[t] - error[t]), float(mean[t] + error[t])) for t in shown.tolist()],
    )
    kinds = by_class(found)
    rows = sorted(((loss.nats / math.log(2), kind) for kind, loss in kinds.items()), reverse=True)

    def shown_passage(passage: Passage) -> dict[str, Any]:
        tokens, costs = [found.tokenizer.label(int(i)) for i in passage.ids], passage.costs.tolist()
        titles = [f"{visible(token)}: {cost:.1f} bits" for token, cost in zip(tokens, costs, strict=True)]
        return {"text": coloured(tokens, costs, titles), "bits": passage.bits, "place": passage.place}

    last = slice(T - max(1, T // 8), T)
    return {
        "position": line_chart(
            "Loss by position in the window",
            [line],
            "place in the window",
            "bits per character",
            log_x=True,
            height=260,
        ),
        "first": float(mean[0]),
        "last": float(np.average(mean[last], weights=counts[last])),
        "kinds": bar_chart(
            f"Loss by kind of {unit}",
            [Bar(kind, bits, f"{bits:.2f}", own=True) for bits, kind in rows],
            f"bits for a {unit} of this kind",
        ),
        "shares": {kind: loss.share for kind, loss in sorted(kinds.items(), key=lambda item: -item[1].share)},
        "hardest": [shown_passage(passage) for passage in passages(found, PASSAGES)],
        "easiest": [shown_passage(passage) for passage in passages(found, PASSAGES, easiest=True)],
    }


def watch(film: Learned, unit: str) -> dict[str, Any]:
    """What the run learned when."""
    # Step 0, which a logarithmic axis lacks, stands before step 1.
    steps = [max(step, 0.5) for step in film.steps]
    by_context = {film.contexts[i]: film.context_bits[:, i] for i in range(0, len(film.contexts), 2)}
    by_context[film.contexts[-1]] = film.context_bits[:, -1]
    contexts = [
        Line(
            f"last {context}",
            list(zip(steps, bits.tolist(), strict=True)),
            "accent" if context == film.contexts[-1] else "quiet",
        )
        for context, bits in by_context.items()
    ]
    passed = {f"better than order {order}": (bits, film.crossed(order)) for order, bits in film.baselines.items()}
    lines = [Line("this run", list(zip(steps, film.bits.tolist(), strict=True)))]
    lines += [
        Line(f"order {order}", [(steps[0], bits), (steps[-1], bits)], "faint") for order, bits in film.baselines.items()
    ]
    return {
        "loss": line_chart(
            "Loss over training, beside n-gram models", lines, "optimizer steps", f"bits per {unit}", log_x=True
        ),
        "contexts": line_chart(
            "Loss with contexts of several lengths", contexts, "optimizer steps", f"bits per {unit}", log_x=True
        ),
        "passed": passed,
        "classes": {
            name: (float(bits[0]), float(bits[-1]), film.learned(name)) for name, bits in film.class_bits.items()
        },
        "learned": {
            "orders": {order: film.crossed(order) for order in film.baselines},
            "classes": {name: film.learned(name) for name in film.class_bits},
        },
        "windows": film.windows,
        "frames": len(film.steps),
    }


def writing(samples: Sequence[Sample], found: Validation | None, unit: str) -> dict[str, Any]:
    """What the model wrote; if its text is at hand, with what of it is copied, beside what held-out text shares."""
    copies = copying([sample.text for sample in samples], found.data) if found else [None] * SAMPLES
    told, rows = [], []
    for sample, copied in zip(samples, copies, strict=True):
        passages = [(run.start, run.end) for run in copied.shared.passages] if copied else []
        text = sample.text.encode() if unit == "byte" else sample.text  # what their places are of
        parts = [(as_text(text[a:b]), inside) for a, b, inside in spans(len(text), passages)]
        told.append({"seed": sample.seed, "parts": parts, "longest": copied.longest if copied else None})
        if copied:
            rows.append(sharing(f"sample, seed {sample.seed}", [copied.shared]))
    if copies[0]:
        rows.append(sharing("text never seen", copies[0].null))
    return {"samples": told, "rows": rows, "sizes": SIZES, "remark": copies[0].remark if copies[0] else ""}


def as_text(part: str | bytes) -> str:
    return part if isinstance(part, str) else part.decode("utf-8", "replace")


def sharing(name: str, texts: Sequence[Shared]) -> dict[str, Any]:
    """What some texts share with the training text, on average."""

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    longest = mean(len(its.longest) if its.longest else 0 for its in texts)
    return {"name": name, "longest": longest, "new": {n: mean(its.new[n] for its in texts) for n in SIZES}}


def spans(length: int, passages: Sequence[tuple[int, int]]) -> list[tuple[int, int, bool]]:
    """The places of a text in parts, each with whether it lies in one of the passages, which may overlap."""
    inside = np.zeros(length + 1, bool)
    for start, end in passages:
        inside[start:end] = True
    edges = [0, *(np.flatnonzero(np.diff(inside[:-1])) + 1).tolist(), length]
    return [(a, b, bool(inside[a])) for a, b in itertools.pairwise(edges) if a < b]


def switched_off(model: Traceable, found: Validation) -> list[list[float]]:
    """How many bits a token more the model needs without each head alone, for some windows all over the split."""
    config, (rows, T) = model.gpt.config, found.nats.shape
    costs = (config.n_layer * config.n_head + 1) * T * flops_per_token(config) / 3  # of a window
    chosen = np.linspace(0, rows - 1, int(np.clip(MOST / 2 / costs, 1, min(rows, 24)))).astype(int)
    ids_BT = torch.from_numpy(found.targets[chosen].astype("int64"))

    def bits(*interventions: Intervention) -> float:
        return float(observe(model.gpt, ids_BT, interventions).bits[:, 1:].mean())

    whole, heads = bits(), range(config.n_head)
    return [[bits(Intervention("head", i, h)) - whole for h in heads] for i in range(config.n_layer)]


def scored_heads(model: Traceable, found: Validation) -> HeadScores | None:
    """What each head looks at, on some windows all over the split; None of a split of less than two windows."""
    config, T = model.gpt.config, model.gpt.config.block_size
    costs = 2 * (config.n_layer * config.n_head + 1) * T * flops_per_token(config) / 3  # of a window and its repeats
    ids = found.corpus.ids(found.places)[:]
    if len(ids) < 2 * T:
        return None
    return head_scores(model, ids, int(np.clip(MOST / 2 / costs, 2, 16)))


def inside(model: Traceable, ids: NDArray[np.integer], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What the model does with an excerpt: what each character cost, all attention, and what each stage expects."""
    # Not by its text: cut out of a text of bytes, it may begin or end within a character.
    batch = observe(model.gpt, torch.from_numpy(ids.astype("int64")).unsqueeze(0))
    traced = Trace(batch, model.tokenizer.decode(ids), model.tokenizer, ())
    bits, length = traced.bits.tolist(), len(traced.tokens)
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
    columns = [visible(token) for token in traced.tokens[shown]]
    table = glyph_table("What each stage of the model expects", columns, stages, glyphs, said.values.numpy())
    return {
        "text": coloured(traced.tokens, bits, titles_of(traced)),
        "bits": float(np.mean(bits[1:])),
        "maps": maps,
        "map": min(MAP, length),
        "lens": table,
        "columns": len(columns),
    }


def titles_of(traced: Trace) -> list[str]:
    """What a mouse over each character of a traced text tells."""
    told = [f"{visible(traced.tokens[0])}: the first, so nothing predicts it"]
    for t, bits in enumerate(traced.bits.tolist()[1:], 1):
        guesses = ", ".join(f"{visible(token)} {p:.0%}" for token, p in traced.expected(t - 1))
        told.append(f"{visible(traced.tokens[t])}: {bits:.1f} bits; expected {guesses}")
    return told


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
