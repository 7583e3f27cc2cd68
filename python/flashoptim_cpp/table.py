"""The data of a step of a list of parameters, and the checks and policies that may forbid the step.

A table holds the arguments of one call of the step operator. It is made once for a list of parameters and
kept while nothing about them changes. Before a step the gradients, the learning rate and the policies for
non-finite gradients are checked.
"""

import math
import re
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch

from . import _operators as ops
from ._rules import WEIGHT_DTYPES, Group, Rule, number, row_of
from .memory import has_several_parts
from .moment import Moment
from .options import POLICIES, check_lr_size, storage_key
from .parameter import CORRECTION, Counter, Parameter, State
from .sharding import all_reduce_max, is_sharded, local_of

# Gradients

_SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
_PLAIN = torch.Tensor.__torch_dispatch__


def refusal_of(gradient: torch.Tensor, parameter: Parameter) -> Exception | None:
    """The error for a gradient (or this rank's part of it) that cannot be stepped; None if it can."""
    name, local = f"the gradient of {parameter.name}", parameter.local
    if not isinstance(gradient, torch.Tensor):
        return ValueError(f"{name} is a {type(gradient).__name__}: give a tensor")
    if gradient.is_nested:
        return ValueError(f"{name} is a nested tensor: give a dense one")
    if gradient.layout in _SPARSE:
        return RuntimeError(f"{name} is sparse: make it dense (for an embedding: sparse=False)")
    if gradient.layout != torch.strided:
        return ValueError(f"{name} has the layout {gradient.layout}: make it strided")
    if gradient.device != local.device:
        return ValueError(f"{name} is on {gradient.device}: it must be on {local.device}")
    if gradient.dtype not in WEIGHT_DTYPES:
        return ValueError(f"{name} is {gradient.dtype}: give float32, bfloat16 or float16")
    if gradient.shape != local.shape:
        return ValueError(f"{name} has the shape {tuple(gradient.shape)}: it must be {tuple(local.shape)}")
    if ops.is_fake(gradient) != ops.is_fake(local):
        return ValueError(f"{name} is fake, and its weight is not, or the other way round: give both memory")
    if hasattr(type(gradient), "__tensor_flatten__") or type(gradient).__torch_dispatch__ is not _PLAIN:
        return ValueError(f"{name} is a {type(gradient).__name__}: give a plain tensor")
    return None


def refuse_several_parts(gradients: list[torch.Tensor], parameters: list[Parameter]) -> None:
    """Refuses gradients made of several tensors, for which the operator would silently make several steps."""
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if isinstance(gradient, torch.Tensor) and has_several_parts(gradient):
            kind = type(gradient).__name__
            raise ValueError(f"the gradient of {parameter.name} is a {kind}: give a plain tensor")


# The table

_NOTHING = torch.empty(0, dtype=torch.int8, device="cpu")


class Factors(NamedTuple):
    """The factors of the gradients in a step, and GradScaler's found_inf."""

    clip: torch.Tensor | None = None
    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None


def _contents(states: list[State]) -> list[int]:
    """The identities of the entries of the states."""
    return list(map(id, chain.from_iterable(map(dict.values, states))))


class Table:
    """The buffers and rows of a list of parameters with gradients, all on one device."""

    def __init__(
        self,
        rule: Rule,
        parameters: list[Parameter],
        states: list[State],
        groups: list[Group],
        counter: Counter,
        plan: ops.StepPlan | None,
    ) -> None:
        self.rule = rule
        self.parameters = parameters
        self.tensors = [parameter.tensor for parameter in parameters]
        self.weights = [parameter.local for parameter in parameters]
        self.is_sharded = any(parameter.is_sharded for parameter in parameters)
        self.states = states
        self.steps = [state["step"] for state in states]
        self.device = parameters[0].local.device
        self.is_on_gpu = ops.is_gpu(self.device)
        self._plan = plan
        self.counter = counter
        self._given_groups = groups
        self.groups: list[Group] = []
        self.group_of: list[int] = []
        for group in groups:
            if not self.groups or self.groups[-1] is not group:
                self.groups.append(group)
            self.group_of.append(len(self.groups) - 1)
        self._keys = [storage_key(rule, group) for group in self.groups]
        self._pointers = [weight.data_ptr() for weight in self.weights]
        self._dtypes = [weight.dtype for weight in self.weights]
        self._contents = _contents(states)
        # Kept alive, so that no id is reused for another object.
        self._held = [tuple(state.values()) for state in states]
        self._gather_buffers()
        self.rows = torch.tensor(self._rows(), dtype=torch.int64, device="cpu")
        self._numbers: list[tuple[float, ...]] = []
        self._hyperparameters = self._checked = _NOTHING
        self._rates: torch.Tensor | None = None
        self._policies: list[bool] = []
        self._stops = _NOTHING
        if self.is_on_gpu:
            self.stops()

    def _gather_buffers(self) -> None:
        def listed(buffers: list[torch.Tensor]) -> list[torch.Tensor]:
            return buffers if any(buffer is not _NOTHING for buffer in buffers) else []

        corrections = [
            state[CORRECTION] if parameter.plan and parameter.plan.correction_count else _NOTHING
            for parameter, state in zip(self.parameters, self.states, strict=True)
        ]
        self.corrections = listed(corrections)
        by_place = [self.corrections]
        for which in range(len(self.rule.moments)):
            moments = [self._moment(n, which) for n in range(len(self.states))]
            scales = [m.scales if m and m.is_quantized() else _NOTHING for m in moments]
            by_place += [listed([m.codes if m else _NOTHING for m in moments]), listed(scales)]
        # The buffers of all weights, place by place.
        self.places = [place for place, buffers in enumerate(by_place) if buffers]
        self.state = [buffer for buffers in by_place for buffer in buffers]

    def _moment(self, n: int, which: int) -> Moment | None:
        plan = self.parameters[n].plan
        assert plan is not None
        if plan.moments[which].elements == 0:
            return None
        moment = self.states[n][self.rule.moments[which].name]
        assert isinstance(moment, Moment)
        return moment

    def _rows(self) -> list[list[int]]:
        rows = []
        for n, parameter in enumerate(self.parameters):
            group = self.groups[self.group_of[n]]
            filled = self.rule.filled_first
            moment = None if filled is None else self._moment(n, filled)
            assert parameter.plan is not None
            rows.append(
                [
                    *parameter.layout.tolist(),
                    *parameter.plan.row,
                    self.group_of[n],
                    moment.unfilled_at if moment else -1,
                    int(group["check_gradients"]),
                    self.rule.number,
                ]
            )
        return rows

    def has_groups(self, groups: list[Group]) -> bool:
        """Whether the parameters are still in the same groups."""
        return len(groups) == len(self._given_groups) and all(map(is_, groups, self._given_groups))

    def has_states(self, state: dict[torch.Tensor, Any]) -> bool:
        """Whether the parameters still have the same states."""
        return all(map(is_, map(state.get, self.tensors), self.states))

    def is_current(self, state: dict[torch.Tensor, Any]) -> bool:
        """Whether the addresses of weights and states and their storage options are unchanged."""
        weights = [local_of(tensor) for tensor in self.tensors] if self.is_sharded else self.tensors
        if [weight.data_ptr() for weight in weights] != self._pointers:
            return False
        if [weight.dtype for weight in weights] != self._dtypes:
            return False
        if not self.has_states(state) or _contents(self.states) != self._contents:
            return False
        return self._keys == [storage_key(self.rule, group) for group in self.groups]

    def is_captured(self) -> bool:
        """Whether work enqueued now is captured in a CUDA graph."""
        return ops.is_capturing(self.device)

    def stops(self) -> torch.Tensor:
        """For each parameter 1 if a bad element stops the whole step, else 0."""
        policies = [self.groups[n]["nonfinite"] != POLICIES[0] for n in self.group_of]
        if policies != self._policies:
            if self.is_captured():
                ops.refuse_in_capture(
                    "nonfinite of a parameter group has changed since the last step", "take a step before"
                )
            self._policies = policies
            self._stops = torch.tensor(policies, dtype=torch.int64, device=self.device)
        return self._stops

    def lr_is_on_gpu(self, group: Group) -> bool:
        """Whether the kernels read the learning rate from a GPU tensor."""
        lr = group["lr"]
        return self.is_on_gpu and isinstance(lr, torch.Tensor) and ops.is_gpu(lr.device)

    def hyperparameters(self) -> torch.Tensor:
        """The rows of hyperparameters, one for each group."""
        numbers = [row_of(self.rule, group, self.lr_is_on_gpu(group)) for group in self.groups]
        if numbers != self._numbers:
            self._numbers = numbers
            self._hyperparameters = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        return self._hyperparameters

    def _learning_rates(self) -> torch.Tensor | None:
        """The learning rates of the groups in the table's own GPU memory, which graphs read at replay."""
        chosen = [(n, group["lr"]) for n, group in enumerate(self.groups) if self.lr_is_on_gpu(group)]
        if not chosen:
            return None
        if self._rates is None:
            self._rates = torch.zeros(len(self.groups), dtype=torch.float64, device=self.device)
        for n, lr in chosen:
            self._rates[n].copy_(lr.detach().reshape(()), non_blocking=True)
        return self._rates

    def _here(self, factor: torch.Tensor | None) -> torch.Tensor | None:
        """A factor or found_inf in fp32 on the device of this table."""
        if factor is None:
            return None
        between_gpus = self.is_on_gpu and ops.is_gpu(factor.device)
        return factor.to(self.device, torch.float32, non_blocking=between_gpus)

    @property
    def _plan_number(self) -> int:
        return self._plan.number if self._plan else 0

    def _explained(self, error: Exception, gradients: list[torch.Tensor]) -> Exception:
        """An operator's error with parameter names in place of indices."""

        def named(match: re.Match[str]) -> str:
            argument, name = match[1], self.parameters[int(match[2])].name
            if argument == "weights":
                return name
            return f"the gradient of {name}" if argument == "gradients" else f"{argument} of {name}"

        refusals = map(refusal_of, gradients, self.parameters)
        refusal = next((found for found in refusals if found is not None), None)
        if isinstance(error, ValueError) and not isinstance(refusal, RuntimeError):
            return ValueError(re.sub(r"\b([a-z_]+)\[(\d+)\]", named, str(error)))
        return refusal or error

    def check(self, gradients: list[torch.Tensor]) -> None:
        """Raises the errors that a step would raise, before any other table is stepped.

        Raises:
            ValueError: for options out of range and a gradient of another device, dtype or shape.
            RuntimeError: for a sparse gradient.
        """
        self._check_options()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            refusal = refusal_of(gradient, parameter)
            if refusal is not None:
                raise refusal

    def _check_options(self) -> None:
        for group in self.groups:
            check_lr_size(group)
        numbers = self.hyperparameters()
        if numbers is self._checked:
            return
        known = numbers.clone()
        for n, group in enumerate(self.groups):
            if self.lr_is_on_gpu(group):  # the host does not have its value
                known[n, 0] = 0.0
        ops.check_hyperparameters(known, self.rule.number)
        self._checked = numbers

    def count_bad(self, gradients: list[torch.Tensor], factors: Factors) -> torch.Tensor:
        """Bad elements of each gradient, on the device of this table."""
        try:
            return ops.count_bad(
                self.weights,
                gradients,
                self.rows,
                self.hyperparameters(),
                self._here(factors.grad_scale),
                corrections=self.corrections,
                clip_coefficient=self._here(factors.clip),
                plan=self._plan_number,
            )
        except Exception as error:
            raise self._explained(error, gradients) from None

    def grad_norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """The norm of these gradients, bad elements left out, on the device of this table."""
        try:
            return ops.grad_norm(
                self.weights, gradients, self.rows, self.hyperparameters(), plan=self._plan_number
            )
        except Exception as error:
            raise self._explained(error, gradients) from None

    def step(self, gradients: list[torch.Tensor], factors: Factors) -> None:
        """One step; bad elements are added to the counter."""
        try:
            ops.step_(
                self.weights,
                gradients,
                self.state,
                self.places,
                self.steps,
                self.counter.counts,
                self.rows,
                self.hyperparameters(),
                self._here(factors.grad_scale),
                self._here(factors.found_inf),
                1.0,  # gradient_factor
                0,  # nonfinite: skips bad elements
                self._here(factors.clip),
                self._learning_rates(),
                self._plan_number,
            )
        except Exception as error:
            raise self._explained(error, gradients) from None
        self.counter.turns += 1
        torch.autograd.graph.increment_version(self.tensors)


# Policies for gradients that are NaN, infinite or at least 2^48


class Verdict(NamedTuple):
    """The decision of the policies about a step, over all ranks that hold parameters or parts of them."""

    policy: str  # "skip_element": the step is made
    found_inf: torch.Tensor | None  # if it is not 0, the operators' step changes nothing
    counts: list[torch.Tensor]  # bad elements of each table, if the step is not made
    bad: list[int]  # indices of the parameters that forbid the step


def judge(
    judged: list[torch.Tensor],
    tables: list[Table],
    gradients: list[list[torch.Tensor]],
    factors: Factors,
    policies: set[str],
    ranks: tuple[Any, torch.device] | None,
) -> Verdict:
    """Whether the policies forbid a step of the tables.

    On GPUs the verdict stays on the device, as the `found_inf` of the step. The bad elements of a step that
    "skip_step" leaves out are added to the tables' counters there.
    leaves out is added to the tables' counters there.

    Args:
        judged: the parameters of all ranks, in the same order on each.
        tables: of those that have a gradient here.
        gradients: those of each table.
        factors: of the gradients.
        policies: of all groups.
        ranks: the process group of a ZeroRedundancyOptimizer, and a device of its ranks.
    """
    found_inf = factors.found_inf
    if policies == {POLICIES[0]}:
        return Verdict(POLICIES[0], found_inf, [], [])
    is_on_gpu = all(ops.is_gpu(local_of(tensor).device) for tensor in judged)
    waits = ranks is not None or "error" in policies or not is_on_gpu
    if waits and ops.is_capturing_any(table.device for table in tables):
        policy = "error" if "error" in policies else "skip_step"
        other = "skip_step" if ranks is None and is_on_gpu else "skip_element"
        ops.refuse_in_capture(
            f'nonfinite="{policy}" would wait for the counts of bad gradients', f'use nonfinite="{other}"'
        )
    counted = [table.count_bad(own, factors) for table, own in zip(tables, gradients, strict=True)]
    if not waits:
        return Verdict(POLICIES[0], _verdict_on_gpu(judged, tables, counted, found_inf), [], [])
    if found_inf is not None and float(found_inf) != 0.0:
        counted = [torch.zeros_like(counts) for counts in counted]  # GradScaler skips the step itself
    levels = _levels(judged, tables, counted)
    worst = _largest(int(levels.max()) if judged else 0, ranks)
    return Verdict(POLICIES[worst], found_inf, counted, levels.nonzero().flatten().tolist())


def _verdict_on_gpu(
    judged: list[torch.Tensor],
    tables: list[Table],
    counted: list[torch.Tensor],
    found_inf: torch.Tensor | None,
) -> torch.Tensor | None:
    """1 if the policies or `found_inf` forbid a step, else 0. Counts the bad elements of a forbidden step."""
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
    if found_inf is not None:  # GradScaler skips such a step itself; it is not counted
        given = (found_inf.reshape(()) != 0).to(verdict.device, torch.float32, non_blocking=True)
        found, verdict = verdict.maximum(given), verdict * (1.0 - given)
    for table, counts in zip(tables, counted, strict=True):
        left_out = verdict.to(table.device, torch.int64, non_blocking=True)
        table.counter.counts.add_(counts * left_out)
    return found


def _largest(verdict: int, ranks: tuple[Any, torch.device] | None) -> int:
    if ranks is None:
        return verdict
    group, device = ranks
    everyones = torch.tensor(verdict, device=device)
    torch.distributed.all_reduce(everyones, torch.distributed.ReduceOp.MAX, group=group)
    return int(everyones)


def _levels(judged: list[torch.Tensor], tables: list[Table], counted: list[torch.Tensor]) -> torch.Tensor:
    """For each parameter the number of its policy if it has bad elements on any rank, else 0."""
    place = {tensor: n for n, tensor in enumerate(judged)}
    levels = torch.zeros(len(judged), dtype=torch.int64, device="cpu")
    for table, counts in zip(tables, counted, strict=True):
        for n in counts.cpu().nonzero().flatten().tolist():
            policy = table.groups[table.group_of[n]]["nonfinite"]
            levels[place[table.tensors[n]]] = POLICIES.index(policy)
    shared = [tensor for tensor in judged if is_sharded(tensor)]
    return all_reduce_max(levels.to(shared[0].device), shared).cpu() if shared else levels


# The learning rate

_EXPONENT_BITS = {torch.float16: 5, torch.bfloat16: 8, torch.float32: 8}
# In units in the last place: a smaller step is rounded away.
_ROUNDED_AWAY = 0.49
# Adam's update |m|/sqrt(v) may be less than 1. The authors assume a tenth.
_ADAM_STEP = 0.1


class NumericsError(RuntimeError):
    """The learning rate is too small to change the weights in the precision in which they are stored."""


def largest_weight(parameter: Parameter) -> float:
    """The largest absolute weight; a collective if the parameter is sharded."""
    local = local_of(parameter.tensor).detach()
    largest = local.abs().max().float() if local.numel() else torch.zeros((), device=local.device)
    if parameter.is_sharded:
        largest = all_reduce_max(largest, [parameter.tensor])
    return float(largest)


def check_learning_rates(tables: list[Table]) -> None:
    """Checks the learning rate of each parameter of a step.

    Raises:
        NumericsError: where the learning rate is too small for one. Nothing was changed.
    """
    for table in tables:
        waits_for_lr = any(map(table.lr_is_on_gpu, table.groups))
        if (waits_for_lr or any(p.max_abs is None for p in table.parameters)) and table.is_captured():
            ops.refuse_in_capture(
                "check_numerics would wait for " + ("lr" if waits_for_lr else "the largest weights"),
                "use check_numerics=False, or a number as lr and a step before",
            )
        for parameter, n in zip(table.parameters, table.group_of, strict=True):
            _check_learning_rate(table.rule, parameter, table.groups[n])


def _check_learning_rate(rule: Rule, parameter: Parameter, group: Group) -> None:
    """Compares the smallest step with the distance between neighbouring weights at the largest.

    Raises:
        NumericsError: where the step is smaller. Nothing was changed.
    """
    if parameter.max_abs is None:
        parameter.max_abs = largest_weight(parameter)
    largest, lr = parameter.max_abs, number(group["lr"])
    if lr == 0.0 or largest <= 0.0 or not math.isfinite(largest):
        return
    dtype = parameter.tensor.dtype
    bits = max(8 * dtype.itemsize, group["master_weight_bits"] or 0)
    mantissa_bits = bits - 1 - _EXPONENT_BITS[dtype] + math.log2(_ROUNDED_AWAY)
    resolution = 2.0 ** (math.floor(math.log2(largest)) - mantissa_bits)
    step = lr * (_ADAM_STEP if rule.divides_by_root else 1.0)
    if resolution > step:
        raise NumericsError(
            f"{parameter.name}: learning rate {lr:.3g} makes steps of {step:.5g}, less than the resolution "
            f"{resolution:.5g} of its largest weight {largest:.5g} ({dtype}, master_weight_bits={bits}); "
            "raise the learning rate or master_weight_bits, or set check_numerics=False"
        )
