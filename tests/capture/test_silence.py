"""What is kept, and said, where no output comes of what was selected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.store import Run, open_run

X = torch.arange(6.0).reshape(2, 3)


class Odd(nn.Module):
    """Uses the weights of its leaves, and calls one of them only from a step on."""

    def __init__(self, called_from: int = 1000) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        self.calls, self.called_from = 0, called_from

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one number a sample."""
        self.calls += 1
        if self.calls > self.called_from:
            x = self.first(x)
        else:
            x = nn.functional.linear(x, self.first.weight, self.first.bias)
        return nn.functional.linear(x, self.second.weight, self.second.bias)


class Attending(nn.Module):
    """The only leaf of attention is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what attention returns."""
        output: torch.Tensor = self.attention(x, x, x)[0]
        return output


Used = dict[str, list[torch.Tensor]]


def train(
    model: nn.Module,
    run: str,
    *,
    steps: int = 3,
    evaluate: Callable[[], object] = lambda: None,
    **keywords: object,
) -> Used:
    """Train with capture, evaluate behind each step, and return what each step used."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    used: Used = {name: [] for name, _ in model.named_parameters()}
    with Capture(model, optimizer, run, **{"every": 1, **keywords}):  # type: ignore[arg-type]
        for _ in range(steps):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                used[name].append(torch.stack([parameter.detach(), parameter.grad]).clone())
            optimizer.step()
            evaluate()
    return used


def check_parameters(opened: Run, used: Used) -> None:
    """Check that weights and gradients of every step are there, bit by bit."""
    for name, pairs in used.items():
        for step, (weight, gradient) in enumerate(pairs):
            np.testing.assert_array_equal(opened.weights[name].frame(step), weight)
            np.testing.assert_array_equal(opened.gradients[name].frame(step), gradient)
    for kind in ("weights", "gradients"):
        steps = list(range(len(next(iter(used.values())))))
        assert opened.steps(kind).tolist() == opened.statistics(kind).steps.tolist() == steps


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("model", [Odd, Attending])
def test_weights_and_gradients_do_not_wait_for_outputs_that_never_come(
    model: type[nn.Module],
    steps: int,
    run: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = train(model(), run, steps=steps)

    opened = open_run(run)
    check_parameters(opened, used)
    assert "activations" not in opened.kinds
    assert opened.status().dropped == 0
    assert not caplog.text
    silent = {
        Odd: "first, second",
        Attending: "attention.out_proj (name 'attention' in layers instead)",
    }
    assert capsys.readouterr().err.count(f"nothing came from {silent[model]}: ") == 1


def test_nothing_waits_for_outputs_where_only_parameters_are_selected(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Odd(called_from=0)
    train(model, run, steps=1, layers=["*.weight"], max_capture_bytes=2 * (48 + 16))

    opened = open_run(run)
    for kind in ("weights", "gradients"):
        assert opened.layers(kind) == ["first.weight", "second.weight"]
    assert opened.weights["first.weight"].frame(0).shape == (4, 3)  # all of the budget is theirs
    assert "nothing came" not in capsys.readouterr().err


def test_outputs_that_come_later_are_kept_from_then_on(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Odd(called_from=2)
    outputs: list[torch.Tensor] = []
    model.first.register_forward_hook(lambda module, x, output: outputs.append(output.detach()))
    used = train(model, run, steps=5)

    opened = open_run(run)
    check_parameters(opened, used)
    assert opened.layers("activations") == ["first"]
    assert opened.activations["first"].steps.tolist() == [2, 3, 4]
    for step, output in enumerate(outputs, start=2):
        np.testing.assert_array_equal(opened.activations["first"].frame(step), output[:1])
        statistics = opened.statistics("activations")["first", "max"]
        assert statistics.values[step - 2] == output.max()
    assert opened.status().dropped == 0
    said = capsys.readouterr().err
    assert "nothing came from first, second: " in said
    assert "nothing came from second: " in said


def test_weights_leave_room_for_outputs_that_come_later(run: str) -> None:
    weights = sum(parameter.nbytes for parameter in Odd().parameters())
    train(Odd(called_from=1), run, max_capture_bytes=2 * weights + 16)

    opened = open_run(run)
    assert opened.activations["first"].frame(1).shape == (1, 4)
    assert opened.weights["first.weight"].steps.tolist() == [0, 1, 2]
    assert opened.weights["first.weight"].frame(2).size < 12


def test_outputs_that_come_inside_of_a_closure_are_kept_beside_the_weights(run: str) -> None:
    """Weights of the step are in its slot before the first output comes."""
    model = Odd(called_from=20)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)
    weights = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(X).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with Capture(model, optimizer, run, every=1):
        for step in range(4):
            model.called_from = 0 if step > 1 else 1000
            weights.append(model.first.weight.detach().clone())
            optimizer.step(closure)  # type: ignore[no-untyped-call]

    opened = open_run(run)
    assert opened.steps("activations").tolist() == [2, 3]
    for step, weight in enumerate(weights):
        np.testing.assert_array_equal(opened.weights["first.weight"].frame(step), weight)


def test_a_step_that_fails_when_outputs_come_leaves_them_to_the_next(run: str) -> None:
    model = Odd(called_from=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1):
        for attempt in range(4):
            loss = model(X).sum()
            if attempt == 1:
                continue  # as where the loss was not finite
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 1, 2]
    assert opened.steps("activations").tolist() == [1, 2]


def test_where_only_outputs_are_captured_and_none_comes_the_loss_has_its_cause(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(Attending(), run, steps=2, kinds="activations")

    assert open_run(run).status().dropped == 2
    assert (
        "nothing came from attention.out_proj (name 'attention' in layers instead)" in caplog.text
    )
    assert "2 due steps dropped (2: nothing came of what is captured)" in caplog.text


def evaluating(model: nn.Module) -> Callable[[], None]:
    """Return what evaluates a model."""

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            model(X)
        model.train()

    return evaluate


def test_an_evaluation_behind_each_step_costs_no_step_its_weights(
    run: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Odd(called_from=0)
    used = train(model, run, evaluate=evaluating(model), phases="eval")

    opened = open_run(run)
    check_parameters(opened, used)
    assert opened.steps("activations").tolist() == [1, 2]  # an evaluation is of the weights to come
    for step in (1, 2):
        weight, _ = used["first.weight"][step]
        bias, _ = used["first.bias"][step]
        expected = nn.functional.linear(X, weight, bias)[:1]
        np.testing.assert_allclose(opened.activations["first"].frame(step), expected, rtol=1e-6)
    assert opened.status().dropped == 0
    assert "phases='eval' takes outputs of passes in eval mode" in capsys.readouterr().err
    assert not caplog.text


def test_a_run_without_any_evaluation_that_was_asked_for_says_so(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    used = train(Odd(called_from=0), run, phases="eval")

    check_parameters(open_run(run), used)
    assert "no captured step had a pass in eval mode" in caplog.text


def test_a_dry_run_shows_what_there_is_where_no_output_comes(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Attending(), run, steps=1, dry_run=True)

    said = capsys.readouterr().err
    assert "weights    attention.out_proj.weight" in said
    assert "nothing came from attention.out_proj (name 'attention' in layers instead)" in said
    assert "dry run: nothing is written" in said
