"""Every command, every block of Python and every change of model.py in the documents works as it stands there."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, make_text, run_minigpt

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python|diff)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What trains for minutes there trains for a moment here; what is not named stays as it is. Later flags win.
SHORTER = {
    "fit": "--trainer.val_check_interval 2 --trainer.limit_val_batches 1 --sampler.max_new_tokens 5",
    "prove-resume": "--steps 3 --kills 1 --trainer.limit_val_batches 1 --sampler.max_new_tokens 5",
    "generate": "--max_new_tokens 20",
    "report": "--max_new_tokens 20",
    "learn train": "--trainer.val_check_interval 2 --trainer.limit_val_batches 1 --trainer.max_steps 2",
    "learn grade": "--trust",  # tests/test_grade.py runs it isolated
}


def blocks_of(document: Path) -> list[tuple[str, str]]:
    """The language and the text of each block that is run, in order."""
    return BLOCK.findall(document.read_text())


def commands_of(block: str) -> Iterator[str]:
    return (line for line in block.splitlines() if line.strip() and not line.startswith("#"))


def model_with(diff: str) -> str:
    """model.py with one change; each of its old lines must stand there once."""
    source, lines = (ROOT / "minigpt" / "model.py").read_text(), diff.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] in (" ", mark)) for mark in "-+")
    assert old != new
    assert source.count(old) == 1, old
    return source.replace(old, new)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_a_change_that_is_shown_fits_model_py(document: Path) -> None:
    changes = [text for language, text in blocks_of(document) if language == "diff"]
    for change in changes:
        compile(model_with(change), "model.py", "exec")
    assert len(changes) >= {"README": 1, "experiments": 6}.get(document.stem, 0)


def test_the_installing_commands_are_the_ones_that_ci_runs() -> None:
    document = DOCUMENTS[0].read_text()
    commands = [
        command for language, block in BLOCK.findall(document) if language == "bash" for command in commands_of(block)
    ]
    installing = [command for command in commands if "pip install" in command]
    assert installing == [
        'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[shakespeare]" '
        "&& python -m minigpt fit --config configs/quickstart.yaml",
        'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && pytest',
    ]
    assert "/<!-- tests -->/" in (ROOT / ".ci" / "run").read_text()
    assert "<!-- tests -->\n```bash\n" + installing[1] in document


def test_the_links_of_the_documents_lead_somewhere() -> None:
    for document in [*DOCUMENTS, *ROOT.glob("*/README.md"), ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "NOTES.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document, target)


@pytest.mark.parametrize(
    "document",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.soak] if path.parent != ROOT else []) for path in DOCUMENTS],
)
def test_everything_in_a_document_works_in_the_order_in_which_it_stands(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minigpt.training.plan.CALIBRATION", 0.1)
    shutil.copytree(ROOT / "configs", "configs")
    Path("my.txt").write_text(make_text(20_000) + "Q: O, it works.\n")
    Path("book2.txt").write_text(make_text(20_000, seed=2).replace("hat", "Fuß"))
    Path("my").mkdir()  # for teaching.md, whose class has written it by then
    Path("my/attend.py").write_text("from minigpt.course.exercises.attend import solution as attend\n")
    reader = Reader(document)
    for language, block in blocks_of(document):
        if language == "diff":
            reader.change(block)
        elif language == "python":
            exec(compile(block, str(document), "exec"), reader.session)
        else:
            for command in commands_of(block):
                monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))  # for chat
                reader.run(command)
    assert reader.ran >= 1
    shown = capsys.readouterr().out
    for output in re.findall(r"# (torch\.Size.*?\))", document.read_text()):
        assert output in shown


class Reader:
    """Somebody who does what a document says, from its top to its end, in the current folder."""

    def __init__(self, document: Path) -> None:
        self.document = document
        self.session: dict[str, Any] = {}  # what the blocks of Python have defined
        self.package: Path | None = None  # one whose model.py was changed, for the next command
        self.steps = 0  # of the run that was trained last
        self.ran = 0

    def change(self, diff: str) -> None:
        """Change model.py in a copy of the package. (tests/test_fast.py trains with what the README changes.)"""
        if self.document.stem != "README":
            self.package = Path("copy")
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "minigpt", self.package / "minigpt", ignore=ignored, dirs_exist_ok=True)
            (self.package / "minigpt" / "model.py").write_text(model_with(diff))

    def run(self, command: str) -> None:
        """Do what one line of bash asks for, in less time."""
        words = shlex.split(command)
        if "pip" in words:
            words = words[words.index("&&", words.index("pip")) + 1 :]  # what follows the installation
        if words[0] == "tensorboard":
            check_tensorboard(words, really=self.document.stem != "README")
        elif words[:3] == ["python", "-m", "minigpt"]:
            self.run_minigpt(words)
        elif words != ["pytest"]:
            subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], check=True, timeout=200)
        self.ran += 1

    def run_minigpt(self, words: list[str]) -> None:
        if words[3] == "explore":
            check_served([*words[1:], "--no_browser", "--port", "0"])
            return
        words += shlex.split(SHORTER.get(words[3], SHORTER.get(" ".join(words[3:5]), "")))
        if words[3] == "fit":
            self.steps = 2 + (self.steps if {"last", "best"} & set(words) else 0)
            words += ["--trainer.max_steps", str(self.steps)]
        if self.package or any("ddp" in word for word in words):
            environment = os.environ | (
                {"PYTHONPATH": str(self.package), "PYTHONSAFEPATH": "1"} if self.package else {}
            )
            command = [sys.executable, *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
            assert done.returncode == 0, (words, done.stderr)
            assert not self.package or "model.py's formulas, because model.py is not" in " ".join(done.stdout.split())
            self.package = None
        else:
            result = run_minigpt(*words[3:])
            assert result.code == 0, (words, result.err)


def check_served(words: list[str]) -> None:
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.search(r"http://\S+/", process.stdout.readline())
        try:
            assert address
            with urllib.request.urlopen(address[0], timeout=60) as response:
                assert b'id="contents"' in response.read()
        finally:
            process.terminate()


def check_tensorboard(words: list[str], really: bool) -> None:
    program = Path(sys.executable).with_name("tensorboard")
    assert program.exists()
    if not really:  # which takes some seconds
        return
    command = [str(program), *words[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(m[0] for line in process.stderr if (m := re.search(r"http://localhost:\d+/", line)))
        try:
            with urllib.request.urlopen(address + "data/runs", timeout=60) as response:
                assert b"version_0" in response.read()
        finally:
            process.terminate()
