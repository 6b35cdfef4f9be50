"""Models that do what models seldom do: training stays as it was, and what came is told rightly."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint

from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run

STEPS = 5


class Calls(nn.Module):
    """Does with a list of modules whatever it is told to."""

    def __init__(self, *parts: nn.Module, call: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.parts, self.call = nn.ModuleList(parts), call
        self.depth = 0

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self, x)


def again(self: Calls, x: torch.Tensor) -> Any:
    """Call the model inside of its own forward pass, as networks over trees do."""
    x = self.parts[0](x)
    self.depth += 1
    try:
        return self(x) if self.depth < 3 else x
    finally:
        self.depth -= 1


def early_stop(self: Calls, x: torch.Tensor) -> Any:
    for part in self.parts:
        x = checkpoint(part, x, use_reentrant=False)
    return x


def nested(self: Calls, x: torch.Tensor) -> Any:
    y = self.parts[0](x)
    given = self.parts[1]((y, {"twice": [2 * y, (3 * y, None)], "number": 5}, "text"))
    return given[0] + given[1]["twice"][0]


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(4, 4))


def dense(count: int = 3) -> nn.Module:
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(count)])


def frozen() -> nn.Module:
    model = dense()
    model[1].requires_grad_(False)  # type: ignore[index]
    return model


@dataclass(frozen=True)
class Case:
    """A model, what happens to it before each step, and the activations that are expected."""

    make: Callable[[], nn.Module]
    expected: set[str]
    before: Callable[[int, nn.Module, torch.optim.Optimizer], None] = lambda *given: None
    dtype: torch.dtype = torch.float32
    x: tuple[int, ...] = (3, 4)


def freeze(step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    model[0].requires_grad_(step < 2 or step > 3)


def thaw(step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    if step == 2:
        model[1].requires_grad_(True)


def exchange(step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    if step == 2:
        torch.manual_seed(7)
        model[1] = nn.Linear(4, 4)
        optimizer.add_param_group({"params": list(model[1].parameters())})


def remove(step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    if step == 2:
        model[1].bias = None


def copied(step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    copy.deepcopy(model)(torch.ones(7, 4)).sum().backward()


def functional(step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    given = {name: 2 * value.detach() for name, value in model.named_parameters()}
    with torch.no_grad():
        torch.func.functional_call(model, given, (torch.ones(7, 4),))


CASES = {
    "nested outputs": Case(
        lambda: Calls(nn.Linear(4, 4), nn.Identity(), call=nested),
        {"parts.0", "parts.1.0", "parts.1.1.twice.0", "parts.1.1.twice.1.0"},
    ),
    "a model that calls itself": Case(
        lambda: Calls(nn.Linear(4, 4), call=again), {"parts.0", "parts.0#1", "parts.0#2"}
    ),
    "checkpoints that stop early": Case(
        lambda: Calls(block(), block(), call=early_stop),
        {f"parts.{part}.{layer}" for part in range(2) for layer in range(4)},
    ),
    "parametrizations": Case(
        lambda: nn.Sequential(
            weight_norm(nn.Linear(4, 4)),
            spectral_norm(nn.Linear(4, 4)),
            orthogonal(nn.Linear(4, 4)),
        ),
        {"0", "1", "2"},
    ),
    "a layer that is frozen for a while": Case(dense, {"0", "1", "2"}, freeze),
    "a layer that thaws": Case(frozen, {"0", "1", "2"}, thaw),
    "a layer that is exchanged": Case(dense, {"0", "1", "2"}, exchange),
    "a parameter that goes": Case(dense, {"0", "1", "2"}, remove),
    "a copy that runs, too": Case(dense, {"0", "1", "2"}, copied),
    "other parameters for a call": Case(dense, {"0", "1", "2"}, functional),
    "bfloat16 throughout": Case(lambda: dense().bfloat16(), {"0", "1", "2"}, dtype=torch.bfloat16),
    "float16 throughout": Case(lambda: dense().half(), {"0", "1", "2"}, dtype=torch.float16),
    "float64 throughout": Case(lambda: dense().double(), {"0", "1", "2"}, dtype=torch.float64),
    "channels last": Case(
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True)).to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        ),
        {"0", "1", "2"},
        x=(3, 4, 6, 6),
    ),
}


def trained(case: Case, run: str | None) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Return losses and parameters in the end; with a run, captured at every step."""
    torch.manual_seed(0)
    model = case.make()
    # Of float16, which loses small gradients, no rate of learning is too large.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    capture = Capture(model, optimizer, run, every=1) if run is not None else None
    losses = []
    x = torch.randn(case.x).to(case.dtype).requires_grad_()
    for step in range(STEPS):
        case.before(step, model, optimizer)
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if capture is not None:
        capture.close()
    return losses, {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_training_is_as_it_was_and_every_output_is_kept(
    run: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    losses, parameters = trained(case, None)
    captured, kept = trained(case, run)

    assert all(map(torch.equal, losses, captured))
    assert all(torch.equal(parameters[name], kept[name]) for name in parameters)
    opened = open_run(run)
    assert set(opened.layers("activations")) == case.expected
    assert {tuple(opened.activations[layer].steps) for layer in case.expected} == {
        tuple(range(STEPS))
    }
    counts = opened.statistics("weights")
    assert np.isfinite(counts[counts.layers[0], "l2"].values).all()
    assert opened.status().errors == 0
    told: dict[Any, str] = {
        thaw: "came after the first capture",
        remove: "no parameter of their module",
    }
    said = told.get(case.before, "nothing is said")
    assert all(said in record.message or "skipped" in record.message for record in caplog.records)


def test_what_takes_the_place_of_a_layer_is_taken_from_then_on(run: str) -> None:
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    weights = []
    x = torch.randn(3, 4)
    with Capture(model, optimizer, run, every=1, samples=3):
        for step in range(STEPS):
            exchange(step, model, optimizer)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            weights.append([each.detach().clone().numpy() for each in model.parameters()])
            optimizer.step()

    opened = open_run(run)
    names = [name for name, _ in model.named_parameters()]
    for step, values in enumerate(weights):
        for name, value in zip(names, values, strict=True):
            np.testing.assert_array_equal(opened.weights[name].frame(step), value)
        given = opened.activations["0"].frame(step)
        expected = given @ values[2].T + values[3]
        np.testing.assert_allclose(opened.activations["1"].frame(step), expected, atol=1e-6)
    assert not model[1]._forward_hooks  # type: ignore[index]


def test_what_is_put_around_a_layer_leaves_it_what_it_is(run: str) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.more = base, nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.more(x)  # type: ignore[no-any-return]

    model: Any = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Capture(model, optimizer, run, every=1, samples=3):
        for step in range(3):
            if step == 1:
                model[1] = Adapted(model[1])
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()

    opened = open_run(run)
    for kind, layer in (("activations", "1"), ("weights", "1.weight")):
        assert opened.strip(kind, layer).steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("step", [0, 2])
def test_gradients_that_begin_after_attach_are_kept_or_said_to_be_late(
    run: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = frozen()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Capture(model, optimizer, run, every=1):
        for number in range(4):
            if number == step:
                model[1].requires_grad_(True)
            optimizer.zero_grad()
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()

    opened = open_run(run)
    if step:
        assert "1.weight" not in opened.layers("gradients")
        assert "gradients of '1.weight' came after the first capture" in caplog.text
    else:
        assert opened.gradients["1.weight"].steps.tolist() == [0, 1, 2, 3]
        assert caplog.records == []


class Threads(nn.Module):
    """Runs its layers in threads of their own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(16, 256) for _ in range(count))
        self.seen: list[list[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: list[Any] = [None] * len(self.parts)

        def work(number: int) -> None:
            outputs[number] = self.parts[number](x)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(outputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seen.append([output.detach().clone() for output in outputs])
        return torch.stack(outputs).sum(0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let each operation have one thread, so that several may run at a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def test_layers_that_run_in_threads_do_not_write_over_each_other(run: str) -> None:
    torch.manual_seed(0)
    model = Threads(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with one_thread(), Capture(model, optimizer, run, every=1, kinds="activations"):
        for _ in range(8):
            model(torch.randn(800, 16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    opened = open_run(run)
    statistics = opened.statistics("activations")
    for number in range(8):
        layer = f"parts.{number}"
        for step, outputs in enumerate(model.seen):
            values = outputs[number].numpy()
            assert statistics[layer, "min"].values[step] == values.min()
            assert statistics[layer, "max"].values[step] == values.max()
            counted = opened.activations[layer].histogram(step, bins=10)[0].sum()
            assert counted == pytest.approx(values.size)
            np.testing.assert_array_equal(opened.activations[layer].frame(step), values[:1])


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def saved_by_op(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute GELU and casts again, and save all else, so that what a tap does would be counted."""
    again = {torch.ops.aten.gelu.default, torch.ops.aten._to_copy.default}
    policy = checkpoints.CheckpointPolicy
    return policy.PREFER_RECOMPUTE if op in again else policy.MUST_SAVE


@pytest.mark.skipif(
    not hasattr(checkpoints, "CheckpointPolicy"), reason="torch 2.4 has no such checkpoints"
)
def test_what_a_checkpoint_saves_by_op_is_not_mixed_up_with_what_taps_compute(run: str) -> None:
    context = partial(checkpoints.create_selective_checkpoint_contexts, saved_by_op)

    def losses(path: str | None) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(perceptron(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        capture = Capture(model, optimizer, path or "", every=1, enabled=path is not None)
        found = []
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                x = torch.randn(4, 8, requires_grad=True)
                x = checkpoint(model[0], x, use_reentrant=False, context_fn=context)
                loss = model[1](x).square().mean()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        capture.close()
        return found

    assert losses(run) == losses(None)
    assert set(open_run(run).layers("activations")) == {"0.0", "0.1", "0.2", "0.3", "1"}


def test_a_watched_model_can_be_scripted_and_so_can_its_copy(run: str) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather export
        with Capture(model, optimizer, run, every=1):
            for one in (model, copy.deepcopy(model)):
                torch.testing.assert_close(torch.jit.script(one)(x), one(x))
            model(x).sum().backward()
            optimizer.step()

    assert open_run(run).steps("activations").tolist() == [0]


def test_a_child_that_has_the_name_of_a_wrappers_keeps_it(run: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Sequential()
            self.module.add_module("fc", nn.Linear(4, 3))
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return self.fc(self.module(x))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1, samples=2, layers=["fc", "module.fc"]):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    opened = open_run(run)
    assert opened.layers("activations") == ["module.fc", "fc"]
    assert opened.weights["fc.weight"].shape == (2, 3)
    assert opened.weights["module.fc.weight"].shape == (3, 4)
    assert opened.activations["fc"].shape == (2, 2)
    assert opened.activations["module.fc"].shape == (2, 3)
    statistics = opened.statistics("weights")
    assert [statistics[f"{name}.weight", "count"].values for name in ("fc", "module.fc")] == [6, 12]


@pytest.mark.parametrize("way", ["compiled", "checkpointed", "replicated"])
def test_a_wrapper_inside_of_a_model_is_no_part_of_a_name(run: str, way: str) -> None:
    class Replicated(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> Any:
            return self.module(x)

    Replicated.__name__ = "DistributedDataParallel"  # as that of some other library
    wrap: Any = {
        "compiled": lambda module: torch.compile(module, backend="eager"),
        "checkpointed": checkpoint_wrapper,
        "replicated": Replicated,
    }[way]
    model = nn.Sequential(wrap(nn.Linear(4, 3)), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1, samples=2):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    opened = open_run(run)
    assert opened.layers("activations") == ["0", "1"]
    assert opened.layers("weights") == ["0.weight", "0.bias", "1.weight", "1.bias"]
    theirs = next(name for name, _ in model.named_parameters())
    np.testing.assert_array_equal(
        opened.weights[theirs].frame(0), opened.weights["0.weight"].frame(0)
    )


def test_a_weight_that_is_made_of_another_one_from_now_on_is_said_to_be_gone(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1, on_pressure="block"):
        for step in range(4):
            if step == 2:
                spectral_norm(model[0])
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()

    assert open_run(run).weights["0.weight"].steps.tolist() == [0, 1]
    assert open_run(run).weights["1.weight"].steps.tolist() == [0, 1, 2, 3]
    assert caplog.text.count("no parameter of their module any more") == 1


LOADS = """
import sys
sys.modules["filmstrip"] = None  # cannot be imported
import torch
model = torch.load(sys.argv[1], weights_only=False)
torch.compile(model, backend="eager", fullgraph=True)(torch.ones(1, 8))
print("loaded")
"""


@pytest.mark.skipif(
    torch.__version__ < "2.7", reason="needs torch 2.7 to be compiled without a break"
)
def test_a_model_that_was_saved_whole_is_loaded_where_nobody_knows_of_capture(
    run: str, tmp_path: Path
) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1):
        torch.save(copy.deepcopy(model), tmp_path / "copy.pt")
        torch.save(model, tmp_path / "model.pt")
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()

    for name in ("copy.pt", "model.pt"):
        done = subprocess.run(
            [sys.executable, "-c", LOADS, str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout == "loaded\n", done.stderr
