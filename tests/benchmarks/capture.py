"""What capture costs the training thread, in CPU time, beside what others cost.

Every configuration has a model of its own and takes its turn for a block of steps, in one process
and one thread, so that all see the same load of the machine; the best of several blocks counts.
Run it from the checkout: ``python tests/benchmarks/capture.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from filmstrip.capture.pytorch import Capture

BATCH = 8


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


def network() -> nn.Module:
    """Return a small residual network for images of 32 × 32; about a million parameters."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        parts += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        parts += [Residual(width), Residual(width), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def chosen(model: nn.Module) -> list[str]:
    """Return the convolutions and dense layers: 17 MB a capture, with weights and gradients."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]


@dataclass
class Contestant:
    """One way to train: a step, and what it cost so far."""

    name: str
    goal: str
    step: Callable[[], None]
    best: float = float("inf")

    def block(self, steps: int) -> float:
        """Train for some steps; return CPU seconds of this thread a step."""
        started = time.thread_time()
        for _ in range(steps):
            self.step()
        seconds = (time.thread_time() - started) / steps
        self.best = min(self.best, seconds)
        return seconds


def contestant(
    name: str, goal: str, attach: Callable[[nn.Module, torch.optim.Optimizer], Callable[[], None]]
) -> Contestant:
    """Return a model that trains on one batch, with something attached to it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)
    before_the_step = attach(model, optimizer)

    def step() -> None:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        before_the_step()
        optimizer.step()

    return Contestant(name, goal, step)


def nothing(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Attach nothing."""
    return lambda: None


def tensorboard_bins() -> np.ndarray:
    """Return the bin edges that TensorBoard's writer uses."""
    positive = 1e-12 * 1.1 ** np.arange(np.ceil(np.log(1e20 / 1e-12) / np.log(1.1)))
    return np.concatenate([-positive[::-1], [0.0], positive])


class Peer:
    """What ``SummaryWriter.add_histogram`` does with a tensor, every few steps, of every layer."""

    def __init__(self, every: int, folder: str) -> None:
        self.every, self.number = every, 0
        self.bins = tensorboard_bins()
        self.outputs: list[torch.Tensor] = []
        self.writer = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder)

    def add(self, tensor: torch.Tensor) -> None:
        """Write, or count, one histogram."""
        if self.writer is not None:
            self.writer.add_histogram("x", tensor, self.number)
            return
        values = tensor.detach().cpu().numpy().astype(float).reshape(-1)
        np.histogram(values, bins=self.bins)
        values.min(), values.max(), values.sum(), values.dot(values)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Hook into the chosen layers."""
        modules = [model.get_submodule(name) for name in chosen(model)]
        parameters = [parameter for module in modules for parameter in module.parameters()]

        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            if self.number % self.every == 0:
                self.add(output)

        for module in modules:
            module.register_forward_hook(hook)

        def before_the_step() -> None:
            if self.number % self.every == 0:
                for parameter in parameters:
                    self.add(parameter)
                    assert parameter.grad is not None
                    self.add(parameter.grad)
            self.number += 1

        return before_the_step


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each configuration")
    parser.add_argument("--steps", type=int, default=20, help="steps a block; a multiple of 10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["FILMSTRIP_QUIET"] = "1"
    captures: list[Capture] = []
    with tempfile.TemporaryDirectory() as folder:

        def attach(
            name: str,
            keywords: Mapping[str, object],
            model: nn.Module,
            optimizer: torch.optim.Optimizer,
        ) -> Callable[[], None]:
            # The disk of the machine is not what is measured.
            keywords = {"min_free": 0, "samples": BATCH, "layers": chosen(model), **keywords}
            path = f"{folder}/{name}.zarr"
            captures.append(Capture(model, optimizer, path, **keywords))  # type: ignore[arg-type]
            return lambda: None

        frames: dict[str, object] = {"every": 10, "statistics": False, "histograms": False}
        numbers: dict[str, object] = {"every": 1, "frames": False}
        peer = (
            "tensorboard" if importlib.util.find_spec("tensorboard") else "np.histogram, its bins"
        )
        plain = contestant("no capture", "", nothing)
        contestants = [
            plain,
            contestant("no capture, again (noise)", "", nothing),
            contestant(
                "off: attached, nothing due", "<= +0.5 %", partial(attach, "off", {"start": 10**9})
            ),
            contestant("frames, every 10th step", "<= +3 %", partial(attach, "frames", frames)),
            contestant(
                "statistics + histograms, every step",
                "<= +25 %",
                partial(attach, "numbers", numbers),
            ),
            contestant(
                "the same, and of batch norm and pooling",
                "",
                partial(attach, "all", {**numbers, "layers": "*"}),
            ),
            contestant(f"peer ({peer}), every 10th step", "", Peer(10, folder).attach),
            contestant(f"peer ({peer}), every step", "", Peer(1, folder).attach),
        ]
        for each in contestants:
            each.block(10)
            each.best = float("inf")
        ratios: dict[str, list[float]] = {each.name: [] for each in contestants}
        for _ in range(options.rounds):
            baseline = plain.block(options.steps)
            for each in contestants[1:]:
                ratios[each.name].append(each.block(options.steps) / baseline)
        print(
            f"training thread, CPU time; best of {options.rounds} blocks of {options.steps} steps"
        )
        for each in contestants:
            extra = (each.best / plain.best - 1) * 100
            median = (float(np.median(ratios[each.name])) - 1) * 100 if ratios[each.name] else 0.0
            cost = f"{each.best * 1e3:8.2f} ms a step {extra:+7.1f} %  median {median:+7.1f} %"
            print(f"{each.name:46s} {cost}  {each.goal}")
        for capture in captures:
            capture.close()


if __name__ == "__main__":
    main()
