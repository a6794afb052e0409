"""GPT-1, written out by hand: ids in, logits out.

The decoder-only transformer of Radford et al. 2018, "Improving Language Understanding by Generative
Pre-Training" (GPT-1), whose block is the decoder of Vaswani et al. 2017, "Attention is all you need"
(AIAYN), without its cross-attention. Where the paper is silent, OpenAI's published code decides.

A trailing name such as ``x_BTC`` tells a tensor's shape:
    B  batch        T  time: positions in this call    S  positions attended to (T, and those cached)
    C  channels     H  attention heads                 D  channels per head, C / H
    V  vocabulary

Every activation worth a look is the output of a named module, so a forward hook reads it:
    embedding_dropout             the residual stream at the bottom
    blocks.0.norm_1, .norm_2      the layer norms
    blocks.0.attention            what attention adds to the residual stream
    blocks.0.attention.qkv        queries, keys and values
    blocks.0.attention.softmax    the attention pattern, (B, H, T, S); PyTorch's kernel never forms it
    blocks.0.residual_middle      the residual stream between the two halves of a block
    blocks.0.feed_forward         what the feed-forward adds; its neurons are blocks.0.feed_forward.gelu
    blocks.0                      the residual stream after the block
    final_norm                    the residual stream that the logits are read from
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Store = Callable[[Tensor], Tensor]  # KeyValueCache.store, for one layer and given positions


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-1's own; a ValueError tells which value can't be."""

    vocab_size: int = 40478  # distinct tokens, V
    block_size: int = 512  # the longest sequence in tokens: the context window
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads in each block, H; must divide n_embd
    n_embd: int = 768  # width of the residual stream, C
    embd_pdrop: float = 0.1  # dropout rate on the sum of token and position embeddings
    attn_pdrop: float = 0.1  # ... on the attention pattern
    resid_pdrop: float = 0.1  # ... on what attention and feed-forward add to the residual stream
    # Layer norm after each addition as GPT-1, or before attention and feed-forward, and at the end, as GPT-2 and later.
    norm: Literal["post", "pre"] = "post"
    positions: Literal["learned", "sinusoidal"] = "learned"  # as GPT-1, or as AIAYN sections 3.4 and 3.5
    fused: bool = True  # PyTorch's kernels where they are faster, or the functions written out here; same values

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if not isinstance(size := getattr(self, name), int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number, at least 1.")
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            if not isinstance(rate := getattr(self, name), (int, float)) or not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate!r}; a dropout rate is at least 0 and less than 1.")
        if self.n_embd % self.n_head != 0:
            near = next(n for n in range(min(self.n_head, self.n_embd, 10**6), 0, -1) if self.n_embd % n == 0)
            raise ValueError(f"n_head = {self.n_head} does not divide n_embd = {self.n_embd}; {near} would do.")
        if self.positions == "sinusoidal" and self.n_embd % 2 != 0:
            raise ValueError(f"n_embd = {self.n_embd} is odd; sinusoidal positions pair sines with cosines.")
        for name, known in (("norm", ("post", "pre")), ("positions", ("learned", "sinusoidal"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}; it must be {' or '.join(known)}.")


class LayerNorm(nn.Module):
    """Layer normalisation over the channels (Ba et al. 2016): biased variance, eps inside the root."""

    def __init__(self, n_embd: int, fused: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd))
        self.fused = fused
        self.eps = eps

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.fused:
            return F.layer_norm(x_BTC, self.weight.shape, self.weight, self.bias, self.eps)
        mean_BT1 = x_BTC.mean(-1, keepdim=True)
        variance_BT1 = (x_BTC - mean_BT1).square().mean(-1, keepdim=True)
        return (x_BTC - mean_BT1) * torch.rsqrt(variance_BT1 + self.eps) * self.weight + self.bias


class GELU(nn.Module):
    """Gaussian error linear unit in the tanh form (Hendrycks and Gimpel 2016, section 2)."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.gelu(x, approximate="tanh")
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


class Softmax(nn.Module):
    """exp(x) / sum(exp(x)) over the last dimension, shifted by the maximum so that nothing overflows."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.softmax(x, dim=-1)
        exp = (x - x.amax(-1, keepdim=True)).exp()
        return exp / exp.sum(-1, keepdim=True)


class Dropout(nn.Module):
    """Zeroes each element with probability ``rate`` and scales the others up to keep the mean (Srivastava et al. 2014).

    On a CPU one random byte decides each element: a tenth of the time of PyTorch's; the rate is a multiple of 1/256.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # which would lose what is changed in place
            return F.dropout(x, self.rate)
        threshold = min(255, max(1, round(256 * self.rate)))  # a byte below it drops its element
        eight_bytes = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        byte = eight_bytes.view(torch.uint8)[: x.numel()].view(x.shape)
        kept = byte.clamp_(threshold - 1, threshold).sub_(threshold - 1)  # 0 or 1, without a slow comparison
        return x * kept.to(x.dtype).mul_(256 / (256 - threshold))


class KeyValueCache:
    """The keys and values that attention has computed so far, so that none is computed twice.

    Positions are absolute: what is cached holds only while a text keeps its beginning.
    """

    def __init__(self, config: GPTConfig, batch_size: int, like: Tensor) -> None:
        shape = (2, batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.layers = [like.new_zeros(shape) for _ in range(config.n_layer)]  # each the keys, then the values
        # Positions filled, of each sequence. No one looks beyond: lowering a length takes positions back.
        self.lengths = [0] * batch_size

    def store(self, layer: int, positions_BT: Tensor, new_2BHTD: Tensor) -> Tensor:
        """Keep the keys and values of T positions; return those of all positions, (2, B, H, block_size, D)."""
        kept_2BHSD = self.layers[layer]
        if len(positions_BT) == 1:  # the same for all sequences
            return kept_2BHSD.index_copy_(3, positions_BT[0], new_2BHTD)
        sequence_B1 = torch.arange(len(positions_BT), device=positions_BT.device).unsqueeze(1)
        kept_2BHSD.permute(1, 3, 0, 2, 4)[sequence_B1, positions_BT] = new_2BHTD.permute(1, 3, 0, 2, 4)
        return kept_2BHSD


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which no position sees a later one (AIAYN sections 3.2.1 to 3.2.3)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.fused = config.fused
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.softmax = Softmax(config.fused)
        self.pattern_dropout = Dropout(config.attn_pdrop)
        self.projection = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x_BTC: Tensor, future_BHTS: Tensor, store: Store | None = None) -> Tensor:
        B, T, C = x_BTC.shape
        D, S = C // self.n_head, future_BHTS.shape[-1]
        qkv_3BHTD = self.qkv(x_BTC).view(B, T, 3, self.n_head, D).permute(2, 0, 3, 1, 4)
        query, key, value = qkv_3BHTD
        if store is not None:
            key, value = store(qkv_3BHTD[1:])[:, :, :, :S]  # each (B, H, S, D)

        # On a CPU, PyTorch's attention kernel is slower than its parts one by one, except to write in float32.
        parts_are_faster = x_BTC.device.type == "cpu" and (self.training or query.dtype == torch.bfloat16)
        if self.fused and not parts_are_faster:
            pdrop = self.pattern_dropout.rate if self.training else 0.0
            # Nothing lies ahead of a single new position, if it is the same one in all sequences.
            seen = None if S == T or len(future_BHTS) == T == 1 else ~future_BHTS
            y_BHTD = F.scaled_dot_product_attention(query, key, value, seen, pdrop, is_causal=S == T)
        else:
            with torch.autocast(x_BTC.device.type, enabled=False):  # it would compute the softmax in float32
                scores_BHTS = (query / math.sqrt(D)) @ key.transpose(-2, -1)
                mask_BHTS = query.new_zeros(future_BHTS.shape).masked_fill_(future_BHTS, -math.inf)
                pattern_BHTS = self.softmax(scores_BHTS + mask_BHTS)
                y_BHTD = self.pattern_dropout(pattern_BHTS) @ value
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, C)
        return self.dropout(self.projection(y_BTC))


class FeedForward(nn.Module):
    """Two linear maps with a GELU between, four times as wide inside, at each position alone (AIAYN section 3.3)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = GELU(config.fused)
        self.contract = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dropout(self.contract(self.gelu(self.expand(x_BTC))))


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm = config.norm
        self.norm_1 = LayerNorm(config.n_embd, config.fused)
        self.attention = CausalSelfAttention(config)
        self.residual_middle = nn.Identity()
        self.norm_2 = LayerNorm(config.n_embd, config.fused)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTC: Tensor, future_BHTS: Tensor, store: Store | None = None) -> Tensor:
        if self.norm == "post":
            x_BTC = self.residual_middle(self.norm_1(x_BTC + self.attention(x_BTC, future_BHTS, store)))
            return self.norm_2(x_BTC + self.feed_forward(x_BTC))
        x_BTC = self.residual_middle(x_BTC + self.attention(self.norm_1(x_BTC), future_BHTS, store))
        return x_BTC + self.feed_forward(self.norm_2(x_BTC))


class SinusoidalEmbedding(nn.Module):
    """PE(t, 2i) = sin(t / 10000^(2i/C)), PE(t, 2i+1) = cos(t / 10000^(2i/C)) (AIAYN section 3.5)."""

    def __init__(self, block_size: int, n_embd: int) -> None:
        super().__init__()
        position_T1 = torch.arange(block_size).unsqueeze(1)
        frequency_I = torch.exp(torch.arange(0, n_embd, 2) * (-math.log(10000.0) / n_embd))
        angle_TI = position_T1 * frequency_I
        table_TC = torch.stack((angle_TI.sin(), angle_TI.cos()), dim=-1).flatten(1)
        self.register_buffer("table", table_TC, persistent=False)
        self.table: Tensor

    def forward(self, positions_BT: Tensor) -> Tensor:
        return self.table[positions_BT]


class GPT(nn.Module):
    """A decoder-only transformer (GPT-1 paper, section 3.1, equation 2); weights start as N(0, 0.02), biases at 0."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        positions = nn.Embedding if config.positions == "learned" else SinusoidalEmbedding
        self.position_embedding = positions(config.block_size, config.n_embd)
        self.embedding_dropout = Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = LayerNorm(config.n_embd, config.fused) if config.norm == "pre" else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def make_cache(self, batch_size: int) -> KeyValueCache:
        """An empty key-value cache for ``batch_size`` sequences of up to ``block_size`` tokens."""
        return KeyValueCache(self.config, batch_size, like=self.token_embedding.weight)

    def forward(self, ids_BT: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """The logits of the next token at every position, (B, T, V); softmax makes them probabilities.

        Args:
            ids_BT: token ids, integers, (B, T).
            cache: from :meth:`make_cache`; ``ids_BT`` then continue what the cache holds of each sequence, and are
                added to it.

        Raises:
            ValueError: the sequence, with what is cached, is longer than ``block_size``.
        """
        T, lengths = ids_BT.shape[1], cache.lengths if cache else [0]
        S = max(lengths) + T
        if (size := self.config.block_size) < S:
            raise ValueError(f"The sequence is {S} tokens long; block_size is {size}. Give it the last {size}.")
        starts = lengths if len(set(lengths)) > 1 else lengths[:1]  # one row of positions, where it is that of all
        positions_BT = torch.tensor(starts, device=ids_BT.device).unsqueeze(1) + torch.arange(T, device=ids_BT.device)
        # true where position s comes after that of the token, which must not see it; the same for all heads
        future_BHTS = (torch.arange(S, device=ids_BT.device) > positions_BT.unsqueeze(-1)).unsqueeze(1)
        token_BTC = self.token_embedding(ids_BT)
        if self.config.positions == "sinusoidal":  # or the sines, of size 1, would drown the tokens (AIAYN 3.4)
            token_BTC = token_BTC * math.sqrt(self.config.n_embd)
        x_BTC = self.embedding_dropout(token_BTC + self.position_embedding(positions_BT))
        for i, block in enumerate(self.blocks):
            store = (lambda new_2BHTD, i=i: cache.store(i, positions_BT, new_2BHTD)) if cache else None
            x_BTC = block(x_BTC, future_BHTS, store)
        if cache:
            cache.lengths = [length + T for length in lengths]
        # GPT-1 ties the output to the token embedding and adds no bias.
        return F.linear(self.final_norm(x_BTC), self.token_embedding.weight)
