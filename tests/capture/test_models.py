"""Models as people have them: every leaf that ran has a strip, with default arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run

TOKENS = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(1))
PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
Step = Callable[[nn.Module], torch.Tensor]


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outward)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outward)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inward, outward, 1, stride, bias=False), nn.BatchNorm2d(outward)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        x += around
        return self.relu(x)  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet-18, eight times narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = (8, 8, 16, 32, 64)
        for number, (inward, outward) in enumerate(pairwise(widths), 1):
            stride = 1 if number == 1 else 2
            blocks = [Residual(inward, outward, stride), Residual(outward, outward, 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop, self.heads = nn.Dropout(0.1), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.c_attn(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.drop(self.c_proj(y.transpose(1, 2).reshape(x.shape)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then two dense layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class SmallGPT(nn.Module):
    """A GPT whose last matrix is its first, as in nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        width = 16
        self.wte, self.wpe, self.drop = (
            nn.Embedding(30, width),
            nn.Embedding(8, width),
            nn.Dropout(0.1),
        )
        self.h = nn.ModuleList(Block(width, 2) for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 30, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1])))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))  # type: ignore[no-any-return]


def resnet() -> tuple[nn.Module, Step]:
    return ResNet18(), lambda model: cross_entropy(model(PICTURES), torch.tensor([1, 2]))


def gpt() -> tuple[nn.Module, Step]:
    def loss(model: nn.Module) -> torch.Tensor:
        return cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())

    return SmallGPT(), loss


def bert() -> tuple[nn.Module, Step]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    model = BertForSequenceClassification(config)
    return model, lambda model: model(TOKENS, labels=torch.tensor([0, 1])).loss


def gpt2() -> tuple[nn.Module, Step]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config), lambda model: model(TOKENS, labels=TOKENS).loss


def vit() -> tuple[nn.Module, Step]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
    )
    model = ViTForImageClassification(config)
    return model, lambda model: model(PICTURES, labels=torch.tensor([0, 1])).loss


def t5() -> tuple[nn.Module, Step]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config), lambda model: model(TOKENS, labels=TOKENS).loss


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet, gpt, bert, gpt2, vit, t5])
def test_every_leaf_of_a_model_that_ran_has_a_strip(
    make: Callable[[], tuple[Any, Step]], run: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model, loss = make()
    optimizer = torch.optim.AdamW(model.parameters())
    ran: dict[str, tuple[int, torch.Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        def called(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                ran.setdefault(name, (output.numel(), output[:1].detach().clone()))

        return called

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(watch(name))
    with caplog.at_level(logging.WARNING), Capture(model, optimizer, run):
        loss(model).backward()  # type: ignore[no-untyped-call]
        gradients = {
            name: weight.grad.clone()
            for name, weight in model.named_parameters()
            if weight.grad is not None
        }
        optimizer.step()

    assert not [record for record in caplog.records if record.name == "filmstrip"]
    opened = open_run(run)
    once = {layer.partition("#")[0] for layer in opened.layers("activations")}
    assert once == set(ran)
    for name, (count, output) in ran.items():
        np.testing.assert_array_equal(opened.activations[name].frame(0), output.numpy())
        assert opened.statistics("activations")[name, "count"].values.tolist() == [count]
    assert set(opened.layers("weights")) == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(opened.gradients[name].frame(0), gradient.numpy())
