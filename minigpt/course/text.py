"""The text of the course: sentences made on the spot, so that every example runs offline and gives the same numbers."""

import random
from math import log

NOUNS = [
    "fox",
    "queen",
    "river",
    "tower",
    "garden",
    "miller",
    "thief",
    "squire",
    "baker",
    "quarrel",
    "lantern",
    "bridge",
    "letter",
    "owl",
]
ADJECTIVES = ["old", "quick", "green", "quiet", "small", "brave", "golden", "lost", "clever", "heavy"]
VERBS = ["see", "find", "want", "hear", "lose", "fear", "paint", "follow", "sell", "guard"]


def text(length: int = 200_000, seed: int = 1) -> str:
    """A few words, in sentences with number, order, and names that are told twice.

    Args:
        length: in characters.
        seed: another one gives other sentences of the same kind.
    """
    draw = random.Random(seed)

    def thing() -> tuple[str, str]:
        """A noun with its article, and the ending of its verb."""
        plural = draw.random() < 0.4
        article = "the" if plural else draw.choice(("a", "the"))
        adjective = f" {draw.choice(ADJECTIVES)}" if draw.random() < 0.5 else ""
        return f"{article}{adjective} {draw.choice(NOUNS)}{'s' * plural}", "" if plural else "s"

    def sentence() -> str:
        if draw.random() < 0.5:
            name = "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(2)).capitalize()
            return f"{name} {draw.choice(VERBS)}s {thing()[0]}, and {name} {draw.choice(VERBS)}s {thing()[0]}.\n"
        subject, ending = thing()
        place = draw.choice(("near", "behind", "above", "under", "beside"))
        return f"{subject} {place} {thing()[0]} {draw.choice(VERBS)}{ending} {thing()[0]}.\n"

    made = ""
    while len(made) < length:
        made += "".join(sentence() for _ in range(100))
    return made[:length]


def nats_of_chance() -> float:
    """What a character of :func:`text` costs at least, on average: the mean surprise of all draws, in nats.

    A draw among n equals costs ln n, one of a number, 40 to 60, its entropy. Each is divided by the mean length of a
    sentence of a million characters.
    """
    number = -0.4 * log(0.4) - 0.6 * log(0.6)  # plural or not; the singular also draws its article
    thing = number + 0.6 * log(2) + log(2) + 0.5 * log(len(ADJECTIVES)) + log(len(NOUNS))  # an adjective or none
    with_name = 2 * log(14 * 5) + 2 * log(len(VERBS)) + 2 * thing  # two syllables, each of 14 consonants and 5 vowels
    without = log(5) + log(len(VERBS)) + 3 * thing
    told = text(1_000_000)
    return (log(2) + (with_name + without) / 2) * told.count("\n") / len(told)
