"""Options: the only place for those that every command shares that draws a run's pictures.

`with_options` puts the fields of `Options` behind a command's own parameters, where typer finds
them, and hands them to the command as one value. Nothing heavy is imported here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from filmstrip.render._batch import Part
    from filmstrip.render._executors import Place
    from filmstrip.render._slurm import JobSpec

__all__ = ["Options", "with_options"]

_C = TypeVar("_C", bound=Callable[..., Any])
_WHERE = "Where it is drawn (by default: threads of this process)"
_SIZE = r"[0-9]+(\.[0-9]+)? ?([KMGT]i?B?)?"
_JOBS = "SLURM jobs, with --slurm"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes that draws, as typer reads it."""

    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the pictures. By default beside the run."),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be drawn.")] = False
    force: Annotated[bool, typer.Option("--force", help="Draw also what is done already.")] = False
    keep: Annotated[
        bool, typer.Option("--keep", help="Skip whatever exists, even when the run has gone on.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest of this command.")] = (
        False
    )
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Threads, or processes. By default the CPUs of this process.",
            rich_help_panel=_WHERE,
        ),
    ] = None
    processes: Annotated[
        bool,
        typer.Option(
            "--processes",
            help="Processes: faster for many pictures, two seconds to start.",
            rich_help_panel=_WHERE,
        ),
    ] = False
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Workers of a Dask scheduler that is there, as tcp://host:8786.",
            rich_help_panel=_WHERE,
        ),
    ] = None
    slurm: Annotated[
        bool,
        typer.Option(
            "--slurm",
            help="Jobs of SLURM, submitted here and cancelled at the end.",
            rich_help_panel=_WHERE,
        ),
    ] = False
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Draw only part I of N, so that N commands anywhere draw everything; "
            "array: the part of this task of `sbatch --array`.",
            rich_help_panel=_WHERE,
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many jobs. 4.", rich_help_panel=_JOBS)
    ] = None
    partition: Annotated[
        str | None, typer.Option(help="Partition of the jobs.", rich_help_panel=_JOBS)
    ] = None
    account: Annotated[
        str | None, typer.Option(help="Account that is charged.", rich_help_panel=_JOBS)
    ] = None
    time: Annotated[
        str | None,
        typer.Option(help="Time limit of a job, as 01:00:00, the default.", rich_help_panel=_JOBS),
    ] = None
    mem: Annotated[
        str | None, typer.Option(help="Memory of a job. 2GB a CPU.", rich_help_panel=_JOBS)
    ] = None
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs of a job, a process each. 1.", rich_help_panel=_JOBS),
    ] = None
    slurm_arg: Annotated[
        list[str] | None,
        typer.Option(
            help="Another option of sbatch, as --slurm-arg=--qos=low. May be repeated.",
            rich_help_panel=_JOBS,
        ),
    ] = None
    setup: Annotated[
        list[str] | None,
        typer.Option(
            help="Line of shell at the start of a job, as 'module load python'. May be repeated.",
            rich_help_panel=_JOBS,
        ),
    ] = None
    slurm_script: Annotated[
        bool,
        typer.Option(
            "--slurm-script",
            help="Print the script of a job; draw and submit nothing.",
            rich_help_panel=_JOBS,
        ),
    ] = False

    def check(self) -> None:
        """Refuse what excludes each other.

        Raises
        ------
        typer.BadParameter
            Naming the options.
        """
        if self.force and self.keep:
            raise typer.BadParameter("--force and --keep exclude each other")
        places = {
            "--processes": self.processes,
            "--scheduler": self.scheduler,
            "--slurm": self.slurm,
        }
        chosen = [option for option, value in places.items() if value]
        if len(chosen) > 1:
            raise typer.BadParameter(f"{' and '.join(chosen)} exclude each other")
        if self.jobs is not None and (self.scheduler or self.slurm):
            raise typer.BadParameter(f"--jobs is for this machine; {chosen[0]} has its own workers")
        if self.mem is not None and not re.fullmatch(_SIZE, self.mem, re.IGNORECASE):
            raise typer.BadParameter(f"--mem {self.mem!r} is not a size, such as 4GB")
        if not self.slurm:
            for name, hint in _hints().items():
                if hint.__metadata__[0].rich_help_panel == _JOBS and getattr(self, name):
                    option = f"--{name.replace('_', '-')}"
                    raise typer.BadParameter(f"{option} is about SLURM jobs; add --slurm")

    @property
    def existing(self) -> Literal["digest", "keep", "force"]:
        """What makes a file done."""
        return "force" if self.force else "keep" if self.keep else "digest"

    def read_part(self) -> Part | None:
        """Return which part is drawn, None for all.

        Raises
        ------
        SpecError
            If it is not I/N.
        """
        from filmstrip.render._batch import Part

        return None if self.part is None else Part.read(self.part)

    def job_spec(self) -> JobSpec:
        """Return what is asked of SLURM."""
        from filmstrip.render._slurm import JobSpec

        return JobSpec(
            jobs=self.workers or 4,
            partition=self.partition,
            account=self.account,
            time=self.time,
            memory=self.mem,
            cpus=self.cpus,
            arguments=tuple(self.slurm_arg or ()),
            setup=tuple(self.setup or ()),
        )

    def place(self, out: Path, pictures: int) -> AbstractContextManager[Place]:
        """Return where so many pictures are drawn."""
        from filmstrip.render._executors import processes, threads

        if not pictures:
            return threads(1)
        if self.processes:
            return processes(self.jobs)
        if self.scheduler:
            from filmstrip.render._dask import scheduler

            return scheduler(self.scheduler)
        if self.slurm:
            from filmstrip.render._slurm import slurm

            return slurm(self.job_spec(), out, pictures)
        return threads(self.jobs)


def _hints() -> dict[str, Any]:
    return get_type_hints(Options, include_extras=True)


def with_options(command: _C) -> _C:
    """Replace the parameters of a command that are dataclasses, as `Options`, by their fields."""
    own = inspect.signature(command, eval_str=True)
    groups = {
        p.name: p.annotation
        for p in own.parameters.values()
        if isinstance(p.annotation, type) and is_dataclass(p.annotation)
    }
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(group, name),
            annotation=hint,
        )
        for group in groups.values()
        for name, hint in get_type_hints(group, include_extras=True).items()
    ]

    @wraps(command)
    def called(**words: Any) -> Any:
        for parameter, group in groups.items():
            given = group(**{field.name: words.pop(field.name) for field in fields(group)})
            if isinstance(given, Options):
                given.check()
            words[parameter] = given
        return command(**words)

    kept = [p for p in own.parameters.values() if p.name not in groups]
    called.__signature__ = own.replace(parameters=[*kept, *shared])  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in (*kept, *shared)}
    return called  # type: ignore[return-value]
