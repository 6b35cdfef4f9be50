"""Keywords: the only place that knows what each keyword of capture may be.

Each reader takes a value as it comes from Python, a TOML file, the command line or the environment
and returns it in one form, or raises PlanError with the keyword, the value and the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import index
from typing import TypeAlias, TypedDict

from filmstrip.capture._schedule import EPOCH, Tiers
from filmstrip.capture._size import parse_share, parse_size
from filmstrip.capture.errors import PlanError

Selectors: TypeAlias = "str | type[object] | Sequence[str | type[object]]"
KINDS = ("activations", "weights", "gradients", "inputs")
_DTYPES = ("float16", "bfloat16", "float32")


class Keywords(TypedDict, total=False):
    """What the captures of all frameworks are told by keyword; see `Plan` for what it means."""

    every: int | Mapping[str, int] | str
    start: int
    stop: int | None
    steps: Collection[int] | None
    kinds: str | Sequence[str]
    layers: Selectors
    exclude: Selectors
    statistics: bool
    histograms: bool
    frames: bool
    samples: int
    micro_batches: str
    phases: str | Sequence[str]
    replicas: str
    max_capture_bytes: int | str
    max_run_bytes: int | str
    min_free: int | float | str
    max_overhead: float | None
    on_pressure: str
    if_exists: str
    dtype: str | None
    compression: str | None
    fsync: bool
    metadata: Mapping[str, object] | None
    dry_run: bool


def _whole(keyword: str, value: object, minimum: int) -> int:
    """Read a whole number of at least `minimum`."""
    with suppress(ValueError, TypeError):
        if not isinstance(value, bool):
            value = int(value) if isinstance(value, str) else index(value)  # type: ignore[arg-type]
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise PlanError(f"{keyword}={value!r} is not a whole number of {minimum} or more")
    return value


def _items(value: object) -> list[object]:
    """Split text at commas; leave other collections alone."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return list(value) if isinstance(value, Iterable) else [value]


def read_every(keyword: str, value: object) -> int | dict[str, int] | str:
    """Read an interval in steps, or one for each tier, or that epochs count instead.

    Examples
    --------
    >>> read_every("every", "statistics=10, frames=1000")
    {'statistics': 10, 'frames': 1000}
    """
    if isinstance(value, str) and value == EPOCH:
        return EPOCH
    if isinstance(value, str) and "=" in value:
        parts = [str(item).partition("=") for item in _items(value)]
        value = {tier.strip(): interval.strip() for tier, _, interval in parts}
    if not isinstance(value, Mapping):
        return _whole(keyword, value, 1)
    strange = [str(tier) for tier in value if tier not in Tiers._fields]
    if strange or not value:
        raise PlanError(
            f"{keyword} gives intervals for {', '.join(strange) or 'nothing'}; "
            f"it may name {', '.join(Tiers._fields)}"
        )
    return {tier: _whole(f"{keyword}[{tier!r}]", value[tier], 1) for tier in value}


def read_step(keyword: str, value: object) -> int:
    """Read a step, counted from 0."""
    return _whole(keyword, value, 0)


def read_steps(keyword: str, value: object) -> frozenset[int]:
    """Read an explicit list of steps."""
    items = _items(value)
    if not items:
        raise PlanError(
            f"{keyword}={value!r} holds no step; leave it out, or give some, such as [0, 10, 100]"
        )
    return frozenset(_whole(keyword, item, 0) for item in items)


def read_count(keyword: str, value: object) -> int:
    """Read a number of at least 1."""
    return _whole(keyword, value, 1)


def read_selectors(keyword: str, value: object) -> tuple[str, ...]:
    """Read one selector or several; a regular expression is not split at its commas.

    Examples
    --------
    >>> read_selectors("layers", [int, "fc*"])
    ('type:int', 'fc*')
    """
    items = [value] if isinstance(value, str) and value.startswith("re:") else _items(value)
    items = [f"type:{item.__name__}" if isinstance(item, type) else item for item in items]
    if not all(isinstance(item, str) for item in items):
        raise PlanError(
            f"{keyword}={value!r} is not a selector or a list of them, such as 'layer*.conv*'"
        )
    return tuple(map(str, items))


def read_flag(keyword: str, value: object) -> bool:
    """Read a yes or no."""
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    word = str(value).strip().lower()  # also of NumPy's own True and False, and of 1 and 0
    if word in words:
        return words[word]
    raise PlanError(f"{keyword}={value!r} is neither true nor false")


def one_of(*choices: str) -> Callable[[str, object], str]:
    """Return a reader of one word out of several."""

    def read(keyword: str, value: object) -> str:
        if value not in choices:
            raise PlanError(
                f"{keyword}={value!r} is not known; it may be {', '.join(map(repr, choices))}"
            )
        return str(value)

    return read


def some_of(*choices: str) -> Callable[[str, object], tuple[str, ...]]:
    """Return a reader of at least one word out of several, kept in their order."""

    def read(keyword: str, value: object) -> tuple[str, ...]:
        items = _items(value)
        strange = [item for item in items if item not in choices]
        if strange or not items:
            what = f"has {', '.join(map(repr, strange))}" if strange else "is empty"
            raise PlanError(f"{keyword} {what}; it may hold {', '.join(map(repr, choices))}")
        return tuple(choice for choice in choices if choice in items)

    return read


def read_overhead(keyword: str, value: object) -> float:
    """Read a share of the training time."""
    share = -1.0
    if not isinstance(value, bool):
        with suppress(ValueError, TypeError):
            share = float(value)  # type: ignore[arg-type]
    if not 0 < share <= 1:
        raise PlanError(
            f"{keyword}={value!r} is not a share of the time; write 0.02 for two per cent"
        )
    return share


READERS: Mapping[str, Callable[[str, object], object]] = {
    "every": read_every,
    "start": read_step,
    "stop": read_step,
    "steps": read_steps,
    "kinds": some_of(*KINDS),
    "layers": read_selectors,
    "exclude": read_selectors,
    "statistics": read_flag,
    "histograms": read_flag,
    "frames": read_flag,
    "samples": read_count,
    "micro_batches": one_of("first", "last", "all"),
    "phases": some_of("train", "eval"),
    "replicas": one_of("first", "all"),
    "max_capture_bytes": parse_size,
    "max_run_bytes": parse_size,
    "min_free": parse_share,
    "max_overhead": read_overhead,
    "on_pressure": one_of("drop", "block", "auto"),
    "if_exists": one_of("auto", "resume", "fail", "new", "overwrite"),
    "dtype": one_of(*_DTYPES),
    "compression": one_of("zstd", "lz4", "none"),
    "fsync": read_flag,
}
"""What a plan may hold, and how each value is read."""
