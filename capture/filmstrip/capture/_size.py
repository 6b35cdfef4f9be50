"""Sizes: the only place that reads and writes amounts of bytes as people do."""

from __future__ import annotations

import re
from contextlib import suppress
from operator import index

from filmstrip.capture.errors import PlanError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def parse_size(keyword: str, value: object) -> int:
    """Return a size in bytes.

    Parameters
    ----------
    keyword : str
        Name of the keyword, for the message.
    value : int or str
        Bytes, or text as ``"64MB"`` (powers of 1000) or ``"64MiB"`` (powers of 1024).

    Returns
    -------
    int
        Bytes, positive.

    Raises
    ------
    PlanError
        If the value is not a positive size.

    Examples
    --------
    >>> parse_size("max_run_bytes", "1.5GB"), parse_size("max_run_bytes", "64 KiB")
    (1500000000, 65536)
    """
    size = None
    with suppress(TypeError, OverflowError):
        if isinstance(value, float) and value.is_integer():
            size = int(value)
        elif not isinstance(value, str | bool):
            size = index(value)  # type: ignore[arg-type]
        elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            number, power, binary = match.groups()
            size = int(float(number) * (1024 if binary else 1000) ** _POWERS[power.upper()])
    if size is None or size < 1:
        raise PlanError(
            f"{keyword}={value!r} is not a size; write bytes, or text such as '64MB' or '20GB'"
        )
    return size


def parse_share(keyword: str, value: object) -> int | float:
    """Return an amount that is a size (int, bytes) or a share of the whole (float, 0 to 1).

    Examples
    --------
    >>> parse_share("min_free", "5%"), parse_share("min_free", "2GB")
    (0.05, 2000000000)
    """
    if isinstance(value, float) and 0 <= value < 1:
        return value
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            share = float(value.strip()[:-1]) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            raise PlanError(
                f"{keyword}={value!r} is not a share; write '5%', or a size such as '2GB'"
            )
        return share
    if value in (0, "0"):
        return 0
    return parse_size(keyword, value)


def size_text(size: float) -> str:
    """Return bytes as a person would write them.

    Examples
    --------
    >>> size_text(17_290_000), size_text(999)
    ('17.3 MB', '999 B')
    """
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
