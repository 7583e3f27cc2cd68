"""A step's tensors and tables for the operators of flashoptim_cpp._operators. No test lives here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from flashoptim_cpp import _operators as operators

Tensor = torch.Tensor

RULES = {row["name"].lower(): n for n, row in enumerate(json.loads(operators.rule_table())["rules"])}
COLUMNS = json.loads(operators.rule_table())["columns"]
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
    return torch.tensor([[momentum if name == "momentum" else 0.0 for name in COLUMNS]], dtype=torch.float64)


class Call:
    """The arguments of step_ for weights that no step has moved yet; the weights are copied."""

    # The buffers of the state by place, and the step counts.
    LISTS = (
        *("corrections", "first", "first_scales", "second", "second_scales"),
        *("third", "third_scales", "fourth", "fourth_scales", "steps"),
    )
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
        values = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.99, "beta3": 0.999, "epsilon": 1e-8}
        values |= {"weight_decay": 0.1, "momentum": momentum, "initial_learning_rate": 1e-2, "alpha": 2.0}
        shorter = {"lr": "learning_rate", "eps": "epsilon", "initial_lr": "initial_learning_rate"}
        values |= {shorter.get(name, name): value for name, value in hyperparameters.items()}
        row = [values.pop(name, 0.0) for name in COLUMNS]
        assert not values, f"no hyperparameters: {values}"
        self.hyperparameters = torch.tensor([row], dtype=torch.float64)
        self.bad = torch.zeros(len(self.weights), dtype=torch.int64)

    def add_state(self, weight: Tensor, plan: Sequence[int], scales: torch.dtype) -> None:
        def elements(dtype: int, count: int) -> Tensor:
            kind = DTYPES[dtype]
            return torch.zeros_like(weight, dtype=kind) if count else torch.empty(0, dtype=kind)

        buffers = list(zip(plan[4::2], plan[5::2], strict=True))
        for place, (name, (dtype, count)) in enumerate(zip(self.LISTS[:-1], buffers, strict=True)):
            is_scales = place > 0 and place % 2 == 0
            made = torch.zeros(count, dtype=scales) if is_scales else elements(dtype, count)
            getattr(self, name).append(made)
        self.steps.append(torch.zeros((), dtype=torch.int64))

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
