"""Data-loader workers, forked and spawned, and a child process of the script's own."""

import subprocess
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    data = TensorDataset(torch.randn(8, 3))
    for context in ("fork", "spawn"):
        for (x,) in DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context=context):
            loss = model(x).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(context, loss.item(), flush=True)
    subprocess.run([sys.executable, "-c", "import sys; print(*sys.argv[1:])", "done"], check=True)


if __name__ == "__main__":
    main()
