"""What one call of the step operator needs, made once for a set of parameters and kept while nothing about them changes."""

import re
from itertools import chain
from operator import is_
from typing import Any

import torch

from . import _operators as ops
from . import capture
from .counters import Counter
from .gradients import refusal_of
from .moment import FIRST, SECOND, Moment
from .options import POLICIES, Group, Rule, check_lr_size, hyperparameters, storage_key
from .parameter import Parameter, State, local_of

_NOTHING = torch.empty(0, dtype=torch.int8, device="cpu")


def _contents(states: list[State]) -> list[int]:
    """What the states hold, by identity."""
    return list(map(id, chain.from_iterable(map(dict.values, states))))


class Table:
    """The buffers and rows of parameters that have a gradient, all on one device."""

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
        self.counter, self.bad = counter, counter.counts
        self._given_groups = groups
        self.groups: list[Group] = []
        self.group_of: list[int] = []
        for group in groups:
            if not self.groups or self.groups[-1] is not group:
                self.groups.append(group)
            self.group_of.append(len(self.groups) - 1)
        self._keys = [storage_key(group) for group in self.groups]
        self._pointers = [weight.data_ptr() for weight in self.weights]
        self._dtypes = [weight.dtype for weight in self.weights]
        self._contents = _contents(states)
        # So that no identity is given to another object.
        self._held = [tuple(state.values()) for state in states]
        self._gather_buffers()
        self.rows = self._table()
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

        moments = [[self._moment(n, kind) for n in range(len(self.states))] for kind in (FIRST, SECOND)]
        self.corrections = listed(
            [
                state["error_bits"] if parameter.plan and parameter.plan.correction_count else _NOTHING
                for parameter, state in zip(self.parameters, self.states, strict=True)
            ]
        )
        self.codes = [listed([m.codes if m else _NOTHING for m in moments[kind]]) for kind in (FIRST, SECOND)]
        self.scales = [
            listed([m.scales if m and m.is_quantized() else _NOTHING for m in moments[kind]])
            for kind in (FIRST, SECOND)
        ]

    def _moment(self, n: int, kind: int) -> Moment | None:
        plan = self.parameters[n].plan
        assert plan is not None
        if not (plan.second_count if kind else plan.first_count):
            return None
        moment = self.states[n][self.rule.moments[kind]]
        assert isinstance(moment, Moment)
        return moment

    def _table(self) -> torch.Tensor:
        return torch.tensor(self._rows(), dtype=torch.int64, device="cpu")

    def _rows(self) -> list[list[int]]:
        rows = []
        for n, parameter in enumerate(self.parameters):
            group = self.groups[self.group_of[n]]
            moment = self._moment(n, FIRST)
            assert parameter.plan is not None
            rows.append(
                [
                    *parameter.layout.tolist(),
                    *parameter.plan,
                    self.group_of[n],
                    moment.unfilled_at if self.rule.is_sgd and moment else -1,
                    int(group["check_gradients"]),
                    int(self.rule),
                ]
            )
        return rows

    def has_groups(self, groups: list[Group]) -> bool:
        """Whether the parameters are in the same groups as they were."""
        return len(groups) == len(self._given_groups) and all(map(is_, groups, self._given_groups))

    def has_states(self, state: dict[torch.Tensor, Any]) -> bool:
        """Whether the states of the parameters are these."""
        return all(map(is_, map(state.get, self.tensors), self.states))

    def is_current(self, state: dict[torch.Tensor, Any]) -> bool:
        """Whether weights and states still lie where they did, and are still to be stored in the same way."""
        weights = [local_of(tensor) for tensor in self.tensors] if self.is_sharded else self.tensors
        if [weight.data_ptr() for weight in weights] != self._pointers:
            return False
        if [weight.dtype for weight in weights] != self._dtypes:
            return False
        if not self.has_states(state) or _contents(self.states) != self._contents:
            return False
        return self._keys == [storage_key(group) for group in self.groups]

    def is_captured(self) -> bool:
        """Whether what is enqueued now becomes part of a CUDA graph."""
        return capture.is_capturing(self.device)

    def stops(self) -> torch.Tensor:
        """For each parameter 1 if its bad elements stop the whole step, else 0."""
        policies = [self.groups[n]["nonfinite"] != POLICIES[0] for n in self.group_of]
        if policies != self._policies:
            if self.is_captured():
                capture.refuse(
                    "nonfinite of a parameter group has changed since the last step", "take a step before"
                )
            self._policies = policies
            self._stops = torch.tensor(policies, dtype=torch.int64, device=self.device)
        return self._stops

    def lr_is_on_gpu(self, group: Group) -> bool:
        """Whether the kernels read the learning rate themselves."""
        lr = group["lr"]
        return self.is_on_gpu and isinstance(lr, torch.Tensor) and ops.is_gpu(lr.device)

    def hyperparameters(self) -> torch.Tensor:
        """One row for each group."""
        numbers = [hyperparameters(group, self.lr_is_on_gpu(group)) for group in self.groups]
        if numbers != self._numbers:
            self._numbers = numbers
            self._hyperparameters = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        return self._hyperparameters

    def _learning_rates(self) -> torch.Tensor | None:
        """Learning rates that lie on a GPU, for each group, in this table's memory, where a graph reads them again."""
        chosen = [(n, group["lr"]) for n, group in enumerate(self.groups) if self.lr_is_on_gpu(group)]
        if not chosen:
            return None
        if self._rates is None:
            self._rates = torch.zeros(len(self.groups), dtype=torch.float64, device=self.device)
        for n, lr in chosen:
            self._rates[n].copy_(lr.detach().reshape(()), non_blocking=True)
        return self._rates

    def _here(self, factor: torch.Tensor | None) -> torch.Tensor | None:
        """A factor or verdict in fp32 on the device of this table."""
        if factor is None:
            return None
        between_gpus = self.is_on_gpu and ops.is_gpu(factor.device)
        return factor.to(self.device, torch.float32, non_blocking=between_gpus)

    @property
    def _plan_number(self) -> int:
        return self._plan.number if self._plan else 0

    def _explained(self, error: Exception, gradients: list[torch.Tensor]) -> Exception:
        """The error of an operator, which knows tensors by their place in its lists and not every kind of them."""

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
        """Refuses what a step would, where another table must not step before that is known.

        Raises:
            ValueError: for options out of range, and a gradient that is on another device, or of another dtype or shape.
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
            if self.lr_is_on_gpu(group):  # the host does not know it
                known[n, 0] = 0.0
        ops.check_hyperparameters(known, self.rule)
        self._checked = numbers

    def count_bad(
        self, gradients: list[torch.Tensor], clip: torch.Tensor | None, grad_scale: torch.Tensor | None
    ) -> torch.Tensor:
        """Bad elements of each gradient, on the device of this table."""
        try:
            return ops.count_bad(
                self.weights,
                gradients,
                self.rows,
                self.hyperparameters(),
                self._here(grad_scale),
                corrections=self.corrections,
                clip_coefficient=self._here(clip),
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

    def step(
        self,
        gradients: list[torch.Tensor],
        clip: torch.Tensor | None,
        grad_scale: torch.Tensor | None,
        found_inf: torch.Tensor | None,
    ) -> None:
        """One step; bad elements are added to `bad`."""
        try:
            ops.step_(
                self.weights,
                gradients,
                self.corrections,
                self.codes[FIRST],
                self.scales[FIRST],
                self.codes[SECOND],
                self.scales[SECOND],
                self.steps,
                self.bad,
                self.rows,
                self.hyperparameters(),
                self._here(grad_scale),
                self._here(found_inf),
                clip_coefficient=self._here(clip),
                learning_rates=self._learning_rates(),
                plan=self._plan_number,
            )
        except Exception as error:
            raise self._explained(error, gradients) from None
        self.counter.turns += 1
        torch.autograd.graph.increment_version(self.tensors)
