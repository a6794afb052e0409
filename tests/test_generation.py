"""The sampling loop."""

from pathlib import Path

import pytest
import torch

from conftest import run_minigpt
from minigpt.checkpoint import load_gpt
from minigpt.generation import generate, sample
from minigpt.lightning_module import GPTLightningModule
from minigpt.model import GPT, GPTConfig

LAST = Path("lightning_logs/tiny/version_0/checkpoints/last.ckpt")


def make_gpt() -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16))
    for parameter in gpt.parameters():
        parameter.data.normal_(0, 0.3)
    return gpt.eval()


@pytest.mark.parametrize("stride", [1, 3, 8, None])
def test_greedy_text_is_that_of_the_whole_window_read_anew_each_time(stride: int | None) -> None:
    gpt, prompt = make_gpt(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    drawn = generate(gpt, prompt, torch.Generator(), temperature=0, stride=stride)
    ids = torch.cat([prompt, *(next(drawn).unsqueeze(1) for _ in range(40))], dim=1)
    # The window as the docstring has it: it grows until it is full, then keeps its last `8 - stride` tokens.
    length, keep = 3, max(1, 8 - (stride or 4))
    for place in range(3, 43):
        assert torch.equal(gpt(ids[:, place - length : place])[:, -1].argmax(-1), ids[:, place]), place
        length = keep if length == 8 else length + 1


def test_a_prompt_longer_than_the_window_is_seen_by_its_end() -> None:
    gpt, long = make_gpt(), torch.arange(11).repeat(3).unsqueeze(0)
    ends = [next(generate(gpt, prompt, torch.Generator(), temperature=0)) for prompt in (long, long[:, -8:])]
    assert torch.equal(*ends)


def test_samples_follow_the_distribution_and_top_k_cuts_it() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0]]).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature, top_k in [(1.0, None), (0.5, None), (1.0, 2), (1.0, 99), (1e-40, None)]:
        expected = (logits[0].double() / temperature).softmax(-1)
        if top_k == 2:
            expected[[1, 3]] = 0
            expected /= expected.sum()
        drawn = sample(logits, temperature, top_k, generator).bincount(minlength=4) / 20_000
        torch.testing.assert_close(drawn, expected.float(), atol=0.015, rtol=0)
        assert (drawn[expected == 0] == 0).all()


def test_a_reloaded_model_gives_the_same_logits(in_trained: Path) -> None:
    gpt, tokenizer = load_gpt(LAST)
    module = GPTLightningModule.load_from_checkpoint(LAST, weights_only=True).eval()
    ids = torch.from_numpy(tokenizer.encode("the cat sat").astype("int64")).unsqueeze(0)
    assert torch.equal(gpt(ids), module(ids))
    fresh = GPTLightningModule(**module.hparams).eval()
    assert not torch.equal(fresh(ids), module(ids))
    fresh.load_state_dict(torch.load(LAST, weights_only=True)["state_dict"])
    assert torch.equal(fresh(ids), module(ids))


def test_a_checkpoint_writes_wherever_it_is(in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "elsewhere.ckpt"
    copy.write_bytes(LAST.read_bytes())
    monkeypatch.chdir(tmp_path)
    result = run_minigpt("generate", "--ckpt_path", copy, "--max_new_tokens", 10)
    assert (result.code, len(result.out)) == (0, 11)
