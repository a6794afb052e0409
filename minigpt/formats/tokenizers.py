"""Our tokenizers as the ``tokenizer.json`` of Hugging Face's library, and back."""

import json
from typing import Any

from minigpt.errors import UserError, some_of
from minigpt.text.tokenizer import SHOWN, UNKNOWN, BPETokenizer, ByteTokenizer, CharTokenizer, name_characters

EACH_CHARACTER = "[\\s\\S]"
# Of longer than one character, so that no text has it.
NEVER = "<unk>"


def byte_symbols() -> list[str]:
    """The visible character that GPT-2's byte-level vocabularies write for each byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    symbols = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [symbols[byte] for byte in range(256)]


def to_json(tokenizer: CharTokenizer) -> dict[str, Any]:
    """A ``tokenizer.json`` that encodes and decodes as the tokenizer does, without loss.

    Of characters: a word-level model whose words are single characters. It refuses an unknown one, as ours does; a
    model of merges without merges would drop it in silence. Nothing is special, for special tokens are stripped.

    Raises:
        UserError: the vocabulary has a character that no file of UTF-8 can hold.
    """
    if isinstance(tokenizer, BPETokenizer):
        file: dict[str, Any] = json.loads(tokenizer.source)
        return file
    if isinstance(tokenizer, ByteTokenizer):
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        return _file(_merging(vocabulary, []), level, level)
    if halves := [c for c in tokenizer.vocabulary if "\ud800" <= c <= "\udfff" and c != UNKNOWN]:
        raise UserError(
            f"{name_characters(''.join(halves))}: half a surrogate pair, which no file of UTF-8 can hold, and so no "
            "tokenizer of Hugging Face's. Train on a text without it, or with --data.tokenizer byte."
        )
    unknown = NEVER if SHOWN in tokenizer.vocabulary or UNKNOWN not in tokenizer.vocabulary else SHOWN
    words = {unknown if c == UNKNOWN else c: i for i, c in enumerate(tokenizer.vocabulary)}
    split = {"type": "Split", "pattern": {"Regex": EACH_CHARACTER}, "behavior": "Isolated", "invert": False}
    return _file({"type": "WordLevel", "vocab": words, "unk_token": unknown}, split, {"type": "Fuse"})


def _merging(vocabulary: dict[str, Any], merges: list[list[str]]) -> dict[str, Any]:
    """A model of byte-pair encoding."""
    unset = ("unk_token", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    off = {"fuse_unk": False, "byte_fallback": False}
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, **dict.fromkeys(unset), **off}


def _file(model: dict[str, Any], pre_tokenizer: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    nothing = ("truncation", "padding", "normalizer", "post_processor")
    parts = {"added_tokens": [], "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model}
    return {"version": "1.0", **dict.fromkeys(nothing), **parts}


def from_json(file: dict[str, Any]) -> CharTokenizer | None:
    """Our tokenizer that a ``tokenizer.json`` means; None if it means another.

    Raises:
        UserError: its ids have gaps.
    """
    model = file.get("model") or {}
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or model.get("type") not in ("WordLevel", "BPE"):
        return None
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    if model["type"] == "BPE":
        own: CharTokenizer = ByteTokenizer()
        return own if words == byte_symbols() and not model.get("merges") and _same(file, own) else None
    if gaps := sorted(set(range(len(words))) ^ set(vocabulary.values())):
        raise UserError(
            f"tokenizer.json: the ids of its {len(words)} tokens have gaps: {some_of(list(map(str, gaps)))}."
        )
    unknown = model.get("unk_token")
    characters = [UNKNOWN if word == unknown else word for word in words]
    if any(len(character) != 1 for character in characters):
        return None
    own = CharTokenizer("".join(characters))
    return own if _same(file, own) else None


def _same(file: dict[str, Any], tokenizer: CharTokenizer) -> bool:
    """Whether all that decides what ids a text has, a normalizer or a special token say, is as we write it."""
    parts = ("added_tokens", "normalizer", "pre_tokenizer", "decoder")
    own = to_json(tokenizer)
    return all(file.get(part) == own[part] for part in parts)


def from_pieces(vocabulary: dict[str, Any], merges: list[list[str]]) -> BPETokenizer:
    """GPT-1's byte-pair encoding, whose last piece of a word ends with ``</w>``, from its ids and its merges in order.

    What comes before the merges is as in transformers: letters made small, accents left out, words and punctuation
    parted by rule. OpenAI had spaCy part them, which parts some words otherwise.
    """
    model = _merging(vocabulary, merges) | {"unk_token": NEVER, "end_of_word_suffix": "</w>"}
    file = _file(model, {"type": "BertPreTokenizer"}, {"type": "BPEDecoder", "suffix": "</w>"})
    kept = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return BPETokenizer(json.dumps({**file, "normalizer": {"type": "BertNormalizer", **kept}}))
