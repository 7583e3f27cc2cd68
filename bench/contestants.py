"""The contestants of compare.py: this library through its C interface, its peers, and parameter lists of
known models."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from c_interface import BACKENDS, FORMATS, Core

# The rules that are timed.
RULES = ("sgd", "adamw", "lion")
Shapes = Sequence[tuple[int, ...]]


def made_up(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Ordinary small values."""
    count = torch.Size(shape).numel()
    piece = torch.randn(min(count, 1 << 20)) * 0.01
    return piece.to(dtype).repeat(-(-count // piece.numel()))[:count].reshape(shape).clone()


class Ours:
    """An optimizer of this library over the given shapes."""

    def __init__(
        self,
        rule: str,
        number_format: str,
        shapes: Shapes,
        quantize: bool = True,
        backend: str = "automatic",
    ) -> None:
        dtype = torch.float32 if number_format == "fp32" else torch.bfloat16
        self.weights = [made_up(shape, dtype) for shape in shapes]
        self.gradients = [made_up(shape, dtype) for shape in shapes]
        options = {
            "format": FORMATS[number_format],
            "threads": torch.get_num_threads(),
            "quantize": int(quantize),
            "backend": BACKENDS[backend],
        }
        momentum = {"momentum": 0.9} if rule == "sgd" else {}
        self.core = Core(rule, self.weights, options, {"weight_decay": 0.01, **momentum})
        self.core.set_gradients(self.gradients)

    def step(self) -> None:
        """One step of all tensors."""
        self.core.step()

    def __del__(self) -> None:
        if hasattr(self, "core"):
            self.core.close()


class OursNorm(Ours):
    """The norm of all gradients of an optimizer of this library."""

    def step(self) -> None:
        """One norm."""
        self.core.grad_norm()


class Torch:
    """A PyTorch-style optimizer over leaf tensors with gradients."""

    def __init__(
        self, make: Callable[[list[torch.nn.Parameter]], Any], shapes: Shapes, dtype: torch.dtype
    ) -> None:
        self.parameters = [torch.nn.Parameter(made_up(shape, dtype)) for shape in shapes]
        for parameter in self.parameters:
            parameter.grad = made_up(tuple(parameter.shape), dtype)
        self.optimizer = make(self.parameters)

    def step(self) -> None:
        """One step of all tensors."""
        self.optimizer.step()


class Mixed:
    """PyTorch's usual mixed precision: casts the bf16 gradient, steps the fp32 master, casts it to bf16."""

    def __init__(self, shapes: Shapes) -> None:
        self.weights = [made_up(shape, torch.bfloat16) for shape in shapes]
        self.gradients = [made_up(shape, torch.bfloat16) for shape in shapes]
        self.masters = [torch.nn.Parameter(weight.float()) for weight in self.weights]
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.optimizer = torch.optim.AdamW(self.masters, fused=True)

    def step(self) -> None:
        """One step of all tensors."""
        with torch.no_grad():
            for master, gradient in zip(self.masters, self.gradients, strict=True):
                assert master.grad is not None
                master.grad.copy_(gradient)
            self.optimizer.step()
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)


class Bandwidth:
    """Adds to a buffer in place."""

    def __init__(self) -> None:
        self.buffer = torch.ones(1 << 26)

    def step(self) -> None:
        """Reads and writes 256 MiB."""
        self.buffer.add_(1.0)


@dataclass
class Contestant:
    """A contestant: its name, the function that makes it, and the bytes that a step moves per parameter."""

    name: str
    make: Callable[[], Any]
    bytes_moved: float
    times: list[float] = field(default_factory=list)
    peer: str = ""


def peers(shapes: Shapes, slow: bool) -> list[Contestant]:
    """The peers that can be imported. The names of the others go to stderr."""
    single, half = torch.float32, torch.bfloat16
    found = [
        Contestant(
            "torch AdamW fused fp32",
            lambda: Torch(lambda p: torch.optim.AdamW(p, fused=True), shapes, single),
            28,
        ),
        Contestant(
            "torch AdamW foreach fp32",
            lambda: Torch(lambda p: torch.optim.AdamW(p, foreach=True), shapes, single),
            28,
        ),
        Contestant("torch AdamW mixed precision", lambda: Mixed(shapes), 40),
        Contestant(
            "torch SGD fused fp32",
            lambda: Torch(lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True), shapes, single),
            20,
        ),
        Contestant(
            "torch SGD foreach fp32",
            lambda: Torch(lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, foreach=True), shapes, single),
            20,
        ),
    ]
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        found.append(
            Contestant(
                "DeepSpeedCPUAdam fp32", lambda: Torch(lambda p: DeepSpeedCPUAdam(p), shapes, single), 28
            )
        )
    except Exception as error:  # a peer may build itself at import, which may fail
        print(f"compare: no DeepSpeed: {error}", file=sys.stderr)
    if slow:
        try:
            import bitsandbytes

            found.append(
                Contestant(
                    "bitsandbytes AdamW8bit",
                    lambda: Torch(lambda p: bitsandbytes.optim.AdamW8bit(p, min_8bit_size=0), shapes, half),
                    10,
                )
            )
        except Exception as error:
            print(f"compare: no bitsandbytes: {error}", file=sys.stderr)
        try:
            from torchao.optim import AdamW8bit

            found.append(
                Contestant("torchao AdamW8bit", lambda: Torch(lambda p: AdamW8bit(p), shapes, half), 10)
            )
        except Exception as error:
            print(f"compare: no torchao: {error}", file=sys.stderr)
    return found


# Bytes that a step moves per parameter: weight, correction and state are read and written, the gradient is
# read.
MOVED = {
    ("adamw", "native"): 12.25,
    ("sgd", "native"): 10.125,
    ("lion", "native"): 10.125,
    ("adamw", "fp32"): 28.0,
    ("sgd", "fp32"): 20.0,
    ("lion", "fp32"): 20.0,
}


def one_of_ours(rule: str, number_format: str, shapes: Shapes, backend: str = "automatic") -> Contestant:
    """A rule in a format."""
    name = f"ours {rule} {number_format}" + ("" if backend == "automatic" else f" {backend}")
    moved = MOVED[rule, "fp32" if number_format == "fp32" else "native"]
    return Contestant(name, partial(Ours, rule, number_format, shapes, backend=backend), moved)


def ours(shapes: Shapes, rules: list[str]) -> list[Contestant]:
    """Rules in every format."""
    return [one_of_ours(rule, number_format, shapes) for rule in rules for number_format in FORMATS]


def every_backend(shapes: Shapes) -> list[Contestant]:
    """Every rule in every format with the instructions of every backend of this machine."""
    machine = platform.machine()
    arm, x86 = machine in ("aarch64", "arm64"), machine in ("x86_64", "AMD64")
    here = [
        name
        for name in BACKENDS
        if name in ("scalar", "portable") or (name == "neon" and arm) or (name.startswith("avx") and x86)
    ]
    return [
        one_of_ours(rule, number_format, shapes, backend)
        for rule in RULES
        for number_format in FORMATS
        for backend in here
    ]


def gpt2() -> Shapes:
    """The parameters of GPT-2 124 M, tied."""
    shapes: list[tuple[int, ...]] = [(50257, 768), (1024, 768)]
    for _ in range(12):
        shapes += [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,)]
        shapes += [(768,), (768,), (768, 3072), (3072,), (3072, 768), (768,)]
    return [*shapes, (768,), (768,)]


def resnet50() -> Shapes:
    """The parameters of ResNet-50."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            for shape in ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]
