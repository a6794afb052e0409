"""Grading a class: what is handed in, marks and mistakes, predictions, and programs that would do harm."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePath

import pytest

import minigpt
from conftest import assert_clear_error, run_minigpt
from minigpt.course import child, sandbox
from minigpt.course.check import Child, Result, inputs_of, job_of, judge, judged, report_of, results_of
from minigpt.course.exercises import exercise
from minigpt.course.grade import MISSING, files_in
from minigpt.course.lesson import lessons
from minigpt.errors import UserError

RIGHT = """
import math
import torch


def attend(query, key, value):
    T, S, D = query.shape[2], *key.shape[2:]
    future = torch.arange(S)[None, :] > torch.arange(T)[:, None] + S - T
    return torch.softmax((query @ key.mT / math.sqrt(D)).masked_fill(future, -math.inf), 3) @ value
"""
NO_SCALE = RIGHT.replace(" / math.sqrt(D)", "")


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What runs a program isolated, where this machine can."""
    try:
        return sandbox.tried(tmp_path_factory.mktemp("own"), Path(__file__).parent)
    except UserError as error:
        if os.environ.get("MINIGPT_SANDBOX") == "required":
            raise
        pytest.skip(str(error))


def hand_in(student: str, answer: str, predictions: dict[str, int] | None = None) -> Path:
    folder = Path("class", student, "my")
    folder.mkdir(parents=True)
    (folder / "attend.py").write_text(answer, encoding="utf-8")
    (folder / "progress.json").write_text(json.dumps({"predictions": predictions or {}}), encoding="utf-8")
    return folder


def marks() -> dict[str, list[str]]:
    """The rows that were written, by their first cell."""
    with Path("grades.csv").open(encoding="utf-8-sig", newline="") as file:
        return {student: cells for student, *cells in csv.reader(file)}


@pytest.mark.soak
def test_a_class_is_graded_and_its_mistakes_and_predictions_are_counted(workplace: Path, isolated: list[str]) -> None:
    hand_in("anna", RIGHT, {"5": 3, "temperature_0": 2})
    hand_in("ben", NO_SCALE, {"5": 1, "temperature_0": 1, "4": 99})
    hand_in("carl", "def attend(*a):\n    raise ValueError('=1+1')\n", {"5": 1})
    (Path("class/carl/my/before")).mkdir()
    (Path("class/carl/my/before/attend.py")).write_text(RIGHT)
    with zipfile.ZipFile("class/dora.zip", "w") as archive:
        archive.writestr("dora/my/attend.py", NO_SCALE)
        archive.writestr("__MACOSX/my/attend.py", RIGHT)
    Path("class/=eve").mkdir()
    Path("class/=eve/my.zip").write_bytes(Path("class/dora.zip").read_bytes())
    done = run_minigpt("learn", "grade", "class", "--exercise", "attend", "--exercise", "lens", "--seed", 7)
    assert done.code == 0, done.err
    no_scale = exercise("attend").wrong[0][0]
    rows = marks()
    assert rows["student"] == ["marks", "of", "attend", "lens"]
    assert rows["anna"] == ["1", "2", "right", MISSING]
    for student in ("ben", "dora", "'=eve"):  # a spreadsheet would compute what begins with =
        assert rows[student] == ["0", "2", no_scale, MISSING]
    assert "ValueError: =1+1" in rows["carl"][2]
    assert "attend: 1 right of 5 handed in" in done.out
    assert f"3 x {no_scale}" in done.out
    assert "1 x It raises an error" in done.out
    question = lessons()[4].question
    options = done.out.partition(question.text)[2].splitlines()[1 : 1 + len(question.options)]
    assert [line.split()[0] for line in options] == ["2", "0", "*"]
    assert "*   1 #####" in options[2]
    assert "always takes the character" in done.out
    assert "mask is off by one" not in done.out  # which nobody has answered
    assert_clear_error(run_minigpt("learn", "grade", "class"), "grades.csv is there already", "--output")


@pytest.mark.soak
def test_what_cannot_be_read_is_told_and_nothing_is_followed_out_of_the_folder(
    workplace: Path, isolated: list[str]
) -> None:
    Path("secret.py").write_text(RIGHT)
    linked = hand_in("linked", "")
    (linked / "attend.py").unlink()
    (linked / "attend.py").symlink_to(Path("secret.py").absolute())
    if hasattr(os, "mkfifo"):
        os.mkfifo(linked / "block.py")
    large = hand_in("large", RIGHT)
    (large / "attend.py").write_bytes(b"#" * (2 << 20))
    (hand_in("torn", RIGHT) / "progress.json").write_text('{"predictions": [')
    Path("class/broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile("class/bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("my/attend.py", b"#" * (50 << 20))
    Path("class/link").symlink_to(Path("class/torn").absolute())
    Path("class/notes.txt").write_text("not a learner")
    done = run_minigpt("learn", "grade", "class", "--exercise", "attend", "--exercise", "block")
    assert done.code == 0, done.err
    rows = marks()
    assert rows.keys() == {"student", "linked", "large", "torn", "broken", "bomb"}
    assert rows["torn"][2] == "right"
    for student in ("linked", "large", "broken", "bomb"):
        assert rows[student] == ["0", "2", MISSING, MISSING]
    for said in ("attend.py is a link", "2,097,152 bytes", "progress.json can't be read", "as a zip file", "is large"):
        assert said in done.out


def test_nothing_is_run_where_nothing_isolates_it_unless_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_in("anna", RIGHT + "\n\nopen('ran.txt', 'w').write('yes')\n")
    assert_clear_error(run_minigpt("learn", "grade", "nowhere"), "nowhere is no folder")
    assert_clear_error(run_minigpt("learn", "grade", "class/anna/my"), "neither a folder nor a zip file")
    assert_clear_error(run_minigpt("learn", "grade", "class", "--exercise", "atend"), "no exercise atend")
    assert_clear_error(run_minigpt("learn", "grade", "class", "--output", "away/a.csv"), "no folder away")
    monkeypatch.setenv("PATH", "")
    grade = ("learn", "grade", "class", "--exercise", "attend")
    assert_clear_error(run_minigpt(*grade), "bubblewrap (the program bwrap) isn't installed", "--trust")
    assert not Path("ran.txt").exists()
    assert not Path("grades.csv").exists()
    done = run_minigpt(*grade, "--trust")
    assert done.code == 0, done.err
    assert marks()["anna"][2] == "right"
    assert Path("ran.txt").exists()


@pytest.mark.soak
def test_a_hostile_hand_in_takes_no_marks_from_others(workplace: Path) -> None:
    hand_in("anna", NO_SCALE)
    with zipfile.ZipFile("class/anna.zip", "w") as archive:
        archive.writestr("anna/my/attend.py", RIGHT)
    if os.name == "posix":  # elsewhere such names can't be given
        hand_in("\x1b[2J\n", "def attend(*a):\n    raise ValueError('\\ud800 \\x1b[2J ;=1+1')\n")
        hand_in(os.fsdecode(b"\xff"), "attend = 1")
    odd = hand_in("odd", "def attend(*a):\n    return {'a': 1}\n")
    (odd / "\x1b[2J.zip" if os.name == "posix" else odd / "torn.zip").write_bytes(b"none")
    Path("class/ben.rar").write_bytes(b"")
    done = run_minigpt("learn", "grade", "class", "--exercise", "attend", "--trust")
    assert done.code == 0, done.err
    rows = marks()
    assert (rows["anna"][0], rows["anna.zip"][0]) == ("0", "1")
    assert "ben.rar" in done.out
    assert "\x1b" not in done.out
    assert "\x1b" not in Path("grades.csv").read_text(encoding="utf-8")
    if os.name == "posix":
        assert rows["?[2J?"][2].endswith("ValueError: ? ?[2J ;'=1+1")
        assert rows["?"][2].startswith("The file has no function")


def test_of_one_hand_in_so_much_is_read_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, notes = tmp_path / "many.zip", list[str]()
    with zipfile.ZipFile(many, "w") as archive:
        for number in range(200):
            archive.writestr(f"{number}/attend.py", "")
    assert len(files_in(many, notes)) == 100
    assert "more files" in notes.pop()
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("attend.py", "")
        archive.writestr("block.py", b"", zipfile.ZIP_STORED)
    assert files_in(bomb, notes) == {PurePath("block.py"): b""}
    assert "packed in a way" in notes.pop()
    nameless = tmp_path / "attend.py.zip"
    with zipfile.ZipFile(nameless, "w") as archive:
        archive.writestr("a", "")
    nameless.write_bytes(nameless.read_bytes().replace(b"a", b"\0"))
    files_in(nameless, notes)  # whatever it is taken for, it is no error
    notes.clear()
    (tmp_path / "own").mkdir()
    for name in ("attend.py", "block.py"):
        (tmp_path / "own" / name).write_bytes(b"")
    read = Path.read_bytes

    def forbidden(path: Path) -> bytes:
        if path.name == "attend.py":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert files_in(tmp_path / "own", notes) == {PurePath("block.py"): b""}
    assert notes == ["attend.py can't be read: Permission denied."]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such paths there")
def test_a_path_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "attend.py").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "deep")
    for _ in range(25):
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    os.chdir(tmp_path)
    notes: list[str] = []
    assert files_in(tmp_path / "deep", notes) == {PurePath("attend.py"): b""}
    assert "can't be read: File name too long." in notes[0]


def sent(values: object, gradients: object = None) -> dict[str, object]:
    return {"values": values, "gradients": gradients or {"kind": "list", "items": []}}


def sent_tensor(shape: object) -> dict[str, object]:
    return {"dtype": "float64", "shape": shape, "data": "", "requires_grad": False}


@pytest.mark.parametrize(
    "draw", [sent(sent_tensor(shape)) for shape in ([float("inf")], [0, 10**30], [10**3000] * 9, [0] * 9, ["0"])]
)
def test_a_forged_tensor_is_no_report(draw: dict[str, object]) -> None:
    assert report_of(json.dumps({"state": "ran", "draws": [sent(sent_tensor([0]))]}).encode(), 1) is not None
    assert report_of(json.dumps({"state": "ran", "draws": [draw]}).encode(), 1) is None


def test_a_forged_report_with_the_right_values_is_judged(workplace: Path) -> None:
    asked = exercise("windows")
    right = list(results_of(asked, asked.solution, 3))
    for kind_of_values, gradients in (("set", []), ("tuple", [1.0])):
        draws = [
            sent({**draw["values"], "kind": kind_of_values}, {"kind": "list", "items": gradients}) for draw in right
        ]
        assert not judge(asked, {"state": "ran", "draws": draws}, 3).passed
    assert judge(asked, {"state": "ran", "draws": right}, 3).passed


def test_what_stops_all_grading_is_told_at_once(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_in("anna", RIGHT)
    grade = ("learn", "grade", "class", "--exercise", "attend", "--trust")
    if Path("/proc/self").is_dir():
        assert_clear_error(run_minigpt(*grade, "--output", "/proc/grades.csv"), "Nothing can be written into /proc")
    monkeypatch.setattr(Child.__init__, "__defaults__", ((sys.executable, "-c", "print(end='', flush=True); 1 / 0"),))
    assert_clear_error(run_minigpt(*grade), "ended before it began", "ZeroDivisionError")  # and anna isn't blamed
    assert not Path("grades.csv").exists()


def test_marks_that_cannot_be_written_are_shown(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_in("anna", RIGHT)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigpt.course.grade.written_whole", full)
    done = run_minigpt("learn", "grade", "class", "--exercise", "attend", "--trust")
    assert_clear_error(done, "No space left on device")
    assert "anna,1,1,right" in done.out


HOLES = {
    "read the submissions": ["--ro-bind", "{own}", "{own}"],
    "reach the network": ["--share-net"],
    "read your files": ["--bind", "{own}", "{own}"],
    "write your files": ["--bind", "{own}", "{own}"],
    "write into this system": ["--bind", "{copy}", "{stdlib}"],
    "import the solutions": ["--bind", "{copy}", "{stdlib}", "--ro-bind", "{package}", "{stdlib}/minigpt"],
}


@pytest.mark.soak
@pytest.mark.parametrize("said", HOLES)
def test_a_sandbox_with_a_hole_is_refused(
    said: str, isolated: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdlib, copy = Path(os.__file__).parent, tmp_path / "copy"
    shutil.copytree(stdlib, copy, ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__"))
    (copy / "minigpt").mkdir()
    places = {"own": tmp_path, "copy": copy, "stdlib": stdlib, "package": Path(minigpt.__file__).parent}
    hole = [argument.format(**places) for argument in HOLES[said]]
    end = isolated.index(child.__file__) - 1
    monkeypatch.setattr(sandbox, "command", lambda: [*isolated[:end], *hole, *isolated[end:]])
    with pytest.raises(UserError, match=said):
        sandbox.tried(tmp_path, tmp_path)


HARMFUL = {
    "return open('/etc/passwd').read()": "No such file",
    "import minigpt": "No module named 'minigpt'",
    "return __import__('os').environ['SECRET']": "KeyError",
    "open('/tmp/' + 'x' * 9, 'wb').write(b'x' * (17 << 20))": "File too large",
    "[open(f'/tmp/{i}', 'wb').write(b'x' * (10 << 20)) for i in range(99)]": "No space left",
    "import socket; socket.create_connection(('192.0.2.1', 80), 2)": "Network is unreachable",
    "import os; os.write(2, b'Timeout (0: attend.py windows.py'); os._exit(0)": "took more than 2 seconds.",
    "import os; os.kill(1, 9); os.kill(os.getppid(), 9); os._exit(0)": "ended the whole process",
    "import mmap\n    for i in range(9): mmap.mmap(-1, (i + 1) << 30)": "Cannot allocate memory",
    "import os; held = [os.memfd_create('') for i in range(99)]": "Too many open files",
    "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))": "not allowed to raise",
    "import faulthandler; faulthandler.cancel_dump_traceback_later()\n    while True: pass": "ended the whole process",
    'import os, json\n    for fd in range(1, 30):\n        try: os.write(fd, b\'{"state": "passed"}\')\n        except '
    "OSError: pass\n    os._exit(0)": "ended the whole process",
    "import torch; torch.allclose = torch.equal = lambda *a, **k: True; return a[0], a[0]": "Part 1 of what windows",
}


def outcome(body: str, isolated: list[str]) -> Result:
    source = f"def windows(*a):\n    {body}\n".encode()
    job = job_of("windows", source, "windows.py", inputs_of(exercise("windows"), 3), seconds=2, processes=False)
    return judged("windows", job, 3, Child(isolated))


@pytest.mark.soak
@pytest.mark.parametrize("body", HARMFUL)
def test_a_submission_that_would_do_harm_is_contained(
    body: str, isolated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the teacher")
    result = outcome(body, isolated)
    assert not result.passed
    assert HARMFUL[body] in result.message, result.message


@pytest.mark.soak
def test_an_answer_that_sleeps_without_its_watchdog_is_ended(
    isolated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.course.check.ENDING", 1.0)
    began = time.monotonic()
    body = "import faulthandler, time; faulthandler.cancel_dump_traceback_later(); time.sleep(99)"
    assert "didn't end" in outcome(body, isolated).message
    assert time.monotonic() - began < 60


@pytest.mark.soak
def test_a_submission_begins_no_process(isolated: list[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("the system doesn't limit root's processes")
    assert "BlockingIOError" in outcome("import os; os.fork()", isolated).message


@pytest.mark.soak
def test_what_is_left_running_ends_with_the_answer(isolated: list[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("nothing but root can begin a process")
    began = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(77.125)'])"
    assert "returns None" in outcome(began, isolated).message
    assert "77.125" not in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True).stdout
