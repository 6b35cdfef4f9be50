"""Train a small transformer to write the next letter of a text that comes with Python.

An ordinary training script, as ``demo/train.py``; its network has attention, whose weights are
the output of a module of their own, so that they can be captured. Try::

    python demo/text.py --capture run.zarr --capture-every 20
"""

from __future__ import annotations

import argparse
import pydoc_data.topics

import torch
import torch.nn.functional as F  # noqa: N812  # what everybody calls it
from torch import nn

from filmstrip.capture import add_capture_arguments, capture_from_arguments

LENGTH, WIDTH, HEADS, BLOCKS = 48, 96, 4, 2


class Attention(nn.Module):
    """Attention to what was written before."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.weights = nn.Softmax(dim=-1)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix positions; shape (n, length, width) in and out."""
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / k.shape[-1] ** 0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = self.weights(scores.masked_fill(later, -torch.inf)) @ v
        mixed = self.out(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        return torch.as_tensor(mixed)


class Block(nn.Module):
    """Attention, then two dense layers at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.act, self.down = nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape as ``x``, (n, length, width)."""
        x = x + self.attention(self.norm1(x))
        return x + torch.as_tensor(self.down(self.act(self.up(self.norm2(x)))))


class Writer(nn.Module):
    """Letters in, the next letters out."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letter = nn.Embedding(letters, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, letters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, length, letters), of numbers of letters, (n, length)."""
        h = self.letter(x) + self.place(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        logits: torch.Tensor = self.head(self.norm(h))
        return logits


def load() -> tuple[torch.Tensor, int]:
    """Return the help pages of Python as numbers of letters, and how many letters there are."""
    text = "".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    known = sorted(set(text))
    number = {letter: i for i, letter in enumerate(known)}
    return torch.tensor([number[letter] for letter in text]), len(known)


def main() -> None:
    """Train, and say how well it went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    add_capture_arguments(parser)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    text, letters = load()
    model = Writer(letters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    windows = text.unfold(0, LENGTH + 1, 1)
    with capture_from_arguments(args, model, optimizer, probe=windows[:2, :-1]) as cap:
        for step in range(args.steps):
            batch = windows[torch.randint(len(windows), (args.batch_size,))]
            logits = model(batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cap.log({"train/loss": loss})
            if step % 50 == 0 or step == args.steps - 1:
                print(f"step {step:4d}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
