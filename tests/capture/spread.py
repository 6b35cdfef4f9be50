"""Trains one model on several ranks, in every way of spreading it, with and without capture."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.multiprocessing.spawn import start_processes
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from filmstrip.capture import CaptureError
from filmstrip.capture.pytorch import Capture
from filmstrip.store import create_run
from filmstrip.store._place import LocalPlace
from filmstrip.store._stores import RankStore

STEPS = 3
HYBRID = torch.__version__ >= "2.9"  # Gloo has no averages in torch 2.7


class Wide(nn.Module):
    """Two linear layers whose lengths no number of ranks divides, and one that is tiny."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, 5)
        self.last = nn.Linear(5, 1)
        self.reentrant: bool | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of two classes."""
        x = torch.relu(self.norm(self.up(x)))
        if self.reentrant is None:
            x = self.down(x)
        else:
            x = checkpoint(self.down, x, use_reentrant=self.reentrant)
        score = self.last(x)
        return torch.cat([score, -score], dim=1)


def _ddp(model: Wide) -> nn.Module:
    return DistributedDataParallel(model)


def _fsdp(model: Wide) -> Any:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("data",))
    model.reentrant = True
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _kept_whole(model: Wide) -> Any:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model.reentrant = False
    fully_shard(model.down, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _half(model: Wide) -> Any:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model.up, mesh=mesh, mp_policy=policy)
    return fully_shard(model.to(torch.bfloat16), mesh=mesh)


def _hybrid(model: Wide) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    return fully_shard(model, mesh=mesh)


def _tensor(model: Wide, mesh: Any = None) -> nn.Module:
    if mesh is None:
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("tensor",))
    everywhere = Replicate()
    plan = {
        "up": ColwiseParallel(output_layouts=everywhere),
        "down": RowwiseParallel(input_layouts=everywhere),
    }
    return parallelize_module(model, mesh, plan)


def _outputs(model: Wide, mesh: Any = None) -> nn.Module:
    if mesh is None:
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("tensor",))
    model.norm = nn.Identity()  # type: ignore[assignment]
    plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def _outputs_of_replicas(model: Wide) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return fully_shard(_outputs(model, mesh["tensor"]), mesh=mesh["data"])


def _both(model: Wide) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return fully_shard(_tensor(model, mesh["tensor"]), mesh=mesh["data"])


WAYS: dict[str, Callable[[Wide], nn.Module]] = {
    "ddp": _ddp,
    "fsdp": _fsdp,
    "kept-whole": _kept_whole,
    "half": _half,
    "hybrid": _hybrid,
    "tensor": _tensor,
    "both": _both,
    "outputs": _outputs,
    "outputs-of-replicas": _outputs_of_replicas,
}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, wherever its parts are."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def collectives() -> int:
    """Return how many collectives this process took part in; an object that is sent is two."""
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)


def batch(step: int, share: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one share of a step's batch."""
    torch.manual_seed(100 * step + share)
    return torch.randn(4, 6), torch.randint(2, (4,))


def share_of(way: str, rank: int) -> int:
    """Return which share of the batch a rank trains on; tensor parallel ranks have the same."""
    alike = {"tensor": 0, "outputs": 0, "both": rank // 2, "outputs-of-replicas": rank // 2}
    return alike.get(way, rank)


def built(way: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a fresh model, the same every time, and its optimizer."""
    torch.manual_seed(0)
    model = WAYS[way](Wide(8 if way in ("tensor", "both") else 7))
    how: dict[str, Any] = {"kept-whole": {"fused": True}, "fsdp": {"foreach": True}}.get(way, {})
    return model, torch.optim.Adam(model.parameters(), lr=0.1, **how)


def train(way: str, run: str | None, **keywords: Any) -> dict[str, Any]:
    """Train, and return losses, final weights, and what the optimizer saw at every step."""
    model, optimizer = built(way)
    before = collectives()
    capture = None
    if run is not None:
        capture = Capture(model, optimizer, run, every=1, on_pressure="block", **keywords)
    seen: list[dict[str, torch.Tensor]] = []
    losses = []
    outputs: list[torch.Tensor] = []
    if way.startswith("outputs"):
        up: Any = model.up
        up.register_forward_hook(lambda module, given, output: outputs.append(whole(output)))
    dtype = next(model.parameters()).dtype
    for step in range(STEPS):
        x, y = batch(step, share_of(way, distributed.get_rank()))
        optimizer.zero_grad()
        loss = cross_entropy(model(x.to(dtype)).float(), y)
        loss.backward()  # type: ignore[no-untyped-call]
        seen.append({})
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            seen[-1][f"weights/{name}"] = whole(parameter)
            seen[-1][f"gradients/{name}"] = whole(parameter.grad)
        if outputs:
            seen[-1]["activations/up"] = outputs[-1]
        optimizer.step()
        losses.append(loss.detach().clone())
    final = {name: whole(parameter) for name, parameter in model.named_parameters()}
    if capture is not None:
        capture.close()
    return {"losses": losses, "final": final, "seen": seen, "collectives": collectives() - before}


def compared(ways: Sequence[str], rank: int, folder: Path) -> None:
    """Train in several ways without and with capture, and keep what came out."""
    for way in ways:
        outcome = {"bare": train(way, None), "captured": train(way, str(folder / f"{way}.zarr"))}
        torch.save(outcome, folder / f"{way}-{rank}.pt")


def on_two(rank: int, folder: Path) -> None:
    """Do what two ranks can show."""
    compared(["ddp", "fsdp", "kept-whole", "half", "tensor", "outputs"], rank, folder)
    train("ddp", str(folder / "everybody.zarr"), replicas="all", samples=3)
    train("fsdp", str(folder / "all-shards.zarr"), replicas="all")
    train("fsdp", str(folder / "tight.zarr"), max_capture_bytes=600)
    train("outputs", str(folder / "narrow.zarr"), max_capture_bytes=60)
    refused: dict[str, str] = {}

    def refuse(what: str, run: str, **keywords: Any) -> None:
        model, optimizer = built("fsdp")
        try:
            Capture(model, optimizer, run, **keywords)
        except Exception as error:
            refused[what] = f"{type(error).__name__}: {error}"

    refuse("exists", str(folder / "fsdp.zarr"))
    refuse("probe", str(folder / "probe.zarr"), probe=torch.ones(1, 6))
    train("fsdp", str(folder / "new.zarr"))
    train("fsdp", str(folder / "new.zarr"), if_exists="new")
    train("fsdp", str(folder / "over.zarr"), kinds=["weights"])
    train("fsdp", str(folder / "over.zarr"), kinds=["weights"], if_exists="overwrite")
    if rank == 0:
        with create_run(folder / "three.zarr", world_size=3) as run:
            run.log(0, {"loss": 1.0})
        (folder / "half-broken.zarr" / "ranks").mkdir(parents=True)
        (folder / "half-broken.zarr" / "ranks" / "0001").touch()
    distributed.barrier()
    refuse("world", str(folder / "three.zarr"), step=1)
    try:
        train("fsdp", str(folder / "half-broken.zarr"))
    except CaptureError as error:
        refused["broken"] = str(error)
    model, optimizer = built("fsdp")
    for first in (0, 2):
        with Capture(
            model, optimizer, str(folder / "back.zarr"), every=1, if_exists="resume"
        ) as capture:
            capture.load_state_dict({"step": first})
            for step in range(first, first + 4 - first):
                x, y = batch(step, rank)
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                capture.log(rank=rank)
    torch.save(refused, folder / f"refused-{rank}.pt")


def on_three(rank: int, folder: Path) -> None:
    """Spread what three do not divide."""
    compared(["fsdp"], rank, folder)


def on_four(rank: int, folder: Path) -> None:
    """Spread over meshes of two axes."""
    compared([*(["hybrid"] if HYBRID else []), "both", "outputs-of-replicas"], rank, folder)


def killed(rank: int, folder: Path) -> None:
    """Train until rank 1 is killed; the others go on as far as the framework does."""
    path = folder / "killed.zarr"
    model, optimizer = built("fsdp")
    capture = Capture(model, optimizer, str(path), every=1, on_pressure="block")
    for step in range(6):
        x, y = batch(step, rank)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        if (step, rank) == (3, 1):
            _wait_for(path, 3)
            _wait_for(path / "ranks" / "0001", 2)
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
    capture.close()


def _wait_for(store: Path, step: int) -> None:
    """Wait until a rank has written a step."""
    while step not in RankStore(LocalPlace(store)).view("weights").steps():
        time.sleep(0.05)


def _work(rank: int, ranks: int, folder: str, act: Callable[[int, Path], None]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    act(rank, Path(folder))
    distributed.barrier()
    distributed.destroy_process_group()


def together(act: Callable[[int, Path], None], folder: Path, *, ranks: int) -> None:
    """Run a function on several ranks; raise what one of them raises."""
    start_processes(  # type: ignore[no-untyped-call]
        _work, (ranks, str(folder), act), nprocs=ranks, start_method="spawn"
    )
