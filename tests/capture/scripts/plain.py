"""A plain loop, with a look at the model before it is trained."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


torch.manual_seed(0)
model = Net()
optimizer = torch.optim.Adam(model.parameters())
with torch.no_grad():
    print(model(torch.randn(2, 1, 8, 8)).tolist())
for step in range(6):
    x, y = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    print(step, loss.item())
print([weight.tolist() for weight in model.state_dict().values()])
