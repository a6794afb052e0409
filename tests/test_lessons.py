"""Every lesson of the course is true: its code runs, prints what it says, and draws its pictures."""

import itertools
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import ROOT
from minigpt.course.exercises import NAMES, exercise
from minigpt.course.experiments import EXPERIMENTS
from minigpt.course.figures import FIGURES, of_lesson
from minigpt.course.figures import FOLDER as PICTURES
from minigpt.course.lesson import BLOCK, Lesson, lessons, run

SLOW = set(range(3, 13))  # numbers of lessons whose code takes a second or more
LESSONS = [pytest.param(it, id=it.path.stem) for it in lessons()]
RUNNING = [pytest.param(it, id=it.path.stem, marks=[pytest.mark.soak] if it.number in SLOW else []) for it in lessons()]
PACKAGE = ROOT / "minigpt"
SECTIONS = ["Predict", "Try it", "Build it", "What it is not", "Where we are"]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def alike(found: str, wanted: str) -> bool:
    """Whether two texts are equal; a number with a point may differ by one in its last place.

    Another machine may round otherwise, and nothing that a lesson says depends on it.
    """
    if NUMBER.split(found) != NUMBER.split(wanted):
        return False
    pairs = zip(NUMBER.findall(found), NUMBER.findall(wanted), strict=True)
    return all(a == b or near(a, b) for a, b in pairs)


def near(a: str, b: str) -> bool:
    places = len(a.partition(".")[2])
    return places > 0 and places == len(b.partition(".")[2]) and abs(float(a) - float(b)) < 1.5 * 10**-places


def test_numbers_may_differ_in_their_last_place_alone() -> None:
    assert alike("step 3: 1.85 nats", "step 3: 1.84 nats")
    for other in (
        "step 3: 1.83 nats",
        "step 4: 1.85 nats",
        "step 3: 1.9 nats",
        "step 3: 1.85 bits",
        "step 3: -1.85 nats",
    ):
        assert not alike("step 3: 1.85 nats", other)


@pytest.mark.parametrize("lesson", RUNNING)
def test_a_lesson_prints_what_it_says_and_draws_its_pictures(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session, outputs = run(lesson)
    assert len(outputs) >= 3
    for number, (printed, written) in enumerate(outputs, 1):
        assert alike(printed, written), f"{lesson.path.name}, block {number} prints:\n{printed}\nand not:\n{written}"
    images = of_lesson(lesson.number, session)
    assert images
    for name, image in images.items():
        assert alike(image, (PICTURES / name).read_text(encoding="utf-8")), f"python -m minigpt.course.figures: {name}"


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_has_what_the_learner_is_led_by(lesson: Lesson) -> None:
    assert lesson.body.startswith(f"# {lesson.title}\n")
    assert [title for title in re.findall(r"^## (.*)$", lesson.body, re.MULTILINE) if title in SECTIONS] == SECTIONS
    assert 1 <= len(lesson.exercises) <= 2
    for name in lesson.exercises:
        assert name in NAMES
        assert exercise(name).lesson == lesson.number
        assert f"`{name}`" in lesson.body
    question = lesson.question
    assert question.text.endswith("?")
    assert 2 <= len(set(question.options)) == len(question.options) <= 4
    assert EXPERIMENTS[lesson.experiment].lesson == lesson.number
    assert 20 <= lesson.minutes <= 40
    assert f"minigpt learn break {lesson.experiment}\n" in lesson.body


@pytest.mark.parametrize("lesson", LESSONS)
def test_what_is_read_before_the_prediction_does_not_tell_it(lesson: Lesson) -> None:
    first, rest = lesson.halves
    assert "\n## Predict\n" in first
    assert "## Try it\n" in rest
    assert lesson.question.text in " ".join(first.split())
    measured = lesson.question.options[lesson.question.answer].rstrip(".")
    assert measured not in " ".join(first.split())


def test_the_right_option_is_not_always_at_the_same_place() -> None:
    places = [experiment.answer for experiment in EXPERIMENTS.values()]
    places += [lesson.question.answer for lesson in lessons()]
    assert max(Counter(places).values()) <= len(places) / 2


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_script_of_a_lesson_holds_its_blocks_and_its_text(lesson: Lesson) -> None:
    cells = re.split(r"^# %%", lesson.as_script(), flags=re.MULTILINE)
    blocks = [cell.strip() for cell in cells[1:] if not cell.startswith(" [markdown]")]
    assert blocks == [block[1].strip() for block in BLOCK.finditer(lesson.body)]
    compile(lesson.as_script(), "lesson.py", "exec")
    assert "# ## Where we are" in lesson.as_script()


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_can_be_read_in_one_sitting(lesson: Lesson) -> None:
    assert 700 <= len(lesson.body.split()) <= 1800
    assert max(len(line) for line in lesson.body.splitlines() if not line.startswith("![")) <= 120
    code = re.findall(r"^```python\n(.*?)^```$", lesson.body, re.DOTALL | re.MULTILINE)
    assert max(block.count("\n") for block in code) <= 32  # no more than fits on a screen
    # Only output stands in a block of text, and all of it is compared.
    assert lesson.body.count("```text\n") == len(re.findall(r"^```\n\n```text\n", lesson.body, re.MULTILINE))


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_number_of_a_lesson_was_printed(lesson: Lesson) -> None:
    """Each one with two decimals in the running text: by this lesson or an earlier one, or in the documents."""
    earlier = "".join(it.path.read_text(encoding="utf-8") for it in lessons() if it.number <= lesson.number)
    printed = "".join(re.findall(r"^```text\n(.*?)^```$", earlier, re.DOTALL | re.MULTILINE))
    documents = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    prose = re.sub(r"^```.*?^```$", "", lesson.body, flags=re.DOTALL | re.MULTILINE) + f" {lesson.nats:.2f}"
    for number in re.findall(r"\d+\.\d\d+", prose):
        assert number in printed or number in documents, number


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_links_and_pictures_of_a_lesson_are_there(lesson: Lesson) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", lesson.body):
        path = (lesson.path.parent / target).resolve()
        assert (path.exists() and PACKAGE in path.parents) or target == "page.html", target  # it ships with the lesson
    images = re.findall(r"!\[([^]]*)\]\(\.\./figures/([^)]+)\)", lesson.body)
    assert {name for _, name in images} == {name for name in FIGURES if int(name[:2]) == lesson.number}
    for alternative, name in images:
        assert len(alternative) >= 20
        root = ElementTree.fromstring((PICTURES / name).read_text(encoding="utf-8"))
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert not {"white", "black", "#fff", "#000"} & {it.get("fill") for it in root.iter()}


def test_the_course_goes_down_one_step_after_the_other() -> None:
    course = lessons()
    numbers = [it.number for it in course]
    assert numbers == list(range(1, len(course) + 1))  # a lesson is found by its place
    assert [name for it in course for name in it.exercises] == [n for n in NAMES if exercise(n).lesson in numbers]
    for before, after in itertools.pairwise(course):
        assert after.nats < before.nats + 0.02, after.path.name  # what is learned equals what is counted, but not more
    assert {path.name for path in PICTURES.glob("*.svg")} == {name for name in FIGURES if int(name[:2]) in numbers}


def test_the_key_of_the_teachers_questions_is_what_the_lessons_print() -> None:
    """And each question has its row, with an option that the question offers."""
    document = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    asked = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^\| \| key)", document, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| (\d+) \| ([abcd]) \| (.*) \| (\d+) \|$", document, re.MULTILINE)
    assert len(asked) == len(rows) == 12
    for (number, question), (row, letter, measured, lesson) in zip(asked, rows, strict=True):
        assert number == row
        assert f"({letter})" in question
        body = lessons()[int(lesson) - 1].body
        for value in re.findall(r"\d+\.\d+|\d+,\d+", measured.replace("Head 1.2", "").replace("head 0.3", "")):
            assert value in body, (number, value)
        for name in re.findall(r"learn break (\w+)", measured):
            assert name in EXPERIMENTS
