"""What is said at close when another optimizer has taken the place of the one that was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run

SAID = "forward passes went by since the last step"


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def sgd(model: nn.Module, **how: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, **how)


def learn(model: nn.Module, *optimizers: torch.optim.Optimizer, passes: int = 1) -> None:
    model.zero_grad()
    for _ in range(passes):
        model(torch.randn(5, 3)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_an_optimizer_that_is_replaced_is_missed_at_close(
    run: str, how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = perceptron()
    optimizer = sgd(model, **how)
    with Capture(model, optimizer, run, every=1):
        for step in range(9):
            if step == 4:
                optimizer = sgd(model, **how)
            learn(model, optimizer)

    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3]
    assert f"5 {SAID}" in caplog.text
    assert "create a new Capture" in caplog.text
    assert len(caplog.records) == 1


def test_of_several_optimizers_the_one_that_is_replaced_is_missed(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = perceptron()
    first, second = sgd(model[0]), sgd(model[2])
    with Capture(model, [first, second], run, every=1):
        for step in range(6):
            if step == 3:
                second = sgd(model[2])
            learn(model, first, second)

    assert open_run(run).steps("weights").tolist() == [0, 1, 2]
    assert f"3 {SAID}" in caplog.text


def closures(model: nn.Module, capture: Callable[..., Capture]) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=7)

    def closure() -> torch.Tensor:
        closure.calls += 1  # type: ignore[attr-defined]
        if closure.calls == 20:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss: torch.Tensor = (model(torch.ones(5, 3)) - 2).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    closure.calls = 0  # type: ignore[attr-defined]

    def train() -> None:
        for _ in range(20):
            optimizer.step(closure)  # type: ignore[no-untyped-call]

    with capture(optimizer), pytest.raises(KeyboardInterrupt):
        train()


def growing_accumulation(model: nn.Module, capture: Callable[..., Capture]) -> None:
    optimizer = sgd(model)
    with capture(optimizer):
        for passes in (1, 2, 4):
            learn(model, optimizer, passes=passes)
        learn(model, passes=7)


def evaluation(model: nn.Module, capture: Callable[..., Capture]) -> None:
    optimizer = sgd(model)
    with capture(optimizer):
        learn(model, optimizer)
        for mode in (False, True):  # not everybody calls eval(), or forbids gradients
            for _ in range(10):
                model.train(mode)(torch.ones(5, 3))


def alternation(model: nn.Module, capture: Callable[..., Capture]) -> None:
    optimizers = [sgd(part) for part in (model[0], model[2])]  # type: ignore[index]
    with capture(optimizers):
        for step in range(14):
            learn(model, optimizers[step % (2 if step < 7 else 5) == 0])


def one_of_two_alternating(model: nn.Module, capture: Callable[..., Capture]) -> None:
    optimizers = [sgd(part) for part in (model[0], model[2])]  # type: ignore[index]
    with capture(optimizers[0]):
        for step in range(14):
            learn(model, optimizers[step % 5 == 0])


def one_after_the_other(model: nn.Module, capture: Callable[..., Capture]) -> None:
    optimizers = [torch.optim.Adam(model.parameters()), sgd(model)]
    with capture(optimizers):
        for step in range(10):
            learn(model, optimizers[step > 4])


def clamped(model: nn.Module, capture: Callable[..., Capture]) -> None:
    optimizer = sgd(model)
    with capture(optimizer):
        for _ in range(5):
            learn(model, optimizer)
            for parameter in model.parameters():
                parameter.data.clamp_(-0.01, 0.01)
        learn(model)


@pytest.mark.parametrize(
    "train",
    [
        closures,
        growing_accumulation,
        evaluation,
        alternation,
        one_of_two_alternating,
        one_after_the_other,
        clamped,
    ],
)
def test_nothing_is_said_where_the_optimizers_given_are_those_that_step(
    run: str, train: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    model = perceptron()
    train(model, lambda optimizer: Capture(model, optimizer, run, every=1))

    assert open_run(run).steps("weights").size > 0
    assert SAID not in caplog.text
