"""What SLURM would be asked for. test_slurm.py asks a real one."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from filmstrip.render.cli import app

dask = pytest.importorskip("dask")
if find_spec("dask_jobqueue") is None:  # which takes over SIGINT when it is imported
    pytest.skip("needs the extra slurm", allow_module_level=True)


def call(run: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["grid", str(run), "--slurm", *words])


def script(run: Path, out: Path, *words: str) -> list[str]:
    result = call(run, "--slurm-script", "-o", str(out), *words)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_a_job_has_1_cpu_2_gb_and_1_hour_and_logs_below_the_pictures(
    run_path: Path, tmp_path: Path
) -> None:
    lines = script(run_path, tmp_path / "out")

    assert lines[0].startswith("#!")
    assert "#SBATCH --cpus-per-task=1" in lines
    assert "#SBATCH --mem=2G" in lines
    assert "#SBATCH -t 01:00:00" in lines
    assert f"#SBATCH --output={tmp_path}/out/slurm/%j.log" in lines
    assert "--nthreads 1" in lines[-1] or "--nthreads 1" in lines[-2]
    assert list(tmp_path.iterdir()) == []


def test_every_flag_is_in_the_script(run_path: Path, tmp_path: Path) -> None:
    words = (
        "--partition long --account me --time 00:10:00 --mem 4096 --cpus 3 --slurm-arg=--qos=low"
    )
    lines = script(run_path, tmp_path, *words.split(), "--setup", "module load a", "--setup", "b")

    for line in ("-p long", "-A me", "-t 00:10:00", "--mem=4G", "--cpus-per-task=3", "--qos=low"):
        assert f"#SBATCH {line}" in lines
    assert lines.index("module load a") + 1 == lines.index("b")
    (worker,) = (line for line in lines if "dask_worker" in line)
    assert "--nworkers 3" in worker
    assert "--nthreads 1" in worker


def test_dasks_own_configuration_holds_unless_a_flag_says_otherwise(
    run_path: Path, tmp_path: Path
) -> None:
    mine = {
        "cores": 8,
        "processes": 8,
        "memory": "16GiB",
        "walltime": "00:05:00",
        "queue": "theirs",
        "job-extra-directives": ["--exclusive"],
        "log-directory": str(tmp_path / "logs"),
    }
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in mine.items()}):
        plain = script(run_path, tmp_path)
        told = script(run_path, tmp_path, "--partition", "mine", "--time", "2", "--slurm-arg=--x")

    for line in ("--cpus-per-task=8", "--mem=16G", "-t 00:05:00", "-p theirs", "--exclusive"):
        assert f"#SBATCH {line}" in plain
    assert not [line for line in plain if "--output" in line]
    for line in ("-t 2", "-p mine", "--exclusive", "--x"):
        assert f"#SBATCH {line}" in told


def test_every_cpu_brings_2_gb(run_path: Path, tmp_path: Path) -> None:
    assert "#SBATCH --mem=6G" in script(run_path, tmp_path, "--cpus", "3")


def test_a_configuration_of_dask_that_cannot_be_is_one_line(run_path: Path, tmp_path: Path) -> None:
    with dask.config.set({"jobqueue.slurm.cores": 2, "jobqueue.slurm.memory": "lots"}):
        result = call(run_path, "--slurm-script", "-o", str(tmp_path))

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "jobqueue.slurm" in result.stderr


def test_ctrl_c_is_what_it_was(run_path: Path, tmp_path: Path) -> None:
    check = (
        "import signal; from pathlib import Path; from filmstrip.render._slurm import *; "
        "before = signal.getsignal(signal.SIGINT); script_of(JobSpec(), Path('out')); "
        "assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler"
    )

    def allow_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    subprocess.run([sys.executable, "-c", check], check=True, preexec_fn=allow_ctrl_c)


def test_without_slurm_it_is_one_line(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    result = call(run_path, "-o", str(tmp_path / "out"))

    assert result.exit_code == 1
    assert (
        result.stderr
        == "filmstrip: there is no sbatch here; run this where jobs are submitted from\n"
    )


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("dask_jobqueue", "--slurm", "--slurm needs dask_jobqueue: pip install 'filmstrip[slurm]'"),
        (
            "distributed",
            "--scheduler tcp://a:1",
            "--scheduler needs distributed: pip install 'filmstrip[render]'",
        ),
    ],
)
def test_an_extra_that_is_missing_is_named(
    missing: str, words: str, extra: str, run_path: Path, tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from filmstrip.render.cli import app; app()"
    )
    command = [sys.executable, "-c", code, "grid", str(run_path), "-o", str(tmp_path)]
    done = subprocess.run([*command, *words.split()], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr == f"filmstrip: {extra}\n"


def test_nothing_is_submitted_where_everything_is_done(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(app, ["grid", str(run_path), "-o", str(tmp_path)]).exit_code == 0
    monkeypatch.setenv("PATH", "")

    result = call(run_path, "-o", str(tmp_path))

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("drew 0 pictures, kept 3")
