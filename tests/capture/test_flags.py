from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from filmstrip.capture import Plan, PlanError, add_capture_arguments, capture_from_arguments
from filmstrip.capture._flags import WORDS
from filmstrip.capture._settings import DEFAULTS
from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    return add_capture_arguments(parser).parse_args(arguments)


def one_step(
    capture: Capture, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1
) -> None:
    with capture:
        for _ in range(steps):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()


def line() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_every_keyword_has_a_flag() -> None:
    said_otherwise = {"run", "enabled", "dry_run", "metadata"}

    assert set(WORDS) == (set(DEFAULTS) - said_otherwise) | {"step"}


def test_without_the_flag_the_capture_is_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = line()
    capture = capture_from_arguments(parse("--capture-every", "1"), model, optimizer)
    one_step(capture, model, optimizer)

    assert not capture.enabled
    assert list(tmp_path.iterdir()) == []


def test_flags_reach_the_run(run: str) -> None:
    model, optimizer = line()
    args = parse(
        *("--capture", run),
        *("--capture-every", "statistics=1,frames=2"),
        *("--capture-layers", "type:Linear,1.*", "--capture-layers", "re:[0]"),
        *("--capture-kinds", "weights", "--capture-kinds", "activations"),
        *("--capture-exclude", "*.bias"),
        "--no-capture-histograms",
        *("--capture-max-run-bytes", "1GiB"),
        *("--capture-metadata", "seed=3"),
        *("--capture-step", "4"),
    )
    capture = capture_from_arguments(args, model, optimizer, metadata={"net": "small"})
    one_step(capture, model, optimizer, 4)

    opened = open_run(run)
    assert opened.kinds == ("activations", "weights")
    assert set(opened.layers("weights")) == {"0.weight", "1.weight"}
    assert opened.steps("weights").tolist() == [4, 6]
    assert opened.statistics("weights").steps.tolist() == [4, 5, 6, 7]
    assert opened.statistics("weights").bits("0.weight")[0].tolist() == []
    assert opened.metadata == {"net": "small", "seed": "3"}
    assert opened.attributes["plan"]["max_run_bytes"] == 2**30


def test_flags_beat_the_environment_which_beats_the_plan_file_which_beats_the_code(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("every = 3\nsamples = 5\n")

    def every(*flags: str, code: int = 2) -> object:
        model, optimizer = line()
        args = parse("--capture", run, "--capture-if-exists", "overwrite", *flags)
        one_step(capture_from_arguments(args, model, optimizer, every=code), model, optimizer)
        return open_run(run).attributes["plan"]["every"]

    assert every() == 2
    assert every("--capture-plan", str(plan)) == 3
    monkeypatch.setenv("FILMSTRIP_EVERY", "4")
    assert every("--capture-plan", str(plan)) == 4
    assert every("--capture-plan", str(plan), "--capture-every", "5") == 5


def test_the_environment_alone_turns_capture_on_and_off(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMSTRIP_RUN", run)
    model, optimizer = line()
    one_step(capture_from_arguments(parse(), model, optimizer), model, optimizer)
    assert open_run(run).steps("weights").tolist() == [0]

    monkeypatch.setenv("FILMSTRIP", "off")
    capture = capture_from_arguments(parse("--capture", f"{run}-2"), model, optimizer)
    assert not capture.enabled
    assert not Path(f"{run}-2").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--capture-every", "0"), "every=0 is not a whole number"),
        (("--capture-kinds", "activation"), "it may hold 'activations'"),
        (("--capture-max-run-bytes", "64XB"), "is not a size"),
        (("--capture-metadata", "seed"), "not NAME=VALUE"),
        (("--capture-often", "3"), "unrecognized arguments"),
    ],
)
def test_a_bad_flag_is_a_usage_error_of_the_script(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--capture", "run.zarr", *flags)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_keywords_from_a_mapping_are_as_good_as_those_of_a_plan_or_of_flags(
    tmp_path: Path,
) -> None:
    config = {"every": "statistics=2,frames=4", "layers": "0,1.weight", "max_run_bytes": "1GB"}
    flags = [f"--capture-{key.replace('_', '-')}={value}" for key, value in config.items()]
    runs = [str(tmp_path / f"{number}.zarr") for number in range(4)]
    model, optimizer = line()
    one_step(Capture(model, optimizer, runs[0], **config), model, optimizer)  # type: ignore[arg-type]
    one_step(Capture(model, optimizer, runs[1], plan=config), model, optimizer)
    one_step(Capture(model, optimizer, runs[2], plan=Plan.read(config)), model, optimizer)
    args = parse("--capture", runs[3], *flags)
    one_step(capture_from_arguments(args, model, optimizer), model, optimizer)

    plans = [open_run(run).attributes["plan"] for run in runs]
    assert plans[0] == plans[1] == plans[2] == plans[3]
    assert plans[0]["every"] == {"statistics": 2, "frames": 4}


def test_a_bad_plan_file_is_refused_at_attach(run: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        capture_from_arguments(
            parse("--capture", run, "--capture-plan", str(tmp_path / "none.toml")), *line()
        )


def test_an_unknown_default_in_the_code_is_a_type_error(run: str) -> None:
    with pytest.raises(TypeError, match="ever"):
        capture_from_arguments(parse("--capture", run), *line(), ever=3)


def test_a_dry_run_prints_the_layers_and_writes_nothing(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = line()
    capture = capture_from_arguments(
        parse("--capture", run, "--capture-dry-run"), model, optimizer, probe=torch.ones(4, 3)
    )
    model(torch.ones(2, 3))
    table = capsys.readouterr().err
    one_step(capture, model, optimizer, 3)

    assert not Path(run).exists()
    for words in (
        "activations  0",
        "float32 4×3",
        "weights      1.weight",
        "gradients    0.bias",
        "nothing is written",
    ):
        assert words in table
    assert capsys.readouterr().err == ""


def test_the_lines_at_attach_say_what_goes_where(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = line()
    capture = capture_from_arguments(
        parse("--capture", run, "--capture-every", "10"), model, optimizer
    )
    line_at_attach = capsys.readouterr().err
    one_step(capture, model, optimizer)

    assert line_at_attach == (
        f"filmstrip: capturing 2 activations, 4 weights, 4 gradients to {run} every 10 steps\n"
    )
    assert "a capture adds 10 frames, 144 B" in capsys.readouterr().err


def test_quiet_says_nothing(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FILMSTRIP_QUIET", "1")
    model, optimizer = line()
    one_step(capture_from_arguments(parse("--capture", run), model, optimizer), model, optimizer)

    assert capsys.readouterr().err == ""


def test_flags_of_the_script_that_look_like_ours_are_left_alone(run: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--capture-run", default=5)
    args = add_capture_arguments(parser).parse_args(["--capture-run", "7", "--capture", run])
    model, optimizer = line()
    one_step(capture_from_arguments(args, model, optimizer), model, optimizer)

    assert open_run(run).steps("weights").tolist() == [0]
