"""Every command in the README works as it stands there."""

import io
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from conftest import ROOT, make_text, run_minigpt

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
# Trains for a moment where the README trains for minutes; what is not on the command line stays as it is.
SHORTER = ["--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1", "--sampler.max_new_tokens", "5"]


def test_the_installing_commands_are_the_ones_that_ci_runs() -> None:
    installing = [command for command in COMMANDS if "pip install" in command]
    assert installing == [
        'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[shakespeare]" '
        "&& python -m minigpt fit --config configs/quickstart.yaml",
        'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && pytest',
    ]
    assert "/<!-- tests -->/" in (ROOT / ".ci" / "run").read_text()
    assert "<!-- tests -->\n```bash\n" + installing[1] in README


@pytest.mark.slow
def test_every_command_works_in_the_order_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    Path("my.txt").write_text(make_text(20_000))
    steps, ran = 0, 0
    for command in COMMANDS:
        words = shlex.split(command)
        if "pip" in words:
            words = words[words.index("&&", words.index("pip")) + 1 :]  # what follows the installation
        if words[:3] == ["python", "-m", "minigpt"]:
            if words[3] == "plan":
                monkeypatch.setattr("minigpt.training.plan.CALIBRATION", 0.1)
            if words[3] == "prove-resume":
                words += ["--steps", "3", "--kills", "1", *SHORTER]
            if words[3] == "fit":
                steps += 2
                words += ["--trainer.max_steps", str(steps), *SHORTER]
            if any("ddp" in word for word in words):
                process = [sys.executable, *words[1:]]
                result = subprocess.run(process, capture_output=True, text=True, timeout=200, check=False)
                assert result.returncode == 0, (command, result.stderr)
            else:
                monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))  # for chat
                result = run_minigpt(*words[3:])  # type: ignore[assignment]
                assert result.code == 0, (command, result.err)  # type: ignore[attr-defined]
            ran += 1
        elif words[0] == "tensorboard":
            check_tensorboard(words)
            ran += 1
        else:
            assert words == ["pytest"], command
    assert ran >= 9
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(code, {})
    assert len(capsys.readouterr().out) > 800


def check_tensorboard(words: list[str]) -> None:
    program = Path(sys.executable).with_name("tensorboard")
    command = [str(program), *words[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(m[0] for line in process.stderr if (m := re.search(r"http://localhost:\d+/", line)))
        try:
            with urllib.request.urlopen(address + "data/runs", timeout=60) as response:
                assert b"quickstart" in response.read()
        finally:
            process.terminate()
