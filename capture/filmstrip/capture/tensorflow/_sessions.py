"""Sessions of TensorFlow 1: the only place that adds fetches to their runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, Unpack

import tensorflow as tf

from filmstrip.capture._agent import Agent, plain_number
from filmstrip.capture._clock import Clock
from filmstrip.capture._keywords import Keywords
from filmstrip.capture._schedule import EVERYTHING
from filmstrip.capture._seams import Site, Watcher
from filmstrip.capture._session import Company, Session
from filmstrip.capture._settings import said_by_code, settle, switched_off
from filmstrip.capture.keras._layout import Layouts, variable_layout
from filmstrip.capture.tensorflow._graph import Node, Nodes, nodes_of
from filmstrip.capture.tensorflow._ranks import check_settings, ranks_here
from filmstrip.capture.tensorflow._stage import DryStage, HeldStage


class _GraphTap:
    """Takes what a session has fetched."""

    def __init__(self, nodes: Nodes, stage: HeldStage, *, step: int, samples: int) -> None:
        self.nodes, self._stage, self._step, self._samples = nodes, stage, step, samples
        self._sites: dict[Node, int | None] = {}
        self._layouts = Layouts()

    def sites(self) -> tuple[()]:
        """Return none; all come with the survey."""
        return ()

    def install(self, recorder: Watcher[Any]) -> None:
        """Begin the first step."""
        self.recorder = recorder
        self.clock = Clock(recorder, self._step)
        self.clock.start()

    def remove(self) -> None:
        """Do nothing; nothing of the graph was changed."""

    def begin(self) -> bool:
        """Begin a step; return whether anything is due."""
        self._stage.drop()
        self.clock.enter()
        return self.recorder.on

    def end(self, fetched: Mapping[Node, Any]) -> None:
        """End a step with what was fetched."""
        for node, array in fetched.items():
            try:
                self._take(node, array)
            except Exception as error:
                self.recorder.trip(f"{node.name!r} could not be taken", error)
        self.clock.advance()

    def _take(self, node: Node, array: Any) -> None:
        if node not in self._sites:
            outputs = node.kind == "activations"
            rank = array.ndim
            self._sites[node] = self.recorder.discover(
                Site(
                    kind=node.kind,
                    layer=node.name,
                    batched=outputs and rank > 0,
                    samples=self._samples if outputs else None,
                    layout=self._layouts.of(None, array.shape)
                    if outputs
                    else variable_layout(None, node.name, rank),
                    original=node.original,
                    tiers=EVERYTHING,
                )
            )
        site = self._sites[node]
        if site is not None:
            self.recorder.take(site, array)


class CaptureHook(Agent, tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]
    """Records activations, weights and gradients of a session of TensorFlow 1.

    Give it to a ``MonitoredSession`` or an estimator. Every run that changes a variable is a step;
    what is due is fetched with it, as far as it is computed anyway, which adds no operation to the
    graph and to the run. Weights are fetched just before, since they change in the run itself.

    Parameters
    ----------
    run : str or path
        Where the run is written.
    step : int, optional
        First step; None: the global step's value, else 0.
    **keywords
        As for `filmstrip.capture.pytorch.Capture`. Layers are operations: ``conv1/Relu`` is
        ``conv1.Relu``.

    Raises
    ------
    PlanError
        If a keyword has a value that cannot be used; when the session begins, if a selector matches
        nothing.

    Examples
    --------
    >>> import tempfile
    >>> from filmstrip.store import open_run
    >>> folder, v1 = tempfile.TemporaryDirectory(), tf.compat.v1
    >>> with tf.Graph().as_default():
    ...     w = v1.get_variable("w", initializer=[[2.0]])
    ...     loss = tf.reduce_sum(tf.matmul([[3.0]], w, name="fc") ** 2)
    ...     train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    ...     hook = CaptureHook(f"{folder.name}/run.zarr", every=1)
    ...     with v1.train.MonitoredSession(hooks=[hook]) as session:
    ...         _ = session.run(train)
    >>> run = open_run(f"{folder.name}/run.zarr")
    >>> run.activations["fc"].frame(0), run.weights["w"].frame(0), run.gradients["w"].frame(0)
    (array([[6.]], dtype=float32), array([[2.]], dtype=float32), array([[36.]], dtype=float32))
    >>> folder.cleanup()
    """

    def __init__(
        self,
        run: str | PathLike[str] = "run.zarr",
        *,
        step: int | None = None,
        **keywords: Unpack[Keywords],
    ) -> None:
        code = {**said_by_code("CaptureHook", keywords), "run": run}
        self._step, self._settings = step, None
        self._tap: _GraphTap | None = None
        self._nodes: Nodes | None = None
        self._due: dict[Node, Any] = {}
        self._asked: list[Node] = []
        self._trains = self._armed = False
        if not switched_off(os.environ):
            self._settings = settle(code, environment=os.environ, command={})
            check_settings(self._settings, ranks=ranks_here()[1])

    @property
    def _clock(self) -> Clock:
        assert self._tap is not None
        return self._tap.clock

    @staticmethod
    def _number(value: object) -> object:
        """Return what the writer thread can turn into a float; raise if it is not one number."""
        return plain_number(value)

    def begin(self) -> None:
        """Find what is to be taken in the graph."""
        if self._settings is not None and ranks_here()[0] == 0 and self._session is None:
            self._nodes = nodes_of(tf.compat.v1.get_default_graph(), self._settings)

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Create the run, from the step at which training goes on."""
        if self._nodes is None or self._settings is None or self._session is not None:
            return
        step = self._step
        if step is None:
            count = tf.compat.v1.train.get_global_step(session.graph)
            step = 0 if count is None else int(session.run(count))
        stage = DryStage() if self._settings.dry_run else HeldStage()
        held: Session[Any] = Session(
            self._settings,
            stage=stage,
            framework=f"tensorflow {tf.__version__}",
            first_step=step,
            company=Company(ranks=ranks_here()[1]),
        )
        self._tap = _GraphTap(self._nodes, stage, step=step, samples=self._settings.samples)
        self._session = held
        layers = {"weights": len(self._nodes.weights), "others": len(self._nodes.others)}
        layers = {
            "activations": sum(node.kind == "activations" for node in self._nodes.others),
            "weights": len(self._nodes.weights),
            "gradients": sum(node.kind == "gradients" for node in self._nodes.others),
        }
        held.start(self._tap, unfired=list, layers=layers)
        self._watch_process()

    def before_run(self, run_context: Any) -> Any:
        """Ask for what is due."""
        fetches = self._ask(run_context.session, run_context.original_args)
        return tf.compat.v1.train.SessionRunArgs(fetches) if fetches else None

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Take what came."""
        self._answer(run_values.results)

    def end(self, session: Any) -> None:
        """Close the run; what went wrong is logged."""
        self._close_quietly()

    def _ask(self, session: Any, args: Any) -> list[Any]:
        """Fetch weights, and return the tensors that the run must fetch besides."""
        self._due, self._asked, self._trains, self._armed = {}, [], False, False
        if self._tap is None or self._closed:
            return []
        try:
            self._trains = self._tap.nodes.trains(args.fetches)
            self._armed = self._trains and self._tap.begin()
            if self._armed:
                weights = self._tap.nodes.weights
                read = session.run([node.tensor for node in weights])
                self._due = dict(zip(weights, read, strict=True))
                self._asked = self._tap.nodes.reached(args.fetches, args.feed_dict or ())
                return [node.tensor for node in self._asked]
        except Exception as error:
            self._tap.recorder.trip("a run could not be prepared", error)
        return []

    def _answer(self, results: Any) -> None:
        if self._tap is not None and self._trains and not self._closed:
            others = self._asked if self._armed and results else ()
            self._tap.end({**dict(zip(others, results or (), strict=False)), **self._due})
            self._due = {}


@contextmanager
def capture_session(
    session: Any, run: str | PathLike[str] = "run.zarr", **keywords: Unpack[Keywords]
) -> Iterator[CaptureHook]:
    """Record what a plain session of TensorFlow 1 runs, as `CaptureHook` does.

    Parameters
    ----------
    session : tf.compat.v1.Session
        Its graph is complete.
    run : str or path
        Where the run is written.
    **keywords
        As for `CaptureHook`.

    Yields
    ------
    CaptureHook
        With ``log``, ``pause`` and so on.
    """
    hook = CaptureHook(run, **keywords)
    with session.graph.as_default():
        hook.begin()
    before = session.run
    hook.after_create_session(session, None)

    def captured(fetches: Any, feed_dict: Any = None, *args: Any, **kwargs: Any) -> Any:
        wanted = tf.compat.v1.train.SessionRunArgs(fetches, feed_dict)
        with session.graph.as_default():
            asked = hook._ask(_Plain(before), wanted)
        result, others = before((fetches, asked), feed_dict, *args, **kwargs)
        hook._answer(others)
        return result

    session.run = captured
    try:
        yield hook
    except BaseException:
        del session.run
        hook._close_quietly()
        raise
    del session.run
    hook.close()


class _Plain:
    """A session that is not captured."""

    def __init__(self, run: Any) -> None:
        self.run = run
