"""A checkpoint for others: a folder of Hugging Face, or a small checkpoint. Neither holds a path of the author's."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from safetensors.torch import save

from minigpt.errors import UserError
from minigpt.files import written_whole
from minigpt.formats.layouts import to_configuration, to_tensors
from minigpt.formats.tokenizers import to_json
from minigpt.model import GPT, GPTConfig
from minigpt.records import METRICS, SCORED, read_rows
from minigpt.run import RunFolder, load_gpt, read_checkpoint, write_checkpoint
from minigpt.text.tokenizer import ByteTokenizer, CharTokenizer

TEXTS = ("corpus", "val_corpus", "test_corpus")  # the settings of the data that name files
# Of the trainer's settings those that belong to a recipe; others name places and code.
TRAINER = ("max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val", "precision")
HERE = "config.json"  # without it a folder of Hugging Face is none


def recipe_of(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What is told of how a checkpoint came to be: plain data in which no path is left, only names of files.

    Args:
        path: the file; its name and its run's curves tell the validation loss.
        checkpoint: what it holds.
    """
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data |= {name: names_alone(data.get(name)) for name in TEXTS}
    state = checkpoint.get("CharDataModule", {})
    trainer = checkpoint.get("settings", {}).get("trainer", {})
    return {
        "global_step": checkpoint.get("global_step", 0),
        "val_loss": validation_loss(path, checkpoint),
        "hyper_parameters": {k: v for k, v in checkpoint["hyper_parameters"].items() if k != "vocabulary"},
        "datamodule_hyper_parameters": data,
        "trainer": {name: trainer[name] for name in TRAINER if trainer.get(name) is not None},
        "sha256": state.get("sha256", ""),
    }


def names_alone(corpus: str | list[str] | None) -> Any:
    """What files are called, without the folders that they lie in."""
    if isinstance(corpus, list):
        return [names_alone(name) for name in corpus]
    return corpus and PurePath(corpus.replace("\\", "/")).name


def validation_loss(path: Path, checkpoint: dict[str, Any]) -> float | None:
    """The validation loss of a checkpoint in nats per token, where its name, itself or its run's curves tell it."""
    if name := SCORED.fullmatch(path.name):
        return float(name[2])
    if (known := checkpoint.get("val_loss")) is not None:
        return float(known)
    best = checkpoint.get("callbacks", {}).get("RunCheckpoint", {})
    if (name := SCORED.fullmatch(str(best.get("best_name")))) and int(name[1]) == checkpoint.get("global_step"):
        return float(name[2])
    rows = read_rows(folder.path / METRICS) if (folder := RunFolder.of(path)) else []
    found = [row["val/loss"] for row in rows if int(row["step"]) == checkpoint["global_step"] and row.get("val/loss")]
    return float(found[-1]) if found else None


def small_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint without the optimizer and without anything of the author's disk.

    What it holds is chosen by name, so that nothing comes along that a later version adds.
    """
    checkpoint = read_checkpoint(path)
    recipe = recipe_of(path, checkpoint)
    kept = ("hyper_parameters", "minigpt_format", "pytorch-lightning_version", "precision")
    return {name: checkpoint[name] for name in kept if name in checkpoint} | {
        # Copies, for a tensor that is a view would bring its whole storage along.
        "state_dict": {name: weight.clone() for name, weight in checkpoint["state_dict"].items()},
        "global_step": recipe["global_step"],
        "val_loss": recipe["val_loss"],
        "datamodule_hyper_parameters": recipe["datamodule_hyper_parameters"],
        "CharDataModule": {"corpus": recipe["datamodule_hyper_parameters"]["corpus"], "sha256": recipe["sha256"]},
        "settings": {"trainer": recipe["trainer"]},
    }


def write_small(path: Path, output: Path) -> None:
    """Write the small checkpoint of ``path`` to ``output``, where no file may be yet.

    Raises:
        UserError: there is one, or it can't be written.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} is there already. Move it away, or name another file with --output.")
    write_checkpoint(small_checkpoint(path), output)


def check_empty(folder: Path) -> None:
    """Raise a UserError unless ``folder`` is absent or an empty folder."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already and is not an empty folder. Name another one with --output_dir.")


def write_folder(path: Path, folder: Path) -> None:
    """Write a checkpoint as a folder of Hugging Face's, whole or not at all.

    Raises:
        UserError: the folder holds something, can't be written, or the tokenizer can't be put into a file.
    """
    check_empty(folder)
    gpt, tokenizer = load_gpt(path)
    files = folder_of(gpt, tokenizer, recipe_of(path, read_checkpoint(path)))
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        for name, make in files.items():
            with written_whole(temporary / name) as file:
                file.write(make())
        if folder.is_dir():
            folder.rmdir()  # no system but POSIX renames a folder over another
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"The folder {folder} can't be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_of(gpt: GPT, tokenizer: CharTokenizer, recipe: dict[str, Any]) -> dict[str, Callable[[], bytes]]:
    """What makes the bytes of each file of a folder that transformers loads as it is."""
    config = gpt.config
    pieces = to_json(tokenizer)  # may raise
    start = int(tokenizer.encode(tokenizer.start)[0])
    # Without a length of its own, and with the end or padding of another vocabulary, writing would fail by default.
    generation: dict[str, Any] = {"max_length": config.block_size, "bos_token_id": start, "do_sample": True}
    if tokenizer.unknown is not None:
        generation["suppress_tokens"] = [tokenizer.unknown]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Or transformers 4 would hand token types on, and embed them.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
    }

    def text(value: Any) -> Callable[[], bytes]:
        return lambda: as_bytes(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    return {
        HERE: text({**to_configuration(config), "minigpt": recipe}),
        "generation_config.json": text(generation),
        "tokenizer.json": text(pieces),
        "tokenizer_config.json": text(settings),
        "README.md": lambda: as_bytes(card(config, tokenizer, recipe)),
        "model.safetensors": lambda: save(to_tensors(gpt), metadata={"format": "pt"}),
    }


def as_bytes(text: str) -> bytes:
    """A text in UTF-8; what no UTF-8 can hold, in the name of a file say, is escaped as JSON escapes it."""
    return text.encode("utf-8", "backslashreplace")


def card(config: GPTConfig, tokenizer: CharTokenizer, recipe: dict[str, Any]) -> str:
    """The model card: what the model is, how it came to be, and how it writes past its window."""
    unit = "byte" if isinstance(tokenizer, ByteTokenizer) else "character"
    data, loss, settings = recipe["datamodule_hyper_parameters"], recipe["val_loss"], recipe["hyper_parameters"]
    corpus = data.get("corpus")
    corpus = ", ".join(corpus) if isinstance(corpus, list) else corpus or "unknown"
    shown = "unknown" if loss is None else f"{loss:.4f} nats per {unit}"
    order = "after each addition, as in GPT-1" if config.norm == "post" else "before each half, as in GPT-2"
    settings = {"global_step": recipe["global_step"], **settings, **data, **recipe["trainer"]}
    table = "\n".join(f"| `{k}` | `{json.dumps(v)}` |" for k, v in settings.items() if v not in (None, False, ""))
    never = "" if tokenizer.unknown is None else f"    logits[{tokenizer.unknown}] = -torch.inf  # the unknown symbol\n"
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt-1, minigpt]
---

# A GPT trained on {corpus}

{config.n_layer} layers x {config.n_embd} wide, {config.n_head} heads; layer norms {order}; {config.positions} \
positions; it reads one {unit} at a time, and {config.block_size} of them at most.

- Corpus: {corpus}
- Validation loss: {shown}, after {recipe["global_step"]:,} steps

It writes and nothing more: it was trained to predict the next {unit} of that text, and may repeat passages of it.

## Writing

`transformers` lets no model write past its window, here {config.block_size} {unit}s. This does, by moving it on:

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the Hub
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = tokenizer({json.dumps(tokenizer.start)}, return_tensors="pt").input_ids  # what it continues
torch.manual_seed(1)
for _ in range({config.block_size + 100}):
    with torch.no_grad():
        logits = model(ids[:, -{config.block_size}:]).logits[0, -1] / 0.8  # the temperature
{never}    ids = torch.cat((ids, torch.multinomial(logits.softmax(-1), 1)[None]), dim=1)
print(tokenizer.decode(ids[0]))
```

## Recipe

| setting | value |
|---|---|
{table}
"""
