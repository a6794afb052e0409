"""A model from elsewhere as a checkpoint: a folder of Hugging Face's, or OpenAI's release of GPT-1."""

import json
import math
import pickle
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minigpt.cost import make_config
from minigpt.errors import UserError, some_of
from minigpt.formats.layouts import LAYOUTS, from_configuration, from_tensors
from minigpt.formats.tokenizers import from_json, from_pieces
from minigpt.model import GPTConfig
from minigpt.run import FORMAT
from minigpt.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

FILES = ("model.safetensors", "pytorch_model.bin")  # what holds weights, the safe one first
RELEASE = "params_shapes.json"
HEAD_WIDTH = 64  # channels of a head of GPT-1, whose release doesn't say how many heads there are


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """The model of a folder as an ordinary checkpoint, without an optimizer's state.

    Raises:
        UserError: something is missing, or is not what model.py computes; the message names it.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise UserError(f"{folder} {what}, seen from {Path.cwd()}. Name the folder that holds the model's files.")
    try:
        if (folder / RELEASE).is_file():
            return _from_release(folder)
        return _from_hugging_face(folder)
    except UserError as error:
        raise UserError(f"{folder} can't be imported. {error}") from error


def _from_hugging_face(folder: Path) -> dict[str, Any]:
    configuration = read_json(folder / "config.json")
    config = from_configuration(configuration)
    tokenizer = _tokenizer_of(folder, config.norm)
    _check_vocabulary(config, tokenizer)
    tied = configuration.get("tie_word_embeddings", True) is not False
    config, weights = from_tensors(read_tensors(folder), config, tied)
    recipe = configuration.get("minigpt")
    return _checkpoint(folder, config, weights, tokenizer, recipe if isinstance(recipe, dict) else {})


def _checkpoint(
    folder: Path, config: GPTConfig, weights: dict[str, Tensor], tokenizer: CharTokenizer, recipe: dict[str, Any]
) -> dict[str, Any]:
    """A checkpoint as ``fit`` writes it, with what a folder that we exported tells of how it was trained."""
    kind = "byte" if isinstance(tokenizer, ByteTokenizer) else "bpe" if isinstance(tokenizer, BPETokenizer) else "char"
    known = {"block_size": config.block_size, "tokenizer": kind}
    shape = {name: value for name, value in asdict(config).items() if name != "vocab_size"}
    unknown_corpus = {"corpus": f"the text that {folder.resolve().name} was trained on", "seed": 1337}
    data = unknown_corpus | _settings(recipe.get("datamodule_hyper_parameters")) | known
    step, loss = recipe.get("global_step"), recipe.get("val_loss")
    return {
        "state_dict": {f"gpt.{name}": weight for name, weight in weights.items()},
        "hyper_parameters": _settings(recipe.get("hyper_parameters"))
        | {**shape, "tokenizer": kind, "vocabulary": tokenizer.source},
        "datamodule_hyper_parameters": data,
        "CharDataModule": {"corpus": data["corpus"], "sha256": str(recipe.get("sha256", ""))},
        "global_step": step if isinstance(step, int) else 0,
        "val_loss": loss if isinstance(loss, float) else None,
        "settings": {"trainer": _settings(recipe.get("trainer"))},
        "minigpt_format": FORMAT,
        "pytorch-lightning_version": version("lightning"),  # whose form of checkpoints this is
    }


def _settings(given: Any) -> dict[str, Any]:
    """Settings by name from a file that may come from anybody: plain values, and lists of such."""
    plain = (str, int, float, type(None))
    items = given.items() if isinstance(given, dict) else ()
    return {
        name: value
        for name, value in items
        if isinstance(value, plain) or (isinstance(value, list) and all(isinstance(it, plain) for it in value))
    }


def _check_vocabulary(config: GPTConfig, tokenizer: CharTokenizer) -> None:
    """Raise a UserError where the tokens are not as many as the rows of the embedding."""
    if (known := len(tokenizer.vocabulary)) != config.vocab_size:
        padded = known < config.vocab_size
        raise UserError(
            f"The model has {config.vocab_size:,} tokens, its tokenizer {known:,}: "
            + ("its vocabulary is padded, and what the padding means " if padded else "what the others mean to it ")
            + "nobody knows. Take a model whose vocab_size is its tokenizer's."
        )


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file of JSON; a UserError names the file where that can't be had."""
    value = _json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path.name} holds no object of JSON.")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path.name} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is no JSON: {error}.") from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, of one file or of several, without running what they hold.

    Raises:
        UserError: there are none, a part is missing or damaged, or a file holds more than plain data.
    """
    for name in FILES:
        if (folder / name).is_file():
            return _read(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
                raise UserError(f"{index.name} has no weight_map, which tells what tensor lies in which file.")
            tensors: dict[str, Tensor] = {}
            for part in sorted(set(parts.values())):
                if Path(part).name != part or not (folder / part).is_file():
                    raise UserError(f"{index.name} names the file {part!r}, which is not in the folder.")
                tensors |= _read(folder / part)
            if lacking := sorted(parts.keys() - tensors.keys()):
                raise UserError(f"{index.name} names tensors that are in none of its files: {some_of(lacking)}.")
            return tensors
    raise UserError(f"It holds no weights: none of {', '.join(FILES)}, nor the index of one in parts.")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Old files are not in the form that can be mapped into memory.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path.name} was not loaded: it holds more than plain data and could run a program."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path.name} is damaged or cut off ({str(error).splitlines()[0]}).") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path.name} holds no tensors by name.")
    return tensors


def _tokenizer_of(folder: Path, norm: str) -> CharTokenizer:
    """The tokenizer of a folder of Hugging Face's."""
    if (path := folder / "tokenizer.json").is_file():
        file = read_json(path)
        own = from_json(file)
        if own is not None:
            return own
        if (kind := (file.get("model") or {}).get("type")) != "BPE":
            raise UserError(
                f"tokenizer.json is of the kind {kind}, and not as minigpt writes it. What can be imported are "
                "characters or bytes as minigpt exports them, and byte-pair encodings (BPE)."
            )
        return BPETokenizer(path.read_text(encoding="utf-8"))
    if norm == "post" and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return from_pieces(read_json(folder / "vocab.json"), _merges(folder / "merges.txt"))
    raise UserError("It has no tokenizer, no tokenizer.json (nor, for a GPT-1, vocab.json and merges.txt).")


def _merges(path: Path) -> list[list[str]]:
    """The pairs of a byte-pair encoding, in order, from a file that begins with its version."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    pairs = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise UserError(f"{path.name}: {' '.join(wrong[0])!r} is no pair of pieces.")
    return pairs


def _from_release(folder: Path) -> dict[str, Any]:
    """OpenAI's own release: one flat array in ten files, and the shapes that it is cut into."""
    shapes = _json(folder / RELEASE)
    sized = isinstance(shapes, list) and all(isinstance(shape, list) for shape in shapes)
    if not sized or not all(isinstance(size, int) and size > 0 for shape in shapes for size in shape):
        raise UserError(f"{RELEASE} is no list of shapes.")
    sizes = [math.prod(shape) for shape in shapes]
    layout = LAYOUTS["post"]
    order = ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
    parts = [f"{part}.{kind}" for part in order for kind in ("weight", "bias")]
    blocks, rest = divmod(len(shapes) - 2, len(parts))
    if blocks < 1 or rest or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise UserError(f"{RELEASE} has {len(shapes)} shapes; GPT-1 has 2, and {len(parts)} for each block.")
    (block_size, width), (tokens, _) = shapes[:2]
    if width % HEAD_WIDTH:
        raise UserError(f"{RELEASE}: the width is {width}, no multiple of {HEAD_WIDTH}, as wide as GPT-1's heads are.")
    names = [f"{layout.positions}.weight", f"{layout.tokens}.weight"]
    names += [f"h.{i}.{part}" for i in range(blocks) for part in parts]
    pieces, found = [], 0
    while (path := folder / f"params_{found}.npy").is_file():
        try:
            pieces.append(np.load(path, allow_pickle=False).ravel())
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path.name} is no array of plain numbers: {str(error).splitlines()[0]}") from error
        found += 1
    if not pieces:
        raise UserError("There is no params_0.npy, the first of the files that hold the numbers.")
    if (held := sum(map(len, pieces))) != sum(sizes):
        raise UserError(
            f"params_0.npy to params_{found - 1}.npy hold {held:,} numbers; by {RELEASE} it must be {sum(sizes):,}. "
            "One of the files is missing or cut off."
        )
    flat = torch.from_numpy(np.concatenate(pieces))
    tensors: dict[str, Tensor] = {}
    for name, shape, values in zip(names, shapes, flat.split(sizes), strict=True):
        tensors[name] = values.view(shape).squeeze(0) if len(shape) == 3 else values.view(shape)
    tokenizer = from_pieces(read_json(folder / "encoder_bpe_40000.json"), _merges(folder / "vocab_40000.bpe"))
    config = make_config(
        vocab_size=tokens, block_size=block_size, n_layer=blocks, n_head=width // HEAD_WIDTH, n_embd=width
    )
    _check_vocabulary(config, tokenizer)
    config, weights = from_tensors(tensors, config)
    return _checkpoint(folder, config, weights, tokenizer, {})
