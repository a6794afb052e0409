"""``report``: the page on a run, through the command line."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conftest import assert_clear_error, make_text, run_minigpt
from minigpt.glassbox.validation import mean_and_interval

VOID = {"meta", "br", "hr", "img", "link", "input"}
REPORT = ("report", "--max_new_tokens", "60", "--ckpt_path")
BEST = (*REPORT, "best")


class Page(HTMLParser):
    """A page, read strictly: every element is closed in its order. Its text and the addresses that it asks for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.copied = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert len(dict(attrs)) == len(attrs)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)  # of SVG
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "mark" in self.open:
            self.copied += data


def test_the_page_has_all_of_a_run_in_one_sound_file(in_trained: Path) -> None:
    result = run_minigpt(*BEST, "--json")
    assert result.code == 0, result.err
    figures, page = json.loads(result.out), Page(Path("report.html"))
    # Nothing is fetched and nothing runs: addresses lead inside the page, or are the page's own images.
    assert all(re.match(r"#|data:image/png;base64,", address) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\(", Path("report.html").read_text(encoding="utf-8"))
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 7
    assert "tiny/version_0" in page.text
    # The loss is the one that validate finds by the same formulas.
    told = run_minigpt("validate", "--ckpt_path", "best", "--trainer.precision", "32-true", "--fast", "false").out
    loss = float(re.search(r"val/loss\D+([\d.]+)", told)[1])  # type: ignore[index]
    assert figures["loss"] == pytest.approx(loss, abs=1e-5)
    assert f"{loss:.4f}" in page.text
    low, high = figures["bits_interval"]
    assert low < figures["bits_per_char"] < high
    for figure in ("gzip", "order 2", "uniform"):
        assert f"{figures['baselines'][figure]:.3f}" in page.text
    assert np.shape(figures["heads_off"]) == (2, 2)
    assert np.isfinite(figures["heads_off"]).all()
    assert len(figures["heads"]) == 4
    for head in figures["heads"]:
        assert f"{head['text']['bits']:+.3f} ± {head['text']['error']:.3f}" in page.text
    for part in ("24 steps", "validation split", "n_embd: 16", "learning_rate: 0.003"):
        assert part in page.text


@pytest.mark.soak
def test_a_file_that_is_not_such_a_page_is_not_replaced(in_trained: Path) -> None:
    page = Path("report.html")
    page.write_text("mine")
    assert_clear_error(run_minigpt(*BEST), "report.html is there already", "--output")
    assert page.read_text() == "mine"
    page.unlink()
    assert run_minigpt(*BEST).code == 0
    assert run_minigpt(*BEST).code == 0  # its own is replaced
    page.write_bytes(page.read_bytes().replace(b"<h1>", b"<h1>Homework: ", 1))
    assert_clear_error(run_minigpt(*BEST), "report.html is there already")
    assert b"Homework" in page.read_bytes()


def test_a_page_has_what_there_is_and_says_what_is_missing(in_trained: Path) -> None:
    next(Path("lightning_logs").rglob("step*.ckpt")).rename("model.ckpt")
    lone = run_minigpt(*REPORT, "model.ckpt", "--output", "lone.html")
    assert lone.code == 0, lone.err
    assert "There are no curves" in (text := Page(Path("lone.html")).text)
    assert "this model" in text
    assert "n_embd: 16" in text
    Path("text.txt").rename("moved.txt")
    without = run_minigpt(*REPORT, "model.ckpt", "--output", "without.html")
    assert without.code == 0, without.err
    assert "text.txt" in (text := Page(Path("without.html")).text)
    assert "this model" not in text
    moved = run_minigpt(*REPORT, "model.ckpt", "--output", "moved.html", "--corpus", "moved.txt")
    assert moved.code == 0, moved.err
    assert "this model" in Page(Path("moved.html")).text
    Path("other.txt").write_text(make_text(6000, seed=1))
    other = run_minigpt(*REPORT, "model.ckpt", "--output", "other.html", "--corpus", "other.txt")
    assert_clear_error(other, "other.txt", "is not the text")


def test_text_that_looks_like_html_is_text_on_the_page(workplace: Path) -> None:
    hostile = "</script><b onclick=x>\x00\x1b\x85<!--'\"]]></style>{{ 7 * 7 }}\n"
    corpus = Path("&lt;.txt")
    corpus.write_text(make_text(3000) + hostile * 60, encoding="utf-8", newline="")
    fit = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 5, "--trainer.val_check_interval", 5)
    assert run_minigpt(*fit, "--data.corpus", corpus, "--data.tokenizer", "byte", "--data.block_size", 64).code == 0
    result = run_minigpt(*BEST)
    assert result.code == 0, result.err
    page = Page(Path("report.html"))
    assert not {"b", "script"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", Path("report.html").read_text(encoding="utf-8"))
    for part in ("<b\u00b7onclick=x>", "]]></style>{{\u00b77\u00b7*\u00b77\u00b7}}", "&lt;.txt"):
        assert part in page.text


def test_what_is_copied_is_marked_and_what_was_filmed_is_told(workplace: Path) -> None:
    Path("text.txt").write_text("abc\n" * 1500, newline="")
    fit = ("fit", "--config", "tiny.yaml", "--model.learning_rate", 0.01, "--film.per_doubling", 1)
    assert run_minigpt(*fit).code == 0
    result = run_minigpt(*BEST, "--temperature", 0, "--json")
    figures, page = json.loads(result.out), Page(Path("report.html"))
    # It was filmed: there are the two figures of what was learned when.
    assert page.tags.count("svg") == 9
    assert figures["learned"]["orders"]["0"] in (1, 2, 4, 8, 16, 24)
    sample, *_, never_seen = figures["samples"]
    assert page.copied.count("abc\nabc\nabc\nabc\nabc\n") >= 3
    assert sample["longest"] == never_seen["longest"] == 60
    assert sample["new"]["20"] == never_seen["new"]["20"] == 0


def test_the_interval_holds_the_truth_19_times_out_of_20() -> None:
    draw = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):  # splits of 60 windows, the characters of which depend on each other; the last is cut off
        nats_NT = 2 + draw.normal(size=(60, 1)) + draw.normal(size=(60, 16))
        nats_NT[-1, 5:] = np.nan
        mean, interval = mean_and_interval(nats_NT)
        assert interval
        assert interval[0] < mean < interval[1]
        inside += interval[0] < 2 < interval[1]
    assert 930 <= inside <= 970
    assert mean_and_interval(nats_NT[:1])[1] is None
