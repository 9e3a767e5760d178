"""A small transformer that predicts the next symbol: pre-norm blocks of causal attention and a feed-forward net, tied embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT, HEADS = 64, 4


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.query_key_value(self.norm_attention(x)).view(batch, length, 3, HEADS, width // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        fed: Tensor = x + self.feed(self.norm_feed(x))
        return fed


class LanguageModel(nn.Module):
    def __init__(self, symbols: int, width: int, layers: int = 2) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(symbols, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, numbers: Tensor) -> Tensor:
        """Batch x length -> batch x length x symbols: logits of the symbol that follows each."""
        x = self.embedding(numbers) + self.position(torch.arange(numbers.shape[1], device=numbers.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, betas=(0.9, 0.98))


def sample(numbers: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows at random places, and the same one symbol further."""
    starts = torch.randint(len(numbers) - CONTEXT - 1, (count, 1), generator=generator)
    places = starts + torch.arange(CONTEXT)
    return numbers[places], numbers[places + 1]


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def bits_per_character(model: nn.Module, numbers: Tensor, lengths: Tensor) -> float:
    """Over consecutive windows; the first symbols of each have little to go by, and count all the same."""
    count = (len(numbers) - 1) // CONTEXT * CONTEXT
    inputs, targets = numbers[:count].view(-1, CONTEXT), numbers[1 : count + 1].view(-1, CONTEXT)
    nats = sum(
        functional.cross_entropy(model(some).flatten(0, 1), after.flatten(), reduction="sum").item()
        for some, after in zip(inputs.split(64), targets.split(64), strict=True)
    )
    return nats / math.log(2) / lengths[targets].sum().item()
