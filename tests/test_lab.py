"""The break-it lab: what it says of each change is so, comes of the change, and leaves nothing behind."""

import inspect
import sys
from dataclasses import replace

import pytest
import torch

from minigpt import model
from minigpt.course import experiments
from minigpt.course.experiments import EXPERIMENTS, Edit, Experiment, Results, measured, run, sources
from minigpt.errors import UserError
from minigpt.fast import why_not
from minigpt.text import windows


def unchanged(experiment: Experiment, count: int | None = None) -> Results:
    """The results of an experiment whose changes are not made; of the first ``count`` arms, or of all."""
    same = {}
    edited = any(arm.edits for arm in experiment.arms)
    for arm in experiment.arms[:count]:
        arm = replace(arm, edits=(), setup=arm.setup if edited else experiment.arms[0].setup)
        same[arm.name] = measured(experiment, arm, 0)
    return same


def everything_left() -> object:
    """All that a change might leave behind: other classes, modules, random numbers, threads."""
    classes = {
        (module, name): dict(vars(it))
        for module in (model, windows)
        for name, it in vars(module).items()
        if inspect.isclass(it)
    }
    modules = {name for name in sys.modules if "minigpt" in name or "changed" in name}
    return classes, modules, torch.get_rng_state().tolist(), torch.get_num_threads()


def test_a_change_has_its_signature_and_leaves_nothing_behind() -> None:
    before = everything_left()
    lines: list[str] = []
    rows = run("no_scale", 0, lines.append, prediction=0)
    labels = ["prediction", "as it is", "no scale", "signature", "meanwhile", "answer"]
    assert [label for label, _ in rows] == labels
    table = dict(rows)
    assert table["signature"] == EXPERIMENTS["no_scale"].signature.sentence
    assert table["meanwhile"] == EXPERIMENTS["no_scale"].not_happening.sentence
    assert len(lines) == len(rows)
    assert table["prediction"] == EXPERIMENTS["no_scale"].options[0]
    assert table["answer"] == EXPERIMENTS["no_scale"].options[EXPERIMENTS["no_scale"].answer]
    assert everything_left() == before
    assert why_not(model.GPT(model.GPTConfig(5, 4, 1, 1, 4))) is None


def test_the_signature_of_a_change_is_not_that_of_none() -> None:
    untied = EXPERIMENTS["untied"]
    results = {arm.name: measured(untied, arm, 0) for arm in untied.arms[:2]}  # those without layers
    assert untied.signature(results)
    assert not untied.signature(unchanged(untied, 2))
    assert not EXPERIMENTS["no_scale"].signature(unchanged(EXPERIMENTS["no_scale"]))


def test_each_change_is_shown_and_a_line_that_is_gone_is_named() -> None:
    for experiment in EXPERIMENTS.values():
        assert 0 <= experiment.answer < len(experiment.options)
        assert experiment.change
        if any(arm.edits for arm in experiment.arms):
            assert experiment.change.startswith("--- minigpt/")
    shown = EXPERIMENTS["no_scale"].change.splitlines()
    assert shown[-1] == "+        scores_BHTS = query_BHTD @ key_BHSD.transpose(-2, -1)"
    assert EXPERIMENTS["one_head"].change == "--model.n_head 1"
    with pytest.raises(UserError, match=r"a line of minigpt/model\.py that is not there"):
        sources("model.py", (Edit("no such line", "another"),))
    with pytest.raises(UserError, match="There is no experiment all"):
        run("all")


@pytest.mark.soak
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_signature_holds_and_comes_of_the_change(name: str) -> None:
    experiment = EXPERIMENTS[name]
    table = dict(run(name, 0, lambda line: None))
    assert table["signature"] == experiment.signature.sentence, table
    assert table["meanwhile"] == experiment.not_happening.sentence, table
    if name != "one_head":  # whose signature is that something stays the same
        assert not experiment.signature(unchanged(experiment))


@pytest.mark.soak
def test_the_survey_tells_each_margin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments", "no_scale", "--seeds", "2"])
    experiments.main()
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| no_scale | 0.7")
