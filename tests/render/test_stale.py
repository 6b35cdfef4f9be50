"""Pictures are drawn again when what they show has changed, and never otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from filmstrip.render._driver import check_folder, drive, split
from filmstrip.render._executors import threads
from filmstrip.render._plan import animation_jobs, curve_jobs, grid_jobs, histogram_jobs
from filmstrip.render._source import RunSource
from filmstrip.render._spec import AnimationSpec, CurveSpec, GridSpec, HistogramSpec
from filmstrip.store import FrameSpec, create_run, open_run
from filmstrip.store._copy import copy
from filmstrip.store._prune import prune

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from filmstrip.render._batch import Job

EVERY_TENTH = range(0, 100, 10)


def write_constants(path: Path, kind: str, layers: str, steps: Sequence[int]) -> None:
    """Write frames that hold their step, and no statistics."""
    with create_run(path, if_exists="auto", first_step=steps[0] or None) as run:
        spec = FrameSpec((1, 2, 4, 4), "float32", layout="NCHW")
        writer = run.writer(kind, dict.fromkeys(layers, spec))
        for step in steps:
            writer.append(step, dict.fromkeys(layers, np.full(spec.shape, step, np.float32)))


def over_steps(source: RunSource) -> list[Job]:
    """Return the pictures of layer a that show more than one step."""
    jobs = animation_jobs(source, AnimationSpec(frame=GridSpec()), layers=["a"], samples=None)
    jobs += histogram_jobs([source], HistogramSpec(), layers=["a"], steps="all")
    return jobs + grid_jobs(source, GridSpec(scale="run"), layers=["a"], steps="-1", samples=None)


def draw(run: Path, out: Path, jobs_of: Callable[[RunSource], list[Job]]) -> set[str]:
    """Draw what is not there; return its names."""
    check_folder(out)
    source = RunSource(open_run(run))
    missing, kept = split(jobs_of(source), [source], out, "digest")
    with threads(2) as place:
        report = drive(missing, kept, runs=(str(run),), out=out, place=place)
    assert not report.failed
    return {one.job.path for one in report.drawn}


def test_what_shows_steps_that_were_pruned_is_drawn_again_and_nothing_else(tmp_path: Path) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_constants(run, "activations", "ab", EVERY_TENTH)
    assert len(draw(run, out, over_steps)) == 3
    assert draw(run, out, over_steps) == set()

    prune(run, kind="activations", layers="b", keep_every=20)
    assert draw(run, out, over_steps) == set()

    prune(run, kind="activations", layers="a", keep_every=20, keep_last=1)
    assert len(draw(run, out, over_steps)) == 3


def test_copies_of_a_run_with_other_steps_never_pass_for_each_other(tmp_path: Path) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_constants(run, "activations", "a", EVERY_TENTH)
    for name, steps in (("first", slice(0, 50)), ("second", slice(10, 50))):
        copy(run, tmp_path / name, steps=steps)

    assert len(draw(tmp_path / "first", out, over_steps)) == 3
    assert len(draw(tmp_path / "second", out, over_steps)) == 3
    assert draw(tmp_path / "second", out, over_steps) == set()


def test_maps_are_drawn_again_when_the_image_they_are_of_comes_to_be_known(tmp_path: Path) -> None:
    def maps(source: RunSource) -> list[Job]:
        jobs = grid_jobs(source, GridSpec(), layers=["a"], steps="0", samples=None)
        return jobs + animation_jobs(
            source, AnimationSpec(frame=GridSpec()), layers=["a"], samples=None
        )

    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_constants(run, "activations", "a", [0, 10])
    draw(run, out, maps)
    write_constants(run, "inputs", "x", [20])

    assert len(draw(run, out, maps)) == 2
    assert draw(run, out, maps) == set()


def test_what_more_steps_do_not_change_stands(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    def bounded(source: RunSource) -> list[Job]:
        film = AnimationSpec(frame=GridSpec(), step="0:20:10")
        page = HistogramSpec(view="single", page=True)
        jobs = animation_jobs(source, film, layers=["relu1"], samples=None)
        jobs += histogram_jobs([source], page, layers=[], steps="0")
        return jobs + curve_jobs([source], CurveSpec(), names=["accuracy", "late"], stats=())

    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(run, (0, 10))
    with create_run(run, first_step=20) as more:
        more.log(20, {"late": 1.0})
    assert len(draw(run, out, bounded)) == 4

    write_run(run, (30,), 30)
    assert draw(run, out, bounded) == {"scalars/accuracy/curve.png"}  # which was logged again

    with create_run(run, first_step=40) as more:
        more.log(40, {"late": 2.0})
    assert draw(run, out, bounded) == {"scalars/late/curve.png"}
    assert draw(run, out, bounded) == set()
