"""Two models and two optimizers, in turn; pictures of fixed noise in between."""

import torch
from torch import nn


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.main(z)  # type: ignore[no-any-return]


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(x).tanh())  # type: ignore[no-any-return]


torch.manual_seed(0)
generator, critic = Generator(), Critic()
of_critic = torch.optim.Adam(critic.parameters(), lr=0.01)
of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
noise = torch.randn(4, 2)
judge = nn.BCEWithLogitsLoss()
for step in range(5):
    of_critic.zero_grad()
    real = judge(critic(torch.randn(4, 3) + 2), torch.ones(4, 1))
    real.backward()
    fake = generator(torch.randn(4, 2))
    judge(critic(fake.detach()), torch.zeros(4, 1)).backward()
    of_critic.step()
    of_generator.zero_grad()
    judge(critic(fake), torch.ones(4, 1)).backward()
    of_generator.step()
    with torch.no_grad():
        print(step, real.item(), generator(noise).sum().item())
