"""The live page in a real browser: whatever is done to it, its numbers are Python's, and everybody can use it."""

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
from conftest import TINY, make_text, run_minigpt
from minigpt.generation import probabilities
from minigpt.glassbox import explain
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Trace, trace
from minigpt.model import GPT, GPTConfig
from minigpt.run import find_checkpoint
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import ByteTokenizer, CharTokenizer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BLOCK = 32
TEXT = "the cat sat on a mat and saw"  # fits the window

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
    rows = page.eval_on_selector_all(
        ".bars li",
        "rows => rows.map((it) => [it.firstChild.textContent, ...[...it.querySelectorAll('i')].map((i) => i.style.width)])",
    )
    return {label: (float(model[:-1]), float(drawn[:-1])) for label, model, drawn in rows}


def expected_bars(read: Trace, t: int = -1, sampling: Sampling = Sampling()) -> dict[str, tuple[float, float]]:
    """What :func:`bars` should be after position t."""
    logits_1V, window = read.logits[t].unsqueeze(0), read.ids_BT[None]
    plain, drawn = (probabilities(logits_1V, window, it)[0].numpy() for it in (Sampling(temperature=1), sampling))
    most = max(plain.max(), drawn.max()) / 100
    labels = [shown(read.tokenizer.label(i)) for i in range(len(plain))]
    return {label: (p / most, d / most) for label, p, d in zip(labels, plain, drawn, strict=True)}


def shown(label: str) -> str:
    return {" ": "·", "\n": "↵", "\\x0a": "↵"}.get(label, label)


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


def pack(folder: Path, path: Path, tokenizer: CharTokenizer, **changes: Any) -> Any:
    """A page on a small model with another vocabulary; gives the model."""
    size = len(tokenizer.vocabulary)
    torch.manual_seed(1)
    gpt = explain.rounded(GPT(GPTConfig(size, BLOCK, 2, 2, 16)).eval(), "float16")
    found = contents_of(folder / "page.html")
    found |= {
        "labels": [tokenizer.label(i) for i in range(size)],
        "unknown": tokenizer.unknown,
        "start": tokenizer.vocabulary.index(tokenizer.start),
        "config": found["config"] | {"vocab_size": size},
        "tensors": [[name, list(weight.shape)] for name, weight in gpt.state_dict().items()],
        "models": [{"step": found["main"], "probe": explain.probe(gpt, np.arange(8) % size)}],
    }
    path.write_bytes(explain.pack(explain.plain(found | changes), {found["main"]: explain.as_bytes(gpt, "float16")}))
    return SimpleNamespace(gpt=gpt, tokenizer=tokenizer)


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
