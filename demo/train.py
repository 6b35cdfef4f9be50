"""Train a small convolutional network on handwritten digits.

An ordinary training script. What concerns filmstrip is its flag ``--capture`` (two lines), and
numbers to log (one). Try::

    python demo/train.py --capture run.zarr --capture-every 10
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812  # what everybody calls it
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from filmstrip.capture import add_capture_arguments, capture_from_arguments


class Net(nn.Module):
    """Three convolutional layers, then two dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 5, padding=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(64, 32, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(32)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(32 * 7 * 7, 64)
        self.fc2 = nn.Linear(64, 10)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.normal_(conv.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, 10), of images, shape (n, 1, 28, 28)."""
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        x = self.pool2(self.relu2(self.bn2(self.conv2(x))))
        x = self.relu3(self.bn3(self.conv3(x)))
        logits: torch.Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def load() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images (n, 1, 28, 28) and labels for training, then for the test."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    x = F.interpolate(x, size=28, mode="bilinear", align_corners=False)
    y = torch.tensor(labels)
    train, test = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=labels)
    return x[train], y[train], x[test], y[test]


def batches(size: int, count: int) -> Iterator[torch.Tensor]:
    """Yield the indices of an epoch's batches, shuffled."""
    yield from torch.randperm(count).split(size)


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of images that a model classifies correctly."""
    model.eval()
    correct = (model(x).argmax(1) == y).float().mean()
    model.train()
    return float(correct)


def main() -> None:
    """Train, and say how well it went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    add_capture_arguments(parser)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    x_train, y_train, x_test, y_test = load()
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    steps = args.epochs * -(-len(x_train) // args.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

    with capture_from_arguments(args, model, optimizer, probe=x_test[:8]) as cap:
        for epoch in range(args.epochs):
            total = 0.0
            for index in batches(args.batch_size, len(x_train)):
                logits = model(x_train[index])
                loss = F.cross_entropy(logits, y_train[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(index)
                hits = (logits.argmax(1) == y_train[index]).float().mean()
                rate = schedule.get_last_lr()[0]
                cap.log({"train/loss": loss, "train/accuracy": hits}, lr=rate)
            test = accuracy(model, x_test, y_test)
            cap.log({"test/accuracy": test})
            print(
                f"epoch {epoch + 1:2d}  loss {total / len(x_train):.4f}  test accuracy {test:.4f}"
            )
    print(f"test accuracy {accuracy(model, x_test, y_test):.4f}")


if __name__ == "__main__":
    main()
