"""The live page in a real browser: whatever is done to it, its numbers are Python's, and everybody can use it."""

import base64
import contextlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlencode
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import minigpt
import minigpt.glassbox.film
from conftest import TINY, make_text, run_minigpt
from minigpt.generation import probabilities
from minigpt.glassbox import explain
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Trace, observe, trace
from minigpt.model import GPT, GPTConfig
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BLOCK = 32
TEXT = "the cat sat on a mat and saw"  # fits the window

DRAWN = Sampling(temperature=0.8)  # how the page draws at first

Open = Callable[..., Any]  # a page, or a link in it, in a browser of its own


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Only for this module: Playwright's event loop runs until it ends."""
    missing = [name for name in ("playwright", "axe_playwright_python") if not find_spec(name)]
    if missing := missing + ["Chromium"] * (not BROWSER):
        required = os.environ.get("MINIGPT_BROWSER") == "required"
        (pytest.fail if required else pytest.skip)(f"the page is tried in a browser; missing: {', '.join(missing)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was filmed, and page.html of it. Not to be changed."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "text.txt").write_text(make_text(6000))
    (folder / "tiny.yaml").write_text(TINY.replace("block_size: 16", f"block_size: {BLOCK}"))
    with contextlib.chdir(folder):
        fitted = run_minigpt("fit", "--config", "tiny.yaml", "--film.per_doubling", 2)
        explained = run_minigpt("explain", "--ckpt_path", "last")
    assert fitted.code == explained.code == 0, fitted.err + explained.err
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """What the page holds, in Python: the model with the same rounded weights."""
    with contextlib.chdir(folder):
        loaded = minigpt.load("last")
    return SimpleNamespace(gpt=explain.rounded(loaded.gpt, "float16"), tokenizer=loaded.tokenizer)


@pytest.fixture
def open_page(browser: Any, folder: Path) -> Iterator[Open]:
    """Opens a page offline. At the end none may have complained, nor have asked for anything outside itself."""
    complaints, contexts = list[str](), list[Any]()

    def open_page(path: Path = folder / "page.html", **options: Any) -> Any:
        link = options.pop("link", {})
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, "offline": True} | options)
        contexts.append(context)
        context.set_default_timeout(5000)
        page, own = context.new_page(), path.as_uri()

        def requested(request: Any) -> None:
            if request.url.partition("#")[0] != own and not request.url.startswith(("blob:", "data:")):
                complaints.append(f"request: {request.url}")

        def logged(message: Any) -> None:
            if message.type in ("error", "warning"):
                complaints.append(f"{message.type}: {message.text}")

        context.on("request", requested)
        page.on("console", logged)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.goto(own + ("#" + (link if isinstance(link, str) else urlencode(link)) if link else ""))
        eventually(page, "document.getElementById('badge').className !== '' && Boolean(update.key)", True)
        page.evaluate(COUNT_UPDATES)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


# For settle: how many updates are under way.
COUNT_UPDATES = """() => {
  const plain = update;
  globalThis.underWay = 0;
  update = Object.assign((...all) => (underWay++, plain(...all).finally(() => underWay--)), plain);
}"""


def settle(page: Any) -> None:
    """Wait until what is shown has been computed for the state as it is."""
    eventually(page, "underWay", 0)


def eventually(page: Any, expression: str, wanted: Any) -> None:
    """Wait until the page says so, and show what it said instead."""
    until = time.monotonic() + 5
    while (found := page.evaluate(expression)) != wanted:
        assert time.monotonic() < until, (expression, found, wanted)
        page.wait_for_timeout(20)


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def prices(page: Any) -> list[float]:
    """What each character of the text costs, in nats; NaN where nothing predicts it."""
    found = page.eval_on_selector_all(".mirror span[data-i]", "them => them.map((it) => it.dataset.nats)")
    return [float(nats) if nats else math.nan for nats in found]


def bars(page: Any) -> dict[str, tuple[float, float]]:
    """Of each token: how wide the bar of the model is, and that of what is drawn from; the widest of all is 100."""
    rows = page.evaluate("""() => [...document.querySelectorAll(".bars li")].map((row) =>
      [row.firstChild.textContent, ...[...row.querySelectorAll("i")].map((bar) => bar.style.width)])""")
    return {label: (float(model[:-1]), float(drawn[:-1])) for label, model, drawn in rows}


def expected_bars(read: Trace, t: int = -1, sampling: Sampling = DRAWN) -> dict[str, tuple[float, float]]:
    """What :func:`bars` should be after position t."""
    logits_1V, window = read.logits[t].unsqueeze(0), read.ids_BT[None]
    plain, drawn = (probabilities(logits_1V, window, it)[0].numpy() for it in (Sampling(temperature=1), sampling))
    most = max(plain.max(), drawn.max()) / 100
    labels = [shown(read.tokenizer.label(i)) for i in range(len(plain))]
    return {label: (p / most, d / most) for label, p, d in zip(labels, plain, drawn, strict=True)}


def shown(label: str) -> str:
    return {" ": "·", "\n": "↵", "\\x0a": "↵"}.get(label, label.replace("</w>", "·"))


def assert_bars(page: Any, wanted: dict[str, tuple[float, float]]) -> None:
    settle(page)
    found = bars(page)
    assert found.keys() == wanted.keys()
    for label in wanted:
        assert found[label] == pytest.approx(wanted[label], abs=2e-3), label


def assert_prices(page: Any, read: Trace) -> None:
    settle(page)
    np.testing.assert_allclose(prices(page), read.nats.numpy(), atol=2e-5)


def saved(page: Any, panel: str, kind: str) -> str:
    """What the button for it saves of a panel."""
    with page.expect_download() as download:
        page.click(f"#{panel} .exports button:has-text('{kind}')")
    return Path(download.value.path()).read_text(encoding="utf-8")


def numbers(page: Any, panel: str) -> Any:
    return json.loads(saved(page, panel, "JSON"))


def contents_of(path: Path) -> dict[str, Any]:
    found = re.search(r'id="contents">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def pack(folder: Path, path: Path, tokenizer: CharTokenizer, sharp: float = 1, **changes: Any) -> Any:
    """A page on a small model with another vocabulary; gives the model."""
    size = len(tokenizer.vocabulary)
    torch.manual_seed(1)
    gpt = GPT(GPTConfig(size, BLOCK, 2, 2, 16)).eval()
    for name, weight in gpt.named_parameters():
        weight.data *= sharp if name.endswith(("token_embedding.weight", "qkv.weight")) else 1
    gpt = explain.rounded(gpt, "float16")
    found = contents_of(folder / "page.html")
    found |= {
        "labels": [tokenizer.label(i) for i in range(size)],
        "unknown": tokenizer.unknown,
        "start": int(tokenizer.encode(tokenizer.start)[0]),
        "config": found["config"] | {"vocab_size": size},
        "tensors": [[name, list(weight.shape)] for name, weight in gpt.state_dict().items()],
        "models": [{"step": found["main"], "probe": explain.probe(gpt, np.arange(8) % size)}],
    }
    path.write_bytes(explain.pack(explain.plain(found | changes), {found["main"]: explain.as_bytes(gpt, "float16")}))
    return SimpleNamespace(gpt=gpt, tokenizer=tokenizer)


def test_what_is_said_of_a_head_are_whole_sentences(open_page: Open) -> None:
    page = open_page(link={"depth": "researcher", "panel": "heads", "head": "0.1", "off": "h0.1"})
    settle(page)
    said = page.inner_text("#heads-panel .says")
    assert "bits a character more" in said
    assert said.endswith(". It is switched off now.")


def test_typing_shows_what_python_computes(open_page: Open, model: Any) -> None:
    page = open_page(link={"text": TEXT})
    assert_prices(page, trace(model, TEXT))
    assert_bars(page, expected_bars(trace(model, TEXT)))
    page.focus("#text")
    page.keyboard.type(" an")
    assert_prices(page, trace(model, TEXT + " an"))
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.keyboard.type("te")
    middle = len(TEXT) + 3 - 10
    text = (TEXT + " an")[:middle] + "te" + (TEXT + " an")[middle:]
    assert page.input_value("#text") == text
    text = text[16:]  # more than the window holds: it has moved on by half
    settle(page)
    np.testing.assert_allclose(prices(page)[-len(text) + 1 :], trace(model, text).nats[1:].numpy(), atol=2e-5)
    assert_bars(page, expected_bars(trace(model, text), len(text) - 1 - 10))


def test_unknown_characters_and_an_empty_text(open_page: Open, model: Any) -> None:
    page = open_page(link={"text": "the cat"})
    page.focus("#text")
    page.keyboard.insert_text("Zé\U0001f600 sat")
    settle(page)
    assert "doesn't know Z é \U0001f600" in page.inner_text("#text-warns")
    read = trace(model, "the cat sat")
    found, wanted = prices(page), read.nats.numpy()
    np.testing.assert_allclose(found[:7] + found[10:], wanted, atol=2e-5)
    assert all(map(math.isnan, found[7:10]))
    assert_bars(page, expected_bars(read))
    hover(page, 8)
    assert "doesn't know" in page.inner_text("#tip")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    settle(page)
    assert page.inner_text("#text-says") == "Type something."
    assert_bars(page, expected_bars(trace(model, "\n")))  # what stands before every text
    for panel in ("heads", "lens", "attribution", "patching"):
        page.evaluate(f"go({{ depth: 'researcher', panel: '{panel}' }})")
        settle(page)
    assert page.locator("#links span").count() == 0
    page.click("#step")
    eventually(page, "state.text.length", 1)


def hover(page: Any, i: int) -> None:
    box = page.locator(f".mirror span[data-i='{i}']").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


@pytest.mark.soak
def test_a_long_text_slides_and_a_huge_one_is_cut(open_page: Open, model: Any) -> None:
    text = make_text(100, seed=2)
    page = open_page(link={"text": text})
    start = math.ceil((len(text) - BLOCK) / (BLOCK // 2)) * (BLOCK // 2)
    kinds = page.eval_on_selector_all(".mirror span[data-i]", "them => them.map((it) => it.dataset.kind)")
    assert [kind.endswith("past") for kind in kinds] == [i < start for i in range(len(text))]
    assert "what is grey lies before its window" in page.inner_text("#text-warns")
    np.testing.assert_allclose(prices(page)[start + 1 :], trace(model, text[start:]).nats[1:].numpy(), atol=2e-5)
    # In the grey there is nothing to show; the cursor may stand there, and write on from there.
    page.evaluate("go({ at: 5 })")
    settle(page)
    assert "Nothing that the model sees" in page.inner_text("#expects-says")
    page.click("#step")
    eventually(page, "state.text.length", 101)
    assert page.evaluate("state.text").startswith(text[:5])
    huge = make_text(100_000, seed=3)
    page.evaluate(COPY, huge)
    page.focus("#text")
    page.keyboard.press("Control+A")
    page.keyboard.press("Control+V")
    eventually(page, "state.text", huge[:5000])
    settle(page)
    assert "The text is full: the page takes 5,000 characters." in page.inner_text("#text-warns")
    page.click("#write")  # there is no room
    eventually(page, "expects.writing", None)
    page.focus("#text")
    page.keyboard.press("Control+End")
    page.keyboard.press("Backspace")
    settle(page)
    start = math.ceil((4999 - BLOCK) / (BLOCK // 2)) * (BLOCK // 2)
    np.testing.assert_allclose(prices(page)[start + 1 :], trace(model, huge[start:4999]).nats[1:].numpy(), atol=2e-5)
    page = open_page(link={"text": huge[:6000]})
    assert page.evaluate("state.text") == huge[:5000]


# Puts a text on the clipboard as a user does.
COPY = """(text) => {
  const area = document.body.appendChild(document.createElement("textarea"));
  area.value = text;
  area.select();
  document.execCommand("copy");
  area.remove();
}"""


@pytest.mark.soak
def test_bytes_of_characters(open_page: Open, folder: Path, tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    small = pack(folder, tmp_path / "bytes.html", tokenizer, sharp=4, bytes=True, unit="byte", text="né\U0001f600!")
    page = open_page(tmp_path / "bytes.html")
    assert page.get_attribute("#badge", "class") == "good"
    nats = trace(small, "né\U0001f600!").nats.numpy()
    wanted = [math.nan, nats[1:3].sum(), nats[3:7].sum(), nats[7]]
    np.testing.assert_allclose(prices(page), wanted, atol=5e-5)
    page.focus("#text")
    page.keyboard.insert_text("\U0001f469\u200d\U0001f680 \ud800")
    settle(page)
    assert page.evaluate("state.text") == "né\U0001f600!\U0001f469\u200d\U0001f680 \ufffd"
    # Bytes are one by one drawn, each after those before it, until they are a character.
    page.evaluate("go({ text: 'ab' }); Math.random = () => 0.9")
    page.evaluate("""() => {
      const plain = backend.ask.bind(backend);
      globalThis.after = [];
      backend.ask = (method, asked, ...more) => {
        if (method === "write") after.push(Array.from(asked.ids));
        return plain(method, asked, ...more);
      };
    }""")
    page.click("#step")
    eventually(page, "expects.writing", None)
    settle(page)
    ids = list(b"ab")
    while len(ids) == 2 or (bytes(ids).decode("utf-8", "replace").endswith("\ufffd") and len(ids) < 6):
        read = observe(small.gpt, torch.tensor([ids]))
        likely = probabilities(read.logits[0, -1:], read.ids_BT, DRAWN)[0].cumsum(0)
        ids.append(int(torch.searchsorted(likely, 0.9 * likely[-1], right=True)))
    assert len(ids) > 3  # else this shows nothing
    assert page.evaluate("after") == [ids[:i] for i in range(2, len(ids))]
    assert page.evaluate("state.text").encode() == bytes(ids).decode("utf-8", "replace").encode()


@pytest.mark.soak
def test_pieces_of_words(open_page: Open, folder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = (
        library.normalizers.BertNormalizer(),
        library.pre_tokenizers.BertPreTokenizer(),
    )
    made.train_from_iterator(
        [make_text(3000) + " ." * 9, " ".join(map(str, range(100, 900)))],
        library.trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
        ),
    )
    tokenizer = BPETokenizer(made.to_str())
    assert len(tokenizer.vocabulary) > 200  # more than have a bar
    text = "The c\u00e1t,  sat"
    parting = {"bpe": explain.merging(tokenizer), "unit": "piece"}
    small = pack(folder, tmp_path / "pieces.html", tokenizer, sharp=4, text=text, **parting)
    page = open_page(tmp_path / "pieces.html")

    def check(text: str) -> None:
        settle(page)
        read = trace(small, text)
        found = {i: nats for i, nats in enumerate(prices(page)) if not math.isnan(nats)}
        np.testing.assert_allclose([*found.values()], read.nats.numpy()[1:], atol=5e-5)
        colours = page.eval_on_selector_all(".mirror span[data-i]", "them => them.map((it) => it.className)")
        for end in found:  # all of a piece has the colour of its price
            start = page.evaluate(f"view.tokens.firstOf[view.tokens.ends[{end}] - 1]")
            assert len(set(colours[start : end + 1])) == 1
        assert page.evaluate("view.tokens.ids") == read.ids_BT.tolist()
        wanted = expected_bars(read)
        likeliest = sorted(wanted, key=lambda label: -wanted[label][0])[:200]
        assert list(bars(page)) == likeliest

    assert page.get_attribute("#badge", "class") == "good"
    check(text)
    page.focus("#text")
    page.keyboard.type(" on the m")
    check(text + " on the m")
    hover(page, 1)  # in the middle of a piece
    assert "Nothing comes before it" in page.inner_text("#tip")
    hover(page, 5)
    assert page.inner_text("#tip").startswith("c\u00e1t cost")
    assert page.evaluate("tokenAt(view.tokens, 5)") == 1
    before = page.evaluate("state.text")
    page.click("#step")
    eventually(page, f"state.text.length > {len(before)} && expects.writing === null", True)
    written = page.evaluate("state.text")
    assert re.fullmatch(re.escape(before) + r" \S+ ", written)  # a whole word, however many pieces it has
    check(written)


def test_hovering_shows_prices_and_sources(open_page: Open, model: Any) -> None:
    page, read = open_page(link={"text": TEXT, "card": 3, "head": "1.0"}), trace(model, TEXT)
    hover(page, 9)
    settle(page)
    tip = page.inner_text("#tip").replace("\n", "")
    assert f"{shown(TEXT[9])} cost {read.bits[9]:.2f} bits. Expected:" in tip
    for label, probability in read.expected(8):
        percent = 100 * probability
        assert f"{shown(label)} {percent:.0f} %" in tip or f"{shown(label)} {percent:.1f} %" in tip
    assert "Head 0 of block 1" in page.inner_text("#heads-panel h3")

    def assert_sources(layer: int, head: int, t: int) -> None:
        # A colour is as strong as the root of the weight.
        strengths = page.eval_on_selector_all(
            "#links span",
            "them => them.map((it) => Number(/\\/ ([\\d.]+)\\)/.exec(it.style.backgroundColor)?.[1] ?? 0))",
        )
        row = 0.55 * read.pattern[layer, head, t].sqrt().numpy()
        np.testing.assert_allclose(strengths, row, atol=2e-3)
        assert page.eval_on_selector_all("#links span", "them => them.findIndex((it) => it.matches('.looking'))") == t

    assert_sources(1, 0, 9)
    page.mouse.move(5, 5)
    eventually(page, "document.getElementById('tip').hidden", True)
    assert_sources(1, 0, len(TEXT) - 1)
    page.locator("#links span").nth(4).hover()
    assert_sources(1, 0, 4)
    page.focus("#links")
    for key, t in (("Home", 0), ("ArrowRight", 1), ("End", len(TEXT) - 1), ("ArrowLeft", len(TEXT) - 2)):
        page.keyboard.press(key)
        assert_sources(1, 0, t)
    # On the map as well.
    box = page.locator("#map").bounding_box()
    cell = box["width"] / len(TEXT)
    page.mouse.move(box["x"] + 3.5 * cell, box["y"] + 12.5 * cell)
    assert f"{100 * float(read.pattern[1, 0, 12, 3]):.1f}"[:2] in page.inner_text("#tip")
    assert_sources(1, 0, 12)
    # From head to head, by mouse and by arrow keys.
    page.hover(".map:has-text('0.1')")
    eventually(page, "heads.name.textContent", "Head 1 of block 0")
    page.mouse.move(5, 5)
    page.focus(".map:has-text('0.1')")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none
    eventually(page, "heads.name.textContent", "Head 0 of block 1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    eventually(page, "state.head", "0.0")
    settle(page)
    assert_sources(0, 0, len(TEXT) - 1)


def test_what_the_text_costs_without_a_head(open_page: Open, model: Any) -> None:
    page = open_page(link={"text": TEXT, "panel": "heads", "off": "h1.1"})
    eventually(page, "heads.worth.size", 3)
    off = Intervention("head", 1, 1)
    plain, whole = trace(model, TEXT), trace(model, TEXT, [off])
    for name in ("0.0", "0.1", "1.0"):
        layer, head = map(int, name.split("."))
        without = trace(model, TEXT, [off, Intervention("head", layer, head)])
        bits = (without.loss - whole.loss) / math.log(2)
        assert page.evaluate(f"heads.worth.get('{name}')") == pytest.approx(without.loss - whole.loss, abs=1e-5)
        said = page.inner_text(f".cell:has-text('{name}') .worth").replace("\u2212", "-")
        assert float(said) == pytest.approx(bits, abs=0.0051)
    assert page.inner_text(".cell:has-text('1.1') .worth") == ""
    changed = (whole.loss - plain.loss) / math.log(2)
    assert f"{changed:+.2f} by your changes".replace("-", "\u2212") in page.inner_text("#text-says")


@pytest.mark.soak
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"temperature": 1.5, "top_k": 3}, {"top_p": 0.6}, {"min_p": 0.35, "temperature": 0.5}],
    ids=str,
)
def test_sliders_and_steps(open_page: Open, model: Any, settings: dict[str, Any]) -> None:
    page, text = open_page(link={"text": "the cat ", "card": 3}), "the cat "
    for name, value in settings.items():
        page.fill(f"#slider-{name}", f"{value:g}")
    sampling = Sampling(**{"temperature": 0.8} | settings)
    assert_bars(page, expected_bars(trace(model, text), sampling=sampling))
    for _ in range(4):
        before = expected_bars(trace(model, text), sampling=sampling)
        page.click("#step")
        eventually(page, "state.text.length", len(text) + 1)
        settle(page)
        text = page.evaluate("state.text")
        assert before[shown(text[-1])][1] > 0
        assert page.evaluate("state.at") == len(text)
    if sampling.temperature == 0:
        assert text == "the cat " + greedy(model, "the cat ", 4)


def greedy(model: Any, text: str, count: int) -> str:
    for _ in range(count):
        text += trace(model, text).expected(-1, 1)[0][0]
    return text[-count:]


def test_writing_goes_on_until_it_is_stopped(open_page: Open) -> None:
    page = open_page(link={"text": "the cat", "at": 3})
    for stop in ("click", "Escape"):
        length = page.evaluate("state.text.length")
        page.click("#write")
        until = time.monotonic() + 5
        while page.evaluate("state.text.length") < length + BLOCK and time.monotonic() < until:
            page.wait_for_timeout(20)
        assert page.inner_text("#write") == "Stop"
        page.keyboard.press("Escape") if stop == "Escape" else page.click("#write")
        settle(page)
        written = page.evaluate("state.text")
        assert len(written) >= length + BLOCK
        page.wait_for_timeout(100)
        assert page.evaluate("state.text") == written
        assert page.inner_text("#write") == "Write"
    assert written.startswith("the")
    assert written.endswith(" cat")  # it wrote where the cursor was


def test_switches(open_page: Open, model: Any) -> None:
    page, off = open_page(link={"text": TEXT, "panel": "heads"}), []
    parts = {
        "h0.1": Intervention("head", 0, 1),
        "f1": Intervention("feed_forward", 1),
        "a0": Intervention("attention", 0),
        "h1.0": Intervention("head", 1, 0),
    }
    for part, intervention in parts.items():
        off.append(intervention)
        page.click(f"[data-part='{part}']")
        assert page.get_attribute(f"[data-part='{part}']", "aria-checked") == "false"
        assert_prices(page, trace(model, TEXT, off))
        assert_bars(page, expected_bars(trace(model, TEXT, off)))
    page.click("[data-part='f1']")
    off.remove(parts["f1"])
    assert_prices(page, trace(model, TEXT, off))
    page.click("#all-on")
    assert_prices(page, trace(model, TEXT))
    assert page.locator("[aria-checked=false]").count() == 0


def test_lens_and_attribution(open_page: Open, model: Any) -> None:
    off = [Intervention("head", 0, 1)]
    page, read = open_page(link={"text": TEXT, "depth": "researcher", "panel": "lens", "off": "h0.1"}), None
    read = trace(model, TEXT, off)
    wanted = lens(read).softmax(-1)
    best = [[shown(read.tokenizer.label(int(i))) for i in row] for row in wanted.argmax(-1)]
    assert [row.split("\t")[1:] for row in texts(page, "#lens-panel tbody tr")] == best
    stages = numbers(page, "lens-panel")["stages"]
    np.testing.assert_allclose(
        [[it["probability"] for it in stage["expected"]] for stage in stages], wanted.amax(-1).numpy(), atol=1e-5
    )
    page.click("[data-panel=attribution]")
    settle(page)
    for chosen, against in (("s", "t"), ("\n", "e")):
        for name, label in (("chosen", chosen), ("against", against)):
            page.select_option(f"#{name}", str(model.tokenizer.vocabulary.index(label)))
        settle(page)
        found, parts = numbers(page, "attribution-panel"), attribute(read, -1, chosen, against)
        assert found["logit"] == pytest.approx(parts.logit, abs=1e-5)
        np.testing.assert_allclose(found["heads"], parts.heads.numpy(), atol=1e-5)
        np.testing.assert_allclose(found["sources"], parts.sources.numpy(), atol=1e-5)
        words = page.inner_text("#attribution-panel .says >> nth=0").replace("\u2212", "-")
        said = re.search(r"by (\S+):.* sum to (\S+)\.$", words)
        assert said
        assert float(said[1]) == float(said[2]) == pytest.approx(parts.logit, abs=1e-3)
    page.click(".parts button:has-text('head 1.0')")
    eventually(page, "[state.head, state.panel].join()", "1.0,heads")


@pytest.mark.soak
def test_patching(open_page: Open, model: Any) -> None:
    other = TEXT[:-2] + "ow"
    page = open_page(link={"text": TEXT, "depth": "researcher", "panel": "patching"})
    assert page.is_disabled("#grid")
    page.fill("#other", other[:-1])
    settle(page)
    assert f"this one has {len(TEXT)} tokens, the other {len(TEXT) - 1}" in page.inner_text("#patching-panel")
    page.fill("#other", other)
    settle(page)
    assert "They differ at 1 place." in page.inner_text("#patching-panel")
    page.click("#grid")
    eventually(page, "patching.found?.moved.flat().length", 3 * 2)
    found = numbers(page, "patching-panel")
    a, b = (model.tokenizer.vocabulary.index(found[name]) for name in ("from", "to"))

    def towards(read: Trace) -> float:
        return float(read.logits[-1, b] - read.logits[-1, a])

    def patched(layer: int, position: int) -> Trace:
        return trace(model, TEXT, [Intervention("residual", layer, positions=(position,), patch_from=other)])

    start, end = towards(trace(model, TEXT)), towards(trace(model, other))
    for layer, position in ((1, 26), (2, 27), (0, 26), (1, 27)):
        moved = (towards(patched(layer, position)) - start) / (end - start)
        assert found["moved"][2 - layer][position - 26] == pytest.approx(moved, abs=2e-3)
    page.click("[aria-label^='before block 1 at place 26:']")
    assert_prices(page, patched(1, 26))
    # Also where the cursor stands before the patch, and the text grows over the window, one can write.
    page.evaluate("go({ at: 2 })")
    page.click("#step")
    eventually(page, "state.text.length", len(TEXT) + 1)
    page.evaluate(f"go({{ text: {json.dumps(TEXT)}, at: {len(TEXT)}, patch: '1.27' }})")
    page.click("#write")
    page.wait_for_timeout(400)
    page.click("#write")
    page.click("text=Take the patch out")
    page.evaluate(f"go({{ text: {json.dumps(TEXT)}, at: {len(TEXT)} }})")
    assert_prices(page, trace(model, TEXT))


@pytest.mark.soak
def test_places_and_copied_passages(open_page: Open, folder: Path, tmp_path: Path) -> None:
    page = open_page(link={"depth": "researcher", "panel": "occurrences", "head": "1.1"})
    place = contents_of(folder / "page.html")["fires"]["1.1"][0]
    assert page.locator(".occurrences li").count() == 6
    page.focus(".occurrences button")
    page.keyboard.press("Enter")
    eventually(page, "state.text", place["before"] + place["token"] + place["after"])
    assert page.evaluate("[state.at, state.head, state.panel].join()") == f"{len(place['before']) + 1},1.1,heads"
    sample = {
        "text": "ab\U0001f600 the cat sat\non",
        "passages": [[2, 6], [5, 8], [9, 11]],
        "longest": 4,
        "held_out": [1, 3],
    }
    pack(folder, tmp_path / "copied.html", CharTokenizer("\nabcdefghijklmnopqrstuvwxyz "), samples=[sample])
    page = open_page(tmp_path / "copied.html", link={"depth": "researcher", "panel": "copied"})
    assert page.locator("#copied-panel mark").all_text_contents() == ["\U0001f600 th", "e ", "at"]
    assert page.text_content("#copied-panel blockquote") == sample["text"]
    assert "has 4 characters. In held-out text of that length it is 1 to 3." in page.inner_text("#copied-panel")


def test_the_film_and_its_badge(open_page: Open, folder: Path) -> None:
    page, steps = open_page(link={"text": TEXT, "card": 5, "step": 0}), explain_steps(folder)
    page.focus("#age")
    page.keyboard.press("Home")
    run = next((folder / "lightning_logs").glob("*/*"))
    for i, step in enumerate(steps):
        if i:
            page.keyboard.press("ArrowRight")
        eventually(page, "state.step", step)
        eventually(page, "document.getElementById('badge').className + prove.step", f"good{step}")
        assert f"after {step} steps" in page.inner_text("#time-says")
        assert page.get_attribute("#age", "aria-valuetext") == f"after {step} steps"
        if step in (0, 8):
            frame = next(it for it in minigpt.glassbox.film.film(run) if it.step == step)
            small = SimpleNamespace(gpt=explain.rounded(frame.gpt, "float16"), tokenizer=frame.tokenizer)
            assert_prices(page, trace(small, TEXT))


def explain_steps(folder: Path) -> list[int]:
    return [it["step"] for it in contents_of(folder / "page.html")["models"]]


@pytest.mark.parametrize("step", [24, 8])
def test_a_changed_weight_is_named(open_page: Open, folder: Path, tmp_path: Path, step: int) -> None:
    found, at = contents_of(folder / "page.html"), 0
    for name, shape in found["tensors"]:
        if name == "blocks.1.attention.projection.weight":
            break
        at += math.prod(shape)

    def corrupt(match: re.Match[str]) -> str:
        weights = np.frombuffer(base64.b64decode(match[2]), "<f2").copy()
        weights[at + 5] += 0.5
        return match[1] + base64.b64encode(weights.tobytes()).decode()

    text = (folder / "page.html").read_text(encoding="utf-8")
    text, count = re.subn(rf'(id="weights-{step}">)([^<]*)', corrupt, text)
    assert count == 1
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    page = open_page(tmp_path / "page.html")
    if step != found["main"]:
        assert page.get_attribute("#badge", "class") == "good"
        page.evaluate(f"go({{ step: {step} }})")
        eventually(page, "document.getElementById('badge').className", "bad")
    assert page.get_attribute("#badge", "class") == "bad"
    assert "differs from PyTorch, first in blocks.1.attention: by " in page.inner_text("#badge")


STATES: list[dict[str, Any]] = [
    {},
    {
        "text": "to a hat\n &#%+\u00e9\U0001f600<b>",
        "at": 3,
        "temperature": 0.35,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.05,
    },
    {"text": "", "card": 2},
    {
        "head": "1.1",
        "off": "h0.1,f1,a0,b1",
        "step": 8,
        "depth": "researcher",
        "panel": "attribution",
        "chosen": 3,
        "against": 5,
    },
    {"text": TEXT, "other": TEXT[:-2] + "ow", "patch": "1.26", "depth": "researcher", "panel": "patching"},
    {"depth": "projector", "panel": "time", "step": 0, "temperature": 0},
]


@pytest.mark.soak
@pytest.mark.parametrize("wanted", STATES, ids=lambda it: ",".join(it) or "first")
def test_a_link_opened_anew_shows_the_same(open_page: Open, wanted: dict[str, Any]) -> None:
    page = open_page(link=wanted)
    state = page.evaluate("state")
    for name, value in wanted.items():
        assert state[name] == (
            value.split(",") if name == "off" else str(value) if name in ("chosen", "against") else value
        )
    page.evaluate("go({})")
    page.wait_for_timeout(350)
    _, _, link = page.url.partition("#")
    assert parse_qs(link, keep_blank_values=True).keys() >= set(wanted) - {"at"}
    again = open_page(link=link)
    assert again.evaluate("state") == state
    np.testing.assert_array_equal(prices(again), prices(page))
    assert bars(again) == bars(page)
    until = time.monotonic() + 5
    while texts(again, "main") != texts(page, "main"):  # what the text costs without each head comes later
        assert time.monotonic() < until, (texts(again, "main"), texts(page, "main"))
        page.wait_for_timeout(50)


@pytest.mark.soak
def test_nonsense_in_a_link_is_ignored(open_page: Open) -> None:
    first = open_page().evaluate("state")
    nonsense = (
        "at=2.5&head=9.9&off=h9.9,x,,b7,h0&temperature=NaN&top_k=x&top_p=&min_p=-1&step=12345&depth=x&panel=__proto__"
    )
    nonsense += "&card=77&patch=9.1&constructor=1&__proto__=2&toString=3&%E0%A4%A=&=&chosen=999&against=<b>"
    page = open_page(link=nonsense)
    assert page.evaluate("state") == first | {"chosen": "999", "against": "<b>"}
    page.evaluate("go({ depth: 'researcher', panel: 'attribution' })")
    settle(page)
    assert page.evaluate("[attribution.chosen.value, attribution.against.value].join()") == ","
    page = open_page(link="at=-3&temperature=99&top_k=1e9&top_p=-1&min_p=2&text=a%0D%0Ab%0Dc")
    found = page.evaluate("state")
    assert (found["text"], found["at"]) == ("a\nb\nc", 5)
    assert [found[name] for name in ("temperature", "top_k", "top_p", "min_p")] == [2, 17, 0.01, 0.99]


@pytest.mark.soak
def test_the_guide_by_keyboard(open_page: Open, folder: Path) -> None:
    page, steps = open_page(link={"text": TEXT}), explain_steps(folder)
    first = page.evaluate("state")
    seen = []
    page.focus("#guide-panel .button:visible")
    for card in range(1, 6):
        settle(page)
        state = page.evaluate("state")
        assert state["card"] == card
        assert state["text"] == TEXT
        assert page.inner_text("#guide-panel h3").startswith(f"{card}. ")
        assert page.locator(".dots [aria-current=step]").get_attribute("aria-label").startswith(f"{card}: ")
        assert page.evaluate("document.activeElement.closest('.foot') !== null")  # the place is kept
        assert page.is_visible("#stack-panel") == (card > 2)
        assert page.is_visible("#time-panel") == (card == 5)
        seen.append(state)
        if card < 5:
            page.keyboard.press("Enter")
            eventually(page, "state.card", card + 1)
    assert seen[2]["head"]
    (off,) = seen[3]["off"]
    assert page.get_attribute(f"[data-part='{off}']", "aria-checked") == "true"  # card 5 switched it on again
    assert seen[4]["step"] == steps[len(steps) // 2]
    page.go_back()
    eventually(page, "state.card", 4)
    settle(page)
    assert page.get_attribute(f"[data-part='{off}']", "aria-checked") == "false"
    for _ in range(3):
        page.go_back()
    eventually(page, "state.card", 1)
    assert page.evaluate("state") == first
    page.click(".dots a >> nth=4")
    eventually(page, "state.card", 5)


# Tells an element from all others.
NAME_OF = """() => {
  globalThis.nameOf = (it) => {
    const around = it.parentNode, text = it.matches("textarea, select") ? "" : it.textContent.slice(0, 40);
    const place = around.matches("li") ? [...around.parentNode.children].indexOf(around) : "";
    const name = it.getAttribute("aria-label") ?? it.title;
    return [it.tagName, it.id, name, around.closest("[id]")?.id, text, place].join(" ");
  };
}"""
# What can have the focus and is seen.
FOCUSABLE = """() => [...document.querySelectorAll("a[href], button, textarea, input, select, summary, [tabindex]")]
  .filter((it) => !it.disabled && it.checkVisibility()).map(nameOf)"""
# What has the focus, and whether its outline, or for the text that around it, is seen and stands in the window.
FOCUSED = """() => {
  const it = document.activeElement;
  if (it === document.body) return null;
  const { outlineStyle, outlineWidth } = getComputedStyle(it.matches("textarea") ? it.closest(".editor") : it);
  const { top, left, right, bottom } = it.getBoundingClientRect();
  const inside = bottom > 0 && top < innerHeight && right > 0 && left < innerWidth;
  return [nameOf(it), inside && outlineStyle !== "none" && parseFloat(outlineWidth) >= 1];
}"""


@pytest.mark.soak
@pytest.mark.parametrize(
    "link",
    [
        {"card": 5},
        {"panel": "heads"},
        *(
            {"depth": "researcher", "panel": panel, "text": TEXT, "other": TEXT[:-1] + "r"}
            for panel in ("attribution", "patching", "occurrences")
        ),
        {"depth": "projector", "panel": "expects"},
    ],
    ids=lambda it: it.get("panel", "guide"),
)
def test_the_tab_key_reaches_everything(open_page: Open, link: dict[str, Any]) -> None:
    page = open_page(link=link)
    page.evaluate(NAME_OF)
    wanted, reached = page.evaluate(FOCUSABLE), list[str]()
    assert len(set(wanted)) == len(wanted)
    for _ in range(len(wanted) + 2):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found is None:
            break
        name, seen = found
        assert seen, f"{name} does not show that it has the focus"
        reached.append(name)
    assert reached == wanted  # in the order of reading, and out again


# What is written smaller than can be read from the back of a room.
SMALL = """() => [...document.querySelectorAll("#middle *, #expects-panel *, #text-panel *")]
  .filter((it) => it.checkVisibility() && it.getBoundingClientRect().width > 1)
  .filter((it) => [...it.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()))
  .filter((it) => parseFloat(getComputedStyle(it).fontSize) < 24).map((it) => it.outerHTML.slice(0, 90))"""


@pytest.mark.soak
def test_a_projector(open_page: Open) -> None:
    page = open_page(
        link={"depth": "projector", "panel": "expects", "text": TEXT}, viewport={"width": 1280, "height": 720}
    )
    panels = page.evaluate("OF_DEPTH.projector")
    for panel in [*panels[1:], panels[0]]:
        page.keyboard.press("ArrowRight")
        eventually(page, "current()", panel)
        settle(page)
        small = page.evaluate(SMALL)
        assert small == []
    page.keyboard.press("ArrowLeft")
    eventually(page, "current()", panels[-1])
    page.focus("#text")
    page.keyboard.press("ArrowLeft")  # moves the cursor
    eventually(page, "state.at", len(TEXT) - 1)
    assert page.evaluate("current()") == panels[-1]


SCREENS: list[dict[str, Any]] = [
    {"viewport": {"width": 1280, "height": 720}},
    {"viewport": {"width": 360, "height": 640}, "has_touch": True},
    {"viewport": {"width": 640, "height": 360}, "device_scale_factor": 2},  # 1280 x 720 at 200 %
]
LINKS: list[dict[str, Any]] = [
    *({"card": card} for card in range(1, 6)),
    {"panel": "heads"},
    *(
        {"depth": "researcher", "panel": panel}
        for panel in ("heads", "lens", "attribution", "patching", "occurrences", "copied", "guide")
    ),
    *({"depth": "projector", "panel": panel} for panel in ("expects", "heads", "lens", "time", "guide")),
]


def show(page: Any, link: dict[str, Any]) -> None:
    """Show a state in the same page."""
    page.evaluate("(link) => { location.hash = link }", urlencode({"text": TEXT, "other": TEXT[:-1] + "r"} | link))
    for name, value in link.items():
        eventually(page, f"state.{name}", value)
    settle(page)
    if link.get("panel") == "patching":
        page.click("#grid")
        eventually(page, "patching.found?.moved.flat().length", 3)


# Controls that can't be brought into the window, or that something covers.
LOST = """() => [...document.querySelectorAll("a[href], button, textarea, input, select, summary")].filter((it) => {
  if (!it.checkVisibility()) return false;
  it.scrollIntoView({ block: "center", inline: "center" });
  const { left, right, top, bottom, width, height } = it.getBoundingClientRect();
  const there = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
  const seen = it.contains(there) || there?.contains(it);
  return left < 0 || right > innerWidth || width < 10 || height < 10 || !seen;
}).map((it) => it.outerHTML.slice(0, 150))"""


@pytest.mark.soak
@pytest.mark.parametrize("screen", SCREENS, ids=lambda it: str(it["viewport"]["width"]))
def test_it_fits_the_screen(open_page: Open, screen: dict[str, Any]) -> None:
    page = open_page(**screen)
    width, height = screen["viewport"].values()
    for link in LINKS:
        show(page, link)
        wide, high = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert wide <= width, link
        if height == 720:
            assert high <= height, link
        lost = page.evaluate(LOST)
        assert lost == [], link


@pytest.mark.soak
def test_colours_and_motion_as_one_likes(open_page: Open) -> None:
    def seen(page: Any, selector: str, style: str) -> str:
        return page.eval_on_selector(selector, f"(it) => getComputedStyle(it).{style}")

    def luminance(page: Any) -> float:
        return sum(map(int, re.findall(r"\d+", seen(page, "body", "backgroundColor"))[:3]))

    light, dark = open_page(reduced_motion="reduce"), open_page(color_scheme="dark", reduced_motion="no-preference")
    assert luminance(light) > 600
    assert luminance(dark) < 150
    assert seen(light, ".bars i", "transitionDuration") == "0s"
    assert seen(dark, ".bars i", "transitionDuration") != "0s"
    forced = open_page(link={"text": "tteeaa"}, forced_colors="active")
    colours = {seen(forced, f".mirror span[data-i='{i}']", "backgroundColor") for i in range(6)}
    assert len(colours) > 1  # prices are still told by colour
    assert seen(forced, ".bars i.model", "backgroundColor") != seen(forced, "body", "backgroundColor")


# Axe leaves it open whether a text of one character has enough contrast; here all texts are such, and must.
AXE = """async (rules) => {
  const { violations, incomplete } = await axe.run(rules);
  const pale = incomplete.filter(({ id }) => id === "color-contrast");
  // Below the text area it finds no colour.
  const low = ({ any: [{ data }] }) => data.fgColor && data.contrastRatio < parseFloat(data.expectedContrastRatio);
  return [...violations, ...pale.map((it) => ({ ...it, nodes: it.nodes.filter(low) })).filter((it) => it.nodes.length)];
}"""
# The contrast of text is measured on a wide screen, light and dark; on a phone all else.
CONTRAST = {"rules": {"color-contrast": {"enabled": False}}}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("screen", "rules"),
    [({}, {}), ({"color_scheme": "dark"}, {"runOnly": ["color-contrast"]}), (SCREENS[1], CONTRAST)],
    ids=("light", "dark", "phone"),
)
def test_axe_finds_nothing(
    open_page: Open, folder: Path, tmp_path: Path, screen: dict[str, Any], rules: dict[str, Any]
) -> None:
    import axe_playwright_python

    # Attention and guesses as sharp as a trained model's, so that all shades are seen.
    pack(folder, tmp_path / "sharp.html", CharTokenizer("".join(contents_of(folder / "page.html")["labels"])), sharp=8)
    page, found = open_page(tmp_path / "sharp.html", **screen), {}
    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    for link in LINKS:
        show(page, link | {"at": 12})
        violations = page.evaluate(AXE, rules)
        for it in violations:
            found[it["id"], it["nodes"][0]["html"][:200]] = link, it["nodes"][0]["failureSummary"]
    assert found == {}


@pytest.mark.soak
def test_figures_and_numbers_can_be_taken_away(open_page: Open, model: Any) -> None:
    page, read = (
        open_page(link={"text": TEXT, "depth": "researcher", "panel": "heads", "head": "1.0"}),
        trace(model, TEXT),
    )
    for panel, words in {
        "text-panel": TEXT.split(),
        "heads-panel": ["Head", "0", "of", "block", "1"],
        "stack-panel": [],
        "expects-panel": ["What", "comes", "next?"],
        "time-panel": ["How", "it", "learned:"],
    }.items():
        drawing = ElementTree.fromstring(saved(page, panel, "SVG"))
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(drawing.get("width", 0)) > 100
        found = [it.text for it in drawing.iter("{http://www.w3.org/2000/svg}text")]
        assert "".join(words) in "".join(filter(None, found)), panel
    assert (
        len(list(ElementTree.fromstring(saved(page, "stack-panel", "SVG")).iter("{http://www.w3.org/2000/svg}image")))
        == 4
    )
    found = numbers(page, "text-panel")
    assert (found["model"], found["step"], found["text"]) == ("tiny/version_0", 24, TEXT)
    np.testing.assert_allclose(found["surprisal_nats"][1:], read.nats[1:].numpy(), atol=2e-5)
    expected = {it["token"]: it["probability"] for it in numbers(page, "expects-panel")["expected"]}
    np.testing.assert_allclose(
        [expected[label] for label, _ in read.expected(-1, 17)], [p for _, p in read.expected(-1, 17)], atol=1e-6
    )
    pattern = numbers(page, "heads-panel")["pattern"]
    assert [len(row) for row in pattern] == list(range(1, len(TEXT) + 1))
    np.testing.assert_allclose(pattern[-1], read.pattern[1, 0, -1].numpy(), atol=1e-6)
    page.click("[data-panel=attribution]")
    settle(page)
    drawn = list(
        ElementTree.fromstring(saved(page, "attribution-panel", "SVG")).iter("{http://www.w3.org/2000/svg}text")
    )
    assert all(float(it.get("x", -1)) >= 0 for it in drawn)


def test_hostile_text_is_text(open_page: Open, folder: Path, tmp_path: Path) -> None:
    image = "<img src=x onerror=\"document.title = 'pwned'\">"
    evil = f"{image}</script><script>document.title='pwned'</script>]]>-->\"'`&lt;\u202eabc\0\x01\ufffe\ud800"
    characters = "".join(dict.fromkeys("\n" + evil + "\u2028\u0301\x7f\x85\udfff"))
    sample = {"text": evil, "passages": [[0, 5]], "longest": 5, "held_out": []}
    place: dict[str, Any] = {
        "position": 5,
        "value": 1.0,
        "before": image,
        "token": "\u202e",
        "after": "\0\ud800</code>",
    }
    place |= {"source": 3, "distance": 2, "weight": 0.5}
    hostile: dict[str, Any] = {
        "name": evil,
        "checkpoint": evil,
        "text": evil,
        "text_from": evil,
        "embeds": [evil],
        "missing": [evil],
    }
    hostile |= {"samples": [sample], "fires": {f"{i}.{j}": [place] for i in range(2) for j in range(2)}}
    labels = [image, "</textarea>", *characters[2:]]  # longer than labels are
    for name, changes in ("characters", {}), ("labels", {"labels": labels}):
        pack(folder, tmp_path / f"{name}.html", CharTokenizer(characters), **hostile | changes)
        page = open_page(tmp_path / f"{name}.html")
        assert page.get_attribute("#badge", "class") == "good"
        assert page.title().startswith("<img src=x onerror=")
        assert page.inner_text("h1").startswith("<img src=x")
        if not changes:
            assert page.input_value("#text") == evil.replace("\ud800", "\ufffd")
        for link in [*LINKS, {"depth": "researcher", "panel": "attribution", "chosen": "0", "against": "1"}]:
            page.evaluate("(link) => go(link)", link)
            settle(page)
        page.evaluate("go({ depth: 'researcher', panel: 'copied' })")
        page.click("#step")
        eventually(page, "expects.writing", None)
        settle(page)
        for panel in ("text-panel", "copied-panel", "expects-panel"):
            ElementTree.fromstring(saved(page, panel, "SVG"))
            numbers(page, panel)
        assert page.locator("img, object, iframe, script:not([id]):not(:last-of-type)").count() == 0
        assert page.title().startswith("<img src=x onerror=")
