"""The whole of training and writing on one page, with model.py and nothing else: python -m minigpt.plain my.txt

The program does the same on any text, fast, watched, stopped and resumed; here it is to be read.
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT, GPTConfig

BLOCK_SIZE, BATCH_SIZE, STEPS, LEARNING_RATE, WARMUP = 64, 16, 2000, 4e-3, 200


def draw_batch(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Windows at random places, and the same shifted by one: at each position, the character to predict. (B, T)"""
    starts = torch.randint(len(ids) - BLOCK_SIZE, (BATCH_SIZE, 1))
    windows = ids[starts + torch.arange(BLOCK_SIZE + 1)]
    return windows[:, :-1], windows[:, 1:]


def loss_of(gpt: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy: the mean of -ln(the probability that the model gave the right character), in nats."""
    return F.cross_entropy(gpt(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def write(gpt: GPT, ids: list[int], length: int, temperature: float = 0.8) -> list[int]:
    """Draw one character after the other, each from what the model expects after all those before."""
    for _ in range(length):
        logits = gpt(torch.tensor([ids[-BLOCK_SIZE:]]))[0, -1]
        ids = [*ids, int(torch.multinomial((logits / temperature).softmax(-1), 1))]
    return ids


def main(path: str) -> None:
    """Train on a text file, and write."""
    torch.manual_seed(1337)
    text = Path(path).read_text(encoding="utf-8")
    vocabulary = sorted(set(text))
    ids = torch.tensor([vocabulary.index(character) for character in text])
    train, val = ids.split([split := int(0.9 * len(ids)), len(ids) - split])
    dropout = (0, 0, 0)  # none, for so few steps learn nothing by heart
    gpt = GPT(GPTConfig(len(vocabulary), BLOCK_SIZE, 2, 4, 64, *dropout))  # 2 layers, 4 heads, 64 wide
    optimizer = torch.optim.AdamW(gpt.parameters(), LEARNING_RATE, weight_decay=0.01)
    began = time.perf_counter()
    for step in range(STEPS):
        for group in optimizer.param_groups:  # a linear rise, then a linear fall to 0
            group["lr"] = LEARNING_RATE * min(step / WARMUP, 1 - step / STEPS)
        loss = loss_of(gpt, *draw_batch(train))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: {loss.item():.3f} nats per character, {time.perf_counter() - began:.0f} s")

    gpt.eval()
    with torch.no_grad():
        mean = torch.stack([loss_of(gpt, *draw_batch(val)) for _ in range(10)]).mean()
    print(f"on text that it has not read: {mean:.3f} nats per character\n")
    print("".join(vocabulary[i] for i in write(gpt, [0], 200)))


if __name__ == "__main__":
    main(sys.argv[1])
