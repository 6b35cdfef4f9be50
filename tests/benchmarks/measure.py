"""How the benchmarks measure: alternatives in turn, the least of several, ratios.

Machines are noisy and differ; an absolute time of one proves nothing for another.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Action = Callable[[], float | None]
"""Does the work once; returns its seconds where it timed only a part of it."""


def interleaved(
    actions: Mapping[str, Action], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Run every action in every round and return the least seconds of each."""
    least = dict.fromkeys(actions, float("inf"))
    for _ in range(rounds):
        for name, action in actions.items():
            start = clock()
            timed = action()
            seconds = clock() - start if timed is None else timed
            least[name] = min(least[name], seconds)
    return least


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure beside what it should reach.

    Attributes
    ----------
    name : str
        What was measured.
    value : float
        As measured.
    relation : {"at most", "at least"}
        On which side of the goal it should lie.
    goal : float or None
        None for a figure that is only shown.
    unit : str
        Of both.
    """

    name: str
    value: float
    relation: Literal["at most", "at least"] = "at most"
    goal: float | None = None
    unit: str = "×"

    @property
    def reached(self) -> bool:
        """Whether the goal is reached, or there is none."""
        if self.goal is None:
            return True
        return self.value <= self.goal if self.relation == "at most" else self.value >= self.goal


def report(title: str, figures: list[Figure]) -> int:
    """Print figures as a table; return 0 when all goals are reached, else 1."""
    print(f"{title}  ({platform.machine()}, Python {platform.python_version()})")
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        value = f"{figure.value:10.4g} {figure.unit}"
        goal = "" if figure.goal is None else f"{figure.relation} {figure.goal:g} {figure.unit}"
        mark = "" if figure.goal is None else ("reached" if figure.reached else "MISSED")
        print(f"  {figure.name.ljust(width)}  {value:<16} {goal:<22} {mark}".rstrip())
    return int(not all(figure.reached for figure in figures))
