"""Gradients that are NaN, infinite or at least 2^48: the policies of a whole step, the counts, the warning."""

import warnings
from typing import TYPE_CHECKING

import torch

from .errors import NonFiniteError
from .options import POLICIES
from .parameter import Parameter
from .sharding import all_reduce_max, is_sharded
from .table import Table

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer

# Bad steps in a row after which there is a warning.
_STREAK = 3


class BadElements:
    """Counts of bad gradient elements, kept by parameter."""

    def __init__(self) -> None:
        self._streaks: dict[Parameter, int] = {}

    def take(self, table: Table) -> None:
        """Takes over what a step has counted."""
        if table.bad.any():
            self.add(table, table.bad)
            table.bad.zero_()
        elif self._streaks:
            for parameter in table.parameters:
                self._streaks.pop(parameter, None)

    def add(self, table: Table, counts: torch.Tensor) -> None:
        """Adds the counts of one step, and warns where there was one too many in a row."""
        tired = []
        for parameter, count in zip(table.parameters, counts.tolist(), strict=True):
            parameter.bad_elements += count
            if count == 0:
                self._streaks.pop(parameter, None)
                continue
            self._streaks[parameter] = self._streaks.get(parameter, 0) + 1
            if self._streaks[parameter] == _STREAK:
                tired.append(parameter.name)
        if tired:
            warnings.warn(
                f"gradients were NaN, infinite or at least 2^48 in {_STREAK} steps in a row and skipped: "
                f"{_listed(tired)}; lower the learning rate or the loss scale",
                stacklevel=2,
            )

    def refuse_step(
        self,
        optimizer: "FlashOptimizer",
        tables: list[Table],
        gradients: list[list[torch.Tensor]],
        factor: float,
    ) -> bool:
        """Whether the policies forbid the step, here or on another rank that holds parts of the parameters.

        Raises:
            NonFiniteError: where the policy is "error".
        """
        if all(group["nonfinite"] == POLICIES[0] for group in optimizer.param_groups):
            return False
        grad_scale, found_inf = optimizer._amp()
        verdict, bad, counted = 0, [], []
        for table, own in zip(tables, gradients, strict=True):
            counts = table.count_bad(own, factor, grad_scale)
            counted.append(counts)
            for n in counts.nonzero().flatten().tolist():
                verdict = max(verdict, POLICIES.index(table.groups[table.group_of[n]]["nonfinite"]))
                bad.append(f"{table.parameters[n].name} ({int(counts[n])} elements)")
        if found_inf is not None and float(found_inf) != 0.0:
            verdict = 0  # GradScaler has found it, and skips the step itself
        # While gradients are released each parameter has a step, and a verdict, of its own.
        judged = tables[0].tensors if optimizer._gradient_release else optimizer._keys()
        shared = [tensor for tensor in judged if is_sharded(tensor)]
        if shared:
            device = shared[0].device
            verdict = int(all_reduce_max(torch.tensor(verdict, device=device), shared))
        if verdict == 0:
            return False
        for table, counts in zip(tables, counted, strict=True):
            self.add(table, counts)
        if POLICIES[verdict] == "error":
            where = _listed(bad) if bad else "a part of a parameter on another rank"
            raise NonFiniteError(
                f"gradients are NaN, infinite or at least 2^48: {where}; nothing was stepped: lower the learning rate "
                'or the loss scale, or use nonfinite="skip_element"'
            )
        return True


def _listed(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
