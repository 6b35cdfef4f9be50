"""Capture for the Trainer of Hugging Face transformers: a callback."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack

from filmstrip.capture.pytorch._trainer import TrainerCapture, TrainerKeywords

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

try:
    from transformers import TrainerCallback
except ImportError as missing:
    raise ImportError(
        f"{missing}; filmstrip.capture.huggingface needs it: pip install 'filmstrip[huggingface]'"
    ) from missing

__all__ = ["Capture"]


class Capture(TrainerCapture, TrainerCallback):
    """Records activations, weights and gradients while a ``transformers.Trainer`` trains.

    A step is one of ``state.global_step``, with all its accumulated batches. What the trainer logs
    is kept as scalars. ``train(resume_from_checkpoint=True)`` goes on with the run, from the step
    of the checkpoint. The run is closed when the training ends; what was lost is logged then, and
    raised by `close`.

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
    >>> Capture("run.zarr", every=100, layers=["*.attention.*"]).enabled
    False
    """

    def __init__(
        self, run: str | PathLike[str] = "run.zarr", **keywords: Unpack[TrainerKeywords]
    ) -> None:
        self._prepare(run, keywords)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Attach; the step of a checkpoint is known by now."""
        self._attach(others["model"], [others["optimizer"]], lambda: state.global_step)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Note the first step of an epoch, for ``every="epoch"``."""
        self._epochs.add(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **others: Any,
    ) -> None:
        """Keep what is logged."""
        self.log({name: value for name, value in (logs or {}).items() if isinstance(value, Real)})

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Close; what was lost is logged."""
        self._leave()
