"""Forward taps: the only place that hooks into forward passes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from filmstrip.capture._clock import Clock
from filmstrip.capture._schedule import EVERYTHING, Tiers
from filmstrip.capture._seams import Piece, Site, Watcher
from filmstrip.capture.pytorch._dynamo import Apart
from filmstrip.capture.pytorch._layout import Layouts, input_layout
from filmstrip.capture.pytorch._model import Layer, at, enclosing
from filmstrip.capture.pytorch._op import lasting, leave, number, outermost
from filmstrip.capture.pytorch._probe import Probe, arguments, named_leaves
from filmstrip.capture.pytorch._script import hide_hooks
from filmstrip.capture.pytorch._shards import SpreadOutputs, here, scattered
from filmstrip.capture.pytorch._stage import unreadable

_FAILED, _LOOKING, _LEARNING = range(3)
_CALL = nn.Module._call_impl.__code__
_FORWARD = -1  # the graph task of a forward pass; a backward pass that recomputes has another


@dataclass(slots=True)
class _Watch:
    """One module: which sites its calls have, and how often it was called in this step."""

    layer: Layer
    kind: str = "activations"
    sites: dict[tuple[bool, str], int | None] = field(default_factory=dict)
    round: int = -1
    calls: int = 0
    handle: RemovableHandle | None = None


class _Hook:
    """A hook that a copy of the model, in memory or in a file, does not share.

    Averaged copies of a model must not be taken for it, and ``torch.save(model)`` must work. It has
    no ``__slots__``, into which Dynamo does not look in torch 2.4.
    """

    def __init__(self, recorder: Watcher[torch.Tensor]) -> None:
        self._recorder, self._key = recorder, number(self)

    def hear(self, leaves: Sequence[str], tensors: Sequence[torch.Tensor], learns: bool) -> None:
        """Be told from compiled code."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, str]]:
        # What takes anything, does nothing, and is there where the copy is loaded.
        return getattr, (nullcontext(), "__exit__")


class _PassHook(_Hook):
    """What the model runs at the beginning or the end of every forward pass."""

    def __init__(
        self, recorder: Watcher[torch.Tensor], act: Callable[[bool], None], clock: Clock
    ) -> None:
        super().__init__(recorder)
        # Dynamo does not compile the hook itself, and must not compile what it calls.
        self._act = torch.compiler.disable(act)  # type: ignore[no-untyped-call]
        self._clock = clock

    def __call__(self, module: nn.Module, *args: object) -> None:
        if not torch.compiler.is_compiling():
            self._act(torch.is_grad_enabled())
        elif self._recorder.on or not outermost():
            if lasting():
                leave(self._key, None)
        elif module.training:
            self._clock.entered = True

    def hear(self, leaves: Sequence[str], tensors: Sequence[torch.Tensor], learns: bool) -> None:
        """Begin or end a pass."""
        self._act(learns)


class _TakingHook(_Hook):
    """What takes tensors of a module's call."""

    def __init__(
        self,
        recorder: Watcher[torch.Tensor],
        take: Callable[[_Watch, Iterable[tuple[str, torch.Tensor]]], None],
        watch: _Watch,
    ) -> None:
        super().__init__(recorder)
        self._take = torch.compiler.disable(take)  # type: ignore[no-untyped-call]
        self._watch = watch

    def _see(self, tree: object) -> None:
        if not torch.compiler.is_compiling():
            self._take(self._watch, named_leaves("", tree))
        elif lasting():
            leave(self._key, tree)

    def hear(self, leaves: Sequence[str], tensors: Sequence[torch.Tensor], learns: bool) -> None:
        """Take what compiled code has."""
        self._take(self._watch, zip(leaves, tensors, strict=True))


class _OutputHook(_TakingHook):
    """What every watched module runs at every call."""

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        if self._recorder.on:
            self._see(output)


class _InputHook(_TakingHook):
    """What the model runs with all that it is given."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recorder.on:
            self._see(arguments(args, kwargs))


def _ordinary() -> bool:
    """Return whether a forward pass runs to compute, and for the first time.

    Not so when a backward pass recomputes it (activation checkpointing), when `torch.jit.trace`
    would record what a tap does, or when `torch.func` transforms it.
    """
    return (
        torch._C._current_graph_task_id() == _FORWARD
        and torch._C._get_tracing_state() is None
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _inside(model: nn.Module) -> bool:
    """Return whether a call of the model has begun inside of another one."""
    calls, frame = 0, sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code is _CALL and frame.f_locals.get("self") is model:
            calls += 1
    return calls > 1


def is_ours(hook: object) -> bool:
    """Return whether a hook is one of capture, or what stands for it in a copy."""
    return isinstance(hook, _Hook) or isinstance(getattr(hook, "__self__", None), nullcontext)


def _unseen() -> AbstractContextManager[object]:
    """Keep what a tap computes from modes that count what a forward pass does, or record it."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()


class ForwardTaps:
    """Takes the outputs of modules.

    Parameters
    ----------
    root : torch.nn.Module
        The model; its forward pass begins a step.
    layers : sequence of Layer
        Modules that are watched.
    phases : sequence of str
        ``"train"``, ``"eval"``: modes of the model in which its outputs are taken.
    micro_batches : {"first", "last", "all"}
        Forward passes of a step that are taken; of all, those after the first are further calls.
    samples : int
        Leading samples kept in a frame.
    probe : Probe or None
        Gives the frames, while statistics come from training.
    inputs : bool
        Whether what the model is given is taken, too.
    whole : bool
        Whether outputs are taken that all ranks have alike; if not, only those spread over ranks.
    spread : SpreadOutputs or None
        Which of these are kept; None: none.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Sequence[Layer],
        *,
        phases: Sequence[str],
        micro_batches: str,
        samples: int,
        probe: Probe | None,
        inputs: bool,
        whole: bool,
        spread: SpreadOutputs | None,
    ) -> None:
        self._root, self._phases, self._micro_batches = root, phases, micro_batches
        self._samples, self._probe = samples, probe
        self._whole, self._spread = whole, spread
        self._watches = [_Watch(layer) for layer in layers]
        self._given = _Watch(Layer("input", "input", root), "inputs") if inputs else None
        self._names: set[tuple[str, bool, str]] = set()
        self._layouts = Layouts()
        self._handles: list[RemovableHandle | Apart] = []
        self._probing = False
        self._lock = threading.RLock()
        self._round = 0
        self._passes = 0
        self._worth = _FAILED  # of the passes of this step
        self.passed: Callable[[], None] = lambda: None
        self.learning: Callable[[], None] = lambda: None
        self.probed: Callable[[Probe], None] | None = None

    def install(self, recorder: Watcher[torch.Tensor], clock: Clock) -> None:
        """Register the hooks."""
        self._recorder, self._clock = recorder, clock
        hide_hooks(is_ours)
        kinds = (_PassHook, _InputHook, _OutputHook)
        hooks = [kind.__call__.__code__ for kind in kinds]
        names = [watch.layer.original for watch in self._watches]
        self._handles = [
            Apart(self._root, names, hooks),
            self._root.register_forward_pre_hook(_PassHook(recorder, self._enter, clock)),
        ]
        if self._given is not None:
            given = _InputHook(recorder, self._take, self._given)
            self._given.handle = self._root.register_forward_pre_hook(given, with_kwargs=True)
        for watch in self._watches:
            self._hook(watch)
        leaving = _PassHook(recorder, self._leave, clock)
        self._handles.append(self._root.register_forward_hook(leaving))

    def _hook(self, watch: _Watch) -> None:
        hook = _OutputHook(self._recorder, self._take, watch)
        watch.handle = watch.layer.module.register_forward_hook(hook)

    def _follow(self) -> None:
        """Watch what was put in the place of a module, unless that one is a part of it."""
        for watch in self._watches:
            module = at(self._root, watch.layer.original)
            if module is None or module is watch.layer.module:
                continue
            if all(part is not watch.layer.module for part in module.modules()):
                if watch.handle is not None:
                    watch.handle.remove()
                watch.layer = replace(watch.layer, module=module)
                self._hook(watch)

    def _enter(self, learns: bool) -> None:
        if self._probing or not _ordinary():
            return
        try:
            if self._root.training:
                if self._clock.enter_pass():
                    self.reset()
                if learns:
                    with _unseen():
                        self.learning()
            if self._phase(self._root.training):
                self._begin_pass(self._worth_of(learns))
        except Exception as error:
            self._recorder.trip("the forward pass could not be followed", error)

    def _begin_pass(self, worth: int) -> None:
        """Count a pass; it takes the place of those that failed or, if it learns, did not learn.

        A call of the model inside of its own forward pass belongs to that.
        """
        if self._recorder.on:
            if self._passes and _inside(self._root):
                return
            self._follow()
        least = self._worth if self._micro_batches == "last" else self._worth + 1
        if self._passes and worth >= least:
            for kind in ("activations", "inputs"):
                self._recorder.forget(kind)
            self.reset()
        self._passes += 1

    def _leave(self, learns: bool) -> None:
        if self._probing or not _ordinary():
            return
        try:
            if self._phase(self._root.training):
                self._worth = max(self._worth, self._worth_of(learns))
            if self._recorder.on and self._root.training:
                self.passed()
        except Exception as error:
            self._recorder.trip("the forward pass could not be followed", error)

    def _worth_of(self, learns: bool) -> int:
        """Return what a pass is worth once it has ended: training learns only from gradients."""
        return _LEARNING if learns or not self._root.training else _LOOKING

    def _phase(self, training: bool) -> bool:
        return ("train" if training else "eval") in self._phases

    def told(self) -> tuple[Callable[[bool], None], Callable[[bool], None]]:
        """Return what begins and what ends a pass, for a trainer that need not call the model.

        The model's own calls, of which there may be several a batch or none, are no passes then.
        """
        for handle in (self._handles.pop(1), self._handles.pop()):
            handle.remove()
        return self._enter, self._leave

    def remove(self) -> None:
        """Take the hooks away."""
        watches = self._watches if self._given is None else [*self._watches, self._given]
        for handle in (*self._handles, *(watch.handle for watch in watches)):
            if handle is not None:
                handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Count calls and passes from 0 again; a step is over."""
        self._round += 1
        self._passes = 0
        self._worth = _FAILED

    @property
    def unfired(self) -> list[str]:
        """Modules of which no output came yet, and what may be watched in their place."""
        silent = [watch.layer for watch in self._watches if self._whole and not watch.sites]
        return [layer.name + enclosing(self._root, layer) for layer in silent]

    def _take(self, watch: _Watch, leaves: Iterable[tuple[str, torch.Tensor]]) -> None:
        try:
            if self._wanted(watch):
                # Modules may run in threads, even one in several.
                with self._lock, _unseen():
                    self._take_leaves(watch, leaves)
        except Exception as error:
            self._recorder.trip(f"the output of {watch.layer.name!r} could not be taken", error)

    def _wanted(self, watch: _Watch) -> bool:
        if self._probing:
            return watch is not self._given
        if not _ordinary() or not self._phase(self._root.training):
            return False
        self._clock.enter()
        return self._recorder.on and (self._micro_batches == "all" or self._passes <= 1)

    def _take_leaves(self, watch: _Watch, leaves: Iterable[tuple[str, torch.Tensor]]) -> None:
        if self._round != watch.round:
            watch.round, watch.calls = self._round, 0
        name = watch.layer.name + (f"#{watch.calls}" if watch.calls else "")
        watch.calls += 1
        for leaf, tensor in leaves:
            piece = None
            if self._spread is not None and scattered(tensor):
                tensor, piece, reason = self._spread.part((watch.kind, name + leaf), tensor)
                if piece is None and not (self._whole and reason):
                    continue
            elif self._whole:
                tensor, reason = here(tensor)
            else:
                continue
            key = (self._probing, name + leaf)
            if key not in watch.sites:
                watch.sites[key] = self._discover(watch, name + leaf, tensor, piece)
            site = watch.sites[key]
            if site is None:
                continue
            if reason is not None:
                self._recorder.skip(site, reason)
            else:
                self._recorder.take(site, tensor)

    def _discover(
        self, watch: _Watch, leaf: str, tensor: torch.Tensor, piece: Piece | None
    ) -> int | None:
        tiers = EVERYTHING
        if self._probe is not None:
            tiers = Tiers(frames=True) if self._probing else Tiers(False, True, True)
        # The output `block.0` of a container `block` must not pass for the module of that name.
        unique = leaf
        while (watch.kind, self._probing, unique) in self._names:
            unique += "'"
        self._names.add((watch.kind, self._probing, unique))
        return self._recorder.discover(
            Site(
                kind=watch.kind,
                layer=unique,
                batched=tensor.ndim > 0,
                samples=None if self._probing else self._samples,
                layout=None if unreadable(tensor) else self._layout(watch, tensor),
                original=watch.layer.original,
                tiers=tiers,
                piece=piece,
            )
        )

    def _layout(self, watch: _Watch, tensor: torch.Tensor) -> str | None:
        if watch is self._given:
            return input_layout(tensor) if tensor.is_floating_point() else None
        return self._layouts.of(watch.layer.module, tensor)

    def probe(self) -> None:
        """Run the model on the probe, if frames are due or must be planned."""
        due = self._recorder.tiers.frames or self._recorder.surveying
        if self._probe is None or not due:
            return
        self._probing = True
        self._round += 1  # the training batch's calls are not the probe's
        try:
            self._probe.run(self._root)
            if self.probed is not None:
                self.probed(self._probe)
                self.probed = None
        except Exception as error:
            self._probe = None
            self._recorder.trip("the model could not be run on the probe, which is given up", error)
        finally:
            self._probing = False
