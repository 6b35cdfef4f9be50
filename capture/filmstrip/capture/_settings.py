"""Settings: the only place that decides which of several wishes for one keyword counts.

Ceilings > command line > environment > plan > code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike, fspath
from typing import cast

from filmstrip.capture._keywords import READERS, read_flag
from filmstrip.capture._plan import Plan, PlanLike
from filmstrip.capture._schedule import Schedule, Tiers, schedule_of, thinned
from filmstrip.capture._size import parse_size
from filmstrip.capture.errors import PlanError

_OFF = frozenset({"off", "0", "false", "no"})
# These may be left unsaid, and then mean "no limit" or "as it comes".
_OPTIONAL = frozenset({"stop", "steps", "max_overhead", "dtype", "compression"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that is decided before a model is looked at; see `Plan` for the words."""

    run: str
    dry_run: bool
    metadata: Mapping[str, object]
    every: int | Mapping[str, int] | str
    start: int
    stop: int | None
    steps: frozenset[int] | None
    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    exclude: tuple[str, ...]
    statistics: bool
    histograms: bool
    frames: bool
    samples: int
    micro_batches: str
    phases: tuple[str, ...]
    replicas: str
    max_capture_bytes: int
    max_run_bytes: int
    min_free: int | float
    max_overhead: float | None
    on_pressure: str
    if_exists: str
    dtype: str | None
    compression: str | None
    fsync: bool

    @property
    def wanted(self) -> Tiers:
        """The tiers that are switched on."""
        return Tiers(self.frames, self.statistics, self.histograms)

    @property
    def schedule(self) -> Schedule:
        """When each tier is due."""
        return schedule_of(
            self.every, wanted=self.wanted, start=self.start, stop=self.stop, steps=self.steps
        )

    def sparing(self, least: int) -> Settings:
        """Return settings whose statistics and histograms are due every `least` steps at most.

        A list of steps is left as it is.
        """
        every = thinned(self.every, wanted=self.wanted, least=least)
        return self if every is self.every else replace(self, every=every)

    def plan(self) -> dict[str, object]:
        """Return what the store keeps of the plan: plain values, by keyword."""
        said = {keyword: getattr(self, keyword) for keyword in READERS}
        return cast("dict[str, object]", json.loads(json.dumps(said, default=sorted)))


def switched_off(environment: Mapping[str, str]) -> bool:
    """Return whether the environment forbids capture.

    Examples
    --------
    >>> switched_off({"FILMSTRIP": "off"}), switched_off({})
    (True, False)
    """
    return environment.get("FILMSTRIP", "").strip().lower() in _OFF


def said_by_code(caller: str, keywords: Mapping[str, object]) -> dict[str, object]:
    """Return a value for every keyword, the default where the code says none.

    Raises
    ------
    TypeError
        If a keyword is unknown.
    """
    if unknown := sorted(set(keywords) - set(DEFAULTS)):
        raise TypeError(f"{caller}() got an unexpected keyword argument {unknown[0]!r}")
    return {**DEFAULTS, **keywords}


def settle(
    code: Mapping[str, object],
    *,
    plan: PlanLike | None = None,
    environment: Mapping[str, str],
    command: Mapping[str, object],
) -> Settings:
    """Return the settings that follow from everybody's wishes.

    Parameters
    ----------
    code : mapping
        A value for every field of `Settings`; ``enabled`` is the adapter's to look at.
    plan : Plan, mapping or path, optional
        Beats the code.
    environment : mapping of str to str
        ``FILMSTRIP_RUN`` and ``FILMSTRIP_EVERY`` beat the plan; ``FILMSTRIP=off`` and
        ``FILMSTRIP_MAX_RUN_BYTES`` are ceilings.
    command : mapping
        What the command line says; beats the environment.

    Returns
    -------
    Settings
        Complete and checked.

    Raises
    ------
    PlanError
        If a value cannot be used.

    Examples
    --------
    >>> settle(DEFAULTS, environment={"FILMSTRIP_EVERY": "7"}, command={}).every
    7
    """
    values = dict(code)
    if plan is not None:
        values |= Plan.read(plan).said()
    if said := environment.get("FILMSTRIP_RUN", "").strip():
        values["run"] = said
    if said := environment.get("FILMSTRIP_EVERY", "").strip():
        values["every"] = READERS["every"]("FILMSTRIP_EVERY", said)
    values |= command
    values |= {
        keyword: read(keyword, values[keyword])
        for keyword, read in READERS.items()
        if values[keyword] is not None or keyword not in _OPTIONAL
    }
    if values["stop"] is not None and cast("int", values["stop"]) <= cast("int", values["start"]):
        raise PlanError(
            f"stop={values['stop']} is not behind start={values['start']}; no step is due"
        )
    run, metadata = values["run"], values["metadata"]
    if not isinstance(run, str | PathLike) or not fspath(run):
        raise PlanError(f"run={run!r} is not a path; write one such as 'run.zarr'")
    if "://" in fspath(run) or "\0" in fspath(run):
        raise PlanError(f"run={run!r} is not a local path, and only to such a one runs are written")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise PlanError(f"metadata={metadata!r} is not a mapping, such as {{'seed': 1}}")
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PlanError(f"metadata cannot be written as JSON: {error}") from error
    values["run"], values["metadata"] = str(fspath(run)), dict(metadata or {})
    values["dry_run"] = read_flag("dry_run", values["dry_run"])
    if ceiling := environment.get("FILMSTRIP_MAX_RUN_BYTES", "").strip():
        limit = parse_size("FILMSTRIP_MAX_RUN_BYTES", ceiling)
        values["max_run_bytes"] = min(cast("int", values["max_run_bytes"]), limit)
    # The readers above gave each field its type.
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})  # type: ignore[arg-type]


DEFAULTS: Mapping[str, object] = {
    "run": "run.zarr",
    "enabled": None,
    "dry_run": False,
    "metadata": None,
    "every": 100,
    "start": 0,
    "stop": None,
    "steps": None,
    "kinds": ("activations", "weights", "gradients"),
    "layers": "*",
    "exclude": (),
    "statistics": True,
    "histograms": True,
    "frames": True,
    "samples": 1,
    "micro_batches": "first",
    "phases": ("train",),
    "replicas": "first",
    "max_capture_bytes": "64MB",
    "max_run_bytes": "20GB",
    "min_free": "5%",
    "max_overhead": None,
    "on_pressure": "auto",
    "if_exists": "auto",
    "dtype": None,
    "compression": None,
    "fsync": False,
}
"""The keywords' defaults, where nobody says anything."""
