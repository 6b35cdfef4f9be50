from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from capture.simulated import COMPUTE, POISON, SIDE, Event, Remote, Simulation
from capture.training import accelerator
from torch._subclasses import FakeTensorMode

from filmstrip.capture._budget import Blueprint, Order, blueprint, ladder
from filmstrip.capture._ledger import Ledger
from filmstrip.capture._pump import Pump
from filmstrip.capture._recorder import Limits, Recorder
from filmstrip.capture._report import spared
from filmstrip.capture._row import Row
from filmstrip.capture._schedule import EVERYTHING, schedule_of
from filmstrip.capture._seams import Site
from filmstrip.capture._settings import DEFAULTS, settle
from filmstrip.capture.pytorch import Capture
from filmstrip.capture.pytorch._device import Accelerator, Later
from filmstrip.capture.pytorch._extract_device import DeviceExtractor
from filmstrip.capture.pytorch._images import whole_frame
from filmstrip.capture.pytorch._stage import AccelStage, CpuStage
from filmstrip.store import FrameSpec, open_run, summarize

SITES = [
    Site(kind="activations", layer="whole", shape=(4, 6), dtype="float32", batched=True),
    Site(kind="activations", layer="first", shape=(4, 6), dtype="float32", batched=True, samples=1),
    Site(kind="weights", layer="thin", shape=(6, 5), dtype="float32"),
]
# The last is thinned to every second row.
TAKES = [rungs[0 if number < 2 else 1] for number, rungs in enumerate(map(ladder, SITES))]
PLAN = blueprint(SITES, TAKES)
SPARSE = PLAN.frame_bytes  # so that the survey thins the last as well


class Ours:
    """Copies on the stream that computes."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def memory(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def record(self) -> Any:
        return self.simulation.record(COMPUTE)

    def synchronize(self, mark: Any) -> None:
        self.simulation.synchronize(mark)


@dataclass
class Side(Ours):
    """Copies on a side stream, carefully or not."""

    simulation: Simulation
    snapshot: bool = True
    ordered: bool = True
    keeps: bool = True

    def __post_init__(self) -> None:
        self.held: list[torch.Tensor] = []

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if self.snapshot:
            source = source.clone()
        if self.ordered:
            self.simulation.hold(SIDE, self.simulation.record(COMPUTE))
        with self.simulation.on(SIDE):
            target.copy_(source)
        if self.keeps:
            self.held.append(source)

    def record(self) -> tuple[Event, list[torch.Tensor]]:
        held, self.held = self.held, []
        return self.simulation.record(SIDE), held

    def synchronize(self, mark: tuple[Event, list[torch.Tensor]]) -> None:
        self.simulation.synchronize(mark[0])
        mark[1].clear()


class Patient(AccelStage):
    """Reads without waiting."""

    def wait(self, fence: object) -> None:
        pass


def found(memory: npt.NDArray[Any], plan: Blueprint) -> list[npt.NDArray[Any]]:
    """Return frames, statistics and the sizes of histograms that lie in a slot."""
    parts: list[npt.NDArray[Any]] = []
    for order in plan.orders:
        assert order is not None
        assert order.take is not None
        for start, nbytes, dtype in (
            (order.frame, order.take.nbytes, np.float32),
            (order.values, 72, np.float64),
            (order.counts, 4096 * 8, np.int64),
        ):
            assert start is not None
            parts.append(memory[start : start + nbytes].view(dtype).copy())
    return parts


def expected(tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
    whole, first, thin = (tensor.numpy() for tensor in tensors)
    parts: list[npt.NDArray[Any]] = []
    for tensor, frame in ((whole, whole), (first, first[:1]), (thin, thin[::2])):
        counts = np.bincount(tensor.reshape(-1).view(np.uint32) >> 20, minlength=4096)
        parts += [frame.reshape(-1), summarize(tensor), counts]
    return parts


def wrong_rows(
    device: Callable[[Simulation], Ours],
    seed: int,
    *,
    stage: type[AccelStage] = AccelStage,
    slots: int = 2,
    statistics: bool = True,
) -> int:
    """Train a few steps; return how many came out wrong.

    A layer writes its output, the tap takes it, a later layer overwrites it, and it is freed.
    """
    generator = torch.Generator().manual_seed(seed)
    wrong = 0
    with Simulation(seed) as simulation:
        at_work = stage(device(simulation))
        ring = at_work.ring(2, PLAN.nbytes)
        pending: deque[tuple[int, object, list[torch.Tensor]]] = deque()

        def written() -> bool:
            slot, fence, tensors = pending.popleft()
            at_work.wait(fence)
            rows = found(ring[slot].memory, PLAN)
            ring[slot].memory[:] = POISON
            pairs = list(zip(rows, expected(tensors), strict=True))
            return not all(
                np.allclose(row, right, rtol=1e-12, equal_nan=True)
                for row, right in pairs[:: 1 if statistics else 3]
            )

        for step in range(5):
            if len(pending) == slots:
                wrong += written()
            tensors = [torch.randn(site.shape or (), generator=generator) for site in SITES]
            for order, tensor in zip(PLAN.orders, tensors, strict=True):
                assert order is not None
                output = simulation.empty(tensor)
                output.copy_(tensor)
                at_work.put(ring[step % 2], order if statistics else plain(order), output)
                output.fill_(-7.0)
                del output
                simulation.idle()
            pending.append((step % 2, at_work.fence(), tensors))
        while pending:
            wrong += written()
    return wrong


def plain(order: Order) -> Order:
    return Order(order.site, order.source, order.take, order.frame)


@pytest.mark.parametrize("statistics", [True, False])
def test_what_lies_in_a_slot_is_what_the_tensors_held_in_the_tap(statistics: bool) -> None:
    seeds = range(2 if statistics else 60)

    assert [wrong_rows(Ours, seed, statistics=statistics) for seed in seeds] == [0] * len(seeds)


def test_a_careful_side_stream_would_do_as_well() -> None:
    assert [wrong_rows(Side, seed, statistics=False) for seed in range(40)] == [0] * 40


@pytest.mark.parametrize(
    ("device", "how"),
    [
        (Ours, {"stage": Patient}),
        (Ours, {"slots": 3}),
        (lambda simulation: Side(simulation, snapshot=False), {}),
        (lambda simulation: Side(simulation, ordered=False), {}),
        (lambda simulation: Side(simulation, keeps=False), {}),
    ],
    ids=["host does not wait", "slot reused", "by reference", "no order", "reference dropped"],
)
def test_staging_that_is_wrong_is_caught(
    device: Callable[[Simulation], Ours], how: dict[str, Any]
) -> None:
    assert any(wrong_rows(device, seed, statistics=False, **how) for seed in range(40))


def test_a_large_tensor_is_copied_in_pieces() -> None:
    copies: list[int] = []

    class Counting(Ours):
        def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
            copies.append(source.numel() * source.element_size())
            super().copy(target, source)

    tensor = torch.randn(5_000_000, generator=torch.Generator().manual_seed(0))
    site = Site(kind="weights", layer="w", shape=tuple(tensor.shape), dtype="float32")
    plan = blueprint([site], [ladder(site)[0]])
    with Simulation(0) as simulation:
        stage = AccelStage(Counting(simulation))
        (slot,) = stage.ring(1, plan.nbytes)
        assert plan.orders[0] is not None
        remote: Remote = simulation.empty(tensor)
        remote.copy_(tensor)
        stage.put(slot, plan.orders[0], remote)
        stage.wait(stage.fence())

    assert copies == [8 << 20, 8 << 20, 20_000_000 - (16 << 20), 72, 4096 * 8]
    np.testing.assert_array_equal(slot.memory[:20_000_000].view(np.float32), tensor.numpy())


def test_half_precision_is_made_on_the_device() -> None:
    tensor = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    site = Site(kind="weights", layer="w", shape=(64, 64), dtype="float32")
    plan = blueprint([site], [ladder(site)[-1]])
    order = plan.orders[0]
    assert order is not None
    assert order.take is not None
    with Simulation(0) as simulation:
        stage = AccelStage(Ours(simulation))
        (slot,) = stage.ring(1, plan.nbytes)
        remote = simulation.empty(tensor)
        remote.copy_(tensor)
        stage.put(slot, order, remote)
        stage.wait(stage.fence())

    frame = torch.from_numpy(slot.memory[: order.take.nbytes]).view(torch.bfloat16)
    thin = tensor[:: order.take.stride].bfloat16()
    assert torch.equal(frame.view(order.take.shape), thin)


def test_a_device_without_float64_gives_statistics_in_float64_after_the_fence() -> None:
    tensor = torch.tensor([[1.0, 2.0, torch.nan]])
    site = Site(kind="weights", layer="w", shape=(1, 3), dtype="float32")
    plan = blueprint([site], [None])
    order = plan.orders[0]
    assert order is not None
    assert order.values is not None
    with Simulation(0) as simulation:
        stage = AccelStage(Ours(simulation), DeviceExtractor(torch.float32))
        (slot,) = stage.ring(1, plan.nbytes)
        remote = simulation.empty(tensor)
        remote.copy_(tensor)
        stage.put(slot, order, remote)
        stage.wait(stage.fence())

    values = slot.memory[order.values : order.values + 72].view(np.float64)
    assert values.tolist() == [3.0, 1.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 5.0]


def test_a_tensor_of_the_host_in_a_model_of_a_device_is_copied_at_once() -> None:
    tensor = torch.arange(30.0).reshape(6, 5)
    order = PLAN.orders[2]
    assert order is not None
    assert order.frame is not None
    with Simulation(0) as simulation:
        stage = AccelStage(Ours(simulation))
        (slot,) = stage.ring(1, PLAN.nbytes)
        stage.put(slot, order, tensor)

        frame = slot.memory[order.frame : order.frame + 60].view(np.float32)
        assert frame.reshape(3, 5).tolist() == tensor[::2].tolist()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("samples", [None, 3])
def test_a_frame_of_a_sparse_tensor_is_that_of_the_dense_one(
    dimensions: int, samples: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(6, 9, 4, generator=generator).relu() - 1
    tensor[tensor < 0] = 0
    sparse = tensor.to_sparse(dimensions)
    site = Site(
        kind="gradients",
        layer="w",
        shape=(6, 9, 4),
        dtype="float32",
        batched=samples is not None,
        samples=samples,
    )
    for take in ladder(site):
        (order,) = blueprint([site], [take]).orders
        assert order is not None
        stage = CpuStage()
        slots = [stage.slot(1 << 17) for _ in range(2)]
        for slot, given in zip(slots, (tensor, sparse + sparse * -2 + sparse * 2), strict=True):
            slot.memory[:] = POISON
            stage.put(slot, order, given)
        left, right = (slot.memory for slot in slots)
        np.testing.assert_array_equal(left, right)


def test_where_no_memory_can_be_locked_it_is_said_once_and_ordinary_memory_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full(Ours):
        def memory(self, nbytes: int) -> torch.Tensor:
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    with Simulation(0) as simulation, caplog.at_level(logging.WARNING, "filmstrip"):
        slots = AccelStage(Full(simulation)).ring(2, 1_000_000)

    assert [slot.memory.nbytes for slot in slots] == [1_000_000] * 2
    (record,) = caplog.records
    assert "no 2 MB of page-locked memory could be had (CUDA error: out of memory);" in (
        record.getMessage()
    )
    assert "\n" not in record.getMessage()


@pytest.mark.skipif(accelerator() is not None, reason="there is an accelerator")
def test_without_an_accelerator_memory_cannot_be_locked_and_capture_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "filmstrip"):
        (slot,) = AccelStage(Accelerator()).ring(1, 64)

    assert slot.memory.nbytes == 64
    assert "page-locked" in caplog.text


def test_an_image_of_a_device_is_neither_read_nor_waited_for_in_the_training_thread() -> None:
    """A fake tensor has no values: whatever asks for one raises."""
    with FakeTensorMode():
        image, spec = whole_frame(torch.empty(2, 3, dtype=torch.bfloat16, device="xpu"), "NC")

    assert isinstance(image, Later)
    assert (image.nbytes, spec.shape, spec.dtype) == (24, (2, 3), "float32")


def test_a_private_copy_of_a_device_is_written_as_an_array_and_as_a_number(run: str) -> None:
    model = torch.nn.Linear(2, 1)
    tensor = torch.arange(6.0).reshape(2, 3).t()
    with Capture(model, torch.optim.SGD(model.parameters()), run) as capture:
        assert capture._session is not None
        spec = FrameSpec((3, 2), "float32")
        capture._session.frames("images", 0, {"x": (Later(tensor), spec)})
        capture._session.log(0, {"sum": Later(tensor.sum())})
        tensor.zero_()

    opened = open_run(run)
    assert opened.images["x"].frame(0).tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert opened.scalars["sum"].values.tolist() == [15.0]


def test_statistics_that_would_hold_up_an_accelerator_are_thinned_and_it_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = settle(
        {**DEFAULTS, "every": {"frames": 2, "statistics": 4}}, environment={}, command={}
    )
    thinned = spared(asked, AccelStage.least)
    said = capsys.readouterr().err

    assert thinned.every == {"frames": 2, "statistics": 12}
    assert said.count("\n") == 1
    assert "taking frames every 2 steps, statistics every 12 steps" in said
    assert spared(thinned, AccelStage.least) is thinned
    assert spared(asked, CpuStage.least) is asked
    assert capsys.readouterr().err == ""


class Rows:
    """A sink that keeps what was in a row, as the writer thread saw it."""

    def __init__(self) -> None:
        self.seen: dict[int, list[npt.NDArray[Any]]] = {}

    def write(self, row: Row) -> None:
        self.seen[row.step] = found(row.memory.memory, row.plan)

    def lose(self, step: int) -> None:
        raise AssertionError(f"step {step} was lost")


@pytest.mark.parametrize("seed", range(3))
def test_every_step_from_the_survey_on_is_written_as_it_was_on_the_device(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ledger, sink, right = Ledger(), Rows(), []
    with Simulation(seed) as simulation:
        pump = Pump(lambda: None, ledger=ledger)
        recorder: Recorder[torch.Tensor] = Recorder(
            schedule_of(1, wanted=EVERYTHING),
            limits=Limits(SPARSE, block=30.0),
            stage=AccelStage(Ours(simulation)),
            pump=pump,
            sink=sink,
            ledger=ledger,
        )
        for site in SITES:
            recorder.add(replace(site, shape=None))
        for step in range(6):
            recorder.begin(step)
            tensors = [torch.randn(site.shape or (), generator=generator) for site in SITES]
            for number, tensor in enumerate(tensors):
                output = simulation.empty(tensor)
                output.copy_(tensor)
                recorder.take(number, output)
                output.fill_(-7.0)
                del output
                simulation.idle()
            recorder.end()
            right.append(expected(tensors))
        assert pump.close(timeout=60)

    assert ledger.snapshot() == dict.fromkeys(ledger.snapshot(), 0)
    assert list(sink.seen) == list(range(6))
    for step, rows in sink.seen.items():
        for row, held in zip(rows, right[step], strict=True):
            np.testing.assert_allclose(row, held, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_layout_that_is_extended_by_outputs_keeps_what_was_asked_for_before(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ledger, sink, right = Ledger(), Rows(), []
    whole, _, thin = SITES
    with Simulation(seed) as simulation:
        pump = Pump(lambda: None, ledger=ledger)
        recorder: Recorder[torch.Tensor] = Recorder(
            schedule_of(1, wanted=EVERYTHING),
            limits=Limits(1 << 20, block=30.0),
            stage=AccelStage(Ours(simulation)),
            pump=pump,
            sink=sink,
            ledger=ledger,
        )
        recorder.add(thin)
        recorder.awaited = frozenset({"activations"})
        output: int | None = None
        for step in range(6):
            recorder.begin(step)
            drawn = [torch.randn(site.shape or (), generator=generator) for site in (thin, whole)]
            for number, tensor in enumerate(drawn if step > 2 else drawn[:1]):
                if number and output is None:
                    output = recorder.discover(replace(whole, shape=None))
                    assert output == 1
                held = simulation.empty(tensor)
                held.copy_(tensor)
                recorder.take(number, held)
                held.fill_(-7.0)
                del held
                simulation.idle()
            recorder.end()
            right.append([tensor.numpy() for tensor in drawn])
        assert pump.close(timeout=60)

    assert ledger.snapshot() == dict.fromkeys(ledger.snapshot(), 0)
    assert list(sink.seen) == list(range(6))
    for step, rows in sink.seen.items():
        assert len(rows) == (6 if step > 2 else 3)
        for number, values in enumerate(right[step][: len(rows) // 3]):
            frame, statistics, _ = rows[3 * number : 3 * number + 3]
            np.testing.assert_array_equal(frame, values.reshape(-1))
            np.testing.assert_allclose(statistics, summarize(values), rtol=1e-12)
