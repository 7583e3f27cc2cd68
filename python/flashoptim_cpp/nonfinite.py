"""Gradients that are NaN, infinite or at least 2^48: the policies of a whole step, the counts, the warning."""

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

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
        # In a step of ZeroRedundancyOptimizer: its process group, whose ranks step other parameters, and a device of theirs.
        self.ranks: tuple[Any, torch.device] | None = None

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
        """Whether the policies forbid the step, here or on another rank that holds parts or others of the parameters.

        Raises:
            NonFiniteError: where the policy is "error".
        """
        ranks, self.ranks = self.ranks, None
        if all(group["nonfinite"] == POLICIES[0] for group in optimizer.param_groups):
            return False
        grad_scale, found_inf = optimizer._amp()
        counted = [
            table.count_bad(own, factor, grad_scale) for table, own in zip(tables, gradients, strict=True)
        ]
        if found_inf is not None and float(found_inf) != 0.0:
            counted = [torch.zeros_like(counts) for counts in counted]  # GradScaler skips the step itself
        # While gradients are released each parameter has a step, and a verdict, of its own.
        judged = tables[0].tensors if optimizer._gradient_release else list(optimizer._find_places())
        levels = _levels(judged, tables, counted)
        verdict = _largest(int(levels.max()) if judged else 0, ranks)
        if verdict == 0:
            return False
        for table, counts in zip(tables, counted, strict=True):
            self.add(table, counts)
        if POLICIES[verdict] == "error":
            where = [optimizer._name_of(judged[n]) for n in levels.nonzero().flatten().tolist()]
            raise NonFiniteError(
                "gradients are NaN, infinite or at least 2^48: "
                f"{_listed(where) or 'of parameters of another rank'}; nothing was stepped: lower the "
                'learning rate or the loss scale, or use nonfinite="skip_element"'
            )
        return True


def _largest(verdict: int, ranks: tuple[Any, torch.device] | None) -> int:
    if ranks is None:
        return verdict
    group, device = ranks
    everyones = torch.tensor(verdict, device=device)
    torch.distributed.all_reduce(everyones, torch.distributed.ReduceOp.MAX, group=group)
    return int(everyones)


@cache
def follow_zero_redundancy() -> None:
    """From now on a ZeroRedundancyOptimizer tells the optimizer inside, before each step, who the other ranks are.

    It gives each rank an optimizer of its own for a part of the parameters, which knows nothing of the rest.
    """
    register_optimizer_step_pre_hook(_tell_ranks)


def _tell_ranks(outer: Any, args: Any, kwargs: Any) -> None:  # noqa: ANN401
    inside = getattr(getattr(outer, "optim", None), "_bad", None)
    if isinstance(inside, BadElements) and hasattr(outer, "process_group"):
        inside.ranks = outer.process_group, outer.join_device


def _levels(judged: list[torch.Tensor], tables: list[Table], counted: list[torch.Tensor]) -> torch.Tensor:
    """For each parameter the number of its policy if it has bad elements, on any rank that holds a part of it."""
    place = {tensor: n for n, tensor in enumerate(judged)}
    levels = torch.zeros(len(judged), dtype=torch.int64, device="cpu")
    for table, counts in zip(tables, counted, strict=True):
        for n in counts.nonzero().flatten().tolist():
            policy = table.groups[table.group_of[n]]["nonfinite"]
            levels[place[table.tensors[n]]] = POLICIES.index(policy)
    shared = [tensor for tensor in judged if is_sharded(tensor)]
    return all_reduce_max(levels.to(shared[0].device), shared).cpu() if shared else levels


def _listed(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
