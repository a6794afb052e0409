"""Which characters a text has."""

import torch

LESSON = 1
TITLE = "The characters of a text"
STUB = '''
def vocabulary(text):
    """The distinct characters of a text, sorted, as one string.

    The place of a character in this string will be its id: the number that the model reads instead of it.
    """
    # This first exercise nobody fails: the next line is the answer. Save the file, and it is checked.
    return "".join(sorted(set(text)))
'''
HINTS = [
    "Which type of Python keeps each thing once?",
    "In: a string. Out: a string, with each of its characters once, in the order of their code points.",
    "make a set of the text; sort it; join it to a string",
    'minigpt/training/data.py, vocabulary: "".join(sorted(characters))',
]


def inputs(generator: torch.Generator) -> tuple[str]:
    letters = "the rat sat, and\nthe cat sat too: Ää😀!"
    return ("".join(letters[i] for i in torch.randint(len(letters), (40,), generator=generator).tolist()) + "ba",)


def specification(text: str) -> str:
    known = ""
    for character in text:
        if character not in known:
            known += character
    return "".join(sorted(known))


def solution(text: str) -> str:
    return "".join(sorted(set(text)))


WRONG = [
    ("You keep every character of the text: the vocabulary holds each only once.", lambda text: "".join(sorted(text))),
    ("Your characters stand in the order in which they appear: sort them.", lambda text: "".join(dict.fromkeys(text))),
    ("You return a list: join it to one string.", lambda text: sorted(set(text))),
    ("You return a set, which has no order: sort it and join it.", lambda text: set(text)),
    ("You make letters small: the model tells A from a.", lambda text: "".join(sorted(set(text.lower())))),
    (
        "You leave out white space: a space and a line end are characters like all others.",
        lambda text: "".join(sorted(c for c in set(text) if not c.isspace())),
    ),
    ("You return how many there are; wanted is which.", lambda text: len(set(text))),
]
