"""Layouts: the only place that knows which axis of a PyTorch tensor means what."""

from __future__ import annotations

import sys

import torch
from torch import nn

from filmstrip.capture.keras import _layout as keras_layout

_CONVOLUTIONS = {
    nn.Conv1d: ("NCL", "OIL"),
    nn.Conv2d: ("NCHW", "OIHW"),
    nn.Conv3d: ("NCDHW", "OIDHW"),
    nn.ConvTranspose1d: ("NCL", "IOL"),
    nn.ConvTranspose2d: ("NCHW", "IOHW"),
    nn.ConvTranspose3d: ("NCDHW", "IODHW"),
}
_IMAGES = (
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.ZeroPad2d,
)
_ROWS = (nn.Linear, nn.Bilinear, nn.Flatten)
_TOKENS = (nn.Linear, nn.LayerNorm, nn.Embedding)
_IMAGE_RANK = 4


class Layouts:
    """Tells the layout of a module's output, from its type or from what went before it.

    Modules that act on each value alone (ReLU, Dropout, Identity, …) say nothing of axes: their
    output has the layout of the last one of the same shape.

    Examples
    --------
    >>> layouts = Layouts()
    >>> layouts.of(nn.Conv2d(3, 8, 3), torch.empty(2, 8, 4, 4))
    'NCHW'
    >>> [layouts.of(nn.ReLU(), torch.empty(2, 8, 4, width)) for width in (4, 5)]
    ['NCHW', None]
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, module: nn.Module, output: torch.Tensor) -> str | None:
        """Return the layout of an output, None where it is not known."""
        shape = tuple(output.shape)
        layout = _layout(module, len(shape))
        if layout is None:
            return self._known.get(shape)
        self._known[shape] = layout
        return layout


def _of_keras(module: nn.Module) -> bool:
    """Return whether a module is a layer of Keras, which has conventions of its own."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(module, keras.layers.Layer)


def _layout(module: nn.Module, rank: int) -> str | None:
    if _of_keras(module):
        return keras_layout.output_layout(module, rank)
    for kind, (layout, _) in _CONVOLUTIONS.items():
        if isinstance(module, kind):
            return layout if rank == len(layout) else None
    if isinstance(module, _IMAGES) and rank == _IMAGE_RANK:
        return "NCHW"
    if rank == 2 and isinstance(module, (*_ROWS, nn.BatchNorm1d)):
        return "NC"
    if rank == 3 and isinstance(module, _TOKENS):
        return "NLC"
    if rank == 3 and isinstance(module, nn.BatchNorm1d):
        return "NCL"
    return None


def parameter_layout(module: nn.Module, parameter: torch.Tensor) -> str | None:
    """Return the layout of a parameter of a module.

    Examples
    --------
    >>> parameter_layout(nn.Linear(4, 2), nn.Linear(4, 2).weight)
    'OI'
    """
    if _of_keras(module):
        return keras_layout.weight_layout(module, parameter)
    if parameter.ndim == 1:
        return "C"
    for kind, (_, layout) in _CONVOLUTIONS.items():
        if isinstance(module, kind) and parameter.ndim == len(layout):
            return layout
    return "OI" if parameter.ndim == 2 and not isinstance(module, nn.Embedding) else None


def input_layout(tensor: torch.Tensor) -> str | None:
    """Return the layout that PyTorch's convolutions and dense layers expect of an input.

    Examples
    --------
    >>> input_layout(torch.empty(8, 1, 28, 28))
    'NCHW'
    """
    return {2: "NC", _IMAGE_RANK: "NCHW", 5: "NCDHW"}.get(tensor.ndim)
