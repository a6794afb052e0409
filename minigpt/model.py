"""GPT-1, written out by hand: ids in, logits out.

The decoder-only transformer of Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training";
its block is the decoder of Vaswani et al. 2017, "Attention is all you need" (AIAYN), without cross-attention.

A trailing name such as ``x_BTC`` tells a tensor's shape:
    B  batch      T  time: positions in this call    S  positions attended to: T, and those cached
    C  channels   H  attention heads                 D  channels per head, C / H     V  vocabulary

Activations are the outputs of named modules, so a forward hook reads them:
    embedding_dropout                       the residual stream at the bottom: token_embedding + position_embedding
    blocks.0.residual_middle, blocks.0      the residual stream between the halves of a block, and after it
    blocks.0.attention, .feed_forward       what each adds to the residual stream; .feed_forward.gelu: the neurons
    blocks.0.attention.qkv, .softmax        queries, keys and values; the attention pattern, (B, H, T, S)
    blocks.0.norm_1, .norm_2, final_norm    the layer norms; the logits are read from the last
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-1's own."""

    vocab_size: int = 40478  # distinct tokens, V
    block_size: int = 512  # the longest sequence in tokens: the context window
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads in each block, H; must divide n_embd
    n_embd: int = 768  # width of the residual stream, C
    embd_pdrop: float = 0.1  # dropout rate on the sum of token and position embeddings
    attn_pdrop: float = 0.1  # dropout rate on the attention pattern
    resid_pdrop: float = 0.1  # dropout rate on what attention and feed-forward add to the stream
    norm: Literal["post", "pre"] = "post"  # after each addition as GPT-1, or before each half and at the end as GPT-2
    positions: Literal["learned", "sinusoidal"] = "learned"  # as GPT-1, or as AIAYN section 3.5


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels (Ba et al. 2016): biased variance, eps inside the root."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        variance_BT1, mean_BT1 = torch.var_mean(x_BTC, -1, correction=0, keepdim=True)
        return (x_BTC - mean_BT1) * torch.rsqrt(variance_BT1 + self.eps) * self.weight + self.bias


class GELU(nn.Module):
    """Gaussian error linear unit in the tanh form (Hendrycks and Gimpel 2016, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


class Softmax(nn.Module):
    """exp(x) / sum(exp(x)) over the last dimension, shifted by the maximum so that nothing overflows."""

    def forward(self, x: Tensor) -> Tensor:
        exp = (x - x.amax(-1, keepdim=True)).exp()
        return exp / exp.sum(-1, keepdim=True)


class Dropout(nn.Dropout):
    """Zeroes each element with probability p, scales the others up to keep the mean (Srivastava et al. 2014)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.p) / (1 - self.p) if self.training and self.p > 0 else x


class KeyValueCache:
    """The keys and values of the positions that a block has read; they hold while the text keeps its beginning."""

    def __init__(self, block_size: int) -> None:
        self.block_size, self.length = block_size, 0  # positions there can be, and those filled

    def append(self, new_2BHTD: Tensor) -> Tensor:
        """Keep the keys and values of T more positions; return those of all S, (2, B, H, S, D)."""
        if self.length == 0:
            self.kept = new_2BHTD.new_empty(*new_2BHTD.shape[:3], self.block_size, new_2BHTD.shape[4])
        start, self.length = self.length, self.length + new_2BHTD.shape[3]
        self.kept[:, :, :, start : self.length] = new_2BHTD
        return self.kept[:, :, :, : self.length].to(new_2BHTD.dtype)  # which autocast may have changed


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which no position sees a later one (AIAYN sections 3.2.1 to 3.2.3)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.softmax = Softmax()
        self.pattern_dropout = Dropout(config.attn_pdrop)
        self.projection = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x_BTC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        B, T, C = x_BTC.shape
        heads_3BHTD = self.qkv(x_BTC).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        query_BHTD, key_BHSD, value_BHSD = heads_3BHTD
        if cache is not None:
            key_BHSD, value_BHSD = cache.append(heads_3BHTD[1:])
        y_BHTD = self.attend(query_BHTD, key_BHSD, value_BHSD)
        return self.dropout(self.projection(y_BHTD.transpose(1, 2).reshape(B, T, C)))

    def attend(self, query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
        """softmax(Q K^T / sqrt(D)) V, without the future (AIAYN equation 1); the queries are the last T of S."""
        T, S, D = query_BHTD.shape[-2], *key_BHSD.shape[-2:]
        future_TS = torch.ones(T, S, dtype=torch.bool, device=query_BHTD.device).triu(S - T + 1)
        scores_BHTS = query_BHTD @ key_BHSD.transpose(-2, -1) / math.sqrt(D)
        pattern_BHTS = self.softmax(scores_BHTS.masked_fill(future_TS, -math.inf))
        return self.pattern_dropout(pattern_BHTS) @ value_BHSD


class FeedForward(nn.Module):
    """Two linear maps with a GELU between, four times as wide inside, at each position alone (AIAYN section 3.3)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = GELU()
        self.contract = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dropout(self.contract(self.gelu(self.expand(x_BTC))))


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm = config.norm
        self.norm_1 = LayerNorm(config.n_embd)
        self.attention = CausalSelfAttention(config)
        self.residual_middle = nn.Identity()
        self.norm_2 = LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTC: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        if self.norm == "post":
            x_BTC = self.residual_middle(self.norm_1(x_BTC + self.attention(x_BTC, cache)))
            return self.norm_2(x_BTC + self.feed_forward(x_BTC))
        x_BTC = self.residual_middle(x_BTC + self.attention(self.norm_1(x_BTC), cache))
        return x_BTC + self.feed_forward(self.norm_2(x_BTC))


class TokenEmbedding(nn.Embedding):
    """One matrix, (V, C), that encodes ids as vectors and decodes vectors to logits: GPT-1 ties the two."""

    def decode(self, x_BTC: Tensor) -> Tensor:
        return x_BTC @ self.weight.T  # logits, (B, T, V), without a bias


class SinusoidalEmbedding(nn.Module):
    """PE(t, 2i) = sin(t / 10000^(2i/C)), PE(t, 2i+1) = cos(t / 10000^(2i/C)) (AIAYN section 3.5)."""

    def __init__(self, block_size: int, n_embd: int) -> None:
        super().__init__()
        angle_TI = torch.arange(block_size).unsqueeze(1) / 10000 ** (torch.arange(0, n_embd, 2) / n_embd)
        self.register_buffer("table", torch.stack((angle_TI.sin(), angle_TI.cos()), dim=-1).flatten(1), False)

    def forward(self, positions_T: Tensor) -> Tensor:
        return self.get_buffer("table")[positions_T]


class GPT(nn.Module):
    """A decoder-only transformer (GPT-1 paper, section 3.1, equation 2); weights start as N(0, 0.02), biases at 0."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = TokenEmbedding(config.vocab_size, config.n_embd)
        positions = nn.Embedding if config.positions == "learned" else SinusoidalEmbedding
        self.position_embedding = positions(config.block_size, config.n_embd)
        self.embedding_dropout = Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = LayerNorm(config.n_embd) if config.norm == "pre" else nn.Identity()
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids_BT: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        """Logits of the next token at each position, (B, T, V), from integer ids, (B, T), that follow on the caches."""
        start = caches[0].length if caches else 0
        if (end := start + ids_BT.shape[1]) > self.config.block_size:
            raise ValueError(f"The sequence has {end} tokens, more than block_size = {self.config.block_size}.")
        token_BTC = self.token_embedding(ids_BT.long())
        if self.config.positions == "sinusoidal":  # or the sines, of size 1, would drown the tokens (AIAYN 3.4)
            token_BTC = token_BTC * math.sqrt(self.config.n_embd)
        position_TC = self.position_embedding(torch.arange(start, end, device=ids_BT.device))
        x_BTC = self.embedding_dropout(token_BTC + position_TC)
        for i, block in enumerate(self.blocks):
            x_BTC = block(x_BTC, caches[i] if caches else None)
        return self.token_embedding.decode(self.final_norm(x_BTC))
