"""``explain``: one file that is alive. What it holds, through the command line."""

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import assert_clear_error, make_text, run_minigpt
from minigpt.glassbox import explain
from minigpt.glassbox.copying import copying
from minigpt.glassbox.film import film
from minigpt.glassbox.trace import observe
from minigpt.model import GPT, GPTConfig
from minigpt.run import RunFolder, find_checkpoint, load_gpt, write_checkpoint
from minigpt.text.corpus import DataSettings

EXPLAIN = ("explain", "--ckpt_path")
RUN = RunFolder.first("tiny")
HOSTILE = "<img src=x onerror=alert(1)></script><!--]]>\"'&{{7*7}}\u202e\u2028\x00\x1b\x7f\udfff\ud800\n"


class Page(HTMLParser):
    """A page: its tags in order, addresses, and the elements whose text is data or program."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_bytes().decode("utf-8")  # as it stands, line ends too
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.policy = self.inside = self.title = ""
        self.elements: dict[str, str] = {}  # scripts by their ids, "script" and "style"
        self.feed(self.raw)
        self.close()
        self.contents: dict[str, Any] = json.loads(self.elements["contents"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [given[name] for name in ("src", "href", "srcset", "action", "data") if name in given]
        assert not [name for name in given if name.startswith("on") or name == "style"]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        self.inside = given.get("id", tag) if tag == "script" else tag
        if tag in ("script", "style"):
            assert self.inside not in self.elements
            self.elements[self.inside] = ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.elements:
            self.elements[self.inside] += data
        elif self.inside == "title":
            self.title += data

    def gpt(self, step: int) -> GPT:
        """The model of a step with the weights that lie in the page."""
        kind = {"float16": "<f2", "float32": "<f4"}[self.contents["precision"]]
        flat = np.frombuffer(base64.b64decode(self.elements[f"weights-{step}"]), kind)
        gpt, start, state = GPT(GPTConfig(**self.contents["config"])).eval(), 0, {}
        for name, shape in self.contents["tensors"]:
            size = int(np.prod(shape))
            state[name] = torch.from_numpy(flat[start : start + size].reshape(shape).astype(np.float32))
            start += size
        assert start == len(flat)
        if gpt.config.positions == "sinusoidal":
            gpt.position_embedding = nn.Embedding(gpt.config.block_size, gpt.config.n_embd)
        gpt.load_state_dict(state)
        return gpt


def texts_in(value: Any) -> Iterator[str]:
    """All strings in the contents, but for the names of their parts."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)
    elif isinstance(value, str):
        yield value


@pytest.fixture(scope="module")
def explained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was filmed and its page. Not to be changed."""
    folder = tmp_path_factory.mktemp("explained")
    for name in ("text.txt", "tiny.yaml"):
        shutil.copy(trained / name, folder)
    with contextlib.chdir(folder):
        shape = ("--model.positions", "sinusoidal", "--model.norm", "pre")
        assert run_minigpt("fit", "--config", "tiny.yaml", "--film.per_doubling", 3, *shape).code == 0
        result = run_minigpt(*EXPLAIN, "last")
    assert result.code == 0, result.err
    (folder / "explain.out").write_text(result.out)
    return folder


@pytest.fixture
def in_explained(explained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current folder."""
    monkeypatch.chdir(shutil.copytree(explained, tmp_path / "explained"))
    return Path.cwd()


@pytest.fixture(scope="module")
def page(explained: Path) -> Page:
    return Page(explained / "page.html")


def test_one_file_asks_nobody_and_runs_only_its_own_script(page: Page) -> None:
    assert not [address for address in page.addresses if not address.startswith("#")]
    assert not {"link", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    digests = {
        name: base64.b64encode(hashlib.sha256(page.elements[name].encode()).digest()).decode()
        for name in ("script", "style")
    }
    rules = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digests['script']}'",
        "style-src": f"'sha256-{digests['style']}'",
        "worker-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert "connect-src 'self'" in explain.policy("", "", served=True)
    assert not re.search(r"@import|url\(", page.elements["style"])
    assert "\r" not in page.raw  # which a browser would take for another line end, and for another hash
    # The page's own script is the engine, then what is built on it; only it is no data.
    assert page.elements["script"].startswith('"use strict";')
    assert "class GPT" in page.elements["script"]
    assert {name.partition("-")[0] for name in page.elements} == {"contents", "weights", "script", "style"}


def test_the_contents_are_the_run(page: Page, in_explained: Path) -> None:
    held = page.contents
    assert {name: type(value).__name__ for name, value in held.items()} == {
        **dict.fromkeys(("version", "name", "checkpoint", "unit", "compute", "text", "text_from", "precision"), "str"),
        **dict.fromkeys(("format", "parameters", "start", "main"), "int"),
        **dict.fromkeys(("live", "bytes"), "bool"),
        **dict.fromkeys(("config", "facts", "curves", "scores", "fires"), "dict"),
        **dict.fromkeys(("labels", "tensors", "models", "history", "samples", "embeds", "missing"), "list"),
        **dict.fromkeys(("unknown", "bpe"), "NoneType"),
    }
    text = Path("text.txt").read_text()
    assert held["name"] == page.title.split(" · ")[0] == "tiny/version_0"
    assert held["labels"] == sorted(set(text))
    assert held["labels"][held["start"]] == "\n"
    assert (held["main"], held["missing"], held["facts"]["corpus"]) == (24, [], "text.txt")
    assert 0 < len(held["text"]) <= 16
    assert held["text"] in text
    steps = [frame["step"] for frame in held["history"]]
    assert steps == list(RUN.frames())
    models = [model["step"] for model in held["models"]]
    assert models == sorted(models)
    assert {0, 20, 24} <= set(models) < set(steps)  # of the film the first, the last before the model, and the model
    assert len(models) == explain.FRAMES + 1
    assert {f"weights-{step}" for step in models} < page.elements.keys()
    assert page.raw.index('id="weights-24"') < page.raw.index("use strict") < page.raw.index('id="weights-0"')
    assert held["history"][0]["loss"] > held["history"][-1]["loss"] == pytest.approx(held["facts"]["loss"], abs=0.5)
    assert np.shape(held["history"][0]["scores"]["induction"]) == (2, 2)
    told = run_minigpt("validate", "--ckpt_path", "last", "--trainer.precision", "32-true").out
    assert held["facts"]["loss"] == pytest.approx(float(re.search(r"val/loss\D+([\d.]+)", told)[1]), abs=1e-4)  # type: ignore[index]
    assert len(held["curves"]["train"]) == 24
    assert [step for step, _ in held["curves"]["val"]] == [8, 16, 24]
    assert [(row["layer"], row["head"]) for row in held["scores"]["rows"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert held["fires"].keys() == {"0.0", "0.1", "1.0", "1.1"}
    for place in itertools.chain(*held["fires"].values()):
        assert text[place["position"]] == place["token"]
        assert text[place["position"] - place["distance"]] == place["source"]
        assert place["before"] + place["token"] + place["after"] in text
    for sample in held["samples"]:
        assert len(sample["text"]) == explain.WRITTEN
        assert len(sample["held_out"]) == 2  # the validation split holds two such excerpts
        run = next(
            n for n in range(300, 0, -1) if any(sample["text"][i : i + n] in text[:4800] for i in range(301 - n))
        )
        assert sample["longest"] == run
    out = Path("explain.out").read_text()
    assert all(sentence in out for sentence in held["embeds"])
    assert "validation split" in held["embeds"][0]
    assert f"{Path('page.html').stat().st_size / 1e6:.1f} MB" in out


@pytest.mark.parametrize("precision", ["float16", pytest.param("float32", marks=pytest.mark.soak)])
def test_the_page_has_the_weights_and_what_they_give(
    precision: str, in_explained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "PROBE", 11)  # less than a window, so that the places of a head's pattern show
    result = run_minigpt(*EXPLAIN, "last", "--precision", precision)
    assert result.code == 0, result.err
    page = Page(Path("page.html"))
    models = {frame.step: frame.gpt for frame in film(RUN.path)} | {24: load_gpt(RUN.last)[0]}
    kind = getattr(torch, precision)
    for held in page.contents["models"]:
        step, gpt = held["step"], page.gpt(held["step"])
        mine = models[step].state_dict()
        mine["position_embedding.weight"] = models[step].position_embedding(torch.arange(16))
        assert mine.keys() == gpt.state_dict().keys()
        for name, weight in gpt.state_dict().items():
            assert torch.equal(weight, mine[name].to(kind).float()), name
        # The probe is what these weights give, at places of the engine's arrays: [position][head][seen] in windows.
        ids = held["probe"]["ids"]
        assert ids == [page.contents["labels"].index(c) for c in page.contents["text"]][: explain.PROBE]
        seen = observe(gpt, torch.tensor([ids])).values
        assert seen.keys() - held["probe"]["values"].keys() == {
            "token_embedding",
            "position_embedding",
            "embedding",
        }
        for name, probe in held["probe"]["values"].items():
            value = seen[name][0]
            if name.endswith(("scores", "softmax")):
                value = nn.functional.pad(value.tril(), (0, 16 - len(ids))).transpose(0, 1)
                assert all(at % 16 <= at // 32 for at in probe["at"])
            flat = value.flatten()
            assert len(set(probe["at"])) == len(probe["at"]) == min(explain.PLACES, (flat != 0).sum())
            np.testing.assert_array_equal(np.float32(probe["values"]), flat[probe["at"]].numpy(), name)
            assert np.float32(probe["largest"]) == flat.abs().max()


def test_only_its_own_page_is_replaced(in_explained: Path) -> None:
    page = Path("page.html")
    page.write_bytes(page.read_bytes().replace(b"<title>", b"<title>Mine: "))
    assert_clear_error(run_minigpt(*EXPLAIN, "last"), "page.html is there already", "--output")
    assert b"Mine" in page.read_bytes()
    assert run_minigpt("report", "--ckpt_path", "last", "--max_new_tokens", 5).code == 0
    assert_clear_error(run_minigpt(*EXPLAIN, "last", "--output", "report.html"), "report.html is there already")


def test_a_model_too_large_for_a_page_is_refused(in_explained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MOST_PARAMETERS", 1000)
    refused = run_minigpt(*EXPLAIN, "last")
    assert_clear_error(
        refused, "6,864", "at most 1,000", f"python -m minigpt explore --ckpt_path {find_checkpoint('last')}"
    )


def test_a_weight_beyond_float16_is_kept_by_float32(in_explained: Path) -> None:
    checkpoint = torch.load(RUN.last, weights_only=True)
    checkpoint["state_dict"]["gpt.blocks.1.feed_forward.contract.weight"][3, 3] = 70_000
    write_checkpoint(checkpoint, Path("large.ckpt"))
    refused = run_minigpt(*EXPLAIN, "large.ckpt")
    assert_clear_error(refused, "blocks.1.feed_forward.contract.weight", "70,000", "--precision float32")
    assert run_minigpt(*EXPLAIN, "large.ckpt", "--precision", "float32").code == 0


def test_without_text_nothing_of_the_corpus_is_in_the_page(in_explained: Path) -> None:
    text = Path("text.txt").read_text()

    def shared(page: Page) -> list[str]:
        """Where the page has as much as ten characters of the corpus."""
        pieces = {text[i : i + 10] for i in range(len(text))}
        return [it for it in texts_in(page.contents) if any(it[i : i + 10] in pieces for i in range(len(it) - 9))]

    assert len(shared(Page(Path("page.html")))) > 10
    result = run_minigpt(*EXPLAIN, "last", "--without_text")
    assert result.code == 0, result.err
    page = Page(Path("page.html"))
    assert not shared(page)
    held = page.contents
    assert (held["fires"], held["samples"], held["text_from"]) == (None, [], "Written by the model itself.")
    assert held["facts"]["loss"]  # a number tells nothing
    assert held["scores"]
    ids = {tuple(model["probe"]["ids"]) for model in held["models"]}
    assert ids == {tuple(held["labels"].index(c) for c in held["text"])}
    assert "excerpts" not in result.out
    assert "vocabulary" in result.out


def test_the_page_has_what_there_is_and_says_what_is_missing(in_trained: Path) -> None:
    RUN.last.rename("model.ckpt")
    Path("text.txt").rename("moved.txt")
    result = run_minigpt(*EXPLAIN, "model.ckpt")
    assert result.code == 0, result.err
    assert "text.txt" in result.err
    page = Page(Path("page.html"))
    held = page.contents
    assert held["name"] == "model"
    assert len(held["models"]) == 1
    assert {"position_embedding.weight"} <= {name for name, _ in held["tensors"]}  # learned
    assert (held["scores"], held["fires"], held["samples"], held["history"]) == (None, None, [], [])
    assert held["curves"] == {"train": [], "val": []}
    assert held["text_from"] == "Written by the model itself."
    assert str(Path.cwd()) not in page.raw  # where things lie here is nobody's business
    assert ["folder of its run" in held["missing"][0], "corpus" in held["missing"][1]] == [True, True]
    moved = run_minigpt(*EXPLAIN, "model.ckpt", "--corpus", "moved.txt")
    assert moved.code == 0, moved.err
    held = Page(Path("page.html")).contents
    assert held["facts"]["loss"]
    assert len(held["missing"]) == 1
    Path("other.txt").write_text(make_text(6000, seed=1))
    assert_clear_error(run_minigpt(*EXPLAIN, "model.ckpt", "--corpus", "other.txt"), "other.txt", "is not the text")


def test_what_a_model_of_bytes_copied_is_told_in_characters(workplace: Path) -> None:
    Path("text.txt").write_text("été\n" * 1000 + make_text(3000), encoding="utf-8", newline="")
    data = DataSettings("text.txt", tokenizer="byte")
    (copied,) = copying(["Ça! " + "été\n" * 9 + "€"], data)
    found = explain.sharing(copied, data)
    assert (found["passages"], found["longest"]) == ([[4, 40]], 36)


def test_no_text_can_become_markup(workplace: Path) -> None:
    vocabulary = "".join(dict.fromkeys(HOSTILE))
    gpt = GPT(GPTConfig(len(vocabulary), block_size=40, n_layer=1, n_head=2, n_embd=8))
    name = "<img src=x onerror=alert(1)>" if os.name == "posix" else "&lt;"
    path = Path(f"lightning_logs/{name}/version_0/checkpoints/&quot;<b>.ckpt")
    hyperparameters = {"vocabulary": vocabulary, "tokenizer": "char", **dataclasses.asdict(gpt.config)}
    state = {f"gpt.{name}": weight for name, weight in gpt.state_dict().items()}
    write_checkpoint({"state_dict": state, "hyper_parameters": hyperparameters, "global_step": 7}, path)
    result = run_minigpt(*EXPLAIN, path)
    assert result.code == 0, result.err
    page = Page(Path("page.html"))
    assert page.contents["labels"] == [c.replace("\udfff", "\ufffd") for c in vocabulary]
    assert page.contents["name"] == f"{name}/version_0"
    assert page.title.startswith(f"{name}/version_0")
    # The same where whole strings are hostile; a tame page has the same elements.
    weights = {7: b"\0" * 10, 3: b"\0" * 10}
    tame = {**page.contents, "name": "tame", "labels": [], "text": "tame"}
    hostile = {**tame, "name": HOSTILE, "text": HOSTILE, "samples": [{"text": HOSTILE}], "labels": [*HOSTILE]}
    pages = {}
    for kind, held in (("tame", tame), ("hostile", hostile)):
        Path(f"{kind}.html").write_bytes(explain.pack(held, weights))
        pages[kind] = Page(Path(f"{kind}.html"))
        assert pages[kind].contents == held
        assert pages[kind].policy == page.policy
    assert pages["tame"].tags == pages["hostile"].tags
    for each in (page, pages["hostile"]):
        contents = each.elements["contents"]
        assert contents.isascii()
        assert not set("<>&\x7f") & set(contents)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", each.raw)
