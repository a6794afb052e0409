"""The page that is alive: what it holds of a model and its run, and how it becomes one file.

Its scripts, in ``page/``, compute in the browser what the glass box computes here. Beside the weights the page holds
what needs the corpus and can't be computed there.
"""

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, Literal

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.glassbox.copying import SHORTEST, Copying, Run, copying
from minigpt.glassbox.film import Frame, film
from minigpt.glassbox.heads import HeadScores, scores
from minigpt.glassbox.report import (
    CONTROL,
    SAMPLES,
    binned,
    data_of,
    facts_of,
    mean_of,
    points,
    read_settings,
    scored_heads,
)
from minigpt.glassbox.signed import signed
from minigpt.glassbox.trace import Traceable, observe
from minigpt.glassbox.validation import Validation, mean_and_interval, nats_per_bit, score
from minigpt.glassbox.where import strongest_of_heads
from minigpt.model import GPT
from minigpt.records import METRICS, read_rows
from minigpt.run import RunFolder, read_checkpoint
from minigpt.text.corpus import DataSettings, listed
from minigpt.text.tokenizer import TOKENIZERS, BPETokenizer, ByteTokenizer, CharTokenizer

Precision = Literal["float16", "float32"]

KIND = "page"  # as its signature names it
# In this order they make one script.
SCRIPTS = (
    *("engine.js", "worker.js", "draw.js", "pieces.js", "state.js", "backend.js", "text.js", "expects.js", "heads.js"),
    *("time.js", "lens.js", "attribution.js", "patching.js", "occurrences.js", "guide.js", "main.js"),
)
# A window of 256 tokens takes the page's engine half a second in a model of this size, and with its film in float16
# the file has 70 MB. Beyond, the page is no longer alive, and few will mail it.
MOST_PARAMETERS = 3_000_000
FRAMES = 8  # of the film, whose weights the page holds
OPENING = 60, 100  # characters of the text that the page opens with
LOOKED = 4000  # tokens after the middle of the validation split in which that text may begin
PROBE, PLACES = 48, 64  # tokens that every model reads for its probe, and places of each activation
POINTS = 200  # of the training curve
WRITTEN, TEMPERATURE = 300, 0.8  # tokens of a sample, and how they are drawn
STRONGEST, READ = 6, 2e11  # places of each head; floating-point operations to find them, some seconds
UNKEPT = ("token_embedding", "position_embedding", "embedding")  # what the engine doesn't keep


def make(
    model: Any,
    path: Path,
    version: str,
    say: Callable[[str], None],
    corpus: str | None = None,
    precision: Precision = "float16",
    without_text: bool = False,
) -> tuple[bytes, dict[str, Any]]:
    """The page on a checkpoint, signed, and its contents.

    Raises:
        UserError: the model is too large for a page, or see :func:`contents`.
    """
    if (count := parameters_of(model.gpt)) > MOST_PARAMETERS:
        raise UserError(
            f"The model has {count:,} parameters; a page computes with at most {MOST_PARAMETERS:,}. For a larger one "
            f"the same page is served, and computed by PyTorch: python -m minigpt explore --ckpt_path {path}"
        )
    found, weights = contents(model, path, version, say, corpus, precision, without_text)
    say("Packing")
    return signed(pack(found, weights), KIND), found


def parameters_of(gpt: GPT) -> int:
    return sum(parameter.numel() for parameter in gpt.parameters())


def contents(
    model: Any,
    path: Path,
    version: str,
    say: Callable[[str], None],
    corpus: str | None = None,
    precision: Precision = "float16",
    without_text: bool = False,
) -> tuple[dict[str, Any], dict[int, bytes]]:
    """What the page holds, as plain data, and the weights of each model in it, by their steps.

    Args:
        model: what ``minigpt.load`` makes of the checkpoint.
        path: the checkpoint. Its run's curves and film are looked for beside it.
        version: of this program.
        say: is told each stage.
        corpus: where the text is now, if it isn't where the run found it.
        precision: that the weights are rounded to.
        without_text: take over no text of the corpus.

    Raises:
        UserError: a corpus was given, and it isn't the one that the model was trained on; the model has diverged; or
            its weights are too large for float16.
    """
    checkpoint, folder, missing = read_checkpoint(path), RunFolder.of(path), list[str]()
    rows = read_rows(folder.path / METRICS) if folder else []
    if not folder:
        missing.append("The checkpoint lies outside the folder of its run, which has the curves and the film.")
    elif not rows:
        missing.append(f"There are no curves: the run's folder holds no {METRICS}.")
    found = described(model, checkpoint, path, version) | {"precision": precision, "curves": curves(rows)}
    found["facts"] = facts(model, checkpoint, rows)
    say("Writing samples")  # first, for a model that has diverged ends here
    *_, written = model.write([""] * SAMPLES, max_new_tokens=WRITTEN, temperature=TEMPERATURE, seed=1)
    texts, tokenizer = [sample.text for sample in written], model.tokenizer
    text = opening(tokenizer, tokenizer.encode(texts[0].lstrip()), model.gpt.config.block_size)
    found |= {"text": text, "text_from": "Written by the model itself.", "scores": None, "fires": None, "samples": []}
    embeds: list[str] = []
    try:
        data = data_of(checkpoint, read_settings(folder, checkpoint), corpus)
        say("Scoring the validation split")
        validation = score(model, data)
    except UserError as error:
        if corpus:
            raise
        if found["bpe"]:
            missing.append(
                "A tokenizer of word pieces loses a part of a text, so nothing is measured on one: there is no loss, "
                "nothing of what the heads look at, and no samples."
            )
        else:
            say(f"What is measured on the corpus is left out. {error} Where it lies now is told with --corpus")
            missing.append("The corpus wasn't at hand: there is no loss, and nothing of what the heads look at in it.")
    else:
        loss, interval = mean_and_interval(validation.nats)
        bits = loss / nats_per_bit(validation)
        found["facts"] |= {"loss": loss, "loss_interval": interval, "bits_per_char": bits}
        say("Looking at the heads")
        found["scores"] = scores_of(scored_heads(model, validation))
        if without_text:
            missing.append("No text of the corpus is in this file: no places where a head is strong, no samples.")
        else:
            found |= excerpts(model, validation, texts, say)
            embeds = embedded(found["text"], found["fires"], found["samples"])
    if not isinstance(tokenizer, ByteTokenizer):
        embeds.append(f"The vocabulary: each of the {len(tokenizer.vocabulary)} {found['unit']}s that the model knows.")
    embeds.append("The weights: what the model has learned by heart, it can write.")
    say("Rounding the weights")
    ids, main = tokenizer.encode(found["text"])[:PROBE], found["main"]
    gpt = rounded(model.gpt, precision)
    found["tensors"] = [[name, list(weight.shape)] for name, weight in gpt.state_dict().items()]
    probes, weights, history = {main: probe(gpt, ids)}, {main: as_bytes(gpt, precision)}, []
    if folder and folder.frames():
        say("Watching the film")
        try:
            chosen = choose([*folder.frames()], main)
            for frame in film(folder.path):
                history.append(seen_at(frame))
                if frame.step in chosen:
                    gpt = rounded(frame.gpt, precision)
                    probes[frame.step], weights[frame.step] = probe(gpt, ids), as_bytes(gpt, precision)
        except UserError as error:
            say(f"The rest of the film is left out. {error}")
            missing.append("A part of the film is missing: a frame of it can't be used.")
    elif folder:
        missing.append("The run was not filmed, so its past can't be looked at. Train with --film.per_doubling 3.")
    found["models"] = [{"step": step, "probe": probes[step]} for step in sorted(probes)]
    return plain(found | {"history": history, "embeds": embeds, "missing": missing}), weights


def described(model: Traceable, checkpoint: dict[str, Any], path: Path, version: str) -> dict[str, Any]:
    """What the model of a checkpoint is.

    Raises:
        UserError: the page can't part a text as its tokenizer does, see :func:`merging`.
    """
    tokenizer, folder = model.tokenizer, RunFolder.of(path)
    is_byte, bpe = isinstance(tokenizer, ByteTokenizer), None
    if isinstance(tokenizer, BPETokenizer):
        bpe = merging(tokenizer)
    return {
        "format": 1,
        "version": version,
        "name": f"{folder.name}/{folder.path.name}" if folder else path.stem,
        "checkpoint": path.name,
        "unit": "piece" if bpe else "byte" if is_byte else "character",
        "compute": "page",
        "live": False,
        "config": dataclasses.asdict(model.gpt.config),
        "parameters": parameters_of(model.gpt),
        "labels": [tokenizer.label(i) for i in range(len(tokenizer.vocabulary))],
        "bytes": is_byte,
        "bpe": bpe,
        "unknown": tokenizer.unknown,
        "start": int(tokenizer.encode(tokenizer.start)[0]),
        "main": checkpoint["global_step"],
    }


def merging(tokenizer: BPETokenizer) -> dict[str, Any]:
    """How the page parts a text into pieces, by ``page/pieces.js``: the pairs in the order in which they are merged,
    and the pieces that are found as they stand.

    Raises:
        UserError: the tokenizer works otherwise than GPT-1's.
    """
    file = json.loads(tokenizer.source)
    model, added = file["model"], file.get("added_tokens") or []
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    unset = ("continuing_subword_prefix", "dropout", "fuse_unk", "byte_fallback", "ignore_merges")
    plain = ("single_word", "lstrip", "rstrip", "normalized")
    is_like_gpt1 = {
        "normalizer": file.get("normalizer") in [normalizer | {"strip_accents": it} for it in (None, True)],
        "pre_tokenizer": file.get("pre_tokenizer") == {"type": "BertPreTokenizer"},
        "end_of_word_suffix": model.get("end_of_word_suffix") == "</w>",
        **{name: not model.get(name) for name in unset},
        "added_tokens": not any(it.get(name) for it in added for name in plain),
    }
    if differs := [name for name, is_like in is_like_gpt1.items() if not is_like]:
        raise UserError(
            f"The model's tokenizer of word pieces differs from GPT-1's in {', '.join(differs)}, and the page parts "
            "what you type as GPT-1's does. To look inside such a model there is trace: see docs/glassbox.md."
        )
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return {"merges": pairs, "added": [it["content"] for it in added]}


def facts(model: Traceable, checkpoint: dict[str, Any], rows: list[dict[str, str]]) -> dict[str, Any]:
    """What the run was; its loss is measured elsewhere. No folder is named: those are nobody else's business."""
    known = facts_of(checkpoint, model, rows)
    corpus = ", ".join(PurePath(name).name for name in listed(known["corpus"])) if known["corpus"] else None
    kept = {name: known[name] for name in ("step", "seconds", "tokens", "optimizer")}
    return {**kept, "corpus": corpus, "loss": None, "loss_interval": None, "bits_per_char": None}


def excerpts(model: Traceable, found: Validation, texts: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """What the page takes over from the corpus: a text, where in it heads are strong, what the samples copied."""
    config, tokenizer = model.gpt.config, model.tokenizer
    ids = found.corpus.ids(found.places)[:]
    cost = flops_per_token(config) / 3 * config.block_size  # of a window
    strong = strongest_of_heads(model, found.data, STRONGEST, int(np.clip(READ / cost, 16, 256)))
    say("Looking for what is copied")
    return {
        "text": opening(tokenizer, ids[paragraph(tokenizer, ids) :], config.block_size),
        "text_from": "From the validation split, on which the model was not trained.",
        "fires": {
            f"{layer}.{head}": [dataclasses.asdict(place) for place in places]
            for (layer, head), places in strong.items()
        },
        "samples": [{"text": it.text, **sharing(it, found.data)} for it in copying(texts, found.data)],
    }


def curves(rows: list[dict[str, str]]) -> dict[str, Any]:
    """The loss in nats over the steps, as points."""
    trained = binned(points(rows, "train/loss"), POINTS)
    return {"train": [mean_of(part) for part in trained], "val": points(rows, "val/loss")}


def opening(tokenizer: CharTokenizer, ids: NDArray[np.integer], block_size: int) -> str:
    """The beginning of a text, to the end of a word, as the page opens with it. It fits the window."""
    least, most = OPENING
    text = tokenizer.decode(ids[: 4 * most])[:most]
    if isinstance(tokenizer, ByteTokenizer):
        text = text.strip("\ufffd")  # parts of characters that were cut
    end = max(text.rfind(" "), text.rfind("\n"))
    text = text[:end] if end >= least else text
    while len(tokenizer.encode(text)) > block_size:
        text = text[:-1]
    return text or tokenizer.start


def paragraph(tokenizer: CharTokenizer, ids: NDArray[np.integer]) -> int:
    """Where after the middle of a text a paragraph begins, or else a line; the middle where none does."""
    middle = len(ids) // 2
    newline = tokenizer.vocabulary.find("\n")
    near = ids[middle : max(middle + 2, min(middle + LOOKED, len(ids) - OPENING[1]))]
    ends = near == newline
    lines = np.flatnonzero(ends[:-1] & ~ends[1:]) + 1
    paragraphs = lines[ends[lines - 2] & (lines > 1)]
    return middle + int(next(iter([*paragraphs, *lines]), 0))


def sharing(copied: Copying, data: DataSettings) -> dict[str, Any]:
    """Which passages of a text stand in the training text, and how long a run of it and of held-out texts does.

    All of it in characters, also where the model reads bytes.
    """
    training = data.open_splits()["train"]
    counts = np.array(TOKENIZERS[data.tokenizer](training.characters).character_counts())

    def length(run: Run | None) -> int:
        if run is None:
            return 0
        return int(counts[training.ids(range(run.place, run.place + len(run)))[:]].sum())

    def before(place: int) -> int:
        if data.tokenizer == "char":
            return place
        return len(copied.text.encode()[:place].decode("utf-8", "ignore"))

    return {
        "passages": [[before(run.start), before(run.end)] for run in copied.shared.passages],
        "longest": length(copied.shared.longest),
        "held_out": [length(it.longest) for it in copied.null],
    }


def embedded(text: str, fires: dict[str, list[dict[str, Any]]], samples: list[dict[str, Any]]) -> list[str]:
    """What the page holds of the corpus's text, in sentences."""
    places = [place for of_head in fires.values() for place in of_head]
    length = sum(len(place["before"]) + 1 + len(place["after"]) for place in places)
    passages = [end - start for sample in samples for start, end in sample["passages"]]
    copied = (
        f"{len(passages)} passages, {sum(passages):,} characters in all, stand word for word in the training text."
        if passages
        else f"no passage of {SHORTEST} characters or more stands in the training text."
    )
    return [
        f"The text that it opens with: {len(text)} characters of the validation split.",
        f"{len(places)} excerpts of the validation split, {length:,} characters in all: where each head is strongest.",
        f"{len(samples)} samples that the model wrote; of them {copied}",
    ]


def scores_of(found: HeadScores | None) -> dict[str, Any] | None:
    """What the heads look at, as the page shows it."""
    if found is None:
        return None
    names = ("layer", "head", "name", "kind", "score", "null")
    rows = [
        {name: getattr(row, name) for name in names} | {"bits": row.text.bits, "error": row.text.error}
        for row in found.rows
    ]
    return {"windows": found.windows, "rows": rows}


def seen_at(frame: Frame) -> dict[str, Any]:
    """A frame of a film: its loss on the film's probe, and what its heads look at there."""
    seen = observe(frame.gpt, frame.ids[:-1].unsqueeze(0))
    by_kind = {kind: values.tolist() for kind, values in scores(seen, frame.tokenizer).items()}
    return {"step": frame.step, "loss": float(frame.losses.double().mean()), "scores": by_kind}


def choose(steps: list[int], main: int) -> set[int]:
    """The frames of a film whose weights the page holds: some all over it, and the last before the main model."""
    others = [step for step in steps if step != main]
    before = [step for step in others if step < main][-1:]
    spread = np.linspace(0, len(others) - 1, min(FRAMES, len(others))).round().astype(int)
    return {others[i] for i in spread} | {*before}


def rounded(gpt: GPT, precision: Precision) -> GPT:
    """The same model with weights that the precision holds. The table of sines, if it has one, is a weight as well.

    Raises:
        UserError: a weight is too large, or no number.
    """
    copy = GPT(gpt.config).eval()
    copy.load_state_dict(gpt.state_dict())
    if gpt.config.positions == "sinusoidal":
        table = gpt.position_embedding(torch.arange(gpt.config.block_size))
        copy.position_embedding = nn.Embedding.from_pretrained(table.clone())
    for name, weight in copy.state_dict().items():
        small = weight.to(getattr(torch, precision))
        if not weight.isfinite().all():
            raise UserError(f"The weights {name} are no numbers: the model's training diverged. Take an earlier one.")
        if not small.isfinite().all():
            raise UserError(
                f"The weights {name} reach {float(weight.abs().max()):,.0f}, more than float16 can hold. Keep them as "
                "they are: --precision float32"
            )
        weight.copy_(small)
    return copy


def as_bytes(gpt: GPT, precision: Precision) -> bytes:
    """The weights, one tensor behind the other, little-endian."""
    kind = {"float16": "<f2", "float32": "<f4"}[precision]
    return b"".join(weight.numpy().astype(kind).tobytes() for weight in gpt.state_dict().values())


def probe(gpt: GPT, ids: NDArray[np.integer]) -> dict[str, Any]:
    """Some values of each activation while a model reads ids: by them the page proves that it computes the same.

    Places are those in the engine's arrays: rows of positions; of the scores and the pattern [position][head][seen].
    """
    T, H, S = len(ids), gpt.config.n_head, gpt.config.block_size
    seen = observe(gpt, torch.from_numpy(ids.astype("int64")).unsqueeze(0))
    t, h, s = (np.broadcast_to(np.tri(T, dtype=bool)[:, None], (T, H, T))).nonzero()  # each sees itself and before
    values = {}
    for name, value in seen.values.items():
        if name in UNKEPT:
            continue
        of_heads = name.endswith((".scores", ".softmax"))
        flat = value[0].transpose(0, 1)[t, h, s] if of_heads else value[0].flatten()
        at = (t * H + h) * S + s if of_heads else np.arange(len(flat))
        some = np.unique(np.linspace(0, len(at) - 1, PLACES).round().astype(int))
        values[name] = {
            "at": at[some].tolist(),
            "values": flat[torch.from_numpy(some)].tolist(),
            "largest": float(flat.abs().max()),
        }
    return {"ids": ids.tolist(), "values": values}


def plain(value: Any) -> Any:
    """Data as JSON can hold it: numbers with the nine digits that tell every float32, null where there is none."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def pack(contents: dict[str, Any], weights: dict[int, bytes], served: bool = False) -> bytes:
    """One page of all scripts, the style, the contents and the weights, the main model's first.

    Args:
        contents: as :func:`contents` makes them.
        weights: by step; none where the page gets them from its server.
        served: the page may ask the server that it is from.
    """
    style, script = read("page.css"), "".join(map(read, SCRIPTS))
    encoded = {step: base64.b64encode(those).decode() for step, those in weights.items()}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(read("page.html")).render(
        policy=policy(script, style, served),
        version=contents["version"],
        name=contents["name"].translate(CONTROL),
        style=style,
        script=script,
        contents=escaped(contents),
        first=[(step, text) for step, text in encoded.items() if step == contents["main"]],
        later=sorted((step, text) for step, text in encoded.items() if step != contents["main"]),
    )
    return page.encode("utf-8", "replace")


def read(name: str) -> str:
    """A part of the page."""
    return resources.files("minigpt.glassbox").joinpath("page", name).read_text(encoding="utf-8")


def policy(script: str, style: str, served: bool = False) -> str:
    """What the browser lets the page do: run this one script, also as a worker, and use this one style."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = ["default-src 'none'", f"script-src {digest(script)}", f"style-src {digest(style)}", "worker-src blob:"]
    rules += ["connect-src 'self'"] * served
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def escaped(value: Any) -> str:
    """JSON of which no character means anything in HTML."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\x7f":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
