"""What several ranks write together, and what happens when one of them fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torch", "2.7", reason="fully_shard needs a GPU before torch 2.7")

from capture.spread import HYBRID, STEPS, batch, killed, on_four, on_three, on_two, together

from filmstrip.store import open_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def ran(act: Callable[[int, Path], None], ranks: int, factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp(act.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FILMSTRIP_QUIET", "1")
        together(act, folder, ranks=ranks)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two ranks did."""
    return ran(on_two, 2, tmp_path_factory)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what three ranks did."""
    return ran(on_three, 3, tmp_path_factory)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what four ranks did."""
    return ran(on_four, 4, tmp_path_factory)


def check(folder: Path, way: str, *, ranks: int, writers: tuple[int, ...]) -> None:
    """Compare a run with capture to one without, and what was kept to what the optimizer saw."""
    for rank in reversed(range(ranks)):
        outcome = torch.load(folder / f"{way}-{rank}.pt")
        bare, captured = outcome["bare"], outcome["captured"]
        for one, other in zip(bare["losses"], captured["losses"], strict=True):
            assert torch.equal(one, other)
        assert all(
            torch.equal(bare["final"][name], captured["final"][name]) for name in bare["final"]
        )
        # One object is broadcast at attach, its length and its bytes; nothing later.
        expected = 0 if writers == (0,) else 2
        assert captured["collectives"] - bare["collectives"] == expected

    run = open_run(folder / f"{way}.zarr")
    assert run.ranks == writers
    assert (run.status().missing, run.status().behind, run.status().state) == ((), {}, "finished")
    for step, seen in enumerate(captured["seen"]):
        for key, tensor in seen.items():
            kind, name = key.replace("/module.", "/").split("/")
            kept = tensor[:1] if kind == "activations" else tensor
            np.testing.assert_array_equal(run.strip(kind, name).frame(step), kept.float().numpy())
            count = run.statistics(kind)[name, "count"].values
            assert count.tolist() == [tensor.numel()] * STEPS


def test_of_replicas_the_first_rank_writes_and_asks_nobody(two: Path) -> None:
    check(two, "ddp", ranks=2, writers=(0,))


@pytest.mark.parametrize("way", ["fsdp", "kept-whole", "half", "tensor"])
def test_pieces_of_two_ranks_are_the_tensor_that_the_optimizer_saw(two: Path, way: str) -> None:
    check(two, way, ranks=2, writers=(0, 1))


def test_outputs_that_are_spread_over_ranks_are_kept_whole(two: Path) -> None:
    check(two, "outputs", ranks=2, writers=(0, 1))

    run = open_run(two / "outputs.zarr")
    assert run.layers("activations") == ["up", "norm", "down", "last"]
    assert [piece.shape for piece in run.activations["up"].pieces] == [(1, 4), (1, 3)]
    assert run.activations["norm"].attributes["placements"] == ["Shard(1)"]
    np.testing.assert_array_equal(run.activations["norm"].frame(1), run.activations["up"].frame(1))


def test_of_outputs_that_take_too_much_all_ranks_keep_statistics_alone(two: Path) -> None:
    run = open_run(two / "narrow.zarr")

    assert "up" not in run.layers("activations")
    assert run.statistics("activations")["up", "count"].values.tolist() == [28.0] * STEPS


def test_of_replicas_that_are_each_spread_the_outputs_of_the_first_are_kept(four: Path) -> None:
    check(four, "outputs-of-replicas", ranks=4, writers=(0, 1, 2, 3))

    run = open_run(four / "outputs-of-replicas.zarr")
    assert [piece.rank for piece in run.activations["up"].pieces] == [0, 1]


@pytest.mark.parametrize("way", ["fsdp", "kept-whole", "tensor"])
def test_outputs_are_taken_once_though_a_backward_pass_recomputes_them(two: Path, way: str) -> None:
    run = open_run(two / f"{way}.zarr")

    assert run.layers("activations") == ["up", "norm", "down", "last"]
    assert run.activations["down"].steps.tolist() == [0, 1, 2]


def test_a_tight_budget_leaves_the_same_pieces_out_on_all_ranks(two: Path) -> None:
    run = open_run(two / "tight.zarr")
    kept, described = run.layers("weights"), run.statistics("weights").layers

    assert 0 < len(kept) < len(described)
    assert kept == run.layers("gradients")
    for layer in kept:
        strip = run.weights[layer]
        assert strip.frame(2).shape == strip.shape
        assert strip.steps.tolist() == [0, 1, 2]
    assert run.statistics("weights")["up.weight", "count"].values.tolist() == [42.0] * STEPS


def test_rows_that_three_ranks_cannot_share_evenly_are_all_there(three: Path) -> None:
    check(three, "fsdp", ranks=3, writers=(0, 1, 2))

    run = open_run(three / "fsdp.zarr")
    held = [piece.shape for piece in run.weights["up.weight"].pieces]
    assert held == [(3, 6), (3, 6), (1, 6)]
    assert [piece.rank for piece in run.weights["last.bias"].pieces] == [0]


@pytest.mark.skipif(not HYBRID, reason="needs torch 2.9, whose Gloo can average")
def test_replicas_of_pieces_are_written_once(four: Path) -> None:
    check(four, "hybrid", ranks=4, writers=(0, 1))


def test_parameters_cut_along_two_axes_of_a_mesh_come_back_whole(four: Path) -> None:
    check(four, "both", ranks=4, writers=(0, 1, 2, 3))

    about = open_run(four / "both.zarr").weights["up.weight"].attributes
    assert about["mesh"] == ["data=2", "tensor=2"]
    assert about["placements"] == ["_StridedShard(0, sf=2)", "Shard(0)"]
    assert about["global_shape"] == [8, 6]


def test_norms_of_the_whole_tensor_come_from_statistics_of_pieces(three: Path) -> None:
    run = open_run(three / "fsdp.zarr")
    weight = run.weights["down.weight"].frame(1).astype(np.float64)

    assert run.statistics("weights")["down.weight", "l2"].values[1] == pytest.approx(
        np.sqrt((weight**2).sum())
    )


def test_activations_of_all_replicas_are_joined_along_the_samples(two: Path) -> None:
    run = open_run(two / "everybody.zarr")
    first = open_run(two / "ddp.zarr")
    strip = run.activations["up"]
    weight, bias = (
        run.weights[f"up.{name}"].frame(1).astype(np.float64) for name in ("weight", "bias")
    )
    inputs = torch.cat([batch(1, share)[0][:3] for share in (0, 1)]).numpy()

    assert run.ranks == (0, 1)
    assert strip.shape == (6, 7)
    np.testing.assert_allclose(strip.frame(1), inputs @ weight.T + bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(strip.frame(1)[:1], first.activations["up"].frame(1))
    assert run.statistics("activations")["up", "count"].values.tolist() == [2 * 4 * 7] * STEPS
    assert [piece.rank for piece in run.weights["up.weight"].pieces] == [0]


def test_activations_of_all_ranks_may_be_kept_beside_pieces(two: Path) -> None:
    run = open_run(two / "all-shards.zarr")

    assert run.activations["up"].frame(2).shape == (2, 7)
    assert run.weights["up.weight"].frame(2).shape == (7, 6)
    assert run.status().behind == {}


def test_what_rank_0_refuses_is_refused_in_the_same_words_everywhere(two: Path) -> None:
    first, second = (torch.load(two / f"refused-{rank}.pt") for rank in (0, 1))

    for what in ("exists", "probe", "world"):
        assert first[what] == second[what]
    assert first["exists"].startswith("RunExistsError")
    assert "written by 3 ranks and now 2" in first["world"]
    assert "if_exists='new'" in first["world"]
    assert "leave probe out" in first["probe"]


def test_a_new_run_and_an_overwritten_one_are_the_same_to_all_ranks(two: Path) -> None:
    for name in ("new.zarr", "new-2.zarr", "over.zarr"):
        run = open_run(two / name)
        ids = {open_run(two / name / "ranks" / "0001").id, run.id}
        assert len(ids) == 1
        assert run.weights["up.weight"].steps.tolist() == [0, 1, 2]


def test_a_rank_without_a_store_trains_on_and_is_named(two: Path) -> None:
    first, second = (torch.load(two / f"refused-{rank}.pt") for rank in (0, 1))
    status = open_run(two / "half-broken.zarr").status()

    assert "broken" not in first
    assert "0001" in second["broken"]
    assert status.missing == (1,)


def test_a_step_from_a_checkpoint_takes_all_ranks_back_to_it(two: Path) -> None:
    run = open_run(two / "back.zarr")

    for store in (run, open_run(two / "back.zarr" / "ranks" / "0001")):
        assert store.steps("weights").tolist() == [0, 1, 2, 3]
        assert store.status().attempt == 2
    assert run.scalars["rank"].values.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_rank_that_is_killed_leaves_a_run_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"SIGKILL|Connection|peer|Gloo"):
        together(killed, tmp_path, ranks=2)

    run = open_run(tmp_path / "killed.zarr")
    status = run.status()
    assert (status.state, status.last_step, status.behind) == ("stopped", 3, {1: 2})
    assert run.weights["up.weight"].steps.tolist() == [0, 1, 2]
    assert run.weights["up.weight"].frame(2).shape == (7, 6)


def test_a_job_that_lost_a_rank_goes_on_from_its_checkpoint_on_all_ranks(tmp_path: Path) -> None:
    script = Path(__file__).parent / "scripts" / "sharded.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    lost, done = (
        subprocess.run([*torchrun, script, tmp_path], capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert "exitcode  : -9" in lost.stderr
    assert done.returncode == 0, done.stderr

    run = open_run(tmp_path / "run.zarr")
    end = torch.load(tmp_path / "end.pt")
    assert end["first"] == 4
    for store in (run, open_run(tmp_path / "run.zarr" / "ranks" / "0001")):
        assert store.steps("weights").tolist() == list(range(8))
        assert store.status().attempt == 2
    assert run.scalars["loss"].steps.tolist() == list(range(8))
    for step in range(8):
        before = run.weights["0.weight"].frame(step)
        after = run.weights["0.weight"].frame(step + 1) if step < 7 else end["weight"].numpy()
        gradient = run.gradients["0.weight"].frame(step)
        np.testing.assert_allclose(after, before - 0.1 * gradient, rtol=1e-6, atol=1e-7)
