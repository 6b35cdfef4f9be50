from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from filmstrip.store import FrameSpec, create_run

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )


def run_python(page: str, folder: Path) -> None:
    """Run a page's Python, block after block, as one script."""
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    assert len(blocks("README.md", "python")) >= 5

    run_python("README.md", tmp_path)
    assert {"run.zarr", "own.zarr", "conv1.png", "any.svg", "ridge.png"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_the_python_of_the_stores_page_runs(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", {"conv1": FrameSpec((2, 2, 2, 2), "float32")})
        for step in (0, 20):
            writer.append(step, {"conv1": np.zeros((2, 2, 2, 2), np.float32)})

    run_python("store/README.md", tmp_path)


@pytest.mark.parametrize(
    "page", ["README.md", "store/README.md", "capture/README.md", "render/README.md"]
)
def test_links_and_pictures_of_a_page_are_there(page: str) -> None:
    text = (ROOT / page).read_text()

    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
