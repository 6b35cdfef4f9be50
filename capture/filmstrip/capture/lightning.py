"""Capture for Lightning: a callback, under both names by which Lightning is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from typing import TYPE_CHECKING, Self, Unpack

from filmstrip.capture.pytorch._trainer import TrainerCapture, TrainerKeywords

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = object

__all__ = ["Capture"]

_NAMES = ("lightning.pytorch", "pytorch_lightning")
_KINDS: dict[tuple[str, ...], type[Capture]] = {}


def _kind() -> type[Capture]:
    """Return the class whose objects are callbacks of the Lightning that the script uses.

    The two names are two libraries with a class each. Which one a script uses is known when it
    makes its callbacks, and not when it imports this module.
    """
    names = [name for name in _NAMES if name in sys.modules]
    if not names:
        names = [name for name in _NAMES if find_spec(name.partition(".")[0]) is not None][:1]
    if not names:
        raise ImportError(
            "there is neither lightning nor pytorch_lightning, which filmstrip.capture.lightning "
            "needs: pip install 'filmstrip[lightning]'"
        )
    key = tuple(names)
    if key not in _KINDS:
        bases = tuple(import_module(name).Callback for name in names)
        _KINDS[key] = type("Capture", (Capture, *bases), {"__module__": __name__})
    return _KINDS[key]


class Capture(TrainerCapture, Callback):
    """Records activations, weights and gradients while a Lightning ``Trainer`` fits.

    A step is one of ``trainer.global_step``: with several optimizers Lightning counts each of their
    steps, and the last of them ends a step here. Of batches that are accumulated the first is
    taken; nothing is taken while Lightning validates. What the module logs is kept as scalars,
    every ``log_every_n_steps``. ``fit(ckpt_path=…)`` goes on with the run, from the step of the
    checkpoint. The run is closed when the training ends; what was lost is logged then, and raised
    by `close`.

    Parameters
    ----------
    run : str or path
        Where the run is written.
    **keywords
        Those of ``filmstrip.capture.pytorch.Capture``, but its model, optimizer and step.

    Raises
    ------
    TypeError, PlanError
        If a keyword is unknown, or has a value that cannot be used.

    Examples
    --------
    >>> Capture("run.zarr", every=100, layers=["net.*"]).enabled
    False
    """

    _ends: Callable[[bool], None] = staticmethod(lambda learns: None)
    _begins: Callable[[bool], None] = staticmethod(lambda learns: None)

    def __new__(cls, *args: object, **keywords: object) -> Self:
        """Make a callback of the Lightning that is used."""
        return object.__new__(_kind() if cls is Capture else cls)  # type: ignore[return-value]

    def __init__(
        self, run: str | PathLike[str] = "run.zarr", **keywords: Unpack[TrainerKeywords]
    ) -> None:
        self._given = (run, keywords)
        self._kept: dict[str, torch.Tensor] = {}
        self._step = 0
        self._prepare(run, keywords)

    def __reduce__(self) -> tuple[Callable[..., Capture], tuple[object, ...]]:
        return _made, self._given

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach; the step of a checkpoint is known by now."""
        model = trainer.strategy.model or pl_module
        self._step, self._kept = trainer.global_step, {}
        capture = self._attach(model, trainer.optimizers, lambda: trainer.global_step)
        if capture._session is not None:
            self._begins, self._ends = capture._tap.forward.told()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the first step of an epoch, for ``every="epoch"``."""
        self._epochs.add(trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Begin a pass: Lightning calls the module's training_step, not the module."""
        self._begins(True)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """End a pass."""
        self._ends(True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Keep what is logged, when the trainer's loggers do."""
        step, every = trainer.global_step, int(getattr(trainer, "log_every_n_steps", 0)) or 1
        if step // every > self._step // every:
            self._keep(trainer.logged_metrics)
        self._step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what is logged of an epoch."""
        self._keep(trainer.logged_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what is logged of a validation, but for the one that only tries whether it runs."""
        if not trainer.sanity_checking:
            self._keep(trainer.logged_metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close."""
        self._keep(trainer.logged_metrics)
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close."""
        self._end()

    def _end(self) -> None:
        self._leave()
        for name in ("_begins", "_ends"):  # there are none where nothing was attached
            vars(self).pop(name, None)

    def _keep(self, metrics: Mapping[str, object]) -> None:
        """Log what was not logged before; Lightning hands out old values together with new ones.

        That a value is an old one its memory tells, which is not used again as long as it is held.
        """
        import torch

        new = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, torch.Tensor)
            and value.numel() == 1
            and (name not in self._kept or self._kept[name].data_ptr() != value.data_ptr())
        }
        self._kept |= new
        if new:
            TrainerCapture.log(self, new)  # Lightning puts the module's log in place of ours


def _made(run: str | PathLike[str], keywords: TrainerKeywords) -> Capture:
    return Capture(run, **keywords)
