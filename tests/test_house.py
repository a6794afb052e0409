"""The laws of the house: who imports whom, and how large it may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "minigpt"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
WINGS = ("glassbox", "formats", "course")
# Each room, and those whose files it may import beside its own. The heart's files lie in no folder.
DOORS = {
    "text": {"minigpt.errors", "minigpt.files"},
    "heart": {"text"},
    "training": {"heart", "text"},
    "commands": {"heart", "text", *WINGS},
    **{wing: {"heart", "text"} for wing in WINGS},
}
OPEN = ("minigpt", "minigpt.__main__")  # they hand out and call what lies in any room


def room_of(module: str) -> str:
    parts = module.split(".")
    folder = len(parts) > 2 or (PACKAGE / parts[-1]).is_dir()
    return parts[1] if folder and len(parts) > 1 else "heart"


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports; of this package, the file itself where a name is taken from a folder."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not getattr(node, "level", 0), "modules are imported by their whole names"
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= deeper or {node.module}
    return found


def test_the_model_imports_torch_alone() -> None:
    packages = {name.split(".")[0] for name in imports_of(PACKAGE / "model.py")}
    assert packages - sys.stdlib_module_names == {"torch"}


def test_the_plain_loop_imports_the_model_and_torch_alone() -> None:
    names = imports_of(PACKAGE / "plain.py")
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} == {
        "torch",
        "torch.nn.functional",
        "minigpt.model",
    }


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_only_go_down(module: str) -> None:
    imported, room = imports_of(FILES[module]), room_of(module)
    if any(other.split(".")[0] == "lightning" for other in imported):
        assert room == "training" or module.endswith(".callback")
    if module in OPEN:
        return
    for other in imported:
        if other == "minigpt":  # hands out what lies in any room
            assert room == "commands"
        elif other.startswith("minigpt."):
            assert room_of(other) == room or room_of(other) in DOORS[room] or other in DOORS[room], other


def test_no_import_runs_in_a_circle() -> None:
    graph = {module: imports_of(path) & FILES.keys() for module, path in FILES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("args", "absent"),
    [
        (["--help"], ["torch", "numpy", "lightning", "jsonargparse"]),
        (["generate", "--help"], ["torch", "lightning"]),
        (["chat", "--help"], ["torch", "lightning"]),
        (["corpus", "--help"], ["torch", "lightning"]),
        (["report", "--help"], ["torch", "lightning"]),
        (["explain", "--help"], ["torch", "lightning"]),
        (["import", "--help"], ["torch", "lightning"]),
        (["runs"], ["torch", "numpy", "lightning"]),
    ],
)
def test_a_command_is_imported_only_when_it_is_called(args: list[str], absent: list[str]) -> None:
    code = f"""
import sys
from minigpt.__main__ import main
sys.argv = ["minigpt", *{args}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("IMPORTED", *(name for name in {absent} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1].strip() == "IMPORTED", done.stdout


def lines(*paths: Path) -> int:
    return sum(path.read_text().count("\n") for path in paths)


def test_the_house_keeps_its_size() -> None:
    assert lines(PACKAGE / "model.py") <= 200
    assert lines(PACKAGE / "plain.py") <= 70
    rooms = [path for module, path in FILES.items() if room_of(module) not in WINGS]
    assert lines(*rooms) <= 6660  # the plan is 3,300; they were 4,669 before they were rooms
    assert len((ROOT / "README.md").read_text().split()) <= 1000
