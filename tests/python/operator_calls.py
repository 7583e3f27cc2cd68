"""A step's tensors and tables for the operators of flashoptim_cpp._operators. No test lives here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from flashoptim_cpp import _operators as operators

Tensor = torch.Tensor

RULES = {"sgd": 0, "sgdw": 1, "adam": 2, "adamw": 3, "lion": 4}
FORMATS = {"native": 0, "paper": 1, "fp32": 2}
BACKENDS = {"scalar": 1, "portable": 2, "avx2": 3, "avx512": 4, "avx512-vbmi": 5, "neon": 6}
# In the core's order.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int16)
SCALES = {"native": torch.bfloat16, "paper": torch.float16, "fp32": torch.bfloat16}


def layout_of(tensor: Tensor) -> Tensor:
    """The layout of a whole tensor."""
    shape, strides = tensor.shape, tensor.stride()
    return operators.layout(shape, strides, shape, strides, [0] * tensor.dim())


def numbers(momentum: float = 0.0) -> Tensor:
    """A row of hyperparameters for a plan, which looks at the momentum alone."""
    columns = json.loads(operators.rule_table())["columns"]
    return torch.tensor([[momentum if name == "momentum" else 0.0 for name in columns]], dtype=torch.float64)


class Call:
    """The arguments of step_ for weights that no step has moved yet; the weights are copied."""

    LISTS = ("corrections", "first", "first_scales", "second", "second_scales", "steps")
    corrections: list[Tensor]
    first: list[Tensor]
    first_scales: list[Tensor]
    second: list[Tensor]
    second_scales: list[Tensor]
    steps: list[Tensor]

    def __init__(
        self,
        weights: Iterable[Tensor],
        rule: str = "adamw",
        format: str = "native",
        bits: int = 24,
        momentum: float = 0.9,
        **hyperparameters: float,
    ) -> None:
        self.weights = [weight.clone() for weight in weights]
        for name in self.LISTS:
            setattr(self, name, [])
        rows = []
        for weight in self.weights:
            layout = layout_of(weight)
            dtype = DTYPES.index(weight.dtype)
            plan = operators.plan(
                layout, RULES[rule], numbers(momentum), FORMATS[format], bits, True, 1024, 4096, dtype
            )
            self.add_state(weight, plan.tolist(), SCALES[format])
            rows.append(torch.cat([layout, plan, torch.tensor([0, 0, 1, RULES[rule]])]))
        self.table = torch.stack(rows) if rows else torch.empty(0, 12 + operators.PLAN_ROW, dtype=torch.int64)
        values = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
        values |= {"momentum": momentum, "dampening": 0.0, "initial_lr": 1e-2, "nesterov": 0, "maximize": 0}
        values |= {"fully_decoupled": 0} | hyperparameters
        self.hyperparameters = torch.tensor([list(values.values())], dtype=torch.float64)
        self.bad = torch.zeros(len(self.weights), dtype=torch.int64)

    def add_state(self, weight: Tensor, plan: Sequence[int], scales: torch.dtype) -> None:
        def elements(dtype: int, count: int) -> Tensor:
            kind = DTYPES[dtype]
            return torch.zeros_like(weight, dtype=kind) if count else torch.empty(0, dtype=kind)

        made = (
            elements(*plan[4:6]),
            elements(*plan[6:8]),
            torch.zeros(plan[9], dtype=scales),
            elements(*plan[10:12]),
            torch.zeros(plan[13], dtype=scales),
            torch.zeros((), dtype=torch.int64),
        )
        for name, tensor in zip(self.LISTS, made, strict=True):
            getattr(self, name).append(tensor)

    def arguments(self, gradients: Sequence[Tensor]) -> tuple[Any, ...]:
        """The positional arguments of step_ that have no default."""
        lists = [getattr(self, name) for name in self.LISTS[:-1]]
        places = [place for place, tensors in enumerate(lists) if tensors]
        state = [tensor for tensors in lists for tensor in tensors]
        rest = (self.steps, self.bad, self.table, self.hyperparameters)
        return (self.weights, list(gradients), state, places, *rest)

    def step(self, gradients: Sequence[Tensor], **options: Any) -> Call:
        operators.step_(*self.arguments(gradients), **options)
        return self

    def tensors(self) -> list[Tensor]:
        """Everything that a step may change."""
        return self.weights + [t for name in self.LISTS for t in getattr(self, name)] + [self.bad]

    def copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.tensors()]
