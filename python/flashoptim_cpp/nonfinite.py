"""Gradients that are NaN, infinite or at least 2^48: the policies of a whole step, the counts, the warning."""

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import _operators as ops
from .capture import is_capturing_any, refuse
from .counters import Board, Counter
from .errors import NonFiniteError
from .options import POLICIES
from .parameter import Parameter
from .sharding import all_reduce_max, is_sharded, local_of
from .table import Table

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer

# Bad steps in a row after which there is a warning.
_STREAK = 3


class BadElements:
    """Counts of bad gradient elements, kept by parameter.

    Those of a GPU are added up there. After a step a copy of them is sent, and what has arrived is looked at in a later step:
    nobody waits for it, and the warning comes that much later.
    """

    def __init__(self) -> None:
        self._streaks: dict[Parameter, int] = {}
        self._boards: list[Board] = []
        # In a step of ZeroRedundancyOptimizer: its process group, whose ranks step other parameters, and a device of theirs.
        self.ranks: tuple[Any, torch.device] | None = None

    def counter(self, parameters: list[Parameter], device: torch.device) -> Counter:
        """Counters for a table of these parameters, at 0."""
        if not ops.is_gpu(device):
            return Counter(parameters, torch.zeros(len(parameters), dtype=torch.int64, device=device))
        for board in self._boards:
            if board.device == device and (found := board.counter(parameters)) is not None:
                return found
        self._boards.append(Board(device, len(parameters)))
        return cast(Counter, self._boards[-1].counter(parameters))

    def forget(self, parameter: Parameter | None) -> None:
        """Lets go of a parameter that the optimizer has no more."""
        if parameter is not None:
            self._streaks.pop(parameter, None)

    def take(self, table: Table) -> None:
        """Takes over what a step has counted."""
        if table.is_on_gpu:
            self._take_what_arrived(table.counter)
        elif table.bad.any():
            self.add(table.counter, table.bad.tolist())
            table.bad.zero_()
        else:
            self._end_streaks(table.counter)

    def _take_what_arrived(self, counter: Counter) -> None:
        for board in self._boards:
            self._receive(board)  # what was sent in an earlier step
        self._boards = [board for board in self._boards if board.counters]
        for board in self._boards:
            if counter in board:
                board.take_turn(counter)
                self._receive(board)

    def _receive(self, board: Board, waits: bool = False) -> None:
        """Compares counts with those seen before; several steps that came between are judged as one."""
        for counter, new, took_turn in board.received(waits):
            if new is None:
                if took_turn:
                    self._end_streaks(counter)
            elif took_turn:
                self.add(counter, new)
            else:  # a graph was replayed
                for parameter, count in zip(counter.parameters, new, strict=True):
                    parameter.bad_elements += count

    def collect(self) -> None:
        """Takes over all that was counted on GPUs; waits for them."""
        for board in self._boards:
            self._receive(board, waits=True)
            board.send()
            self._receive(board, waits=True)

    def leave(self, table: Table) -> None:
        """Takes over, once it has arrived, what a table has counted that is used no more."""
        table.counter.is_left = True
        for board in self._boards:
            if table.counter in board:
                board.send()

    def _end_streaks(self, counter: Counter) -> None:
        if self._streaks:
            for parameter in counter.parameters:
                self._streaks.pop(parameter, None)

    def add(self, counter: Counter, counts: list[int]) -> None:
        """Adds the counts of one step, and warns where there was one too many in a row."""
        tired = []
        for parameter, count in zip(counter.parameters, counts, strict=True):
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

    def _add_to_table(self, table: Table, counts: torch.Tensor) -> None:
        """Adds the counts of a step that was refused."""
        if table.is_on_gpu:
            table.bad.add_(counts)
            table.counter.turns += 1
            self.take(table)
        else:
            self.add(table.counter, counts.tolist())

    def judge(
        self,
        optimizer: "FlashOptimizer",
        judged: list[torch.Tensor],
        tables: list[Table],
        gradients: list[list[torch.Tensor]],
        clip: torch.Tensor | None,
    ) -> tuple[bool, torch.Tensor | None]:
        """Whether the policies forbid the step, here or on another rank that holds parts or others of the parameters.

        Args:
            optimizer: of the parameters.
            judged: the parameters that step together, if at all, whether they have a gradient here or not.
            tables: of those that have one.
            gradients: for each table.
            clip: the coefficient of the gradients.

        Returns:
            Whether they do, and what `found_inf` is to be in the step: where all is on GPUs and no policy is "error" the
            verdict is there, and nobody waits for it; the ranks of ZeroRedundancyOptimizer do.

        Raises:
            NonFiniteError: where the policy is "error".
        """
        ranks, self.ranks = self.ranks, None
        grad_scale, found_inf = optimizer._amp()
        policies = {group["nonfinite"] for group in optimizer.param_groups}
        if policies == {POLICIES[0]}:
            return False, found_inf
        is_on_gpu = all(ops.is_gpu(local_of(tensor).device) for tensor in judged)
        waits = ranks is not None or "error" in policies or not is_on_gpu
        if waits and is_capturing_any(table.device for table in tables):
            policy = "error" if "error" in policies else "skip_step"
            other = "skip_step" if ranks is None and is_on_gpu else "skip_element"
            refuse(
                f'nonfinite="{policy}" would wait for the counts of bad gradients', f'use nonfinite="{other}"'
            )
        counted = [
            table.count_bad(own, clip, grad_scale) for table, own in zip(tables, gradients, strict=True)
        ]
        if not waits:
            return False, self._verdict_on_gpu(judged, tables, counted, found_inf)
        if found_inf is not None and float(found_inf) != 0.0:
            counted = [torch.zeros_like(counts) for counts in counted]  # GradScaler skips the step itself
        levels = _levels(judged, tables, counted)
        verdict = _largest(int(levels.max()) if judged else 0, ranks)
        if verdict == 0:
            return False, found_inf
        for table, counts in zip(tables, counted, strict=True):
            self._add_to_table(table, counts)
        if POLICIES[verdict] == "error":
            where = [optimizer._name_of(judged[n]) for n in levels.nonzero().flatten().tolist()]
            raise NonFiniteError(
                "gradients are NaN, infinite or at least 2^48: "
                f"{_listed(where) or 'of parameters of another rank'}; nothing was stepped: lower the "
                'learning rate or the loss scale, or use nonfinite="skip_element"'
            )
        return True, found_inf

    def _verdict_on_gpu(
        self,
        judged: list[torch.Tensor],
        tables: list[Table],
        counted: list[torch.Tensor],
        found_inf: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """1 where a step is to be left out, by its policies or by `found_inf`, else 0. What it leaves out is counted here."""
        if not judged:
            return found_inf
        verdict = torch.zeros((), dtype=torch.float32, device=local_of(judged[0]).device)
        for table, counts in zip(tables, counted, strict=True):
            stops = (counts * table.stops()).any()
            verdict = verdict.maximum(stops.to(verdict.device, torch.float32, non_blocking=True))
        shared = [tensor for tensor in judged if is_sharded(tensor)]
        if shared:
            all_reduce_max(verdict, shared)
        found = verdict
        if found_inf is not None:  # GradScaler skips the step itself, and its bad elements are not ours
            given = (found_inf.reshape(()) != 0).to(verdict.device, torch.float32, non_blocking=True)
            found, verdict = verdict.maximum(given), verdict * (1.0 - given)
        for table, counts in zip(tables, counted, strict=True):
            left_out = verdict.to(table.device, torch.int64, non_blocking=True)
            table.bad.add_(counts * left_out)
        return found


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
        for n in counts.cpu().nonzero().flatten().tolist():
            policy = table.groups[table.group_of[n]]["nonfinite"]
            levels[place[table.tensors[n]]] = POLICIES.index(policy)
    shared = [tensor for tensor in judged if is_sharded(tensor)]
    return all_reduce_max(levels.to(shared[0].device), shared).cpu() if shared else levels


def _listed(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
