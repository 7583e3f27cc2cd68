"""What changes between the steps of an optimizer: where its parameters stand in the groups, and what wrappers must share."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch

from .clipping import Clipping
from .options import Group

_ABSENT: Any = object()


@dataclass(eq=False)
class Live:
    """What methods of an optimizer set anew.

    A wrapper may copy the optimizer's `__dict__` (Lightning) or hand on what it does not have (Fabric), and take its class. A
    method that is called on it must not assign attributes: they would be the wrapper's. It assigns them here.
    """

    clipping: Clipping | None = None
    releases: int = 0  # models whose gradients are released
    grad_scale: Any = _ABSENT
    found_inf: Any = _ABSENT
    _opt_called: Any = _ABSENT

    def clip_coefficient(self) -> torch.Tensor | None:
        """That of the gradients which are there."""
        return None if self.clipping is None else self.clipping.coefficient()


def live_attribute(name: str) -> Any:  # noqa: ANN401
    """An attribute that others set and delete on an optimizer (GradScaler, schedulers), whichever wrapper they have."""

    def get(optimizer: Any) -> Any:  # noqa: ANN401
        value = getattr(optimizer._live, name)
        if value is _ABSENT:
            raise AttributeError(f"{type(optimizer).__name__} has no attribute {name}")
        return value

    def assign(optimizer: Any, value: Any) -> None:  # noqa: ANN401
        setattr(optimizer._live, name, value)

    def delete(optimizer: Any) -> None:  # noqa: ANN401
        setattr(optimizer._live, name, _ABSENT)

    return property(get, assign, delete)


class Places:
    """Where each parameter stands in the groups.

    Anybody may change the lists of the groups, or the list of groups, between two calls. So what is kept here is compared
    with them: wholly by `follow`, and in one place by `find`.
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
        """Takes over the lists as they are now; whether they have changed."""
        lists = [group["params"] for group in groups]
        sizes = list(map(len, lists))
        tensors = list(chain.from_iterable(lists))
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
        """The group of a parameter; None where it stood when `follow` was called, and stands no more."""
        g, n = self._places.get(tensor, (len(groups), 0))
        if g >= len(groups):
            return None
        members = groups[g]["params"]
        return groups[g] if n < len(members) and members[n] is tensor else None

    def key(self, tensor: torch.Tensor, groups: list[Group]) -> str | int:
        """The name of a parameter that `find` finds, or its number over all groups.

        Names that are not as many as the parameters are not theirs any more.
        """
        g, n = self._places[tensor]
        names = groups[g].get("param_names")
        return names[n] if names and len(names) == len(groups[g]["params"]) else self._firsts[g] + n
