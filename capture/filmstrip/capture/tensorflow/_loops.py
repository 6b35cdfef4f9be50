"""Loops: the only place that finds, in a script that knows nothing of capture, a train step.

A train step is a `tf.function` inside of which a Keras optimizer is given gradients. Before such a
function is called for the first time it is traced, as the call itself would do, so that even the
first step can be captured.
"""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, Protocol

import keras
import tensorflow as tf

from filmstrip.capture.errors import UnsupportedModelError
from filmstrip.capture.keras._layers import underlying
from filmstrip.capture.tensorflow._gradients import given
from filmstrip.capture.tensorflow._taps import twice

_KINDS = (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer)


class Attaching(Protocol):
    """What attaches capture."""

    @property
    def free(self) -> bool:
        """Return whether nothing is captured yet, and something may be."""

    def claim(self) -> bool:
        """Return whether this process may capture."""

    def attach_loop(self, model: Any, optimizers: Sequence[Any]) -> Any:
        """Return a capture of a loop's model."""

    def fail(self, error: Exception) -> None:
        """Capture nothing any more, and tell of what went wrong."""


class Loops:
    """Waits for a train step.

    Parameters
    ----------
    watch : Attaching
        Knows whether anything else is captured, and attaches.
    """

    def __init__(self, watch: Attaching) -> None:
        self._watch = watch
        self._function: Any = None
        self._step: Callable[..., Any] | None = None

    def begin(self) -> None:
        """See every call of a `tf.function` from now on."""
        kind = type(tf.function(lambda: None))
        call = kind.__call__

        @functools.wraps(call)
        def called(function: Any, *args: Any, **kwargs: Any) -> Any:
            if self._watch.free and not tf.inside_function():
                self._look(call, function, args, kwargs)
            if function is self._function and self._step is not None and not tf.inside_function():
                return self._step(*args, **kwargs)
            return call(function, *args, **kwargs)

        kind.__call__ = called

    def _look(self, call: Callable[..., Any], function: Any, args: Any, kwargs: Any) -> None:
        """Attach, if the function is a train step."""
        if function.experimental_get_tracing_count():
            return
        with _given_to_optimizers() as found:
            try:
                function.get_concrete_function(*args, **kwargs)
            except Exception:
                return  # the call itself will raise it
        try:
            if found and self._watch.free and self._watch.claim():
                self._attach(call, function, _outer(found))
        except Exception as error:
            self._watch.fail(error)

    def _attach(self, call: Callable[..., Any], function: Any, found: Sequence[Applied]) -> None:
        if any(one.inside for one in found):
            raise UnsupportedModelError(
                f"{type(found[0].optimizer).__name__} is inside of a loop, a branch or another "
                "tf.function, where one step cannot be told from the next; make a tf.function of "
                "one step"
            )
        optimizers = list({id(one.optimizer): one.optimizer for one in found}.values())
        roots = roots_of({key for one in found for key in one.variables})
        if not roots:
            raise UnsupportedModelError(
                "no Keras model and no tf.Module holds the variables that are trained"
            )
        model = roots[0] if len(roots) == 1 else Models(roots)
        capture = self._watch.attach_loop(model, optimizers)
        self._function, self._step = function, capture.wrap(_Uncaptured(function, call))


class _Uncaptured:
    """A `tf.function` that is not looked at when it is called."""

    def __init__(self, function: Any, call: Callable[..., Any]) -> None:
        self._function, self._call = function, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._function, *args, **kwargs)


class Applied:
    """A call of an optimizer in the course of a trace."""

    def __init__(self, optimizer: Any, variables: set[int]) -> None:
        self.optimizer, self.variables = optimizer, variables
        graph = tf.compat.v1.get_default_graph()
        self.inside = hasattr(getattr(graph, "outer_graph", None), "outer_graph")


@contextmanager
def _given_to_optimizers() -> Iterator[list[Applied]]:
    """Yield the calls of optimizers, which grow while the context lasts."""
    found: list[Applied] = []

    def note(apply: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> None:
        pairs = given(optimizer, MethodType(apply, optimizer), *args, **kwargs)
        found.append(Applied(optimizer, {id(underlying(variable)) for _, variable in pairs}))

    with ExitStack() as changes:
        for kind in _KINDS:
            changes.enter_context(_before_apply(kind, note))
        yield found


@contextmanager
def _before_apply(kind: Any, act: Callable[..., None]) -> Iterator[None]:
    own, before = "apply" in vars(kind), kind.apply
    act, repeatable = map(tf.autograph.experimental.do_not_convert, (act, twice))

    @functools.wraps(before)
    def apply(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = repeatable(args, kwargs)
        act(before, optimizer, *args, **kwargs)
        return before(optimizer, *args, **kwargs)

    kind.apply = apply
    try:
        yield
    finally:
        if own:
            kind.apply = before
        else:
            del kind.apply


def _outer(found: Sequence[Applied]) -> list[Applied]:
    """Leave out optimizers inside of others."""
    inner = {id(getattr(one.optimizer, "inner_optimizer", None)) for one in found}
    return [one for one in found if id(one.optimizer) not in inner]


class Models(tf.Module):  # type: ignore[misc]
    """Several models that are trained together, as if they were one.

    Parameters
    ----------
    models : sequence of keras.layers.Layer or tf.Module
        Each gets the name of its class, with a number from the second of a name on.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        counts: Counter[str] = Counter()
        for model in models:
            name = type(model).__name__
            counts[name] += 1
            setattr(self, name if counts[name] == 1 else f"{name}{counts[name]}", model)


def roots_of(wanted: Set[int]) -> list[Any]:
    """Return the models that hold certain variables; as few, and as small, as possible.

    Parameters
    ----------
    wanted : set of int
        Identities of variables.
    """
    kinds = (keras.layers.Layer, tf.Module)
    things = [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]
    owners = [(thing, held) for thing in things if (held := _held(thing)) & wanted]
    found: list[Any] = []
    left = set(wanted)
    while left and owners:
        _, held = max(owners, key=lambda one: (len(one[1] & left), -len(one[1])))
        if not held & left:
            break
        same = [thing for thing, others in owners if others == held]
        found.append(max(same, key=_size))  # what encloses it and holds no more, as a Sequential
        left -= held
    return found


def _held(thing: Any) -> set[int]:
    try:
        return {id(underlying(variable)) for variable in thing.trainable_variables}
    except Exception:
        return set()  # one that is only half made


def _size(thing: Any) -> int:
    if isinstance(thing, keras.layers.Layer):
        return len(thing._flatten_layers())
    return len(thing.submodules) + 1
