"""The lessons as slides. Nothing is told twice: a slide is a part of a lesson, and its speaker's notes are that text.

A slide's body and notes are Markdown. How large its code can be follows from what stands on it; what would get smaller
than the last row can read is split.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import unescape

from minigpt.course.exercises import exercise
from minigpt.course.experiments import EXPERIMENTS
from minigpt.course.figures import FOLDER, VIEWS
from minigpt.course.lesson import Lesson, lessons

# In hundredths of a slide's width, as deck/deck.css has them: what is below the heading, and letters of code.
WIDTH, HEIGHT = 87.0, 43.0
SMALLEST, LARGEST = 1.6, 2.4
ADVANCE, LEADING = 0.61, 1.31  # of a letter of code, and of a line, in letters' sizes
ROW = 1.65  # of a table
TEXT = 3.8  # a line of text
COLUMNS = int(WIDTH / ADVANCE / SMALLEST)  # of code at its smallest; longer lines go on in the next
LETTERS = 56  # of text in a line

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"!\[([^]]*)\]\(\.\./figures/([^)]+)\)")
PICTURE_HERE = r"!\[[^]]*\]\(figures/([^)]+)\)"  # beside the slides
# A link of a lesson leads to a file of the program, which doesn't lie beside the slides, or into the live page.
LINK = re.compile(r"(?<!!)\[([^]]+)\]\((?!https?:|page\.html)[^)]+\)")
SENTENCE = re.compile(r".+?[.?!][*`\")]*(?=\s+[^a-z\s]|$)", re.DOTALL)


@dataclass(frozen=True)
class Slide:
    """One slide; its title, body and notes are Markdown."""

    kind: str  # title, text, code, figure, question, answer, quote or exercise
    title: str
    body: str = ""
    notes: str = ""

    @property
    def letters(self) -> float:
        """How large code and tables can be here, in hundredths of the slide's width."""
        return size(self.body)


def slides(lesson: Lesson) -> list[Slide]:
    """A lesson as slides."""
    opening, *sections = re.split(r"^## ", lesson.body, flags=re.MULTILINE)
    made = [title_slide(lesson, opening)]
    for section in sections:
        title, _, text = section.partition("\n")
        match title:
            case "Predict":
                made += prediction(lesson)
            case "Build it":
                made += building(lesson, text)
            case "What it is not":
                made += misconception(text)
            case _:
                made += section_slides(title, text)
    return [replace(slide, notes=LINK.sub(r"\1", slide.notes), body=LINK.sub(r"\1", slide.body)) for slide in made]


def title_slide(lesson: Lesson, opening: str) -> Slide:
    """Where the lesson leads to, on the scale so far."""
    rows = [(it.rung, f"{it.nats:.2f}") for it in lessons() if it.number <= lesson.number]
    rows[-1] = (f"**{rows[-1][0]}**", f"**{rows[-1][1]}**")
    table = ["| the scale so far | nats |", "|---|---|", *(f"| {rung} | {nats} |" for rung, nats in rows)]
    notes = opening.partition("\n")[2].strip()
    return Slide("title", f"{lesson.number}. {lesson.title}", "\n".join(table), notes)


def prediction(lesson: Lesson) -> list[Slide]:
    """The question, and after it what was measured."""
    question, (first, rest) = lesson.question, lesson.halves
    before = first.rpartition("\n## Predict\n")[2]
    before, after = re.sub(question.pattern, "", before).strip(), re.split(r"^## ", rest, flags=re.MULTILINE)[0].strip()
    made = []
    if BLOCK.search(before):
        made, before = section_slides("Predict", before), ""
    options = "\n".join(f"{number}. {option}" for number, option in enumerate(question.options, 1))
    made.append(Slide("question", "Predict", f"{question.text}\n\n{options}", before))
    measured = f"**{question.options[question.answer]}**"
    if question.key in EXPERIMENTS:
        sentence = EXPERIMENTS[question.key].signature.sentence
        measured += f"\n\n{sentence}\n\n```bash\npython -m minigpt learn break {question.key}\n```"
    made.append(Slide("answer", "Measured", measured))
    return made + (section_slides("Measured", after, lead="") if after else [])


def building(lesson: Lesson, text: str) -> list[Slide]:
    """What is shown of code, and the exercises, each with its first hint, which is a question."""
    code = re.split(r"\n+```bash\n", text)[0] if any(block[1] != "bash" for block in BLOCK.finditer(text)) else ""
    shown = [
        f"{exercise(name).hints[0]}\n\n```bash\npython -m minigpt learn check {name}\n```" for name in lesson.exercises
    ]
    notes = [BLOCK.sub("", text.removeprefix(code)).strip(), *("" for _ in shown[1:])]
    return (section_slides("Build it", code) if code else []) + [
        Slide("exercise", f"Build it: {exercise(name).title}", body, note)
        for name, body, note in zip(lesson.exercises, shown, notes, strict=True)
    ]


def misconception(text: str) -> list[Slide]:
    """What many think, and then what is true."""
    quoted, _, answer = text.strip().removeprefix("*").partition("*")
    title = "What it is not"
    return [Slide("quote", title, f"> {quoted}"), *section_slides(title, answer, sentences(answer, 40))]


def section_slides(title: str, text: str, lead: str | None = None) -> list[Slide]:
    """The blocks of a section, each with the text before it as notes; on the first, the first sentence."""
    groups: list[tuple[str, str]] = []  # what is shown, and the notes
    notes: list[str] = []
    for kind, block in blocks(text):
        if kind == "text":
            notes.append(block)
        elif kind == "output" and groups and not notes:
            groups[-1] = together(groups[-1][0], block), groups[-1][1]
        else:
            groups.append((block, "\n\n".join(notes)))
            notes = []
    groups = groups or [("", "")]
    groups[-1] = groups[-1][0], together(groups[-1][1], *notes)
    made: list[Slide] = []
    lead = sentences(groups[0][1]) if lead is None else lead
    for shown, said in groups:
        if picture := PICTURE.fullmatch(shown):
            made.append(figure(picture[1], picture[2], said))
            continue
        pages = fitting(shown, lead if not made else "")
        made += [Slide("code" if "```" in page else "text", title, page) for page in pages]
        made[-len(pages)] = replace(made[-len(pages)], notes=said)
    return made


def figure(alternative: str, name: str, said: str) -> Slide:
    """A picture, and where the live page shows the like."""
    view, svg = VIEWS[name], (FOLDER / name).read_text(encoding="utf-8")
    title = unescape(svg.partition("<title>")[2].partition("</title>")[0])
    body = f"[{view.says}](page.html#{view.link})\n\n![{alternative}](figures/{name})"
    return Slide("figure", title, body, together(f"{alternative}.", said))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The blocks of Markdown: "text" for what is read aloud; "shown", and "output" of what was shown before."""
    end = 0
    for block in [*BLOCK.finditer(text), None]:
        for part in filter(None, map(str.strip, text[end : block.start() if block else None].split("\n\n"))):
            yield "shown" if part[0] in "|>" or PICTURE.fullmatch(part) else "text", part
        if block:
            yield "output" if block[1] == "text" else "shown", block[0]
            end = block.end()


def sentences(text: str, least: int = 0) -> str:
    """The first sentence of the first paragraph, or the first that have ``least`` characters; none of a list."""
    paragraph = next((block for kind, block in blocks(text) if kind == "text"), "")
    if re.match(r"(\d+\.|[-*]) ", paragraph):
        return ""
    said = ""
    for sentence in SENTENCE.findall(paragraph):
        said = f"{said} {sentence.strip()}".strip()
        if len(said) >= least:
            break
    return " ".join((said or paragraph).split())


def size(body: str) -> float:
    """How large letters of code can be, if all of a body stands on one slide; less than SMALLEST: it doesn't fit."""
    code = [block[2].splitlines() for block in BLOCK.finditer(body)]
    words = [part for part in BLOCK.sub("", body).split("\n\n") if part.strip()]
    tables = [part.splitlines()[1:] for part in words if part.lstrip().startswith("|")]
    lines = [line for block in code for line in block]
    height = HEIGHT - 2.6 * len(code)
    height -= sum(TEXT * math.ceil(len(part) / LETTERS) + 1 for part in words if not part.lstrip().startswith("|"))
    rows = LEADING * sum(max(1, math.ceil(len(line) / COLUMNS)) for line in lines) + ROW * sum(map(len, tables))
    columns = min(COLUMNS, max(map(len, lines), default=0)) or 1
    return min(LARGEST, WIDTH / ADVANCE / columns, height / max(rows, 1))


def fitting(shown: str, lead: str) -> list[str]:
    """What is shown, in as few bodies as fit on a slide each: code and output together, or else one after the other."""
    if size(together(lead, shown)) >= SMALLEST:
        return [together(lead, shown)]
    bodies = [lead] if len(lead) >= 40 else []  # less doesn't fill a slide
    if size(shown) >= SMALLEST or not BLOCK.search(shown):
        return [*bodies, shown]
    for block in BLOCK.finditer(shown):
        pages = [f"```{block[1]}\n" + "\n".join(page) + "\n```" for page in split(block[2].splitlines())]
        if bodies and block[1] == "text" and size(together(bodies[-1], pages[0])) >= SMALLEST:
            pages[0] = together(bodies.pop(), pages[0])
        bodies += pages
    return bodies


def together(*bodies: str) -> str:
    return "\n\n".join(filter(None, bodies))


def split(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """Code in parts that fit, cut where a reader would: before what begins anew, and so that no few lines are left."""
    while lines:
        fits = [size("```\n" + "\n".join(lines[:n]) + "\n```") >= SMALLEST for n in range(len(lines) + 1)]
        if all(fits):
            yield lines
            return
        most = max(1, fits.index(False) - 1)
        places = range(min(most, len(lines) - 4), most // 3, -1) or [most]
        cut = min(places, key=lambda n: depth(lines, n))
        yield "\n".join(lines[:cut]).rstrip().splitlines()
        lines = lines[cut:]
        while not lines[0]:
            lines = lines[1:]


def depth(lines: Sequence[str], n: int) -> tuple[bool, int]:
    """How far line n is from a beginning: what comes after an empty line is nearest, then what is least indented."""
    indent = len(lines[n]) - len(lines[n].lstrip())
    return bool(lines[n - 1]) or not lines[n] or indent > 4, indent
