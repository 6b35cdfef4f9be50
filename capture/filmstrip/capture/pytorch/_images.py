"""Images: the only place that turns what is given by hand into an array to be written whole."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt
import torch

from filmstrip.capture._images import whole_array
from filmstrip.capture._row import Kept
from filmstrip.capture.pytorch._device import Later
from filmstrip.capture.pytorch._stage import dtype_name
from filmstrip.store import FrameSpec

ImageLike: TypeAlias = "torch.Tensor | npt.NDArray[Any]"


def whole_frame(x: ImageLike, layout: str | None) -> tuple[Kept, FrameSpec]:
    """Return a private copy of an array, and what it is.

    That of an accelerator's tensor is made on the accelerator, which is not waited for.

    Examples
    --------
    >>> array, spec = whole_frame(torch.ones(2, 3), "NC")
    >>> spec.shape, spec.dtype, spec.layout
    ((2, 3), 'float32', 'NC')
    """
    if isinstance(x, torch.Tensor):
        source, x = dtype_name(x), x.detach()
        x = x.float() if x.dtype is torch.bfloat16 else x
        spec = FrameSpec(tuple(x.shape), dtype_name(x), layout=layout, source_dtype=source)
        return (x.numpy(force=True).copy() if x.device.type == "cpu" else Later(x)), spec
    return whole_array(x, layout)
