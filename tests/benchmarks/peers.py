"""Peers: the only place for what people use instead of capture, and what it does to training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from torch import nn


class Loop:
    """What a training loop has to call; here it does nothing."""

    def __call__(self) -> None:
        """Be told that the optimizer is about to step."""

    def close(self) -> None:
        """Be told that training is over."""


class Hooks(Loop):
    """Hooks written by hand: outputs, weights and gradients of the chosen layers.

    Parameters
    ----------
    model : Module
        What trains.
    every : int
        Steps from one capture to the next.
    folder : Path
        What is written goes there; it does not exist yet.
    """

    def __init__(self, model: nn.Module, every: int, folder: Path) -> None:
        self._every, self.step = every, 0
        self._folder = folder
        modules = {name: model.get_submodule(name) for name in networks.chosen(model)}
        self._parameters = {
            f"{name}.{own}": parameter
            for name, module in modules.items()
            for own, parameter in module.named_parameters()
        }
        for name, module in modules.items():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            if self.step % self._every == 0:
                self.take(f"activations.{name}", output.detach())

        return hook

    def __call__(self) -> None:
        """Take weights and gradients, and end the step."""
        if self.step % self._every == 0:
            for name, parameter in self._parameters.items():
                self.take(f"weights.{name}", parameter.detach())
                assert parameter.grad is not None
                self.take(f"gradients.{name}", parameter.grad)
        self.step += 1

    @abstractmethod
    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a tensor."""


class Copies(Hooks):
    """Copies into memory that is there already: what no capture of the same bytes can undercut."""

    def __init__(self, model: nn.Module, every: int, folder: Path) -> None:
        super().__init__(model, every, folder)
        self._kept: dict[str, torch.Tensor] = {}

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Copy it."""
        if name in self._kept:
            self._kept[name].copy_(tensor)
        else:
            self._kept[name] = tensor.clone()

    @property
    def nbytes(self) -> int:
        """Bytes of a capture."""
        return sum(tensor.nbytes for tensor in self._kept.values())


class Files(Hooks):
    """`np.save` of every tensor; of each only the newest is kept, as a folder would fill up."""

    def __init__(self, model: nn.Module, every: int, folder: Path) -> None:
        super().__init__(model, every, folder)
        folder.mkdir()

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Save it."""
        np.save(self._folder / f"{name}.npy", tensor.cpu().numpy())


class Histograms(Hooks):
    """TensorBoard's `add_histogram` of every tensor."""

    def __init__(self, model: nn.Module, every: int, folder: Path) -> None:
        super().__init__(model, every, folder)
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(folder)

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Add its histogram."""
        self._writer.add_histogram(name, tensor, self.step)

    def close(self) -> None:
        """Close its file."""
        self._writer.close()


class Watch(Loop):
    """`wandb.watch`, which has histograms of weights and gradients, and none of activations."""

    run: Any = None

    def __init__(self, model: nn.Module, every: int, folder: Path) -> None:
        import wandb

        if Watch.run is None:
            quiet = wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True
            )
            Watch.run = wandb.init(mode="offline", dir=folder, settings=quiet)
        Watch.run.watch(model, log="all", log_freq=every)

    def __call__(self) -> None:
        """Do what a loop does that logs its loss."""
        Watch.run.log({"loss": 0.0})

    def close(self) -> None:
        """Close the run, which all share."""
        if Watch.run is not None:
            Watch.run.finish()
            Watch.run = None
