"""The part of an optimizer that knows where each parameter's memory and state lie, and gathers them for a step."""

import itertools
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import ClassVar, NoReturn

import torch

from ._operators import StepPlan, can_step, is_gpu
from .accumulation import Fp32Sums
from .capture import is_capturing_any, refuse
from .conversion import fit
from .corrections import WeightStorage
from .fake import is_fake, is_mode_on
from .gradients import refuse_several_parts
from .live import Live, Places, live_attribute
from .live_state import LiveState
from .nonfinite import BadElements
from .options import Group, Rule
from .parameter import Parameter, State
from .sharding import local_like
from .table import Table

# Sets of parameters whose tables are kept, beside those of each parameter alone (gradients released).
_MOST_SETS = 16


class OptimizerStates(torch.optim.Optimizer):
    """Keeps the states of parameters as their groups ask for them, whatever others do to weights and states."""

    rule: ClassVar[Rule]

    grad_scale = live_attribute("grad_scale")
    found_inf = live_attribute("found_inf")
    _opt_called = live_attribute("_opt_called")

    def _begin(self) -> None:
        """What is made anew by each process and copy. Methods change these objects and never assign others (see Live)."""
        self._live = Live()
        self._places = Places()
        self._parameters: dict[torch.Tensor, Parameter] = {}
        self._departed: dict[torch.Tensor, None] = {}  # in no group any more, but still with a state
        self._copied_storages: dict[torch.Tensor, WeightStorage] = {}
        self._tables: dict[tuple[int, ...], list[Table]] = {}
        self._bad = BadElements()
        self._sums = Fp32Sums()
        self._plans: dict[torch.device, StepPlan] = {}
        self._captured: list[Table] = []  # used in CUDA graphs, which need them as long as they are replayed
        self._release_lock = threading.RLock()  # the same thread again: pre_step may go backward itself
        self._warned: set[str] = set()

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(text, stacklevel=4)

    # Groups and names

    def _tensors_and_groups(self) -> Iterator[tuple[torch.Tensor, Group]]:
        for group in self.param_groups:
            for tensor in group["params"]:
                yield tensor, group

    def _follow_groups(self) -> None:
        """Lets go of what belonged to parameters that are in no group any more, as soon as their state is gone too."""
        if self._places.follow(self.param_groups):
            self._drop_tables(list(self._tables))
            self._departed.clear()
            known = (*self._parameters, *self._copied_storages)
            self._departed.update((tensor, None) for tensor in known if tensor not in self._places)
        for tensor in [departed for departed in self._departed if not self.state.get(departed)]:
            del self._departed[tensor]
            self._copied_storages.pop(tensor, None)
            self._bad.forget(self._parameters.pop(tensor, None))
        wide = [group["params"] for group in self.param_groups if group.get("accumulate_fp32")]
        self._sums.follow(itertools.chain.from_iterable(wide))

    def _group_of(self, tensor: torch.Tensor) -> Group | None:
        """The group that a parameter is in now."""
        group = self._places.find(tensor, self.param_groups)
        if group is None:
            self._follow_groups()
            group = self._places.find(tensor, self.param_groups)
        return group

    def _find_group(self, tensor: torch.Tensor) -> Group:
        group = self._group_of(tensor)
        if group is None:
            raise ValueError(f"a parameter of shape {tuple(tensor.shape)} is not managed by this optimizer")
        return group

    def _name_of(self, tensor: torch.Tensor) -> str:
        self._find_group(tensor)
        key = self._places.key(tensor, self.param_groups)
        return f"parameter {key}" if isinstance(key, int) else key

    # Parameters and their states

    def _look_at(self, tensor: torch.Tensor) -> Parameter:
        """The parameter as it is now; it is not yet kept if it is new."""
        name = self._name_of(tensor)
        parameter = self._parameters.get(tensor)
        if parameter is None or (parameter.is_reshaped() and not self.state.get(tensor)):
            return Parameter(tensor, name, self._copied_storages.get(tensor))
        parameter.name = name
        parameter.look()
        return parameter

    def _prepare(self, tensor: torch.Tensor, group: Group, writes: bool = True) -> Parameter:
        """The parameter with a state that fits its memory and its group.

        Without `writes` the weight stays as it is: the correction of a weight that was cast is still that of the former dtype
        then.
        """
        if is_mode_on() and not is_fake(tensor):
            raise ValueError(
                f"{self._name_of(tensor)} has memory, and its state would have none under FakeTensorMode: step it outside, or make "
                "the model inside"
            )
        parameter = self._look_at(tensor)
        state = self.state[tensor]
        if not isinstance(state, LiveState):
            state = self.state[tensor] = LiveState(state)
        fit(parameter, state, self.rule, group, writes)
        self._parameters[tensor] = parameter
        self._copied_storages.pop(tensor, None)
        return parameter

    def _prepare_all(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            self._prepare(tensor, self._find_group(tensor))

    def _storages(self) -> dict[torch.Tensor, WeightStorage]:
        """What the corrections belong to, where that is known."""
        known = {tensor: parameter.stored_as for tensor, parameter in self._parameters.items()}
        return self._copied_storages | {t: s for t, s in known.items() if s is not None and t in self.state}

    def _forget(self) -> None:
        """After the states were exchanged."""
        self._drop_tables(list(self._tables))
        self._copied_storages.clear()
        for parameter in self._parameters.values():
            parameter.plan = parameter.stored_as = None
            parameter.max_abs = None

    # Tables

    def _tables_for(self, tensors: list[torch.Tensor], groups: list[Group]) -> list[Table]:
        """What the operators need for these parameters; one table for each device."""
        key = tuple(map(id, tensors))
        tables = self._tables.get(key)
        if tables is None or not self._are_current(tables, tensors, groups):
            if is_capturing_any(tensor.device for tensor in tensors):
                self._refuse_new_table(tensors)
            self._drop_tables([key])
            if len(key) > 1:
                self._drop_old_sets()
            tables = self._tables[key] = self._make_tables(tensors, groups)
        elif len(key) > 1 and len(self._tables) > 1:
            self._tables[key] = self._tables.pop(key)  # the set that was not used for longest goes first
        for table in tables:
            if table.is_captured() and table not in self._captured:
                self._captured.append(table)
        return tables

    def _refuse_new_table(self, tensors: list[torch.Tensor]) -> None:
        """A graph would make states, and set counters to 0, anew at every replay."""
        bare = [tensor for tensor in tensors if not self.state.get(tensor)]
        what = "states, or which parameters have a gradient, have changed since the last step"
        if bare:
            what = f"{self._name_of(bare[0])} has no state yet"
        refuse(what, "take a step, or call grad_norm(), with the same gradients before")

    def _drop_tables(self, keys: list[tuple[int, ...]]) -> None:
        for key in keys:
            for table in self._tables.pop(key, ()):
                if table not in self._captured:  # a graph that is replayed goes on counting
                    self._bad.leave(table)

    def _drop_old_sets(self) -> None:
        """Makes room for another set of parameters, and lets go of states that are the parameters' no more."""
        self._drop_tables(
            [key for key, tables in self._tables.items() if not all(t.has_states(self.state) for t in tables)]
        )
        sets = [key for key in self._tables if len(key) > 1]
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
            if not can_step(tensor.device):
                self._refuse_device(tensor)
        for tensor, group in zip(tensors, groups, strict=True):
            parameter = self._prepare(tensor, group)
            parameters, states, their_groups = by_device.setdefault(parameter.local.device, ([], [], []))
            parameters.append(parameter)
            states.append(self.state[tensor])
            their_groups.append(group)
        for parameters, _, _ in by_device.values():
            _refuse_shared_memory(parameters)
        return [
            Table(
                self.rule, *lists, self._bad.counter(lists[0], device), self._plan_for(device, len(tensors))
            )
            for device, lists in by_device.items()
        ]

    def _refuse_device(self, tensor: torch.Tensor) -> NoReturn:
        remedy = "give it memory (to_empty()) and load it" if tensor.is_meta else "move it to the CPU"
        raise ValueError(
            f"{self._name_of(tensor)} is on {tensor.device}, where this build of flashoptim_cpp steps nothing: {remedy}"
        )

    def _plan_for(self, device: torch.device, tensors: int) -> StepPlan | None:
        """What keeps a list in a GPU's memory: one for all sets of parameters, and one for each parameter alone.

        Those take turns in each step where gradients are released, and would be uploaded each time.
        """
        if not is_gpu(device):
            return None
        if tensors == 1:
            return StepPlan()
        if device not in self._plans:
            self._plans[device] = StepPlan()
        return self._plans[device]

    # What a step is given

    def _gradients_of(
        self, tables: list[Table], tensors: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> list[list[torch.Tensor]]:
        is_plain = set(map(type, gradients)) <= {torch.Tensor}
        if len(tables) == 1 and not tables[0].is_sharded and is_plain:
            return [gradients]
        given = dict(zip(tensors, gradients, strict=True))
        parts = [[local_like(given[tensor], tensor) for tensor in table.tensors] for table in tables]
        if not is_plain:
            for table, own in zip(tables, parts, strict=True):
                refuse_several_parts(own, table.parameters)
        return parts

    def _amp(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What GradScaler has put here: the loss scale, and whether it found an infinite gradient.

        It puts the number 0 where no parameter has a gradient.
        """
        given = self._live.grad_scale, self._live.found_inf
        grad_scale, found_inf = (value if isinstance(value, torch.Tensor) else None for value in given)
        return grad_scale, found_inf


def _refuse_shared_memory(parameters: list[Parameter]) -> None:
    """A step writes all weights at the same time."""
    by_address = sorted((p for p in parameters if p.local.numel()), key=lambda p: p.local.data_ptr())
    for former, parameter in itertools.pairwise(by_address):
        if parameter.tensor is former.tensor:
            raise ValueError(f"{parameter.name} stands in the groups more than once: leave it in one place")
        if parameter.local.data_ptr() < former.local.data_ptr() + former.local.nbytes:
            raise ValueError(
                f"{parameter.name} shares memory with {former.name}; optimize one of them, or the tensor that both are "
                "parts of"
            )
