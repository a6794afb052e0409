"""The page that is alive, served: what it answers, what it refuses, and a run that is watched while it trains."""

import base64
import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minigpt
from conftest import ROOT, TINY, assert_clear_error, make_text, run_minigpt
from minigpt.generation import uniform
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, trace
from minigpt.run import RunFolder

pytest.importorskip("starlette", reason="the extra explore isn't installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra explore isn't installed")

from minigpt.glassbox import answers, explain, explore  # noqa: E402

RUN = RunFolder.first("tiny")
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was filmed. Not to be changed."""
    folder = tmp_path_factory.mktemp("filmed")
    (folder / "text.txt").write_text(make_text(6000))
    (folder / "tiny.yaml").write_text(TINY)
    with contextlib.chdir(folder):
        assert run_minigpt("fit", "--config", "tiny.yaml", "--film.per_doubling", 1).code == 0
    return folder


@pytest.fixture
def in_filmed(filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current folder."""
    monkeypatch.chdir(shutil.copytree(filmed, tmp_path / "filmed"))
    return Path.cwd()


@contextlib.contextmanager
def served(shown: explore.Shown, watched: bool = False) -> Iterator[Ask]:
    """A server, and a function that asks it; it looks for what is new only if it is ``watched``."""
    sock = explore.listen("127.0.0.1", 0)
    lifespan = "on" if watched else "off"
    server = uvicorn.Server(uvicorn.Config(explore.application(shown), log_level="critical", lifespan=lifespan))
    thread = threading.Thread(target=server.run, args=[[sock]])
    thread.start()
    port = sock.getsockname()[1]

    def ask(path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the content of an answer; the body is sent as JSON, bytes as they are."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        names = {"content-type": "application/json"} | {name.replace("_", "-"): it for name, it in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET" if raw is None else "POST", path, raw, names)
            answer = connection.getresponse()
            content, kind = answer.read(), answer.headers["content-type"]
        finally:
            connection.close()
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        return answer.status, json.loads(content) if kind == "application/json" else content

    try:
        yield ask
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def shown(filmed: Path) -> explore.Shown:
    with contextlib.chdir(filmed):
        return explore.Shown("1", (filmed / RUN.path / "checkpoints" / "last.ckpt"), RunFolder(filmed / RUN.path))


@pytest.fixture(scope="module")
def ask(shown: explore.Shown, filmed: Path) -> Iterator[Ask]:
    with contextlib.chdir(filmed), served(shown) as ask:
        yield ask


def arrays(value: Any) -> Any:
    """An answer with its arrays as NumPy's."""
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("float32", "int32", "uint8"):
        ((kind, text),) = value.items()
        return np.frombuffer(base64.b64decode(text), np.dtype(kind).newbyteorder("<"))
    return {name: arrays(item) for name, item in value.items()} if isinstance(value, dict) else value


def test_answers_are_those_of_the_trace(ask: Ask, shown: explore.Shown, filmed: Path) -> None:
    changes = [
        {"part": "head", "layer": 0, "index": 1},
        {"part": "residual", "layer": 1, "positions": [2, 4], "patch_from": [3, 1, 4, 1, 5]},
        {"part": "attention", "layer": 1, "mean_of": [2, 7, 1], "positions": []},
    ]
    ids = [5, 3, 8, 1, 9, 2, 6, 5]
    for step, path in ((24, filmed / RUN.last), (8, filmed / RUN.frame(8))):
        wanted = trace(minigpt.load(path), ids, [Intervention(**it) for it in changes])  # type: ignore[arg-type]

        def result(method: str, step: int = step, **more: Any) -> Any:
            status, answer = ask(
                "/compute", {"id": 7, "method": method, "step": step, "ids": ids, "interventions": changes, **more}
            )
            assert (status, answer["id"]) == (200, 7), answer
            return arrays(answer["result"])

        read = result("read")
        np.testing.assert_allclose(read["logits"], wanted.logits.flatten(), atol=1e-6)
        np.testing.assert_allclose(read["surprisal"], wanted.nats, atol=1e-6)
        pattern = wanted.pattern.numpy()
        np.testing.assert_allclose(result("pattern", layer=1, head=0)["pattern"], pattern[1, 0].flatten(), atol=1e-6)
        for size, m in ((3, 3), (5, 5), (100, 8)):
            edges = [i * 8 // m for i in range(m + 1)]
            cells = [
                pattern[..., edges[i] : edges[i + 1], edges[j] : edges[j + 1]].max((-2, -1))
                for i in range(m)
                for j in range(m)
            ]
            maps = result("maps", size=size)
            assert maps["size"] == m
            expected = 255 * np.sqrt(np.stack(cells, -1)).flatten()
            np.testing.assert_allclose(maps["maps"], expected, atol=0.5 + 1e-3)
        stages = result("lens", **{"from": 2, "to": 8})
        assert stages["stages"][:3] == ["embedding_dropout", "blocks.0.residual_middle", "blocks.0"]
        probabilities = lens(wanted).softmax(-1)[:, 2:].numpy()
        np.testing.assert_array_equal(stages["best"], probabilities.argmax(-1).flatten())
        np.testing.assert_allclose(stages["probability"], probabilities.max(-1).flatten(), atol=1e-6)
        right = stages["right"].reshape(5, 6)
        np.testing.assert_allclose(right[:, 0], probabilities[:, 0, ids[3]], atol=1e-6)
        assert np.isnan(right[:, -1]).all()
        parts, found = attribute(wanted, 6, 4, 2), result("attribute", position=6, chosen=4, against=2)
        assert found["logit"] == pytest.approx(float(wanted.logits[6, 4] - wanted.logits[6, 2]), abs=1e-5)
        for name in ("logit", "token", "place", "final_bias", "replaced", "heads", "feed_forwards", "biases"):
            np.testing.assert_allclose(found[name], getattr(parts, name), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found["sources"], parts.sources[..., :7], atol=1e-6)
        assert result("probe") == {"worst": 0, "first": None}


@pytest.mark.parametrize("changes", [[], [{"part": "neuron", "layer": 0, "index": 0, "positions": [5], "scale": 1}]])
def test_it_writes_as_generate_does(ask: Ask, filmed: Path, changes: list[Any]) -> None:
    """Over several windows; a change that changes nothing takes the way without a cache."""
    model = minigpt.load(filmed / RUN.last)
    prompt = "the cat"
    sampling: dict[str, Any] = {"temperature": 0.9, "top_k": 9, "top_p": 0.95, "min_p": 0.01}
    *_, (sample,) = model.write([prompt], max_new_tokens=40, seed=3, **sampling)
    draws = [float(number) for number in itertools.islice(uniform([3]), 40)]
    request = {"method": "write", "step": 24, "ids": model.tokenizer.encode(prompt).tolist(), **sampling}
    status, answer = ask("/compute", {**request, "count": 40, "draws": draws, "interventions": changes})
    assert status == 200, answer
    assert model.tokenizer.decode(np.array(answer["result"]["ids"])) == sample.text
    np.testing.assert_allclose(answer["result"]["surprisal"], np.negative(sample.log_probabilities), atol=1e-5)


@pytest.mark.soak
def test_two_hundred_at_once_are_all_answered_right(ask: Ask, filmed: Path) -> None:
    draw = random.Random(0)
    models = {24: minigpt.load(filmed / RUN.last), 4: minigpt.load(filmed / RUN.frame(4))}
    V = len(models[24].tokenizer.vocabulary)
    jobs: list[dict[str, Any]] = []
    for number in range(200):
        ids = [draw.randrange(V) for _ in range(draw.randint(1, 16))]
        layer, other = draw.randrange(2), [draw.randrange(V) for _ in range(16)]
        changes: list[dict[str, Any]] = [
            {"part": "head", "layer": layer, "index": draw.randrange(2)},
            {"part": "neuron", "layer": layer, "index": draw.randrange(64), "scale": draw.uniform(-9, 9)},
            {"part": "residual", "layer": layer, "patch_from": other, "positions": [draw.randrange(len(ids))]},
            {"part": "position", "positions": [draw.randrange(len(ids))]},
        ]
        chosen = draw.sample(changes, draw.randint(0, 3))
        jobs.append({"id": number, "method": "read", "step": draw.choice([4, 24]), "ids": ids, "interventions": chosen})
    with ThreadPoolExecutor(200) as threads:
        found = list(threads.map(lambda job: ask("/compute", job), jobs))
    for job, (status, answer) in zip(jobs, found, strict=True):
        assert (status, answer["id"]) == (200, job["id"]), answer
        wanted = trace(models[job["step"]], job["ids"], [Intervention(**it) for it in job["interventions"]])
        np.testing.assert_allclose(arrays(answer["result"])["logits"], wanted.logits.flatten(), rtol=1e-6, atol=1e-6)


READ = {"method": "read", "step": 24, "ids": [1, 2, 3]}


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {**READ, "method": "no such"},
        {**READ, "method": ["read"]},
        {**READ, "step": 25},
        {**READ, "step": True},
        {**READ, "step": 24.0},
        {**READ, "ids": []},
        {**READ, "ids": [1] * 17},
        {**READ, "ids": [-1]},
        {**READ, "ids": [10**400]},
        {**READ, "ids": "abc"},
        {**READ, "id": {"a": 1}},
        {**READ, "interventions": [{"part": "head"}] * 1000},
        {**READ, "interventions": [{"part": "head", "layer": 0, "index": 2}]},
        {**READ, "interventions": [{"part": "head", "layer": True, "index": 1}]},
        {**READ, "interventions": [{"part": "head", "layer": 0, "index": 1, "scale": "3"}]},
        {**READ, "interventions": [{"part": "block", "layer": 0, "scale": 10**400}]},
        {**READ, "interventions": [{"part": "block", "layer": 0, "scale": 1e200}]},
        {**READ, "interventions": [{"part": "block", "layer": 0, "positions": [3]}]},
        {**READ, "interventions": [{"part": "block", "layer": 0, "more": 1}]},
        {**READ, "interventions": [{"part": "residual", "layer": 0, "patch_from": "the cat"}]},
        {**READ, "interventions": [{"part": "residual", "layer": 0, "patch_from": [1]}]},
        {**READ, "interventions": [{"part": "residual", "layer": 0, "mean_of": [i]} for i in range(9)]},
        {**READ, "method": "maps", "size": 0},
        {**READ, "method": "pattern", "layer": 2, "head": 0},
        {**READ, "method": "lens", "from": 2, "to": 2},
        {**READ, "method": "attribute", "position": 3, "chosen": 1},
        {**READ, "method": "write", "count": 10**6, "draws": []},
        {**READ, "method": "write", "count": 1, "draws": [1.0]},
        {**READ, "method": "write", "count": 1, "draws": [0.5], "temperature": -1},
        {**READ, "method": "write", "count": 1, "draws": [0.5], "top_k": 0},
    ],
)
def test_a_wrong_request_is_told_why(ask: Ask, request_: dict[str, Any]) -> None:
    status, answer = ask("/compute", request_)
    assert status == 400
    assert answer["error"].endswith(".")


@pytest.mark.parametrize(
    ("path", "body", "headers", "expected"),
    [
        ("/compute", READ, {"host": "evil.example"}, 421),
        ("/", None, {"host": "evil.example:80"}, 421),
        ("/contents", None, {"host": "127.0.0.1.evil.example"}, 421),
        ("/contents", None, {"host": "[::1"}, 421),
        ("/contents", None, {"host": ""}, 421),
        ("/contents", None, {"host": "localhost:1"}, 200),
        ("/contents", None, {"host": "[::1]:8765"}, 200),
        ("/compute", READ, {"origin": "http://evil.example"}, 403),
        ("/compute", READ, {"origin": "null"}, 403),
        ("/compute", READ, {"origin": "http://localhost:8000", "host": "localhost:8765"}, 403),
        ("/compute", READ, {"origin": "http://localhost:8765", "host": "localhost:8765"}, 200),
        ("/compute", READ, {"content_type": "text/plain"}, 415),
        ("/compute", READ, {"content_type": "application/x-www-form-urlencoded"}, 415),
        ("/compute", READ, {"content_type": "application/json; charset=utf-8"}, 200),
        ("/compute", b" " * (2 << 20), {}, 413),
        ("/compute", b"{", {}, 400),
        ("/compute", b"\xff\xfe", {}, 400),
        ("/compute", b"[]", {}, 400),
        ("/compute", b"[" * 100_000, {}, 400),
        ("/compute", b'{"method": "read", "step": 24, "ids": [1], "more": NaN}', {}, 400),
        ("/compute", b'{"step": ' + b"9" * 10_000 + b"}", {}, 400),
        ("/compute", None, {}, 405),
        ("/contents", {}, {}, 405),
        ("/nothing", None, {}, 404),
        ("/weights/23", None, {}, 404),
        ("/weights/" + "9" * 5000, None, {}, 404),
        ("/weights/../24", None, {}, 404),
        ("/copied", {"text": ""}, {}, 400),
        ("/copied", {"text": "x" * 100_000}, {}, 400),
        ("/where", {"layer": 0}, {}, 400),
        ("/where", {"layer": 0, "head": 0, "neuron": 0}, {}, 400),
        ("/where", {"layer": 9, "head": 0}, {}, 400),
    ],
)
def test_what_is_refused_is_refused_in_a_sentence(
    ask: Ask, path: str, body: Any, headers: dict[str, str], expected: int
) -> None:
    status, answer = ask(path, body, **headers)
    assert status == expected, answer
    assert expected == 200 or answer["error"]


SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-2, 20) | st.floats(allow_nan=False) | st.text()
FIELDS = """
id method step ids interventions size layer head neuron from to position chosen against count temperature top_k top_p
min_p draws never part index positions scale mean_of patch_from text
"""
NAMES = st.sampled_from(FIELDS.split())
WORDS = st.sampled_from([*answers.METHODS, "head", "residual", "position", "block", "neuron", "embedding"])
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)
REQUESTS = st.builds(
    lambda method, changes, more: {**READ, "method": method, "interventions": changes, **more},
    st.sampled_from([*answers.METHODS]),
    st.lists(st.dictionaries(NAMES, VALUES, max_size=5), max_size=3),
    st.dictionaries(NAMES, VALUES, max_size=6),
)


@pytest.mark.soak
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["/compute", "/compute", "/copied", "/where"]), REQUESTS | VALUES | st.binary())
def test_no_request_makes_it_fail(ask: Ask, path: str, body: Any) -> None:
    status, answer = ask(path, body)
    assert status == 200 or (400 <= status < 500 and answer["error"]), answer


def test_the_page_and_its_weights(ask: Ask, shown: explore.Shown) -> None:
    shown.refresh(threading.Event())
    status, page = ask("/")
    assert status == 200
    assert b"connect-src &#39;self&#39;" in page
    text = page.split(b'id="contents">')[1].split(b"</script>")[0]
    contents = json.loads(text)
    assert contents["compute"] == "page"
    assert contents["text_from"].startswith("From the validation split")
    assert contents["facts"]["loss"] > 0
    assert contents["scores"]["rows"]
    steps = [0, 1, 2, 4, 8, 16, 24]
    assert [model["step"] for model in contents["models"]] == [*steps]
    assert [seen["step"] for seen in contents["history"]] == steps
    status, weights = ask("/weights/24")
    sizes = [int(np.prod(shape)) for _, shape in contents["tensors"]]
    found = np.split(np.frombuffer(weights, "<f4"), np.cumsum(sizes)[:-1])
    for (name, _), value in zip(contents["tensors"], found, strict=True):
        np.testing.assert_array_equal(value, shown.answers.model(24).gpt.state_dict()[name].flatten())
    status, fresh = ask("/contents")
    assert fresh == {name: contents[name] for name in ("main", "models", "curves", "history", "live", "pending")}
    assert fresh["live"] is fresh["pending"] is False


def test_what_is_copied_and_where_a_head_fires(ask: Ask, filmed: Path) -> None:
    copied = (filmed / "text.txt").read_text()[100:150]
    status, found = ask("/copied", {"text": "QQQQ" + copied + "\udc00\U0001f600"})
    assert status == 200
    assert [4, 54] in found["passages"]
    assert found["longest"] >= 50
    status, places = ask("/where", {"layer": 1, "head": 1})
    assert (status, places[0].keys() >= {"position", "value", "before", "token", "after", "source"}) == (200, True)
    status, places = ask("/where", {"layer": 0, "neuron": 3})
    assert status == 200


def test_a_run_is_followed_while_it_trains(in_filmed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "PAUSE", 0.05)
    run, away = RunFolder(in_filmed / RUN.path), in_filmed / "away"
    shutil.copytree(run.path, away)
    shutil.rmtree(run.checkpoints)
    for step, frame in run.frames().items():
        if step > 2:
            frame.unlink()
    rows = (away / "metrics.csv").read_text().splitlines(keepends=True)
    curves = run.path / "metrics.csv"
    curves.write_text("".join(rows[:3]) + rows[3][:5])  # the last row is just being written
    with FileLock(run.path / ".lock") as lock, served(explore.Shown("1", folder=run), watched=True) as ask:

        def wait_for(holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            end = time.monotonic() + 20
            while not holds(fresh := ask("/contents")[1]):
                assert time.monotonic() < end, fresh
                time.sleep(0.05)
            return fresh

        fresh = wait_for(lambda fresh: len(fresh["history"]) == 3)
        assert (fresh["main"], fresh["live"], fresh["pending"]) == (2, True, True)
        assert [step for step, _ in fresh["curves"]["train"]] == [1, 2]
        (run.film / "step000004.ckpt.1.part").write_bytes(b"half a frame")
        run.frame(3).write_bytes(b"damaged")
        shutil.copy(away / "film" / "step000004.ckpt", run.film)
        curves.write_text("".join(rows[:5]))
        fresh = wait_for(lambda fresh: fresh["main"] == 4)
        assert [model["step"] for model in fresh["models"]] == [0, 1, 2, 4]
        assert [step for step, _ in fresh["curves"]["train"]] == [1, 2, 3, 4]
        assert ask("/compute", {**READ, "step": 4})[0] == 200
        assert ask("/compute", {**READ, "step": 3})[0] == 400
        shutil.copytree(away / "checkpoints", run.checkpoints)
        lock.release()
        fresh = wait_for(lambda fresh: not fresh["live"] and not fresh["pending"])
        assert fresh["main"] == 24
        assert ask("/compute", READ)[0] == 200


def test_a_text_that_is_gone_is_told(in_filmed: Path) -> None:
    (in_filmed / "text.txt").unlink()
    with served(explore.Shown("1", in_filmed / RUN.last, RunFolder(RUN.path))) as ask:
        for path, body in (("/copied", {"text": "the cat"}), ("/where", {"layer": 0, "head": 0})):
            status, answer = ask(path, body)
            assert (status, "--corpus" in answer["error"]) == (409, True)
        assert ask("/")[0] == 200
        assert ask("/compute", READ)[0] == 200


def test_what_is_too_large_for_a_page_is_computed_here(
    shown: explore.Shown, in_filmed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "MOST_PARAMETERS", 10)
    with served(explore.Shown("1", in_filmed / RUN.last)) as ask:
        assert b'"compute":"server"' in ask("/")[1]
        assert ask("/weights/24")[0] == 404
        assert ask("/contents")[1]["models"] == [{"step": 24, "probe": None}]


def test_who_has_to_wait_too_long_is_told_and_a_fault_of_ours_is_shown(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(explore, "WAITING", 0)
        assert ask("/compute", READ)[0] == 503
    with monkeypatch.context() as changed:
        changed.setattr(explore, "SECONDS", 0.05)
        changed.setitem(answers.METHODS, "read", lambda *_: time.sleep(0.2))
        assert ask("/compute", READ)[0] == 503
    with monkeypatch.context() as changed:
        changed.setitem(answers.METHODS, "read", lambda *_: 1 // 0)
        status, answer = ask("/compute", READ)
    assert (status, "terminal" in answer["error"]) == (500, True)
    shown, end = "", time.monotonic() + 20
    while "ZeroDivisionError" not in shown and time.monotonic() < end:  # it is shown after the answer was sent
        shown += capfd.readouterr().err
    assert "Traceback" in shown


def test_a_port_that_is_taken_and_a_missing_package_are_told(in_filmed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_minigpt("explore", "--ckpt_path", "last", "--no_browser", "--port", port)
        assert_clear_error(result, str(port), "--port")
        monkeypatch.setattr(explore, "PORT", port)
        with explore.listen("127.0.0.1", None) as free:
            assert free.getsockname()[1] != port
    assert_clear_error(run_minigpt("explore", "--run", RUN.path, "--ckpt_path", "last"), "--ckpt_path", "--run")
    assert_clear_error(run_minigpt("explore", "--run", "nowhere"), "nowhere")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "minigpt.glassbox.explore")
    assert_clear_error(run_minigpt("explore", "--ckpt_path", "last"), 'pip install "minigpt[explore]"')


@pytest.mark.skipif(os.name == "nt", reason="there Ctrl-C can't be sent to one process")
@pytest.mark.soak
def test_ctrl_c_ends_it_at_once_also_while_it_computes(filmed: Path) -> None:
    code = """
import sys, time
from minigpt.glassbox import answers
from minigpt.__main__ import main
answers.METHODS["read"] = lambda *_: time.sleep(60)
sys.argv = ["minigpt", "explore", "--run", sys.argv[1], "--no_browser", "--port", "0"]
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(RUN.path)]
    with subprocess.Popen(
        command, cwd=filmed, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        idle, busy = (http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(2))
        idle.request("GET", "/contents")  # and the connection stays open
        assert idle.getresponse().read()
        busy.request("POST", "/compute", json.dumps(READ), {"content-type": "application/json"})
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (130, "", "")
        assert time.monotonic() - began < 2
        idle.close()
        busy.close()
