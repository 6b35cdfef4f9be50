"""A loop that ends by an exception."""

import torch

torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    print(step, flush=True)
raise RuntimeError("the data ended")
