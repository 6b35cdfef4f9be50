"""What users do to a model in between, and what must then neither fail nor be kept."""

from __future__ import annotations

import copy
import gc
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from filmstrip.capture import CaptureError
from filmstrip.capture._sink import _bytes_below
from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run


class Net(nn.Module):
    """Two dense layers; what happens between them can be changed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
        self.between: Callable[[], object] = lambda: None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one number a sample."""
        x = self.first(x)
        self.between()
        return self.second(x)  # type: ignore[no-any-return]


class Emit(nn.Module):
    """Returns what it is given, whatever that is."""

    def forward(self, made: object) -> object:
        return made


class Emitting(nn.Module):
    """Has an output of any kind beside an ordinary one."""

    def __init__(self, make: Callable[[], object]) -> None:
        super().__init__()
        self.emit, self.fc = Emit(), nn.Linear(3, 1)
        self.make = make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.emit(self.make())
        return self.fc(x)  # type: ignore[no-any-return]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def back(model: nn.Module, samples: int = 2) -> None:
    model(torch.ones(samples, 3)).sum().backward()


def train(model: nn.Module, run: str, *, steps: int = 2, **keywords: Any) -> None:
    optimizer = sgd(model)
    with Capture(model, optimizer, run, every=1, **keywords):
        for _ in range(steps):
            back(model)
            optimizer.step()


def values_counted(run: str, layer: str = "first") -> list[float]:
    counts: list[float] = open_run(run).statistics("activations")[layer, "count"].values.tolist()
    return counts


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 1])
def test_a_forward_pass_that_failed_gives_way_to_the_one_that_follows(
    run: str, error: type[BaseException], step: int
) -> None:
    model = Net()
    optimizer = sgd(model)

    def fail() -> None:
        raise error

    with Capture(model, optimizer, run, every=1, samples=2):
        for number in range(3):
            if number == step:
                model.between = fail
                with pytest.raises(error):
                    back(model, samples=4)
                model.between = lambda: None
            back(model)
            optimizer.step()

    opened = open_run(run)
    assert values_counted(run) == [6.0, 6.0, 6.0]
    assert opened.layers("activations") == ["first", "second"]
    assert opened.activations["second"].steps.tolist() == [0, 1, 2]


def no_grad(model: nn.Module) -> None:
    with torch.no_grad():
        model(torch.ones(7, 3))


def inference(model: nn.Module) -> None:
    with torch.inference_mode():
        model(torch.ones(7, 3))


def transformed(model: nn.Module) -> None:
    held = {name: parameter.detach() for name, parameter in model.named_parameters()}
    grad(lambda given: functional_call(model, given, (torch.ones(7, 3),)).sum())(held)


def traced(model: nn.Module) -> None:
    torch.jit.trace(model, torch.ones(7, 3))  # type: ignore[no-untyped-call]


def exported(model: nn.Module) -> None:
    torch.export.export(model, (torch.ones(7, 3),), strict=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "look",
    [
        no_grad,
        inference,
        transformed,
        traced,
        pytest.param(
            exported,
            marks=pytest.mark.skipif(
                torch.__version__ < "2.9", reason="a strict export runs hooks before torch 2.9"
            ),
        ),
    ],
)
def test_a_look_at_the_model_between_steps_is_not_taken_for_its_training(
    run: str, look: Callable[[nn.Module], None]
) -> None:
    model = Net()
    optimizer = sgd(model)
    with Capture(model, optimizer, run, every=1):
        for _ in range(3):
            look(model)
            back(model)
            look(model)
            optimizer.step()

    assert values_counted(run) == [6.0, 6.0, 6.0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_trace_of_a_watched_model_is_the_one_of_a_model_that_is_not(run: str) -> None:
    model = Emitting(lambda: None)
    plain = copy.deepcopy(model)
    with Capture(model, sgd(model), run, every=1):
        traces: list[Any] = [
            torch.jit.trace(each, torch.ones(2, 3))  # type: ignore[no-untyped-call]
            for each in (model, plain)
        ]

    assert torch.equal(*(trace(torch.ones(2, 3)) for trace in traces))
    kinds = [[node.kind() for node in trace.inlined_graph.nodes()] for trace in traces]
    assert kinds[0] == kinds[1]


def test_training_without_gradients_is_kept(run: str) -> None:
    model = Net()
    with Capture(model, run=run, every=1) as capture, torch.no_grad():
        for _ in range(3):
            model(torch.ones(2, 3))
            model(torch.ones(2, 3))
            capture.step()

    assert values_counted(run) == [6.0, 6.0, 6.0]


def test_capture_attached_in_inference_mode_watches_training(run: str) -> None:
    model = Net()
    optimizer = sgd(model)
    with torch.inference_mode():
        capture = Capture(model, optimizer, run, every=1)
        model.eval()
    with capture:
        model.train()
        for _ in range(3):
            back(model)
            optimizer.step()

    assert values_counted(run) == [6.0, 6.0, 6.0]


def test_outputs_of_inference_mode_do_not_spoil_the_slot_for_others(run: str) -> None:
    model = Net()
    optimizer = sgd(model)
    with Capture(model, optimizer, run, every=1, phases="eval"):
        for mode in (torch.no_grad, torch.inference_mode, torch.inference_mode, torch.no_grad) * 2:
            back(model)
            model.eval()
            with mode():
                model(torch.ones(5, 3))
            model.train()
            optimizer.step()

    assert values_counted(run) == [15.0] * 8


def test_a_default_device_of_the_users_is_not_captures(run: str) -> None:
    model = Net()
    optimizer = sgd(model)
    x = torch.ones(2, 3)
    with torch.device("meta"), Capture(model, optimizer, run, every=1):
        for _ in range(2):
            model(x).sum().backward(torch.ones((), device="cpu"))
            optimizer.step()

    assert values_counted(run) == [6.0, 6.0]


@dataclass
class Result:
    """What models return that give their outputs names."""

    logits: torch.Tensor
    loss: float = 0.0


def complex_conjugate() -> torch.Tensor:
    return torch.full((2, 5), 1 + 2j, dtype=torch.complex64).conj()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (complex_conjugate, {"emit": (20, -2, 1)}),
        (lambda: complex_conjugate().imag, {"emit": (10, -2, -2)}),
        (lambda: torch.full((2, 9000), 3, dtype=torch.uint16), {"emit": (18000, 3, 3)}),
        (lambda: torch.full((2, 9000), 2.0).to(torch.float8_e5m2), {"emit": (18000, 2, 2)}),
        (lambda: Result(torch.full((2, 4), 5.0)), {"emit.logits": (8, 5, 5)}),
        (lambda: UserDict(x=torch.full((2, 4), 5.0)), {"emit.x": (8, 5, 5)}),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), {}),
        (lambda: torch.ones(2, 3).to_mkldnn(), {}),
        (lambda: torch.ones(2, 3, device="meta"), {}),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_unusual_outputs_are_kept_or_left_out_and_nothing_fails(
    run: str, make: Callable[[], object], expected: dict[str, tuple[float, ...]]
) -> None:
    train(Emitting(make), run)

    statistics = open_run(run).statistics("activations")
    assert set(statistics.layers) == {*expected, "fc"}
    for layer, numbers in expected.items():
        found = tuple(statistics[layer, what].values[-1] for what in ("count", "min", "max"))
        assert found == numbers
    assert open_run(run).status().errors == 0


def test_a_dtype_that_cannot_be_stored_is_named_and_not_blamed_on_the_budget(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Emitting(lambda: torch.ones(2, 3, dtype=torch.complex128)), run)

    said = capsys.readouterr().err
    assert "no frames of activations of 'emit' (complex128)" in said
    assert "max_capture_bytes" not in said


class Evil:
    """No number, and says so in its own way."""

    def __float__(self) -> float:
        raise RuntimeError("no number")


@pytest.mark.parametrize(
    "value",
    [10**400, Evil(), torch.ones(1, device="meta"), torch.ones(2), np.ones(2), 1j, b"x", [1.0]],
    ids=["huge", "evil", "meta", "tensor", "array", "complex", "bytes", "list"],
)
def test_what_cannot_be_logged_costs_neither_training_nor_the_other_numbers(
    run: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    model = Net()
    with Capture(model, sgd(model), run) as capture:
        capture.log({"odd": value, "lr": 0.1, "array": np.ones(1), "other": np.ones((1, 1))})

    assert set(open_run(run).scalars) == {"lr", "array", "other"}
    assert "log of 'odd' needs one number" in caplog.text


@pytest.mark.parametrize("values", [5, "loss", [1.0], np.ones(3)])
def test_a_log_of_no_mapping_is_said_and_does_not_stop_training(
    run: str, values: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = Net()
    with Capture(model, sgd(model), run) as capture:
        capture.log(values)

    assert "log needs a mapping" in caplog.text


def test_an_image_may_have_any_name_and_byte_order(run: str) -> None:
    model = Net()
    optimizer = sgd(model)
    with Capture(model, optimizer, run, every=1) as capture:
        back(model)
        capture.image(7, np.arange(4.0, dtype=">f4").reshape(2, 2))  # type: ignore[arg-type]
        optimizer.step()

    assert open_run(run).images["7"].frame(0).tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_numbers_and_images_of_a_step_that_fell_are_a_loss_and_not_a_failure(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Net()
    optimizer = sgd(model)
    trainer = {"step": 5}
    with Capture(model, optimizer, run, every=1, step=lambda: trainer["step"]) as capture:
        for trainer["step"] in (5, 6, 2, 3, 7):
            back(model)
            capture.image("x", np.ones((2, 2)))
            optimizer.step()
            capture.log(loss=1.0)

    opened = open_run(run)
    assert opened.scalars["loss"].steps.tolist() == [5, 6, 7]
    assert opened.images["x"].steps.tolist() == [5, 6, 7]
    assert "the step of scalars fell from 6 to 2" in caplog.text


def test_a_failure_keeps_no_tensor_alive(run: str) -> None:
    held = []

    class Odd(torch.Tensor):
        """A tensor that cannot be looked at."""

        @classmethod
        def __torch_function__(
            cls, func: object, types: object, args: object = (), kwargs: object = None
        ) -> object:
            if func is torch.Tensor.detach:
                raise RuntimeError("look away")
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    def make() -> torch.Tensor:
        odd = torch.ones(2, 3).as_subclass(Odd)
        held.append(weakref.ref(odd))
        return odd

    logger = logging.getLogger("filmstrip")
    logger.disabled = True  # what pytest records would keep the traceback
    try:
        model = Emitting(make)
        optimizer = sgd(model)
        capture = Capture(model, optimizer, run, every=1)
        for _ in range(2):
            back(model)
            optimizer.step()
        gc.collect()
        alive = [reference() for reference in held]
        with pytest.raises(CaptureError, match="look away"):
            capture.close()
    finally:
        logger.disabled = False

    assert alive == [None, None]


def test_memory_is_given_back_at_close(run: str) -> None:
    model = Net()
    optimizer = sgd(model)
    capture = Capture(model, optimizer, run, every=1)
    back(model)
    optimizer.step()
    assert capture._session is not None
    slots = [weakref.ref(slot.memory) for slot in capture._session.recorder._slots]
    capture.close()
    gc.collect()

    assert len(slots) == 2
    assert [slot() for slot in slots] == [None, None]


def test_closing_in_another_thread_while_training_goes_on_loses_nothing_promised(run: str) -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(20)])
    optimizer = sgd(model)
    capture = Capture(model, optimizer, run, every=1)
    errors: list[Exception] = []
    closed = threading.Event()

    def close() -> None:
        try:
            capture.close()
        except Exception as error:
            errors.append(error)
        closed.set()

    closer = threading.Thread(target=close)
    for step in range(100_000):
        if step == 20:
            closer.start()
        if closed.is_set():
            break
        back(model)
        optimizer.step()
        capture.log(loss=1.0)
    closer.join()

    assert errors == []
    assert len(open_run(run).steps("weights")) >= 1


def test_who_interrupts_close_may_close_again(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    optimizer = sgd(model)
    held, writing = threading.Event(), threading.Event()
    real = os.pwritev

    def pwritev(descriptor: int, buffers: list[bytes], offset: int) -> int:
        writing.set()
        held.wait(20)
        return real(descriptor, buffers, offset)

    capture = Capture(model, optimizer, run, every=1)
    monkeypatch.setattr(os, "pwritev", pwritev)
    back(model)
    optimizer.step()
    assert writing.wait(20)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        capture.close()
    held.set()
    capture.close()

    assert open_run(run).steps("weights").tolist() == [0]
    assert open_run(run).status().state == "finished"


def test_a_forked_process_trains_undisturbed_and_records_nothing(run: str) -> None:
    model = Net()
    optimizer = sgd(model)
    with Capture(model, optimizer, run, every=1) as capture:
        for _ in range(2):
            back(model)
            optimizer.step()
        child = os.fork()
        if not child:
            signal.alarm(60)
            started = time.monotonic()
            for _ in range(4):  # more than there are slots
                with torch.no_grad():
                    model(torch.ones(2, 3))
                optimizer.step()
                capture.log(loss=1.0)
                capture.image("x", np.ones((2, 2)))
            capture.close()
            os._exit(min(int(time.monotonic() - started), 100))
        _, status = os.waitpid(child, 0)
        back(model)
        optimizer.step()

    assert status == 0
    assert open_run(run).steps("weights").tolist() == [0, 1, 2]
    assert open_run(run).scalars == {}


def test_where_nobody_reads_stderr_training_goes_on(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    train(Net(), run)

    assert open_run(run).steps("weights").tolist() == [0, 1]


def test_an_optimizer_that_never_steps_is_not_passed_over_in_silence(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Net()
    other = sgd(Net())
    with Capture(model, other, run, every=1):
        back(model)
        sgd(model).step()

    assert "no step ended" in caplog.text


def test_a_run_is_closed_where_no_thread_can_be_started_any_more(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net()
    capture = Capture(model, sgd(model), run, every=1)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    capture.log(loss=1.0)
    capture.close()
    assert open_run(run).status().state == "finished"

    with pytest.raises(RuntimeError, match="new thread"):
        Capture(model, sgd(model), f"{run}-2", every=1)
    monkeypatch.undo()
    Capture(model, sgd(model), f"{run}-2", every=1, if_exists="overwrite").close()
    assert not model._forward_hooks


def test_the_size_of_a_run_is_found_while_its_files_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "stays").write_bytes(bytes(100_000))
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            for number in range(50):
                (tmp_path / f"passing-{number}").touch()
            for number in range(50):
                (tmp_path / f"passing-{number}").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        sizes = {_bytes_below(tmp_path) for _ in range(100)}
    finally:
        over.set()
        thread.join()

    assert min(sizes) >= 100_000


def test_rows_that_wait_are_counted_in_the_runs_health(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net()
    optimizer = sgd(model)
    held, writing = threading.Event(), threading.Event()
    real = os.pwrite, os.pwritev

    def pwrite(*given: Any) -> int:
        writing.set()
        held.wait(20)
        return real[0](*given)

    def pwritev(*given: Any) -> int:
        writing.set()
        held.wait(20)
        return real[1](*given)

    with Capture(model, optimizer, run, every=1, on_pressure="drop") as capture:
        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "pwritev", pwritev)
        capture.log(loss=1.0)
        assert writing.wait(20)
        for _ in range(2):
            back(model)
            optimizer.step()
        held.set()

    queued = np.fromfile(next((Path(run) / "health" / "queued").glob("c*")), "<f8")[:2]
    assert queued.tolist() == [1.0, 0.0]
