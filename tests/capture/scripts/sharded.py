"""Trains a sharded model that is saved now and then; a rank dies the first time."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard

from filmstrip.capture.pytorch import Capture

folder = Path(sys.argv[1])
torch.set_num_threads(1)
distributed.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
cap = Capture(
    model, optimizer, folder / "run.zarr", every=1, if_exists="resume", on_pressure="block"
)
saved = {"model": model.state_dict(), "capture": {"step": 0}}
first = 0
if (folder / "saved" / ".metadata").exists():
    load(saved, checkpoint_id=folder / "saved")
    model.load_state_dict(saved["model"])
    cap.load_state_dict(saved["capture"])
    first = saved["capture"]["step"]
for step in range(first, 8):
    if step == 6 and first == 0 and distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(step)
    loss = model(torch.randn(4, 3)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    cap.log(loss=loss)
    if step == 3:
        saved = {"model": model.state_dict(), "capture": cap.state_dict()}
        save(saved, checkpoint_id=folder / "saved")
cap.close()
weight = dict(model.named_parameters())["0.weight"].full_tensor()  # type: ignore[attr-defined]
if distributed.get_rank() == 0:
    torch.save({"first": first, "weight": weight.detach()}, folder / "end.pt")
distributed.destroy_process_group()
os._exit(0)  # a thread of gloo's now and then aborts a process that ends, whoever watches it
