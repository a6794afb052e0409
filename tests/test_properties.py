"""What holds for every input, tried on many: ids, splits, windows, probabilities, the learning rate."""

import itertools
import math
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from minigpt.generation import draw, uniform
from minigpt.generation import probabilities as probabilities_of
from minigpt.optim import Schedule, learning_rate_factor
from minigpt.sampling import Sampling
from minigpt.text.corpus import DataSettings
from minigpt.text.tokenizer import SHOWN, UNKNOWN, ByteTokenizer, CharTokenizer
from minigpt.text.windows import IGNORED, ScoringBatches, TrainingBatches
from minigpt.training.data import TrainingLoader

# The same examples each time, so that a test never fails by chance alone.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("repeatable")

ANY_CHARACTER = st.characters(exclude_categories=())  # surrogates too, which stand alone in damaged texts
TEXT = st.text(ANY_CHARACTER, max_size=60)
SEED = st.integers(0, 2**32 - 1)
BYTES = ByteTokenizer()


def cut(items: list[int], places: list[int]) -> list[list[int]]:
    """The pieces of ``items`` between ``places``, some perhaps empty."""
    ends = [0, *sorted(place % (len(items) + 1) for place in places), len(items)]
    return [items[start:stop] for start, stop in itertools.pairwise(ends)]


def vocabularies() -> st.SearchStrategy[str]:
    """Vocabularies of 1 to some 300 characters, so that ids of one byte and of two occur."""
    runs = st.builds(lambda first, n: {chr(first + i) for i in range(n)}, st.integers(0, 0x10FE00), st.integers(1, 300))
    return st.builds(lambda run, more: "".join(sorted((run | {"a", *more}) - {UNKNOWN})), runs, TEXT)


# Tokenizers


@given(vocabularies(), st.data())
def test_a_text_in_the_vocabulary_survives_encoding_and_decoding(vocabulary: str, data: st.DataObject) -> None:
    text = data.draw(st.text(st.sampled_from(vocabulary), max_size=60))
    tokenizer = CharTokenizer(vocabulary)
    ids = tokenizer.encode(text)
    assert ids.dtype == tokenizer.dtype == (np.uint8 if len(vocabulary) <= 256 else np.uint16)
    assert [vocabulary[i] for i in ids] == list(text)
    assert tokenizer.decode(ids) == text
    assert "".join(map(tokenizer.label, ids.tolist())) == text
    assert sum(tokenizer.byte_counts()[i] for i in ids) == len(text.encode("utf-8", "surrogatepass"))


@given(vocabularies(), TEXT)
def test_every_character_that_the_vocabulary_lacks_becomes_the_unknown_symbol(vocabulary: str, text: str) -> None:
    vocabulary = "".join(sorted({*vocabulary, UNKNOWN}))
    tokenizer = CharTokenizer(vocabulary)
    expected = "".join(character if character in vocabulary else SHOWN for character in text.replace(UNKNOWN, SHOWN))
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@given(vocabularies(), TEXT)
def test_without_an_unknown_symbol_each_lacking_character_is_named(vocabulary: str, text: str) -> None:
    lacking = sorted(set(text) - set(vocabulary))
    assume(lacking)
    with pytest.raises(ValueError, match="not among the") as error:
        CharTokenizer(vocabulary).encode(text)
    assert all(f"U+{ord(character):04X}" in str(error.value) for character in lacking[:10])
    assert str(error.value).count("(U+") == min(10, len(lacking))


@given(st.text(max_size=60))
def test_a_text_survives_as_bytes(text: str) -> None:
    ids = BYTES.encode(text)
    assert bytes(ids) == text.encode()
    assert BYTES.decode(ids) == text
    assert sum(BYTES.character_counts()[i] for i in ids) == len(text)


@given(st.one_of(st.binary(max_size=40), TEXT.map(lambda t: t.encode("utf-8", "surrogatepass"))), st.lists(SEED))
def test_bytes_in_pieces_make_the_text_that_they_make_together(raw: bytes, places: list[int]) -> None:
    *pieces, last = cut(list(raw), places)
    decode = BYTES.decoder()
    shown = [decode(piece, False) for piece in pieces]
    whole = BYTES.decode(np.frombuffer(raw, np.uint8))
    assert "".join(shown) + decode(last, True) == whole
    assert whole.startswith("".join(shown)), "what was shown is never taken back"


@given(vocabularies(), st.lists(SEED, max_size=30), st.lists(SEED, max_size=8))
def test_characters_in_pieces_make_the_text_that_they_make_together(
    vocabulary: str, numbers: list[int], places: list[int]
) -> None:
    tokenizer = CharTokenizer(vocabulary)
    ids = [number % len(vocabulary) for number in numbers]
    decode = tokenizer.decoder()
    assert "".join(decode(piece, False) for piece in cut(ids, places)) == tokenizer.decode(np.array(ids, np.intp))


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "é", "漢", "😀", "\r", "\n", "\x85", "\0"]), min_size=1), st.integers(1, 9))
def test_a_file_is_read_the_same_in_chunks_of_any_size(characters: list[str], chunk: int) -> None:
    text = "".join(characters)
    with tempfile.TemporaryDirectory() as folder, patch("minigpt.text.sources.CHUNK_BYTES", chunk):
        file = Path(folder, "a.txt")
        file.write_bytes(text.encode())
        corpus = DataSettings(data_dir=str(Path(folder, "data"))).open(str(file))
        expected = text.replace("\r\n", "\n").replace("\r", "\n")
        assert CharTokenizer(corpus.vocabulary).decode(corpus.ids()[:]) == expected
        assert list(corpus.vocabulary) == sorted(set(expected))
        assert list(corpus.first) == [expected.index(character) for character in corpus.characters]


# Splits and windows


@given(st.integers(0, 10**9), st.floats(0, 1), st.floats(0, 1))
@example(10, 0.1, 0.2)
@example(10**9, 1e-9, 0)
def test_splits_cover_the_text_in_order_without_gap_or_overlap(length: int, val: float, test: float) -> None:
    assume(val > 0 and val + test < 1)
    splits = DataSettings(val_fraction=val, test_fraction=test).places(length)
    assert list(splits) == ["train", "val", "test"]
    ends = [0]
    for places in splits.values():
        assert places.start == ends[-1]
        assert places.start <= places.stop
        assert places.step == 1
        ends.append(places.stop)
    assert ends[-1] == length
    for name, fraction in {"train": 1 - val - test, "val": val, "test": test}.items():
        assert len(splits[name]) == pytest.approx(length * fraction, abs=1 + 2e-9 * length)


WINDOWS: dict[str, Any] = {
    "length": st.integers(2, 300),
    "block_size": st.integers(1, 40),
    "batch_size": st.integers(1, 12),
    "seed": SEED,
}


@given(**WINDOWS, numbers=st.lists(st.integers(0, 2**40), min_size=2, max_size=5, unique=True))
def test_a_training_batch_is_a_function_of_seed_and_number(
    length: int, block_size: int, batch_size: int, seed: int, numbers: list[int]
) -> None:
    assume(length > block_size)
    batches = TrainingBatches(np.arange(length), block_size, batch_size, seed)
    seen = {number: batches[number] for number in numbers}
    for number in reversed(numbers):
        alone = TrainingBatches(np.arange(length), block_size, batch_size, seed)[number]
        assert all(torch.equal(a, b) for a, b in zip(seen[number], alone, strict=True))
    forever = TrainingBatches(np.arange(length), block_size, batch_size, seed, repeat=1)
    assert all(torch.equal(forever[number][0], batches[0][0]) for number in numbers)


@given(SEED, SEED, st.integers(0, 2**40), st.integers(0, 2**40))
def test_other_seeds_and_numbers_give_other_training_batches(seed: int, other: int, number: int, next_: int) -> None:
    assume((seed, number) != (other, next_))
    ids = np.arange(10**6)
    first, second = TrainingBatches(ids, 1, 8, seed)[number][0], TrainingBatches(ids, 1, 8, other)[next_][0]
    assert not torch.equal(first, second)


@given(**WINDOWS, number=st.integers(0, 2**40))
def test_training_windows_lie_inside_the_split_and_their_targets_come_next(
    length: int, block_size: int, batch_size: int, seed: int, number: int
) -> None:
    assume(length > block_size)
    inputs, targets = TrainingBatches(np.arange(length), block_size, batch_size, seed)[number]
    assert inputs.shape == targets.shape == (batch_size, block_size)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(block_size)), "a window is a run of the text"
    assert torch.equal(targets, inputs + 1)
    assert inputs.min() >= 0
    assert targets.max() < length


@given(**WINDOWS, number=st.integers(0, 2**40), world=st.integers(1, 9))
def test_the_shares_of_all_devices_are_the_batch_of_one(
    length: int, block_size: int, batch_size: int, seed: int, number: int, world: int
) -> None:
    assume(length > block_size)
    ids = np.arange(length)
    whole = TrainingBatches(ids, block_size, batch_size, seed)[number]
    shares = [TrainingBatches(ids, block_size, batch_size, seed, rank, world)[number] for rank in range(world)]
    for part, expected in enumerate(whole):
        dealt = torch.full_like(expected, -1)
        for rank, share in enumerate(shares):
            dealt[rank::world] = share[part]
        assert torch.equal(dealt, expected)
        assert sum(len(share[part]) for share in shares) == batch_size


@given(st.integers(1, 7), st.integers(0, 40), st.integers(0, 20))
def test_a_loader_goes_on_with_the_very_next_batch(per_epoch: int, position: int, taken: int) -> None:
    dataset = TrainingBatches(np.arange(10**6), 1, 4, seed=3)
    loader = TrainingLoader(dataset, per_epoch, num_workers=0, next_batch=0)
    loader.load_state_dict({"next_batch": position})
    taken = min(taken, per_epoch)
    for number, batch in zip(range(position, position + taken), loader, strict=False):
        assert torch.equal(batch[0], dataset[number][0])
    assert loader.state_dict() == {"next_batch": position + taken}
    assert len(list(loader)) == len(loader)


@given(
    length=st.integers(1, 200),
    places=st.tuples(SEED, SEED),
    block_size=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    world=st.integers(1, 9),
)
def test_every_place_of_a_split_is_scored_once_after_the_character_before_it(
    length: int, places: tuple[int, int], block_size: int, batch_size: int, world: int
) -> None:
    start, stop = sorted(place % (length + 1) for place in places)
    assume(start < stop)
    ids, first = np.arange(1000, 1000 + length), 5
    ranks = [
        ScoringBatches(ids, range(start, stop), block_size, batch_size, first, rank, world) for rank in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    scored = []
    for batch in range(len(ranks[0])):
        for rank in ranks:
            inputs, targets = rank[batch]
            assert inputs.shape == targets.shape
            assert 1 <= len(inputs) <= batch_size
            counts = targets != IGNORED
            scored += (targets[counts] - 1000).tolist()
            assert torch.equal(inputs[counts], torch.where(targets == 1000, first, targets - 1)[counts])
            # Within a window the model reads on: what it was to predict is what it is given next.
            assert torch.equal(inputs[:, 1:][counts[:, 1:]], targets[:, :-1][counts[:, 1:]])
    assert scored == list(range(start, stop)), "each once, in the order of the text"


# Sampling

LOGITS = st.lists(st.one_of(st.floats(-30, 30, width=32), st.just(-math.inf)), min_size=1, max_size=20).filter(
    lambda logits: max(logits) > -math.inf
)
TEMPERATURE = st.floats(0.3, 3)
FRACTION = st.floats(0, 1, exclude_min=True)


def probabilities(logits: list[float], sampling: Sampling, window: tuple[int, ...] = ()) -> torch.Tensor:
    return probabilities_of(torch.tensor([logits]), torch.tensor([window], dtype=torch.long), sampling)[0]


@given(
    LOGITS,
    st.one_of(st.just(0.0), st.floats(0, 1e3)),
    st.none() | st.integers(1, 30),
    st.none() | FRACTION,
    st.none() | FRACTION,
    st.floats(0.2, 5),
    st.lists(st.integers(0, 19), min_size=1),
)
def test_whatever_the_settings_probabilities_sum_to_one_and_the_likeliest_stays_so(
    logits: list[float],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
    seen: list[int],
) -> None:
    window = tuple(sorted({token % len(logits) for token in seen}))
    kept = probabilities(logits, Sampling(temperature, top_k, top_p, min_p, penalty), window)
    assert kept.dtype == torch.float64
    assert float(kept.sum()) == pytest.approx(1)
    assert bool((kept >= 0).all())
    penalised = torch.tensor(logits).double()
    for token in window:
        penalised[token] *= 1 / penalty if penalised[token] > 0 else penalty
    assert float(kept[penalised.argmax()]) == pytest.approx(float(kept.max()))
    assert not kept[penalised == -math.inf].any(), "what can't be is never drawn"


@given(LOGITS, TEMPERATURE)
def test_without_filters_the_probabilities_are_the_softmax(logits: list[float], temperature: float) -> None:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    expected = [weight / sum(weights) for weight in weights]
    assert probabilities(logits, Sampling(temperature)).tolist() == pytest.approx(expected, abs=1e-12)


@given(LOGITS, TEMPERATURE, st.integers(1, 30))
def test_top_k_keeps_the_k_likeliest(logits: list[float], temperature: float, k: int) -> None:
    kept = probabilities(logits, Sampling(temperature, top_k=k)) > 0
    possible = [logit for logit in logits if logit > -math.inf]
    assert int(kept.sum()) == min(k, len(possible))
    chosen = sorted((logit for logit, keep in zip(logits, kept, strict=True) if keep), reverse=True)
    assert chosen == sorted(possible, reverse=True)[:k]


@given(LOGITS, TEMPERATURE, FRACTION)
def test_top_p_keeps_the_fewest_that_hold_the_mass(logits: list[float], temperature: float, p: float) -> None:
    before = probabilities(logits, Sampling(temperature))
    kept = probabilities(logits, Sampling(temperature, top_p=p)) > 0
    mass = float(before[kept].sum())
    assert mass >= p - 1e-9
    assert mass - float(before[kept].min()) < p + 1e-9, "without the least of them it would be too little"
    assert float(before[kept].min()) >= float(before[~kept].max() if (~kept).any() else 0)


@given(LOGITS, TEMPERATURE, FRACTION)
def test_min_p_keeps_what_is_near_enough_to_the_likeliest(logits: list[float], temperature: float, p: float) -> None:
    before = probabilities(logits, Sampling(temperature))
    kept = probabilities(logits, Sampling(temperature, min_p=p))
    threshold = p * float(before.max())
    assert bool((kept[before > threshold * (1 + 1e-9)] > 0).all())
    assert not kept[before < threshold * (1 - 1e-9)].any()


@given(st.lists(LOGITS, min_size=1, max_size=4), SEED)
def test_each_text_draws_what_it_would_draw_alone_and_never_the_impossible(rows: list[list[float]], seed: int) -> None:
    width = max(map(len, rows))
    logits_BV = torch.tensor([row + [-math.inf] * (width - len(row)) for row in rows])
    probabilities_BV = probabilities_of(logits_BV, torch.empty(len(rows), 0, dtype=torch.long), Sampling(min_p=0.01))
    together = uniform([seed + b for b in range(len(rows))])
    alone = [uniform([seed + b]) for b in range(len(rows))]
    for _ in range(20):
        ids_B = draw(probabilities_BV, next(together))
        assert bool((probabilities_BV.gather(1, ids_B[:, None]) > 0).all())
        assert ids_B.tolist() == [
            int(draw(probabilities_BV[b : b + 1], next(numbers))) for b, numbers in enumerate(alone)
        ]


# Learning rate


@given(st.sampled_from(["cosine", "linear", "constant"]), st.integers(0, 200), st.integers(1, 400), st.floats(0, 1))
def test_the_learning_rate_rises_in_the_warmup_then_never_again_and_ends_at_zero(
    schedule: Schedule, warmup: int, max_steps: int, decay: float
) -> None:
    rates = [
        learning_rate_factor(step, schedule, warmup, max_steps, decay) for step in range(max(warmup, max_steps) + 3)
    ]
    assert all(0 <= rate <= 1 for rate in rates)
    rising, falling = rates[: warmup + 1], rates[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert falling[0] == 1
    assert all(a >= b for a, b in itertools.pairwise(falling))
    assert rates[max(warmup + 1, max_steps) :] == [0] * (len(rates) - max(warmup + 1, max_steps))
