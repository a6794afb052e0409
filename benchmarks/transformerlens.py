"""What the glass box shows beside what TransformerLens shows of the same weights.

    pip install "transformer_lens<4"
    python benchmarks/transformerlens.py

Releases before 4 are the last that take a model of one's own. Here they are pre-norm models with random weights, gains
and biases of the norms among them, handed over as they are: nothing is folded or centred. Prints the largest
differences, each beside the largest value. Everything is computed in float32.
"""

import argparse
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig  # type: ignore[import-not-found, unused-ignore]

from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Model
from minigpt.model import GPT, GPTConfig
from minigpt.text.tokenizer import CharTokenizer

Pair = tuple[str, Tensor, Tensor]  # what is compared; ours; theirs


def stacked(name: str, found: list[tuple[Tensor, Tensor]]) -> Pair:
    return name, torch.stack([ours for ours, _ in found]), torch.stack([theirs for _, theirs in found])


def random_gpt(config: GPTConfig, seed: int) -> GPT:
    gpt, generator = GPT(config).eval(), torch.Generator().manual_seed(seed)
    for name, parameter in gpt.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        parameter.data.normal_(1.0 if gain else 0.0, 0.2, generator=generator)
    return gpt


def hand_over(gpt: GPT) -> Any:
    """The same model as TransformerLens builds it."""
    c = gpt.config
    theirs = HookedTransformer(
        HookedTransformerConfig(
            n_layers=c.n_layer,
            n_heads=c.n_head,
            d_model=c.n_embd,
            d_head=c.n_embd // c.n_head,
            d_mlp=4 * c.n_embd,
            n_ctx=c.block_size,
            d_vocab=c.vocab_size,
            act_fn="gelu_new",
            normalization_type="LN",
            device="cpu",
        )
    ).eval()
    ours = dict(gpt.named_parameters())
    embedding = ours["token_embedding.weight"]
    state = {"embed.W_E": embedding, "unembed.W_U": embedding.T, "unembed.b_U": torch.zeros(c.vocab_size)}
    state |= {"pos_embed.W_pos": ours["position_embedding.weight"]}
    state |= {"ln_final.w": ours["final_norm.weight"], "ln_final.b": ours["final_norm.bias"]}
    for i in range(c.n_layer):
        of = {name.removeprefix(f"blocks.{i}."): p for name, p in ours.items() if name.startswith(f"blocks.{i}.")}
        block: dict[str, Tensor] = {
            "mlp.W_in": of["feed_forward.expand.weight"].T,
            "mlp.b_in": of["feed_forward.expand.bias"],
        }
        block |= {"mlp.W_out": of["feed_forward.contract.weight"].T, "mlp.b_out": of["feed_forward.contract.bias"]}
        for n in (1, 2):
            block |= {f"ln{n}.w": of[f"norm_{n}.weight"], f"ln{n}.b": of[f"norm_{n}.bias"]}
        for letter, weight, bias in zip(
            "QKV", of["attention.qkv.weight"].chunk(3), of["attention.qkv.bias"].chunk(3), strict=True
        ):
            block[f"attn.W_{letter}"] = weight.unflatten(0, (c.n_head, -1)).transpose(1, 2)
            block[f"attn.b_{letter}"] = bias.unflatten(0, (c.n_head, -1))
        block["attn.W_O"] = of["attention.projection.weight"].T.unflatten(0, (c.n_head, -1))
        block["attn.b_O"] = of["attention.projection.bias"]
        state |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    missing, unexpected = theirs.load_state_dict({k: v.detach().clone() for k, v in state.items()}, strict=False)
    assert not unexpected, unexpected
    assert all("mask" in name or "IGNORE" in name for name in missing), missing
    return theirs


@torch.no_grad()
def pairs(gpt: GPT, seed: int) -> Iterator[Pair]:
    """What both say about a random text that is repeated once."""
    c, theirs = gpt.config, hand_over(gpt)
    model = Model(gpt, CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + c.vocab_size)))))
    half = torch.randint(c.vocab_size, (c.block_size // 2,), generator=torch.Generator().manual_seed(seed))
    ids_T = half.repeat(2)
    text, other = model.tokenizer.decode(ids_T.numpy()), model.tokenizer.decode(ids_T.flip(0).numpy())
    it, (logits, cache) = model.trace(text), theirs.run_with_cache(ids_T.unsqueeze(0))
    layers, T, last = range(c.n_layer), len(ids_T), len(ids_T) - 1

    def cached(name: str) -> Tensor:
        return torch.stack([cache[name, i][0] for i in layers])

    yield "logits", it.logits, logits[0]
    yield "attention patterns", it.pattern, cached("pattern")
    for name, ours, their in (
        ("residual stream before", it.residual_before, "resid_pre"),
        ("residual stream in the middle", it.residual_middle, "resid_mid"),
        ("residual stream after", it.residual_after, "resid_post"),
        ("neurons", it.neurons, "post"),
        ("attention's output", it.attention, "attn_out"),
        ("feed-forward's output", it.feed_forward, "mlp_out"),
    ):
        yield name, ours, cached(their)
    stack, names = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    by_name = dict(zip(names, stack[:, 0], strict=True))
    heads = torch.stack([torch.stack([by_name[f"L{i}H{h}"] for h in range(c.n_head)]) for i in layers])
    yield "heads' outputs", it.head_output, heads

    stages = cache.accumulated_resid(incl_mid=True, apply_ln=True)
    yield "lens", lens(it), theirs.unembed(stages[:, 0])

    # Attribution, with the final norm frozen. Their stack is divided by the norm's scale; its gain is left to do.
    scaled = (cache.apply_ln_to_stack(stack) * theirs.ln_final.w)[:, 0]
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for t in range(0, T, 3):
        chosen, against = int(ids_T[t]), int(ids_T[t - 1])
        to_C = theirs.W_U[:, chosen] - theirs.W_U[:, against]
        theirs_by_name = dict(zip(names, (scaled[:, t] @ to_C), strict=True))
        parts = attribute(it, t, model.tokenizer.label(chosen), model.tokenizer.label(against))
        for name, ours, names_of_theirs in (
            ("heads", parts.heads.flatten(), [f"L{i}H{h}" for i in layers for h in range(c.n_head)]),
            ("feed-forwards", parts.feed_forwards, [f"{i}_mlp_out" for i in layers]),
            ("embeddings", torch.tensor([parts.token, parts.place]), ["embed", "pos_embed"]),
            ("biases", parts.biases.sum().unsqueeze(0), ["bias"]),
        ):
            found.setdefault(name, []).append((ours, torch.stack([theirs_by_name[n] for n in names_of_theirs])))
        found.setdefault("the final norm's bias", []).append(
            (torch.tensor([parts.final_bias]), (theirs.ln_final.b @ to_C).unsqueeze(0))
        )
    for name, values in found.items():
        yield stacked(f"attribution of a choice: {name}", values)

    off: list[tuple[Tensor, Tensor]] = []
    scores: list[tuple[Tensor, Tensor]] = []
    for i in layers:
        for h in range(c.n_head):

            def silence(z: Tensor, hook: object, h: int = h) -> Tensor:
                z[:, :, h] = 0
                return z

            their_logits = theirs.run_with_hooks(ids_T.unsqueeze(0), fwd_hooks=[(f"blocks.{i}.attn.hook_z", silence)])
            off.append((model.trace(text, [Intervention("head", i, h)]).logits, their_logits[0]))
            ours, of_theirs = (p[i, h].diagonal(1 - T // 2).mean() for p in (it.pattern, cached("pattern")))
            scores.append((ours, of_theirs))
    yield stacked("logits with one head off", off)
    yield stacked("induction scores on the repeat", scores)

    patched: list[tuple[Tensor, Tensor]] = []
    source = theirs.run_with_cache(ids_T.flip(0).unsqueeze(0))[1]
    for i in layers:
        for t in (0, last // 2, last):

            def patch(stream: Tensor, hook: Any, t: int = t) -> Tensor:
                stream[:, t] = source[hook.name][:, t]
                return stream

            their_logits = theirs.run_with_hooks(ids_T.unsqueeze(0), fwd_hooks=[(f"blocks.{i}.hook_resid_pre", patch)])
            change = Intervention("residual", i, positions=(t,), patch_from=other)
            patched.append((model.trace(text, [change]).logits, their_logits[0]))
    yield stacked("logits with one position patched", patched)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformer_lens", "torch"))
    seeds = range(parser.parse_args().seeds)
    differences: dict[str, tuple[float, float]] = {}
    for seed in seeds:
        for n_layer, n_head, n_embd, vocab_size in ((3, 4, 128, 96), (2, 2, 24, 11), (1, 8, 64, 300)):
            config = GPTConfig(vocab_size, 64, n_layer, n_head, n_embd, norm="pre")
            for name, ours, theirs in pairs(random_gpt(config, seed), seed):
                assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
                most, size = differences.get(name, (0.0, 0.0))
                new = (ours.double() - theirs.double()).abs().max().item(), theirs.abs().max().item()
                differences[name] = max(most, new[0]), max(size, new[1])
    print(f"{versions}; three shapes, {len(seeds)} seeds each\n")
    print("| what | largest difference | largest value |\n|---|---|---|")
    for name, (most, size) in differences.items():
        print(f"| {name} | {most:.1e} | {size:.3g} |")


if __name__ == "__main__":
    main()
