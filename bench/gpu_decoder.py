"""A decoder of the Llama architecture in plain PyTorch, for the demonstrations on a GPU. It contains no
optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model."""

    vocabulary: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    tied: bool = False
    theta: float = 10_000.0


SHAPES = {
    "tiny": Shape(256, 64, 2, 2, 1, 192, tied=True),
    "30m": Shape(256, 512, 9, 8, 8, 1408, tied=True),
    "gpt2-124m": Shape(50_304, 768, 12, 12, 12, 2048, tied=True),  # size and vocabulary of GPT-2
    "llama-1b": Shape(128_256, 2048, 16, 32, 8, 8192, tied=True, theta=500_000.0),
    "llama-8b": Shape(128_256, 4096, 32, 32, 8, 14_336, theta=500_000.0),
}


def rope(sequence: int, head: int, theta: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary embedding, each (sequence, head / 2), in fp32."""
    frequencies = theta ** (-torch.arange(0, head, 2, device=device, dtype=torch.float32) / head)
    angles = torch.outer(torch.arange(sequence, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual connection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head = shape.dim // shape.heads
        self.attention_norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.query = nn.Linear(shape.dim, shape.dim, bias=False)
        self.key = nn.Linear(shape.dim, shape.kv_heads * self.head, bias=False)
        self.value = nn.Linear(shape.dim, shape.kv_heads * self.head, bias=False)
        self.output = nn.Linear(shape.dim, shape.dim, bias=False)
        self.feed_forward_norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def heads(self, x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Reshapes to (batch, heads, sequence, head) and applies the rotary embedding if there is a table."""
        x = x.unflatten(-1, (-1, self.head)).transpose(1, 2)
        if table is None:
            return x
        a, b = x.float().chunk(2, -1)
        cosine, sine = table
        return torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1).to(x.dtype)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        table = cosine, sine
        normed = self.attention_norm(x)
        query, key = self.heads(self.query(normed), table), self.heads(self.key(normed), table)
        value = self.heads(self.value(normed), None)
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        normed = self.feed_forward_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    """Computes the mean loss of tokens."""

    def __init__(self, shape: Shape, checkpointing: bool) -> None:
        super().__init__()
        self.shape, self.checkpointing = shape, checkpointing
        self.embedding = nn.Embedding(shape.vocabulary, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.output = nn.Linear(shape.dim, shape.vocabulary, bias=False)
        if shape.tied:
            self.output.weight = self.embedding.weight

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(inputs)
        head = self.shape.dim // self.shape.heads
        cosine, sine = rope(inputs.shape[1], head, self.shape.theta, inputs.device)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cosine, sine, use_reentrant=False)
            else:
                x = block(x, cosine, sine)
        logits = self.output(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def make_decoder(
    shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0, checkpointing: bool = False
) -> Decoder:
    """A model with random weights, made on its device: an 8 B model need not fit into host memory."""
    with torch.device("meta"):
        model = Decoder(shape, checkpointing).to(dtype)
    model = model.to_empty(device=device)
    if shape.tied:  # to_empty() has untied them
        model.output.weight = model.embedding.weight
    generator = torch.Generator(device).manual_seed(seed)
    residual = 0.02 / (2 * shape.layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
            else:
                last = name.startswith("blocks.") and name.endswith(("down.weight", "output.weight"))
                # Drawn in fp32, so that every dtype has the same initial weights; by rows, to save memory.
                for rows in parameter.split(8192):
                    drawn = torch.empty(rows.shape, device=device)
                    rows.copy_(drawn.normal_(0.0, residual if last else 0.02, generator=generator))
    return model
