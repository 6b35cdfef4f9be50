"""Selectors: the only place that decides what a pattern matches and which steps a label picks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from fnmatch import translate
from functools import cache

import numpy as np
import numpy.typing as npt

from filmstrip.store._names import readings
from filmstrip.store.errors import SelectionError

Selector = str | Iterable[str]
TYPE = "type:"
"""What begins a selector of modules by their type, which capture alone knows."""
Steps = npt.NDArray[np.int64]


@cache
def _pattern(selector: str) -> re.Pattern[str]:
    if selector.startswith(TYPE):
        raise SelectionError(
            f"{selector!r} asks for a type of modules, and types are known only when capturing; "
            "select by names"
        )
    if not selector.startswith("re:"):
        return re.compile(translate(selector))
    try:
        return re.compile(selector[3:])
    except re.error as error:
        raise SelectionError(f"{selector!r} is not a regular expression: {error}") from None


def _selectors(selector: Selector) -> list[str]:
    return [selector] if isinstance(selector, str) else list(selector)


def matches(selector: Selector, name: str) -> bool:
    """Return whether a selector matches a name.

    Parameters
    ----------
    selector : str or iterable of str
        A glob, whose ``*`` crosses dots; a regular expression behind ``re:``, which must match the
        whole name; or several of these, of which one must match.
    name : str
        Canonical name.

    Returns
    -------
    bool
        True when the name is selected.

    Raises
    ------
    SelectionError
        If a regular expression is none, or a selector asks for a type of modules.

    Examples
    --------
    >>> matches("layer1.*", "layer1.0.conv1"), matches("re:conv[12]", "conv3")
    (True, False)
    """
    return any(_pattern(one).fullmatch(name) is not None for one in _selectors(selector))


def select(
    selector: Selector,
    names: Iterable[str],
    *,
    owner: Callable[[str], str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the names that a selector matches, in their own order.

    Parameters
    ----------
    selector : str or iterable of str
        See `matches`. A name equal to the selector is matched even if it holds wildcards.
    names : iterable of str
        Canonical names.
    owner : callable, optional
        Gives a second name by which each name is matched as well, as the module of a parameter.
    aliases : mapping of str to str, optional
        Further names, with the name that each stands for; matched only if equal to the selector.

    Returns
    -------
    list of str
        Names selected.

    Examples
    --------
    >>> select(["conv*", "re:fc[12]"], ["conv1", "bn1", "fc1"])
    ['conv1', 'fc1']
    """
    selectors = _selectors(selector)
    meant = {aliases[one] for one in selectors if one in aliases} if aliases else ()

    def chosen(name: str) -> bool:
        if name in selectors or name in meant or matches(selectors, name):
            return True
        return owner is not None and (owner(name) in selectors or matches(selectors, owner(name)))

    return [name for name in names if chosen(name)]


def known(name: str, names: Container[str], aliases: Callable[[], Mapping[str, str]]) -> str | None:
    """Return which of the names is meant by one, None if none is.

    Parameters
    ----------
    name : str
        A name, or one of the framework's, whose wrappers are removed.
    names : container of str
        Canonical names.
    aliases : callable
        Returns what else they are called; asked only where no name fits.

    Examples
    --------
    >>> known("module.fc", ["fc"], dict), known("b", ["a"], lambda: {"b": "a"})
    ('fc', 'a')
    """
    meant = readings(name)
    for one in meant:
        if one in names:
            return one
    others = aliases()
    return next((others[one] for one in meant if one in others), None)


def nearest_names(selector: Selector, names: Sequence[str], count: int = 3) -> list[str]:
    """Return the names most like a selector, for messages."""
    wanted = ", ".join(_selectors(selector)).removeprefix("re:").strip("*.?^$")
    near = difflib.get_close_matches(wanted, names, n=count, cutoff=0.3)
    return near or list(names[:count])


def nearest_steps(steps: Steps, step: int) -> list[int]:
    """Return the kept steps on either side of a step that was not kept, for messages."""
    position = int(np.searchsorted(steps, step))
    return [int(kept) for kept in steps[max(0, position - 1) : position + 1]]


def slice_steps(steps: Steps, label: slice) -> Steps:
    """Return the steps inside a slice by label.

    Parameters
    ----------
    steps : ndarray of int64, shape (n_kept,)
        Kept steps, ascending.
    label : slice
        Half open, in steps. With a stride k, those that are start + i·k (start defaults to 0).

    Returns
    -------
    ndarray of int64, shape (n_selected,)
        Steps selected.

    Raises
    ------
    SelectionError
        If the stride is not positive.

    Examples
    --------
    >>> slice_steps(np.array([0, 50, 100, 150]), slice(0, 150, 100))
    array([  0, 100])
    """
    start = 0 if label.start is None else int(label.start)
    chosen = steps[steps >= start]
    if label.stop is not None:
        chosen = chosen[chosen < int(label.stop)]
    if label.step is not None:
        if int(label.step) < 1:
            raise SelectionError(f"a slice of steps needs a positive stride; got {label.step}")
        chosen = chosen[(chosen - start) % int(label.step) == 0]
    return chosen
