"""Is it copying? What a text shares with the training text, and what a held-out text of that length shares with it.

The texts asked about are small and the training text may be large, so the small ones are indexed and the large one is
streamed past them. For each place in them is kept how far the text from there on is known to stand in the training
text (its "matching statistics": Chang and Lawler 1994). Only n-grams that could add to that are looked for, by a
rolling hash (Karp and Rabin 1987), and what has the right hash is compared: no answer rests on a hash.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minigpt.errors import UserError
from minigpt.text.corpus import Corpus, DataSettings, listed
from minigpt.text.tokenizer import TOKENIZERS, UNKNOWN, ByteTokenizer, CharTokenizer

SIZES = 5, 10, 20, 50  # the n of the n-grams
SHORTEST = 20  # ids in a passage
EXCERPTS = 8  # of the held-out text, which are the null
WINDOW = 10  # ids by which longer n-grams are looked for
BLOCK = 1 << 17  # ids that are hashed at once: their arrays fit a processor's cache
PIECE = 1 << 24  # ids that are mapped at once
CONTEXT = 40  # ids shown on either side of a run
CHUNK = 1 << 20  # ids after which what was found is looked at
Ids = NDArray[np.integer]
Places = NDArray[np.intp]
NONE: Places = np.empty(0, np.intp)


@dataclass(frozen=True)
class Run:
    """Ids ``start`` to ``end`` of a sample, which stand in the training text from ``place`` on."""

    start: int
    end: int
    place: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Shared:
    """What a sample shares with the training text.

    Args:
        longest: the longest run of ids that stands in both, one of several; None if they share no id.
        new: for each n, the part of the sample's n-grams that the training text lacks; None if it is shorter than n.
        passages: the runs of at least :data:`SHORTEST` ids that are part of no longer one, in order. They may overlap.
    """

    longest: Run | None
    new: dict[int, float | None]
    passages: list[Run]


@dataclass(frozen=True)
class Copying:
    """What a text shares with the training text, beside its null.

    Args:
        text: what was asked about.
        shared: what it shares; its places are characters of ``text`` and of the training text, or bytes of both where
            the tokenizer is byte.
        longest: the longest run as it stands in the training text, with what comes before and after it there; three
            empty strings if there is none.
        null: what excerpts of the held-out text share that are as long, at places spread over it.
        remark: what is to be said of the null, where that text is too short; otherwise empty.
    """

    text: str
    shared: Shared
    longest: tuple[str, str, str]
    null: list[Shared]
    remark: str


def copying(texts: str | list[str], data: DataSettings) -> list[Copying]:
    """Is it copying? What each text shares with the training split of ``data``, beside what its validation split does.

    Raises:
        UserError: a text is empty, or a corpus can't be read.
    """
    corpora, texts = data.open_splits(), listed(texts)
    if not all(texts):
        raise UserError("A text is empty, so there is nothing in it that could be copied.")
    training, held_out = corpora["train"], corpora["val"]
    places = {name: data.places(len(corpus))[name] for name, corpus in corpora.items()}
    if data.val_corpus:
        places["val"] = range(len(held_out))
    tokenizer = TOKENIZERS[data.tokenizer](training.characters)
    # What the training text lacks gets an id that it lacks as well.
    encode = tokenizer if data.tokenizer == "byte" else CharTokenizer(training.characters + UNKNOWN)
    samples = [encode.encode(text) for text in texts]
    excerpts = {size: list(_excerpts(held_out, places["val"], size, encode)) for size in {*map(len, samples)}}
    everything = [*samples, *(excerpt for of_size in excerpts.values() for excerpt in of_size)]
    found = iter(shared(everything, _pieces(training, places["train"])))
    own = [next(found) for _ in samples]
    null = {size: [next(found) for _ in of_size] for size, of_size in excerpts.items()}

    def shown(start: int, stop: int) -> str:
        inside = range(max(start, 0), max(0, min(stop, len(places["train"]))))
        return tokenizer.decode(training.renumbered(training.characters).ids(inside)[:])

    answers = []
    for text, sample, mine in zip(texts, samples, own, strict=True):
        run, count = mine.longest or Run(0, 0, 0), len(null[len(sample)])
        stop = run.place + len(run)
        around = shown(run.place - CONTEXT, run.place), shown(run.place, stop), shown(stop, stop + CONTEXT)
        remark = (
            ""
            if count == EXCERPTS
            else (
                f"The null is {count} excerpts, not {EXCERPTS}: the validation split has {len(places['val']):,} "
                f"ids, and the text {len(sample):,}."
            )
        )
        answers.append(Copying(text, mine, around if mine.longest else ("", "", ""), null[len(sample)], remark))
    return answers


def _excerpts(corpus: Corpus, places: range, size: int, tokenizer: CharTokenizer) -> Iterator[Ids]:
    """Excerpts of that size, spread over those places, none over another, as ids of the tokenizer."""
    ids = corpus.renumbered(corpus.characters).ids(places)
    own = CharTokenizer(corpus.characters)
    for start in np.linspace(0, len(places) - size, min(EXCERPTS, len(places) // size)).astype(int).tolist():
        excerpt = ids[start : start + size]
        yield excerpt if isinstance(tokenizer, ByteTokenizer) else tokenizer.encode(own.decode(excerpt))


def _pieces(corpus: Corpus, places: range) -> Iterator[Ids]:
    """The ids at those places. Each piece is a mapping of its own, so that those that were read leave the memory."""
    for start in places[::PIECE]:
        yield corpus.renumbered(corpus.characters).ids(range(start, min(start + PIECE, places.stop)))[:]


def shared(samples: Sequence[Ids], training: Iterable[Ids]) -> list[Shared]:
    """What each sample shares with the training text, exactly.

    Args:
        samples: ids.
        training: the ids of the training text, in pieces of any length, which are read once and in order.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy lets other threads run while it computes
        search = _Search(samples, threads)
        for text, place, new in _chunks(training, max(map(len, samples), default=0), search.ids.dtype):
            search.read(text, place, new)
    return search.found()


def _chunks(pieces: Iterable[Ids], overlap: int, dtype: np.dtype) -> Iterator[tuple[Ids, int, int]]:
    """The text in chunks, each after ``overlap`` ids that were in the one before.

    Yields:
        the ids, the place of the first in the text, and which of them is the first new one.
    """
    before, place, size = np.empty(0, dtype), 0, BLOCK  # what is found first is the most, so the first chunks are small
    for piece in pieces:
        start = 0
        while start < len(piece):
            new = piece[start : start + size]
            chunk = np.concatenate([before, new.astype(np.promote_types(dtype, new.dtype), copy=False)])
            yield chunk, place - len(before), len(before)
            before, place, start = chunk[max(0, len(chunk) - overlap) :], place + len(new), start + len(new)
            size = max(min(2 * size, CHUNK), overlap)


class _Hashes:
    """Hashes of the n-grams at each place of a text: of n ids x, the sum of x_k * FACTOR * BASE^(n - 1 - k)."""

    FACTOR, BASE = np.uint32(0x9E3779B1), 0x85EBCA6B  # odd numbers, whose bits look random

    def __init__(self, ids: Ids) -> None:
        single = ids.astype(np.uint32)
        single *= self.FACTOR
        self._known = {1: single}

    def of(self, n: int) -> NDArray[np.uint32]:
        if n not in self._known:
            half = self.of(n // 2)
            self._known[n] = self._joined(half, half, n // 2)
            if n % 2:
                self._known[n] = self._joined(self._known[n], self.of(1), 1, n - 1)
        return self._known[n]

    def _joined(self, left: NDArray[np.uint32], right: NDArray[np.uint32], size: int, shift: int = 0) -> NDArray:
        right = right[shift or size :]
        joined = left[: len(right)] * np.uint32(pow(self.BASE, size, 1 << 32))
        joined += right[: len(joined)]
        return joined


class _Kinds:
    """Tells which n-grams of a text are equal, for any n."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self._doubled = [ids.astype(np.int64)]  # of n = 1, 2, 4, ...: numbers that are equal where the n-grams are

    def of(self, n: int, starts: Places) -> tuple[Places, Places]:
        """Of the n-grams at those places, a place for each kind, and the kind of each, a number from 0 on."""
        if not len(starts):
            return starts, starts
        while n >> len(self._doubled):
            size = 1 << len(self._doubled)
            self._doubled.append(self._paired(size, np.arange(len(self.ids) - size + 1))[1])
        first, kinds = self._paired(n, starts)
        return starts[first], kinds

    def _paired(self, n: int, starts: Places) -> tuple[Places, Places]:
        power = (n - 1 if n > 1 else n).bit_length() - 1  # two of those n-grams, which may overlap, make one of n
        half = self._doubled[power]
        pairs = half[starts] * (half.max() + 1) + half[starts + n - (1 << power)]
        return np.unique(pairs, return_index=True, return_inverse=True)[1:]


class _Filter:
    """Which hashes may be wanted: a table of them by some of their bits, which a processor's cache holds."""

    def __init__(self, size: int) -> None:
        self.bits = int(np.clip(np.ceil(np.log2(16 * size + 1)), 10, 20))
        self._count = np.zeros(1 << self.bits, np.int32)
        self._table = np.zeros(1 << self.bits, bool)

    def add(self, slots: NDArray[np.uint32], count: NDArray[np.int32]) -> None:
        np.add.at(self._count, slots, count)
        self._table[slots] = self._count[slots] > 0

    def places(self, slots: NDArray[np.uint32]) -> Places:
        return self._table.take(slots).nonzero()[0]


class _Window:
    """The filter that all n-grams share that are looked for by their first ``size`` ids."""

    def __init__(self, size: int, ids: Ids) -> None:
        self.size, self._filter = size, _Filter(len(ids))
        self._mask = np.uint32((1 << self._filter.bits) - 1)

    def add(self, hashes: NDArray[np.uint32], count: NDArray[np.int32]) -> None:
        self._filter.add(hashes & self._mask, count)

    def places(self, hashes: NDArray[np.uint32]) -> Places:
        return self._filter.places(hashes & self._mask)


class _Grams:
    """The n-grams of some places of the samples, each kind once; those that are ``wanted`` can be found in a text.

    An n-gram longer than its window is hashed by its first and its last ids, as many as the window has.
    """

    def __init__(self, n: int, text: _Kinds, starts: Places, window: _Window) -> None:
        self.n, self._ids, self.starts, self.window = n, text.ids, starts, window
        first, kinds = text.of(n, starts)
        windows = _Hashes(self._ids).of(window.size)
        hashes = self._hash(windows, first)
        order = np.argsort(hashes)
        self.first, self._hashes, self._windows = first[order], hashes[order], windows[first[order]]
        self.kinds = np.argsort(order)[kinds]  # of each start
        self._by_kind = np.argsort(self.kinds, kind="stable")
        self._filter = _Filter(len(first))
        self._shift = np.uint32(32 - self._filter.bits)
        self.wanted = np.zeros(len(first), bool)
        self.want(np.ones(len(first), bool))

    def _hash(self, windows: NDArray[np.uint32], places: Places) -> NDArray[np.uint32]:
        hashes = windows[places]
        if self.n > self.window.size:
            hashes = hashes * _Hashes.FACTOR + windows[places + self.n - self.window.size]
        return hashes

    def want(self, wanted: NDArray[np.bool]) -> None:
        changed = np.flatnonzero(wanted != self.wanted)
        count = np.where(wanted[changed], 1, -1).astype(np.int32)
        self._filter.add(self._hashes[changed] >> self._shift, count)
        self.window.add(self._windows[changed], count)
        self.wanted = wanted

    def starts_of(self, kind: int) -> Places:
        low, high = np.searchsorted(self.kinds, [kind, kind + 1], sorter=self._by_kind)
        return self.starts[self._by_kind[low:high]]

    def candidates(self, windows: NDArray[np.uint32], places: Places) -> tuple[Places, NDArray[np.uint32]]:
        """Of the places in a text of those window hashes the ones where a wanted kind may begin, and its hash there."""
        places = places[: np.searchsorted(places, len(windows) - self.n + self.window.size)]
        hashes = self._hash(windows, places)
        keep = self._filter.places(hashes >> self._shift)
        return places[keep], hashes[keep]

    def confirm(self, text: Ids, places: Places, hashes: NDArray[np.uint32]) -> tuple[Places, Places]:
        """Of the places with those hashes the ones where a wanted kind does begin in ``text``, and the kind."""
        low = np.searchsorted(self._hashes, hashes)
        known = (self._hashes.take(low, mode="clip") == hashes).nonzero()[0]
        places, low = places[known], low[known]
        more = np.searchsorted(self._hashes, hashes[known], "right") - low  # kinds of that hash, hardly ever above 1
        places = np.repeat(places, more)
        kinds = np.repeat(low - np.cumsum(more) + more, more) + np.arange(len(places))
        keep = self.wanted[kinds].nonzero()[0]
        places, kinds = places[keep], kinds[keep]
        for k in range(self.n):
            keep = (text[places + k] == self._ids[self.first[kinds] + k]).nonzero()[0]
            places, kinds = places[keep], kinds[keep]
        return places, kinds


def _find(text: Ids, start: int, grams: Sequence[_Grams], threads: ThreadPoolExecutor) -> list[tuple[Places, Places]]:
    """Where in ``text`` wanted n-grams begin that end after ``start``, and their kinds, for each of ``grams``."""
    largest = max((g.n for g in grams), default=1)
    wanted = [g for g in grams if g.wanted.any()]
    windows = {g.window for g in wanted}

    def candidates(block: int) -> list[tuple[Places, NDArray[np.uint32]]]:
        known = _Hashes(text[block : block + BLOCK + largest - 1])  # with n-grams that end in the next block
        hashes = {window: known.of(window.size) for window in windows}
        places = {window: window.places(hashes[window][:BLOCK]) for window in windows}
        found = [g.candidates(hashes[g.window], places[g.window]) for g in wanted]
        return [(places + block, values) for places, values in found]

    def confirmed(g: _Grams, found: Sequence[tuple[Places, NDArray[np.uint32]]]) -> tuple[Places, Places]:
        return g.confirm(text, *map(np.concatenate, zip(*found, strict=True)))

    blocks = threads.map(candidates, range(max(0, start - largest + 1), len(text), BLOCK))
    found = dict(zip(wanted, threads.map(confirmed, wanted, zip(*blocks, strict=True)), strict=True))
    return [found.get(g, (NONE, NONE)) for g in grams]


class _Search:
    """How far the samples are known to stand in the training text that was read so far.

    Args:
        samples: ids. They lie side by side in ``ids``.

    Attributes:
        reach: for each place the end of a run from there on that stands in the training text. A run that is shorter
            than the longest of its sample and shorter than :data:`SHORTEST` may be cut off at one of the
            :data:`SIZES`; all others are as long as can be.
        offset: for each place what is to be added to it for the run's place in the training text.
    """

    def __init__(self, samples: Sequence[Ids], threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        self.ids = np.concatenate([np.empty(0, np.uint8), *samples])
        self.kinds = _Kinds(self.ids)
        ends = np.cumsum([len(sample) for sample in samples], dtype=np.intp)
        self.samples = [range(end - len(sample), end) for sample, end in zip(samples, ends.tolist(), strict=True)]
        self.places = np.arange(len(self.ids))
        lengths = [len(sample) for sample in samples]
        self.starts, self.ends = np.repeat(ends - lengths, lengths), np.repeat(ends, lengths)  # of a place's sample
        self.reach, self.offset = self.places.copy(), np.zeros_like(self.places)
        self.wide = _Window(WINDOW, self.ids)
        self.short = [self._grams(n, self._fitting(n)) for n in SIZES if n < SHORTEST]
        self.long = self._grams(SHORTEST, self._fitting(SHORTEST))
        self.kind = np.full(len(self.ids), -1)  # of the n-gram of SHORTEST ids at each place
        self.kind[self.long.starts] = self.long.kinds
        self.next: list[_Grams] = []  # n-grams that are one longer than the longest run of their sample
        self.next_sizes: list[int] = []  # that length for each sample
        self._look_for_longer()
        self._breaks()

    def _grams(self, n: int, starts: Places) -> _Grams:
        return _Grams(n, self.kinds, starts, self.wide if n >= WINDOW else _Window(n, self.ids))

    def _fitting(self, n: int) -> Places:
        """The places from where on ``n`` ids are in one sample."""
        return np.flatnonzero(self.places + n <= self.ends)

    def read(self, text: Ids, place: int, new: int) -> None:
        """Read a part of the training text that lies at ``place``; what comes before ``new`` was read before."""
        marked = [*self.short, *self.next]
        long, *found = _find(text, new, [self.long, *marked], self.threads)
        self._extend(text, place, new, *long)
        while True:
            for grams, (places, kinds) in zip(marked, found, strict=True):
                self._mark(grams, place, places, kinds)
            if not self._look_for_longer():
                break
            marked = self.next
            found = _find(text, new, marked, self.threads)

    def _mark(self, grams: _Grams, place: int, places: Places, kinds: Places) -> None:
        """Note that n-grams stand in the training text, and look for them no more."""
        if not len(places):
            return
        at = np.full(len(grams.first), -1)
        at[kinds[::-1]] = places[::-1]  # the first place of each kind
        starts = grams.starts[at[grams.kinds] >= 0]
        starts = starts[self.reach[starts] < starts + grams.n]
        self.reach[starts] = starts + grams.n
        self.offset[starts] = place + at[grams.kinds[np.searchsorted(grams.starts, starts)]] - starts
        grams.want(grams.wanted & (at < 0))

    def _look_for_longer(self) -> bool:
        """Look for n-grams that would be the longest run of a sample whose runs are short; whether they are new."""
        lengths = self.reach - self.places
        sizes = [int(lengths[sample.start : sample.stop].max(initial=0)) + 1 for sample in self.samples]
        if sizes == self.next_sizes:
            return False
        for grams in self.next:
            grams.want(np.zeros_like(grams.wanted))
        self.next_sizes, self.next = sizes, []
        for n in {n for n in sizes if n < SHORTEST and n not in SIZES}:
            fitting = [range(s.start, s.stop - n + 1) for s, size in zip(self.samples, sizes, strict=True) if size == n]
            self.next.append(self._grams(n, np.concatenate([np.arange(f.start, f.stop) for f in fitting])))
        return True

    def _breaks(self) -> None:
        """Look for what would make a long run longer.

        A run can grow only where its last ids and the one after it, together SHORTEST ids, stand in the training text.
        Such an n-gram is looked for if it isn't found yet, or if runs end there that lack its last id. Of these runs
        the shortest is kept: only where that goes on can a longer one.
        """
        found = self.reach - self.places >= SHORTEST
        starts = self.long.starts
        self.missing = np.zeros(len(self.long.first), bool)  # kinds that aren't found
        self.missing[self.kind[starts[~found[starts]]]] = True
        last = np.append(self.reach[1:] != self.reach[:-1], True)[: len(found)]  # the shortest run that ends there
        starts = np.flatnonzero(found & last & (self.reach < self.ends))
        starts = starts[found[self.reach[starts] + 1 - SHORTEST]]
        kinds = self.kind[self.reach[starts] + 1 - SHORTEST]
        order = np.argsort(kinds)
        self.break_kinds = kinds[order]
        self.breaks = np.stack([starts, self.reach[starts] + 1], axis=1)[order]  # what each would be if it grew by one
        wanted = self.missing.copy()
        wanted[kinds] = True
        self.long.want(wanted)

    def _extend(self, text: Ids, place: int, new: int, places: Places, kinds: Places) -> None:
        """Note all long runs of this part of the training text, where wanted n-grams stand at ``places``."""
        searched = self.long.wanted
        while self._grow(text, place, places, kinds):
            self._breaks()
            wanted = self.long.wanted
            keep = wanted[kinds]
            places, kinds = places[keep], kinds[keep]
            if (others := wanted & ~searched).any():
                self.long.want(others)
                ((more, of),) = _find(text, new, [self.long], self.threads)
                self.long.want(wanted)
                places, kinds, searched = np.append(places, more), np.append(kinds, of), searched | others

    def _grow(self, text: Ids, place: int, places: Places, kinds: Places) -> bool:
        """Make runs longer by what stands at those places. Whether any grew."""
        grown = False
        order = np.argsort(kinds, kind="stable")
        present, first = np.unique(kinds[order], return_index=True)
        for kind, at in zip(present.tolist(), np.split(places[order], first[1:]), strict=False):
            there = [int(at[0])] if self.missing[kind] else []
            there += [where for run in self._targets(kind) if (where := self._furthest(text, at, *run)) is not None]
            # What repeats itself has that n-gram in many places, and each may grow by what was found for one.
            for here in self.long.starts_of(kind).tolist() if there else ():
                if self.reach[self.starts[here]] < self.ends[here]:  # or the whole sample is found already
                    for where in there:
                        self._align(text, place, here, where)
            grown |= bool(there)
        return grown

    def _targets(self, kind: int) -> list[tuple[int, int]]:
        """The runs to look for that end in n-grams of that kind, one of each that are equal."""
        low, high = np.searchsorted(self.break_kinds, [kind, kind + 1])
        runs = [(start, end) for start, end in self.breaks[low:high].tolist() if self.reach[start] < end]
        return list({self.ids[start:end].tobytes(): (start, end) for start, end in runs}.values())

    def _furthest(self, text: Ids, at: Places, start: int, end: int) -> int | None:
        """Where the run stands in the text, or better the longest one to be looked for that ends with it."""
        found = _stands(text, at, self.ids[start:end])
        if found is not None:
            alike = np.flatnonzero(self.reach[self.starts[start] : start] == end - 1) + self.starts[start]
            low, high = int(alike.min(initial=start)), start
            while low < high:  # what stands in the text holds all shorter ones
                middle = (low + high) // 2
                longer = _stands(text, at, self.ids[middle:end])
                low, high, found = (middle + 1, high, found) if longer is None else (low, middle, longer)
        return found

    def _align(self, text: Ids, place: int, here: int, there: int) -> None:
        """Note the run around ``here`` in the samples and ``there`` in the text, where they are equal."""
        stop = here + _equal(self.ids[here : self.ends[here]], text[there:])
        start = here - _equal(self.ids[self.starts[here] : here][::-1], text[:there][::-1])
        better = start + np.flatnonzero(self.reach[start:stop] < stop)
        self.reach[better], self.offset[better] = stop, place + there - here

    def found(self) -> list[Shared]:
        # A run from one place on is a run from the next place on as well.
        furthest = np.maximum.accumulate(self.reach)
        source = np.maximum.accumulate(np.where(self.reach == furthest, self.places, 0))
        self.reach, self.offset = furthest, self.offset[source]
        return [self._found(sample) for sample in self.samples]

    def _found(self, sample: range) -> Shared:
        part = slice(sample.start, sample.stop)
        starts, lengths = np.arange(len(sample)), self.reach[part] - self.places[part]

        def run(start: int) -> Run:
            place = start + sample.start + int(self.offset[sample.start + start])
            return Run(start, start + int(lengths[start]), place)

        new = {n: float((lengths[: len(sample) - n + 1] < n).mean()) if len(sample) >= n else None for n in SIZES}
        ends = starts + lengths
        maximal = (lengths >= SHORTEST) & (ends > np.append(0, ends[:-1])[: len(ends)])
        longest = run(int(lengths.argmax())) if lengths.any() else None
        return Shared(longest, new, [run(start) for start in np.flatnonzero(maximal).tolist()])


def _stands(text: Ids, at: Places, run: Ids) -> int | None:
    """One of the places ``at`` in the text where the last SHORTEST ids of ``run`` begin, the rest being before them.

    It is one in the middle: where runs grow from one to the next, few steps lead to the longest.
    """
    back = len(run) - SHORTEST
    at = at[at >= back]
    at = at[text[at - back] == run[0]]
    if len(at) > 64:  # as in a text that repeats itself: to hash the whole run is quicker than to compare it
        value = _Hashes(run).of(len(run))[0]
        hits = [
            block + np.flatnonzero(_Hashes(text[block : block + BLOCK + len(run) - 1]).of(len(run)) == value)
            for block in range(0, len(text), BLOCK)
        ]
        at = np.intersect1d(at, np.concatenate(hits) + back, assume_unique=True)
    for there in np.roll(at, -(len(at) // 2)).tolist():
        if np.array_equal(text[there - back : there + SHORTEST], run):
            return there
    return None


def _equal(a: Ids, b: Ids) -> int:
    """How many ids are equal, from the start of both on."""
    size, done, step = min(len(a), len(b)), 0, 64
    while done < size:
        stop = min(size, done + step)
        differ = a[done:stop] != b[done:stop]
        if differ.any():
            return done + int(differ.argmax())
        done, step = stop, 2 * step
    return size
