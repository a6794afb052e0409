"""Make the pictures of the documents from the page of a really trained model.

python -m minigpt fit --config configs/quickstart.yaml
python -m minigpt explain --ckpt_path best --output page.html
python docs/screenshots.py page.html
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = {
    "page": "#depth=researcher&panel=heads&head=0.2",
    "first-card": "",
    "without-a-head": "#card=4&head=0.2&off=h0.2",
}


def main(page: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, state in PICTURES.items():
            tab = browser.new_page(viewport={"width": 1280, "height": 720})
            tab.goto(page.resolve().as_uri() + state)
            tab.wait_for_selector("#badge.good")
            tab.wait_for_timeout(3000)  # until the losses without each head are there
            tab.screenshot(path=Path(__file__).parent / "images" / f"{name}.png")
            tab.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
