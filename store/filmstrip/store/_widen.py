"""Widening: the only place that turns floats that Zarr readers do not know into ones that they do.

bfloat16 becomes float32, 8-bit floats become float16 (those of powers of two alone float32): every
value keeps its value.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Narrow:
    """A float that is widened.

    Attributes
    ----------
    stored : str
        dtype in the store.
    bits : str
        Integer dtype of the same size, in which its bits are handed over.
    exponent, mantissa, bias : int
        Of an 8-bit float: bits of each, and the exponent's bias.
    nan : {"ieee", "ones", "minus zero"}
        Which of its codes are not finite: as IEEE 754 has it, all ones, or that of minus zero.
    """

    stored: str
    bits: str
    exponent: int = 0
    mantissa: int = 0
    bias: int = 0
    nan: str = "ieee"


NARROW = {
    "bfloat16": Narrow("float32", "uint16"),
    "float8_e4m3fn": Narrow("float16", "uint8", 4, 3, 7, "ones"),
    "float8_e5m2": Narrow("float16", "uint8", 5, 2, 15, "ieee"),
    "float8_e4m3fnuz": Narrow("float16", "uint8", 4, 3, 8, "minus zero"),
    "float8_e5m2fnuz": Narrow("float16", "uint8", 5, 2, 16, "minus zero"),
    "float8_e8m0fnu": Narrow("float32", "uint8", 8, 0, 127, "ones"),
}
"""By the name that torch and ml_dtypes give them."""


@cache
def _table(name: str) -> npt.NDArray[Any]:
    """Return the value of each code of an 8-bit float (OCP OFP8 1.0; arXiv:2206.02915)."""
    narrow = NARROW[name]
    codes = np.arange(256)
    if narrow.mantissa == 0:  # powers of two, without a sign
        values = np.ldexp(1.0, codes - narrow.bias)
        values[255] = np.nan
        return values.astype(narrow.stored)
    mantissa = codes & ((1 << narrow.mantissa) - 1)
    exponent = (codes >> narrow.mantissa) & ((1 << narrow.exponent) - 1)
    fraction = mantissa / (1 << narrow.mantissa)
    values = np.where(
        exponent > 0,
        np.ldexp(1.0 + fraction, exponent - narrow.bias),
        np.ldexp(fraction, 1 - narrow.bias),
    )
    values = np.where(codes & 0x80, -values, values)
    if narrow.nan == "minus zero":
        values[0x80] = np.nan
    elif narrow.nan == "ones":
        values[codes & 0x7F == 0x7F] = np.nan
    else:
        top = exponent == (1 << narrow.exponent) - 1
        infinite = np.where(codes & 0x80, -np.inf, np.inf)
        values = np.where(top, np.where(mantissa == 0, infinite, np.nan), values)
    return values.astype(narrow.stored)


def widened(bits: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return the values behind the bits of narrow floats.

    Parameters
    ----------
    bits : ndarray of uint16 or uint8, C-contiguous
        Their bits.
    name : str
        One of `NARROW`.

    Returns
    -------
    ndarray
        Of the same shape, in the stored dtype.

    Examples
    --------
    >>> widened(np.array([0x3FC0], np.uint16), "bfloat16")
    array([1.5], dtype=float32)
    >>> widened(np.array([0x7E, 0x7F], np.uint8), "float8_e4m3fn")
    array([448.,  nan], dtype=float16)
    """
    if name == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(_table(name)[bits])


def array_of(frame: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return anything like an array as one on the CPU; narrow floats as their bits.

    Tensors of torch are recognised without importing it.

    Raises
    ------
    TypeError, RuntimeError, ValueError
        If it is nothing of the kind.

    Examples
    --------
    >>> array_of([1.0, 2.0])
    array([1., 2.])
    """
    if isinstance(frame, np.ndarray) and frame.dtype.isbuiltin == 1:  # the usual case, quickly
        return frame
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(frame, torch.Tensor):
        tensor = frame.detach().cpu().contiguous()
        narrow = NARROW.get(str(tensor.dtype).removeprefix("torch."))
        if narrow is not None:
            tensor = tensor.view(getattr(torch, narrow.bits))
        array: npt.NDArray[Any] = tensor.numpy()
        return array
    array = np.asarray(frame)
    narrow = NARROW.get(array.dtype.name)  # of ml_dtypes
    return array if narrow is None else np.ascontiguousarray(array).view(narrow.bits)
