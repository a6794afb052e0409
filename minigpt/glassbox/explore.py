"""The page that is alive, served: for models that are too large for a page, and for a run while it trains.

It is for whoever sits at this machine. Other web sites that are open in the same browser are kept out: see
:class:`Guard`.
"""

import asyncio
import contextlib
import csv
import dataclasses
import json
import os
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.glassbox import explain
from minigpt.glassbox.answers import Answers, as_json, whole
from minigpt.glassbox.copying import copying
from minigpt.glassbox.film import read_frame
from minigpt.glassbox.report import data_of, read_settings, scored_heads
from minigpt.glassbox.validation import mean_and_interval, nats_per_bit, open_split, score
from minigpt.glassbox.where import strongest
from minigpt.records import METRICS, SCORED, read_rows
from minigpt.run import RunFolder, read_checkpoint, written_at
from minigpt.text.corpus import DataSettings

PORT = 8765  # unless it is taken
THREADS, WAITING, SECONDS = 4, 1000, 60  # that compute; requests that may wait for them, and how long
BODY = 1 << 20  # bytes of a request
COPIED, TRAINING = 5000, 2 * 10**8  # characters of a text that may be copied, and of the training text to look in
PAUSE = 1.0  # seconds after which it is looked whether the run has gone on
PLAIN = "default-src 'none'; frame-ancestors 'none'"  # what a browser may do with an answer that is no page


class Shown:
    """What is shown of a run: its models as they appear, and what was found out about each of them.

    Args:
        version: of this program.
        checkpoint: the main model; without one, that is the newest frame while the run trains, then its best model.
        folder: of the run, if it is known.
        corpus: where the text is now, if it isn't where the run found it.

    Raises:
        UserError: there is no model, or it has diverged.
    """

    def __init__(
        self,
        version: str,
        checkpoint: Path | None = None,
        folder: RunFolder | None = None,
        corpus: str | None = None,
    ) -> None:
        self.folder, self.corpus = folder, corpus
        self._checkpoint = checkpoint
        self._ended = 0  # when the run was last written to, if it was found to have ended then
        self._known: dict[tuple[Path, int], tuple[Any, Any]] = {}  # a file and its time: its probe, and its history
        self._curves: tuple[int, dict[str, Any]] = (-1, {"train": [], "val": []})
        self.complete = False  # the run has ended, and all that is there was looked at
        self.answers = Answers(self.paths)
        self.live = self.trains()
        self.main = self._main(self.live)
        self.checkpoint = read_checkpoint(self.main[1])
        model = self.answers.model(self.main[0])
        self.found = explain.described(model, self.checkpoint, self.main[1], version)
        self.found |= {"scores": None, "fires": None, "samples": [], "embeds": [], "missing": []}
        if folder:
            self.found["name"] = f"{folder.name}/{folder.path.name}"
        if self.found["parameters"] > explain.MOST_PARAMETERS:
            self.found["compute"] = "server"
        rows = read_rows(folder.path / METRICS) if folder else []
        self.found["facts"] = explain.facts(model, self.checkpoint, rows)
        self.found["text"], self.found["text_from"] = self._text(model)
        weights = explain.rounded(model.gpt, "float32").state_dict()
        self.found["tensors"] = [[name, list(weight.shape)] for name, weight in weights.items()]
        self.found["precision"] = "float32"  # nothing needs to be small here
        self._ids = model.tokenizer.encode(self.found["text"])[: explain.PROBE]
        self.look(*self.main)

    def _main(self, live: bool) -> tuple[int, Path]:
        """The step and the file of the main model."""
        if self._checkpoint:
            return read_checkpoint(self._checkpoint)["global_step"], self._checkpoint
        assert self.folder
        frames = self.folder.frames()
        best = self.folder.best()
        if best and not (frames and live) and (name := SCORED.fullmatch(best.name)):
            return int(name[1]), best
        if frames:
            return max(frames.items())
        if self.folder.last.exists():
            return read_checkpoint(self.folder.last)["global_step"], self.folder.last
        raise UserError(
            f"The run {self.folder.path} has no model yet: no checkpoint, and no frame of a film. Wait for the first, "
            "or train with --film.per_doubling 3, which has one from the beginning."
        )

    def _text(self, model: Any) -> tuple[str, str]:
        """What the page opens with, and where that is from."""
        tokenizer, size = model.tokenizer, model.gpt.config.block_size
        with contextlib.suppress(UserError):  # the text isn't at hand
            corpus, places = open_split(tokenizer, self.data())
            ids = corpus.ids(places["val"])[:]
            text = explain.opening(tokenizer, ids[explain.paragraph(tokenizer, ids) :], size)
            return text, "From the validation split, on which the model was not trained."
        self.found["missing"] = ["The corpus isn't at hand: nothing is measured on it, or found in it."]
        text = model.generate(max_new_tokens=explain.OPENING[1], seed=1)
        return explain.opening(tokenizer, tokenizer.encode(text), size), "Written by the model itself."

    def data(self) -> DataSettings:
        """The text of the run.

        Raises:
            UserError: it isn't at hand.
        """
        return data_of(self.checkpoint, read_settings(self.folder, self.checkpoint), self.corpus)

    def paths(self) -> dict[int, Path]:
        """The models that there are now, by their steps."""
        return {**(self.folder.frames() if self.folder else {}), **dict([self.main])}

    def trains(self) -> bool:
        """Whether the run still trains: then it holds a lock, see ``run.sole_owner``.

        To try a lock is to hold it for a moment, in which no run could begin. So it is tried once after each change.
        """
        if not self.folder or not (lock := self.folder.path / ".lock").exists():
            return False
        places = (self.folder.path / METRICS, self.folder.film, self.folder.checkpoints)
        written = max(map(written_at, places))
        if written == self._ended:
            return False
        try:
            with FileLock(lock, timeout=0):
                self._ended = written
        except Timeout:
            return True
        except OSError:  # in a folder that may not be written to nobody trains
            self._ended = written
        return False

    def look(self, step: int, path: Path) -> None:
        """Find out about one model, if that isn't done."""
        if (key := (path, written_at(path))) in self._known:
            return
        found: tuple[Any, Any] = None, None
        try:
            history = probe = None
            if self.folder and path.parent == self.folder.film:
                frame = read_frame(step, path)
                gpt, history = frame.gpt, explain.plain(explain.seen_at(frame))
            else:
                gpt = self.answers.load(path).gpt
            if self.found["compute"] == "page":
                probe = explain.plain(explain.probe(explain.rounded(gpt, "float32"), self._ids))
            found = {"step": step, "probe": probe}, history
        except UserError:  # it is damaged, or diverged: then it isn't shown
            if not self._known:
                raise
        self._known[key] = found

    def watch(self, stop: threading.Event) -> None:
        """Find out about all that is there and all that appears, until ``stop``."""
        while not stop.is_set():
            try:
                self.refresh(stop)
            except Exception:  # a fault of ours must be seen, and may not end the watch
                traceback.print_exc()
            stop.wait(PAUSE)

    def refresh(self, stop: threading.Event) -> None:
        live = self.trains()
        main = self._main(live)
        self.look(*main)
        if self._known.get((main[1], written_at(main[1])), (None, None))[0]:
            self.main = main
        for step, path in sorted(self.paths().items(), reverse=True):
            if stop.is_set():
                return
            self.look(step, path)
        self.live = live
        if not live and not self.complete:
            with contextlib.suppress(UserError):  # the text isn't at hand
                self.measure()
        self.complete = not live

    def measure(self) -> None:
        """What takes long: the loss on the validation split, and what the heads do there."""
        model = self.answers.model(self.main[0])
        validation = score(model, self.data())
        loss, interval = mean_and_interval(validation.nats)
        bits = loss / nats_per_bit(validation)
        rows = read_rows(self.folder.path / METRICS) if self.folder else []
        facts = explain.facts(model, read_checkpoint(self.main[1]), rows)
        facts |= {"loss": loss, "loss_interval": interval, "bits_per_char": bits}
        self.found |= {"facts": facts, "scores": explain.scores_of(scored_heads(model, validation))}

    def curves(self) -> dict[str, Any]:
        path = self.folder.path / METRICS if self.folder else None
        if path and self._curves[0] != (written := written_at(path)):
            with contextlib.suppress(OSError, csv.Error):  # it is just being replaced
                self._curves = written, explain.curves(read_rows(path))
        return self._curves[1]

    def fresh(self) -> dict[str, Any]:
        """What changes while the run trains. ``pending``: more will come, even if the run has ended."""
        models, history = [], []
        for _, path in sorted(self.paths().items()):
            model, seen = self._known.get((path, written_at(path)), (None, None))
            models += [model] if model else []
            history += [seen] if seen else []
        return {
            "main": self.main[0],
            "models": models,
            "curves": self.curves(),
            "history": history,
            "live": self.live,
            "pending": not self.complete,
        }

    def page(self) -> bytes:
        return explain.pack(explain.plain(self.found | self.fresh()), {}, served=True)

    def weights(self, step: int) -> bytes:
        return explain.as_bytes(explain.rounded(self.answers.model(step).gpt, "float32"), "float32")


class Desk:
    """Some threads that compute, and those who wait for them: not too many, and not too long."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "explore")
        self._waiting = 0

    async def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a function.

        Raises:
            HTTPException: there is no time for it.
        """
        if self._waiting >= WAITING:
            raise HTTPException(503, "Too many requests are waiting; ask again in a moment.")
        self._waiting += 1
        try:
            result = asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
            done, _ = await asyncio.wait([result], timeout=SECONDS)
            if not done:
                result.cancel()
                raise HTTPException(503, f"It took longer than {SECONDS} seconds; ask for less, or once more later.")
            return result.result()
        finally:
            self._waiting -= 1


class Guard:
    """Refuses what no page of ours asks, and tells the browser what it may do with each answer.

    A page of another site can send requests here too. It can't read the answers, for none says so (there is no CORS);
    what it could set off is refused by the Origin that the browser states, and because no form sends JSON. Who
    resolves a name of his own to this machine (DNS rebinding) is refused by the Host. A program that is no browser
    states no Origin and may ask: nobody's cookies or rights are lent to it.

    Args:
        app: what answers.
        host: where it listens; beside its names it may be called by the address that a connection has come to.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.hosts = app, {"localhost", "127.0.0.1", "::1", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", PLAIN)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["cross-origin-resource-policy"] = "same-origin"
                headers["cross-origin-opener-policy"] = "same-origin"
                headers["cache-control"] = "no-store"
            await send(message)

        try:
            answer = self.refused(scope) or self.app
            await answer(scope, receive, guarded)
        except ClientDisconnect:
            pass
        except Exception:  # a fault of ours; it was answered
            traceback.print_exc()

    def refused(self, scope: Scope) -> Response | None:
        headers, server = Headers(scope=scope), scope.get("server") or ("",)
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name not in self.hosts | {server[0]}:
            return refusal(421, "This server is not called so.")
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return refusal(403, "Another page may not ask this.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return refusal(415, "A request is JSON, and its content-type says so.")
        return None


def application(shown: Shown, host: str = "127.0.0.1") -> ASGIApp:
    """The application that serves the page."""
    desk, policy = Desk(), served_policy()

    async def page(request: Request) -> Response:
        body = await desk.do(shown.page)
        return Response(body, media_type="text/html", headers={"content-security-policy": policy})

    async def contents(request: Request) -> Response:
        return await desk.do(lambda: answer(shown.fresh()))

    async def weights(request: Request) -> Response:
        step = request.path_params["step"]
        if shown.found["compute"] != "page" or step not in map(str, shown.paths()):
            raise HTTPException(404, "There are no such weights.")
        return Response(await desk.do(shown.weights, int(step)), media_type="application/octet-stream")

    async def compute(request: Request) -> Response:
        asked = await body_of(request)
        number = asked.get("id")
        if not isinstance(number, int | str | None) or len(str(number)) > 100:
            raise UserError("The id of a request is a number or a short text.")
        try:
            return await desk.do(lambda: answer({"id": number, "result": as_json(shown.answers.answer(asked))}))
        except UserError as error:
            return answer({"id": number, "error": str(error)}, 400)

    async def copied(request: Request) -> Response:
        asked = await body_of(request)
        return await desk.do(lambda: answer(find_copied(shown, asked)))

    async def where(request: Request) -> Response:
        asked = await body_of(request)
        return await desk.do(lambda: answer(find_strongest(shown, asked)))

    @contextlib.asynccontextmanager
    async def watching(app: Starlette) -> AsyncIterator[None]:
        stop = threading.Event()
        watcher = threading.Thread(target=shown.watch, args=[stop], daemon=True)
        watcher.start()
        yield
        stop.set()

    routes = [
        Route("/", page),
        Route("/contents", contents),
        Route("/weights/{step}", weights),
        *(Route(f"/{it.__name__}", it, methods=["POST"]) for it in (compute, copied, where)),
    ]
    app = Starlette(
        routes=routes,
        lifespan=watching,
        exception_handlers={
            UserError: lambda _, error: refusal(400, str(error)),
            Exception: lambda *_: refusal(500, "The program failed; its terminal shows how."),
            HTTPException: lambda _, error: refusal(error.status_code, error.detail),
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, host)


def served_policy() -> str:
    """What the browser lets the served page do; also that no other page frames it, which only a header can say."""
    style, script = explain.read("page.css"), "".join(map(explain.read, explain.SCRIPTS))
    return f"{explain.policy(script, style, served=True)}; frame-ancestors 'none'"


def find_copied(shown: Shown, asked: dict[str, Any]) -> dict[str, Any]:
    text = asked.get("text")
    if not isinstance(text, str) or not 1 <= len(text) <= COPIED:
        raise UserError(f"text must be a text of 1 to {COPIED:,} characters.")
    data = at_hand(shown)
    if (length := len(data.open_splits()["train"])) > TRAINING:
        raise HTTPException(409, f"The training text has {length:,} characters: to look through it takes too long.")
    (found,) = copying(text, data)
    return explain.sharing(found, data)


def find_strongest(shown: Shown, asked: dict[str, Any]) -> list[dict[str, Any]]:
    layer = whole(asked, "layer", 0)
    chosen = {name: whole(asked, name, 0) for name in ("head", "neuron") if asked.get(name) is not None}
    model = shown.answers.model(shown.main[0])
    cost = flops_per_token(model.gpt.config) / 3 * model.gpt.config.block_size  # of a window
    most = int(np.clip(explain.READ / cost, 1, 256))
    return [dataclasses.asdict(it) for it in strongest(model, at_hand(shown), layer, **chosen, most=most)]


def at_hand(shown: Shown) -> DataSettings:
    try:
        return shown.data()
    except UserError as error:
        raise HTTPException(409, f"The text isn't at hand. {error} Where it lies now is told with --corpus.") from error


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON of a request.

    Raises:
        HTTPException: it is too large, or comes too slowly.
        UserError: it is no object.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > BODY:
                    raise HTTPException(413, f"A request has at most {BODY:,} bytes.")
    except TimeoutError:
        raise HTTPException(408, "The request comes too slowly.") from None
    try:
        found = json.loads(body, parse_constant=int)  # which takes no NaN
    except (ValueError, RecursionError):
        raise UserError("The request is no JSON.") from None
    if not isinstance(found, dict):
        raise UserError("A request is an object.")
    return found


def answer(value: Any, status: int = 200) -> Response:
    """A value as JSON, in ASCII: a text may hold halves of characters, which UTF-8 can't."""
    text = json.dumps(explain.plain(value), allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def refusal(status: int, sentence: str) -> Response:
    return answer({"error": sentence}, status)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens there; without a port, at :data:`PORT` or a free one.

    Raises:
        UserError: it can't.
    """
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        try:
            return socket.create_server((host, PORT if port is None else port), family=family)
        except OSError:
            if port is not None:
                raise
            return socket.create_server((host, 0), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"Nothing can be served at {host}, port {port or PORT}: {why}. Name another port with --port; 0 takes a "
            "free one."
        ) from error


def serve(shown: Shown, host: str, port: int | None, browser: bool) -> None:
    """Serve the page until Ctrl-C."""
    sock = listen(host, port)
    number = sock.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    address = f"http://{name}:{number}/"
    config = uvicorn.Config(
        application(shown, host),
        log_level="critical",  # Guard shows what fails
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    print(f"{shown.found['name']} at {address} (Ctrl-C ends it)", flush=True)
    if browser:
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    try:
        uvicorn.Server(config).run([sock])
    except KeyboardInterrupt:
        # What is being computed can't be interrupted, and Python would wait for its end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
