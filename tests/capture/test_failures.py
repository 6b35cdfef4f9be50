from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture.training import Batches, Trained, state
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from filmstrip.capture import CaptureError
from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run


def status(run: str) -> tuple[int, str]:
    """Return the exit code of ``filmstrip status``, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "filmstrip.store.cli", "status", run],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_failing_write_does_not_stop_training_and_is_raised_at_close(
    run: str, trained: Callable[[], Trained], batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    plain, captured = trained(), trained()
    torch.manual_seed(1)
    plain.run(batches(6))
    capture = Capture(captured.model, captured.optimizer, run, every=1, on_pressure="block")

    def lose_the_run(loss: torch.Tensor) -> None:
        if len(captured.losses) == 3:
            shutil.rmtree(Path(run) / "weights")
            (Path(run) / "weights").write_text("in the way")

    torch.manual_seed(1)
    with caplog.at_level(logging.ERROR, "filmstrip"):
        captured.run(batches(6), lose_the_run)
        with pytest.raises(CaptureError, match="lost something"):
            capture.close()

    assert all(map(torch.equal, captured.losses, plain.losses))
    assert len(caplog.records) <= 2
    capture.close()


def test_a_full_disk_ends_capture_and_not_training(
    run: str,
    trained: Callable[[], Trained],
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    training = trained()
    capture = Capture(training.model, training.optimizer, run, every=1, on_pressure="block")
    real, full = os.pwrite, [False]

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    def pwritev(descriptor: int, buffers: list[bytes], offset: int) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_v(descriptor, buffers, offset)

    real_v = os.pwritev
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pwritev", pwritev)

    def fill(loss: torch.Tensor) -> None:
        full[0] = len(training.losses) >= 3

    training.run(batches(8), fill)
    full[0] = False
    with pytest.raises(CaptureError, match="No space left on device"):
        capture.close()

    assert len(training.losses) == 8
    steps = open_run(run).steps("weights").tolist()
    assert steps == list(range(len(steps)))
    assert 1 <= len(steps) < 8
    assert sum("No space left" in record.getMessage() for record in caplog.records) == 1
    told = open_run(run).status()
    assert told.errors >= 1
    lost = f"{told.dropped} dropped, " if told.dropped else ""
    code, said = status(run)
    assert code == 3
    assert said.endswith(f"; lost: {lost}{told.errors} errors\n")


def test_an_exception_in_a_tap_is_counted_and_never_reaches_training(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(torch.Tensor):
        """A tensor that cannot be looked at."""

        @classmethod
        def __torch_function__(
            cls, func: object, types: object, args: object = (), kwargs: object = None
        ) -> object:
            if func is torch.Tensor.detach:
                raise RuntimeError("look away")
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    class Maker(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.as_subclass(Odd)

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.as_subclass(torch.Tensor)

    finals = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 1), Maker(), Plain())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        capture = Capture(model, optimizer, run, every=1, enabled=watched)
        losses = []
        for _ in range(3):
            loss = model(torch.ones(2, 3)).sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        finals.append([*losses, *model.state_dict().values()])
    with pytest.raises(CaptureError, match="3 exceptions in taps; first cause: look away"):
        capture.close()

    assert all(map(torch.equal, *finals))
    opened = open_run(run)
    assert (
        opened.activations["0"].steps.tolist()
        == opened.activations["2"].steps.tolist()
        == [0, 1, 2]
    )
    assert caplog.text.count("training goes on") == 1


def test_frames_end_at_max_run_bytes_and_statistics_go_on(
    run: str, trained: Callable[[], Trained], batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    training = trained()
    with Capture(training.model, training.optimizer, f"{run}-small", every=1):
        training.run(batches(1))
    size = open_run(f"{run}-small").status().bytes
    assert size is not None
    limit = size + 200_000
    with Capture(training.model, training.optimizer, run, every=1, max_run_bytes=limit):
        training.run(batches(12))

    opened = open_run(run)
    assert 1 <= len(opened.steps("weights")) < 12
    assert opened.statistics("weights").steps.tolist() == list(range(12))
    assert caplog.text.count("frames end here") == 1
    assert "ended early" in caplog.text


def test_frames_end_when_the_disk_is_nearly_full(
    run: str, trained: Callable[[], Trained], batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    training = trained()
    with Capture(training.model, training.optimizer, run, every=1, min_free="99.9999%"):
        training.run(batches(3))

    opened = open_run(run)
    assert opened.steps("weights").tolist() == []
    assert opened.statistics("weights").steps.tolist() == [0, 1, 2]
    assert "are free" in caplog.text


def test_steps_that_cost_too_much_are_left_out_and_counted(
    run: str, trained: Callable[[], Trained], batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    training = trained()
    with Capture(training.model, training.optimizer, run, every=1, max_overhead=1e-6):
        training.run(batches(5))

    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 1]
    assert opened.scalars == {}
    assert "3 due steps left out to stay under max_overhead" in caplog.text
    assert opened.steps("health").tolist() == [0, 1, 2, 3, 4]


def test_under_pressure_steps_are_dropped_and_counted_when_so_asked(
    run: str,
    trained: Callable[[], Trained],
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = threading.Event()
    real = os.pwritev

    def pwritev(descriptor: int, buffers: list[bytes], offset: int) -> int:
        held.wait(10)
        return real(descriptor, buffers, offset)

    plain, training = trained(), trained()
    torch.manual_seed(1)
    plain.run(batches(6))
    expected = state(plain)
    torch.manual_seed(1)
    with Capture(training.model, training.optimizer, run, every=1, on_pressure="drop"):
        monkeypatch.setattr(os, "pwritev", pwritev)
        training.run(batches(6))
        held.set()

    assert all(map(torch.equal, state(training), expected))
    kept = open_run(run).steps("weights").tolist()
    assert kept[:2] == [0, 1]
    assert len(kept) < 6
    lost = 6 - len(kept)
    assert f"{lost} due steps dropped ({lost}: writing was slower than training)" in caplog.text
    assert open_run(run).steps("health").tolist() == [0, 1, 2, 3, 4, 5]
    code, said = status(run)
    assert code == 3
    assert said.endswith(f"; lost: {lost} dropped\n")


def test_an_exception_in_the_loop_is_not_hidden_by_one_of_capture(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    plain, training = trained(), trained()
    torch.manual_seed(1)
    plain.run(batches(2))
    expected = state(plain)
    bad = torch.ones(1)  # no model of images takes it

    def stumble() -> None:
        torch.manual_seed(1)
        with Capture(training.model, training.optimizer, run, every=1, probe=bad):
            training.run(batches(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()

    assert all(map(torch.equal, state(training), expected))
    assert open_run(run).steps("weights").tolist() == [0, 1]


def wide() -> Trained:
    """Return a model whose frames outgrow small files."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 2000), nn.Linear(2000, 10))
    return Trained(model, torch.optim.SGD(model.parameters(), lr=1e-3))


def test_a_disk_that_takes_no_more_leaves_training_as_it_was_and_status_says_so(
    run: str, batches: Batches
) -> None:
    """From the fourth step on no file may be written behind 60 KB, as on a disk that is full."""
    plain, captured = wide(), wide()
    plain.run(batches(10))
    capture = Capture(captured.model, captured.optimizer, run, every=1, on_pressure="block")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(loss: torch.Tensor) -> None:
        if len(captured.losses) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))

    try:
        captured.run(batches(10), fill)
        with pytest.raises(CaptureError, match=r"\d+ writes failed; first cause: .*too large"):
            capture.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert all(map(torch.equal, plain.losses, captured.losses))
    opened = open_run(run)
    steps = opened.steps("weights").tolist()
    assert 1 <= len(steps) < 10
    assert opened.weights["1.weight"].frame(steps[-1]).shape == (2000, 64)
    assert opened.status().errors >= 10 - len(steps)


def test_a_run_that_is_deleted_leaves_training_as_it_was(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    plain, captured = trained(), trained()
    torch.manual_seed(1)
    plain.run(batches(6))
    capture = Capture(captured.model, captured.optimizer, run, every=1)

    def delete(loss: torch.Tensor) -> None:
        if len(captured.losses) == 3:
            shutil.rmtree(run, ignore_errors=True)

    torch.manual_seed(1)
    captured.run(batches(6), delete)
    with pytest.raises(CaptureError, match="lost something"):
        capture.close()

    assert all(map(torch.equal, plain.losses, captured.losses))
    assert not (Path(run) / "zarr.json").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_that_a_data_loader_forks_change_nothing(
    run: str, trained: Callable[[], Trained], digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    data = TensorDataset(*(each[:96] for each in digits))
    plain, captured = trained(), trained()
    for training in (plain, captured):
        torch.manual_seed(1)
        loader = DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork")
        if training is plain:
            training.run(iter(loader))
            training.run(iter(loader))
            continue
        with Capture(captured.model, captured.optimizer, run, every=1):
            training.run(iter(loader))
            training.run(iter(loader))

    assert all(map(torch.equal, plain.losses, captured.losses))
    assert open_run(run).steps("weights").tolist() == list(range(12))
    assert open_run(run).status().state == "finished"


ENDLESS = """
import sys, torch
from torch import nn
from filmstrip.capture.pytorch import Capture
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
capture = Capture(model, optimizer, sys.argv[1], every=1)
step = 0
while True:
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    step += 1
    if step == 20:
        print("twenty", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state"),
    [
        (signal.SIGTERM, "stopped"),
        (signal.SIGKILL, "stopped"),
        (signal.SIGINT, "finished"),  # an exception, behind which the interpreter closes it
    ],
)
def test_a_script_that_is_ended_keeps_every_step_that_was_written(
    run: str, number: signal.Signals, state: str
) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, run],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with script:
        assert script.stdout is not None
        assert script.stdout.readline() == "twenty\n"
        script.send_signal(number)
        assert script.wait(60) == -number

    opened = open_run(run)
    steps = opened.steps("weights").tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 10
    assert np.isfinite(opened.weights["weight"].frame(steps[-1])).all()
    assert opened.status().state == state


SCRIPT = """
import os, sys, torch
from torch import nn
from filmstrip.capture.pytorch import Capture
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
capture = Capture(model, optimizer, sys.argv[1], every=1)
for step in range(5):
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    capture.log(step=step)
if child := os.fork():
    os.waitpid(child, 0)
    raise SystemExit(3)
capture.close()
os._exit(0)
"""


@pytest.mark.slow
def test_a_script_that_forks_and_never_closes_loses_nothing(run: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, run],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert done.returncode == 3, done.stderr
    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3, 4]
    assert open_run(run).status().state == "finished"
