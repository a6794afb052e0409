"""The page parts a text into pieces of words exactly as the library ``tokenizers`` does, for imported models."""

import dataclasses
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT, assert_clear_error, run_minigpt
from minigpt.glassbox import explain
from minigpt.text.tokenizer import BPETokenizer
from test_explain import Page
from test_formats import imported, write_release

library = pytest.importorskip("tokenizers")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="the page's scripts are tried in Node.js")
# The parts of a page that part a text, as far as they need no browser.
DRIVER = """
const fs = require("fs"), { held, texts } = JSON.parse(fs.readFileSync(0, "utf8"));
globalThis.document = { getElementById: () => ({ textContent: JSON.stringify(held) }) };
const script = process.argv.slice(1).map((path) => fs.readFileSync(path, "utf8")).join("");
const tokens = new Function(`"use strict"; ${script.replaceAll("typeof module", "typeof nothing")}; return tokensOf`)();
console.log(JSON.stringify(texts.map(tokens).map((it) => ({ ...it, unknown: [...it.unknown] }))));
"""
PARTS = (
    *(
        "the cat sat on a mat",
        "Rat",
        "OLD",
        "e\u0301",
        "\u00e9\u00c9",
        "\u1eaf\u0345",
        "a\u0315\u0300",
        "\u0301",
        "123 4.5",
    ),
    *(
        "\n",
        "\r\n",
        "\t",
        "  ",
        "\u00a0",
        "\u3000",
        ".",
        "!?",
        "'s",
        "\u2019",
        "\u00ab",
        "a-b_c",
        "$+<=>^`|~",
        "\u00bf",
    ),
    *(
        "\U0001f600",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f",
        "\u4e2d\u6587",
        "\u304b\u3099",
        "\uac01",
    ),
    *(
        "\uf900",
        "\x00",
        "\x07\x85",
        "\u200b",
        "\ufeff",
        "\ufffd",
        "\ue000",
        "\u0130I\u0131",
        "\u00df\u03a3\u03c2",
        "\ufb01",
    ),
    # Marks that change places; what Unicode got after the library did, or took for something else then.
    *("\u0915\u094d\u0937\u093f", "\u1b44\u302e", "\u302e\u1b44", "\u061d", "\U000111c9", "\u1734", "\u166d", "\u1acf"),
    *("<unk>", "<", "</w>", "a</w>", "<pad>x", "\u02bc", "\U0001d165\u0323"),
)


def trained_pieces(unknown: str | None = "<unk>", **added: Any) -> BPETokenizer:
    """A byte-pair encoding like GPT-1's, trained on texts like those it is tried on."""
    made = library.Tokenizer(library.models.BPE(unk_token=unknown, end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = (
        library.normalizers.BertNormalizer(),
        library.pre_tokenizers.BertPreTokenizer(),
    )
    trainer = library.trainers.BpeTrainer(
        vocab_size=250,
        special_tokens=[unknown] if unknown else [],
        end_of_word_suffix="</w>",
        show_progress=False,
        limit_alphabet=70,  # so that some are unknown
    )
    made.train_from_iterator(fuzzed(100, 1), trainer)
    return BPETokenizer(made.to_str())


def fuzzed(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PARTS, k=rng.randrange(25))) for _ in range(count)]


def parted(tokenizer: BPETokenizer, texts: list[str]) -> list[dict[str, Any]]:
    """What the page makes of texts."""
    held = {"bpe": explain.merging(tokenizer), "labels": tokenizer.vocabulary, "unknown": tokenizer.unknown}
    scripts = [ROOT / "minigpt" / "glassbox" / "page" / name for name in ("pieces.js", "state.js")]
    done = subprocess.run(
        ["node", "-e", DRIVER, *map(str, scripts)],
        input=json.dumps({"held": held | {"text": "", "bytes": False}, "texts": texts}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@needs_node
def test_the_page_reads_the_pieces_that_the_library_reads() -> None:
    tokenizer = trained_pieces()
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = ["", *fuzzed(600, 2), *("a".join(every[i : i + 400]) for i in range(0, 0x20000, 400)), "ab" * 2000]
    for text, found in zip(texts, parted(tokenizer, texts), strict=True):
        assert found["ids"] == tokenizer.encode(text).tolist(), ascii(text)
        assert "".join(found["characters"]) == text
        assert not found["unknown"]
        places = found["characterOf"]
        assert places == sorted(places)
        assert all(first <= last for first, last in zip(found["firstOf"], places, strict=True))
        assert found["ends"] == np.searchsorted(places, range(len(text)), "right").tolist()


@needs_node
def test_where_nothing_stands_for_what_is_unknown_it_is_named() -> None:
    tokenizer = trained_pieces(unknown=None)
    (found,) = parted(tokenizer, ["the \u00e9 \U0001f9ff\x07 cat"])
    assert found["unknown"] == ["\U0001f9ff", "\x07"]
    assert found["ids"] == tokenizer.encode("the \u00e9  cat").tolist()


def source(**changes: Any) -> str:
    return json.dumps(json.loads(trained_pieces().source) | changes)


@needs_node
def test_pieces_that_are_found_as_they_stand() -> None:
    file = json.loads(trained_pieces().source)
    one = {**file["added_tokens"][0], "normalized": False}
    size = len(file["model"]["vocab"])
    added = [one, {**one, "id": size, "content": "<pad>"}, {**one, "id": size + 1, "content": "<pad>x"}]
    tokenizer = BPETokenizer(source(added_tokens=added))
    texts = fuzzed(200, 3)
    assert any("<pad>x" in text for text in texts)
    for text, found in zip(texts, parted(tokenizer, texts), strict=True):
        assert found["ids"] == tokenizer.encode(text).tolist(), ascii(text)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"normalizer": None}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer"),
        ({"model": {"end_of_word_suffix": None}}, "end_of_word_suffix"),
        ({"model": {"fuse_unk": True}}, "fuse_unk"),
    ],
)
def test_another_tokenizer_is_refused_by_what_differs(
    changes: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_release()
    _, tokenizer = imported("gpt1", "gpt1.ckpt")
    file = json.loads(tokenizer.source)
    file |= changes | ({"model": file["model"] | changes["model"]} if "model" in changes else {})
    assert run_minigpt("export", "--ckpt_path", "gpt1.ckpt", "--output_dir", "hf").code == 0
    Path("hf/tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    imported("hf", "other.ckpt")
    done = run_minigpt("explain", "--ckpt_path", "other.ckpt")
    assert_clear_error(done, f"differs from GPT-1's in {named},", "there is trace")
    assert not Path("page.html").exists()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For a model as small as this, two threads on a busy machine wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_node
def test_a_model_of_pieces_has_a_page(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explain, "WRITTEN", 60)
    write_release()
    gpt, tokenizer = imported("gpt1", "gpt1.ckpt")
    done = run_minigpt("explain", "--ckpt_path", "gpt1.ckpt")
    assert done.code == 0, done.err
    assert "--corpus" not in done.err  # there is none that would help
    page = Page(Path("page.html"))
    held = page.contents
    assert (held["unit"], held["labels"]) == ("piece", list(tokenizer.vocabulary))
    assert held["config"] == dataclasses.asdict(gpt.config)
    assert any("nothing is measured" in sentence for sentence in held["missing"])
    assert f"each of the {len(held['labels'])} pieces" in " ".join(held["embeds"])
    assert held["text_from"] == "Written by the model itself."
    ids = tokenizer.encode(held["text"]).tolist()
    assert 0 < len(ids) <= gpt.config.block_size
    assert held["models"][0]["probe"]["ids"] == ids
    assert parted(tokenizer, [held["text"]])[0]["ids"] == ids
    np.testing.assert_allclose(
        page.gpt(held["main"]).token_embedding.weight.detach(),
        gpt.token_embedding.weight.detach(),
        rtol=1e-3,
        atol=1e-4,
    )
