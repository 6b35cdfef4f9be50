"""Optimizer taps: the only place that hooks into optimizers, and reads weights and gradients.

They are read when the optimizer is about to use them, since gradients are not final before
(accumulation, reduction over ranks, unscaling, clipping) and weights are no longer the same after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from filmstrip.capture._clock import Clock
from filmstrip.capture._seams import Site, Watcher
from filmstrip.capture.errors import UnsupportedModelError
from filmstrip.capture.pytorch._layout import parameter_layout
from filmstrip.capture.pytorch._model import Variable
from filmstrip.capture.pytorch._shards import local_of, sharded
from filmstrip.capture.pytorch._stage import unreadable
from filmstrip.capture.pytorch._succession import Succession, parameters_of

OptimizerLike = torch.optim.Optimizer
_NO_BACKWARD = -1  # the graph task where no backward pass runs
_NO_SCALES: Mapping[int, torch.Tensor] = {}


def unwrapped(optimizer: object) -> OptimizerLike:
    """Return the optimizer inside wrappers of trainers.

    Raises
    ------
    UnsupportedModelError
        If there is none that takes hooks.
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_pre_hooks") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise UnsupportedModelError(
            f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer; "
            "leave it out, and call cap.step() where it steps, before it changes the weights"
        )
    return inner


class OptimizerTaps:
    """Takes weights and gradients, and ends a step when the last of the optimizers has stepped.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        In order; may be empty, and then `step` must be called.
    variables : sequence of Variable
        Parameters that are watched.
    kinds : sequence of str
        ``"weights"`` and ``"gradients"`` are of interest here.
    """

    def __init__(
        self,
        optimizers: Sequence[OptimizerLike],
        variables: Sequence[Variable],
        *,
        kinds: Sequence[str],
    ) -> None:
        self._optimizers = optimizers
        self.succession = Succession(optimizers)
        self._sites: list[Site] = []
        self._weights: list[tuple[int, Variable]] = []
        self._gradients: list[tuple[int, Variable]] = []
        if "weights" in kinds:
            self._weights = [(self._add("weights", variable), variable) for variable in variables]
        if "gradients" in kinds:
            self._gradients = [
                (self._add("gradients", variable), variable)
                for variable in variables
                if variable.tensor is not None and variable.tensor.requires_grad
            ]
        known = {variable.name for _, variable in self._gradients}
        self._frozen = [v for v in variables if "gradients" in kinds and v.name not in known]
        self._handles: list[RemovableHandle] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def _add(self, kind: str, variable: Variable) -> int:
        self._sites.append(self._site(kind, variable))
        return len(self._sites) - 1

    def _site(self, kind: str, variable: Variable) -> Site:
        tensor, sharding = variable.tensor, variable.sharding
        assert tensor is not None
        lazy = isinstance(tensor, nn.UninitializedParameter)  # of a shape that a forward pass finds
        local = tensor if sharding is None else local_of(tensor)
        return Site(
            kind=kind,
            layer=variable.name,
            shape=None if lazy else tuple(local.shape),
            dtype="" if lazy else str(tensor.dtype).removeprefix("torch."),
            layout=None if lazy else parameter_layout(variable.module, tensor),
            original=variable.original,
            aliases=variable.aliases,
            piece=None if sharding is None else sharding.piece,
        )

    def sites(self) -> list[Site]:
        """Return the sites of weights and gradients, numbered from 0."""
        return self._sites

    def install(self, recorder: Watcher[torch.Tensor], clock: Clock) -> None:
        """Register the hooks."""
        self._recorder, self._clock = recorder, clock
        for number, optimizer in enumerate(self._optimizers):
            before, after = self._hooks(number, last=number == len(self._optimizers) - 1)
            self._handles += [
                optimizer.register_step_pre_hook(before),
                optimizer.register_step_post_hook(after),
            ]

    def _hooks(self, number: int, *, last: bool) -> tuple[Callable[..., None], Callable[..., None]]:
        recorder, succession = self._recorder, self.succession

        def before(optimizer: OptimizerLike, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            succession.begins(number)
            if _left_out(optimizer):
                return
            if not last:
                self._clock.stepping = True
            if recorder.on:
                gradients = not _closure(args, kwargs)
                self._guarded(
                    lambda: self._read(number, gradients=gradients, scales=_scales(optimizer))
                )

        def after(optimizer: OptimizerLike, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            succession.ended(number)
            if _left_out(optimizer):
                if last:
                    self._guarded(self._clock.again)
                    self._guarded(self.after)
                return
            if recorder.on and _closure(args, kwargs):
                # A closure computes the gradients inside the step.
                self._guarded(
                    lambda: self._take(self._mine(number, self._gradients), gradients=True)
                )
            if last:
                self._end()

        # A compiled step must not trace them.
        disable: Callable[..., Callable[..., None]] = torch.compiler.disable
        return disable(before), disable(after)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def step(self) -> None:
        """Take everything and end the step, where no optimizer does."""
        self._guarded(lambda: self._read(None, gradients=True))
        self._advance()

    def survey(self) -> None:
        """Take every weight, and each in place of its gradient, to learn their shapes."""
        self._take(self._weights, gradients=False)
        self._take(self._gradients, gradients=False)

    def _end(self) -> None:
        """End the step now, or with the backward pass that makes it, as of one optimizer each."""
        if torch._C._current_graph_task_id() == _NO_BACKWARD:
            self._advance()
        else:
            torch.autograd.Variable._execution_engine.queue_callback(self._advance)

    def _advance(self) -> None:
        self._guarded(self._clock.advance)
        self._guarded(self.after)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._recorder.trip("the optimizer's step could not be followed", error)

    def _read(
        self,
        number: int | None,
        *,
        gradients: bool,
        scales: Mapping[int, torch.Tensor] = _NO_SCALES,
    ) -> None:
        self._clock.enter()
        if not self._recorder.on:
            return
        self.before()
        if number in (None, len(self._optimizers) - 1):
            self._thaw()
        self._take(self._mine(number, self._weights), gradients=False)
        if gradients:
            self._take(self._mine(number, self._gradients), gradients=True, scales=scales)

    def _thaw(self) -> None:
        """Take gradients of parameters that had none at attach, or say that it is too late."""
        for variable in list(self._frozen):
            tensor = variable.tensor
            if tensor is None or tensor.grad is None:
                continue
            number = self._recorder.discover(self._site("gradients", variable))
            if number is not None:
                self._frozen.remove(variable)
                self._gradients.append((number, variable))

    def _mine(
        self, number: int | None, sites: Sequence[tuple[int, Variable]]
    ) -> Sequence[tuple[int, Variable]]:
        """Return the sites of an optimizer's parameters; the last one also has those of none."""
        if number is None or len(self._optimizers) == 1:
            return sites
        others = {
            id(parameter)
            for other, optimizer in enumerate(self._optimizers)
            if (other != number if number == len(self._optimizers) - 1 else other == number)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        last = number == len(self._optimizers) - 1
        return [site for site in sites if (id(site[1].tensor) in others) is not last]

    def _take(
        self,
        sites: Sequence[tuple[int, Variable]],
        *,
        gradients: bool,
        scales: Mapping[int, torch.Tensor] = _NO_SCALES,
    ) -> None:
        for site, variable in sites:
            tensor = variable.tensor
            scale = scales.get(id(tensor))
            if tensor is None and not gradients:
                self._recorder.skip(site, "are no parameter of their module any more")
            if tensor is not None and gradients:
                tensor = tensor.grad
            if tensor is None:
                continue
            reason = None
            if variable.sharding is not None:
                tensor, reason = variable.sharding.local(tensor)
            elif sharded(tensor):
                reason = "were spread over ranks after capture was attached; attach it after that"
            reason = reason or unreadable(tensor)
            if reason is None and scale is not None:
                tensor, reason = _unscaled(tensor, scale)
            if reason:
                self._recorder.skip(site, reason)
            else:
                self._recorder.take(site, tensor)


def _closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an optimizer's step was given a closure; the first argument is itself."""
    return callable(kwargs.get("closure")) or any(map(callable, args[1:]))


def _left_out(optimizer: OptimizerLike) -> bool:
    """Return whether a fused optimizer changes nothing in this step, since a scaler found infinity.

    On an accelerator the flag would have to be waited for.
    """
    found = getattr(optimizer, "found_inf", None)
    return _scaled(optimizer) and _on_host(found) and bool(found.any())


def _scales(optimizer: OptimizerLike) -> Mapping[int, torch.Tensor]:
    """Return by which scale a fused optimizer divides gradients itself, by parameter."""
    scale = getattr(optimizer, "grad_scale", None)
    if not _scaled(optimizer) or not isinstance(scale, torch.Tensor):
        return _NO_SCALES
    return {id(parameter): scale for parameter in parameters_of(optimizer)}


def _scaled(optimizer: OptimizerLike) -> bool:
    """Return whether a scaler leaves its work to the optimizer's step, as it asks itself."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _on_host(thing: object) -> TypeGuard[torch.Tensor]:
    return isinstance(thing, torch.Tensor) and thing.device.type == "cpu"


def _unscaled(gradient: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, str | None]:
    """Return a gradient divided as fused optimizers do it, or why it is not."""
    if _on_host(gradient) and not _on_host(scale):
        return gradient, "are multiplied by a scale on a device, which would have to be waited for"
    wide = torch.promote_types(gradient.dtype, torch.float32)
    scale = scale.detach().to(gradient.device, non_blocking=True)
    return (gradient.detach().to(wide) / scale).to(gradient.dtype), None
