"""Layouts: the only place that guesses what a weight's axes mean from its name and shape."""

from __future__ import annotations

import re

_KERNELS = {1: "C", 2: "IO", 4: "HWIO", 5: "DHWIO"}  # TensorFlow, Keras, Flax
_TRANSPOSED_KERNELS = {3: "LOI", 4: "HWOI", 5: "DHWOI"}
_WEIGHTS = {1: "C", 2: "OI", 3: "OIL", 4: "OIHW", 5: "OIDHW"}  # PyTorch
_TRANSPOSED_WEIGHTS = {3: "IOL", 4: "IOHW", 5: "IODHW"}
_TABLES = re.compile(r"embed|wte|wpe|position|token_type|relative|rel_pos")
_TRANSPOSED = re.compile(r"transpose|deconv")


def layout_of(layer: str, rank: int, framework: str | None) -> str | None:
    """Return the layout of a weight, None where its name does not tell.

    Parameters
    ----------
    layer : str
        Canonical name.
    rank : int
        Number of axes.
    framework : str or None
        That saved it.

    Returns
    -------
    str or None
        One letter an axis.

    Examples
    --------
    >>> layout_of("conv1.weight", 4, "pytorch"), layout_of("conv1.kernel", 4, "keras")
    ('OIHW', 'HWIO')
    >>> layout_of("embed_tokens.weight", 2, "pytorch") is None
    True
    """
    if rank == 1:
        return "C"
    lowered = layer.lower()
    if _TABLES.search(lowered):
        return None
    last = lowered.rpartition(".")[2]
    transposed = _TRANSPOSED.search(lowered) is not None
    if last.endswith("kernel") or (
        last in ("weights", "w") and framework in ("keras", "tensorflow")
    ):
        if transposed and rank in _TRANSPOSED_KERNELS:
            return _TRANSPOSED_KERNELS[rank]
        # A kernel with three axes may belong to attention as well.
        return "LIO" if rank == 3 and "conv" in lowered else _KERNELS.get(rank)
    if last == "weight":
        return (_TRANSPOSED_WEIGHTS if transposed and rank > 2 else _WEIGHTS).get(rank)
    return None
