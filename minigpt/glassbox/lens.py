"""What the model would say at each stage of its way, and which parts of it the output comes from."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.glassbox.trace import Activations, Trace, in_float32, projection_by_head
from minigpt.model import LayerNorm


@torch.no_grad()
def lens(trace: Activations, positions: slice = slice(None)) -> Tensor:
    """The logits that the residual stream would give at each half block, (2L + 1, B, T, V); of a Trace without B.

    The rows are the embedding, then for each block the stream in its middle and after it: the last is the output
    (the logit lens, nostalgebraist 2020). Where the model ends in a norm, its statistics are computed anew for each
    row; a model whose norms stand on the stream (post-norm) is read directly. ``positions`` may be some of the T.
    """
    gpt = trace.gpt
    with in_float32(trace.embedding):
        rows = stages(trace)[..., positions, :]
        return torch.stack([gpt.token_embedding.decode(gpt.final_norm(stage)) for stage in rows])


@dataclass(frozen=True)
class Attribution:
    """The parts that one logit is the sum of, or the difference of two logits. Attributes are float64, on the CPU.

    Every norm on the way is frozen: it stays the affine map that it was for this text. Then the logit is linear in
    what each part wrote, and the parts add up to it (direct logit attribution, Elhage et al. 2021).

    Parts count as interventions left them: a head that is off gives 0. Where an intervention replaced what several
    parts had written together, the attention of a block or the residual stream, those parts give 0, and what stands
    there now counts as ``replaced``.
    """

    position: int  # after which the model predicts
    character: str  # whose logit it is
    against: str | None  # whose logit is taken from it
    logit: float  # the logit, or the difference
    token: float  # what the token embedding gives to it
    place: float  # what the position embedding gives to it
    heads: Tensor  # what each head gives to it, (L, H)
    # The same, by the position that the head takes it from, (L, H, S); 0 for a head that an intervention changed.
    sources: Tensor
    feed_forwards: Tensor  # what each feed-forward gives to it, with its bias, (L,)
    biases: Tensor  # what the biases of the output projection and the norms of each block give to it, (L,)
    final_bias: float  # what the bias of the final norm gives to it; 0 for a model without one
    # What no part wrote gives to it: an intervention, a hook of your own, or another formula in model.py.
    replaced: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all parts: the logit, to rounding. If it isn't, model.py has another end than this."""
        parts = (self.heads.sum(), self.feed_forwards.sum(), self.biases.sum())
        return float(sum(parts)) + self.token + self.place + self.final_bias + self.replaced

    def ranked(self) -> list[tuple[str, float]]:
        """The parts by name, the largest in size first."""
        parts = {"token embedding": self.token, "position embedding": self.place, "final norm's bias": self.final_bias}
        parts |= {"what was replaced": self.replaced} if self.replaced else {}
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
    trace: Trace, position: int = -1, character: str | int | None = None, against: str | int | None = None
) -> Attribution:
    """Which parts of the model the logit of ``character`` after ``position`` comes from.

    Args:
        trace: of the text.
        position: the one that predicts; negative ones count from the end.
        character: by default the one that follows in the text, or after the last position the likeliest; or its id.
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
    decoder_VC = gpt.token_embedding.weight
    to_C, logit = exact(decoder_VC[chosen]), exact(trace.logits[t, chosen])
    if against is not None:
        other = _id(trace, against)
        to_C, logit = to_C - exact(decoder_VC[other]), logit - exact(trace.logits[t, other])

    n_layer, n_head, post = gpt.config.n_layer, gpt.config.n_head, gpt.config.norm == "post"
    blocks: Any = gpt.blocks
    token, place, replaced = 0.0, 0.0, 0.0
    biases, feed_forwards = torch.zeros(2, n_layer, dtype=torch.float64)
    heads = torch.zeros(n_layer, n_head, dtype=torch.float64)
    sources = torch.zeros(n_layer, n_head, length, dtype=torch.float64)
    stream = [exact(stage[t]) for stage in stages(trace)]
    # From the output down, half block by half block: ``to_C`` is the direction in the stream that the logit reads.
    _, to_C, final_bias = through(gpt.final_norm, stream[-1], to_C)
    for half in reversed(range(2 * n_layer)):
        i, is_attention = half // 2, half % 2 == 0
        block, norm = blocks[i], blocks[i].norm_1 if is_attention else blocks[i].norm_2
        written_C = exact((trace.attention if is_attention else trace.feed_forward)[i, t])
        after_C, before_norm_C, bias = through(norm if post else None, stream[half] + written_C, to_C)
        if differ(stream[half + 1], after_C):
            replaced += float(to_C @ stream[half + 1])
            break
        to_C = before_norm_C
        biases[i] += bias
        if not is_attention:
            feed_forwards[i] = to_C @ written_C
            continue
        projection, head_HD = block.attention.projection, exact(trace.head[i, :, t])
        bias_C = exact(projection.bias)
        if differ(written_C, exact(projection.weight) @ head_HD.flatten() + bias_C):
            replaced += float(to_C @ written_C)
            continue
        biases[i] += to_C @ bias_C
        to_HD = to_C @ exact(projection_by_head(block))
        heads[i] = (head_HD * to_HD).sum(-1)
        taken_HSD = exact(trace.pattern[i, :, t]).unsqueeze(-1) * exact(trace.value[i])
        changed_H1 = differ(head_HD, taken_HSD.sum(1)).unsqueeze(-1)
        sources[i] = (taken_HSD @ to_HD.unsqueeze(-1)).squeeze(-1).masked_fill(changed_H1, 0)
    else:
        token_C, place_C = exact(trace.token[t]), exact(trace.position[t])
        if differ(stream[0], token_C + place_C):
            replaced += float(to_C @ stream[0])
        else:
            token, place = float(to_C @ token_C), float(to_C @ place_C)
    return Attribution(
        position=t,
        character=trace.tokenizer.label(chosen),
        against=trace.tokenizer.label(against) if isinstance(against, int) else against,
        logit=float(logit),
        token=token,
        place=place,
        heads=heads,
        sources=sources,
        feed_forwards=feed_forwards,
        biases=biases,
        final_bias=final_bias,
        replaced=replaced,
    )


def stages(trace: Activations) -> Tensor:
    """The residual stream at the bottom and after each half block, (2L + 1, B, T, C); of a Trace without B."""
    halves = torch.stack((trace.residual_middle, trace.residual_after), dim=1).flatten(0, 1)
    return torch.cat((trace.embedding.unsqueeze(0), halves))


def exact(value: Tensor) -> Tensor:
    """In float64, on the CPU because not every device has it."""
    return value.cpu().double()


def through(norm: torch.nn.Module | None, x_C: Tensor, to_C: Tensor) -> tuple[Tensor, Tensor, float]:
    """What a norm makes of ``x_C``, the direction that leads through it, frozen, to ``to_C``, and its bias's part."""
    if not isinstance(norm, LayerNorm):
        return x_C, to_C, 0.0
    weight_C, bias_C = exact(norm.weight), exact(norm.bias)
    variance, mean = torch.var_mean(x_C, correction=0)
    inverse_deviation, scaled_C = torch.rsqrt(variance + norm.eps), to_C * weight_C
    y_C = (x_C - mean) * inverse_deviation * weight_C + bias_C
    return y_C, (scaled_C - scaled_C.mean()) * inverse_deviation, float(bias_C @ to_C)


def differ(x: Tensor, y: Tensor) -> Tensor:
    """Whether two vectors, along the last dimension, differ by more than float32's rounding explains."""
    return (x - y).norm(dim=-1) > 1e-4 * (x.norm(dim=-1) + y.norm(dim=-1))


def _id(trace: Trace, character: str | int) -> int:
    if isinstance(character, int):
        if not 0 <= character < (V := trace.gpt.config.vocab_size):
            raise UserError(f"There is no id {character}; those of the model are from 0 to {V - 1}.")
        return character
    ids = trace.tokenizer.encode(character)
    if len(ids) != 1:
        raise UserError(f"{character!r} is {len(ids)} tokens; an attribution is of one.")
    return int(ids[0])
