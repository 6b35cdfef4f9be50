"""Scripts that know nothing of capture, run as they are."""

from __future__ import annotations

import contextlib
import gc
import io
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from capture.launching import CAPTURE, SCRIPTS, both, captured, ended, started
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from filmstrip.capture._launched import Wishes
from filmstrip.capture.pytorch._watch import Models, roots_of
from filmstrip.store import open_run

pytestmark = pytest.mark.slow


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / script), *arguments]


def code(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", text, *arguments]


def spoken(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("filmstrip:")]


@contextlib.contextmanager
def observed() -> Iterator[list[dict[str, list[torch.Tensor]]]]:
    """Yield what every optimizer step of this process uses: outputs, weights, gradients."""
    steps: list[dict[str, list[torch.Tensor]]] = []
    outputs: list[torch.Tensor] = []

    def called(module: nn.Module, args: object, output: torch.Tensor) -> None:
        if torch.is_grad_enabled() and module.training and not list(module.children()):
            outputs.append(output.detach().clone())

    def stepping(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        steps.append(
            {
                "activations": outputs[:],
                "weights": [one.detach().clone() for one in parameters],
                "gradients": [one.grad.clone() for one in parameters],
            }
        )
        outputs.clear()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as those of the processes; another number rounds differently
    handles = [register_module_forward_hook(called), register_optimizer_step_pre_hook(stepping)]
    try:
        yield steps
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("script", ["plain.py", "accumulate.py"])
def test_an_unmodified_script_is_captured_to_the_bit_and_none_the_wiser(
    run: str, script: str
) -> None:
    under = captured(run, "--every", "1", command=python(script))
    with observed() as steps, contextlib.redirect_stdout(io.StringIO()) as plain:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")

    assert (under.code, under.out) == (0, plain.getvalue())
    opened = open_run(run)
    for kind in ("activations", "weights", "gradients"):
        layers = opened.layers(kind)
        assert opened.steps(kind).tolist() == list(range(len(steps)))
        for step, used in enumerate(steps):
            for layer, expected in zip(layers, used[kind], strict=kind != "activations"):
                kept = expected[:1] if kind == "activations" else expected
                found = opened.strip(kind, layer).frame(step)
                if layer != "relu":  # which overwrites the output of the layer before
                    np.testing.assert_array_equal(found, kept.float().numpy())


def test_two_models_that_are_trained_in_turn_are_one_run(run: str) -> None:
    plain, under = both(run, "--every", "1", command=python("gan.py"))

    assert (under.code, under.out) == (0, plain.out)
    assert "watching Critic and Generator, trained by Adam and Adam" in under.err
    opened = open_run(run)
    assert opened.steps("gradients").tolist() == [0, 1, 2, 3, 4]
    assert opened.layers("activations", "Generator*") == [
        f"Generator.main.{part}" for part in range(3)
    ]
    assert opened.layers("activations", "*.out*") == ["Critic.out", "Critic.out#1", "Critic.out#2"]
    assert len(opened.layers("weights")) == 8


def test_a_script_that_ends_by_an_exception_ends_by_it_and_its_run_is_closed(run: str) -> None:
    under = captured(run, "--every", "1", command=python("fails.py"))

    assert (under.code, under.out) == (1, "0\n1\n2\n3\n4\n")
    assert "RuntimeError: the data ended" in under.err
    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3, 4]
    assert open_run(run).status().state == "finished"


def test_workers_of_data_loaders_and_other_children_capture_nothing(run: str) -> None:
    plain, under = both(run, "--every", "1", command=python("workers.py"))

    assert (under.code, under.out) == (0, plain.out)
    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3]
    assert len(spoken(under.err)) == 3


def test_ranks_of_torchrun_are_one_run(run: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    plain, under = both(
        run,
        *("--every", "1", "--on-pressure", "block"),
        command=[*torchrun, str(SCRIPTS / "ranks.py")],
    )

    assert (under.code, under.out) == (0, plain.out)
    assert plain.out.count("[") > 4
    opened = open_run(run)
    assert opened.layers("weights") == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert opened.steps("weights").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("script", "steps", "layer"),
    [
        ("lit.py", [0, 2, 4], "2"),
        ("bert.py", [0, 2], "bert.encoder.layer.0.attention.self.query"),
    ],
)
def test_scripts_of_trainers_are_captured_as_they_are(
    run: str, script: str, steps: list[int], layer: str
) -> None:
    plain, under = both(run, "--every", "2", command=python(script))

    assert (under.code, under.out) == (0, plain.out)
    assert plain.out
    opened = open_run(run)
    assert opened.steps("gradients").tolist() == steps
    assert opened.activations[layer].steps.tolist() == steps
    assert not any("#" in name for name in opened.layers("activations"))  # one batch of the two


TRAIN = """
import sys, torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.Adam(model.parameters())
def train(steps):
    for _ in range(steps):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    ("text", "number"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_code_is_the_commands(run: str, text: str, number: int) -> None:
    assert captured(run, command=code(text)).code == number


def test_a_signal_is_passed_on_and_the_run_is_closed(run: str) -> None:
    endless = TRAIN + "train(3); print('ready', flush=True)\nwhile True: train(1)"
    with started((*CAPTURE, run, "--every", "1", "--", *code(endless))) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        done = ended(process)

    assert done.code == 128 + signal.SIGTERM
    assert open_run(run).status().state == "finished"


def test_a_run_that_is_there_is_left_alone_and_a_new_one_is_made(run: str) -> None:
    command = code(TRAIN + "train(2)")
    captured(run, "--every", "1", command=command)
    again = captured(run, "--every", "1", command=command)

    assert "is there already; a new run is made beside it" in again.err
    assert open_run(run.replace(".zarr", "-2.zarr")).steps("weights").tolist() == [0, 1]
    refused = captured(run, "--if-exists", "fail", command=command, COLUMNS="300")
    assert (refused.code, refused.out) == (2, "")
    assert "is there already" in refused.err


def test_an_optimizer_from_a_checkpoint_says_at_which_step_a_run_goes_on(
    run: str, tmp_path: Path
) -> None:
    saved = str(tmp_path / "saved.pt")
    first = TRAIN + "train(3); torch.save(optimizer.state_dict(), sys.argv[1]); train(3)"
    second = TRAIN + "optimizer.load_state_dict(torch.load(sys.argv[1])); train(2)"
    captured(run, "--every", "1", command=code(first, saved))
    captured(run, "--every", "1", command=code(second, saved))

    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3, 4]


def test_the_models_own_methods_may_be_what_a_script_calls(run: str) -> None:
    text = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    def loss(self, x):
        return self.second(self.first(x)).sum()
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model.loss(torch.ones(1, 2)).backward()
    optimizer.step()
"""
    captured(run, "--every", "1", command=code(text))

    opened = open_run(run)
    assert opened.layers("activations") == ["first", "second"]
    assert opened.steps("activations").tolist() == [0, 1, 2]


def test_options_beat_the_environment_which_beats_the_plan_file(run: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('every = 3\nlayers = ["weight"]\nkinds = ["weights"]\n')
    captured(
        *(run, "--plan", str(plan), "--layers", "*", "--metadata", "seed=1"),
        command=code(TRAIN + "train(7)"),
        FILMSTRIP_EVERY="2",
        FILMSTRIP_RUN=str(tmp_path / "elsewhere.zarr"),
    )

    opened = open_run(run)
    assert opened.kinds == ("weights",)
    assert opened.steps("weights").tolist() == [0, 2, 4, 6]
    assert opened.layers("weights") == ["weight", "bias"]
    assert opened.metadata == {"seed": "1"}
    assert not (tmp_path / "elsewhere.zarr").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("print('hello')", "torch or keras was not imported"),
        ("import torch", "torch was imported, but no optimizer was made"),
        (
            TRAIN + "model.eval(); train(2)",
            "Adam was made, but no module that holds its parameters",
        ),
    ],
)
def test_a_command_that_trains_nothing_is_told_why_nothing_was_captured(
    run: str, text: str, why: str
) -> None:
    done = captured(run, command=code(text))

    assert done.code == 0
    assert [why in line for line in spoken(done.err)] == [True]
    assert not Path(run).exists()


def test_what_cannot_be_captured_is_trained_all_the_same(run: str) -> None:
    done = captured(run, "--layers", "conv*", command=code(TRAIN + "train(2); print('done')"))

    assert (done.code, done.out) == (0, "done\n")
    assert "nothing was captured: no layer matches 'conv*'" in done.err


def test_a_model_that_is_compiled_in_place_is_captured_and_nobody_is_warned(run: str) -> None:
    text = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model.compile(backend="aot_eager")
for _ in range(3):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
"""
    done = captured(run, "--every", "1", command=[sys.executable, "-W", "error", "-c", text])

    assert done.code == 0, done.err
    assert open_run(run).activations["1"].steps.tolist() == [0, 1, 2]


def test_a_second_training_in_one_process_is_not_captured_and_that_is_said(run: str) -> None:
    done = captured(run, "--every", "1", command=code(TRAIN + "train(2)" + TRAIN + "train(3)"))

    assert "Adam was made when capture had begun" in spoken(done.err)[-1]
    assert open_run(run).steps("weights").tolist() == [0, 1]


def test_capture_that_is_off_in_the_environment_is_off(run: str) -> None:
    done = captured(run, command=code(TRAIN + "train(2)"), FILMSTRIP="off")

    assert spoken(done.err) == [
        "filmstrip: nothing was captured: FILMSTRIP is off in the environment"
    ]
    assert not Path(run).exists()


def test_the_search_path_and_a_sitecustomize_of_the_users_own_stay_what_they_are(
    run: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('mine', __name__, flush=True)")
    show = code("import sys, sitecustomize; print(sitecustomize.__file__, *sys.path, sep='\\n')")
    path = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    plain, under = ended(started(show, **path)), captured(run, command=show, **path)

    assert plain.out.startswith("mine sitecustomize\n")
    assert under.out == "mine sitecustomize\n" + plain.out  # the first is of filmstrip's own Python


def test_a_python_that_imports_no_framework_gets_none(run: str) -> None:
    text = """
import sys
from importlib.util import find_spec
print(find_spec('torch').name, 'torch' in sys.modules)
"""

    assert captured(run, command=code(text)).out == "torch False\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--every", "often"), "every='often' is not a whole number"),
        (("--every", "epoch"), "give a number of steps, such as --every 100"),
        (("--kinds", "activation"), "it may hold 'activations'"),
        (("--plan", "none.toml"), "cannot be read"),
        (("--often", "3"), "No such option"),
    ],
)
def test_a_bad_option_is_an_error_of_usage_before_anything_runs(
    run: str, options: tuple[str, ...], message: str
) -> None:
    done = captured(run, *options, command=code("print('ran')"), COLUMNS="300")

    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_a_command_that_cannot_be_started_is_one_line(run: str) -> None:
    done = captured(run, command=["no-such-command"])

    assert done.code == 127
    assert done.err == "filmstrip: no-such-command cannot be started: No such file or directory\n"


def test_one_process_of_a_rank_captures_as_long_as_it_lives(tmp_path: Path) -> None:
    wishes = Wishes(command={}, plan=None, step=None, folder=str(tmp_path))
    other = started(code("import time; time.sleep(60)"))
    (tmp_path / "rank-0").write_text(str(other.pid))

    assert not wishes.claim(0)
    assert wishes.claim(1)
    other.kill()
    other.communicate()
    assert wishes.claim(0)
    assert wishes.claim(0)


def test_the_models_of_several_optimizers_are_the_fewest_that_hold_their_parameters() -> None:
    gc.collect()
    encoder, decoder = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    sgd = torch.optim.SGD
    apart = [sgd(encoder.parameters(), lr=0.1), sgd(decoder.parameters(), lr=0.1)]
    temperature = nn.Parameter(torch.ones(()))
    together = [sgd([*encoder.parameters(), *decoder.parameters(), temperature], lr=0.1)]

    assert roots_of(encoder, apart) == [encoder, decoder]
    assert roots_of(decoder, together) == [encoder, decoder]
    joined = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    assert roots_of(encoder, together) == [joined]
    assert roots_of(encoder, apart[:1]) == [encoder]
    names = [name for name, _ in Models([encoder, decoder]).named_children()]
    assert names == ["Sequential", "Sequential2"]
