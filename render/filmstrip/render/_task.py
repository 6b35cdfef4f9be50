"""The task: the only function that workers import, and what must happen before matplotlib does."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmstrip.render._batch import Batch
    from filmstrip.render._draw import Drawn

__all__ = ["run"]


def run(batch: Batch) -> list[Drawn]:
    """Draw a batch in whatever process this is.

    A worker inherits ``MPLBACKEND`` from wherever it was started; of a value that matplotlib
    cannot load, its import raises.
    """
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "agg"
    from filmstrip.render._draw import draw_batch

    return draw_batch(batch)
