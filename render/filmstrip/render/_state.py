"""States: the only place that says what of a run a picture depends on, for its digest.

A picture is drawn again when its state has changed, and only then: state names the steps that it
shows, since a run may grow, be rewound, pruned, or be another copy of itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from filmstrip.render._picks import digest_of_steps, pick_steps
from filmstrip.render._spec import AnimationSpec, CurveSpec, GridSpec, HistogramSpec
from filmstrip.render.errors import SourceError
from filmstrip.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filmstrip.render._source import RunSource
    from filmstrip.render._spec import Spec

_ALWAYS = 2**62  # later than any step


def state_of(source: RunSource, spec: Spec) -> str:
    """Name the run, the rewinds that a picture saw, and the steps that it shows.

    Parameters
    ----------
    source : RunSource
    spec : Spec
        With its layers and steps filled in.
    """
    last, parts = _basis(source, spec)
    # An attempt that rewound the run to before a step has written that step anew.
    rewinds = [
        int(attempt["number"])
        for attempt in source.attempts
        if attempt["number"] > 1
        and attempt["first_step"] is not None
        and attempt["first_step"] <= last
    ]
    shown = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    return f"{source.id}:{max(rewinds, default=0)}:{shown}"


def _basis(source: RunSource, spec: Spec) -> tuple[int, list[str]]:
    """Return the last step that a picture shows, and words for all that it shows."""
    if isinstance(spec, GridSpec):
        return spec.step, _of_grid(source, spec, [spec.step])
    if isinstance(spec, AnimationSpec):
        kept = source.frame_steps(spec.kind, spec.layer)
        shown = pick_steps(spec.step, kept, layer=spec.layer)
        return shown[-1], [digest_of_steps(shown), *_of_grid(source, spec.frame, shown)]
    if isinstance(spec, CurveSpec):
        return _of_curve(source, spec)
    layers = _layers(source, spec) if spec.page else [spec.layer]
    if spec.view == "single" and spec.step.isdecimal():
        return int(spec.step), list(layers) if spec.page else []
    return _ALWAYS, [part for layer in layers for part in _of_strip(source, spec.kind, layer)]


def _of_grid(source: RunSource, spec: GridSpec, steps: Sequence[int]) -> list[str]:
    parts = _of_strip(source, spec.kind, spec.layer) if spec.scale == "run" else []
    if spec.kind == "activations":  # their images stand beside them
        parts += [part for step in steps for part in source.inputs_at(step)]
    return parts


def _of_curve(source: RunSource, spec: CurveSpec) -> tuple[int, list[str]]:
    if spec.stat is not None:
        return _ALWAYS, [source.statistic_steps(spec.kind)[0]]
    try:
        named = source.scalars(spec)
    except SourceError:
        return 0, []
    ends = [int(series.steps[-1]) for series in named.values() if len(series.steps)]
    return max(ends, default=0), [
        f"{name} {digest_of_steps(one.steps)}" for name, one in named.items()
    ]


def _of_strip(source: RunSource, kind: str, layer: str) -> list[str]:
    """Name what describes a layer over all steps: its statistics, and frames if these lack bits."""
    described, counted = source.statistic_steps(kind)
    if counted:
        return [layer, described]
    try:
        return [layer, described, digest_of_steps(source.frame_steps(kind, layer))]
    except StoreError:  # one of several runs may lack the layer
        return [layer, described]


def _layers(source: RunSource, spec: HistogramSpec) -> Sequence[str]:
    try:
        return source.layers(spec.kind, spec.layer.split(","))
    except (StoreError, SourceError):
        return []
