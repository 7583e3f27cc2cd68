"""The states of an optimizer's parameters, and the data of an optimizer that is not saved.

The rest of the package accesses an optimizer through :class:`States`.
"""

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from operator import is_
from typing import Any, ClassVar, NoReturn

import torch
from torch.optim.optimizer import ParamsT, register_optimizer_step_pre_hook
from torch.utils.weak import TensorWeakRef

from . import _operators as ops
from ._rules import Group, Rule
from .backward import Fp32Sums
from .conversion import fit
from .moment import Moment
from .nonfinite import BadElements
from .options import CheckedOptions
from .parameter import LiveState, Parameter, State, WeightStorage, correction_in
from .sharding import local_like, local_of, shard_key, sum_over_shards
from .table import Factors, Table, refuse_several_parts

# The number of parameter sets whose tables are kept. Tables of single parameters (gradient release) are not
# counted.
_MOST_SETS = 16
_ABSENT: Any = object()


class Clipping:
    """The clip coefficient, which belongs to the gradients whose norm it was computed from.

    The optimizer's `zero_grad()` drops it. An optimizer does not notice the model's `zero_grad()` or `p.grad
    = None`. So the coefficient is also dropped when all of its gradients are gone.
    """

    def __init__(self, coefficient: torch.Tensor, gradients: Iterable[torch.Tensor]) -> None:
        self._coefficient = coefficient
        self._gradients = [TensorWeakRef(gradient) for gradient in gradients]

    def coefficient(self) -> torch.Tensor | None:
        """The coefficient; None when all of its gradients are gone."""
        while self._gradients and self._gradients[-1]() is None:
            self._gradients.pop()
        return self._coefficient if self._gradients else None


class Places:
    """The place of each parameter in the groups.

    Other code may change the lists of the groups, or the list of groups, between two calls. So the places
    kept here are compared with the lists: all of them by `follow`, a single one by `find`.
    """

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._sizes: list[int] = []
        self._firsts: list[int] = []
        self._places: dict[torch.Tensor, tuple[int, int]] = {}

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._places)

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor in self._places

    def follow(self, groups: list[Group]) -> bool:
        """Takes over the current lists. Returns whether they have changed."""
        lists = [group["params"] for group in groups]
        sizes = list(map(len, lists))
        tensors = list(itertools.chain.from_iterable(lists))
        if sizes == self._sizes and all(map(is_, tensors, self._tensors)):
            return False
        self._tensors, self._sizes, self._firsts = tensors, sizes, []
        self._places.clear()
        for g, members in enumerate(lists):
            self._firsts.append(len(self._places))
            for n, tensor in enumerate(members):
                self._places.setdefault(tensor, (g, n))
        return True

    def find(self, tensor: torch.Tensor, groups: list[Group]) -> Group | None:
        """The group of a parameter; None if it is not where `follow` found it."""
        g, n = self._places.get(tensor, (len(groups), 0))
        if g >= len(groups):
            return None
        members = groups[g]["params"]
        return groups[g] if n < len(members) and members[n] is tensor else None

    def key(self, tensor: torch.Tensor, groups: list[Group]) -> str | int:
        """The name of a parameter of the groups, or its number over all of them.

        If the group has another number of names than of parameters, the names are outdated and not used.
        """
        g, n = self._places[tensor]
        names = groups[g].get("param_names")
        return names[n] if names and len(names) == len(groups[g]["params"]) else self._firsts[g] + n


@dataclass(eq=False)
class Kept:
    """The data that each process and copy of an optimizer makes again, and attributes that methods set.

    A wrapper may copy the optimizer's `__dict__` (Lightning) or forward missing attributes (Fabric), and take
    its class. A method called on the wrapper must not assign attributes, because they would become the
    wrapper's. It changes this object instead.
    """

    places: Places = field(default_factory=Places)
    parameters: dict[torch.Tensor, Parameter] = field(default_factory=dict)
    departed: dict[torch.Tensor, None] = field(default_factory=dict)  # in no group, but with a state
    # The weight storages of the corrections of a copied or loaded optimizer.
    storages: dict[torch.Tensor, WeightStorage] = field(default_factory=dict)
    tables: dict[tuple[int, ...], list[Table]] = field(default_factory=dict)
    captured: list[Table] = field(default_factory=list)  # used in CUDA graphs, which read them at replay
    plans: dict[torch.device, ops.StepPlan] = field(default_factory=dict)
    bad: BadElements = field(default_factory=BadElements)
    options: CheckedOptions = field(default_factory=CheckedOptions)
    sums: Fp32Sums = field(default_factory=Fp32Sums)
    release_lock: Any = field(
        default_factory=threading.RLock
    )  # reentrant: pre_step may call backward() itself
    releases: int = 0  # number of models whose gradients are released
    clipping: Clipping | None = None
    grad_scale: Any = _ABSENT
    found_inf: Any = _ABSENT
    opt_called: Any = _ABSENT

    def clip_coefficient(self) -> torch.Tensor | None:
        """The clip coefficient of the current gradients, if there is one."""
        return None if self.clipping is None else self.clipping.coefficient()


def _kept_attribute(name: str) -> Any:  # noqa: ANN401
    """An attribute that GradScaler and schedulers set and delete on an optimizer or its wrapper."""

    def get(optimizer: "StatefulOptimizer") -> Any:  # noqa: ANN401
        value = getattr(optimizer._kept, name)
        if value is _ABSENT:
            raise AttributeError(f"{type(optimizer).__name__} has no attribute {name}")
        return value

    def assign(optimizer: "StatefulOptimizer", value: Any) -> None:  # noqa: ANN401
        setattr(optimizer._kept, name, value)

    def delete(optimizer: "StatefulOptimizer") -> None:
        setattr(optimizer._kept, name, _ABSENT)

    return property(get, assign, delete)


class StatefulOptimizer(torch.optim.Optimizer):
    """A torch optimizer with :class:`States`. The package's functions take this type."""

    rule: ClassVar[Rule]
    grad_scale = _kept_attribute("grad_scale")
    found_inf = _kept_attribute("found_inf")
    _opt_called = _kept_attribute("opt_called")

    def __init__(self, params: ParamsT, options: dict[str, Any]) -> None:
        self._kept = Kept()
        super().__init__(params, options)
        self.state = defaultdict(LiveState)

    def __getstate__(self) -> dict[str, Any]:
        # Attributes of subclasses and users are copied. Hooks, and the step that schedulers wrap, are not.
        kept = {key: value for key, value in self.__dict__.items() if key not in ("_kept", "step")}
        kept = {key: value for key, value in kept.items() if "_hooks" not in key} | super().__getstate__()
        return kept | {"_storages": states_of(self).storages()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._kept = Kept(storages=state.pop("_storages", {}))
        super().__setstate__(state)
        states_of(self).follow_groups()


def states_of(optimizer: StatefulOptimizer) -> "States":
    """The states of an optimizer with its groups as they are now. Use them at once: groups may change."""
    return States(optimizer.rule, optimizer.param_groups, optimizer.state, optimizer._kept)


class States:
    """The states of parameters, as their groups ask for, whatever other code does to weights and states."""

    def __init__(self, rule: Rule, groups: list[Group], state: dict[torch.Tensor, Any], kept: Kept) -> None:
        self.rule, self.groups, self.state, self.kept = rule, groups, state, kept

    # Groups and names

    def tensors_and_groups(self) -> Iterator[tuple[torch.Tensor, Group]]:
        for group in self.groups:
            for tensor in group["params"]:
                yield tensor, group

    def follow_groups(self) -> None:
        """Updates the places. Drops the data of parameters that are in no group and have no state."""
        if self.kept.places.follow(self.groups):
            self._drop_tables(list(self.kept.tables))
            self.kept.departed.clear()
            known = (*self.kept.parameters, *self.kept.storages)
            self.kept.departed.update((tensor, None) for tensor in known if tensor not in self.kept.places)
        for tensor in [departed for departed in self.kept.departed if not self.state.get(departed)]:
            del self.kept.departed[tensor]
            self.kept.storages.pop(tensor, None)
            self.kept.bad.forget(self.kept.parameters.pop(tensor, None))
        wide = [group["params"] for group in self.groups if group.get("accumulate_fp32")]
        self.kept.sums.follow(itertools.chain.from_iterable(wide))

    def group_of(self, tensor: torch.Tensor) -> Group | None:
        """The group that a parameter is in now."""
        group = self.kept.places.find(tensor, self.groups)
        if group is None:
            self.follow_groups()
            group = self.kept.places.find(tensor, self.groups)
        return group

    def find_group(self, tensor: torch.Tensor) -> Group:
        """The group that a parameter is in now. Raises ValueError if it is in none."""
        group = self.group_of(tensor)
        if group is None:
            raise ValueError(f"a parameter of shape {tuple(tensor.shape)} is not managed by this optimizer")
        return group

    def name_of(self, tensor: torch.Tensor) -> str:
        """The name of a parameter, or its number, for messages."""
        self.find_group(tensor)
        key = self.kept.places.key(tensor, self.groups)
        return f"parameter {key}" if isinstance(key, int) else key

    # Parameters and their states

    def look_at(self, tensor: torch.Tensor) -> Parameter:
        """The Parameter of a tensor as it is now. A new one is not registered."""
        name = self.name_of(tensor)
        parameter = self.kept.parameters.get(tensor)
        if parameter is None or (parameter.is_reshaped() and not self.state.get(tensor)):
            return Parameter(tensor, name, self.kept.storages.get(tensor))
        parameter.name = name
        parameter.look()
        return parameter

    def prepare(self, tensor: torch.Tensor, group: Group | None = None, writes: bool = True) -> Parameter:
        """The parameter with a state that fits its memory and its group, by default the one that it is in.

        Without `writes` the weight stays as it is, and so does the correction of one that was cast.
        """
        if ops.is_fake_mode_on() and not ops.is_fake(tensor):
            raise ValueError(
                f"{self.name_of(tensor)} has memory, and its state would have none under FakeTensorMode: "
                "step it outside, or make the model inside"
            )
        parameter = self.look_at(tensor)
        state = self.state[tensor]
        if not isinstance(state, LiveState):
            state = self.state[tensor] = LiveState(state)
        fit(parameter, state, self.rule, self.find_group(tensor) if group is None else group, writes)
        self.kept.parameters[tensor] = parameter
        self.kept.storages.pop(tensor, None)
        return parameter

    def storages(self) -> dict[torch.Tensor, WeightStorage]:
        """The weight storages of the corrections, as far as they are known."""
        known = {tensor: parameter.stored_as for tensor, parameter in self.kept.parameters.items()}
        return self.kept.storages | {t: s for t, s in known.items() if s is not None and t in self.state}

    def forget(self) -> None:
        """Drops the data derived from the states, after other states were loaded."""
        self._drop_tables(list(self.kept.tables))
        self.kept.storages.clear()
        for parameter in self.kept.parameters.values():
            parameter.plan = parameter.stored_as = None
            parameter.max_abs = None

    # Tables

    def tables_for(self, tensors: list[torch.Tensor], groups: list[Group]) -> list[Table]:
        """The tables of these parameters, one for each device."""
        key = tuple(map(id, tensors))
        tables = self.kept.tables.get(key)
        if tables is None or not self._are_current(tables, tensors, groups):
            if ops.is_capturing_any(tensor.device for tensor in tensors):
                self._refuse_new_table(tensors)
            self._drop_tables([key])
            if len(key) > 1:
                self._drop_old_sets()
            tables = self.kept.tables[key] = self._make_tables(tensors, groups)
        elif len(key) > 1 and len(self.kept.tables) > 1:
            self.kept.tables[key] = self.kept.tables.pop(key)  # moved to the end: least recently used first
        for table in tables:
            if table.is_captured() and table not in self.kept.captured:
                self.kept.captured.append(table)
        return tables

    def _refuse_new_table(self, tensors: list[torch.Tensor]) -> None:
        """Refuses a new table in a capture: each replay would create states and reset counters."""
        bare = [tensor for tensor in tensors if not self.state.get(tensor)]
        what = "states, or which parameters have a gradient, have changed since the last step"
        if bare:
            what = f"{self.name_of(bare[0])} has no state yet"
        ops.refuse_in_capture(what, "take a step, or call grad_norm(), with the same gradients before")

    def _drop_tables(self, keys: list[tuple[int, ...]]) -> None:
        for key in keys:
            for table in self.kept.tables.pop(key, ()):
                if table not in self.kept.captured:  # the replays of its graph keep counting
                    self.kept.bad.leave(table.counter)

    def _drop_old_sets(self) -> None:
        """Makes room for another set of parameters, and drops tables of states that were replaced."""
        self._drop_tables(
            [
                key
                for key, tables in self.kept.tables.items()
                if not all(t.has_states(self.state) for t in tables)
            ]
        )
        sets = [key for key in self.kept.tables if len(key) > 1]
        self._drop_tables(sets[: max(0, len(sets) + 1 - _MOST_SETS)])

    def _are_current(self, tables: list[Table], tensors: list[torch.Tensor], groups: list[Group]) -> bool:
        if len(tables) == 1:
            has_groups = tables[0].has_groups(groups)
        else:
            group_of = dict(zip(tensors, groups, strict=True))
            has_groups = all(table.has_groups([group_of[t] for t in table.tensors]) for table in tables)
        return has_groups and all(table.is_current(self.state) for table in tables)

    def _make_tables(self, tensors: list[torch.Tensor], groups: list[Group]) -> list[Table]:
        by_device: dict[torch.device, tuple[list[Parameter], list[State], list[Group]]] = {}
        for tensor in tensors:
            if not ops.can_step(tensor.device):
                self._refuse_device(tensor)
        for tensor, group in zip(tensors, groups, strict=True):
            parameter = self.prepare(tensor, group)
            parameters, states, their_groups = by_device.setdefault(parameter.local.device, ([], [], []))
            parameters.append(parameter)
            states.append(self.state[tensor])
            their_groups.append(group)
        for parameters, _, _ in by_device.values():
            _refuse_shared_memory(parameters)
        return [
            Table(
                self.rule,
                *lists,
                self.kept.bad.counter(lists[0], device),
                self._plan_for(device, len(tensors)),
            )
            for device, lists in by_device.items()
        ]

    def _refuse_device(self, tensor: torch.Tensor) -> NoReturn:
        remedy = "give it memory (to_empty()) and load it" if tensor.is_meta else "move it to the CPU"
        raise ValueError(
            f"{self.name_of(tensor)} is on {tensor.device}, where this build of flashoptim_cpp steps "
            f"nothing: {remedy}"
        )

    def _plan_for(self, device: torch.device, tensors: int) -> ops.StepPlan | None:
        """The step plan of a table: one for all sets of parameters, but one for each single parameter.

        With gradient release the parameters are stepped in turn, and a common plan would upload its list each
        time.
        """
        if not ops.is_gpu(device):
            return None
        if tensors == 1:
            return ops.StepPlan()
        if device not in self.kept.plans:
            self.kept.plans[device] = ops.StepPlan()
        return self.kept.plans[device]

    # The inputs of a step

    def gradients_of(
        self, tables: list[Table], tensors: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> list[list[torch.Tensor]]:
        """This rank's part of each gradient, by table."""
        is_plain = set(map(type, gradients)) <= {torch.Tensor}
        if len(tables) == 1 and not tables[0].is_sharded and is_plain:
            return [gradients]
        given = dict(zip(tensors, gradients, strict=True))
        parts = [[local_like(given[tensor], tensor) for tensor in table.tensors] for table in tables]
        if not is_plain:
            for table, own in zip(tables, parts, strict=True):
                refuse_several_parts(own, table.parameters)
        return parts

    def factors(self, clip: torch.Tensor | None) -> Factors:
        """The clip coefficient and the values of GradScaler (found_inf is the number 0 if there are no
        gradients).
        """
        scale, found = self.kept.grad_scale, self.kept.found_inf
        is_tensor = isinstance(scale, torch.Tensor), isinstance(found, torch.Tensor)
        return Factors(clip, scale if is_tensor[0] else None, found if is_tensor[1] else None)

    def grad_norm(self) -> torch.Tensor:
        """The norm of all gradients, float64, on their device; a collective if parameters are sharded."""
        self.follow_groups()
        home = _home([local_of(tensor).device for tensor, _ in self.tensors_and_groups()])
        first = next(iter(self.kept.places), None)
        if first is not None and ops.is_fake(first):
            return local_of(first).detach().new_zeros((), dtype=torch.float64)
        by_place: dict[object, list[tuple[torch.Tensor, dict]]] = {}
        for tensor, group in self.tensors_and_groups():
            by_place.setdefault(shard_key(tensor), []).append((tensor, group))
        total = torch.zeros((), dtype=torch.float64, device=home)
        for members in by_place.values():
            chosen = [(t, g) for t, g in members if t.grad is not None]
            square = torch.zeros((), dtype=torch.float64, device=home)
            tensors = [tensor for tensor, _ in chosen]
            for table in self.tables_for(tensors, [group for _, group in chosen]) if chosen else ():
                grads = {tensor: tensor.grad for tensor in table.tensors if tensor.grad is not None}
                gradients = [local_like(grad, tensor) for tensor, grad in grads.items()]
                refuse_several_parts(gradients, table.parameters)
                norm = table.grad_norm(gradients)
                square += norm.to(home, non_blocking=home.type != "cpu") ** 2
            total += sum_over_shards(square, members[0][0])
        return total.sqrt()

    # The memory report

    def memory(self) -> dict[str, float]:
        """Bytes on this rank by kind, and their sum per parameter."""
        report = dict.fromkeys(("weights", "corrections", "moments", "scales", "gradients"), 0)
        parameters = 0
        for tensor, _ in self.tensors_and_groups():
            local = local_of(tensor)
            parameters += local.numel()
            report["weights"] += local.nbytes
            if tensor.grad is not None:
                report["gradients"] += local_of(tensor.grad).nbytes
            state = self.state.get(tensor, {})
            correction = correction_in(state)
            report["corrections"] += 0 if correction is None else correction.nbytes
            for moment in state.values():
                if isinstance(moment, Moment):
                    report["moments"] += moment.codes.nbytes
                    report["scales"] += moment.scales.nbytes
        total = sum(report.values())
        return report | {
            "total": total,
            "parameters": parameters,
            "bytes_per_parameter": total / parameters if parameters else 0.0,
        }


def _home(devices: list[torch.device]) -> torch.device:
    """The device on which the parts of a norm are added: the first GPU if all are on GPUs, else the CPU."""
    cpu = torch.device("cpu")
    return cpu if cpu in devices or not devices else devices[0]


def _refuse_shared_memory(parameters: list[Parameter]) -> None:
    """Refuses parameters that share memory, because a step writes all weights at the same time."""
    by_address = sorted((p for p in parameters if p.local.numel()), key=lambda p: p.local.data_ptr())
    for former, parameter in itertools.pairwise(by_address):
        if parameter.tensor is former.tensor:
            raise ValueError(f"{parameter.name} stands in the groups more than once: leave it in one place")
        if parameter.local.data_ptr() < former.local.data_ptr() + former.local.nbytes:
            raise ValueError(
                f"{parameter.name} shares memory with {former.name}; optimize one of them, or the tensor "
                "that both are parts of"
            )


@cache
def follow_zero_redundancy() -> None:
    """Makes ZeroRedundancyOptimizer tell its inner optimizer the other ranks before each step.

    Each rank has an inner optimizer for a part of the parameters, which does not know the others.
    """
    register_optimizer_step_pre_hook(_tell_ranks)


def _tell_ranks(outer: Any, args: Any, kwargs: Any) -> None:  # noqa: ANN401
    inside = getattr(outer, "optim", None)
    if isinstance(inside, StatefulOptimizer) and hasattr(outer, "process_group"):
        states_of(inside).kept.bad.ranks = outer.process_group, outer.join_device
