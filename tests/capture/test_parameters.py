"""Parameters, gradients and optimizers of every kind that training scripts have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, run: str, *inputs: Any) -> None:
    with Capture(model, optimizer, run, every=1):
        for _ in range(3):
            optimizer.zero_grad()
            model(*inputs).abs().sum().backward()
            optimizer.step()


class Odd(nn.Module):
    """Holds a complex parameter, an integer one, a scalar, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.full((3,), 1 + 2j))
        self.index = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.turn[self.index] * self.scale


def test_parameters_of_any_dtype_are_kept_as_they_are(run: str) -> None:
    model = Odd()
    before = model.turn.detach().clone().numpy()
    steps(model, sgd(model), run, torch.ones(2, 3))

    opened = open_run(run)
    assert opened.layers("weights") == ["turn", "index", "scale", "unused"]
    np.testing.assert_array_equal(opened.weights["turn"].frame(0), before)
    np.testing.assert_array_equal(opened.weights["index"].frame(2), [2, 0, 1])
    assert opened.weights["scale"].frame(0) == 2.0
    assert opened.gradients["turn"].dtype == np.complex64
    assert opened.gradients["unused"].steps.tolist() == []
    assert opened.status().errors == 0


def test_a_parametrized_weight_is_kept_as_what_it_is_made_of(run: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    steps(model, sgd(model), run, torch.ones(2, 3))

    opened = open_run(run)
    parts = [f"0.parametrizations.weight.original{n}" for n in (0, 1)]
    assert sorted(opened.layers("weights")) == ["0.bias", *parts]
    length, direction = (opened.weights[part].frame(1) for part in parts)
    norm = np.linalg.norm(direction, axis=1, keepdims=True)
    output = np.ones((1, 3), np.float32) @ (length * direction / norm).T
    np.testing.assert_allclose(
        opened.activations["0"].frame(1), output + opened.weights["0.bias"].frame(1), rtol=1e-5
    )


def test_what_the_first_forward_pass_makes_is_kept_from_it_on(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(2))
    steps(model, torch.optim.SGD(model.parameters(), lr=0.1), run, torch.ones(2, 3))

    opened = open_run(run)
    assert opened.weights["0.weight"].shape == (2, 3)
    assert opened.weights["0.weight"].steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(np.abs(opened.gradients["0.weight"].frame(0)), np.full((2, 3), 2))


@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}, {"capturable": False}])
def test_the_way_an_optimizer_works_does_not_matter(run: str, how: dict[str, Any]) -> None:
    finals = []
    for watched in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **how)
        with Capture(model, optimizer, run, every=1, enabled=watched):
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.ones(2, 3)).square().sum().backward()
                optimizer.step()
        finals.append(model.weight.detach())

    assert torch.equal(*finals)
    weights = [open_run(run).weights["weight"].frame(step) for step in range(3)]
    assert not np.array_equal(weights[0], weights[1])


def test_an_optimizer_that_looks_several_times_ends_one_step_each(run: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    gradients: list[np.ndarray] = []
    weights: list[np.ndarray] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        wanted = torch.tensor([[1.0], [2.0], [3.0]])
        loss: torch.Tensor = (model(torch.eye(3)) - wanted).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        assert model.weight.grad is not None
        gradients.append(model.weight.grad.clone().numpy())
        return loss

    with Capture(model, optimizer, run, every=1):
        for _ in range(3):
            weights.append(model.weight.detach().clone().numpy())
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            gradients = gradients[-1:] if len(weights) == 3 else []

    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 1, 2]
    for step, weight in enumerate(weights):
        np.testing.assert_array_equal(opened.weights["weight"].frame(step), weight)
    np.testing.assert_array_equal(opened.gradients["weight"].frame(2), gradients[0])


def test_a_step_that_a_scaler_leaves_out_does_not_shift_a_trainers_count(run: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    iteration = 0
    weights, outputs = {}, {}
    with Capture(model, optimizer, run, every=1, step=lambda: iteration) as capture:
        for iteration in range(5):
            optimizer.zero_grad()
            weights[iteration] = model.weight.detach().clone().numpy()
            output = model(torch.ones(2, 3))
            outputs[iteration] = output.detach().numpy()
            scaler.scale(output.sum() * (float("inf") if iteration == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            capture.log(iteration=iteration)

    opened = open_run(run)
    for kind in ("activations", "weights", "gradients"):
        assert opened.steps(kind).tolist() == [0, 2, 3, 4]
    for step in (0, 2, 3, 4):
        np.testing.assert_array_equal(opened.weights["weight"].frame(step), weights[step])
        np.testing.assert_array_equal(opened.activations[""].frame(step), outputs[step][:1])
        assert np.isfinite(opened.gradients["weight"].frame(step)).all()
    logged = opened.scalars["iteration"]
    assert logged.steps.tolist() == logged.values.tolist() == [0, 1, 2, 3, 4]
    assert opened.status().dropped == 0


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_a_fused_optimizer_unscales_are_kept_unscaled(
    run: str, kind: Any, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, dtype=dtype)
    optimizer = kind(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    used = []
    with Capture(model, optimizer, run, every=1):
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(4, 3, dtype=dtype)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            assert model.weight.grad is not None
            used.append(model.weight.grad.float().numpy())  # the kernel writes it back

    gradients = open_run(run).gradients["weight"]
    for step in range(3):
        np.testing.assert_array_equal(gradients.frame(step), used[step])


def test_a_step_that_a_fused_optimizer_leaves_out_is_no_step(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weights, outputs = [], []
    with Capture(model, optimizer, run, every=1) as capture:
        for attempt in range(6):
            optimizer.zero_grad()
            weight = model.weight.detach().clone().numpy()
            output = model(torch.full((2, 3), float(attempt)))
            left_out = attempt in (0, 3)
            scaler.scale(output.sum() * (float("inf") if left_out else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            capture.log(attempt=attempt)
            if not left_out:
                weights.append(weight)
                outputs.append(output.detach().numpy())
        assert capture.state_dict() == {"step": 4}

    opened = open_run(run)
    assert opened.steps("gradients").tolist() == [0, 1, 2, 3]
    for step in range(4):
        np.testing.assert_array_equal(opened.weights["weight"].frame(step), weights[step])
        np.testing.assert_array_equal(opened.activations[""].frame(step), outputs[step][:1])
    assert opened.gradients["bias"].read()[:].ravel().tolist() == [2, 2, 2, 2]
    assert opened.scalars["attempt"].values.tolist() == [1, 2, 4, 5]
    assert opened.steps("health").tolist() == [0, 1, 2, 3]
    assert opened.status().dropped == 0


def test_gradients_that_were_unscaled_and_clipped_are_not_divided_again(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Capture(model, optimizer, run, every=1):
        scaler.scale(model(torch.ones(2, 3)).sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert model.weight.grad is not None
        clipped = model.weight.grad.clone().numpy()
        scaler.step(optimizer)
        scaler.update()

    np.testing.assert_array_equal(open_run(run).gradients["weight"].frame(0), clipped)


class Fused(torch.optim.SGD):
    """Stands for one whose scaler lies on a device; what is on meta raises when it is read."""

    _step_supports_amp_scaling = True
    grad_scale = torch.ones((), device="meta")
    found_inf = torch.ones((), device="meta")

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad)


def test_what_a_scaler_found_on_a_device_is_not_waited_for(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(3, 1)
    steps(model, Fused(model.parameters(), lr=0.1), run, torch.ones(2, 3))

    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 1, 2]
    assert "gradients" not in opened.kinds or opened.steps("gradients").size == 0
    assert caplog.text.count("by a scale on a device") == 1
    assert opened.status().errors == 0
