"""Names: the only place that knows how layers, groups and files of a run are called.

A layer's canonical name is the dotted path of its module or parameter. The name of its array
is derived from it by rules that keep every file system and every reader content; the array's
attributes hold the canonical and the original name and are law: an array name is never decoded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

FRAME_KINDS = ("activations", "weights", "gradients", "inputs", "images")
"""Kinds whose layers are strips."""

SCALARS, HEALTH, STATISTICS, RANKS = "scalars", "health", "statistics", "ranks"
STEP, WALL_TIME, SAMPLES = "step", "wall_time", "samples"
VALUES, HISTOGRAM = "values", "histogram"
METADATA, LOCK = "zarr.json", "_lock"

_RESERVED = frozenset({STEP, WALL_TIME, SAMPLES, METADATA})
_FORBIDDEN = re.compile(r"[/\\\0]")  # separators of some file system or reader
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_LONGEST, _KEPT = 200, 160


class Canonical(str):
    """A canonical name, of which nothing more is removed."""

    __slots__ = ()


def dotted(name: str) -> str:
    """Return a name with the separators of a canonical one.

    Examples
    --------
    >>> dotted("conv1/kernel")
    'conv1.kernel'
    """
    return name.replace("/", ".")


def canonical(name: str) -> str:
    """Return the canonical dotted path of a module, parameter or scalar, judged by its text.

    Parameters
    ----------
    name : str
        The framework's name. The prefixes of compiled, FSDP and checkpoint wrappers are removed
        wherever they stand; ``module.`` of DDP only at the start. A `Canonical` one stays as it is.

    Returns
    -------
    str
        Dotted path.

    Examples
    --------
    >>> canonical("module._orig_mod.layer1.0.conv1.weight")
    'layer1.0.conv1.weight'
    >>> canonical("conv1/kernel")
    'conv1.kernel'
    """
    if isinstance(name, Canonical):
        return name
    parts = _unwrapped(name)
    if len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return Canonical(".".join(parts))


def readings(name: str) -> list[str]:
    """Return the canonical names that may be meant by a name, the most literal first.

    Examples
    --------
    >>> readings("_orig_mod.module/fc")
    ['_orig_mod.module/fc', '_orig_mod.module.fc', 'module.fc', 'fc']
    """
    meant = (name, dotted(name), ".".join(_unwrapped(name)), canonical(name))
    return list(dict.fromkeys(meant))


def _unwrapped(name: str) -> list[str]:
    return [part for part in dotted(name).split(".") if part not in _WRAPPERS]


def array_name(name: str, taken: Iterable[str] = ()) -> str:
    """Return the array name of a layer or scalar, distinct from those taken.

    Parameters
    ----------
    name : str
        Canonical name.
    taken : iterable of str
        Array names that the group already has.

    Returns
    -------
    str
        Name of the array's folder.

    Examples
    --------
    >>> array_name("layer1.0.conv1"), array_name(""), array_name("step"), array_name("_x")
    ('layer1.0.conv1', '~', '~step', '~_x')
    >>> array_name("Loss", ["loss"])
    'Loss~2'
    """
    array = _FORBIDDEN.sub(".", name)
    if array == "":
        array = "~"
    elif array.startswith(("_", "~")) or array in _RESERVED or not array.strip("."):
        array = f"~{array}"
    if len(array.encode()) > _LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        array = f"{array.encode()[:_KEPT].decode(errors='ignore')}~{digest}"
    folded = {other.casefold() for other in taken}
    candidate, number = array, 2
    while candidate.casefold() in folded:
        candidate, number = f"{array}~{number}", number + 1
    return candidate


def rank_path(rank: int) -> str:
    """Return the path of a rank's store inside the run; rank 0's is the run itself.

    Examples
    --------
    >>> rank_path(3)
    'ranks/0003'
    """
    return f"{RANKS}/{rank:04d}"


def statistics_group(kind: str) -> str:
    """Return the path of the group that holds a kind's statistics."""
    return f"{STATISTICS}/{kind}"


def chunk_key(*position: int) -> str:
    """Return the file name of the shard or chunk at a position, whose first is along the steps.

    Examples
    --------
    >>> chunk_key(3, 0, 0, 0)
    'c.3.0.0.0'
    """
    return ".".join(("c", *map(str, position)))


def chunk_position(key: str) -> tuple[int, ...] | None:
    """Return the position of a chunk's file, None for other files.

    Examples
    --------
    >>> chunk_position("c.3.0.0.0"), chunk_position("zarr.json")
    ((3, 0, 0, 0), None)
    """
    match = re.fullmatch(r"c((?:\.(?:0|[1-9][0-9]{0,17}))+)", key)
    return tuple(map(int, match[1][1:].split("."))) if match else None


def dimension_names(array: str, ndim: int) -> list[str]:
    """Return the names of an array's axes; ``ndim`` counts the step axis.

    Examples
    --------
    >>> dimension_names("conv1", 3)
    ['step', 'conv1[0]', 'conv1[1]']
    """
    # Brackets, since `conv2d_0` would turn a layer `conv2d_1` into a coordinate of `conv2d`.
    return [STEP, *(f"{array}[{axis}]" for axis in range(ndim - 1))]
