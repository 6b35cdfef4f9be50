"""Succession: the only place that notices that another optimizer has taken the place of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from filmstrip.capture.pytorch._shards import local_of, sharded


@dataclass(slots=True)
class _Past:
    """What is known of an optimizer.

    Parameters
    ----------
    since : int or None
        Forward passes before its last step; None: it never stepped.
    usual : int
        Most passes that there were from one of its steps to the next.
    stepping : bool
        Whether it is in the middle of a step.
    kept : list of Tensor or None
        One value of each parameter, where more passes than usual have gone by.
    """

    since: int | None = None
    usual: int = 0
    stepping: bool = False
    kept: list[torch.Tensor] | None = None


class Succession:
    """Counts forward passes since each optimizer stepped.

    That more passes go by than ever before means nothing yet: they may be accumulated, or look at
    how good a model is. But when the weights change meanwhile, something else steps.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Those that capture was given.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._pasts = [_Past() for _ in optimizers]
        self._passes = 0

    def passed(self) -> None:
        """Note a forward pass from which something may be learnt."""
        self._passes += 1
        for past, optimizer in zip(self._pasts, self._optimizers, strict=True):
            if past.since is None or past.stepping or past.kept is not None:
                continue
            if self._passes - past.since > past.usual:
                past.kept = _values(optimizer)

    def begins(self, number: int) -> None:
        """Note that an optimizer begins a step."""
        past = self._pasts[number]
        past.stepping, past.kept = True, None

    def ended(self, number: int) -> None:
        """Note that an optimizer has stepped."""
        past = self._pasts[number]
        past.usual = max(past.usual, self._passes - (past.since or 0))
        past.since, past.stepping = self._passes, False

    def overdue(self) -> int:
        """Return how many passes went by since one stepped whose weights changed without it, or 0.

        Waits for the device, where the weights lie on one.
        """
        with suppress(Exception):
            return max(map(self._overdue, range(len(self._optimizers))), default=0)
        return 0

    def _overdue(self, number: int) -> int:
        past, optimizer = self._pasts[number], self._optimizers[number]
        if past.kept is None or past.since is None:
            return 0
        # Its weights may also be those of another one that was given.
        held = set(map(id, parameters_of(optimizer)))
        for other, its in zip(self._optimizers, self._pasts, strict=True):
            later = its.since is not None and its.since > past.since
            if later and not held.isdisjoint(map(id, parameters_of(other))):
                return 0
        same = all(map(_same, past.kept, _values(optimizer)))
        return 0 if same else self._passes - past.since


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the parameters that an optimizer holds."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _values(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return a value of every parameter as it is now, which is not waited for."""
    values = []
    for parameter in parameters_of(optimizer):
        with suppress(Exception):  # one that cannot be looked at, or is empty, tells nothing
            local = (local_of(parameter) if sharded(parameter) else parameter).detach()
            values.append(local[(0,) * local.ndim].clone())
    return values


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other.to(one.device), rtol=0, atol=0, equal_nan=True)
