"""A life of a run on a disk that refuses, cuts short, or dies with its machine, at any one change.

So is what keeps runs: repair, copy and prune. ``python tests/store/faults.py`` tries every change
of every scenario; the tests try some.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from filmstrip.store import (
    FormatError,
    FrameSpec,
    KindNotFoundError,
    LayerNotFoundError,
    StoreError,
    StoreWriteError,
    _files,
    _group,
    _layout,
    _publish,
    bit_histogram,
    copy,
    create_run,
    open_run,
    prune,
    repair,
    summarize,
)
from filmstrip.store import check as findings_of
from filmstrip.store._recording import RunWriter

Fault = Literal["full", "quota", "cut", "kill"]
FAULTS: tuple[Fault, ...] = ("full", "quota", "cut", "kill")
CHANGES = ("pwrite", "truncate", "rename", "unlink", "remove_tree", "make_directory")
OTHERS = ("sync", "sync_directory", "open_or_make", "create", "replace")


AMENDED = "scalars, a name that came later"
SHARD = "activations/a/c.2.0.0"
"""The last shard of a layer, open when the process is killed."""


class Killed(BaseException):
    """Raised by every change after the last one, as none happens any more."""


class Disk:
    """Stands in front of the file system: its n-th change goes wrong; it counts all of them."""

    def __init__(self) -> None:
        self.count, self.at, self.fault, self.dead = 0, 0, "full", False
        self.seen: list[str] = []
        self._real = {name: getattr(_files, name) for name in (*CHANGES, *OTHERS)}

    def arm(self, at: int, fault: Fault) -> None:
        """Let the n-th change from now on, counted from 1, go wrong; 0 for none."""
        self.count, self.at, self.fault, self.dead, self.seen = 0, at, fault, False, []

    def __enter__(self) -> Disk:
        for name in CHANGES:
            setattr(_files, name, self._changing(name))
        for name in OTHERS:
            setattr(_files, name, self._living(self._real[name]))
        self._seconds, _publish.SECONDS = (
            _publish.SECONDS,
            1e6,
        )  # no timer makes a change of its own
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(_files, name, real)
        _publish.SECONDS = self._seconds

    def _living(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def living(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Killed
            return real(*args, **kwargs)

        return living

    def _changing(self, name: str) -> Callable[..., None]:
        real = self._real[name]

        def changing(*args: Any) -> None:
            if self.dead:
                raise Killed
            self.count += 1
            self.seen.append(name)
            if self.count != self.at:
                real(*args)
                return
            if self.fault == "kill":
                real(*args)
                self.dead = True
                raise Killed
            if self.fault == "cut" and name == "pwrite":
                fd, buffers, offset = args
                data = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
                real(fd, [data[: len(data) // 2]], offset)
            number = errno.EDQUOT if self.fault == "quota" else errno.ENOSPC
            raise OSError(number, os.strerror(number))

        return changing


@dataclass(frozen=True)
class Scenario:
    """What is recorded.

    Attributes
    ----------
    specs : dict
        Layers of activations.
    rows : int
        Steps that are there before anything goes wrong.
    steps : int
        Steps from there on; as many as may fail.
    """

    specs: Mapping[str, FrameSpec]
    compression: Literal["zstd", "lz4", "none"] | None = None
    rows: int = 0
    steps: int = 9
    shard_bytes: int = 3 * 5 * 700 * 4
    block_bytes: int = 1 << 13
    slots: int = 255
    fsync: bool = False


MIXED = {
    "a": FrameSpec((5, 700), "float32"),
    "b": FrameSpec((3,), "int16"),
    "c": FrameSpec((), "float64"),
}
LARGE = {"a": FrameSpec((3, 9000), "float32"), "c": FrameSpec((), "float32")}
# 255 slots of 4,000 bytes: a sealed index would lie over the live one, but for the spare room.
FULL = {"a": FrameSpec((1000,), "float32")}

SCENARIOS = {
    "mixed": Scenario(MIXED),
    "mixed-fsync": Scenario(MIXED, steps=4, fsync=True),
    "zstd": Scenario(LARGE, "zstd", shard_bytes=3 * 108_000, block_bytes=40_000),
    "lz4": Scenario(LARGE, "lz4", steps=4, shard_bytes=3 * 108_000, block_bytes=40_000),
    "raw": Scenario(LARGE, "none", steps=5, shard_bytes=2 * 108_000, block_bytes=40_000),
    "parts": Scenario(LARGE, "none", steps=5, block_bytes=40_000, slots=2),
    "full-shard": Scenario(FULL, "none", rows=252, steps=5, shard_bytes=64 << 20),
}


def frame(layer: str, spec: FrameSpec, step: int, attempt: int) -> np.ndarray:
    """Return what a layer holds: noise in one attempt, what compresses well in the next."""
    if attempt % 2 == 0:
        noise = np.random.default_rng([step, attempt, len(layer)]).normal(0, 99, spec.shape)
        return np.asarray(noise).astype(spec.dtype)
    return np.full(spec.shape, 100 * attempt + step % 100, spec.dtype)


def taken(layers: Mapping[str, FrameSpec], step: int) -> list[str]:
    """Return the layers that have a frame at a step."""
    return [name for number, name in enumerate(layers) if number != 1 or step % 3 != 1]


@dataclass
class Model:
    """What must be there, and what may be: a step whose fate nobody was told.

    Attributes
    ----------
    must : dict
        By group, the attempt in which a step was written, by step.
    may : dict
        The same, of steps that are there or not.
    """

    must: dict[str, dict[int, int]] = field(default_factory=dict)
    may: dict[str, dict[int, set[int]]] = field(default_factory=dict)
    alive: bool = False

    def begin(self, group: str, step: int, attempt: int) -> None:
        """Note that a row is being written."""
        self.may.setdefault(group, {}).setdefault(step, set()).add(attempt)

    def end(self, group: str, step: int, attempt: int, *, there: bool) -> None:
        """Note that it was acknowledged, or refused."""
        self.may[group].pop(step, None)
        if there:
            self.must.setdefault(group, {})[step] = attempt

    def taking_back(self, first: int) -> None:
        """Note that steps are being taken back."""
        for group, steps in self.must.items():
            for step in [step for step in steps if step >= first]:
                self.may.setdefault(group, {}).setdefault(step, set()).add(steps.pop(step))

    def taken_back(self, first: int) -> None:
        """Note that this is done."""
        for steps in self.may.values():
            for step in [step for step in steps if step >= first]:
                del steps[step]

    def settle(self, path: Path) -> None:
        """Ask the run once about the steps whose fate is open."""
        for group, may in self.may.items():
            there = open_run(path).group_steps(group).tolist() if group_exists(path, group) else []
            for step in set(may).intersection(there):
                self.must.setdefault(group, {})[step] = min(may[step])
            may.clear()


def group_exists(path: Path, group: str) -> bool:
    """Return whether a run has a group."""
    return group in open_run(path).groups()


class Life:
    """A run that is created, written, grown, closed, rewound, written again and closed."""

    def __init__(self, path: Path, scenario: Scenario, model: Model) -> None:
        self.path, self.scenario, self.model = path, scenario, model
        self.specs = dict(scenario.specs)
        self.run: RunWriter | None = None
        self.failures = 0

    def live(self) -> None:
        """Go through all of it; a refusal is taken as an adapter takes it."""
        rows, steps = self.scenario.rows, self.scenario.steps
        self.attach(0, None)
        self.write(range(rows, rows + steps), 0)
        self.close()
        first = rows + max(1, steps - 4)
        self.attach(1, first)
        self.write(range(first, first + 3), 1)
        self.close()

    def tried(self, act: Callable[[], Any]) -> bool:
        """Do something; return whether it was refused."""
        try:
            act()
        except StoreWriteError:
            self.failures += 1
            return False
        return True

    def attach(self, attempt: int, first: int | None) -> None:
        """Open the run, at the second try if need be."""

        def open_it() -> None:
            exists = (self.path / "zarr.json").exists()
            self.run = create_run(
                self.path,
                if_exists="resume" if exists else "auto",
                first_step=first,
                compression=self.scenario.compression,
                fsync=self.scenario.fsync,
            )

        if first is not None:
            self.model.taking_back(first)
        if not self.tried(open_it):
            open_it()
        self.model.alive = True
        if first is not None:
            self.model.taken_back(first)

    def row(self, group: str, step: int, attempt: int, write: Callable[[], Any]) -> bool:
        """Write a row and note what became of it."""
        self.model.begin(group, step, attempt)
        there = self.tried(write)
        if there or group != "scalars":  # whose row may be there, if what failed is to publish it
            self.model.end(group, step, attempt, there=there)
        return there

    def write(self, steps: range, attempt: int) -> None:
        """Append to all groups; a layer comes later, and a name."""
        run = self.run
        assert run is not None
        for number, step in enumerate(steps):
            if number == 2:
                self.specs["late"] = FrameSpec((2, 2), "float32")
            layers = self.specs
            self.row(
                "activations",
                step,
                attempt,
                lambda step=step, layers=layers: run.writer("activations", layers).append(  # type: ignore[misc]
                    step,
                    {
                        name: frame(name, layers[name], step, attempt)
                        for name in taken(layers, step)
                    },
                ),
            )
            if number % 2 == 0 and self.row(
                "scalars",
                step,
                attempt,
                lambda step=step: run.log(step, {"loss": loss(step, attempt)}),  # type: ignore[misc]
            ):
                name = f"name{step % 4}"
                self.row(
                    AMENDED,
                    step,
                    attempt,
                    lambda step=step, name=name: run.log(step, {name: loss(step, attempt)}),  # type: ignore[misc]
                )
                self.tried(lambda step=step: run.log(step, {"loss": loss(step, attempt)}))  # type: ignore[misc]
            if number % 3 == 0:
                self.row(
                    "statistics/activations",
                    step,
                    attempt,
                    lambda step=step: statistics(run, step, attempt),  # type: ignore[misc]
                )
            if number % 3 == 2:
                self.tried(run.publish)

    def close(self) -> None:
        """Close; what that fails to do is made up for by the next attach."""
        assert self.run is not None
        self.tried(self.run.close)

    def die(self) -> None:
        """Let go of the files as the kernel does of a killed process."""
        if self.run is not None:
            self.run._abandon_after_fork()


def loss(step: int, attempt: int) -> float:
    return step + attempt / 8


def described(step: int, attempt: int) -> np.ndarray:
    return frame("a", FrameSpec((50,), "float32"), step, attempt)


def statistics(run: RunWriter, step: int, attempt: int) -> None:
    values = described(step, attempt)
    run.statistics_writer("activations", ["a"]).append(
        step, summarize(values)[None], bit_histogram(values)[None]
    )


class WrongError(AssertionError):
    """Raised when a run is not what it must be."""


def check(path: Path, specs: Mapping[str, FrameSpec], model: Model) -> None:
    """Compare a run with what must be there, by our reader and by plain zarr-python."""
    import zarr

    run = open_run(path)
    plain: Any = zarr.open_group(path, mode="r")
    for group in {*model.must, *model.may} - {AMENDED}:
        must, may = model.must.get(group, {}), model.may.get(group, {})
        if group not in run.groups():
            if must:
                raise WrongError(f"{group} is not there")
            continue
        steps = run.group_steps(group).tolist()
        if missing := sorted(set(must) - set(steps)):
            raise WrongError(f"{group} lost steps {missing} of {sorted(must)}; has {steps}")
        if extra := sorted(set(steps) - set(must) - set(may)):
            raise WrongError(f"{group} has steps {extra} that nobody wrote; {steps}")
        committed = plain[group]["step"][:].tolist()
        if committed != sorted(set(committed)) or -1 in committed:
            raise WrongError(f"{group}/step is {committed} for others")
        if not committed:
            continue
        if set(committed) - set(must) - set(may):
            raise WrongError(f"{group}/step is {committed} for others and {steps} for us")
        attempts = {step: {must[step]} for step in must} | {s: set(may[s]) for s in may}
        _check_values(run, plain, group, specs, committed, attempts, set(may))
    for step in model.must.get(AMENDED, {}):
        if step not in run.scalars[f"name{step % 4}"].steps:
            raise WrongError(f"scalars/name{step % 4} lost step {step}")


def _check_values(
    run: Any,
    plain: Any,
    group: str,
    specs: Mapping[str, FrameSpec],
    committed: list[int],
    attempts: Mapping[int, set[int]],
    open_: set[int],
) -> None:
    def accept(got: Any, made: Callable[[int, int], Any], step: int, what: str) -> None:
        if not any(np.array_equal(got, made(step, n), equal_nan=True) for n in attempts[step]):
            raise WrongError(f"{group}/{what} is wrong at step {step}")

    if group == "activations":
        for name, spec in specs.items():
            if name not in run.activations:
                continue
            made = _maker(name, spec)
            strip = run.activations[name]
            kept = strip.steps.tolist()
            whole = strip.read() if kept else []
            for step, got in zip(kept, whole, strict=True):
                accept(got, made, step, name)
            for step in set(attempts) - set(kept) - open_:
                if name in taken(specs, step) and name != "late":
                    raise WrongError(f"{group}/{name} lost step {step}")
            if not kept and name not in plain[group]:  # added to the group, not yet to the root
                continue
            rows = plain[group][name][:]
            for row, step in enumerate(committed):
                if step in kept:
                    accept(rows[row], made, step, f"{name} of others")
                elif spec.shape and not _is_fill(rows[row]):
                    raise WrongError(f"{group}/{name} shows a ghost at step {step}")
    elif group == "scalars":
        for name in run.scalars:
            for step, got in zip(*map(np.ndarray.tolist, run.scalars[name]), strict=True):
                accept(got, loss, step, name)
        for step in set(attempts) - open_:
            if step not in run.scalars["loss"].steps:
                raise WrongError(f"scalars/loss lost step {step}")
        for name, array in plain[group].arrays():
            if name not in ("step", "wall_time", "samples"):
                for step, got in zip(committed, array[:].tolist(), strict=True):
                    if not np.isnan(got):
                        accept(got, loss, step, f"{name} of others")
    else:
        values, counts = plain[group]["values"][:], plain[group]["histogram"][:]
        for row, step in enumerate(committed):
            accept(values[row], lambda s, n: summarize(described(s, n))[None], step, "values")
            accept(counts[row], lambda s, n: bit_histogram(described(s, n))[None], step, "counts")


def _maker(name: str, spec: FrameSpec) -> Callable[[int, int], np.ndarray]:
    return lambda step, attempt: frame(name, spec, step, attempt)


def _is_fill(values: np.ndarray) -> bool:
    return bool(np.isnan(values).all() if values.dtype.kind == "f" else (values == 0).all())


@contextmanager
def small(scenario: Scenario) -> Iterator[None]:
    """Lower the constants, so that shards fill and arrays grow within a few steps."""
    lowered = [
        (_layout, "SHARD_BYTES", scenario.shard_bytes),
        (_layout, "BLOCK_BYTES", scenario.block_bytes),
        (_layout, "LARGEST_BLOCK", scenario.block_bytes),
        (_layout, "SLOTS", scenario.slots),
        (_layout, "COLUMN_ROWS", 4),
        (_group, "FIRST_CAPACITY", 4),
        (_publish, "SECONDS", 1e6),  # nothing is published at a time that no test chose
        (_publish, "LOOKS", 1e6),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in lowered]
    for module, name, value in lowered:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class Faults:
    """One scenario, whose every change can go wrong."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.template: Path | None = None
        self.model = Model()
        with small(scenario), Disk() as disk:
            if scenario.rows:
                self._prepare()
            disk.arm(0, "full")
            life = self._life(folder / "whole")
            life.live()
            self.seen = list(disk.seen)
        if life.failures:
            raise WrongError("it fails where nothing went wrong")
        with small(scenario):
            check(life.path, life.specs, life.model)
        shutil.rmtree(life.path)

    def _prepare(self) -> None:
        self.template = self.folder / "template"
        life = Life(self.template, self.scenario, self.model)
        life.attach(0, None)
        assert life.run is not None
        writer = life.run.writer("activations", life.specs)
        for step in range(self.scenario.rows):
            names = taken(life.specs, step)
            writer.append(step, {n: frame(n, life.specs[n], step, 0) for n in names})
            self.model.must.setdefault("activations", {})[step] = 0
        life.run.publish()
        life.die()

    def _life(self, path: Path) -> Life:
        if self.template is not None:
            shutil.copytree(self.template, path)
        must = {group: dict(steps) for group, steps in self.model.must.items()}
        return Life(path, self.scenario, Model(must, alive=self.template is not None))

    def try_one(self, at: int, fault: Fault) -> None:
        """Let one change go wrong, and hold the run to its word.

        Raises
        ------
        WrongError
            If it breaks it.
        """
        path = self.folder / f"{fault}-{at}"
        life = self._life(path)
        with small(self.scenario), Disk() as disk:
            disk.arm(at, fault)
            try:
                life.live()
            except Killed:
                life.die()
            except StoreError as error:
                raise WrongError(f"{type(error).__name__}: {error}") from error
            finally:
                disk.arm(0, "full")
            try:
                self._after(life)
            except StoreError as error:
                raise WrongError(f"afterwards, {type(error).__name__}: {error}") from error
            finally:
                if life.run is not None:
                    life.run.close()
        shutil.rmtree(path)

    def _after(self, life: Life) -> None:
        if life.failures > 1:
            raise WrongError(f"one refusal cost {life.failures} calls")
        if not life.model.alive and not (life.path / "zarr.json").exists():
            life.path.mkdir(exist_ok=True)
        else:
            check(life.path, life.specs, life.model)
            life.model.settle(life.path)
        life.run = None
        life.attach(2, None)
        step = 900
        life.write(range(step, step + 3), 2)
        life.close()
        life.run = None
        if life.failures > 1:
            raise WrongError("it fails after the disk was well again")
        check(life.path, life.specs, life.model)


KEEPING: dict[str, Callable[[Path, Path], object]] = {
    "repair": lambda run, _: repair(run),
    "set-aside": lambda run, _: repair(run, set_aside=True),
    "copy": copy,
    "copy-part": lambda run, to: copy(run, to, layers=["a", "late"], steps=slice(2, 8, 2)),
    "prune": lambda run, _: prune(run, kind="activations", keep_every=2),
    "prune-layers": lambda run, _: prune(run, kind="activations", layers=["a", "c"]),
}
"""What keeps a run, given its path and that of a copy."""

Told = dict[str, dict[int, bytes]]


def told(path: Path) -> Told:
    """Return all that a run tells its readers, by what it is and step; {} where there is none."""
    if not (path / "zarr.json").exists():
        return {}
    run, found = open_run(path), Told()
    for kind in set(run.kinds) - {"scalars"}:
        for layer in run.layers(kind):
            strip = run.strip(kind, layer)
            frames = found[f"{kind}/{layer}"] = {}
            for step in strip.steps.tolist():
                with suppress(FormatError):  # the shard that was damaged
                    frames[step] = strip.frame(step).tobytes()
    for name, series in run.scalars.items():
        pairs = zip(*series, strict=True)
        found[f"scalars/{name}"] = {int(step): value.tobytes() for step, value in pairs}
    if "statistics/activations" in run.groups():
        pairs = zip(*run.statistics("activations").table(), strict=True)
        found["statistics"] = {int(step): value.tobytes() for step, value in pairs}
    return found


def within(some: Told, more: Told) -> bool:
    """Return whether all of one thing is in another."""
    return all(steps.items() <= more.get(name, {}).items() for name, steps in some.items())


class KeepingFaults:
    """One act that keeps a run whose writer was killed, and whose every change can go wrong."""

    def __init__(self, name: str, folder: Path) -> None:
        self.act, self.folder, self.copies = KEEPING[name], folder, name.startswith("copy")
        self.scenario, self.template = SCENARIOS["mixed"], folder / "template"
        with small(self.scenario), Disk() as disk:
            life = Life(self.template, self.scenario, Model())
            life.attach(0, None)
            life.write(range(self.scenario.steps), 0)
            life.die()
            disk.arm(0, "full")
            (self.template / f"{SHARD}.77.partial").write_bytes(b"half")
            if name == "set-aside":
                raw = bytearray((self.template / SHARD).read_bytes())
                raw[-300:] = bytes(300)
                (self.template / SHARD).write_bytes(raw)
            self.before = told(self.template)
            run, target = self._run("whole")
            disk.arm(0, "full")
            self.act(run, target)
            self.seen = list(disk.seen)
            self.after = told(target if self.copies else run)
            self._finished(run, target)
        if not within(self.after, self.before):
            raise WrongError("it makes something up")

    def _run(self, name: str) -> tuple[Path, Path]:
        path = self.folder / name / "run.zarr"
        shutil.copytree(self.template, path)
        return path, self.folder / name / "copy.zarr"

    def _finished(self, run: Path, target: Path) -> None:
        """Hold what was done to its word."""
        result = target if self.copies else run
        if told(result) != self.after:
            raise WrongError("what is there when all is done is not what it must be")
        if not self.copies:
            repair(run)
        if wrong := [str(one) for one in findings_of(result) if one.severity != "note"]:
            raise WrongError(f"afterwards, {wrong[0]}")
        asides = list(run.rglob("*.damaged"))
        if any(aside.read_bytes() != (self.template / SHARD).read_bytes() for aside in asides):
            raise WrongError("what was set aside is not what it was")
        if len(asides) != (self.before.get("activations/a") != self._whole()):
            raise WrongError(f"{len(asides)} shards were set aside")
        shutil.rmtree(run.parent)

    def _whole(self) -> dict[int, bytes]:
        spec = self.scenario.specs["a"]
        return {step: frame("a", spec, step, 0).tobytes() for step in range(self.scenario.steps)}

    def try_one(self, at: int, fault: Fault) -> None:
        """Let one change go wrong, and see that nothing is lost, and that a second try does it.

        Raises
        ------
        WrongError
            If not.
        """
        run, target = self._run(f"{fault}-{at}")
        with small(self.scenario), Disk() as disk:
            disk.arm(at, fault)
            try:
                self.act(run, target)
            except (Killed, StoreWriteError):
                pass
            except StoreError as error:
                raise WrongError(f"{type(error).__name__}: {error}") from error
            finally:
                disk.arm(0, "full")
            try:
                there = told(run)
                most = there if self.copies else self.after
                if not within(there, self.before) or not within(most, there):
                    raise WrongError("the run lost something, or makes something up")
                if self.copies and not (within(told(target), self.after) and there == self.before):
                    raise WrongError("the copy makes something up, or the run was changed")
                with suppress(LayerNotFoundError, KindNotFoundError):  # pruned already
                    self.act(run, target)
                self._finished(run, target)
            except StoreError as error:
                raise WrongError(f"afterwards, {type(error).__name__}: {error}") from error


def faults_of(name: str, folder: Path) -> Faults | KeepingFaults:
    """Return a scenario by its name."""
    if name in KEEPING:
        return KeepingFaults(name, folder)
    return Faults(SCENARIOS[name], folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=[*SCENARIOS, *KEEPING], action="append")
    parser.add_argument("--fault", choices=FAULTS, action="append")
    parser.add_argument("--at", type=int)
    parser.add_argument("--stride", type=int, default=1, help="try every n-th change")
    arguments = parser.parse_args()
    bad = 0
    print(f"{'scenario':12} {'fault':6} {'changes':>7} {'tried':>6} {'bad':>4} {'seconds':>8}")
    for name in arguments.scenario or [*SCENARIOS, *KEEPING]:
        with tempfile.TemporaryDirectory() as folder:
            faults = faults_of(name, Path(folder))
            for fault in arguments.fault or FAULTS:
                began, wrong, tried = time.monotonic(), [], 0
                points = range(1, len(faults.seen) + 1, arguments.stride)
                for at in [arguments.at] if arguments.at else points:
                    if fault == "cut" and faults.seen[at - 1] != "pwrite":
                        continue
                    tried += 1
                    try:
                        faults.try_one(at, fault)
                    except WrongError as error:
                        wrong.append(f"  {at} ({faults.seen[at - 1]}): {error}")
                        if arguments.at:
                            raise
                bad += len(wrong)
                seconds = time.monotonic() - began
                print(
                    f"{name:12} {fault:6} {len(faults.seen):7} {tried:6} {len(wrong):4} "
                    f"{seconds:8.1f}",
                    *wrong[:20],
                    sep="\n" if wrong else "",
                    flush=True,
                )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
