"""The lessons as slides: nothing is missing, no answer comes too early, and a class can read every one."""

import contextlib
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

import minigpt.course.lesson
import test_page
from conftest import ROOT, assert_clear_error, run_minigpt
from minigpt.course.exercises import exercise
from minigpt.course.experiments import EXPERIMENTS
from minigpt.course.figures import FIGURES, FOLDER, VIEWS
from minigpt.course.lesson import Lesson, lessons
from test_page import AXE, CONTRAST, eventually

browser = test_page.browser  # a fixture
folder = test_page.folder  # another: a run that was filmed

LESSONS = [pytest.param(it, id=it.path.stem) for it in lessons()]
PAGE = ROOT / "minigpt" / "glassbox" / "page"


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command writes, without a live page. Not to be changed."""
    folder = tmp_path_factory.mktemp("deck") / "slides"
    done = run_minigpt("learn", "export", "--output_dir", folder)
    assert done.code == 0, done.err
    last = done.out.splitlines()[-1]
    assert last == f"python -m minigpt explain --ckpt_path best --output {folder / 'page.html'}"
    return folder


def slides_of(deck: Path, lesson: Lesson | None = None) -> list[str]:
    """The HTML of each slide, or of those of a lesson."""
    page = (deck / "slides.html").read_text(encoding="utf-8")
    slides = re.findall(r'<section class="slide.*?</section>', page, re.DOTALL)
    return [it for it in slides if not lesson or f'<p class="foot">{lesson.number}. ' in it]


def text_of(slide: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", slide)).split())


def code_of(slides: list[str]) -> list[str]:
    """The lines of all code, one slide after the other, without empty ones."""
    code = "".join(re.findall(r"<pre><code[^>]*>(.*?)</code></pre>", "".join(slides), re.DOTALL))
    return [line for line in html.unescape(code).splitlines() if line]


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_is_in_the_deck_with_all_its_code_and_pictures(deck: Path, lesson: Lesson) -> None:
    slides = slides_of(deck, lesson)
    shown, said = code_of(slides), text_of("".join(slides))
    assert text_of(slides[0]).startswith(f"{lesson.number}. {lesson.title} the scale so far")
    assert f"{lesson.rung} {lesson.nats:.2f}" in text_of(slides[0])
    written = (deck / "slides.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", lesson.body, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    for block in blocks:
        wanted = [line for line in block.splitlines() if line]
        places = range(len(shown))
        assert any(shown[i : i + len(wanted)] == wanted for i in places), block
        assert all(line in written for line in wanted)
    for alternative, name in re.findall(r"!\[([^]]*)\]\(\.\./figures/([^)]+)\)", lesson.body):
        [slide] = [it for it in slides if f'aria-label="{alternative}"' in html.unescape(it)]
        assert alternative in text_of(slide.partition("<details")[2])
        assert f'<a href="page.html#{html.escape(VIEWS[name].link)}">{VIEWS[name].says}</a>' in slide
        assert (deck / "figures" / name).read_bytes() == (FOLDER / name).read_bytes()
        assert f"](figures/{name})" in written
    for paragraph in re.split(r"\n\n", re.sub(r"^```.*?^```$", "", lesson.body, flags=re.DOTALL | re.MULTILINE)):
        words = re.findall(r"[A-Za-z]{4,}", re.sub(r"\]\([^)]*\)", "]", paragraph))
        assert not set(words) - set(re.findall(r"[A-Za-z]{4,}", said)), paragraph
    for name in lesson.exercises:
        assert f"{exercise(name).hints[0]} python -m minigpt learn check {name}" in said


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_answer_comes_after_its_question(deck: Path, lesson: Lesson) -> None:
    slides, question = slides_of(deck, lesson), lesson.question
    [asked] = [i for i, it in enumerate(slides) if 'class="slide question"' in it]
    measured = question.options[question.answer].rstrip(".")
    secrets = [measured]
    if question.key in EXPERIMENTS:
        secrets.append(EXPERIMENTS[question.key].signature.sentence)
    body = text_of(slides[asked])
    for number, option in enumerate(question.options, 1):
        assert f"<li>{html.escape(option, quote=False)}</li>" in slides[asked], number
        body = body.replace(option, "")
    assert question.text in body
    for secret in secrets:
        assert secret in text_of(slides[asked + 1])
        assert secret not in body
        assert secret not in " ".join(map(text_of, slides[:asked]))
    assert (f"learn break {question.key}" in slides[asked + 1]) == (question.key in EXPERIMENTS)
    # In the Markdown too the options stand first, and what was measured on the next slide.
    written = (deck / "slides.md").read_text(encoding="utf-8")
    assert f"## Measured\n\n**{question.options[question.answer]}**" in written.partition(question.text)[2]


def test_the_deck_asks_for_nothing_from_the_network(deck: Path) -> None:
    page = (deck / "slides.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html.unescape(page)
    assert not re.search(r"https?:|//\w+\.|@import|url\(|<link|<iframe|\ssrc=", page)
    assert all(it.startswith(("#", "page.html#")) for it in re.findall(r'href="([^"]*)"', page))


def test_what_looks_like_a_tag_is_text(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = '</code></pre><script>alert("1 & 2")</script> {{ 3 * 3 }}'
    first = lessons()[0]
    told = first.path.read_text(encoding="utf-8").replace("What surprise costs", "What <i>& surprise</i> costs")
    told = told.replace("import math\n", f"import math  # {hostile}\n")
    told = told.replace("Call it *p*", f"<div hidden>\n\nCall {hostile} *p*")
    (workplace / first.path.name).write_text(told, encoding="utf-8")
    monkeypatch.setattr(minigpt.course.lesson, "FOLDER", workplace)
    assert run_minigpt("learn", "export", "--lesson", 1).code == 0
    slides = slides_of(Path("slides"))
    assert f"import math  # {hostile}" in code_of(slides)
    assert hostile in html.unescape("".join(slides))
    page = (workplace / "slides" / "slides.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1
    assert "<i>" not in page
    assert "<div hidden>" not in page


def test_lessons_are_chosen_and_files_of_others_left_alone(workplace: Path) -> None:
    assert run_minigpt("learn", "export", "--lesson", 5, "--lesson", 2).code == 0
    assert sorted(it.name for it in (workplace / "slides" / "figures").iterdir()) == [
        "02-windows.svg",
        "05-attention.svg",
    ]
    assert len(slides_of(Path("slides"), lessons()[4])) > 10
    assert slides_of(Path("slides"), lessons()[0]) == []
    assert run_minigpt("learn", "export", "--lesson", 2).code == 0  # its own files it replaces
    notes = workplace / "slides" / "slides.md"
    mine = notes.read_text(encoding="utf-8") + "\nand my own words\n"
    notes.write_text(mine, encoding="utf-8")
    (workplace / "slides" / "slides.html").unlink()
    refused = run_minigpt("learn", "export")
    assert_clear_error(refused, "slides.md is there already", "--output_dir")
    assert notes.read_text(encoding="utf-8") == mine
    assert not (workplace / "slides" / "slides.html").exists()
    (workplace / "other").mkdir()
    (workplace / "other" / "slides.sha256").write_text("mine")
    assert_clear_error(run_minigpt("learn", "export", "--output_dir", "other"), "no list of slides")
    assert_clear_error(run_minigpt("learn", "export", "--output_dir", "text.txt"), "text.txt")
    assert_clear_error(run_minigpt("learn", "export", "--lesson", 13), "no lesson 13")


def test_a_page_that_is_not_ours_is_left_alone(in_trained: Path) -> None:
    (in_trained / "slides").mkdir()
    (in_trained / "slides" / "page.html").write_text("mine")
    refused = run_minigpt("learn", "export", "--ckpt_path", "last")
    assert_clear_error(refused, "page.html is there already")
    assert [it.name for it in (in_trained / "slides").iterdir()] == ["page.html"]


def listed(script: str, name: str) -> list[str]:
    """The strings of an array in a script."""
    found = re.search(rf"\b{name}(?: =|:) \[(.*?)\]", script)
    assert found
    return re.findall(r'"(\w+)"', found[1])


def test_each_picture_leads_to_what_the_page_knows() -> None:
    state, main = ((PAGE / name).read_text(encoding="utf-8") for name in ("state.js", "main.js"))
    defaults = re.search(r"^const DEFAULTS = \{(.*?)^\};", state, re.DOTALL | re.MULTILINE)
    assert defaults
    known = set(re.findall(r"^  (\w+):", defaults[1], re.MULTILINE))
    assert {"text", "panel", "step"} <= known
    of_depth = main[main.index("const OF_DEPTH") :]
    assert VIEWS.keys() == FIGURES.keys()
    for view in VIEWS.values():
        link = dict(parse_qsl(view.link, strict_parsing=True))
        assert link.keys() <= known
        assert link["depth"] in listed(state, "DEPTHS")
        assert link["panel"] in listed(main, "PANELS")
        assert link["panel"] in listed(of_depth, link["depth"])
        assert re.fullmatch(r"[0-2]\.[0-3]|", link.get("head", ""))  # of quickstart
        assert view.says.startswith(("The same in the live page: ", "In the live page: "))


# In a browser


@pytest.fixture(scope="module")
def beside(browser: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slides, and beside them the live page of a tiny model. Not to be changed."""
    slides = tmp_path_factory.mktemp("beside") / "slides"
    with contextlib.chdir(folder):
        done = run_minigpt("learn", "export", "--output_dir", slides, "--ckpt_path", "last")
    assert done.code == 0, done.err
    assert "explain" not in done.out
    return slides


@pytest.fixture
def show(browser: Any, beside: Path) -> Iterator[Any]:
    """Shows the deck, offline. At the end no page may have complained."""
    complaints, contexts = list[str](), list[Any]()

    def show(hash_: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, "offline": True} | options)
        contexts.append(context)
        context.set_default_timeout(5000)
        page = context.new_page()
        page.on("console", lambda it: complaints.append(it.text) if it.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((beside / "slides.html").as_uri() + hash_)
        return page

    yield show
    for context in contexts:
        context.close()
    assert not complaints


@pytest.mark.soak
def test_the_deck_by_keyboard_and_by_mouse(show: Any) -> None:
    page = show("#4")
    count = page.locator(".slide").count()

    def shown() -> list[int]:
        return page.eval_on_selector_all(".slide", "them => them.filter(it => it.checkVisibility()).map(it => +it.id)")

    assert shown() == [4]
    for key, wanted in (
        *(("ArrowRight", 5), ("Space", 6), ("PageDown", 7), ("ArrowLeft", 6), ("Shift+Space", 5), ("PageUp", 4)),
        *(("Home", 1), ("ArrowLeft", 1), ("End", count), ("ArrowRight", count)),
    ):
        page.keyboard.press(key)
        eventually(page, "location.hash", f"#{wanted}")
        assert shown() == [wanted]
        assert page.evaluate("document.activeElement.closest('.slide').id") == str(wanted)
    page.goto(page.url.partition("#")[0] + "#3")
    page.click("#on")
    eventually(page, "location.hash", "#4")
    page.click("#back")
    eventually(page, "location.hash", "#3")
    notes = page.locator(".current .notes p").first
    assert not notes.is_visible()
    page.keyboard.press("n")
    assert notes.is_visible()
    assert page.locator(".current .body").bounding_box()["height"] > 100
    page.keyboard.press("n")
    assert not notes.is_visible()
    page.keyboard.press("Home")
    assert page.locator("#on").is_visible()
    assert not page.locator("#back").is_visible()  # there is nothing before
    page.click(".contents a >> nth=4")
    assert page.locator(".current h2").inner_text() == f"5. {lessons()[4].title}"


# By how much what stands on the slide is too high or too wide for it, its lowest line included.
OVER = """() => slides.map((slide) => {
  location.hash = slide.id;
  show();
  const frame = slide.getBoundingClientRect(), low = slide.querySelector(".foot, .keys").getBoundingClientRect().top;
  const parts = [...slide.querySelectorAll("h2, .body, .body *, ol *")].filter((it) => !it.closest("svg *"));
  const boxes = parts.map((it) => it.getBoundingClientRect());
  const right = frame.right - 0.06 * frame.width + 1;
  const over = [Math.max(...boxes.map((it) => it.bottom)) - low, Math.max(...boxes.map((it) => it.right)) - right];
  over.push(frame.bottom - innerHeight, slide.scrollHeight - slide.clientHeight);
  const letters = [...slide.querySelectorAll(".body :is(pre, p, li, td)")].map((it) => getComputedStyle(it).fontSize);
  return [slide.id, Math.max(...over), Math.min(...letters.map(parseFloat), 99)];
})"""


@pytest.mark.soak
def test_no_slide_is_cut_off_and_all_can_be_read_from_the_last_row(show: Any) -> None:
    page = show()
    found = page.evaluate(OVER)
    assert len(found) > 200
    assert [it for it in found if it[1] > 0] == []
    assert [it for it in found if it[2] < 20] == []  # pixels of 720


@pytest.mark.soak
def test_without_a_script_on_a_phone_and_on_paper(show: Any, tmp_path: Path) -> None:
    plain, phone = show(java_script_enabled=False), show(viewport={"width": 360, "height": 640}, has_touch=True)
    for page in (plain, phone):
        visible = page.locator(".slide:visible").count()
        assert visible == page.locator(".slide").count() > 200
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    assert plain.locator("nav").is_hidden()
    paper = show(color_scheme="dark").pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) == visible


@pytest.mark.soak
@pytest.mark.parametrize(
    ("screen", "rules"),
    [
        ({}, {}),
        ({"color_scheme": "dark"}, {"runOnly": ["color-contrast"]}),
        ({"viewport": {"width": 360, "height": 640}}, CONTRAST),
    ],
    ids=("light", "dark", "phone"),
)
def test_axe_finds_nothing_in_the_deck(show: Any, screen: dict[str, Any], rules: dict[str, Any]) -> None:
    import axe_playwright_python

    page, found = show(**screen), {}
    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    of_each_kind = page.evaluate(
        "[...new Map(slides.slice(1).map((it) => [it.className, it.id])).values(), 1, 2].map(String)"
    )
    for slide in of_each_kind if rules != CONTRAST else ["2"]:  # on a phone all are shown at once
        page.evaluate(f"location.hash = '{slide}'")
        eventually(page, "document.querySelector('.current').id", slide)
        if slide == "2":
            page.keyboard.press("n")
        for it in page.evaluate(AXE, rules):
            found[it["id"]] = slide, it["nodes"][0]["html"][:200], it["nodes"][0]["failureSummary"]
    assert found == {}


@pytest.mark.soak
def test_a_pictures_link_opens_the_live_page_there(show: Any) -> None:
    page = show()
    links = page.eval_on_selector_all(".figure .body a", "them => them.map(it => it.getAttribute('href'))")
    assert sorted(links) == sorted(f"page.html#{view.link}" for view in VIEWS.values())
    for i, link in enumerate(links):
        page.evaluate(f"location.hash = document.querySelectorAll('.figure')[{i}].id")
        page.click(".current .body a")
        page.wait_for_url("**/page.html*")
        eventually(page, "document.getElementById('badge').className", "good")
        for name, value in parse_qsl(link.partition("#")[2]):
            beyond = name == "head" and value[-1] > "1"  # this model has two heads
            assert str(page.evaluate(f"state.{name}")) == ("" if beyond else value), link
        panel = page.evaluate("current()")
        assert f"panel={panel}" in link
        assert page.locator(f"#{panel}-panel").is_visible()
        page.go_back()
