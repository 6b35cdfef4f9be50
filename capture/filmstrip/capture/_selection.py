"""Selection: the only place that picks the layers and parameters that selectors name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import PlanError
from filmstrip.store._select import TYPE, matches, nearest_names


class Known(Protocol):
    """A layer or a parameter."""

    @property
    def name(self) -> str:
        """Its canonical name."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""

    @property
    def types(self) -> tuple[str, ...]:
        """Types of the layer, or of the one that holds the parameter; see `types_of`."""


L = TypeVar("L", bound=Known)
V = TypeVar("V", bound=Known)


def types_of(module: object, *plain: type) -> tuple[str, ...]:
    """Return the names of a module's class and its bases, but for what every plain module is.

    Examples
    --------
    >>> types_of(True), types_of(True, int)
    (('bool', 'int'), ('bool',))
    """
    common = {object, *(base for kind in plain for base in kind.__mro__)}
    return tuple(kind.__name__ for kind in type(module).__mro__ if kind not in common)


def choose(
    leaves: Sequence[L],
    containers: Sequence[L],
    variables: Sequence[V],
    settings: Settings,
    *,
    model: str,
) -> tuple[tuple[L, ...], tuple[V, ...]]:
    """Return the layers and parameters that the settings pick.

    Parameters
    ----------
    leaves, containers : sequence
        Layers; wildcards do not match a container, whether of names or of types.
    variables : sequence
        Parameters, matched by their own names or by those of the layers that own them, or by the
        types of these.
    settings : Settings
        Selectors and kinds.
    model : str
        What the model is, for messages.

    Raises
    ------
    PlanError
        If a selector matches nothing, and then it names the nearest layers, or the types that there
        are; or if nothing is left.
    """
    _check_types(leaves, containers, variables, settings, model=model)
    _check_names(settings.layers, [*leaves, *containers, *variables])

    def chosen_layer(layer: L, leaf: bool, selectors: Sequence[str]) -> bool:
        names = (layer.name, *layer.aliases)
        return any(_takes(selector, names, layer.types, wild=leaf) for selector in selectors)

    def chosen_variable(variable: V, selectors: Sequence[str]) -> bool:
        names = (variable.name, *variable.aliases)
        paths = {*names, *(name.rpartition(".")[0] for name in names)}
        return any(_takes(selector, paths, variable.types) for selector in selectors)

    picked = tuple(
        layer
        for leaf, group in ((True, leaves), (False, containers))
        for layer in group
        if "activations" in settings.kinds
        and chosen_layer(layer, leaf, settings.layers)
        and not chosen_layer(layer, leaf, settings.exclude)
    )
    kept = tuple(
        variable
        for variable in variables
        if {"weights", "gradients"} & set(settings.kinds)
        and chosen_variable(variable, settings.layers)
        and not chosen_variable(variable, settings.exclude)
    )
    if not picked and not kept and "inputs" not in settings.kinds:
        raise PlanError(
            f"layers={_said(settings.layers)} with exclude={_said(settings.exclude)} leaves no "
            f"{' or '.join(settings.kinds)} of this {model} to take"
        )
    return picked, kept


def _said(selectors: Sequence[str]) -> str:
    return repr(selectors[0] if len(selectors) == 1 else list(selectors))


def _takes(
    selector: str, names: Collection[str], types: Collection[str], *, wild: bool = True
) -> bool:
    """Return whether a selector takes what has these names and types; `wild`: by wildcards, too."""
    if selector.startswith(TYPE):
        wanted = selector.removeprefix(TYPE)
        return wanted in types or (wild and any(fnmatchcase(kind, wanted) for kind in types))
    return selector in names or (wild and any(matches(selector, name) for name in names))


def _check_types(
    leaves: Sequence[Known],
    containers: Sequence[Known],
    variables: Sequence[Known],
    settings: Settings,
    *,
    model: str,
) -> None:
    there = [*leaves, *variables, *containers]
    for selector in (*settings.layers, *settings.exclude):
        if selector.startswith(TYPE) and not any(one.types for one in there):
            raise PlanError(
                f"{selector!r} asks for a type, and types are known only of modules that are "
                f"captured; this {model} has none: select by names"
            )
    for selector in settings.layers:
        if selector.startswith(TYPE) and not any(
            _takes(selector, (), one.types, wild=wild)
            for wild, group in ((True, (*leaves, *variables)), (False, containers))
            for one in group
        ):
            kinds = dict.fromkeys(one.types[0] for one in there if one.types)
            hint = f"types of this {model}: {', '.join(kinds)}"
            for kind in (kind for one in containers for kind in one.types):
                if _takes(selector, (), (kind,)):
                    hint = f"wildcards take no container, as '{TYPE}{kind}' would"
            raise PlanError(f"no layer matches {selector!r}; {hint}")


def _check_names(selectors: Sequence[str], there: Sequence[Known]) -> None:
    names = [one.name for one in there]
    aliases = [alias for one in there for alias in one.aliases]
    for selector in selectors:
        if not selector.startswith(TYPE) and not _takes(selector, (*names, *aliases), ()):
            near = nearest_names(selector, [name for name in names if name])
            raise PlanError(f"no layer matches {selector!r}; nearest: {', '.join(near) or 'none'}")
