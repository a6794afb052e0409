"""A GPT as Hugging Face stores it: in the layout of OpenAI-GPT where norms come after, of GPT-2 where they come before.

Both write a linear map as a Conv1D, whose weight is (in, out), the transpose of ``nn.Linear``'s. Neither knows
sinusoidal positions. There the table of sines is stored as if it were learned, and since the scale of the tokens by
sqrt(C) has no place either, the embedding is stored scaled, and the output matrix, unscaled, as a head of its own.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minigpt.cost import make_config
from minigpt.errors import UserError, some_of
from minigpt.model import GPT, GPTConfig, SinusoidalEmbedding

EPSILON = 1e-5  # of the layer norms, in model.py and both layouts
INSIDE = {  # the names of the same part in model.py and in both layouts
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "feed_forward.expand": "mlp.c_fc",
    "feed_forward.contract": "mlp.c_proj",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
}
HEAD = "lm_head.weight"
PREFIX = "transformer."
# What wrappers put before names, and the masks that older versions kept among the weights.
WRAPPERS = re.compile(rf"^(?:{re.escape(PREFIX)}|module\.|_orig_mod\.)+")
MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


@dataclass(frozen=True)
class Layout:
    """What differs between the two layouts."""

    model_type: str
    architecture: str
    tokens: str
    positions: str
    activation: str  # the key of the configuration that names it
    tanh_gelu: tuple[str, ...]  # its values that mean the GELU of model.py

    @property
    def outside(self) -> dict[str, str]:
        """The names of the parts outside the blocks, in model.py and here."""
        return {"token_embedding": self.tokens, "position_embedding": self.positions, "final_norm": "ln_f"}

    def name(self, ours: str) -> tuple[str, bool]:
        """What a tensor of model.py is called here, and whether it is transposed."""
        part, _, kind = ours.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.*)", part)
        name = f"h.{block[1]}.{INSIDE[block[2]]}" if block else self.outside[part]
        return f"{name}.{kind}", ".c_" in name and kind == "weight"


LAYOUTS = {
    # In OpenAI-GPT "gelu" means the tanh form; in GPT-2 it means the exact one, by the error function.
    "post": Layout("openai-gpt", "OpenAIGPTLMHeadModel", "tokens_embed", "positions_embed", "afn", ("gelu",)),
    "pre": Layout("gpt2", "GPT2LMHeadModel", "wte", "wpe", "activation_function", ("gelu_new", "gelu_pytorch_tanh")),
}


def to_tensors(gpt: GPT) -> dict[str, Tensor]:
    """The weights by their names in Hugging Face's layout: contiguous float32 tensors on the CPU that share nothing."""
    layout, tensors = LAYOUTS[gpt.config.norm], {}
    for ours, weight in gpt.state_dict().items():
        name, transposed = layout.name(ours)
        tensors[PREFIX + name] = (
            (weight.T if transposed else weight).detach().float().cpu().clone(memory_format=torch.contiguous_format)
        )
    if isinstance(gpt.position_embedding, SinusoidalEmbedding):
        tokens = f"{PREFIX}{layout.tokens}.weight"
        tensors[HEAD] = tensors[tokens]
        tensors[tokens] = tensors[HEAD] * math.sqrt(gpt.config.n_embd)  # as GPT.forward computes it, to the bit
        tensors[f"{PREFIX}{layout.positions}.weight"] = gpt.position_embedding.get_buffer("table").cpu().clone()
    return tensors


def to_configuration(config: GPTConfig) -> dict[str, Any]:
    """What ``config.json`` says of a shape."""
    layout = LAYOUTS[config.norm]
    own: dict[str, Any] = {layout.activation: layout.tanh_gelu[0]}
    if config.norm == "pre":  # what is not GPT-2's default, or must not be
        own |= {"n_inner": None, "scale_attn_by_inverse_layer_idx": False, "bos_token_id": None, "eos_token_id": None}
    return {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        **own,
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "embd_pdrop": config.embd_pdrop,
        "attn_pdrop": config.attn_pdrop,
        "resid_pdrop": config.resid_pdrop,
        "layer_norm_epsilon": EPSILON,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.positions == "learned",
    }


def from_configuration(configuration: dict[str, Any]) -> GPTConfig:
    """The shape that a ``config.json`` means, with learned positions.

    Raises:
        UserError: it is another architecture, leaves out a size, or asks for a formula that model.py doesn't have.
    """
    kinds = {layout.model_type: norm for norm, layout in LAYOUTS.items()}
    if (kind := configuration.get("model_type")) not in kinds:
        raise UserError(
            f"config.json: model_type is {kind!r}. What can be imported are models of the architecture openai-gpt, "
            "which is GPT-1, and gpt2; others compute by other formulas."
        )
    norm = kinds[kind]
    layout = LAYOUTS[norm]
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    if lacking := [key for key in (*sizes, "layer_norm_epsilon", layout.activation) if key not in configuration]:
        raise UserError(f"config.json doesn't say {some_of(lacking, 10)}, and nothing is taken for granted.")
    rates = {key: configuration.get(key, 0.1) for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}  # their default
    shape = {key: configuration[key] for key in sizes}
    config = make_config(block_size=shape.pop("n_positions"), norm=norm, **shape, **rates)
    allowed = {
        layout.activation: layout.tanh_gelu,
        "layer_norm_epsilon": (EPSILON,),
        "n_inner": (None, 4 * config.n_embd),
        "scale_attn_weights": (None, True),
        "scale_attn_by_inverse_layer_idx": (None, False),
        "add_cross_attention": (None, False),
    }
    for key, values in allowed.items():
        if (value := configuration.get(key)) not in values:
            known = " or ".join(dict.fromkeys(str(known) for known in values if known is not None))
            raise UserError(f"config.json: {key} is {value!r}; model.py computes with {known} and nothing else.")
    return config


def from_tensors(
    tensors: dict[str, Tensor], config: GPTConfig, tied: bool = True
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The shape and the weights of a model of model.py, from tensors by Hugging Face's names.

    Prefixes of wrappers are stripped, masks passed over, half precision is widened.

    Args:
        tensors: as they lie in a file. They are converted one by one, and the dictionary is emptied.
        config: what :func:`from_configuration` says; sinusoidal positions are recognised here.
        tied: whether the configuration says that the output matrix is the embedding.

    Raises:
        UserError: a tensor is missing, unknown, of another shape or no floating-point numbers; or the head is another.
    """
    plain: dict[str, Tensor] = {}
    for name in list(tensors):
        tensor, short = tensors.pop(name), WRAPPERS.sub("", name)
        if MASKS.fullmatch(short):
            continue
        if short in plain:
            raise UserError(f"Two tensors are called {short}, beside their prefixes; which of them counts is unknown.")
        if not tensor.is_floating_point():
            raise UserError(f"The tensor {name} holds {str(tensor.dtype).removeprefix('torch.')}, no weights.")
        plain[short] = tensor
    layout = LAYOUTS[config.norm]
    head = plain.pop(HEAD, None)
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    names = {ours: layout.name(ours) for ours in expected}
    theirs = {name for name, _ in names.values()}
    if lacking := sorted(theirs - plain.keys()):
        raise UserError(f"A tensor is missing: {some_of(lacking)}.")
    if unknown := sorted(plain.keys() - theirs):
        raise UserError(f"A tensor is none of a GPT with {config.n_layer} blocks: {some_of(unknown)}.")
    weights = {}
    for ours, (name, transposed) in names.items():
        shape, tensor = tuple(expected[ours].shape), plain[name]
        if tuple(tensor.shape) != (shape[::-1] if transposed else shape):
            what = "; it is a Conv1D, (in, out), there" if transposed else ""
            raise UserError(
                f"The tensor {name} has the shape {tuple(tensor.shape)}; by config.json it must have "
                f"{shape[::-1] if transposed else shape}{what}."
            )
        weights[ours] = (tensor.T if transposed else tensor).float().contiguous()
    tokens, table = weights["token_embedding.weight"], weights["position_embedding.weight"]
    if head is None and not tied:
        raise UserError(f"config.json says that the head is untied, but the tensor {HEAD} is missing.")
    if head is None or (head.shape == tokens.shape and torch.equal(head.float(), tokens)):
        return config, weights
    exact = head.dtype == torch.float32
    if config.n_embd % 2 == 0 and head.shape == tokens.shape:
        sines = SinusoidalEmbedding(config.block_size, config.n_embd).get_buffer("table")
        scaled = head.float() * math.sqrt(config.n_embd)
        if torch.allclose(table, sines, rtol=0, atol=1e-6 if exact else 1e-2) and torch.allclose(
            tokens, scaled, rtol=1e-6 if exact else 2e-2, atol=1e-7 if exact else 1e-2
        ):
            sinusoidal = make_config(**{**vars(config), "positions": "sinusoidal"})
            del weights["position_embedding.weight"]
            return sinusoidal, {**weights, "token_embedding.weight": head.float().contiguous()}
    raise UserError(
        f"The model has a head of its own, {HEAD}, which is not its token embedding. GPT-1 reads its logits by the "
        "token embedding, so this model can't be one of model.py."
    )
