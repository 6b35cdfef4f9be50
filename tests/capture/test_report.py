"""What capture says of itself at the first due step."""

from __future__ import annotations

import logging
import re
import time

import pytest
import torch
from torch import nn

from filmstrip.capture.pytorch import Capture

SLEEP = 0.03


class Sleepy(nn.Module):
    """A step of it takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two numbers a sample."""
        time.sleep(SLEEP)
        output: torch.Tensor = self.fc(x)
        return output


def train(run: str, **keywords: int) -> None:
    model = Sleepy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, **{"every": 1, **keywords}):  # type: ignore[arg-type]
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()


def test_the_cost_of_a_capture_is_said_as_a_share_where_a_steps_time_is_known(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run, start=6)

    said = re.search(r"took ([\d.]+) ms of training time \(([\d.]+) % of", capsys.readouterr().err)
    assert said is not None
    cost, percent = map(float, said.groups())
    assert SLEEP * 0.9 < cost / 1000 / (percent / 100) < SLEEP * 20  # the share is rounded


def test_the_cost_of_a_capture_at_the_first_step_has_no_share_yet(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run)

    said = capsys.readouterr().err
    assert re.search(r"the first took [\d.]+ ms of training time, later ones mostly less; ", said)
    assert "of a step" not in said


def test_the_table_of_layers_is_logged_for_who_asks(
    run: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "filmstrip"):
        train(run)
    (table,) = (record.getMessage() for record in caplog.records)
    caplog.clear()
    train(f"{run}-2")

    lines = table.splitlines()
    assert "activations  fc         float32 4×2  float32 1×2  8 B" in lines
    assert "weights      fc.weight  float32 2×3  float32 2×3  24 B" in lines
    assert not caplog.records
    assert "fc.weight" not in capsys.readouterr().err
