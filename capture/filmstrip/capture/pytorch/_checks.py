"""Checks: the only place that refuses what the PyTorch adapter cannot do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import PlanError
from filmstrip.capture.pytorch._backward import OptimizerLike, unwrapped


def optimizers_of(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
) -> list[OptimizerLike]:
    """Return the optimizers, outside of wrappers."""
    if optimizer is None:
        return []
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    return [unwrapped(one) for one in several]


def check_settings(settings: Settings, *, alone: bool, probed: bool) -> None:
    """Refuse what this adapter cannot do."""
    if len(settings.phases) > 1:
        raise PlanError(
            f"phases={settings.phases!r} would mix two modes under one name; "
            "choose ('train',) or ('eval',)"
        )
    if probed and not alone:
        raise PlanError(
            "probe= is run by one rank, and cannot be where the model is spread over several or "
            "replicas='all' is asked for; leave probe out, and samples of the batch are kept"
        )
