"""Plans: the only place that turns mappings and TOML files into what to take, and when."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

from filmstrip.capture._keywords import READERS, Selectors
from filmstrip.capture.errors import PlanError

PlanLike: TypeAlias = "Plan | Mapping[str, object] | str | PathLike[str]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to take of which layers, and when; whatever is None is left to the code.

    Parameters
    ----------
    every : int, mapping or ``"epoch"``, optional
        Steps between captures; or one interval each for statistics, histograms and frames, of which
        those not named are not taken.
    start, stop : int, optional
        Window of steps, half open.
    steps : collection of int, optional
        Take exactly these steps.
    kinds : sequence of str, optional
        Of activations, weights, gradients.
    layers, exclude : str or class or sequence of these, optional
        Selectors of layers to take, and to leave out; a class is kept as its name behind ``type:``.
    statistics, histograms, frames : bool, optional
        Which tiers to take. Statistics are taken with histograms in any case.
    samples : int, optional
        Leading samples of the batch kept in a frame.
    micro_batches, replicas : str, optional
        ``"first"`` or ``"all"``.
    phases : sequence of str, optional
        Of train, eval.
    max_capture_bytes, max_run_bytes : int or str, optional
        Bytes of frames a capture may hold, and of a whole run.
    min_free : int, float or str, optional
        Bytes, or a share of the disk, that stays free.
    max_overhead : float, optional
        Share of the training time that capture may take.
    on_pressure : str, optional
        ``"drop"``, ``"block"`` or ``"auto"``.
    if_exists : str, optional
        ``"auto"``, ``"resume"``, ``"fail"``, ``"new"`` or ``"overwrite"``.
    dtype : str, optional
        dtype of floating frames: float16, bfloat16 or float32.
    compression : str, optional
        ``"zstd"``, ``"lz4"`` or ``"none"``.
    fsync : bool, optional
        Whether commits survive a power loss.

    Raises
    ------
    PlanError
        If a value cannot be used.

    Examples
    --------
    >>> Plan(every=100, layers=["conv*"]).said()
    {'every': 100, 'layers': ('conv*',)}
    """

    every: int | Mapping[str, int] | str | None = None
    start: int | None = None
    stop: int | None = None
    steps: Collection[int] | None = None
    kinds: Sequence[str] | None = None
    layers: Selectors | None = None
    exclude: Selectors | None = None
    statistics: bool | None = None
    histograms: bool | None = None
    frames: bool | None = None
    samples: int | None = None
    micro_batches: str | None = None
    phases: Sequence[str] | None = None
    replicas: str | None = None
    max_capture_bytes: int | str | None = None
    max_run_bytes: int | str | None = None
    min_free: int | float | str | None = None
    max_overhead: float | None = None
    on_pressure: str | None = None
    if_exists: str | None = None
    dtype: str | None = None
    compression: str | None = None
    fsync: bool | None = None

    def __post_init__(self) -> None:
        for keyword, read in READERS.items():
            value = getattr(self, keyword)
            if value is not None:
                object.__setattr__(self, keyword, read(keyword, value))

    def said(self) -> dict[str, object]:
        """Return the keywords that the plan decides, by name."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }

    @classmethod
    def read(cls, source: PlanLike) -> Plan:
        """Return a plan as it is, or from a mapping or a TOML file.

        Parameters
        ----------
        source : Plan, mapping, str or path
            Text is the path of a TOML file; its top level, or its table ``capture``, holds the
            keywords.

        Returns
        -------
        Plan
            The plan.

        Raises
        ------
        PlanError
            If the file cannot be read, a keyword is unknown, or a value cannot be used.

        Examples
        --------
        >>> Plan.read({"every": 50}).every
        50
        """
        if isinstance(source, Plan):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(source)
        if not isinstance(source, str | PathLike):
            raise PlanError(f"plan={source!r} is not a Plan, a mapping or the path of a TOML file")
        return cls._of_file(fspath(source))

    @classmethod
    def from_dict(cls, keywords: Mapping[str, object]) -> Plan:
        """Return a plan from keywords by name, as a configuration file's reader gives them.

        Parameters
        ----------
        keywords : mapping of str to object
            Any of the keywords; None leaves one undecided.

        Returns
        -------
        Plan
            The plan.

        Raises
        ------
        PlanError
            If a keyword is unknown, or a value cannot be used.

        Examples
        --------
        >>> Plan.from_dict({"every": 50, "layers": "conv*"}).layers
        ('conv*',)
        """
        return cls._of_mapping(keywords, "the plan")

    @classmethod
    def _of_file(cls, path: str) -> Plan:
        import tomllib  # as difflib below, seldom needed, and slow to import

        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"the plan {path} cannot be read: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PlanError(f"the plan {path} is not TOML: {error}") from error
        inner = table.get("capture", table)
        if not isinstance(inner, dict):
            raise PlanError(f"'capture' in the plan {path} is not a table of keywords")
        return cls._of_mapping(inner, f"the plan {path}")

    @classmethod
    def _of_mapping(cls, values: Mapping[str, object], where: str) -> Plan:
        for keyword in values:
            if keyword not in READERS:
                import difflib

                near = difflib.get_close_matches(str(keyword), READERS, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"it may hold {', '.join(READERS)}"
                raise PlanError(f"{where} has the unknown keyword {keyword!r}; {hint}")
        plan = cls()
        for keyword, value in values.items():
            if value is not None:
                object.__setattr__(plan, keyword, READERS[keyword](keyword, value))
        return plan
