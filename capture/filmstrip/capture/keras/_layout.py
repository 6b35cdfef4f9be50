"""Layouts: the only place that knows which axis of a Keras or TensorFlow tensor means what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LAST = {3: "NLC", 4: "NHWC", 5: "NDHWC"}
_FIRST = {3: "NCL", 4: "NCHW", 5: "NCDHW"}
_KERNELS = {3: "LIO", 4: "HWIO", 5: "DHWIO"}
_TRANSPOSED = {3: "LOI", 4: "HWOI", 5: "DHWOI"}
_ROWS = ("Dense", "Flatten")
_TOKENS = ("Dense", "Embedding", "LayerNormalization", "LSTM", "GRU", "SimpleRNN")


class Layouts:
    """Tells the layout of a layer's output, from its type or from what went before it.

    Layers that act on each value alone say nothing of axes: their output has the layout of the last
    one of the same shape. What is no Keras layer has TensorFlow's own conventions.

    Examples
    --------
    >>> Layouts().of(None, (2, 8, 8, 3)), Layouts().of(object(), (2, 8, 8, 3))
    ('NHWC', None)
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, layer: Any, shape: Sequence[int]) -> str | None:
        """Return the layout of an output, None where it is not known."""
        shape = tuple(shape)
        layout = output_layout(layer, len(shape))
        if layout is None:
            return self._known.get(shape)
        self._known[shape] = layout
        return layout


def output_layout(layer: Any, rank: int) -> str | None:
    """Return the layout that a layer of this type gives to its output."""
    if layer is None:
        return {2: "NC", **_LAST}.get(rank)
    names = {kind.__name__ for kind in type(layer).__mro__}
    order = getattr(layer, "data_format", None)
    if rank == 2 and (order or not names.isdisjoint(_ROWS)):
        return "NC"
    if order:
        return (_FIRST if order == "channels_first" else _LAST).get(rank)
    return "NLC" if rank == 3 and not names.isdisjoint(_TOKENS) else None


def variable_layout(layer: Any, name: str, rank: int) -> str | None:
    """Return the layout of a variable of a layer; of one without a layer, by convention.

    Examples
    --------
    >>> variable_layout(None, "w", 4), variable_layout(None, "w", 2), variable_layout(None, "b", 1)
    ('HWIO', 'IO', 'C')
    """
    if rank == 1:
        return "C"
    kind = "" if layer is None else type(layer).__name__
    if rank == 2:
        return "IO" if layer is None or name.endswith("kernel") else None
    if layer is None or (name.endswith("kernel") and hasattr(layer, "data_format")):
        return (_TRANSPOSED if "Transpose" in kind else _KERNELS).get(rank)
    return None


def weight_layout(layer: Any, value: Any) -> str | None:
    """Return the layout of a weight of a Keras layer, given the backend's own variable."""
    for weight in layer.weights:
        if weight._value is value:
            return variable_layout(layer, weight.name, len(weight.shape))
    return None


def input_layout(rank: int) -> str | None:
    """Return the layout that Keras' layers expect of an input.

    Examples
    --------
    >>> input_layout(4)
    'NHWC'
    """
    return {2: "NC", 4: "NHWC", 5: "NDHWC"}.get(rank)
