"""Trains a small network on MNIST with FlashAdamW: `python examples/mnist.py [FOLDER]`.

FOLDER holds the four idx files of MNIST, unpacked. Without it the data are SYNTHETIC: ten blurred random
patterns with noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flashoptim_cpp as flash
import torch


def idx(file: Path, header: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()[header:]), dtype=torch.uint8)


def data(folder: str | None, part: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    if folder:
        images = idx(Path(folder) / f"{part}-images-idx3-ubyte", 16).view(-1, 784) / 255
        return images, idx(Path(folder) / f"{part}-labels-idx1-ubyte", 8).long()
    labels = torch.randint(10, (count,))
    return PATTERNS[labels] + torch.randn(count, 784), labels


torch.manual_seed(0)
PATTERNS = torch.randn(10, 784)
source = sys.argv[1] if len(sys.argv) > 1 else None
try:
    images, labels = data(source, "train", 8_000)
    test_images, test_labels = data(source, "t10k", 1_000)
except OSError as error:
    sys.exit(f"mnist: {error}")

model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
flash.cast_model(model)
optimizer = flash.FlashAdamW(model.parameters(), lr=1e-3)
for batch in torch.randperm(len(images)).split(64):
    loss = torch.nn.functional.cross_entropy(model(images[batch].bfloat16()).float(), labels[batch])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
correct = (model(test_images.bfloat16()).argmax(1) == test_labels).float().mean()
print(f"{source or 'synthetic data'}: {100 * correct:.1f} % right after one epoch")
print(f"{optimizer.memory_report()['bytes_per_parameter']:.2f} bytes per parameter besides gradients")
