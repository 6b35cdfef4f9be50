"""The watch: the only place that finds out what an unmodified script trains.

An optimizer holds parameters but knows no module. So the first module is waited for that holds some
of them and is called in order to learn; capture is attached before that call goes on.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import nn

from filmstrip.capture import _report
from filmstrip.capture._launched import Wishes
from filmstrip.capture._settings import DEFAULTS, Settings, settle, switched_off
from filmstrip.capture._unattended import beside_others, close_on_termination
from filmstrip.capture.pytorch._capture import Capture
from filmstrip.capture.pytorch._model import inside

_LOGGER = logging.getLogger("filmstrip")


def watch(wishes: Wishes) -> None:
    """Attach capture to what this process trains, as soon as it trains something."""
    if not switched_off(os.environ):
        settings = settle(
            DEFAULTS, plan=wishes.plan, environment=os.environ, command=wishes.command
        )
        Watch(wishes, settings).begin()


class Watch:
    """Waits for a model and the optimizers that train it.

    Parameters
    ----------
    wishes : Wishes
        What was asked for.
    settings : Settings
        What follows from it.
    """

    def __init__(self, wishes: Wishes, settings: Settings) -> None:
        self._wishes, self._settings = wishes, settings
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._lock = threading.Lock()
        self._call: Callable[..., Any] | None = None
        self._uncalled: Callable[..., Any] | None = None
        self._over = False

    def begin(self) -> None:
        """Take note of every optimizer that is made from now on."""
        make = torch.optim.Optimizer.__init__

        @functools.wraps(make)
        def noted(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            make(optimizer, *args, **kwargs)
            self._made(optimizer)

        torch.optim.Optimizer.__init__ = noted  # type: ignore[method-assign, assignment]

    def _made(self, optimizer: torch.optim.Optimizer) -> None:
        if self._over:
            self._wishes.note(
                "later",
                f"{type(optimizer).__name__} was made when capture had begun; what it trained was "
                "followed only where an earlier optimizer stepped, too",
            )
            return
        self._optimizers.append(weakref.ref(optimizer))
        if self._call is None:
            self._wishes.note("optimizer", type(optimizer).__name__)
            self._follow_calls(nn.Module.__call__)

    def _follow_calls(self, call: Callable[..., Any]) -> None:
        """See every call of a module, for a while.

        Not by a global hook: Dynamo would warn of it, and it comes too late for what is compiled.
        """

        @functools.wraps(call)
        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not (self._over or torch.compiler.is_compiling()):
                self._called(module)
            return call(module, *args, **kwargs)

        self._call, self._uncalled = called, call
        nn.Module.__call__ = called  # type: ignore[method-assign]

    def _called(self, module: nn.Module) -> None:
        try:
            if self._learns(module) and (optimizers := self._training(module)):
                with self._lock:
                    if not self._over:
                        self._end()
                        self._attach(module, optimizers)
        except Exception as error:
            self._end()
            self._wishes.note("refused", str(error) or type(error).__name__)
            _LOGGER.error("filmstrip: nothing is captured: %s", error)  # noqa: TRY400

    def _end(self) -> None:
        self._over = True
        if nn.Module.__call__ is self._call and self._uncalled is not None:
            nn.Module.__call__ = self._uncalled  # type: ignore[method-assign]

    def _training(self, module: nn.Module) -> list[torch.optim.Optimizer]:
        """Return all optimizers, if one of them trains the module."""
        optimizers = steppers([one for ref in self._optimizers if (one := ref()) is not None])
        mine = set(map(id, module.parameters()))
        return optimizers if any(mine & parameters_of(one) for one in optimizers) else []

    def _learns(self, module: nn.Module) -> bool:
        if torch._C._get_tracing_state() is not None:
            return False
        if module.training:
            return "train" in self._settings.phases and torch.is_grad_enabled()
        return "eval" in self._settings.phases

    def _attach(self, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        rank = _rank()
        if not self._wishes.claim(rank):
            self._wishes.note("others")
            return
        roots = roots_of(module, optimizers)
        if rank == 0:
            _report.say(f"watching {_names(roots)}, trained by {_names(optimizers)}")
        model = roots[0] if len(roots) == 1 else Models(roots)
        close_on_termination(self._capture(model, optimizers)._close_quietly)
        self._wishes.note("attached")

    def _capture(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Capture:
        said = self._wishes.step
        step = steps_done(optimizers[-1]) if said is None else said

        def attach(**command: object) -> Capture:
            return Capture._from_command(
                model,
                optimizers,
                DEFAULTS,
                plan=self._wishes.plan,
                command={**self._wishes.command, **command},
                step=step,
                probe=None,
            )

        return beside_others(attach, self._settings, rank=_rank())


class Models(nn.Module):
    """Several models that are trained together, as if they were one, which is never called.

    Parameters
    ----------
    models : sequence of Module
        Each gets the name of its class, with a number from the second of a name on.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        counts: Counter[str] = Counter()
        for model in models:
            name = type(_inner(model)).__name__
            counts[name] += 1
            self.add_module(name if counts[name] == 1 else f"{name}{counts[name]}", model)

    @property
    def training(self) -> bool:
        """Whether a call that begins now is for learning; there is no pass of all to ask."""
        return torch.is_grad_enabled() and any(child.training for child in self.children())

    @training.setter
    def training(self, mode: bool) -> None:
        """Do nothing: each model has a mode of its own."""


def parameters_of(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the identities of an optimizer's parameters."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def steppers(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Return the optimizers that are not made anew by later ones, in the order they were made.

    Examples
    --------
    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> sgd, adam = torch.optim.SGD, torch.optim.Adam
    >>> made = [sgd(first.parameters()), sgd(second.parameters()), adam(first.parameters())]
    >>> [type(one).__name__ for one in steppers(made)]
    ['SGD', 'Adam']
    """
    kept: list[torch.optim.Optimizer] = []
    later: set[int] = set()
    for optimizer in reversed(optimizers):
        mine = parameters_of(optimizer)
        if not mine <= later:
            kept.insert(0, optimizer)
        later |= mine
    return kept


def roots_of(called: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[nn.Module]:
    """Return the modules that hold what the optimizers train; as few, and as small, as possible.

    Parameters
    ----------
    called : Module
        The module that is called; the only one where it holds everything.
    optimizers : sequence of Optimizer
        What they hold is looked for.

    Returns
    -------
    list of Module
        At least one, in the order in which their parameters are given to the optimizers.
    """
    wanted: dict[int, None] = dict.fromkeys(
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    owners = [Owner(called)]
    if not wanted.keys() <= owners[0].held:
        owners += _owners(wanted.keys(), but=called)
    found: list[Owner] = []
    left = set(wanted)
    while left:
        best = max(
            owners, key=lambda one: (len(one.held & left), -len(one.held), one.module is called)
        )
        if not best.held & left:
            break
        if best.module is not called:  # what encloses it and holds no more, as a Sequential
            best = max((one for one in owners if one.held == best.held), key=lambda one: one.size)
        found.append(best)
        left -= best.held
    order = {parameter: place for place, parameter in enumerate(wanted)}
    found.sort(key=lambda one: min(order.get(parameter, len(order)) for parameter in one.held))
    return [one.module for one in found]


class Owner:
    """A module, and the identities of the parameters that it holds."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.held = module, set(map(id, module.parameters()))

    @property
    def size(self) -> int:
        """The number of modules inside."""
        return sum(1 for _ in self.module.modules())


def _owners(wanted: Set[int], *, but: nn.Module) -> list[Owner]:
    """Return all other modules of the process that hold some of the parameters."""
    modules = [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), nn.Module) and "_parameters" in vars(thing) and thing is not but
    ]
    return [owner for owner in map(Owner, modules) if owner.held & wanted]


def steps_done(optimizer: torch.optim.Optimizer) -> int:
    """Return the steps that an optimizer has counted itself, as after loading a checkpoint.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> steps_done(optimizer), steps_done(torch.optim.SGD(model.parameters()))
    (1, 0)
    """
    counts = [
        int(state["step"])
        for state in optimizer.state.values()
        if isinstance(state, dict) and isinstance(state.get("step"), int | float | torch.Tensor)
    ]
    return max(counts, default=0)


def _inner(model: nn.Module) -> nn.Module:
    while (inner := inside(model)) is not model:
        model = inner
    return model


def _names(things: Sequence[object]) -> str:
    return " and ".join(
        type(_inner(thing) if isinstance(thing, nn.Module) else thing).__name__ for thing in things
    )


def _rank() -> int:
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if ready else 0
