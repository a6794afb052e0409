"""Where in a text a part of a model is strongest, and where the model loses much or little."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import minigpt
from conftest import make_text, run_minigpt
from minigpt.errors import UserError
from minigpt.glassbox.trace import observe
from minigpt.glassbox.validation import CLASSES, PASSAGE, Split, by_class, by_position, losses, passages
from minigpt.glassbox.where import NEAR, Place, strongest
from minigpt.model import GPT, GPTConfig
from minigpt.text.tokenizer import ByteTokenizer, CharTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz \n"


def make_model(tokenizer: CharTokenizer | None = None, **changes: Any) -> Any:
    """A small model with weights at random."""
    tokenizer = tokenizer or CharTokenizer(LETTERS)
    shape = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 32, "norm": "pre", **changes}
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=len(tokenizer.vocabulary), **shape)).eval()
    for parameter in gpt.parameters():
        parameter.data.normal_(0, 0.3)
    return SimpleNamespace(gpt=gpt, tokenizer=tokenizer)


def plant(model: Any, token: int) -> None:
    """Let neuron 5 of block 1 fire on one token, more weakly on that before it, and on no other."""
    gpt = model.gpt
    for parameter in gpt.parameters():
        parameter.data.zero_()
    gpt.token_embedding.weight.data[token, 0] = 1
    gpt.token_embedding.weight.data[token - 1, 0] = 0.3
    gpt.token_embedding.weight.data[:, 1] = 0.1
    gpt.blocks[1].norm_2.weight.data.fill_(1)
    gpt.blocks[1].feed_forward.expand.weight.data[5, 0] = 1
    gpt.blocks[1].feed_forward.expand.bias.data[5] = -2


def random_text(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice([*LETTERS[:24], *LETTERS[26:]], length))


def test_a_planted_neuron_is_found_at_all_its_places_and_nowhere_else() -> None:
    model, text = make_model(), [*random_text(1000)]
    plant(model, LETTERS.index("z"))
    planted = [0, 11, 12 + NEAR, 100, 107, 300, 501, 999]
    for place in planted:
        text[place] = "z"
    text[103] = text[700] = "y"  # the one is too near to a stronger place
    read = "".join(text)
    found = strongest(model, model.tokenizer.encode(read), layer=1, neuron=5)
    assert sorted(place.position for place in found[:-1]) == planted
    assert found[-1].position == 700
    for hit in found[:-1]:
        at = hit.position
        assert (hit.token, hit.source) == ("z", None)
        assert hit.before == read[max(0, at - 40) : at]
        assert hit.after == read[at + 1 : at + 21]
    assert strongest(model, model.tokenizer.encode(read), 1, neuron=5, count=3) == found[:3]
    assert strongest(model, model.tokenizer.encode(read), 1, neuron=4) == []
    # The same passage again and again is one place.
    again = model.tokenizer.encode(("a" * 30 + "z" + "b" * 30) * 20)
    assert len(strongest(model, again, 1, neuron=5)) == 1


def test_a_head_is_as_strong_as_what_it_writes_with_half_a_window_before_it() -> None:
    model, T = make_model(), 12
    ids = model.tokenizer.encode(random_text(203))
    found = strongest(model, ids, layer=1, head=1, count=10)
    assert found == strongest(model, ids, layer=1, head=1, count=10)
    assert found == sorted(found, key=lambda place: -place.value)
    windows = torch.from_numpy(ids.astype("int64")[np.minimum(6 * np.arange(33)[:, None] + np.arange(T), 202)])
    seen = observe(model.gpt, windows)
    norms, patterns = seen.head_output[1, :, 1].norm(dim=-1), seen.pattern[1, :, 1]
    where = [(row := max(0, math.ceil((at - T + 1) / 6)), at - 6 * row) for at in range(len(ids))]
    assert found[0].value == pytest.approx(max(float(norms[it]) for it in where), rel=1e-4)
    for place in found:
        row, t = where[place.position]
        assert place.value == pytest.approx(float(norms[row, t]), rel=1e-4)
        weight, source = patterns[row, t].max(-1)
        assert place.weight == pytest.approx(float(weight), rel=1e-4)
        assert place.distance == t - int(source)
        assert place.source == model.tokenizer.label(int(ids[place.position - place.distance]))
    gaps = np.diff(sorted(place.position for place in found))
    assert gaps.min() > NEAR


def test_texts_of_any_length_can_be_searched_and_a_limit_is_kept() -> None:
    model = make_model()
    for length in (1, 2, 11, 12, 13, 18, 19):
        ids = model.tokenizer.encode(random_text(length))
        assert 1 <= len(strongest(model, ids, 0, head=0)) <= 1 + length // NEAR
    single = make_model(block_size=1)
    assert strongest(single, ids, 0, head=0)[0].distance == 0
    long = model.tokenizer.encode(random_text(5000))
    some = strongest(model, long, 0, head=0, most=48)
    assert some == strongest(model, long, 0, head=0, most=48)
    assert {place.position // 1000 for place in some} >= {0, 4}  # all over it
    for wrong in ({}, {"head": 0, "neuron": 0}, {"head": 2}, {"neuron": 128}, {"head": 0, "count": 0}):
        with pytest.raises(UserError):
            strongest(model, long, 0, **wrong)
    with pytest.raises(UserError, match="layer is 2"):
        strongest(model, long, 2, head=0)
    with pytest.raises(UserError, match="empty"):
        strongest(model, long[:0], 0, head=0)


def test_a_place_is_a_line_in_which_white_space_is_seen() -> None:
    model = make_model(ByteTokenizer())
    plant(model, 0x0A)
    ids = model.tokenizer.encode(
        "Where was\u00e4re it? \tThere, my good old lord and master!\nAnd you are here, too, I see."
    )
    place, *_ = strongest(model, ids, 1, neuron=5)
    assert "lord\u00b7and\u00b7master![\u21b5]And\u00b7you" in str(place)
    wide = Place(10**7, 1234.5, "\t" * 40, "\\xff", "\n" * 20)
    assert "\u2192[\\xff]\u21b5" in str(wide)
    assert max(map(len, (str(wide), str(dataclasses.replace(wide, source="\\x0a", distance=511, weight=1.0))))) <= 80


@pytest.fixture(params=["char", "byte"])
def run(request: pytest.FixtureRequest, workplace: Path) -> str:
    text = make_text(3000) + "\u00c4rger, 12 Tage!\n" * 20 + make_text(3000)
    Path("text.txt").write_text(text, encoding="utf-8", newline="")
    args = ("--data.tokenizer", request.param, "--data.val_fraction", 0.6, "--data.test_fraction", 0.05)
    assert run_minigpt("fit", "--config", "tiny.yaml", "--trainer.max_steps", 8, *args).code == 0
    return str(request.param)


def test_the_losses_add_up_to_those_of_the_command_line(run: str) -> None:
    model = minigpt.load("last")
    splits: list[tuple[Split, str]] = [("val", "validate"), ("test", "test")]
    for split, command in splits:
        found = losses("last", split)
        assert found.complete
        total, read = np.nansum(found.nats), np.isfinite(found.nats).sum()
        exact = ("--trainer.precision", "32-true", "--fast", "false")
        told = run_minigpt(command, "--ckpt_path", "last", *exact)
        loss = float(re.search(rf"{split}/loss\D+([\d.]+)", told.out)[1])  # type: ignore[index]
        assert total / read == pytest.approx(loss, abs=1e-6)
        # A trace has the same losses: here of a window with the token before it.
        before = found.corpus.ids()[found.starts - 1][:, None]
        seen = observe(model.gpt, torch.from_numpy(np.hstack((before, found.targets))[:, :-1].astype("int64")))
        next_ids = torch.from_numpy(found.targets.astype("int64")).unsqueeze(-1)
        traced = -seen.log_probabilities.gather(-1, next_ids).squeeze(-1).double().numpy()
        assert traced[np.isfinite(found.nats)].sum() / math.log(2) / read == pytest.approx(loss / math.log(2), abs=1e-6)

        positions = by_position(found)
        assert positions.counts.sum() == read
        assert (positions.nats * positions.counts).sum() == pytest.approx(total)
        classes = by_class(found)
        assert classes.keys() <= set(CLASSES)
        assert sum(loss.share for loss in classes.values()) == pytest.approx(1)
        assert sum(loss.nats * loss.number for loss in classes.values()) == pytest.approx(total)
    text = Path("text.txt").read_text(encoding="utf-8")
    found = losses("last")
    part = found.tokenizer.decode(found.corpus.ids(found.places)[:])
    assert by_class(found)["digits"].number == sum(c.isdigit() for c in part) > 0
    hard, easy = passages(found, 1000), passages(found, 5, easiest=True)
    assert [p.bits for p in hard] == sorted((p.bits for p in hard), reverse=True)
    assert [p.place for p in easy] == [p.place for p in hard[:-6:-1]]
    assert np.diff(sorted(p.place for p in hard)).min() >= len(hard[0].ids)
    assert len(hard[0].ids) <= PASSAGE
    strong = strongest(model, found.data, 1, head=0)
    assert all(place.position in found.places for place in strong)
    if run == "char":
        for passage in hard:
            assert text[passage.place :].startswith(passage.text)
        for place in strong:
            assert text[place.position :].startswith(place.token + place.after)
