"""Ranks: the only place that knows which of several workers this one is."""

from __future__ import annotations

import json
import os
from typing import Any

from filmstrip.capture._schedule import NOTHING
from filmstrip.capture._seams import Site
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import PlanError


def ranks_here() -> tuple[int, int]:
    """Return this process's rank and how many train together, as ``TF_CONFIG`` says.

    The chief is rank 0, and workers follow.
    """
    try:
        config = json.loads(os.environ.get("TF_CONFIG", "") or "{}")
        cluster, task = config.get("cluster", {}), config.get("task", {})
        chiefs = len(cluster.get("chief", ())) + len(cluster.get("master", ()))
        ranks = chiefs + len(cluster.get("worker", ()))
        first = chiefs if task.get("type") == "worker" else 0
        return first + int(task.get("index", 0)), max(ranks, 1)
    except (ValueError, AttributeError, TypeError):
        return 0, 1


class Bystander:
    """What the steps of a worker drive that records nothing, but has to run what the others do."""

    on = paused = surveying = False
    step = 0
    tiers = NOTHING

    def begin(self, step: int) -> None:
        """Take nothing of a step."""
        self.on = False

    def discover(self, site: Site) -> None:
        """Know no site."""

    def take(self, site: int, tensor: Any) -> None:
        """Take nothing."""

    def forget(self, kind: str) -> None:
        """Hold nothing."""

    def skip(self, site: int, reason: str) -> None:
        """Leave nothing out."""

    def trip(self, where: str, error: Exception) -> None:
        """Say nothing: the first worker does."""

    def end(self) -> None:
        """Write nothing."""


def check_settings(settings: Settings, *, ranks: int) -> None:
    """Refuse what this adapter cannot do.

    Raises
    ------
    PlanError
        If several workers should write, or a phase other than training is asked for, or inputs.
    """
    if "inputs" in settings.kinds:
        raise PlanError(
            "kinds=('inputs',) is not possible with TensorFlow, which captures what layers give; "
            "give probe=, whose inputs are kept"
        )
    if settings.phases != ("train",):
        raise PlanError(
            f"phases={settings.phases!r} is not possible with TensorFlow, whose train step alone "
            "is captured; give probe= to see the model as it is in evaluation"
        )
    if settings.replicas == "all":
        raise PlanError(
            f"replicas='all' is not possible with TensorFlow; replicas='first' keeps those of "
            f"replica 0{' of worker 0' if ranks > 1 else ''}"
        )
