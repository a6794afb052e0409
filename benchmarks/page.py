"""How fast the live page is in Chromium: medians, in milliseconds, of a page that ``explain`` wrote.

    python benchmarks/page.py page.html

From a key that is pressed to the frame of the screen that shows its colours and bars, and so for a switch and for a
frame of the film. Frames come 60 times a second, so up to 17 ms of each time is waiting for the next.
"""

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

# Does something, and tells how long it takes until its result is painted.
UNTIL_PAINTED = """
async (action) => {
  const draw = expects.draw;
  const seen = new Promise((resolve) => {
    expects.draw = function () {
      draw.call(this);
      if (update.key !== JSON.stringify(view.base)) return;
      requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
    };
  });
  const started = performance.now();
  eval(action);
  const ended = await seen;
  expects.draw = draw;
  await new Promise((resolve) => setTimeout(resolve, 150)); // what follows the first paint
  return ended - started;
}
"""
WRITE = """
async (count) => {
  const ids = view.ids.slice(0, view.base.ids.length - count), draws = Array.from({ length: count }, Math.random);
  const settings = { temperature: 1, top_k: null, top_p: null, min_p: null, never: null };
  await ask("write", { ...view.base, ids, ...settings, count: 1, draws: [0.5] });
  const started = performance.now();
  await ask("write", { ...view.base, ids, ...settings, count, draws });
  return (performance.now() - started) / count;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="what explain wrote")
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        # Its own policy lets nobody evaluate a text, as the actions below are.
        page = browser.new_page(viewport={"width": 1280, "height": 720}, bypass_csp=True)
        page.goto(arguments.page.resolve().as_uri())
        page.wait_for_function("view.read !== null")
        opened = page.evaluate("performance.now()")
        page.wait_for_selector("#badge.good, #badge.bad")
        print(f"{browser.browser_type.name} {browser.version}, {page.evaluate('contents.parameters'):,} parameters")
        print(f"{'open, until the first colours':45} {opened:7.1f}")
        measure(page, arguments.repeats)
        browser.close()


def measure(page: Page, repeats: int) -> None:
    """Print the medians of everything that a reader waits for."""
    size = page.evaluate("contents.config.block_size")
    page.evaluate(
        """async (size) => {
      const text = Array.from({ length: size }, (_, i) => contents.labels[view.ids[i % view.ids.length]]).join("");
      await go({ text, at: size });
      document.getElementById("text").focus();
    }""",
        size,
    )
    type_one = 'document.execCommand("insertText", false, contents.labels[view.ids[{i} % 7]])'
    put = 'await go({{ text: Array.from(state.text).slice(0, {length}).join(""), at: {at} }})'
    waited = lambda action: page.evaluate(UNTIL_PAINTED, action)  # noqa: E731

    def prepared(length: int, at: int, action: str) -> float:
        page.evaluate(f"async () => {{ {put.format(length=length, at=at)}; document.getElementById('text').focus(); }}")
        page.wait_for_timeout(60)
        value: float = waited(action)
        return value

    last = size - 1
    report(
        "a key at the end of the text", lambda i: prepared(last - i % 20, last - i % 20, type_one.format(i=i)), repeats
    )
    report("a key at the start of a full window", lambda i: prepared(last, 2, type_one.format(i=i)), repeats)
    report("a key in the middle of a full window", lambda i: prepared(last, size // 2, type_one.format(i=i)), repeats)
    # Each time another set, for what was computed a moment ago is kept.
    some = [f"h{i}.{j}" for i in range(page.evaluate("contents.config.n_layer")) for j in range(2)]
    report(
        "a switch of a head", lambda i: waited(f"go({{ off: {[some[i % len(some)], some[i // len(some)]]} }})"), repeats
    )
    page.evaluate("go({ off: [] })")
    if page.evaluate("contents.models.length") > 1:
        frames = page.evaluate("contents.models.map(({ step }) => step)")
        first = frames[:-1]
        report("a frame of the film, the first time", lambda i: waited(f"go({{ step: {first[i]} }})"), len(first) - 1)
        # As it is dragged to and fro, with another text each time.
        label = "contents.labels[view.ids[{} % view.ids.length]]"
        other = "text: {} + state.text.slice(1), at: 1"
        report(
            "a frame of the film",
            lambda i: waited(f"go({{ step: {frames[i % len(frames)]}, {other.format(label.format(i))} }})"),
            repeats,
        )
        page.evaluate("go({ step: contents.main })")
    page.wait_for_timeout(300)
    report("one more character while writing", lambda _: page.evaluate(WRITE, min(50, size // 2)), repeats)


def report(what: str, run: Any, repeats: int) -> None:
    run(0)
    times = [run(i) for i in range(1, repeats + 1)]
    print(f"{what:45} {statistics.median(times):7.1f}   ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
