"""File names, digests, batches, and the loop that draws them."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filmstrip.render import OutputError, SpecError
from filmstrip.render._batch import Batch, Job, divide
from filmstrip.render._draw import Drawn, draw_batch
from filmstrip.render._driver import check_folder, drive, split
from filmstrip.render._executors import Place, available_cpus, threads
from filmstrip.render._image import digest_of, write_atomically
from filmstrip.render._manifest import Report, write_manifest
from filmstrip.render._plan import curve_jobs, grid_jobs, histogram_jobs
from filmstrip.render._source import RunSource, open_sources
from filmstrip.render._spec import (
    CurveSpec,
    GridSpec,
    HistogramSpec,
    digest,
    file_name,
    folder_name,
)
from filmstrip.store import create_run, open_run

if TYPE_CHECKING:
    from collections.abc import Callable


@given(name=st.text(max_size=300))
def test_no_name_leaves_its_folder(name: str) -> None:
    folder = folder_name(name)

    parts = PurePosixPath(f"out/{folder}/x").parts
    assert len(parts) == 3
    assert parts[1] not in {"..", ".", ""}
    assert len(folder.encode()) <= 200
    assert not folder.startswith(".")


@given(
    names=st.lists(st.text(alphabet="a./\\:*~\n", max_size=6), min_size=2, max_size=2, unique=True)
)
def test_distinct_dotted_names_have_distinct_folders(names: list[str]) -> None:
    first, second = (name.replace("/", ".") for name in names)

    assert (folder_name(first) == folder_name(second)) == (first == second)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 7},
        {"sample": 1},
        {"channels": "0:4"},
        {"columns": 3},
        {"padding": 0},
        {"vmin": -1.0, "vmax": 1.0},
        {"scale": "each"},
        {"cmap": "magma"},
        {"downsample": "mean"},
        {"dpi": 100.0},
        {"format": "svg"},
        {"layer": "b"},
        {"kind": "weights"},
    ],
)
def test_what_is_not_the_default_is_in_the_name_and_in_the_digest(change: dict[str, Any]) -> None:
    plain = GridSpec(layer="a", step=3)
    changed = replace(plain, **change)

    assert file_name(plain) != file_name(changed)
    assert digest(plain, "run") != digest(changed, "run")


def test_the_digest_is_of_the_run_too() -> None:
    assert digest(GridSpec(), "one") != digest(GridSpec(), "two")


@given(count=st.integers(0, 300), workers=st.integers(1, 16), rows=st.integers(1, 100))
def test_batches_hold_every_picture_once_in_order_and_never_two_files(
    count: int, workers: int, rows: int
) -> None:
    jobs = [Job(GridSpec(layer="a", step=s), f"{s}.png", s // rows) for s in range(count)]

    batches = divide(jobs, runs=("run",), out="out", workers=workers)

    assert [job for batch in batches for job in batch.jobs] == jobs
    assert all(1 <= len(batch.jobs) <= 32 for batch in batches)
    assert all(len({job.shard for job in batch.jobs}) == 1 for batch in batches)
    if count >= 4 * workers:
        assert len(batches) >= min(4 * workers, count) * 0.5


def test_a_batch_pickles_to_a_worker_and_draws_there(run_path: Path, tmp_path: Path) -> None:
    job = Job(HistogramSpec(layer="relu1", view="ridge"), "a/b.png")
    batch = Batch((str(run_path),), str(tmp_path), (job,))

    (drawn,) = draw_batch(pickle.loads(pickle.dumps(batch)))

    assert drawn.error == ""
    assert digest_of(tmp_path / "a/b.png") == drawn.digest
    assert pickle.loads(pickle.dumps(drawn)) == drawn


def jobs_of(run_path: Path) -> tuple[list[Job], list[RunSource]]:
    source = RunSource(open_run(run_path))
    jobs = grid_jobs(source, GridSpec(), layers=["relu1", "fc"], steps="all", samples=None)
    jobs += histogram_jobs([source], HistogramSpec(), layers=["fc"], steps="all")
    jobs += curve_jobs([source], CurveSpec(format="svg"), names=["accuracy"], stats=[("fc", "l2")])
    return jobs, [source]


def draw_all(
    run_path: Path, out: Path, existing: str = "digest", jobs: list[Job] | None = None
) -> tuple[int, int, int]:
    known, sources = jobs_of(run_path)
    check_folder(out)
    missing, kept = split(jobs or known, sources, out, existing)  # type: ignore[arg-type]
    with threads(2) as place:
        report = drive(missing, kept, runs=(str(run_path),), out=out, place=place)
    return len(report.drawn), len(report.kept), len(report.failed)


def test_pictures_are_drawn_once_and_again_only_when_asked(run_path: Path, tmp_path: Path) -> None:
    assert draw_all(run_path, tmp_path) == (13, 0, 0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix != ".json"}

    assert draw_all(run_path, tmp_path) == (0, 13, 0)
    assert draw_all(run_path, tmp_path, "force") == (13, 0, 0)
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.rglob("*.partial"))


def test_a_torn_or_foreign_file_is_redrawn_unless_kept(run_path: Path, tmp_path: Path) -> None:
    draw_all(run_path, tmp_path)
    torn = tmp_path / "activations/relu1/grid-00000010.png"
    whole = torn.read_bytes()
    foreign = tmp_path / "activations/fc/grid-00000010.png"
    torn.write_bytes(whole[:-100])
    Image.new("RGB", (3, 3)).save(foreign)

    assert draw_all(run_path, tmp_path, "keep") == (0, 13, 0)
    assert draw_all(run_path, tmp_path) == (2, 11, 0)
    assert torn.read_bytes() == whole


def test_a_picture_over_steps_is_redrawn_when_the_run_has_gone_on(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    path, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(path, (0, 10))
    draw_all(path, out)
    write_run(path, (20, 30), 20)

    # Grids of steps 0 and 10 stand; those of 20 and 30 and all that spans steps are new.
    assert draw_all(path, out) == (7, 4, 0)


def test_a_frame_that_a_rewind_replaced_is_redrawn(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    path, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(path, (0, 10))
    draw_all(path, out)
    write_run(path, (10,), 10)

    drawn, kept, _ = draw_all(path, out)
    assert kept == 2
    assert drawn == 5


def test_files_say_what_they_show_and_how_to_draw_them_again(
    run_path: Path, tmp_path: Path
) -> None:
    draw_all(run_path, tmp_path)

    text = Image.open(tmp_path / "activations/relu1/grid-00000010.png").text  # type: ignore[attr-defined]
    assert text["filmstrip-step"] == "10"
    assert text["filmstrip-run"] == open_run(run_path).id
    assert text["filmstrip-command"] == f"filmstrip render grid {run_path} relu1 --step 10"
    svg = (tmp_path / "scalars/accuracy/curve.svg").read_text()
    assert f"filmstrip render curve {run_path} --name accuracy --format svg" in svg


def test_the_manifest_lists_what_is_there(run_path: Path, tmp_path: Path) -> None:
    known, _ = jobs_of(run_path)
    draw_all(run_path, tmp_path, jobs=known[:4])
    (tmp_path / known[0].path).unlink()
    draw_all(run_path, tmp_path, jobs=known[3:6])

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    states = {entry["path"]: entry["state"] for entry in manifest["pictures"]}
    assert states == {
        known[1].path: "redrawn",
        known[2].path: "redrawn",
        known[3].path: "kept",
        known[4].path: "redrawn",
        known[5].path: "redrawn",
    }
    assert all(entry["step"] in {0, 10, 20, 30, 40} for entry in manifest["pictures"])


def test_a_manifest_that_is_damaged_is_replaced(run_path: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"pictures": [3]}')

    draw_all(run_path, tmp_path)

    assert len(json.loads((tmp_path / "manifest.json").read_text())["pictures"]) == 13


def test_one_picture_that_fails_leaves_the_others(run_path: Path, tmp_path: Path) -> None:
    known, _ = jobs_of(run_path)
    bad = Job(GridSpec(layer="relu1", step=10, sample=99), "bad.png")
    gone = Job(GridSpec(layer="relu1", step=11), "gone.png")

    assert draw_all(run_path, tmp_path, jobs=[bad, known[0], gone]) == (1, 0, 2)
    errors = json.loads((tmp_path / "manifest.json").read_text())["errors"]
    assert {error["path"]: error["error"].split(":")[0] for error in errors} == {
        "bad.png": "no sample 99",
        "gone.png": "layer 'relu1' has no frame at step 11; nearest kept",
    }
    assert not (tmp_path / "bad.png").exists()


class Dying(ThreadPoolExecutor):
    """Loses every batch that holds a certain step, as a worker that is killed does."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if any(isinstance(job.spec, GridSpec) and job.spec.step == 20 for job in args[0].jobs):
            future: Future[Any] = Future()
            future.set_exception(RuntimeError("worker died"))
            return future
        return super().submit(fn, *args, **kwargs)


def test_a_batch_that_dies_costs_only_the_picture_that_kills(
    run_path: Path, tmp_path: Path
) -> None:
    jobs = [job for job in jobs_of(run_path)[0] if isinstance(job.spec, GridSpec)][:5]

    with Dying(2) as pool:
        place = Place(pool, workers=1, in_flight=2)
        report = drive(jobs, [], runs=(str(run_path),), out=tmp_path, place=place)

    assert sorted(one.job.path for one in report.drawn) == [
        f"activations/relu1/grid-000000{step}.png" for step in ("00", "10", "30", "40")
    ]
    assert [one.error for one in report.failed] == ["RuntimeError: worker died"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="file") as caught:
            check_folder(folder)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_commands_that_begin_together_do_not_trip_over_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(check_folder, tmp_path / "out") for _ in range(400)]:
            future.result()

    assert list((tmp_path / "out").iterdir()) == []


def test_manifests_of_commands_that_end_together_are_joined(tmp_path: Path) -> None:
    def end(i: int) -> None:
        (tmp_path / f"{i}.png").touch()
        job = Job(GridSpec(layer="a", step=i), f"{i}.png")
        write_manifest(Report(str(tmp_path), drawn=[Drawn(job)]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(end, range(60)))

    assert len(json.loads((tmp_path / "manifest.json").read_text())["pictures"]) == 60


def test_an_output_folder_that_is_taken_away_meanwhile_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write into .*gone: No such file"):
        write_manifest(Report(str(tmp_path / "gone")))


def test_what_was_drawn_before_nothing_could_be_written_is_in_the_manifest(
    run_path: Path, tmp_path: Path
) -> None:
    known, _ = jobs_of(run_path)
    jobs = [job for job in known if "/relu1/" in job.path][:3]
    (tmp_path / jobs[2].path).mkdir(parents=True)

    with threads(1) as place, pytest.raises(OutputError, match="cannot write"):
        drive(jobs, [], runs=(str(run_path),), out=tmp_path, place=place)

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["path"] for entry in manifest["pictures"]] == [job.path for job in jobs[:2]]


def test_a_picture_of_several_jobs_of_one_batch_is_entered_though_a_later_one_cannot_be_written(
    run_path: Path, tmp_path: Path
) -> None:
    jobs = tuple(job for job in jobs_of(run_path)[0] if "/relu1/" in job.path)[:3]
    (tmp_path / jobs[1].path).mkdir(parents=True)

    drawn = draw_batch(Batch((str(run_path),), str(tmp_path), jobs))

    assert [(bool(one.digest), one.fatal) for one in drawn] == [(True, False), (False, True)]


def test_runs_in_folders_of_their_own_are_told_apart(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with create_run(tmp_path / name / "run.zarr") as run:
            run.log(0, {"loss": 1.0})

    sources = open_sources([str(tmp_path / name / "run.zarr") for name in ("first", "second")])

    assert [source.name for source in sources] == ["first/run", "second/run"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()

    with pytest.raises(OutputError, match=r"cannot write .*taken\.png"):
        write_atomically(tmp_path / "taken.png", b"data")

    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_what_a_killed_command_left_half_written_is_taken_away_after_an_hour(
    run_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "activations/fc"
    folder.mkdir(parents=True)
    old, new, theirs = (
        folder / name for name in (f".{'a' * 32}.partial", f".{'b' * 32}.partial", ".my.partial")
    )
    for path in (old, new, theirs):
        path.write_bytes(b"half")
    for path in (old, theirs):
        os.utime(path, (0, 0))

    draw_all(run_path, tmp_path)

    assert not old.exists()
    assert new.exists()
    assert theirs.exists()


def test_files_have_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.png", b"data")
    finally:
        os.umask(before)

    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_slurm_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")

    assert available_cpus() == 1


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (HistogramSpec, {"bins": 0}),
        (HistogramSpec, {"bins": 5000}),
        (HistogramSpec, {"view": "3d"}),
        (CurveSpec, {"smoothing": -0.1}),
        (GridSpec, {"vmin": float("nan")}),
        (GridSpec, {"format": "gif"}),
        (GridSpec, {"channels": "0:4:0"}),
    ],
)
def test_a_spec_that_cannot_be_is_refused_in_one_line(
    spec: Callable[..., object], options: dict[str, object]
) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**options)

    assert "\n" not in str(caught.value)


def test_specs_are_hashable_and_pickle() -> None:
    spec = GridSpec(layer="a", vmin=-1.0, vmax=np.float64(2.0))

    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))
