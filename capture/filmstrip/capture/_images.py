"""Images: the only place that keeps whole arrays given by hand until their step is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from filmstrip.capture._row import Kept
    from filmstrip.capture._session import Session
    from filmstrip.store import FrameSpec

Whole: TypeAlias = "Callable[[Any, str | None], tuple[Kept, FrameSpec]]"


def whole_array(x: npt.ArrayLike, layout: str | None) -> tuple[npt.NDArray[Any], FrameSpec]:
    """Return a private copy of an array, and what it is.

    Examples
    --------
    >>> array, spec = whole_array(np.ones((2, 3), ">f4"), "NC")
    >>> spec.shape, spec.dtype, spec.layout
    ((2, 3), 'float32', 'NC')
    """
    from filmstrip.store import FrameSpec

    array = np.array(x)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    name = str(array.dtype)
    return array, FrameSpec(array.shape, name, layout=layout, source_dtype=name)


class ImageShelf:
    """Arrays of one step, which become one row.

    Parameters
    ----------
    session : Session
        Writes them.
    whole : callable
        Returns a private copy of an array, and what it is.
    """

    def __init__(self, session: Session[Any], whole: Whole) -> None:
        self._session, self._whole = session, whole
        self._specs: dict[str, FrameSpec] = {}
        self._held: dict[str, tuple[Kept, FrameSpec]] = {}
        self._step = 0

    def put(self, name: str, x: Any, *, layout: str | None, step: int) -> None:
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

    def _put(self, name: str, x: Any, layout: str | None) -> None:
        if layout is not None and layout.startswith("N"):
            x = x[: self._session.settings.samples]
        array, spec = self._whole(x, layout)
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
