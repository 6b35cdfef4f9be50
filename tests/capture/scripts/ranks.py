"""DistributedDataParallel under torchrun; each rank has batches of its own."""

import atexit
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def leave() -> None:
    """End at once, after all else: threads of gloo may abort a process that is taken down."""
    sys.stdout.flush()
    os._exit(0)


atexit.register(leave)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
generator = torch.Generator().manual_seed(dist.get_rank())
for _ in range(4):
    loss = model(torch.randn(4, 3, generator=generator)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if dist.get_rank() == 0:
    sys.stdout.write(f"{[weight.tolist() for weight in model.state_dict().values()]}\n")
dist.destroy_process_group()
