"""Networks: the only place for the models that the benchmarks of capture train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

_CLASSES, _LETTERS, _LENGTH, _WIDTH, _HEADS = 10, 256, 128, 128, 4


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(y)) + x)


class Block(nn.Module):
    """Attention that looks back, and a perceptron, each around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape: samples, positions, features."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        y: torch.Tensor = x + self.down(torch.relu(self.up(self.norm2(x))))
        return y


class Letters(nn.Module):
    """Letters and their positions as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.position = (
            nn.Embedding(_LETTERS, _WIDTH),
            nn.Embedding(_LENGTH, _WIDTH),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return samples, positions, features."""
        y: torch.Tensor = self.letter(x) + self.position.weight
        return y


@dataclass(frozen=True)
class Network:
    """A kind of model, and one batch that it learns.

    Attributes
    ----------
    name : str
        What it is called in tables.
    make : callable
        Returns a fresh model, always the same.
    x, y : Tensor
        The batch and its classes.
    """

    name: str
    make: Callable[[], nn.Module]
    x: torch.Tensor
    y: torch.Tensor

    def loss(self, model: nn.Module) -> torch.Tensor:
        """Return the loss of the batch."""
        return cross_entropy(model(self.x).flatten(0, -2), self.y.flatten())


def chosen(model: nn.Module) -> list[str]:
    """Return the layers that are captured: convolutions and dense layers."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]


def convolutional() -> Network:
    """Return a small residual network for 8 images of 32 × 32; a million parameters."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        channels = 3
        for width in (32, 64, 128):
            parts += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            parts += [Residual(width), Residual(width), nn.MaxPool2d(2)]
            channels = width
        head = nn.Linear(channels, _CLASSES)
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 32, 32, generator=generator)
    return Network("CNN", make, x, torch.randint(0, _CLASSES, (8,), generator=generator))


def transformer() -> Network:
    """Return a small language model for 4 texts of 128 letters; a million parameters."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        blocks = [Block() for _ in range(6)]
        return nn.Sequential(
            Letters(), *blocks, nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _LETTERS, bias=False)
        )

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, _LETTERS, (4, _LENGTH), generator=generator) for _ in range(2))
    return Network("transformer", make, x, y)
