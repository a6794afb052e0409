"""The layers of :mod:`minigpt.model`, computed faster: the same parameters under the same names, the same values.

They take the place of the layers in ``model.py`` only while that file is the one they were tested against, so that
whatever a reader changes there has its effect. The same holds for the key-value cache, see :func:`why_not`.

In float32 the values are equal to rounding. Under bfloat16 autocast, :class:`FastAttention` rounds the scores, the
pattern and the weighted sum to bfloat16; the formulas compute the softmax in float32 there.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import math
import re
import threading
import token
import tokenize
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, MappingProxyType, MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt import model
from minigpt.model import GPT, GPTConfig

# The code of model.py that tests/test_fast.py holds these layers equal to. Renew it: see that test's message.
TESTED = "f2f3a5e714fc57d47f9fbc6fc8355dac5acebc102968307f45811abb4c3523a9"


class FastLayerNorm(model.LayerNorm):
    """PyTorch's own kernel."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        return F.layer_norm(x_BTC, self.normalized_shape, self.weight, self.bias, self.eps)


class FastGELU(model.GELU):
    """PyTorch's own kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class FastSoftmax(model.Softmax):
    """PyTorch's own kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, dim=-1)


class FastDropout(model.Dropout):
    """On a CPU one random byte decides each element: a tenth of the time. The rate is a multiple of 1/256 then."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # which would lose what is changed in place
            return F.dropout(x, self.p)
        threshold = min(255, max(1, round(256 * self.p)))  # a byte below it drops its element
        eight_bytes = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        byte = eight_bytes.view(torch.uint8)[: x.numel()].view(x.shape)
        kept = byte.clamp_(threshold - 1, threshold).sub_(threshold - 1)  # 0 or 1, without a slow comparison
        return x * kept.to(x.dtype).mul_(256 / (256 - threshold))


class FastAttention(model.CausalSelfAttention):
    """PyTorch's attention kernel where it is faster than its parts one by one, which it is not on a CPU in training."""

    def attend(self, query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
        T, S, D = query_BHTD.shape[-2], *key_BHSD.shape[-2:]
        if hooked(self.softmax) or hooked(self.pattern_dropout):  # the kernel never forms the pattern
            return super().attend(query_BHTD, key_BHSD, value_BHSD)
        if query_BHTD.is_cpu and (self.training or query_BHTD.dtype == torch.bfloat16):
            with torch.autocast("cpu", enabled=False):  # it would compute the softmax in float32
                future_TS = query_BHTD.new_full((T, S), -math.inf).triu_(S - T + 1)  # added: faster than filling in
                pattern_BHTS = self.softmax((query_BHTD / math.sqrt(D)) @ key_BHSD.transpose(-2, -1) + future_TS)
                return self.pattern_dropout(pattern_BHTS) @ value_BHSD
        rate = self.pattern_dropout.p if self.training else 0.0
        # Nothing lies ahead of a single new position.
        seen = None if T in (1, S) else torch.ones(T, S, dtype=torch.bool, device=query_BHTD.device).tril_(S - T)
        return F.scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, seen, rate, is_causal=T == S)


class FastLinear(nn.Linear):
    """Faster where few rows meet a large matrix on a CPU, as in a generation step; PyTorch's own elsewhere.

    For one row it matters how fast the matrix is read: PyTorch's batched product reads several times as fast as its
    linear map. For a few, oneDNN computes faster than the default library; it wants a copy of the matrix in an order
    of its own, see :class:`Packed`. ``benchmarks/generation.py`` measures both.
    """

    def forward(self, x: Tensor) -> Tensor:
        N, K, weight = self.out_features, self.in_features, self.weight
        quick = not torch.is_grad_enabled() and x.numel() <= 32 * K and is_large(weight)
        if not quick or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if x.numel() == K:
            column_K1 = x.reshape(1, K).t()  # not x.reshape(K, 1): the same numbers, but another, slower kernel
            y_N = torch.bmm(weight.view(2, N // 2, K), column_K1.expand(2, K, 1)).view(N)
            return (y_N + self.bias).view(*x.shape[:-1], N)
        if (copy := Packed.here.copies.get(self)) is not None:
            return torch.ops.mkldnn._linear_pointwise(x, copy, self.bias, "none", [], "")
        return super().forward(x)


def is_large(weight: Tensor) -> bool:
    """Whether a matrix is one that :class:`FastLinear` multiplies faster."""
    return weight.numel() >= 2**17 and weight.shape[0] % 2 == 0 and weight.is_cpu and weight.dtype == torch.float32


class Packed:
    """Copies of the large matrices in oneDNN's order, for steps of ``rows`` rows.

    They are seen only by what this thread computes inside a ``with`` block, and are made anew there if a weight has
    changed as PyTorch notices; nothing of them is in the model. (A change through ``.data`` is not noticed before the
    next object of this class.)
    """

    class _Here(threading.local):
        copies: Mapping[nn.Module, Tensor] = MappingProxyType({})

    here = _Here()

    def __init__(self, gpt: GPT, rows: int) -> None:
        useful = 1 < rows <= 32 and torch.backends.mkldnn.is_available()
        layers = (layer for layer in gpt.modules() if useful and isinstance(layer, FastLinear))
        self.layers = [layer for layer in layers if is_large(layer.weight)]
        self.copies: dict[nn.Module, Tensor] = {}
        self.state: list[tuple[int, int]] = []

    def __enter__(self) -> None:
        state = [(layer.weight._version, layer.weight.data_ptr()) for layer in self.layers]
        if state != self.state:
            pack = torch.ops.mkldnn._reorder_linear_weight
            self.state, self.copies = state, {layer: pack(layer.weight.detach(), 16) for layer in self.layers}
        Packed.here.copies = self.copies

    def __exit__(self, *error: object) -> None:
        Packed.here.copies = MappingProxyType({})


FAST: dict[type[nn.Module], type[nn.Module]] = {
    model.LayerNorm: FastLayerNorm,
    model.GELU: FastGELU,
    model.Softmax: FastSoftmax,
    model.Dropout: FastDropout,
    model.CausalSelfAttention: FastAttention,
    nn.Linear: FastLinear,
}
REFERENCE = {fast: reference for reference, fast in FAST.items()}


def put_in(gpt: nn.Module) -> None:
    """Let each layer that there is a fast one for compute as that."""
    for module in gpt.modules():
        module.__class__ = FAST.get(type(module), type(module))


def take_out(gpt: nn.Module) -> None:
    """Let each layer compute by the formulas of model.py again."""
    for module in gpt.modules():
        module.__class__ = REFERENCE.get(type(module), type(module))


def apply(gpt: GPT, fast: bool | None = None) -> str:
    """Put the fast layers in or take them out, and say in one clause what the model computes by.

    Args:
        gpt: the model.
        fast: True insists on the fast layers, False on the formulas; None takes what :func:`why_not` allows.
    """
    reason = "as asked" if fast is False else None if fast else why_not(gpt)
    (take_out if reason else put_in)(gpt)  # no layer changes if it is so already: another thread may be writing
    return f"model.py's formulas, {reason}" if reason else "fast layers"


def why_not(gpt: GPT) -> str | None:
    """Why neither the fast layers nor the key-value cache may stand for this model; None if they may.

    They may if the code of model.py is the tested one, nothing in the model was replaced, and no hook is on it:
    to compare values would not do, for a print, a gate that starts at 0 or a mask wider than the input hides in them.
    """
    if digest_of_model() != TESTED:
        return "because model.py is not the one that the fast layers were tested against"
    expected = layers_of(gpt.config)
    found = dict(gpt.named_modules())
    for name in expected | found:
        module = found.get(name, gpt)  # one that is missing is found out by its kind
        kind = REFERENCE.get(type(module), type(module))
        if kind is not expected.get(name) or not genuine(kind) or patched(module):
            return f"because {name or 'the model'} is not as model.py has it"
        if hooked(module):
            return f"because {name or 'the model'} has a hook"
    return None


@functools.cache
def layers_of(config: GPTConfig) -> dict[str, type[nn.Module]]:
    """The kind of each layer, by its name, that model.py makes for this shape."""
    small = dataclasses.replace(config, vocab_size=1, block_size=1, n_head=1, n_embd=2)
    with torch.random.fork_rng(devices=[]):  # its weights must not be drawn from what training draws from
        return {name: type(module) for name, module in GPT(small).named_modules()}


def genuine(kind: type) -> bool:
    """Whether a layer's methods are those that stand in model.py, or it is one of PyTorch's that stand there."""
    functions = [value for value in vars(kind).values() if isinstance(value, FunctionType)]
    own = bool(functions) and all(f.__code__.co_filename == model.__file__ for f in functions)
    return own or kind in (nn.Linear, nn.Embedding, nn.Identity, nn.ModuleList)


def patched(module: nn.Module) -> bool:
    """Whether a method of this one object was replaced."""
    return any(isinstance(value, (FunctionType, MethodType)) for value in vars(module).values())


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes into a module or comes out of it."""
    m = module
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


@functools.cache
def digest_of_model() -> str:
    """That of the model.py that is there."""
    return code_digest(Path(model.__file__).read_text(encoding="utf-8"))


def code_digest(source: str) -> str:
    """SHA-256 of the code in a Python source: comments, docstrings, blank lines and spaces aside."""
    marks = {token.INDENT: "\n>", token.DEDENT: "\n<", token.NEWLINE: "\n"}
    skipped = (token.COMMENT, token.NL, token.ENCODING)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skipped]
    code = ""
    for this, following in itertools.pairwise(tokens):
        begins_line = code[-1:] in ("", "\n", ">", "<")
        docstring = this.type == token.STRING and begins_line and following.type == token.NEWLINE
        if docstring or (this.type == token.NEWLINE and begins_line):
            continue
        # Without spaces inside, because later Pythons cut an f-string into several tokens.
        code += marks.get(this.type) or re.sub(r"\s", "", this.string)
    return hashlib.sha256(code.encode()).hexdigest()
