"""The tap: the only place that joins what watches a PyTorch model into what a recorder expects."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from filmstrip.capture._clock import Clock, StepLike
from filmstrip.capture._seams import Site, Watcher
from filmstrip.capture._settings import Settings
from filmstrip.capture.pytorch._backward import OptimizerLike, OptimizerTaps
from filmstrip.capture.pytorch._forward import ForwardTaps
from filmstrip.capture.pytorch._model import Selection
from filmstrip.capture.pytorch._probe import Probe
from filmstrip.capture.pytorch._shards import SpreadOutputs


class TorchTap:
    """Watches a model and its optimizers.

    Parameters
    ----------
    selection : Selection
        What of the model is watched.
    optimizers : sequence of Optimizer
        The step ends when the last of them has stepped.
    settings : Settings
        Kinds, phases, samples, micro-batches.
    step : int, callable or None
        See `Clock`.
    probe : Probe, optional
        Gives the frames of activations.
    outputs : bool
        Whether this rank takes what the model gives and is given, as others have it alike.
    spread : SpreadOutputs, optional
        Which outputs are kept of which each rank has a part.
    """

    def __init__(
        self,
        selection: Selection,
        optimizers: Sequence[OptimizerLike],
        *,
        settings: Settings,
        step: StepLike,
        probe: Probe | None = None,
        outputs: bool = True,
        spread: SpreadOutputs | None = None,
    ) -> None:
        self._step = step
        self._dry = settings.dry_run
        self.forward = ForwardTaps(
            selection.root,
            selection.layers,
            phases=settings.phases,
            micro_batches=settings.micro_batches,
            samples=settings.samples,
            probe=probe,
            inputs=outputs and "inputs" in settings.kinds and probe is None,
            whole=outputs,
            spread=spread,
        )
        self.optimizer = OptimizerTaps(optimizers, selection.variables, kinds=settings.kinds)

    def sites(self) -> Sequence[Site]:
        """Return the sites of weights and gradients; those of activations come with the survey."""
        return self.optimizer.sites()

    def install(self, recorder: Watcher[torch.Tensor]) -> None:
        """Register all hooks and begin the first step."""
        self.clock = Clock(recorder, self._step)
        self.forward.install(recorder, self.clock)
        self.optimizer.install(recorder, self.clock)
        self.forward.learning = self.optimizer.succession.passed
        self.optimizer.before = self.forward.probe
        self.optimizer.after = self.forward.reset
        if self._dry:

            def survey() -> None:
                self.forward.probe()
                self.optimizer.survey()
                recorder.end()

            self.forward.passed = survey
        self.clock.start()

    def remove(self) -> None:
        """Take all hooks away."""
        self.forward.remove()
        self.optimizer.remove()
