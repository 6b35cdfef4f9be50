"""The callbacks of Lightning and of Hugging Face's Trainer."""

from __future__ import annotations

import importlib
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from filmstrip.capture import CaptureError, PlanError
from filmstrip.capture.huggingface import Capture as HuggingFaceCapture
from filmstrip.capture.lightning import Capture as LightningCapture
from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run

BATCHES = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return Lightning under one of its names; it warns of much that small trainings do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning|pytorch_lightning|torch")
        warnings.filterwarnings("ignore", message=".*num_workers|.*isinstance.treespec")
        yield importlib.import_module(request.param)


def module_of(pl: Any) -> Any:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
            self.seen: list[tuple[int, torch.Tensor]] = []

        def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
            output = self.net(batch[0])
            self.seen.append((self.trainer.global_step, output.detach().clone()))
            loss: torch.Tensor = output.square().mean()
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: list[torch.Tensor], number: int) -> None:
            self.log("validated", self.net(batch[0]).sum())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    return Module()


def fit(
    pl: Any, module: Any, callbacks: list[Any], *, epochs: int = 2, path: str | None = None
) -> Any:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=2,
        log_every_n_steps=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    held = DataLoader(TensorDataset(torch.ones(4, 3)))
    trainer.fit(
        module, DataLoader(TensorDataset(BATCHES), batch_size=4), held, **_path(path, trainer)
    )
    return trainer


def _path(path: str | None, trainer: Any) -> dict[str, Any]:
    if path is None:
        return {}
    whole = {"weights_only": False} if "weights_only" in signature(trainer.fit).parameters else {}
    return {"ckpt_path": path, **whole}


def test_lightning_captures_the_first_batch_of_a_step_and_what_is_logged(pl: Any, run: str) -> None:
    plain, module = module_of(pl), module_of(pl)
    fit(pl, plain, [])
    capture = LightningCapture(run, every=1)
    fit(pl, module, [capture])

    assert isinstance(capture, pl.Callback)
    assert all(map(torch.equal, module.state_dict().values(), plain.state_dict().values()))
    opened = open_run(run)
    assert opened.layers("activations") == ["net.0", "net.1"]
    assert opened.steps("gradients").tolist() == [0, 1, 2, 3, 4, 5]
    first = dict(reversed(module.seen))
    for step in range(6):
        np.testing.assert_array_equal(opened.activations["net.1"].frame(step), first[step][:1])
    assert opened.scalars["loss"].steps.tolist() == [0, 1, 2, 3, 4, 5]
    second = {step: output.square().mean() for step, output in module.seen}
    np.testing.assert_allclose(opened.scalars["loss"].values, [float(second[i]) for i in range(6)])
    assert opened.scalars["validated"].steps.tolist() == [2, 5]
    assert opened.status().state == "finished"


def test_lightning_goes_on_from_a_checkpoint_and_rewinds(pl: Any, run: str, tmp_path: Path) -> None:
    saved = str(tmp_path / "saved.ckpt")
    fit(pl, module_of(pl), [LightningCapture(run, every=1)]).save_checkpoint(saved)
    longer = module_of(pl)
    fit(pl, longer, [LightningCapture(run, every=1)], epochs=4, path=saved)
    fit(pl, longer, [LightningCapture(run, every=1)], epochs=3, path=saved)

    assert open_run(run).steps("weights").tolist() == list(range(9))
    assert open_run(run).scalars["loss"].steps.tolist() == list(range(9))


def test_lightning_captures_the_first_step_of_each_epoch(pl: Any, run: str) -> None:
    fit(pl, module_of(pl), [LightningCapture(run, every="epoch")])

    assert open_run(run).steps("activations").tolist() == [0, 3]


def test_lightning_with_two_optimizers_that_step_by_hand(pl: Any, run: str) -> None:
    class Two(type(module_of(pl))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[torch.Tensor], number: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.net(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.net]

    module = Two()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[LightningCapture(run, every=4)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(BATCHES), batch_size=4))

    opened = open_run(run)
    assert trainer.global_step == 12
    for kind in ("activations", "weights", "gradients"):
        assert opened.steps(kind).tolist() == [0, 4, 8]
    assert opened.layers("activations") == ["net.0", "net.1", "net.0#1", "net.1#1"]


def test_lightning_closes_the_run_of_a_training_that_fails(pl: Any, run: str) -> None:
    class Failing(type(module_of(pl))):  # type: ignore[misc]
        def training_step(self, batch: list[torch.Tensor], number: int) -> Any:
            if self.trainer.global_step == 2:
                raise RuntimeError("the data ended")
            return super().training_step(batch, number)

    with pytest.raises(RuntimeError, match="the data ended"):
        fit(pl, Failing(), [LightningCapture(run, every=1)])

    assert open_run(run).steps("weights").tolist() == [0, 1]
    assert open_run(run).status().state == "finished"


def test_a_lightning_callback_that_captures_nothing_lets_training_be(pl: Any, run: str) -> None:
    trainer = fit(pl, module_of(pl), [LightningCapture(run, every=1, enabled=False)])

    assert trainer.global_step == fit(pl, module_of(pl), []).global_step
    assert not Path(run).exists()


def test_lightning_says_what_failed_before_training_began(pl: Any, run: str) -> None:
    class Failing(type(module_of(pl))):  # type: ignore[misc]
        def validation_step(self, batch: list[torch.Tensor], number: int) -> None:
            raise RuntimeError("the data ended")

    with pytest.raises(RuntimeError, match="the data ended"):
        fit(pl, Failing(), [LightningCapture(run, every=1)])


def test_a_lightning_callback_is_sent_to_other_processes_unattached(pl: Any, run: str) -> None:
    sent = pickle.loads(pickle.dumps(LightningCapture(run, every=7)))

    assert isinstance(sent, pl.Callback)
    assert not sent.enabled
    assert sent._code["every"] == 7


def words() -> list[dict[str, torch.Tensor]]:
    rows = torch.randint(30, (24, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row[0] % 2} for row in rows]


def bert(folder: Path, callbacks: list[Any], **arguments: Any) -> Any:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
    )
    wanted = {"max_steps": 4, "save_strategy": "no", **arguments}
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **wanted,
        ),
        train_dataset=words(),
        eval_dataset=words()[:4],
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def test_the_trainer_of_hugging_face_is_captured_and_what_it_logs_is_kept(
    run: str, tmp_path: Path
) -> None:
    plain = bert(tmp_path, [], eval_strategy="epoch")
    plain.train()
    trainer = bert(tmp_path, [HuggingFaceCapture(run, every=2)], eval_strategy="epoch")
    trainer.train()

    assert all(map(torch.equal, trainer.model.parameters(), plain.model.parameters()))
    opened = open_run(run)
    for kind in ("activations", "weights", "gradients"):
        assert opened.steps(kind).tolist() == [0, 2]
    assert not any("#" in layer for layer in opened.layers("activations"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert opened.scalars["loss"].steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(opened.scalars["loss"].values, losses)
    assert opened.scalars["eval_loss"].steps.tolist() == [2, 3]
    assert opened.status().state == "finished"


def test_the_trainer_of_hugging_face_captures_the_first_step_of_each_epoch(
    run: str, tmp_path: Path
) -> None:
    bert(tmp_path, [HuggingFaceCapture(run, every="epoch")], max_steps=5).train()

    assert open_run(run).steps("activations").tolist() == [0, 3]


def test_the_trainer_of_hugging_face_goes_on_from_a_checkpoint_and_rewinds(
    run: str, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    bert(tmp_path, [HuggingFaceCapture(run, every=1)], **saving).train()
    again = bert(tmp_path, [HuggingFaceCapture(run, every=1)], max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3, 4, 5]
    assert open_run(run).scalars["loss"].steps.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_accelerate_prepared_is_captured_step_by_step(run: str) -> None:
    from accelerate import Accelerator  # type: ignore[import-untyped]

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        DataLoader(TensorDataset(BATCHES), batch_size=4),
    )
    done = 10
    weights = []
    with Capture(model, optimizer, run, every=1, step=lambda: done):
        for (x,) in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(x).square().mean())
                weights.append(net.state_dict()["0.weight"].clone())
                optimizer.step()
                optimizer.zero_grad()
            done += accelerator.sync_gradients

    opened = open_run(run)
    assert opened.steps("activations").tolist() == opened.steps("gradients").tolist()
    assert opened.steps("weights").tolist() == [10, 11, 12]
    assert opened.layers("activations") == ["0", "1"]
    for step in range(3):
        kept = opened.weights["0.weight"].frame(10 + step)
        np.testing.assert_array_equal(kept, weights[2 * step + 1].numpy())


@pytest.mark.parametrize("capture", [LightningCapture, HuggingFaceCapture], ids=["pl", "hf"])
def test_keywords_are_checked_when_the_callback_is_made(capture: Any) -> None:
    with pytest.raises(PlanError, match="every=0"):
        capture(every=0)
    with pytest.raises(PlanError, match="step=3 is the trainer's to say"):
        capture(step=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'ever'"):
        capture(ever=3)


@dataclass
class Kind:
    """A kind of trainer, and how it trains for six steps."""

    capture: Any
    train: Callable[..., Any]
    """Is given the capture and what is called with each step that has ended; returns the model."""


@pytest.fixture(params=["lightning", "huggingface"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    """Return both trainers in turn."""

    def lightning(capture: Any, after: Callable[[int], None] = lambda step: None) -> Any:
        pl = importlib.import_module("lightning.pytorch")

        class After(pl.Callback):  # type: ignore[misc, name-defined]
            ended = 0

            def on_train_batch_end(self, trainer: Any, *others: object) -> None:
                if trainer.global_step > self.ended:  # a step has two batches
                    self.ended = trainer.global_step
                    after(self.ended)

        module = module_of(pl)
        fit(pl, module, [capture, After()])
        return module

    def huggingface(capture: Any, after: Callable[[int], None] = lambda step: None) -> Any:
        from transformers import TrainerCallback

        class After(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                after(state.global_step)

        trainer = bert(tmp_path, [capture, After()], max_steps=6)
        trainer.train()
        return trainer.model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning|pytorch_lightning|torch")
        warnings.filterwarnings("ignore", message=".*num_workers|.*isinstance.treespec")
        if request.param == "lightning":
            yield Kind(LightningCapture, lightning)
        else:
            yield Kind(HuggingFaceCapture, huggingface)


def test_a_callback_that_is_paused_before_training_goes_on_when_it_is_resumed(
    kind: Kind, run: str
) -> None:
    capture = kind.capture(run, every=1)
    capture.pause()

    def after(step: int) -> None:
        assert capture.enabled is (step in (3, 4))
        if step == 2:
            capture.resume()
        if step == 4:
            capture.pause()

    kind.train(capture, after)

    opened = open_run(run)
    for what in ("activations", "weights", "gradients"):
        assert opened.steps(what).tolist() == [2, 3]
    assert not capture.enabled
    capture.resume()
    capture.pause()
    capture.load_state_dict({"step": 1})
    capture.close()
    assert open_run(run).steps("weights").tolist() == [2, 3]


def test_the_state_of_a_callback_is_the_trainers_step(kind: Kind, run: str) -> None:
    capture = kind.capture(run, every=2)
    assert capture.state_dict() == {"step": 0}
    capture.load_state_dict({"step": 7})
    assert capture.state_dict() == {"step": 7}

    states: dict[int, dict[str, int]] = {}
    kind.train(capture, lambda step: states.setdefault(step, capture.state_dict()))

    assert [states[step] for step in range(1, 7)] == [{"step": step} for step in range(1, 7)]
    assert capture.state_dict() == {"step": 6}
    assert open_run(run).steps("weights").tolist() == [0, 2, 4]


def test_what_was_lost_is_logged_when_training_ends_and_raised_by_close(
    kind: Kind, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(step: int) -> None:
        if step == 3 and (Path(run) / "weights").is_dir():
            shutil.rmtree(Path(run) / "weights")
            (Path(run) / "weights").write_text("in the way")

    plain = kind.train(kind.capture(run, enabled=False))
    trained = []

    def train() -> None:
        with kind.capture(run, every=1) as capture:
            trained.append(kind.train(capture, lose))
            assert "lost something" in caplog.text
            trained.append(capture)

    with pytest.raises(CaptureError, match="lost something"):
        train()

    model, capture = trained
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    capture.close()


def test_an_error_of_training_is_not_hidden_by_what_a_callback_lost(kind: Kind, run: str) -> None:
    def stumble() -> None:
        with kind.capture(run, every=1) as capture:
            kind.train(capture, lambda step: shutil.rmtree(run, ignore_errors=True))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()


def test_a_callback_that_is_closed_before_training_captures_nothing(kind: Kind, run: str) -> None:
    with kind.capture(run, every=1) as capture:
        pass
    kind.train(capture)

    assert not Path(run).exists()


def test_the_step_goes_into_the_checkpoints_of_lightning(pl: Any, run: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved.ckpt"
    fit(pl, module_of(pl), [LightningCapture(run, every=1)]).save_checkpoint(saved)

    assert torch.load(saved, weights_only=False)["callbacks"]["Capture"] == {"step": 6}
    capture = LightningCapture(run, every=1)
    fit(pl, module_of(pl), [capture], epochs=3, path=str(saved))
    assert capture.state_dict() == {"step": 9}
