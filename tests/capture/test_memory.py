from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_thousand_captures_with_a_slow_disk_hold_no_more_than_the_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every capture has 2 MB, and every write takes longer than a step."""
    real = os.pwritev

    def pwritev(descriptor: int, *given: Any) -> int:
        time.sleep(0.001)
        return real(descriptor, *given)

    torch.manual_seed(0)
    model = nn.Linear(500, 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(4, 500)
    run = str(tmp_path / "run.zarr")
    levels = []
    with Capture(
        model,
        optimizer,
        run,
        every=1,
        kinds="weights",
        histograms=False,
        on_pressure="drop",
        max_run_bytes="100MB",
    ) as capture:
        monkeypatch.setattr(os, "pwritev", pwritev)
        for step in range(1000):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 49:
                gc.collect()
                levels.append(resident())
        assert capture._session is not None
        slots = capture._session.recorder._slots
        (nbytes,) = {slot.memory.nbytes for slot in slots}

    assert len(slots) == 2
    assert nbytes > 2_000_000
    growth = max(levels[2:]) - min(levels[:2])
    assert growth < 32_000_000  # of the 2 GB that were due
    opened = open_run(run)
    dropped = 1000 - len(opened.statistics("weights").steps)
    assert dropped > 0
    assert opened.status().dropped == dropped
    assert len(opened.steps("health")) == 1000
    assert np.isfinite(opened.weights["weight"].frame(0)).all()
