"""Measure what capture costs training, beside what others cost.

    scripts/bench capture [--quick]

Every way to train has a model of its own, and they take turns for a block of steps in one process
with one thread for torch, so that all see the same load of the machine. CPU time of the training
thread is the least of every position in a block over all rounds, added up over the block; CPU time
of the process, with whatever threads do afterwards, and wall time are the least of whole blocks. A
block has one capture, or as many as steps where every step is one; at every 100th step it is the
cost of the one capture that counts, so a tenth of what it is at every 10th.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from measure import Figure, interleaved, report
from networks import Network, chosen, convolutional, transformer
from torch import nn

from filmstrip.capture.pytorch import Capture

STEPS = {1: 3, 10: 10}  # steps of a block
WARM_UP = {1: 2, 10: 10}  # the survey, and whatever comes the second time
COLUMNS = ("training thread", "process", "wall")
MODULES = 100

Attach = Callable[[nn.Module, torch.optim.Optimizer, int, Path], peers.Loop]
"""Attaches something to a model that takes what it takes every so many steps."""


class Ours(peers.Loop):
    """Capture; of whole batches, as peers do, and whatever the machine's disk still holds."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int,
        folder: Path,
        **keywords: Any,
    ) -> None:
        common = {"every": every, "samples": 8, "layers": chosen(model), "min_free": 0}
        capture = Capture(model, optimizer, folder, **{**common, **keywords})
        self.close = capture.close  # type: ignore[method-assign]


def attach_nothing(
    model: nn.Module, optimizer: torch.optim.Optimizer, every: int, folder: Path
) -> peers.Loop:
    """Attach nothing."""
    return peers.Loop()


def attach_peer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    every: int,
    folder: Path,
    *,
    make: Callable[[nn.Module, int, Path], peers.Loop],
) -> peers.Loop:
    """Attach what knows the model alone."""
    return make(model, every, folder)


LONE: dict[str, Attach] = {
    "no capture": attach_nothing,
    "no capture, again: the noise": attach_nothing,
    "capture, never due": partial(Ours, start=10**9),
}
WAYS: dict[str, Attach] = {
    "memcpy of the same bytes": partial(attach_peer, make=peers.Copies),
    "np.save": partial(attach_peer, make=peers.Files),
    "TensorBoard add_histogram": partial(attach_peer, make=peers.Histograms),
    "wandb.watch (no activations)": partial(attach_peer, make=peers.Watch),
    "frames": partial(Ours, statistics=False, histograms=False),
    "statistics and histograms": partial(Ours, frames=False),
    "everything": Ours,
}


@dataclass
class Contestant:
    """One way to train, and the least that it cost so far.

    Parameters
    ----------
    network : Network
        What trains.
    attach : Attach
        What is attached to it.
    every : int
        Steps from one capture to the next.
    folder : Path
        Does not exist yet.
    """

    network: Network
    attach: Attach
    every: int
    folder: Path
    thread: dict[int, float] = field(default_factory=dict)
    process: float = float("inf")
    wall: float = float("inf")

    def __post_init__(self) -> None:
        self.model = self.network.make()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.prepare = self.attach(self.model, self.optimizer, self.every, self.folder)

    def step(self) -> None:
        """Train for a step."""
        loss = self.network.loss(self.model)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.prepare()
        self.optimizer.step()

    def block(self) -> None:
        """Train for a block, and keep what it cost if it is less than ever."""
        steps = STEPS[self.every]
        process, wall = time.process_time(), time.perf_counter()
        for position in range(steps):
            started = time.thread_time()
            self.step()
            seconds = time.thread_time() - started
            self.thread[position] = min(self.thread.get(position, seconds), seconds)
        self.wall = min(self.wall, (time.perf_counter() - wall) / steps)
        settle()
        self.process = min(self.process, (time.process_time() - process) / steps)

    def costs(self) -> tuple[float, float, float]:
        """Return seconds a step: of the thread, of the process, on the wall."""
        return sum(self.thread.values()) / len(self.thread), self.process, self.wall


def settle() -> None:
    """Wait until no thread of the process works any more."""
    before = -1.0
    while time.process_time() - before > 1e-3:
        before = time.process_time()
        time.sleep(5e-3)


def percent(cost: float, plain: float) -> float:
    """Return what something costs more, in percent."""
    return (cost / plain - 1) * 100


def costs_of(network: Network, folder: Path, *, rounds: int) -> Iterator[Figure]:
    """Train a network in every way, print the table, and yield what has a goal."""
    entries = [(name, attach, 10) for name, attach in LONE.items()]
    entries += [(name, attach, every) for name, attach in WAYS.items() for every in STEPS]
    contestants = {
        (name, every): Contestant(network, attach, every, folder / f"{network.name}-{number}")
        for number, (name, attach, every) in enumerate(entries)
    }
    for each in contestants.values():
        for _ in range(WARM_UP[each.every]):
            each.step()
        settle()
    for _ in range(rounds):
        for each in contestants.values():
            each.block()
    plain = contestants["no capture", 10].costs()
    extra = {
        key: [percent(cost, least) for cost, least in zip(each.costs(), plain, strict=True)]
        for key, each in contestants.items()
    }
    for each in contestants.values():
        each.prepare.close()
    held = contestants["memcpy of the same bytes", 1].prepare
    assert isinstance(held, peers.Copies)
    print_table(network.name, plain[0], held.nbytes, extra)
    if network.name == "CNN":
        frames, histograms = (extra[way, 10][0] for way in ("frames", "TensorBoard add_histogram"))
        yield Figure("CNN: frames, every 10th step", frames, "at most", 3, "%")
        yield Figure("CNN: TensorBoard, of that", histograms / max(frames, 0.01), "at least", 4)
        numbers = extra["statistics and histograms", 1][0]
        yield Figure("CNN: statistics, histograms, every step", numbers, "at most", 25, "%")
        seconds = off_seconds()
        yield Figure("a call of a module, when nothing is due", seconds * 1e6, unit="µs")
        calls = len(chosen(network.make())) + 4  # the model's own two, and the optimizer's
        off = percent(plain[0] + calls * seconds, plain[0])
        yield Figure(f"CNN: {calls} such calls, of a step", off, "at most", 0.5, "%")


def print_table(
    name: str, seconds: float, nbytes: int, extra: dict[tuple[str, int], list[float]]
) -> None:
    """Print percentages: one line a way, three intervals for each kind of time."""
    print(f"{name}: {seconds * 1e3:.1f} ms CPU a step; {nbytes / 1e6:.1f} MB a capture")
    print(f"  {'more than without, in %':30s}" + "".join(f"{title:^27s}" for title in COLUMNS))
    print(f"  {'every':30s}" + f"{1:>9d}{10:>9d}{100:>9d}" * len(COLUMNS))
    for way in LONE:
        cells = "".join(f"{cost:+27.1f}" for cost in extra[way, 10])
        print(f"  {way:30s}{cells}")
    for way in WAYS:
        pairs = zip(extra[way, 1], extra[way, 10], strict=True)
        cells = "".join(f"{first:+9.1f}{tenth:+9.1f}{tenth / 10:+9.2f}" for first, tenth in pairs)
        print(f"  {way:30s}{cells}")


def off_seconds() -> float:
    """Return what one watched module costs a forward pass when nothing is due."""
    plain = nn.Sequential(*[nn.Identity() for _ in range(MODULES)], nn.Linear(1, 1))
    watched = nn.Sequential(*[nn.Identity() for _ in range(MODULES)], nn.Linear(1, 1))
    optimizer = torch.optim.SGD(watched.parameters(), lr=0.1)
    x = torch.ones(1, 1)

    def passes(model: nn.Module) -> Callable[[], None]:
        def run() -> None:
            for _ in range(100):
                model(x)

        return run

    with (
        tempfile.TemporaryDirectory() as folder,
        Capture(watched, optimizer, f"{folder}/off.zarr", every=10, start=10**9),
        torch.no_grad(),
    ):
        optimizer.step()
        ways = {"plain": passes(plain), "watched": passes(watched)}
        least = interleaved(ways, 30, clock=time.thread_time)
    return (least["watched"] - least["plain"]) / 100 / MODULES


def main() -> int:
    """Measure both networks, in a folder of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, for a first look")
    rounds = 2 if parser.parse_args().quick else 6
    torch.set_num_threads(1)
    os.environ["FILMSTRIP_QUIET"] = "1"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="filmstrip-bench-") as name:
        networks = (convolutional(), transformer())
        figures = [
            figure
            for network in networks
            for figure in costs_of(network, Path(name), rounds=rounds)
        ]
    load = os.getloadavg()[0]
    seconds = time.perf_counter() - started
    print(f"{rounds} rounds in {seconds:.0f} s; load {load:.1f} on {os.cpu_count()} cores")
    return report("capture", figures)


if __name__ == "__main__":
    sys.exit(main())
