"""Kill writers at random instants, with readers of two kinds looking on, and count what is wrong.

``python tests/store/kills.py`` kills one writer many times, then one of four; the tests do it less
often. Every writer is a process of its own with a store of its own, as the ranks of a job have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from filmstrip.store import (
    FrameSpec,
    LayerNotFoundError,
    _group,
    _layout,
    _publish,
    bit_histogram,
    create_run,
    open_run,
    summarize,
)

ACTIVATIONS = {
    "wide": FrameSpec((4, 3000), "float32"),  # two blocks, compressed
    "small": FrameSpec((33,), "float16"),
    "number": FrameSpec((), "float64"),
}
WEIGHTS = {"w": FrameSpec((1000,), "float32")}
LAYERS = {"activations": ACTIVATIONS, "weights": WEIGHTS}
ALWAYS = {"activations": "number", "weights": "w"}
"""Layers that have a frame at every step."""
SECONDS_TO_START = 60


def frame(layer: str, spec: FrameSpec, step: int, rank: int) -> np.ndarray:
    """Return what a layer holds at a step; every value tells step, rank and place."""
    place = np.arange(max(1, int(np.prod(spec.shape)))) % 7
    values = (place + len(layer) + rank * 8 + (step % 191) * 8).reshape(spec.shape)
    return values.astype(spec.dtype)


def named(layer: str, rank: int) -> str:
    """Return the name of a layer; of a pipeline's, a rank has some and no others."""
    return f"stage{rank}.{layer}"


def has_frame(layer: str, step: int) -> bool:
    """Return whether a layer has a frame at a step."""
    return layer != "small" or step % 3 != 1


def described(step: int, rank: int) -> np.ndarray:
    return frame("w", WEIGHTS["w"], step, rank)


def lower_constants() -> None:
    """Let shards fill, arrays grow and rows be published every few rows."""
    _layout.SHARD_BYTES, _layout.BLOCK_BYTES, _layout.COLUMN_ROWS = 250_000, 30_000, 64
    setattr(_group, "FIRST_CAPACITY", 32)  # noqa: B010 — it belongs to another module
    _publish.SECONDS = 0.03


def store_of(path: Path, rank: int) -> Path:
    """Return where a rank's store lies."""
    return path / "ranks" / f"{rank:04d}" if rank else path


def write(path: Path, rank: int, world: int, first: int, tell: Callable[[int], None]) -> None:
    """Write for ever, and tell of every step that is acknowledged; of -1 when attached."""
    lower_constants()
    exists = (store_of(path, rank) / "zarr.json").exists()
    run = create_run(
        path,
        if_exists="resume" if exists else "auto",
        first_step=first,
        rank=rank,
        world_size=world,
    )
    tell(-1)
    writers = {
        kind: run.writer(kind, {named(layer, rank): spec for layer, spec in layers.items()})
        for kind, layers in LAYERS.items()
    }
    statistics = run.statistics_writer("weights", [named("w", rank)])
    for step in range(first, 10**9):
        for kind, layers in LAYERS.items():
            frames = {
                named(layer, rank): frame(layer, spec, step, rank)
                for layer, spec in layers.items()
                if has_frame(layer, step)
            }
            writers[kind].append(step, frames)
        run.log(step, {f"loss{rank}": step + rank / 8})
        values = described(step, rank)
        statistics.append(step, summarize(values)[None], bit_histogram(values)[None])
        tell(step)
        # Pauses, or there is soon more to look through than to kill.
        time.sleep(0.003 if step < first + 40 else 0.05)


@dataclass
class Tally:
    """What was seen.

    Attributes
    ----------
    reads, again : int
        Rows read, and of these the ones that were read twice, since a writer was at them.
    torn, wrong, lost : int
        Rows that could not be read at all, that held other values, that were gone.
    """

    reads: int = 0
    again: int = 0
    torn: int = 0
    wrong: int = 0
    lost: int = 0
    said: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add what another one saw."""
        self.reads += other.reads
        self.again += other.again
        self.torn += other.torn
        self.wrong += other.wrong
        self.lost += other.lost
        self.said += other.said

    @property
    def bad(self) -> int:
        """Rows that were not as they must be."""
        return self.torn + self.wrong + self.lost


class GoneError(Exception):
    """Raised when rows were taken back while they were read."""


def plain_rows(store: Path, rank: int, pick: random.Random, tally: Tally) -> None:
    """Read the last rows, and some row, of every array with plain zarr-python."""
    import zarr

    for kind, layers in LAYERS.items():
        group: Any = zarr.open_group(store, mode="r")
        if kind not in group:
            continue
        steps = group[kind]["step"][:]
        if not len(steps):
            continue
        if (steps < 0).any() or (np.diff(steps) <= 0).any():
            again: Any = zarr.open_group(store, mode="r")
            now = again[kind]["step"].shape[0]
            if now < len(steps):
                raise GoneError
            tally.wrong += 1
            tally.said.append(f"{kind}/step is {steps[-5:]} for others")
        for row in {len(steps) - 1, max(0, len(steps) - 2), pick.randrange(len(steps))}:
            for name, spec in layers.items():
                step = int(steps[row])
                got = group[kind][named(name, rank)][row]
                if has_frame(name, step):
                    right = np.array_equal(got, frame(name, spec, step, rank))
                else:
                    right = bool(np.isnan(got).all())
                tally.reads += 1
                if not right:
                    raise ValueError(f"{kind}/{name} is wrong at step {step}")


def own_rows(store: Path, rank: int, pick: random.Random, tally: Tally) -> None:
    """Do the same with our own reader."""
    run = open_run(store)
    for kind, layers in LAYERS.items():
        if kind not in run.groups():
            continue
        for name, spec in layers.items():
            if named(name, rank) not in run.layers(kind):
                continue
            strip = run.strip(kind, named(name, rank))
            steps = strip.steps
            if not len(steps):
                continue
            for step in {int(steps[-1]), int(steps[pick.randrange(len(steps))])}:
                got = strip.frame(step)
                tally.reads += 1
                if not np.array_equal(got, frame(name, spec, step, rank)):
                    raise ValueError(f"{kind}/{name} is wrong at step {step} for us")


def look_on(path: Path, world: int, plain: bool, seed: int, report: int) -> None:
    """Read until told to stop by a signal; then report."""
    stop = False

    def stopping(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, stopping)
    pick, tally = random.Random(seed), Tally()
    reader = plain_rows if plain else own_rows
    while not stop:
        rank = pick.randrange(world)
        store = store_of(path, rank)
        for attempt in range(4):
            if not (store / "zarr.json").exists():
                time.sleep(0.01)
                break
            try:
                reader(store, rank, pick, tally)
                break
            except Exception as error:
                # A row can be taken back between looking up its number and reading it, and a shard
                # sealed between the two reads of a reader that does not know that it can be. Then a
                # second look is right; what is torn or wrong stays so.
                tally.again += 1
                if attempt == 3:
                    tally.torn += 1
                    tally.said.append(
                        f"{'others' if plain else 'us'}, rank {rank}: {type(error).__name__}: "
                        f"{error} {traceback.format_exc().splitlines()[-3:]}"
                    )
                time.sleep(0.002 * 8**attempt)
    os.write(report, json.dumps(tally.__dict__).encode())


def look_once(path: Path, rank: int, report: int) -> None:
    """Read one store with plain zarr-python and report."""
    tally = Tally()
    try:
        plain_rows(store_of(path, rank), rank, random.Random(0), tally)
    except Exception as error:
        tally.wrong += 1
        tally.said.append(f"others, at the end, rank {rank}: {type(error).__name__}: {error}")
    os.write(report, json.dumps(tally.__dict__).encode())


class Child:
    """A process of its own, forked, that tells of itself through a pipe."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.pipe, there = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                act(there)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(there)
        self.told = b""

    def wait_for_word(self, seconds: float) -> bool:
        """Return whether it said something in time."""
        if select.select([self.pipe], [], [], seconds)[0]:
            self.told += os.read(self.pipe, 1 << 16)
            return bool(self.told)
        return False

    def end(self, number: signal.Signals | None) -> bytes:
        """Send a signal, or none; wait, and return all that it told."""
        if number is not None:
            os.kill(self.pid, number)
        while piece := os.read(self.pipe, 1 << 16):
            self.told += piece
        os.close(self.pipe)
        os.waitpid(self.pid, 0)
        return self.told


class Writer:
    """One rank, killed and started again."""

    def __init__(self, path: Path, rank: int, world: int) -> None:
        self.path, self.rank, self.world = path, rank, world
        self.must: list[int] = []
        self.child: Child | None = None
        self.first = 0

    def start(self, first: int) -> None:
        """Start at a step; what was written from there on is taken back."""
        self.must = [step for step in self.must if step < first]
        self.first = first

        def act(there: int) -> None:
            def tell(step: int) -> None:
                os.write(there, step.to_bytes(8, "little", signed=True))

            write(self.path, self.rank, self.world, first, tell)

        self.child = Child(act)

    def kill(self) -> None:
        """Kill it, and note what it had acknowledged."""
        assert self.child is not None
        told = self.child.end(signal.SIGKILL)
        whole = len(told) // 8 * 8
        steps = np.frombuffer(told[:whole], "<i8")
        self.must += steps[steps >= 0].tolist()
        self.child = None

    def check(self, tally: Tally, *, everything: bool) -> int:
        """Hold the store to its word; return the next step."""
        store = store_of(self.path, self.rank)
        if not (store / "zarr.json").exists():
            if self.must:
                tally.lost += len(self.must)
            return 0
        run = open_run(store)
        must, last = set(self.must), -1
        for kind, layers in LAYERS.items():
            if kind not in run.groups():
                tally.lost += len(must)
                continue
            try:
                steps = run.strip(kind, named(ALWAYS[kind], self.rank)).steps.tolist()
            except LayerNotFoundError:
                steps = []
            last = max(last, *steps, -1)
            if missing := must - set(steps):
                tally.lost += len(missing)
                tally.said.append(f"rank {self.rank}: {kind} lost {sorted(missing)[:5]}")
            for name, spec in layers.items():
                try:
                    strip = run.strip(kind, named(name, self.rank))
                except LayerNotFoundError as error:
                    if must:
                        tally.lost += 1
                        tally.said.append(f"rank {self.rank}: {kind}/{name}: {error}")
                    continue
                have = strip.steps.tolist()
                if have != [step for step in steps if has_frame(name, step)]:
                    tally.lost += 1
                    tally.said.append(f"rank {self.rank}: {kind}/{name} has other steps")
                chosen = have[:: 1 + len(have) // 300] if everything else have[-6:]
                for step in chosen:
                    tally.reads += 1
                    if not np.array_equal(strip.frame(step), frame(name, spec, step, self.rank)):
                        tally.wrong += 1
                        tally.said.append(f"rank {self.rank}: {kind}/{name} wrong at {step}")
        if must:
            self._check_numbers(run, tally)
        return last + 1

    def _check_numbers(self, run: Any, tally: Tally) -> None:
        steps, values = run.scalars[f"loss{self.rank}"]
        if set(self.must) - set(steps.tolist()):
            tally.lost += 1
            tally.said.append(f"rank {self.rank}: scalars lost a step")
        if not np.array_equal(values, steps + self.rank / 8):
            tally.wrong += 1
            tally.said.append(f"rank {self.rank}: scalars are wrong")
        steps, counts = run.statistics("weights")[named("w", self.rank), "count"]
        if set(self.must) - set(steps.tolist()) or not (counts == 1000).all():
            tally.lost += 1
            tally.said.append(f"rank {self.rank}: statistics lost a step")


def kill_writers(folder: Path, writers: int, kills: int, seed: int = 0) -> tuple[Tally, int]:
    """Kill one of so many writers so often.

    Parameters
    ----------
    folder : Path
        Empty folder.
    writers, kills : int
        How many.
    seed : int
        Of when, and whom.

    Returns
    -------
    tuple of Tally and int
        What was seen, and how many steps were acknowledged.
    """
    path, pick, tally = folder / "run.zarr", random.Random(seed), Tally()
    ranks = [Writer(path, rank, writers) for rank in range(writers)]
    readers = [
        Child(lambda there, plain=plain: look_on(path, writers, plain, seed, there))  # type: ignore[misc]
        for plain in (True, False)
    ]
    acknowledged = 0
    try:
        for rank in ranks:
            rank.start(0)
        for number in range(kills):
            rank = pick.choice(ranks)
            assert rank.child is not None
            if number % 4:  # at any instant of its life; every fourth time, of its beginning
                rank.child.wait_for_word(SECONDS_TO_START)
                time.sleep(pick.choice((0.002, 0.02, 0.1, 0.3)) * pick.random() * 2)
            else:
                time.sleep(0.05 * pick.random())
            before = len(rank.must)
            rank.kill()
            acknowledged += len(rank.must) - before
            last = rank.check(tally, everything=False)
            rank.start(max(0, last - pick.choice((0, 0, 1, 3, last // 2))))
        for rank in ranks:
            rank.kill()
            rank.check(tally, everything=True)
            exists = (store_of(path, rank.rank) / "zarr.json").exists()
            create_run(  # mends what the last kill left
                path,
                if_exists="resume" if exists else "auto",
                rank=rank.rank,
                world_size=writers,
            ).close()
            rank.check(tally, everything=True)
            # In a process of its own: zarr-python starts a thread, which forks do not survive.
            last_look = Child(
                lambda there, rank=rank.rank: look_once(path, rank, there)  # type: ignore[misc]
            )
            tally.add(Tally(**json.loads(last_look.end(None))))
    finally:
        for rank in ranks:
            if rank.child is not None:
                rank.kill()
        for child in readers:
            told = child.end(signal.SIGTERM)
            if told:
                tally.add(Tally(**json.loads(told)))
            else:
                tally.torn += 1
                tally.said.append("a reader died")
    return tally, acknowledged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=240, help="in all")
    parser.add_argument("--writers", type=int, choices=(1, 4), action="append")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    bad, counts = 0, arguments.writers or [1, 4]
    print(f"seed {arguments.seed}")
    print(
        f"{'writers':>7} {'kills':>6} {'steps':>7} {'reads':>8} {'again':>6} "
        f"{'torn':>5} {'wrong':>6} {'lost':>5} {'seconds':>8}"
    )
    for writers in counts:
        kills = arguments.kills // len(counts)
        folder, began = Path(tempfile.mkdtemp()), time.monotonic()
        tally, steps = kill_writers(folder, writers, kills, arguments.seed)
        print(
            f"{writers:7} {kills:6} {steps:7} {tally.reads:8} {tally.again:6} {tally.torn:5} "
            f"{tally.wrong:6} {tally.lost:5} {time.monotonic() - began:8.1f}",
            *tally.said[:10],
            sep="\n",
            flush=True,
        )
        bad += tally.bad
        if not tally.bad:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
        else:
            print(f"kept: {folder}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
