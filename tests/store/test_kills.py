"""Some kills at random instants; ``scripts/kill`` does hundreds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from store import kills


@pytest.mark.parametrize(("writers", "count"), [(1, 5), (4, 7)])
def test_killed_writers_leave_nothing_torn_wrong_or_lost(writers: int, count: int) -> None:
    # In a process of its own: it forks, and this one has threads by now.
    arguments = ["--writers", str(writers), "--kills", str(count), "--seed", "1"]
    done = subprocess.run(
        [sys.executable, kills.__file__, *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    columns = done.stdout.splitlines()[-1].split()
    assert columns[:2] == [str(writers), str(count)]
    assert int(columns[3]) > 100
