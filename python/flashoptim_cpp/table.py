"""What one call of the step operator needs, made once for a set of parameters and kept while nothing about them changes."""

from itertools import chain
from operator import is_
from typing import Any, cast

import torch

from . import _operators as ops
from .moment import FIRST, SECOND, Moment
from .options import Group, Rule, hyperparameters, storage_key
from .parameter import Parameter, State, local_of

_NOTHING = torch.empty(0, dtype=torch.int8, device="cpu")


def _contents(states: list[State]) -> list[int]:
    """What the states hold, by identity."""
    return list(map(id, chain.from_iterable(map(dict.values, states))))


class Table:
    """The buffers and rows of parameters that have a gradient, all on one device."""

    def __init__(
        self, rule: Rule, parameters: list[Parameter], states: list[State], groups: list[Group]
    ) -> None:
        self.rule = rule
        self.parameters = parameters
        self.tensors = [parameter.tensor for parameter in parameters]
        self.weights = [parameter.local for parameter in parameters]
        self.is_sharded = any(parameter.is_sharded for parameter in parameters)
        self.states = states
        self.steps = [state["step"] for state in states]
        self.bad = torch.zeros(len(parameters), dtype=torch.int64, device="cpu")
        self._given_groups = groups
        self.groups: list[Group] = []
        self.group_of: list[int] = []
        for group in groups:
            if not self.groups or self.groups[-1] is not group:
                self.groups.append(group)
            self.group_of.append(len(self.groups) - 1)
        self._keys = [storage_key(group) for group in self.groups]
        self._pointers = [weight.data_ptr() for weight in self.weights]
        self._contents = _contents(states)
        # So that no identity is given to another object.
        self._held = [tuple(state.values()) for state in states]
        self._gather_buffers()
        self.rows = self._table()
        self._numbers: list[tuple[float, ...]] = []
        self._hyperparameters = _NOTHING

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
        self._waiting = [m for m in moments[FIRST] if m and not m.is_started] if self.rule.is_sgd else []

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
            has_momentum = moment.is_started if self.rule.is_sgd and moment else True
            assert parameter.plan is not None
            rows.append(
                [
                    *parameter.layout.tolist(),
                    *parameter.plan,
                    self.group_of[n],
                    int(has_momentum),
                    int(group["check_gradients"]),
                    int(self.rule),
                ]
            )
        return rows

    def has_groups(self, groups: list[Group]) -> bool:
        """Whether the parameters are in the same groups as they were."""
        return len(groups) == len(self._given_groups) and all(map(is_, groups, self._given_groups))

    def is_current(self, state: dict[torch.Tensor, Any]) -> bool:
        """Whether weights and states still lie where they did, and are still to be stored in the same way."""
        weights = [local_of(tensor) for tensor in self.tensors] if self.is_sharded else self.tensors
        if [weight.data_ptr() for weight in weights] != self._pointers:
            return False
        states = [state[tensor] for tensor in self.tensors]
        if not all(map(is_, states, self.states)) or _contents(states) != self._contents:
            return False
        return self._keys == [storage_key(group) for group in self.groups]

    def versions(self) -> list[int]:
        """Version counters of the weights."""
        if self.is_sharded:
            return [parameter.current_version() for parameter in self.parameters]
        return [tensor._version for tensor in self.tensors]

    def hyperparameters(self) -> torch.Tensor:
        """One row for each group."""
        numbers = [hyperparameters(group) for group in self.groups]
        if numbers != self._numbers:
            self._numbers = numbers
            self._hyperparameters = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        return self._hyperparameters

    def count_bad(
        self, gradients: list[torch.Tensor], factor: float, grad_scale: torch.Tensor | None
    ) -> torch.Tensor:
        """Bad elements of each gradient."""
        return ops.count_bad(
            self.weights, gradients, self.rows, self.hyperparameters(), grad_scale, factor, self.corrections
        )

    def grad_norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """The norm of these gradients, bad elements left out."""
        return ops.grad_norm(self.weights, gradients, self.rows, self.hyperparameters())

    def step(
        self,
        gradients: list[torch.Tensor],
        factor: float,
        grad_scale: torch.Tensor | None,
        found_inf: torch.Tensor | None,
    ) -> None:
        """One step; bad elements are added to `bad`."""
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
            grad_scale,
            found_inf,
            factor,
        )
        torch.autograd.graph.increment_version(self.tensors)
        for parameter in self.parameters:
            parameter.version = cast(int, parameter.version) + 1
            parameter.was_loaded = False
        if self._waiting and (found_inf is None or float(found_inf) == 0.0):
            self._start_momentum()

    def _start_momentum(self) -> None:
        for moment in self._waiting:
            moment.is_started = True
        self._waiting = []
        self.rows = self._table()
