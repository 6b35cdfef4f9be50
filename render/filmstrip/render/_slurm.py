"""SLURM: the only place that submits jobs, looks after them, and ends them.

dask-jobqueue writes the script and submits it; a job's workers then find the scheduler, which
runs beside the driver.
"""

# Most of Dask's functions have no types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filmstrip.render._dask import place_of, quiet, threads_of
from filmstrip.render._executors import Place
from filmstrip.render.errors import ExecutorError

if TYPE_CHECKING:
    from dask_jobqueue.slurm import SLURMCluster

__all__ = ["JobSpec", "script_of", "slurm"]

_ASK_EVERY: Final = 10.0  # seconds between two questions to SLURM
_SUBMIT_WITHIN: Final = 60.0
_LOGS: Final = "slurm"  # folder, below that of the pictures, of what jobs print


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What is asked of SLURM; None is left to Dask's configuration, or to the cluster.

    Without any such configuration a job has 1 CPU, 2 GB and 1 hour.

    Attributes
    ----------
    jobs : int
        How many jobs.
    partition, account, time, memory : str or None
        As `sbatch` takes them, of each job.
    cpus : int or None
        Processes of a job, each with a CPU and, unless told otherwise, 2 GB.
    arguments : tuple of str
        Further options of `sbatch`.
    setup : tuple of str
        Lines of shell before a worker starts.
    """

    jobs: int = 4
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    memory: str | None = None
    cpus: int | None = None
    arguments: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


def script_of(spec: JobSpec, out: Path) -> str:
    """Return the script of a job, with a placeholder for the scheduler's address.

    Raises
    ------
    ExecutorError
        If Dask's configuration of it is not usable.
    """
    _import_jobqueue()
    from dask_jobqueue.slurm import SLURMJob

    try:
        job = SLURMJob("tcp://scheduler:port", name="filmstrip", **_options(spec, out))
    except (ValueError, TypeError) as error:
        raise ExecutorError(f"Dask's configuration of jobqueue.slurm: {error}") from error
    return str(job.job_script())


@contextmanager
def slurm(spec: JobSpec, out: Path, tasks: int) -> Iterator[Place]:
    """Run in jobs of SLURM, which are cancelled at the end.

    Parameters
    ----------
    spec : JobSpec
    out : Path
        Folder of the pictures; what jobs print goes below it.
    tasks : int
        No more jobs than this are submitted.

    Raises
    ------
    ExecutorError
        If there is no SLURM, or it refuses the job.
    """
    _check(script_of(spec, out))
    import dask
    from dask_jobqueue.slurm import SLURMCluster
    from distributed import Client

    (out / _LOGS).mkdir(exist_ok=True)
    options = _options(spec, out)
    scheduler = {"dashboard": False, "dashboard_address": ":0"} | (
        dask.config.get("jobqueue.slurm.scheduler-options", None) or {}
    )
    with (
        quiet(),
        SLURMCluster(**options, scheduler_options=scheduler) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        jobs = _Jobs(cluster, max(1, min(spec.jobs, tasks)), out / _LOGS)
        place = place_of(client, jobs.count * int(options["processes"]))

        def check(drawn: int) -> str:
            return jobs.check(drawn, threads_of(client))

        yield Place(place.executor, place.workers, place.in_flight, check)


def _import_jobqueue() -> None:
    """Import dask-jobqueue, which makes Ctrl-C end the program that does with exit code 0."""
    before = signal.getsignal(signal.SIGINT)
    import dask_jobqueue  # noqa: F401

    signal.signal(signal.SIGINT, before)


def _options(spec: JobSpec, out: Path) -> dict[str, Any]:
    """Keywords of dask-jobqueue; what is left out it takes from Dask's configuration."""
    import dask

    def configured(key: str) -> Any:
        return dask.config.get(f"jobqueue.slurm.{key}", None)

    none = configured("cores") is None and configured("memory") is None
    cores = spec.cpus or configured("cores") or 1
    given = {
        "queue": spec.partition,
        "account": spec.account,
        "walltime": spec.time or ("01:00:00" if none else None),
        "memory": _with_unit(spec.memory) or configured("memory") or f"{2 * cores}GB",
    }
    directives = [*(configured("job-extra-directives") or ()), *spec.arguments]
    if configured("log-directory") is None:
        directives.append(f"--output={out.absolute() / _LOGS}/%j.log")
    prologue = [*(configured("job-script-prologue") or ()), *spec.setup]
    return {name: value for name, value in given.items() if value is not None} | {
        "cores": cores,
        "processes": (None if spec.cpus else configured("processes")) or cores,
        "job_name": "filmstrip",
        "job_extra_directives": directives,
        "job_script_prologue": prologue,
    }


def _with_unit(memory: str | None) -> str | None:
    """Write a memory as Dask reads it; a bare number is one of megabytes to sbatch."""
    return f"{memory}MB" if memory and memory.isdigit() else memory


def _check(script: str) -> None:
    """Ask SLURM whether it would take a job, without submitting it."""
    if shutil.which("sbatch") is None:
        raise ExecutorError("there is no sbatch here; run this where jobs are submitted from")
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        asked = _ask("sbatch", "--test-only", file.name)
    if asked.returncode:
        refusal = " ".join(asked.stderr.split()).removeprefix("allocation failure: ")
        raise ExecutorError(f"SLURM refuses the job: {refusal}")


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


class _Jobs:
    """The jobs of a cluster: replaces those that ended, as long as pictures come."""

    def __init__(self, cluster: SLURMCluster, count: int, logs: Path) -> None:
        self.count = count
        self._cluster, self._logs = cluster, logs
        self._began = self._asked = time.monotonic()
        self._drawn = 0  # pictures, when the last job was replaced
        self._note = ""
        cluster.scale(jobs=count)

    def check(self, drawn: int, workers: int) -> str:
        """Replace what ended; say what is waited for.

        Raises
        ------
        ExecutorError
            If SLURM took no job, or all have ended and nothing was drawn since the last one came.
        """
        if time.monotonic() - self._asked < _ASK_EVERY:
            return self._note
        self._asked = time.monotonic()
        known = {str(job.job_id): name for name, job in self._cluster.workers.items() if job.job_id}
        if not known and self._asked - self._began > _SUBMIT_WITHIN:
            raise ExecutorError("SLURM took no job; submit what --slurm-script prints to see why")
        states = self._states(known)
        if states is not None:
            self._replace([known[job] for job in known if job not in states], len(known), drawn)
            pending = workers == 0 and set(states.values()) == {"PENDING"}
            self._note = f"waiting for SLURM to start {self.count} jobs" if pending else ""
        return self._note

    def _states(self, jobs: dict[str, Any]) -> dict[str, str] | None:
        """States of the jobs that have not ended; None when SLURM does not answer."""
        asked = _ask("squeue", "--noheader", "--format=%i %T", f"--user={os.getuid()}")
        if asked.returncode:
            return None
        lines = (line.split() for line in asked.stdout.splitlines())
        return {words[0]: words[1] for words in lines if len(words) == 2 and words[0] in jobs}

    def _replace(self, names: list[Any], known: int, drawn: int) -> None:
        if not names:
            return
        if drawn > self._drawn:
            self._drawn = drawn
            self._cluster.sync(self._forget, names)
            self._cluster.scale(jobs=self.count)
        elif len(names) == known:
            raise ExecutorError(
                f"all jobs ended before they drew anything more; they printed into {self._logs}"
            )

    async def _forget(self, names: list[Any]) -> None:
        for name in names:
            await self._cluster.workers.pop(name).close()
