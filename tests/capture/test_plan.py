from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filmstrip.capture import Plan, PlanError
from filmstrip.capture._keywords import read_flag
from filmstrip.capture._settings import DEFAULTS, settle
from filmstrip.capture._size import parse_share, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MB", 64_000_000),
        ("64MiB", 64 << 20),
        ("1.5 GB", 1_500_000_000),
        ("10", 10),
        (7, 7),
        ("2k", 2000),
    ],
)
def test_sizes_are_read_as_people_write_them(text: object, size: int) -> None:
    assert parse_size("max_run_bytes", text) == size


@pytest.mark.parametrize(
    "text", ["64XB", "", "-1", "MB", 0, -5, None, True, "1e9", "9" * 400 + "GB"]
)
def test_a_bad_size_is_refused_by_name(text: object) -> None:
    with pytest.raises(PlanError, match="max_run_bytes="):
        parse_size("max_run_bytes", text)


def test_what_must_stay_free_is_a_share_or_a_size() -> None:
    assert parse_share("min_free", "5%") == 0.05
    assert parse_share("min_free", "1GB") == 10**9
    assert parse_share("min_free", 0) == 0
    with pytest.raises(PlanError, match="min_free='105%'"):
        parse_share("min_free", "105%")


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("every", 0, "every=0 is not a whole number of 1 or more"),
        ("every", -5, "every=-5"),
        ("every", 1.5, "every=1.5"),
        ("every", True, "every=True"),
        ("every", "month", "every='month'"),
        ("every", {"pictures": 3}, "pictures; it may name frames, statistics, histograms"),
        ("every", {"frames": 0}, r"every\['frames'\]=0"),
        ("every", {}, "nothing"),
        ("samples", 0, "samples=0 is not a whole number of 1 or more"),
        (
            "kinds",
            ["activation"],
            "'activation'; it may hold 'activations', 'weights', 'gradients'",
        ),
        ("kinds", [], "kinds is empty"),
        ("steps", [], "holds no step"),
        ("layers", [3], r"layers=\[3\] is not a selector"),
        ("max_capture_bytes", "64XB", "max_capture_bytes='64XB' is not a size"),
        ("on_pressure", "wait", "it may be 'drop', 'block', 'auto'"),
        ("max_overhead", 3, "max_overhead=3 is not a share"),
        ("dtype", "int8", "dtype='int8'"),
        ("statistics", "maybe", "neither true nor false"),
        ("phases", "test", "'train', 'eval'"),
    ],
)
def test_a_bad_value_is_refused_with_the_keyword_and_the_way_out(
    keyword: str, value: object, message: str
) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        Plan.read({keyword: value})

    assert "\n" not in str(caught.value)


def test_a_plan_refuses_the_same_values_when_it_is_built_in_python() -> None:
    with pytest.raises(PlanError, match="every=0"):
        Plan(every=0)


def test_an_unknown_keyword_names_the_nearest_known_one() -> None:
    with pytest.raises(PlanError, match="unknown keyword 'ever'; did you mean 'every'"):
        Plan.read({"ever": 3})


def test_a_class_in_a_plan_is_its_name() -> None:
    plan = Plan(layers=[Path, "conv*"], exclude=str)

    assert plan.said() == {"layers": ("type:Path", "conv*"), "exclude": ("type:str",)}


def test_a_plan_is_read_from_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('[capture]\nevery = {statistics = 10, frames = 100}\nlayers = ["conv*"]\n')

    assert Plan.read(path).said() == {
        "every": {"statistics": 10, "frames": 100},
        "layers": ("conv*",),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [("every = ", "is not TOML"), ("ever = 1", "did you mean"), (None, "cannot be read")],
)
def test_a_bad_plan_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "plan.toml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(PlanError, match=message) as caught:
        Plan.read(str(path))
    assert str(path) in str(caught.value)


def test_ceilings_beat_the_command_line_beats_the_environment_beats_the_plan_beats_the_code() -> (
    None
):
    code = {**DEFAULTS, "every": 1, "max_run_bytes": "9GB"}
    plan, environment = {"every": 2}, {"FILMSTRIP_EVERY": "3"}

    assert settle(code, environment={}, command={}).every == 1
    assert settle(code, plan=plan, environment={}, command={}).every == 2
    assert settle(code, plan=plan, environment=environment, command={}).every == 3
    assert settle(code, plan=plan, environment=environment, command={"every": 4}).every == 4
    ceiling = {"FILMSTRIP_MAX_RUN_BYTES": "1GB"}
    assert (
        settle(code, environment=ceiling, command={"max_run_bytes": 10**12}).max_run_bytes == 10**9
    )
    assert settle(code, environment=ceiling, command={"max_run_bytes": 5}).max_run_bytes == 5


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("stop", 0, "no step is due"),
        ("run", "", "run='' is not a path"),
        ("run", 3, "run=3 is not a path"),
        ("metadata", 3, "metadata=3 is not a mapping"),
        ("metadata", {"net": object()}, "metadata cannot be written as JSON"),
        ("metadata", {"best": float("nan")}, "metadata cannot be written as JSON"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keyword: str, value: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        settle({**DEFAULTS, keyword: value}, environment={}, command={})


def test_numbers_of_numpy_are_numbers() -> None:
    plan = Plan(
        every=np.int64(2),  # type: ignore[arg-type]
        steps=np.arange(0, 20, 10),
        fsync=np.True_,  # type: ignore[arg-type]
        max_run_bytes=np.int64(10**9),  # type: ignore[arg-type]
        max_overhead=np.float32(0.5),  # type: ignore[arg-type]
    )

    assert plan.said() == {
        "every": 2,
        "steps": {0, 10},
        "fsync": True,
        "max_run_bytes": 10**9,
        "max_overhead": 0.5,
    }


@pytest.mark.parametrize("value", [False, np.False_, 0, "no", "Off "])
def test_a_no_is_a_no_in_every_form(value: object) -> None:
    assert read_flag("enabled", value) is False


def test_what_is_no_plan_and_no_interval_is_refused_in_one_line() -> None:
    with pytest.raises(PlanError, match="plan=5 is not a Plan, a mapping or the path"):
        Plan.read(5)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="every=array"):
        Plan(every=np.ones(2))  # type: ignore[arg-type]


def test_a_bad_value_in_the_environment_is_blamed_on_its_variable() -> None:
    with pytest.raises(PlanError, match="FILMSTRIP_EVERY='often'"):
        settle(DEFAULTS, environment={"FILMSTRIP_EVERY": "often"}, command={"every": 3})
