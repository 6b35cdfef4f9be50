"""Selection: the only place that picks the layers and parameters that selectors name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import PlanError
from filmstrip.store._select import matches, nearest_names


class Known(Protocol):
    """A layer or a parameter."""

    @property
    def name(self) -> str:
        """Its canonical name."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""


L = TypeVar("L", bound=Known)
V = TypeVar("V", bound=Known)


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
        Layers; wildcards do not match a container.
    variables : sequence
        Parameters, matched by their own names or by those of the layers that own them.
    settings : Settings
        Selectors and kinds.
    model : str
        What the model is, for messages.

    Raises
    ------
    PlanError
        If a selector matches nothing, and then it names the nearest layers; or if nothing is left.
    """
    _check(settings.layers, [*leaves, *containers, *variables])

    def chosen_layer(layer: L, leaf: bool, selectors: Sequence[str]) -> bool:
        names = (layer.name, *layer.aliases)
        return any(name in selectors or (leaf and matches(selectors, name)) for name in names)

    def chosen_variable(variable: V, selectors: Sequence[str]) -> bool:
        names = (variable.name, *variable.aliases)
        paths = {*names, *(name.rpartition(".")[0] for name in names)}
        return any(path in selectors or matches(selectors, path) for path in paths)

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


def _check(selectors: Sequence[str], there: Sequence[Known]) -> None:
    names = [one.name for one in there]
    aliases = [alias for one in there for alias in one.aliases]
    for selector in selectors:
        if not any(name == selector or matches(selector, name) for name in (*names, *aliases)):
            near = nearest_names(selector, [name for name in names if name])
            raise PlanError(f"no layer matches {selector!r}; nearest: {', '.join(near) or 'none'}")
