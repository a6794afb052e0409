"""For those who teach: the lessons as a deck for the projector, as Markdown for other programs, and their pictures."""

import base64
import functools
import hashlib
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import jinja2
import markdown

from minigpt.course.figures import FOLDER
from minigpt.course.lesson import Lesson, known_lesson, lessons
from minigpt.course.slides import PICTURE_HERE, Slide, slides
from minigpt.errors import UserError
from minigpt.files import user_path, written_whole

TITLE = "minigpt: the course"
PARTS = Path(__file__).parent / "deck"
WRITTEN = "slides.sha256"  # what was written into a folder: lines of a digest and a name, as sha256sum has them


def export(settings: Namespace) -> None:
    """Write slides, pictures, and with a checkpoint its live page, to which the pictures have links."""
    chosen = [known_lesson(number) for number in sorted(set(settings.lesson))] or lessons()
    folder = user_path(settings.output_dir)
    deck = {lesson.number: slides(lesson) for lesson in chosen}
    files = {"slides.html": as_html(chosen, deck).encode(), "slides.md": as_markdown(chosen, deck).encode()}
    for every in deck.values():
        for name in re.findall(PICTURE_HERE, "".join(slide.body for slide in every)):
            files[f"figures/{name}"] = (FOLDER / name).read_bytes()
    known = check_free(folder, files)  # before a minute is spent on the page
    page = folder / "page.html"
    if settings.ckpt_path:
        settings.call("explain", ["--ckpt_path", settings.ckpt_path, "--output", str(page)])
    write(folder, files, known)
    count = sum(map(len, deck.values())) + 1
    print(f"{folder / 'slides.html'}: {count} slides; open it in a browser. Arrow keys turn them, n shows the notes.")
    print(f"{folder / 'slides.md'}: the same for PowerPoint: cd {folder} && pandoc slides.md -o slides.pptx")
    if not page.exists():
        print(
            f"The pictures have links into the live page of a model, {page}, which is not there yet. To make it:\n"
            f"python -m minigpt explain --ckpt_path best --output {page}"
        )


def check_free(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
    """The digests of what was written into a folder before.

    Raises:
        UserError: a file is in the way that isn't as this program wrote it, or that can't be read.
    """
    known: dict[str, str] = {}
    try:
        if (record := folder / WRITTEN).exists():
            lines = re.findall(r"^([0-9a-f]{64})  (.+)$", record.read_text(encoding="utf-8", errors="replace"), re.M)
            known = {name: digest for digest, name in lines}
            if record.read_bytes() != as_record(known):
                raise UserError(f"{record} is there already, and is no list of slides. Name another folder.")
        for name, wanted in files.items():
            path = folder / name
            found = path.read_bytes() if path.exists() or path.is_symlink() else wanted
            if found != wanted and digest_of(found) != known.get(name):
                raise UserError(
                    f"{path} is there already, and is not as this program wrote it. Move it away, or name another "
                    "folder with --output_dir."
                )
    except OSError as error:
        raise UserError(f"{error.filename or folder} can't be read: {error.strerror}. Name another folder.") from error
    return known


def write(folder: Path, files: dict[str, bytes], known: dict[str, str]) -> None:
    """Write files, and at last the record of them. One that a killed process wrote is known by what is in it.

    Raises:
        UserError: one can't be written.
    """
    known = known | {name: digest_of(content) for name, content in files.items()}
    try:
        for name, content in {**files, WRITTEN: as_record(known)}.items():
            with written_whole(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise UserError(f"--output_dir {folder} can't be written: {error.strerror or error}.") from error


def as_record(known: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in known.items()).encode()


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def as_html(chosen: list[Lesson], deck: dict[int, list[Slide]]) -> str:
    """One page, which needs nothing beside itself."""
    found: list[dict[str, Any]] = []
    for lesson in chosen:
        for slide in deck[lesson.number]:
            found.append(
                {
                    "number": len(found) + 2,  # the first are the contents
                    "lesson": lesson.number,
                    "name": lesson.title,
                    "kind": slide.kind,
                    "heading": html(f"# {slide.title}").removeprefix("<h1>").removesuffix("</h1>"),
                    "body": html(slide.body),
                    "notes": html(slide.notes),
                    "letters": f"{slide.letters:.2f}",
                }
            )
    style, script = ((PARTS / name).read_text(encoding="utf-8") for name in ("deck.css", "deck.js"))
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string((PARTS / "deck.html").read_text(encoding="utf-8")).render(
        policy=f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'",
        title=TITLE,
        style=style,
        script=script,
        deck=found,
    )


def html(text: str) -> str:
    """Markdown as HTML: what looks like a tag is text, and a picture stands in the page itself."""
    return re.sub(r'<p><img alt="([^"]*)" src="figures/([^"]+)" /></p>', drawn, converter().reset().convert(text))


@functools.cache  # to make one takes longer than a slide
def converter() -> markdown.Markdown:
    made = markdown.Markdown(extensions=["fenced_code", "tables", "sane_lists"])
    made.preprocessors.deregister("html_block")
    made.inlinePatterns.deregister("html")
    return made


def drawn(image: re.Match[str]) -> str:
    svg = (FOLDER / image[2]).read_text(encoding="utf-8").replace(' xmlns="http://www.w3.org/2000/svg"', "")
    return f'<div class="picture">{svg.replace("<svg ", f"""<svg aria-label="{image[1]}" """, 1)}</div>'


def as_markdown(chosen: list[Lesson], deck: dict[int, list[Slide]]) -> str:
    """The slides as pandoc makes slides of them: a heading for each, and for each lesson one above."""
    parts = [f'---\ntitle: "{TITLE}"\nlang: en\n---']
    for lesson in chosen:
        for slide in deck[lesson.number]:
            if slide.kind == "title":
                parts.append(f"# {slide.title}")
            parts += [f"## {lesson.title if slide.kind == 'title' else slide.title}", slide.body]
            if slide.notes:
                parts.append(f"::: notes\n\n{slide.notes}\n\n:::")
    return "\n\n".join(filter(None, parts)) + "\n"
