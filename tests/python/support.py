"""What several of these tests need: the table of rules, parameters, gradients,
comparisons. No test lives here."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import torch

Tensor = torch.Tensor

# Two large tensors, whose moments are quantised, and two small ones, whose moments stay fp32 in `native`.
SHAPES = ((64, 96), (130, 40), (7, 5), (40,))


def environment() -> dict[str, str]:
    """For a child process, which finds the package and these tests' modules as they were found here."""
    here = str(Path(__file__).resolve().parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}


def child(*arguments: str, **variables: str) -> str:
    """What a Python of its own prints that ends well, with these arguments and environment
    variables beside `environment`'s."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).resolve().parent,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Rule:
    """An optimizer of ours and, where there is one, torch's with the same arithmetic."""

    name: str
    make: Callable[..., Any]
    moments: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    torch_make: Callable[..., torch.optim.Optimizer] | None = None
    has_paper: bool = True  # whether the format paper has it

    def __call__(self, parameters: Any, **more: Any) -> Any:
        if more.get("format") == "paper" and not self.has_paper:
            pytest.skip("the paper has no such rule")
        return self.make(parameters, **{**self.options, **more})

    def reference(self, parameters: Any, **more: Any) -> torch.optim.Optimizer:
        assert self.torch_make is not None
        return self.torch_make(parameters, **{**self.options, **more})


SGD = Rule("sgd", flash.FlashSGD, ("momentum_buffer",), {"lr": 1e-2, "momentum": 0.9}, torch.optim.SGD)
SGD_PLAIN = Rule("sgd-plain", flash.FlashSGD, (), {"lr": 1e-2}, torch.optim.SGD)
SGDW = Rule("sgdw", flash.FlashSGDW, ("momentum_buffer",), {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1})
ADAM = Rule(
    "adam",
    flash.FlashAdam,
    ("exp_avg", "exp_avg_sq"),
    {"lr": 1e-3, "weight_decay": 1e-2},
    torch.optim.Adam,
)
ADAMW = Rule(
    "adamw",
    flash.FlashAdamW,
    ("exp_avg", "exp_avg_sq"),
    {"lr": 1e-3, "weight_decay": 0.1},
    torch.optim.AdamW,
)
LION = Rule("lion", flash.FlashLion, ("exp_avg",), {"lr": 1e-3, "weight_decay": 0.1})
ADEMAMIX = Rule(
    "ademamix",
    flash.FlashAdEMAMix,
    ("exp_avg_fast", "exp_avg_sq", "exp_avg_slow"),
    {"lr": 1e-3, "weight_decay": 0.1},
    has_paper=False,
)
ADAN = Rule(
    "adan",
    flash.FlashAdan,
    ("exp_avg", "exp_avg_sq", "exp_avg_diff", "pre_grad"),
    {"lr": 1e-3, "weight_decay": 0.1},
    has_paper=False,
)
RULES = (SGD, SGD_PLAIN, SGDW, ADAM, ADAMW, LION, ADEMAMIX, ADAN)
# Moments that are stored as they are, without scales.
PLAIN_MOMENTS = ("exp_avg_slow", "pre_grad")
WITH_MOMENTS = (SGD, SGDW, ADAM, ADAMW, LION, ADEMAMIX, ADAN)


def ids(rules: Iterable[Rule]) -> list[str]:
    return [rule.name for rule in rules]


def parameters(
    dtype: torch.dtype = torch.bfloat16, shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0
) -> list[torch.nn.Parameter]:
    """Parameters with the same values for the same seed."""
    made = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=made).to(dtype)) for shape in shapes]


def clones(given: Iterable[Tensor], dtype: torch.dtype | None = None) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in given]


def gradients(given: Iterable[Tensor], step: int, scale: float = 1e-2) -> list[Tensor]:
    """Gradients that depend on the step and the position in the list only, whatever the
    parameters' dtype and device."""
    made = torch.Generator().manual_seed(1000 + step)
    return [(torch.randn(p.shape, generator=made) * scale).to(p.device, p.dtype) for p in given]


def run(
    optimizer: Any, given: Sequence[Tensor], steps: int, first: int = 0, scale: float = 1e-2
) -> list[Tensor]:
    """Steps with `gradients`; returns the parameters for convenience."""
    for step in range(first, first + steps):
        for p, g in zip(given, gradients(given, step, scale), strict=True):
            p.grad = g
        optimizer.step()
    return list(given)


def local(value: Tensor) -> Tensor:
    """The part of a DTensor that lies here; any other tensor itself."""
    return value.to_local() if hasattr(value, "to_local") else value


def has_nan(value: Any) -> bool:
    """Whether a tensor or number holds a NaN."""
    if isinstance(value, Tensor):
        kept = local(value).detach()
        return kept.is_floating_point() and bool(kept.isnan().any())
    return isinstance(value, float) and math.isnan(value)


def same_bits(a: Tensor, b: Tensor, numbers: bool = True) -> bool:
    """Whether two tensors agree in shape, dtype and every bit, and hold no NaN: two NaNs may have equal bits.

    `numbers` is False where the bits are no number, whatever the dtype says.
    """
    a, b = local(a).detach(), local(b).detach()
    if a.shape != b.shape or a.dtype != b.dtype or (numbers and has_nan(a)):
        return False
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


def largest(values: Iterable[float]) -> float:
    """The largest; NaN if one of them is NaN, which max() loses unless it comes first."""
    given = list(values)
    return math.nan if any(math.isnan(value) for value in given) else max(given)


def has_moved(before: Tensor, after: Tensor) -> bool:
    """Whether all values are numbers before and after, and differ somewhere: a
    NaN differs from everything."""
    before, after = local(before).detach(), local(after).detach()
    return not has_nan(before) and not has_nan(after) and not torch.equal(before, after)


def snapshot(optimizer: Any) -> dict[str, Any]:
    """Copies of everything that a step may change: weights, and what the state dict holds."""
    taken: dict[str, Any] = {}
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            taken[f"{g}.{i}"] = local(p).detach().clone()
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            kept = local(value).detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            if key == "error_bits" and kept.is_floating_point():
                kept = kept.view(
                    torch.int16
                )  # the format paper saves 16 bits under the weight's dtype: they are no numbers
            taken[f"{index}.{key}"] = kept
    return taken


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names of what differs in any bit between two snapshots, or holds a NaN."""
    found = sorted(a.keys() ^ b.keys())
    for key in a.keys() & b.keys():
        left, right = a[key], b[key]
        if isinstance(left, Tensor) != isinstance(right, Tensor):
            found.append(key)
        elif isinstance(left, Tensor):
            # `paper` has corrections in bfloat16, as its authors do, which are bits of integers.
            found += [] if same_bits(left, right, numbers=not key.endswith("error_bits")) else [key]
        elif left != right:
            found.append(key)
    return found


def assert_same(a: Any, b: Any) -> None:
    """Two optimizers (or snapshots of them) hold the same weights and states, bit
    for bit, and numbers in them."""
    a, b = (value if isinstance(value, dict) else snapshot(value) for value in (a, b))
    assert not (found := differences(a, b)), found


def masters(optimizer: Any, given: Iterable[Tensor]) -> list[Tensor]:
    """The full-precision weights, as a state dict for inference would hold them."""
    holder = torch.nn.Module()
    for index, p in enumerate(given):
        holder.register_parameter(f"p{index}", p if isinstance(p, torch.nn.Parameter) else None)
    taken: dict[str, Tensor] = optimizer.get_fp32_model_state_dict(holder)
    return [taken[f"p{index}"] for index in range(len(taken))]


def model(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.nn.Sequential:
    """A network of two linear layers: one weight large enough to be quantised in `native`."""
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 4))
    return layers.to(dtype)


def batch(step: int, dtype: torch.dtype = torch.bfloat16, size: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs and classes that the inputs determine."""
    made = torch.Generator().manual_seed(step)
    inputs = torch.randn(size, 64, generator=made)
    return inputs.to(dtype), (inputs[:, :4] * 3).argmax(dim=1)


def loss_of(network: torch.nn.Module, step: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    inputs, classes = batch(step, dtype)
    return torch.nn.functional.cross_entropy(network(inputs).float(), classes)


def tied_network() -> torch.nn.Sequential:
    """An embedding whose weight is the head's too, in bfloat16."""
    table = torch.nn.Embedding(80, 64)
    head = torch.nn.Linear(64, 80, bias=False)
    head.weight = table.weight
    return torch.nn.Sequential(table, head).bfloat16()


def freed(tensor: torch.Tensor) -> torch.Tensor:
    """As FSDP1 leaves it: it has its shape and no memory. To read it is a crash."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


class Codes(torch.Tensor):
    """Codes that look like a tensor of floats of dtype `looks`."""

    looks = torch.float32
    codes: torch.Tensor

    @staticmethod
    def __new__(cls: Any, codes: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=cls.looks, device=codes.device)
        made.codes = codes
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None
