"""Any text: compressed, downloaded, of any script and size, damaged, or changing under our eyes."""

import bz2
import contextlib
import gzip
import hashlib
import http.server
import io
import lzma
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import zstandard

from conftest import assert_clear_error, make_text, run_minigpt
from minigpt import load
from minigpt.errors import UserError
from minigpt.run import read_checkpoint, write_checkpoint
from minigpt.text import sources
from minigpt.text.baselines import baselines, conditional_entropy
from minigpt.text.corpus import DataSettings
from minigpt.text.sources import NamedCorpus, Source
from minigpt.text.tokenizer import SHOWN, TOKENIZERS, UNKNOWN, CharTokenizer
from test_cli import printed

MORE = ("--trainer.max_steps", 6)
MIXED = "Latin, Ελληνικά, 漢字かな, עברית, naïve 😀🎭\n"
TINY_MIXED = MIXED * 60


def read(name: str | Path | list[str], folder: Path, **settings: Any) -> str:
    corpus = DataSettings(data_dir=str(folder / "data"), **settings).open(name if isinstance(name, list) else str(name))
    return TOKENIZERS[settings.get("tokenizer", "char")](corpus.vocabulary).decode(corpus.ids()[:])


# Sources


def test_compressed_texts_are_read_as_they_are(tmp_path: Path) -> None:
    raw = TINY_MIXED.encode()
    packed: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "xz": lzma.compress,
        "bz2": bz2.compress,
        "zst": zstandard.compress,
    }
    for suffix, compress in packed.items():
        (tmp_path / f"a.txt.{suffix}").write_bytes(compress(raw))
        assert read(tmp_path / f"a.txt.{suffix}", tmp_path) == TINY_MIXED
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("b/2.txt", "two")
        archive.writestr("1.txt", "one")
        archive.writestr("cover.jpg", b"\xff\xd8")
    assert read(tmp_path / "two.zip", tmp_path) == "one\ntwo"


def test_several_sources_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "d.txt.gz").write_bytes(gzip.compress(b"d"))
    names = [str(tmp_path / name) for name in ("c.txt", "folder", "[ab].txt")]
    assert read(names, tmp_path) == "c\nd\na\nb"


def test_what_is_read_of_a_folder_or_an_archive_is_told(workplace: Path) -> None:
    text, folder = make_text(299) + ".", Path("folder")
    folder.mkdir()
    for name in ("one.txt", "TWO.TXT", "three.Txt.GZ", "notes.md", "._one.txt"):
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith("GZ") else text.encode())
    with zipfile.ZipFile("folder/old.ZIP", "w") as archive:
        archive.write("folder/TWO.TXT")
        archive.write("folder/notes.md", "__MACOSX/._TWO.TXT")
    result = run_minigpt("corpus", "--data.corpus", "folder")
    two = Path("folder/TWO.TXT"), Path("folder/old.ZIP:folder/TWO.TXT"), Path("folder/one.txt")
    assert f"folder: 4 texts are read: {', '.join(map(str, two))} and 1 more." in result.out
    skipped = "folder: 3 files are not read, see --data.suffixes: ._one.txt, notes.md, __MACOSX/._TWO.TXT."
    assert skipped in result.out
    assert "1,203 characters" in result.out
    assert "1,504 characters" in run_minigpt("corpus", "--data.corpus", "folder", "--data.suffixes", "[txt,.MD]").out
    for name in ("a.py", "b.py", "c.md"):
        Path("code").mkdir(exist_ok=True)
        Path("code", name).write_text(text)
    result = run_minigpt("corpus", "--data.corpus", "code")
    assert_clear_error(result, "holds no text", ".py (2), .md (1)", "--data.suffixes .py")
    python = ("--data.corpus", "code", "--data.suffixes", ".py")
    assert "601 characters" in run_minigpt("corpus", *python).out
    assert run_minigpt("fit", "--config", "tiny.yaml", "--trainer.max_steps", 2, *python).code == 0
    assert run_minigpt("fit", "--ckpt_path", "last", *MORE).code == 0
    other = ("--data.corpus", "folder", "--data.suffixes", ".md", "--data.test_fraction", 0.5)  # whose archive has none
    result = run_minigpt("test", "--ckpt_path", "last", *other)
    assert result.code == 0, result.err


def test_links_are_followed_and_a_loop_of_them_is_no_trap(tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (other / "back").symlink_to(folder, target_is_directory=True)
    (other / "b.txt").write_text("linked")
    for name in ("x", "y"):
        (folder / name).symlink_to(other, target_is_directory=True)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    with pytest.raises(UserError, match=r"can't be read.*self\.txt"):
        read(folder, tmp_path)
    (folder / "self.txt").unlink()
    assert read(folder, tmp_path) == "text\nlinked"


def test_a_folder_that_may_not_be_read_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "texts" / "closed").mkdir(parents=True)
        (folder / "texts" / "closed").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:  # to whom nothing is forbidden
                os.seteuid(65534)
            with pytest.raises(PermissionError, match="closed"):
                sources.find_sources(str(folder / "texts"), folder, None, [".txt"], [])
        finally:
            os.seteuid(user)


def test_damaged_archives_are_clear_errors(workplace: Path) -> None:
    raw = os.urandom(20_000).hex().encode()
    for suffix, packed in {
        "txt.gz": gzip.compress(raw),
        "txt.xz": lzma.compress(raw),
        "txt.bz2": bz2.compress(raw),
        "zip": b"PK\x03\x04 no archive",
    }.items():
        for cut in {len(packed), len(packed) // 2} - {len(packed)} or {0}:
            file = workplace / f"cut.{suffix}"
            file.write_bytes(packed[: cut or None])
            result = run_minigpt("fit", "--config", "tiny.yaml", "--data.corpus", file)
            assert_clear_error(result, f"cut.{suffix}", "cut off or damaged")
    assert not list((workplace / "data" / "ids").iterdir())


def test_a_bomb_is_refused_before_it_fills_the_disk(workplace: Path) -> None:
    (workplace / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * 50_000_000))
    corpus = ("--data.corpus", "bomb.txt.gz", "--data.max_unpacked_gb", 0.01)
    result = run_minigpt("fit", "--config", "tiny.yaml", *corpus)
    assert_clear_error(result, "unpacks to more than 0.01 GB", "--data.max_unpacked_gb")


def test_the_standard_input_is_read_once_and_kept(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(make_text(3000).encode()), "ascii"))
    result = run_minigpt("fit", "--config", "tiny.yaml", "--data.corpus", "-", "--trainer.max_steps", 4)
    assert result.code == 0, result.err
    (kept,) = Path("data").glob("stdin-*.txt")
    assert kept.read_text() == make_text(3000)
    again = ("--config", "lightning_logs/tiny/version_0/config.yaml")
    assert run_minigpt("fit", *again, "--trainer.max_steps", 2).code == 0
    result = run_minigpt("fit", "--ckpt_path", "lightning_logs/tiny/version_0/checkpoints/last.ckpt", *MORE)
    assert result.code == 0, result.err
    assert_clear_error(run_minigpt("corpus", "--data.corpus", "-"), "nothing comes from there")
    monkeypatch.setattr("sys.stdin", None)
    assert_clear_error(run_minigpt("corpus", "--data.corpus", "-"), "nothing comes from there")
    assert [path.name for path in Path("data").iterdir() if "stdin" in path.name] == [kept.name]


def test_a_leading_tilde_is_the_home_in_every_setting(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = workplace / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (home / "a.txt").write_text(make_text(3000))
    texts = ("--data.corpus", "~/a.txt", "--data.val_corpus", "~/a.txt", "--data.test_corpus", "['~/a.txt']")
    folder = ("--data.data_dir", "~/kept")
    result = run_minigpt("fit", "--config", "tiny.yaml", "--trainer.max_steps", 2, *texts, *folder)
    assert result.code == 0, result.err
    assert (home / "kept" / "ids").is_dir()
    predict = ("predict", "--ckpt_path", "last", "--data.predict_corpus", "~/a.txt", *folder)
    assert_clear_error(run_minigpt(*predict, "--output", home / "a.txt"), "is there already")
    wrong = ("--data.corpus", "tinyshakespeare", "--data.mirror", "~/a.txt")
    assert_clear_error(run_minigpt("corpus", *wrong, *folder), "What came from ~/a.txt is not")
    assert not Path("~").exists()


@pytest.mark.parametrize("where", ["a file", "a folder that is closed", "a lock that is none"])
def test_a_data_folder_that_cannot_be_written_is_a_clear_error(workplace: Path, where: str) -> None:
    folder = workplace / "kept"
    if where == "a file":
        folder.write_text("")
    else:
        (folder / ".lock" if "lock" in where else folder).mkdir(parents=True)
    folder.chmod(0o555 if "closed" in where else 0o777)
    if "closed" in where and os.access(folder, os.W_OK):
        pytest.skip("nothing is closed to this user")
    result = run_minigpt("corpus", "--data.corpus", "text.txt", "--data.data_dir", folder)
    assert_clear_error(result, f"{folder}, where its ids are kept, not be written", "--data.data_dir")


# What a text may hold


def test_what_happened_to_many_files_is_one_line(workplace: Path) -> None:
    Path("texts").mkdir()
    for i in range(40):
        Path(f"texts/{i:02}.txt").write_bytes(b"one\r\ntwo\r\n")
    lines = run_minigpt("corpus", "--data.corpus", "texts").out.splitlines()
    what = "texts/00.txt, texts/01.txt, texts/02.txt and 37 more: line ends that were not newlines became newlines."
    assert [line for line in lines if "line ends that" in line] == [what]


def test_what_is_odd_about_characters_is_told_in_one_line_each(workplace: Path) -> None:
    text = make_text(3000)
    Path("odd.txt").write_text(f"a\x00b\x92c\x7f é e\u0301 {text}Жж", encoding="utf-8")
    Path("val.txt").write_text(f"{text}é%", encoding="utf-8")
    told = [
        "odd.txt holds control characters, which nobody sees: '\\x00' (U+0000), '\\x7f' (U+007F), '\\x92' (U+0092).",
        "odd.txt holds, it seems, the same letters whole (NFC) and in parts (NFD): 'é' (U+00E9).",
        "'%' (U+0025), 'Ж' (U+0416), 'ж' (U+0436): in the validation or test split only, never trained on.",
    ]
    data = ("--data.corpus", "odd.txt", "--data.val_corpus", "val.txt")
    for command in (["corpus"], ["fit", "--config", "tiny.yaml", "--trainer.max_steps", 1]):
        for _ in range(2):  # when it is read, and when it is known
            result = run_minigpt(*command, *data)
            assert result.code == 0, result.err
            for words in told:
                assert sum(line.startswith(words) for line in result.out.splitlines()) == 1, (words, result.out)
    Path("plain.txt").write_text(text + "é\u0302é\x0a", encoding="utf-8")  # a mark, but no letter written in two ways
    assert "holds" not in run_minigpt("corpus", "--data.corpus", "plain.txt", "--data.tokenizer", "char").out


SENTENCES = {
    "english": "“It’s a fine day,” she said — and left. He didn’t know why.\n",  # noqa: RUF001
    "german": "Über den Wäldern fließt die Luft; König und Mädchen hören süße Töne.\n",
    "polish": "Zażółć gęślą jaźń. Był sobie król, był sobie paź i była też królewna.\n",
    "russian": "Все счастливые семьи похожи друг на друга, каждая несчастлива по-своему.\n",  # noqa: RUF001
    "japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n",
}


@pytest.mark.parametrize(
    ("language", "encoding", "advised"),
    [
        ("english", "cp1252", "cp1252"),
        ("german", "latin-1", "latin-1"),
        ("polish", "cp1250", "cp1250"),
        ("russian", "cp1251", "cp1251"),
        ("japanese", "shift_jis", "cp932"),
        ("english", "utf-16", "utf-16"),
        ("english", "utf-16-le", "utf-16-le"),
        ("russian", "utf-16-be", "utf-16-be"),
        ("japanese", "utf-32", "utf-32"),
    ],
)
def test_text_in_another_encoding_is_noticed_and_the_right_one_named(
    tmp_path: Path, language: str, encoding: str, advised: str
) -> None:
    text, file = SENTENCES[language] * 30, tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="is not utf-8") as error:
        read(file, tmp_path)
    said = str(error.value)
    if advised.startswith("utf"):
        assert f"--data.encoding {advised}." in said
    else:  # how each encoding would read the place
        assert re.search(rf"{advised} it reads '{re.escape(text[:3])}", said), said
    assert read(file, tmp_path, encoding=advised) == text


def test_line_ends_and_marks_are_normalised_and_said_so(workplace: Path) -> None:
    text = make_text(3000)
    (workplace / "dos.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    result = run_minigpt("corpus", "--data.corpus", "dos.txt")
    assert "dos.txt: the byte-order mark was dropped." in result.out
    assert "dos.txt: line ends that were not newlines became newlines." in result.out
    assert read("dos.txt", workplace) == text
    (workplace / "wide.txt").write_text(text, encoding="utf-16")
    assert read("wide.txt", workplace, encoding="utf-16") == text


def test_nul_is_a_character_and_a_lone_surrogate_is_an_error(workplace: Path) -> None:
    (workplace / "nul.txt").write_bytes(b"a\x00b")
    assert read("nul.txt", workplace) == "a\x00b"
    (workplace / "nuls.txt").write_bytes(b"a field\x00and another\n" * 50)  # at odd places, as in UTF-16
    assert read("nuls.txt", workplace).count("\x00") == 50
    (workplace / "half.txt").write_bytes(b"ab\\udfff")
    with pytest.raises(UserError, match=r"half\.txt is not unicode_escape: .* surrogates not allowed"):
        read("half.txt", workplace, encoding="unicode_escape")
    (workplace / "surrogate.txt").write_bytes(b"ab" + "\ud800".encode("utf-8", "surrogatepass"))
    result = run_minigpt("corpus", "--data.corpus", "surrogate.txt")
    assert_clear_error(result, "surrogate.txt is not utf-8: byte 2 (0xed)", "--data.tokenizer byte")


def test_a_million_characters_are_no_text(workplace: Path) -> None:
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    (workplace / "all.txt").write_text(everything, encoding="utf-8", newline="")
    assert_clear_error(
        run_minigpt("corpus", "--data.corpus", "all.txt"), "different characters", "--data.tokenizer byte"
    )


def test_one_character_over_and_over_trains_with_a_warning(workplace: Path) -> None:
    (workplace / "a.txt").write_text("a" * 3000)
    result = run_minigpt("fit", "--config", "tiny.yaml", "--data.corpus", "a.txt", "--trainer.max_steps", 2)
    assert result.code == 0, result.err
    assert "Warning: the corpus has a single character" in result.out


@pytest.mark.soak
def test_many_scripts_go_through_training_and_back(workplace: Path) -> None:
    (workplace / "mixed.txt").write_text(TINY_MIXED, encoding="utf-8")
    for tokenizer in ("char", "byte"):
        assert read("mixed.txt", workplace, tokenizer=tokenizer) == TINY_MIXED
        run = (
            "--data.corpus",
            "mixed.txt",
            "--data.tokenizer",
            tokenizer,
            "--name",
            tokenizer,
            "--trainer.max_steps",
            3,
        )
        result = run_minigpt("fit", "--config", "tiny.yaml", *run)
        assert result.code == 0, result.err
        checkpoint = f"lightning_logs/{tokenizer}/version_0/checkpoints/last.ckpt"
        result = run_minigpt("generate", "--ckpt_path", checkpoint, "--prompt", "漢字 עברית 😀", "--max_new_tokens", 40)
        assert result.code == 0, result.err
        assert result.out.startswith("漢字 עברית 😀")
        if tokenizer == "char":
            assert set(result.out) <= set(TINY_MIXED)
        for command in ("validate", "test"):
            result = run_minigpt(command, "--ckpt_path", checkpoint, "--trainer.enable_progress_bar", "false")
            assert result.code == 0, result.err
            assert "bits_per_byte" in result.out


def test_bits_per_byte_and_per_character_are_those_of_the_text(workplace: Path) -> None:
    """Both tokenizers count the same characters and the same bytes."""
    tokens = {"char": TINY_MIXED, "byte": TINY_MIXED.encode()}
    for name, text in tokens.items():
        vocabulary = "".join(sorted(set(TINY_MIXED))) if name == "char" else "".join(map(chr, range(256)))
        tokenizer = TOKENIZERS[name](vocabulary)
        ids = tokenizer.encode(TINY_MIXED)
        assert len(ids) == len(text)
        assert np.array(tokenizer.byte_counts())[ids].sum() == len(TINY_MIXED.encode())
        assert np.array(tokenizer.character_counts())[ids].sum() == len(TINY_MIXED)


def test_any_file_is_a_text_of_bytes(workplace: Path) -> None:
    (workplace / "noise.bin").write_bytes(bytes(range(256)) * 20 + b"\r\n\xff\xfe")
    corpus = DataSettings(data_dir="data", tokenizer="byte").open("noise.bin")
    assert corpus.ids()[:].tobytes() == (workplace / "noise.bin").read_bytes()


def test_rare_characters_become_one_symbol_that_is_never_written(workplace: Path) -> None:
    text = SHOWN * 50 + make_text(6000)  # which is a character as any other
    (workplace / "rare.txt").write_text(f"{text[:3000]}😀{text[3000:]}é", encoding="utf-8")
    run = ("--data.corpus", "rare.txt", "--data.min_count", 2, "--trainer.max_steps", 4)
    assert run_minigpt("fit", "--config", "tiny.yaml", *run).code == 0
    checkpoint = Path("lightning_logs/tiny/version_0/checkpoints/last.ckpt")
    vocabulary = read_checkpoint(checkpoint)["hyper_parameters"]["vocabulary"]
    assert vocabulary == "".join(sorted({*text, UNKNOWN}))
    hot = ("--temperature", 50, "--max_new_tokens", 300, "--prompt", "a ☃")
    result = run_minigpt("generate", "--ckpt_path", checkpoint, *hot)
    assert result.code == 0, result.err
    assert set(result.out[3:]) <= set(text)
    assert SHOWN in result.out[3:]
    assert run_minigpt("predict", "--ckpt_path", checkpoint, "--data.predict_corpus", "rare.txt").code == 0
    assert run_minigpt("fit", "--ckpt_path", checkpoint, *MORE).code == 0
    assert_clear_error(run_minigpt("fit", "--config", "tiny.yaml", "--data.min_count", 0), "data.min_count is 0")


def test_a_text_with_replacement_characters_keeps_them(workplace: Path) -> None:
    """Until format 3 of checkpoints, U+FFFD in a vocabulary was the unknown symbol, whoever put it there."""
    (workplace / "scraped.txt").write_text(make_text(3000).replace("t", SHOWN), encoding="utf-8")
    run = ("--data.corpus", "scraped.txt", "--trainer.max_steps", 4)
    assert run_minigpt("fit", "--config", "tiny.yaml", *run).code == 0
    for min_count in (1, 2):
        path = Path("lightning_logs/tiny/version_0/checkpoints/last.ckpt")
        checkpoint = read_checkpoint(path)
        assert SHOWN in checkpoint["hyper_parameters"]["vocabulary"]
        checkpoint["datamodule_hyper_parameters"]["min_count"] = min_count
        checkpoint["minigpt_format"] = 2
        write_checkpoint(checkpoint, path)
        model = load(str(path))
        assert (SHOWN in model.generate(temperature=50.0)) == (min_count == 1)
        with pytest.raises(UserError, match="Ж") if min_count == 1 else contextlib.nullcontext():
            model.generate("Ж")


def test_an_unknown_symbol_stands_for_what_the_vocabulary_lacks() -> None:
    tokenizer = CharTokenizer("ab" + UNKNOWN)
    assert tokenizer.decode(tokenizer.encode("abc")) == tokenizer.decode(tokenizer.encode("abé")) == "ab" + SHOWN


def test_separate_validation_and_test_texts(workplace: Path) -> None:
    (workplace / "val.txt").write_text(make_text(500, seed=1) + "%")
    (workplace / "test.txt").write_text(make_text(700, seed=2))
    run = ("--data.val_corpus", "val.txt", "--data.test_corpus", "test.txt", "--trainer.max_steps", 8)
    result = run_minigpt("fit", "--config", "tiny.yaml", *run)
    assert result.code == 0, result.err
    checkpoint = "lightning_logs/tiny/version_0/checkpoints/last.ckpt"
    assert "%" in torch.load(checkpoint, weights_only=True)["hyper_parameters"]["vocabulary"]
    quiet = ("--trainer.enable_progress_bar", "false")
    scored = run_minigpt("predict", "--ckpt_path", checkpoint, "--data.predict_corpus", "test.txt", *quiet)
    mean = float(scored.out.split("700 characters, ")[1].split()[0])
    result = run_minigpt("test", "--ckpt_path", checkpoint, *quiet)
    assert result.code == 0, result.err
    assert printed("test/loss", result.out) == pytest.approx(mean, abs=1e-4), "the test split is the whole of test.txt"


# The cache


def test_a_second_start_does_not_read_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text(make_text(1000))
    monkeypatch.setattr("minigpt.text.corpus.time.time_ns", lambda: 1 << 62)  # long after the file was written
    first = DataSettings(data_dir=str(tmp_path / "data")).open(str(file))
    monkeypatch.setattr(Source, "chunks", lambda *args: pytest.fail("the text was read again"))
    assert DataSettings(data_dir=str(tmp_path / "data")).open(str(file)) == first


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abc" * 1000)
    encode = CharTokenizer.encode

    def change_then_encode(self: CharTokenizer, text: str) -> Any:
        with file.open("a") as more:
            more.write("cab")
        return encode(self, text)

    monkeypatch.setattr(CharTokenizer, "encode", change_then_encode)
    with pytest.raises(ValueError, match="changed while it was read"):
        DataSettings(data_dir=str(tmp_path / "data")).open(str(file))
    monkeypatch.setattr(CharTokenizer, "encode", encode)
    assert read(file, tmp_path) == file.read_text()


def test_a_full_disk_leaves_the_old_ids_and_no_torn_ones(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "more.txt").write_text(make_text(9000, seed=3))
    read("text.txt", workplace)
    before = {path: path.read_bytes() for path in (workplace / "data" / "ids").iterdir()}
    # A file-size limit stands in for a full disk: the write fails in the same place, with an OSError.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        "sys.argv = ['minigpt', 'corpus', '--data.corpus', 'more.txt'];"
        "from minigpt.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 2
    assert "or data, where its ids are kept, not be written: [Errno 27] File too large" in " ".join(
        result.stderr.split()
    )
    assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in (workplace / "data" / "ids").iterdir()} == before


def test_killed_half_way_nothing_is_taken_for_whole(workplace: Path) -> None:
    code = (
        "import os, sys; from minigpt.text.corpus import *; from minigpt.text.tokenizer import CharTokenizer;"
        "CharTokenizer.encode = lambda self, text: os.kill(os.getpid(), 9);"
        "DataSettings().open('text.txt')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100, check=False)
    assert result.returncode == -9
    assert [path.suffix for path in (workplace / "data" / "ids").iterdir()] == [".part"]
    assert read("text.txt", workplace) == (workplace / "text.txt").read_text()
    assert not list((workplace / "data" / "ids").glob("*.part"))


@pytest.mark.soak
def test_two_processes_may_prepare_the_same_text_at_once(workplace: Path) -> None:
    (workplace / "long.txt").write_text(make_text(300_000))
    command = [sys.executable, "-m", "minigpt", "corpus", "--data.corpus", "long.txt"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    results = [(*process.communicate(timeout=100), process.returncode) for process in processes]
    assert all(code == 0 for _, _, code in results), results
    assert len({out for out, _, _ in results}) == 1
    assert read("long.txt", workplace) == (workplace / "long.txt").read_text()
    assert not list((workplace / "data" / "ids").glob("*.part"))


# A look at the data


def test_corpus_shows_what_there_is_to_learn(workplace: Path) -> None:
    result = run_minigpt("corpus", "--data.corpus", "text.txt", "--data.val_fraction", 0.1, "--data.test_fraction", 0.1)
    assert result.code == 0, result.err
    text = (workplace / "text.txt").read_text()
    assert f"6,000 characters, 6,000 bytes of UTF-8, {text.count(chr(10)):,} line ends" in result.out
    assert f"' ' {text.count(' '):,}" in result.out
    assert "4,800 to          5,400" in result.out
    assert repr(text[:64]) in result.out
    for baseline in ("uniform", "order 0", "order 1", "order 2", "gzip", "xz"):
        assert f"  {baseline} " in result.out


def test_corpus_takes_the_settings_of_a_run_and_texts_of_their_own_as_splits(in_trained: Path) -> None:
    Path("val.txt").write_text(make_text(500, seed=1))
    config = "lightning_logs/tiny/version_0/config.yaml"
    result = run_minigpt("corpus", "--config", config, "--data.val_corpus", "val.txt")
    assert result.code == 0, result.err
    assert re.search(r"val +val\.txt +500 ids\n", result.out)
    assert re.search(r"test +5,400 to +6,000 +600 ids\n", result.out)


def test_corpus_takes_the_data_of_a_whole_recipe(workplace: Path) -> None:
    result = run_minigpt("corpus", "--config", "tiny.yaml")
    assert result.code == 0, result.err
    assert "Windows of 16:" in result.out
    assert "4,800 to          5,400" in result.out
    (workplace / "typo.yaml").write_text("data: {corpus: text.txt, block_sice: 16}\nmodel: {n_layer: 2}")
    assert_clear_error(run_minigpt("corpus", "--config", "typo.yaml"), "block_sice")


def test_the_baselines_are_what_shannon_says() -> None:
    draw = np.random.default_rng(0)
    coin = draw.integers(2, size=200_000).astype(np.uint8)
    assert conditional_entropy(coin, 0) == pytest.approx(1, abs=1e-3)
    assert conditional_entropy(coin, 2) == pytest.approx(1, abs=1e-3)
    turns = (np.cumsum(draw.random(200_000) < 0.11) % 2).astype(np.uint8)  # turns over with probability 0.11
    assert conditional_entropy(turns, 0) == pytest.approx(1, abs=0.01)
    assert conditional_entropy(turns, 1) == pytest.approx(0.5, abs=0.01)
    bits = baselines(np.tile(np.arange(8, dtype=np.uint8), 5000), np.ones(8, dtype=int))
    assert bits["uniform"] == bits["order 0"] == 3
    assert bits["order 1"] == pytest.approx(0, abs=1e-3)
    assert max(bits["xz"], bits["gzip"]) < 0.1


def test_the_baselines_stand_beside_the_test_loss(in_trained: Path) -> None:
    result = run_minigpt("test", "--ckpt_path", "last", "--trainer.enable_progress_bar", "false")
    assert result.code == 0, result.err
    assert "this model" in result.out
    assert "order 2" in result.out


# Downloads, from a real server on loopback


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one body, in the way its path asks for."""

    body = make_text(200_000).encode()
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Server.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/silent":
            threading.Event().wait(3)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(self.body[: len(self.body) // 3] if self.path == "/cut" else self.body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Server.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def served(url: str) -> NamedCorpus:
    return NamedCorpus("corpus.txt", hashlib.sha256(Server.body).hexdigest(), url)


def test_a_corpus_is_downloaded_once(address: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert served(f"{address}/whole").get(tmp_path).read_bytes() == Server.body
    assert Server.requests == ["/whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(address: str, tmp_path: Path) -> None:
    for path, words in {
        "cut": r"66666 bytes read, 133334 more.* put the file at .*corpus\.txt",
        "missing": r"404.*--data\.mirror",
    }.items():
        with pytest.raises(UserError, match=words):
            served(f"{address}/{path}").get(tmp_path)
    with pytest.raises(UserError, match="is not the other it should be"):
        NamedCorpus("other", "0" * 64, f"{address}/whole").get(tmp_path)
    with pytest.raises(TimeoutError, match="timed out"):
        sources.fetch(f"{address}/silent", timeout=0.2)
    assert not list(tmp_path.iterdir())


def test_a_mirror_may_be_a_url_a_file_or_an_archive(address: str, tmp_path: Path) -> None:
    nowhere = served("http://127.0.0.1:9/nowhere")
    with zipfile.ZipFile(tmp_path / "copy.zip", "w") as archive:
        archive.writestr("corpus.txt", Server.body)
    (tmp_path / "copy.txt").write_bytes(Server.body)
    for i, mirror in enumerate((f"{address}/whole", str(tmp_path / "copy.zip"), str(tmp_path / "copy.txt"))):
        assert nowhere.get(tmp_path / str(i), mirror).read_bytes() == Server.body
        assert [path.name for path in (tmp_path / str(i)).iterdir()] == ["corpus.txt"]
    archived = bytearray((tmp_path / "copy.zip").read_bytes())
    archived[archived.index(b"PK\x01\x02") + 8] |= 1  # it is encrypted, says the table of contents
    (tmp_path / "locked.zip").write_bytes(archived)
    with pytest.raises(UserError, match="password required"):
        nowhere.get(tmp_path / "locked", str(tmp_path / "locked.zip"))
