"""A Lightning module, two batches a step, with validation."""

import logging
import warnings

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)  # Lightning says what hardware there is


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        self.net.append(torch.nn.Linear(4, 1))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        loss = self.net(batch[0]).square().mean()
        print(loss.item())
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: list[torch.Tensor], number: int) -> None:
        print("validation", self.net(batch[0]).sum().item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(24, 3)), batch_size=4)
module = Module()
pl.Trainer(
    max_epochs=2,
    accelerator="cpu",
    accumulate_grad_batches=2,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
).fit(module, loader, DataLoader(TensorDataset(torch.ones(4, 3))))
print([weight.tolist() for weight in module.state_dict().values()])
