"""Taps: the only place that changes a model and its optimizers for the time of a captured step.

What layers return and optimizers are given is noted as it is: a tensor of the graph under
construction, or an eager one. A function that returns what was noted has a graph of its own, and
the graph of the steps at which nothing is due is never touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import keras
import tensorflow as tf

from filmstrip.capture.keras._layers import Layer, Variable, underlying
from filmstrip.capture.tensorflow._gradients import applied, given, method_of
from filmstrip.capture.tensorflow._model import Selection

R = TypeVar("R")
_CALL = "__call__"


@dataclass(frozen=True, slots=True)
class Point:
    """Where a tensor was noted: a layer's call and leaf, or a variable."""

    kind: str
    owner: Layer | Variable
    call: int = 0
    leaf: str = ""
    probing: bool = False


class Recording:
    """What is noted while a step is traced, or runs eagerly."""

    def __init__(self) -> None:
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self._thread = threading.get_ident()
        self.probing = False
        self.outputs: list[tuple[bool, Any, list[tuple[str, Any]]]] = []
        self.weights: dict[int, Any] = {}
        self.gradients: list[tuple[Any, Any]] = []

    def hears(self) -> bool:
        """Return whether the caller is the step: its thread, or its first replica's."""
        if not tf.distribute.has_strategy():
            return threading.get_ident() == self._thread
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        return tf.get_static_value(replica) in (0, None)

    def holds(self, tensor: Any) -> bool:
        """Return whether a tensor can be returned: not so from inside of a loop or a branch."""
        if tf.is_symbolic_tensor(tensor):
            return self._graph is not None and tensor.graph is self._graph
        return isinstance(tensor, tf.Tensor)

    def output(self, module: Any, output: Any) -> None:
        """Note what a layer returned."""
        leaves = [(leaf, tensor) for leaf, tensor in named_leaves(output) if self.holds(tensor)]
        if leaves and self.hears():
            self.outputs.append((self.probing, module, leaves))

    def apply(self, pairs: list[tuple[Any, Any]]) -> None:
        """Note gradients that are about to be applied."""
        if self.hears():
            self.gradients += [pair for pair in pairs if self.holds(pair[0])]

    def read(self, variables: Sequence[Variable]) -> None:
        """Note the values of variables, unless that was done."""
        for variable in variables:
            if id(variable.value) not in self.weights:
                self.weights[id(variable.value)] = tf.identity(variable.value)

    def points(self, selection: Selection, kinds: Sequence[str]) -> Iterator[tuple[Point, Any]]:
        """Yield what was noted of a selection, in the order in which it came."""
        layers = {id(layer.module): layer for layer in selection.layers}
        calls: dict[tuple[bool, str], int] = {}
        for probing, module, leaves in self.outputs:
            layer = layers.get(id(module))
            if layer is not None:
                call = calls[probing, layer.name] = calls.get((probing, layer.name), -1) + 1
                for leaf, tensor in leaves:
                    yield Point("activations", layer, call, leaf, probing), tensor
        for variable in selection.variables if "weights" in kinds else ():
            yield Point("weights", variable), self.weights[id(variable.value)]
        known = {id(variable.value): variable for variable in selection.variables}
        for gradient, applied_to in self.gradients:
            found = known.get(id(underlying(applied_to)))
            if found is not None:
                yield Point("gradients", found), gradient


def named_leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested tuples and mappings with dotted names.

    Examples
    --------
    >>> [name for name, _ in named_leaves((tf.ones(1), {"h": tf.ones(1)}), "lstm")]
    ['lstm.0', 'lstm.1.h']
    """
    if isinstance(tree, tf.Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from named_leaves(value, f"{name}.{key}")
    elif isinstance(tree, tuple | list):
        for key, value in enumerate(tree):
            yield from named_leaves(value, f"{name}.{key}")


class Taps:
    """Notes activations, weights and gradients of what runs inside of a window.

    Parameters
    ----------
    selection : Selection
        What of the model is watched, as far as it has been built.
    select : callable
        Returns the same, when more of it may have been built.
    optimizers : sequence
        Their gradients are noted.
    kinds : sequence of str
        What is of interest.
    failed : callable
        Told of an exception.
    """

    def __init__(
        self,
        selection: Selection,
        select: Callable[[], Selection],
        optimizers: Sequence[Any],
        *,
        kinds: Sequence[str],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._select, self._optimizers, self._kinds = select, optimizers, kinds
        self._failed = failed
        self._recording: Recording | None = None
        self.selection = selection
        self.points: list[Point] = []
        self.traces = 0
        self._numbers: dict[tuple[str, str, int, str, bool], int] = {}

    def window(self, probe: Callable[[], object] | None = None) -> Window:
        """Return what a step runs in to be noted.

        Parameters
        ----------
        probe : callable, optional
            Runs the model on the probe.
        """
        return Window(self, probe)

    def open(self, probe: Callable[[], object] | None, changes: ExitStack) -> None:
        """Change the model and its optimizers, until `changes` are undone."""
        recording = self._recording = Recording()
        self.traces += not tf.executing_eagerly()
        for kind, only in self._kinds_of_modules().items():
            changes.enter_context(_overheard(kind, _unconverted(self._output), only=only))
        for optimizer in self._optimizers if "gradients" in self._kinds else ():
            changes.enter_context(_preceded(optimizer, _unconverted(self._apply)))
        self._read(recording)
        if probe is not None:
            self._run_probe(recording, probe)

    def _kinds_of_modules(self) -> dict[type, bool]:
        """Return the classes that hold the calls, and whether subclasses have their own."""
        kinds: dict[type, bool] = {keras.layers.Layer: False}
        for layer in self.selection.layers:
            if not isinstance(layer.module, keras.layers.Layer) and callable(layer.module):
                kinds[type(layer.module)] = True
        return kinds

    def _read(self, recording: Recording) -> None:
        if "weights" in self._kinds:
            recording.read(self.selection.variables)

    def noted(self) -> dict[int, Any]:
        """Return the tensors that were noted, by the number of their point; the step is over."""
        recording, self._recording = self._recording, None
        tensors: dict[int, Any] = {}
        if recording is None:
            return tensors
        try:
            self.selection = self._select()  # the first step of all may have built the model
            self._read(recording)
            for point, tensor in recording.points(self.selection, self._kinds):
                tensors.setdefault(self._number(point), tensor)
        except Exception as error:
            self._failed("what a step did could not be noted", error)
        return tensors

    def _number(self, point: Point) -> int:
        key = (point.kind, point.owner.name, point.call, point.leaf, point.probing)
        number = self._numbers.setdefault(key, len(self.points))
        if number == len(self.points):
            self.points.append(point)
        return number

    def _run_probe(self, recording: Recording, probe: Callable[[], object]) -> None:
        recording.probing = True
        try:
            probe()
        except Exception as error:
            self._failed("the model could not be run on the probe", error)
        finally:
            recording.probing = False

    def _output(self, module: Any, output: Any) -> None:
        if self._recording is not None:
            try:
                self._recording.output(module, output)
            except Exception as error:
                self._failed(f"the output of {type(module).__name__} could not be taken", error)

    def _apply(self, optimizer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        recording = self._recording
        if recording is None or recording.probing:
            return
        try:
            recording.apply(applied(optimizer, given(optimizer, method, *args, **kwargs)))
        except Exception as error:
            self._failed("gradients could not be taken", error)


class Window:
    """What a step runs in: ``with window: …`` and then `noted`."""

    def __init__(self, taps: Taps, probe: Callable[[], object] | None) -> None:
        self._taps, self._probe = taps, probe
        self._changes = ExitStack()
        self.noted = _unconverted(taps.noted)

    def __enter__(self) -> None:
        self._taps.open(self._probe, self._changes)

    def __exit__(self, *error: object) -> None:
        self._changes.close()


def _unconverted(act: Callable[..., R]) -> Callable[..., R]:
    """Keep AutoGraph from rewriting our own code while it rewrites the user's."""
    unconverted: Callable[..., R] = tf.autograph.experimental.do_not_convert(act)
    return unconverted


@contextmanager
def _overheard(kind: type, note: Callable[[Any, Any], None], *, only: bool) -> Iterator[None]:
    """Note what calls of a class' instances return; `only`: not those of subclasses."""
    before = getattr(kind, _CALL)
    own = _CALL in vars(kind)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = before(self, *args, **kwargs)
        if not only or type(self) is kind:
            note(self, output)
        return output

    setattr(kind, _CALL, call)
    try:
        yield
    finally:
        if own:
            setattr(kind, _CALL, before)
        else:
            delattr(kind, _CALL)


@contextmanager
def _preceded(optimizer: Any, act: Callable[..., None]) -> Iterator[None]:
    """Do something before each call of the method to which an optimizer's gradients are given."""
    name = method_of(optimizer)
    before = getattr(optimizer, name)

    repeatable = _unconverted(twice)

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = repeatable(args, kwargs)
        act(optimizer, before, *args, **kwargs)
        return before(*args, **kwargs)

    object.__setattr__(optimizer, name, call)
    try:
        yield
    finally:
        object.__delattr__(optimizer, name)


def twice(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return arguments that can be gone through twice."""

    def again(given: Any) -> Any:
        return list(given) if isinstance(given, Iterator) else given

    return [again(given) for given in args], {key: again(given) for key, given in kwargs.items()}
