"""Every name in the paper ledger exists: the settings, the code and the tests."""

import ast
import inspect
import pkgutil
import re
from dataclasses import fields

from lightning.pytorch import Trainer

from conftest import ROOT
from minigpt.model import GPTConfig
from minigpt.text.corpus import DataSettings
from minigpt.training.module import GPTLightningModule

LEDGER = (ROOT / "docs" / "paper-ledger.md").read_text(encoding="utf-8")
SETTINGS = {
    "model": {*inspect.signature(GPTLightningModule).parameters, *(field.name for field in fields(GPTConfig))},
    "data": {field.name for field in fields(DataSettings)},
    "trainer": set(inspect.signature(Trainer).parameters),
}
CODE, TEST = re.compile(r"`(minigpt\.[\w.]+)`"), re.compile(r"`(tests/\w+\.py)::(\w+)`")
SETTING = re.compile(r"`(?:--)?(model|data|trainer)\.(\w+)[ `]")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    lines = LEDGER.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_each_name_in_the_ledger_exists() -> None:
    for name in CODE.findall(LEDGER):
        assert pkgutil.resolve_name(name), name
    for part, name in SETTING.findall(LEDGER):
        assert name in SETTINGS[part], f"{part}.{name}"
    for file, name in TEST.findall(LEDGER):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, name)


def test_each_statement_has_its_code_and_its_test_and_each_difference_a_reason() -> None:
    statements = rows("The model") + rows("Training")
    assert len(statements) >= 20
    for statement, where, settings, code, test in statements:
        assert where.startswith(("GPT ", "AIAYN ", "OpenAI's code")), statement
        assert len(CODE.findall(code)) == code.count("`") / 2 > 0, statement
        assert len(TEST.findall(test)) == test.count("`") / 2 > 0, statement
        assert len(SETTING.findall(settings)) == settings.count("`") / 2, statement
    differences = rows("Where it differs, and why")
    assert len(differences) >= 10
    for what, _, here, why in differences:
        assert what, here
        assert here, what
        assert why, what


def test_every_setting_that_shapes_gpt1_stands_in_the_ledger() -> None:
    named = {name for _, name in SETTING.findall(LEDGER)}
    assert {field.name for field in fields(GPTConfig)} - {"vocab_size"} <= named
