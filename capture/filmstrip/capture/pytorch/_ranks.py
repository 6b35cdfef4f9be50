"""Ranks: the only place that asks other ranks for anything: once, at attach.

Rank 0 decides where the run is, whether it is resumed, and with which settings. The others follow,
so that ``"new"`` and ``"overwrite"`` mean the same to all, and all refuse what rank 0 refuses.
No other call of the agent waits for another rank, not even at close.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from filmstrip.capture import _report
from filmstrip.capture._session import Company, parameter_bytes
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import CaptureError
from filmstrip.capture.pytorch._model import Selection
from filmstrip.capture.pytorch._shards import Sharding, SpreadOutputs, agreed, sharded

_LOGGER = logging.getLogger("filmstrip")


@dataclass(frozen=True, slots=True)
class Lead:
    """What rank 0 decided.

    Parameters
    ----------
    settings : Settings
        Its settings.
    company : Company
        The run that it made, and who writes to it.
    meshes : mapping of str to tuple of int
        By parameter that is spread over ranks, the ranks that hold it together with rank 0.
    """

    settings: Settings
    company: Company
    meshes: Mapping[str, tuple[int, ...]]


def ranks_here() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def spread(model: nn.Module, *, ranks: int) -> bool:
    """Return whether several ranks hold parts of a model, and run it only together."""
    return ranks > 1 and any(map(sharded, getattr(model, "parameters", list)()))


def several_write(model: nn.Module, settings: Settings, *, ranks: int) -> bool:
    """Return whether more ranks than the first have something to write."""
    if ranks == 1 or settings.dry_run:
        return False
    if settings.replicas == "all" and "activations" in settings.kinds:
        return True
    return spread(model, ranks=ranks) and bool({"weights", "gradients"} & set(settings.kinds))


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank takes of what is watched.

    Parameters
    ----------
    selection : Selection
        With the parameters that it writes, or a piece of.
    writers : tuple of int
        All ranks that write something, as far as this one knows.
    meshes : mapping of str to tuple of int
        See `Lead`.
    """

    selection: Selection
    writers: tuple[int, ...]
    meshes: Mapping[str, tuple[int, ...]]


def part_of(
    selection: Selection,
    settings: Settings,
    company: Company,
    meshes: Mapping[str, tuple[int, ...]],
) -> Part:
    """Return what a rank takes: pieces of what is spread, and on rank 0 the rest.

    Parameters
    ----------
    selection : Selection
        What is watched.
    settings : Settings
        Of rank 0.
    company : Company
        Whose part is asked for.
    meshes : mapping of str to tuple of int
        Rank 0's; what its mesh holds is not written by ranks outside of it.
    """
    shardings = {
        variable.name: Sharding(variable.tensor)
        for variable in selection.variables
        if sharded(variable.tensor)
    }
    agreed(
        [sharding for sharding in shardings.values() if sharding.problem is None],
        kinds=settings.kinds,
        budget=parameter_bytes(settings),
        dtype=settings.dtype,
    )
    kept = []
    for variable in selection.variables:
        sharding = shardings.get(variable.name)
        if sharding is None:
            if company.rank == 0:
                kept.append(variable)
        elif sharding.problem is not None:
            if company.rank == 0:
                _LOGGER.warning(
                    "filmstrip: %r: not kept, since its weights %s", variable.name, sharding.problem
                )
        elif sharding.mine and company.rank in meshes.get(variable.name, (company.rank,)):
            kept.append(replace(variable, sharding=sharding))
    split = bool(selection.layers) and _tensor_parallel(selection, shardings.values())
    if company.rank == 0 and split:
        _report.say(
            "the model is tensor parallel: outputs that are DTensors are kept whole, and of those "
            "that are plain tensors the part that lies on rank 0"
        )
    everybody = settings.replicas == "all" and "activations" in settings.kinds
    beside = any(company.rank in ranks for ranks in meshes.values())  # of rank 0
    writers = {0}.union(*(sharding.writers for sharding in shardings.values()))
    return Part(
        replace(
            selection,
            layers=selection.layers if company.rank == 0 or everybody or (split and beside) else (),
            variables=tuple(kept),
        ),
        tuple(range(company.ranks)) if everybody and company.together else tuple(sorted(writers)),
        {name: sharding.ranks for name, sharding in shardings.items()},
    )


def spread_outputs(settings: Settings) -> SpreadOutputs:
    """Return what decides on outputs that are spread over ranks; they have half of all outputs'."""
    room = settings.max_capture_bytes - parameter_bytes(settings)
    return SpreadOutputs(settings.samples, room // 2)


def _tensor_parallel(selection: Selection, shardings: Iterable[Sharding]) -> bool:
    """Return whether parameters are cut otherwise than for `fully_shard`, which makes one cut."""
    kinds = {kind.__name__ for module in selection.root.modules() for kind in type(module).__mro__}
    return any(len(sharding.axes) > ("FSDPModule" in kinds) for sharding in shardings)


def agree(rank: int, decide: Callable[[], Lead]) -> Lead:
    """Return what rank 0 decides, on every rank; the only collective.

    Parameters
    ----------
    rank : int
        This process's.
    decide : callable
        Called on rank 0 alone; what it raises is raised on every rank.
    """
    if rank == 0:
        try:
            lead = decide()
        except BaseException as error:
            _broadcast(_portable(error))
            raise
        _broadcast(lead)
        return lead
    said = _broadcast(None)
    if isinstance(said, BaseException):
        raise said
    assert isinstance(said, Lead)
    return said


def _broadcast(value: object) -> object:
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _portable(error: BaseException) -> BaseException:
    """Return an error that another process can raise: itself, or its words."""
    if isinstance(error, Exception):
        with suppress(Exception):  # whatever its constructor thinks of being called again
            copy: object = pickle.loads(pickle.dumps(error))
            if isinstance(copy, Exception) and str(copy) == str(error):
                return copy
    return CaptureError(str(error) or f"rank 0 gave up: {type(error).__name__}")
