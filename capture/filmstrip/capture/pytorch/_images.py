"""Images: the only place that keeps whole arrays given by hand until their step is over."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from filmstrip.capture._session import Session
from filmstrip.store import FrameSpec

ImageLike: TypeAlias = "torch.Tensor | npt.NDArray[Any]"


def whole_frame(x: ImageLike, *, layout: str | None) -> tuple[npt.NDArray[Any], FrameSpec]:
    """Return a private copy of an array, and what it is.

    Examples
    --------
    >>> array, spec = whole_frame(torch.ones(2, 3), layout="NC")
    >>> spec.shape, spec.dtype, spec.layout
    ((2, 3), 'float32', 'NC')
    """
    if isinstance(x, torch.Tensor):
        source = str(x.dtype).removeprefix("torch.")
        x = x.detach()
        array = (x.float() if x.dtype is torch.bfloat16 else x).cpu().numpy().copy()
    else:
        array = np.array(x)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        source = str(array.dtype)
    return array, FrameSpec(array.shape, str(array.dtype), layout=layout, source_dtype=source)


class ImageShelf:
    """Arrays of one step, which become one row.

    Parameters
    ----------
    session : Session
        Writes them.
    samples : int
        Leading samples kept of an array whose layout starts with N.
    """

    def __init__(self, session: Session[torch.Tensor], *, samples: int) -> None:
        self._session, self._samples = session, samples
        self._specs: dict[str, FrameSpec] = {}
        self._held: dict[str, tuple[npt.NDArray[Any], FrameSpec]] = {}
        self._step = 0

    def put(self, name: str, x: ImageLike, *, layout: str | None, step: int) -> None:
        """Keep an array, if frames are due at the step."""
        if step != self._step:
            self.flush()
            self._step = step
        try:
            if self._session.recorder.due(step).frames:
                self._put(name, x, layout)
        except Exception as error:
            self._session.ledger.lose(
                "unlogged", f"image {name}", f"the image {name!r} is not kept: {error}"
            )

    def _put(self, name: str, x: ImageLike, layout: str | None) -> None:
        if layout is not None and layout.startswith("N"):
            x = x[: self._samples]
        array, spec = whole_frame(x, layout=layout)
        known = self._specs.setdefault(name, spec)
        if (known.shape, known.dtype) != (spec.shape, spec.dtype):
            raise ValueError(
                f"it is {spec.dtype} {spec.shape} now and was {known.dtype} {known.shape} before"
            )
        held = sum(kept.nbytes for kept, _ in self._held.values())
        if held + array.nbytes > self._session.settings.max_capture_bytes:
            raise ValueError(f"with its {array.nbytes} bytes max_capture_bytes is exceeded")
        self._held[name] = (array, known)

    def flush(self) -> None:
        """Hand over what is kept."""
        if self._held:
            self._session.frames("images", self._step, self._held)
            self._held = {}
