"""What the model would say at each stage of its way, and which parts of it the output comes from."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.glassbox.trace import Activations, Trace, projection_by_head
from minigpt.model import LayerNorm


@torch.no_grad()
def lens(trace: Activations) -> Tensor:
    """The logits that the residual stream would give at each half block, (2L + 1, B, T, V); of a Trace without B.

    The rows are the embedding, then for each block the stream in its middle and after it: the last is the output
    (the logit lens, nostalgebraist 2020). Where the model ends in a norm, its statistics are computed anew for each
    row; a model whose norms stand on the stream (post-norm) is read directly.
    """
    stages = torch.stack((trace.residual_middle, trace.residual_after), dim=1).flatten(0, 1)
    stages = torch.cat((trace.embedding.unsqueeze(0), stages))
    return torch.stack([trace.gpt.token_embedding.decode(trace.gpt.final_norm(stage)) for stage in stages])


@dataclass(frozen=True)
class Attribution:
    """The parts that one logit is the sum of, or the difference of two logits. Attributes are float64.

    Every norm on the way is frozen: it stays the affine map that it was for this text. Then the logit is linear in
    what each part wrote, and the parts add up to it (direct logit attribution, Elhage et al. 2021).
    """

    position: int  # after which the model predicts
    character: str  # whose logit it is
    against: str | None  # whose logit is taken from it
    logit: float  # the logit, or the difference
    token: float  # what the token embedding gives to it
    place: float  # what the position embedding gives to it
    heads: Tensor  # what each head gives to it, (L, H)
    sources: Tensor  # the same, by the position that the head takes it from, (L, H, S)
    feed_forwards: Tensor  # what each feed-forward gives to it, with its bias, (L,)
    biases: Tensor  # what the biases of the output projection and the norms of each block give to it, (L,)
    final_bias: float  # what the bias of the final norm gives to it; 0 for a model without one

    @property
    def total(self) -> float:
        """The sum of all parts: the logit, to rounding. If it isn't, model.py has other formulas than these."""
        parts = (self.heads.sum(), self.feed_forwards.sum(), self.biases.sum())
        return float(sum(parts)) + self.token + self.place + self.final_bias

    def ranked(self) -> list[tuple[str, float]]:
        """The parts by name, the largest in size first."""
        parts = {"token embedding": self.token, "position embedding": self.place, "final norm's bias": self.final_bias}
        for i, (by_head, feed_forward, bias) in enumerate(
            zip(self.heads, self.feed_forwards, self.biases, strict=True)
        ):
            parts |= {f"head {i}.{h}": float(value) for h, value in enumerate(by_head)}
            parts |= {f"feed-forward {i}": float(feed_forward), f"biases of block {i}": float(bias)}
        return sorted(parts.items(), key=lambda part: -abs(part[1]))

    def __str__(self) -> str:
        against = "" if self.against is None else f" against {self.against!r}"
        lines = [f"{self.logit:+8.3f}  {self.character!r}{against} after position {self.position}"]
        return "\n".join(lines + [f"{value:+8.3f}  {name}" for name, value in self.ranked()])


@torch.no_grad()
def attribute(
    trace: Trace, position: int = -1, character: str | None = None, against: str | None = None
) -> Attribution:
    """Which parts of the model the logit of ``character`` after ``position`` comes from.

    Args:
        trace: of the text.
        position: the one that predicts; negative ones count from the end.
        character: by default the one that follows in the text, or after the last position the likeliest.
        against: another character: then it is the attribution of a choice, of how much higher the one's logit is than
            the other's.

    Raises:
        UserError: there is no such position, or the model doesn't know the character.
    """
    length, gpt = len(trace.tokens), trace.gpt
    if not -length <= position < length:
        raise UserError(f"There is no position {position}; the text has {length}, numbered from 0.")
    t = position % length
    if character is not None:
        chosen = _id(trace, character)
    else:
        chosen = int(trace.ids_BT[t + 1] if t + 1 < length else trace.logits[t].argmax())
    decoder_VC = gpt.token_embedding.weight.double()
    to_C, logit = decoder_VC[chosen], trace.logits[t, chosen].double()
    if against is not None:
        other = _id(trace, against)
        to_C, logit = to_C - decoder_VC[other], logit - trace.logits[t, other].double()

    def before(norm: torch.nn.Module, x_C: Tensor, to_C: Tensor) -> tuple[Tensor, float]:
        """The direction that leads through the frozen norm to ``to_C``, and what the norm's bias gives."""
        if not isinstance(norm, LayerNorm):
            return to_C, 0.0
        scaled_C = to_C * norm.weight.double()
        inverse_deviation = torch.rsqrt(x_C.double().var(correction=0) + norm.eps)
        return (scaled_C - scaled_C.mean()) * inverse_deviation, float(norm.bias.double() @ to_C)

    # From the output down: at each stage ``to_C`` is the direction in the residual stream that the logit reads.
    to_C, final_bias = before(gpt.final_norm, trace.residual_after[-1, t], to_C)
    n_layer, post = gpt.config.n_layer, gpt.config.norm == "post"
    blocks: Any = gpt.blocks
    biases, feed_forwards = torch.zeros(n_layer).double(), torch.zeros(n_layer).double()
    heads: list[Tensor] = []
    sources: list[Tensor] = []
    for i in reversed(range(n_layer)):
        block, middle_C = blocks[i], trace.residual_middle[i, t]
        if post:
            to_C, bias = before(block.norm_2, middle_C + trace.feed_forward[i, t], to_C)
            biases[i] += bias
        feed_forwards[i] = to_C @ trace.feed_forward[i, t].double()
        if post:
            to_C, bias = before(block.norm_1, trace.residual_before[i, t] + trace.attention[i, t], to_C)
            biases[i] += bias
        biases[i] += to_C @ block.attention.projection.bias.double()
        to_HD = to_C @ projection_by_head(block).double()
        heads.insert(0, (trace.head[i, :, t].double() * to_HD).sum(-1))
        weights_HS, value_HSD = trace.pattern[i, :, t].double(), trace.value[i].double()
        sources.insert(0, weights_HS * (value_HSD @ to_HD.unsqueeze(-1)).squeeze(-1))
    return Attribution(
        position=t,
        character=trace.tokenizer.label(chosen),
        against=against,
        logit=float(logit),
        token=float(to_C @ trace.token[t].double()),
        place=float(to_C @ trace.position[t].double()),
        heads=torch.stack(heads),
        sources=torch.stack(sources),
        feed_forwards=feed_forwards,
        biases=biases,
        final_bias=final_bias,
    )


def _id(trace: Trace, character: str) -> int:
    ids = trace.tokenizer.encode(character)
    if len(ids) != 1:
        raise UserError(f"{character!r} is {len(ids)} tokens; an attribution is of one.")
    return int(ids[0])
