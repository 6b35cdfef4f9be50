"""Checks: the only place that refuses what the PyTorch adapter cannot do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from filmstrip.capture._keywords import read_step
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import PlanError
from filmstrip.capture.pytorch._backward import OptimizerLike, unwrapped
from filmstrip.capture.pytorch._clock import StepLike


def ranks_here() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def optimizers_of(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
) -> list[OptimizerLike]:
    """Return the optimizers, outside of wrappers."""
    if optimizer is None:
        return []
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    return [unwrapped(one) for one in several]


def checked_step(step: object) -> StepLike:
    """Return a first step, or what returns the trainer's."""
    if step is None or callable(step):
        return step
    try:
        return read_step("step", step)
    except PlanError as error:
        raise PlanError(
            f"step={step!r} is not a step; give a number of 0 or more, or a function of one"
        ) from error


def check_settings(settings: Settings, *, ranks: int) -> None:
    """Refuse what this adapter cannot do."""
    if len(settings.phases) > 1:
        raise PlanError(
            f"phases={settings.phases!r} would mix two modes under one name; "
            "choose ('train',) or ('eval',)"
        )
    if settings.replicas == "all" and ranks > 1:
        raise PlanError(
            f"replicas='all' with {ranks} ranks is not possible; "
            "replicas='first' keeps those of rank 0"
        )
