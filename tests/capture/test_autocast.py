from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.store import bit_histogram, open_run


def test_outputs_in_bfloat16_are_kept_to_the_bit_beside_weights_in_float32(run: str) -> None:
    torch.manual_seed(0)
    first = nn.Linear(5, 8)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    first.register_forward_hook(lambda m, i, output: outputs.append(output.detach().clone()))
    optimizer.register_step_pre_hook(lambda *_: weights.append(first.weight.detach().clone()))
    with Capture(model, optimizer, run, every=1, samples=4, on_pressure="block"):
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(4, 5)).square().mean()
            loss.backward()
            optimizer.step()

    opened = open_run(run)
    strip, statistics = opened.activations["0"], opened.statistics("activations")
    assert outputs[0].dtype is torch.bfloat16
    assert opened.weights["0.weight"].dtype == np.float32
    for step, output in enumerate(outputs):
        wide = output.float().numpy()
        frame = strip.frame(step)
        assert frame.dtype == np.float32
        np.testing.assert_array_equal(frame.view(np.uint32), wide.view(np.uint32))
        np.testing.assert_array_equal(statistics.bits("0")[1][step], bit_histogram(wide))
        weight = opened.weights["0.weight"].frame(step)
        np.testing.assert_array_equal(weight, weights[step].numpy())


def test_a_model_that_is_bfloat16_throughout_is_kept_to_the_bit(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients: list[torch.Tensor] = []

    def observe(*_: object) -> None:
        assert model.weight.grad is not None
        gradients.append(model.weight.grad.clone())

    optimizer.register_step_pre_hook(observe)
    with Capture(model, optimizer, run, every=1, on_pressure="block"):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 5).bfloat16()).square().mean().backward()
            optimizer.step()

    strip = open_run(run).gradients["weight"]
    for step, gradient in enumerate(gradients):
        np.testing.assert_array_equal(strip.frame(step), gradient.float().numpy())


def test_a_probe_leaves_nothing_in_what_autocast_remembers(run: str) -> None:
    def losses(**keywords: Any) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        found = []
        with Capture(model, optimizer, **keywords):
            for _ in range(4):
                with torch.autocast("cpu", torch.bfloat16):
                    optimizer.step()
                    optimizer.zero_grad()
                    loss = model(torch.randn(5, 6)).square().mean()
                    loss.backward()
                found.append(float(loss.detach()))
        return found

    probe = torch.ones(2, 6)
    assert losses(run=run, every=1, probe=probe) == losses(run=run, enabled=False)
