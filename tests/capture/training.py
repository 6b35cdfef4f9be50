"""A network with every trap in it, and a loop that trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import cross_entropy

Batches = Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]


class Net(nn.Module):
    """Batch norm, dropout, and a ReLU that overwrites the output of the module before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8 * 8 * 8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.drop(self.relu(self.norm(self.conv(x))))
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits


@dataclass
class Trained:
    """A training run: the model, its optimizer, and the losses so far."""

    model: Net
    optimizer: torch.optim.Optimizer
    losses: list[torch.Tensor] = field(default_factory=list)

    def run(
        self,
        batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
        after: Callable[[torch.Tensor], None] = lambda loss: None,
    ) -> None:
        """Train on every batch."""
        for x, y in batches:
            loss = cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.losses.append(loss.detach().clone())
            after(loss)


def accelerator() -> torch.device | None:
    """Return what there is beside the CPU, if anything."""
    if not hasattr(torch, "accelerator"):  # before torch 2.6
        return torch.device("cuda") if torch.cuda.is_available() else None
    there = torch.accelerator.is_available()
    return torch.accelerator.current_accelerator() if there else None


def state(training: Trained) -> list[torch.Tensor]:
    """Return every number that training leaves behind."""
    return [
        *training.losses,
        *training.model.state_dict().values(),
        *(
            value
            for held in training.optimizer.state.values()
            for value in held.values()
            if isinstance(value, torch.Tensor)
        ),
        torch.get_rng_state(),
    ]
