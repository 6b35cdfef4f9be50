"""Checkpoints: the only place that says what ingest wants of a saved model: its weights, by name.

Readers of single formats give every tensor that they find; what is no weight is counted here. A
weight's numbers are read when they are asked for, so that no two need to be in memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy.typing as npt

from filmstrip.store._names import canonical
from filmstrip.store._widen import NARROW

_FLOATS = frozenset({"float16", "float32", "float64", "complex64"}) | frozenset(NARROW)
_QUANTIZED = frozenset({"int8", "uint8"})
_INTEGERS = re.compile(r"u?int\d+|bool")
_TRAINERS = re.compile(
    r"(?:optimi[sz]ers?(?:_?(?:[a-z]|\d+))?|optim(?:_(?:[a-z]|\d+))?"
    r"|.*(?:lr_|_|^)schedulers?|(?:grad_)?scaler)(?:_states?(?:_dicts?)?)?|opt_state(?:_dict)?"
)
HOMES = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network")
"""Under which of its keys a checkpoint holds the model, the first one first."""


def of_trainer(part: str) -> bool:
    """Return whether a part of a name says that an optimizer, or its like, is below.

    Examples
    --------
    >>> of_trainer("optimizer"), of_trainer("lr_schedulers"), of_trainer("optimus")
    (True, True, False)
    >>> of_trainer("optimizer_state_dict"), of_trainer("optimizerG_state_dict")
    (True, True)
    """
    return _TRAINERS.fullmatch(part.lower()) is not None


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a saved model.

    Attributes
    ----------
    original : str
        The name that the file gives it.
    shape : tuple of int
        Its shape.
    dtype : str
        As torch and ml_dtypes name it.
    read : callable
        Returns its numbers; narrow floats as their bits, as an ml_dtypes array or a tensor.
    aliases : list of str
        Other names of the same tensor.
    """

    original: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], npt.ArrayLike]
    aliases: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Checkpoint:
    """What a reader fills.

    Attributes
    ----------
    framework : str or None
        That saved it.
    weights : dict of str to Weight
        By layer, in the order in which the file has them.
    left_out : Counter of str
        What else there was, in words.
    resources : ExitStack
        Holds what must stay open while weights are read.
    """

    framework: str | None = None
    weights: dict[str, Weight] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    resources: ExitStack = field(default_factory=ExitStack)

    def add(
        self, original: str, shape: Sequence[int], dtype: str, read: Callable[[], npt.ArrayLike]
    ) -> None:
        """Take a tensor, or count it as left out.

        Raises
        ------
        ValueError
            If another one has the same name.
        """
        if not (dtype in _FLOATS or (dtype in _QUANTIZED and len(shape) > 1)):
            self.left_out["of integers" if _INTEGERS.fullmatch(dtype) else f"of dtype {dtype}"] += 1
            return
        layer = canonical(original)
        if layer in self.weights:
            other = self.weights[layer].original
            raise ValueError(f"it holds {other!r} and {original!r}, which are one layer: {layer!r}")
        self.weights[layer] = Weight(original, tuple(map(int, shape)), dtype, read)
