"""Ranks: the only place that knows which of several workers this one is."""

from __future__ import annotations

import json
import os

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


def check_settings(settings: Settings, *, ranks: int) -> None:
    """Refuse what this adapter cannot do.

    Raises
    ------
    PlanError
        If several workers should write, or a phase other than training is asked for.
    """
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
