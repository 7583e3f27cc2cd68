"""The parameter groups of a state dict: what they must be, whose parameters they have, what a group becomes that takes one in."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from .options import STORAGE_OPTIONS, Group, Rule, check_group, shown

# Options of this optimizer that a state dict does not change.
_KEPT = (*STORAGE_OPTIONS, "check_gradients", "accumulate_fp32", "fused")
# What a saved group says of its states, and of another rule of torch.
_OF_FILES = ("params", "master_bytewidth", "weight_dtype", "decoupled_weight_decay")


def checked_whole(given: Any) -> dict[str, Any]:  # noqa: ANN401
    """A copy of a state dict that has states and parameter groups, as far as their types go.

    Raises:
        ValueError: that says what is missing or of another type.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f"a state dict is a dict with 'state' and 'param_groups', not {type(given).__name__}"
        )
    for key, kinds in (("state", (Mapping,)), ("param_groups", (list, tuple))):
        if key not in given:
            raise ValueError(f"the state dict has no {key!r}; it must have 'state' and 'param_groups'")
        if not isinstance(given[key], kinds):
            raise ValueError(
                f"{key!r} of the state dict is {type(given[key]).__name__}, which holds no such thing"
            )
    seen = set()
    for n, group in enumerate(given["param_groups"]):
        where = f"parameter group {n} of the state dict"
        if not isinstance(group, Mapping):
            raise ValueError(f"{where} is {type(group).__name__}; it must be a dict")
        if not isinstance(group.get("params"), list | tuple):
            raise ValueError(f"{where} has no list 'params'; it must have the numbers of its parameters")
        for number in group["params"]:
            if isinstance(number, bool) or not isinstance(number, int | str):
                raise ValueError(f"{where} has {shown(number)} in 'params'; it must have numbers, or names")
            if number in seen:
                raise ValueError(f"{where} has parameter {number} a second time")
            seen.add(number)
        names = group.get("param_names")
        if names is None:
            continue
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where} has 'param_names' that are no list of names")
    return dict(given)


def check_parameters_of(groups: list[Group], saved: list[Group]) -> None:
    """Refuses other numbers of groups or parameters.

    Raises:
        ValueError: that says both numbers.
    """
    if len(groups) != len(saved):
        raise ValueError(f"the state dict has {len(saved)} parameter groups, this optimizer {len(groups)}")
    for n, (group, other) in enumerate(zip(groups, saved, strict=True)):
        if len(group["params"]) != len(other["params"]):
            raise ValueError(
                f"parameter group {n} of the state dict has {len(other['params'])} parameters, "
                f"that of this optimizer {len(group['params'])}"
            )


def saved_numbers(group: Group, saved: Group) -> list[int | str]:
    """The number in the state dict of each parameter of the group: by name where both have the same names, else by place.

    torch.distributed.checkpoint has names in the numbers' place, and has brought them into this optimizer's order.
    """
    names, saved_names = group.get("param_names") or [], saved.get("param_names") or []
    numbers = list(saved["params"])
    if any(isinstance(number, str) for number in numbers):
        return numbers
    if sorted(names) != sorted(saved_names) or len(names) != len(numbers):
        return numbers
    by_name = dict(zip(saved_names, numbers, strict=True))
    return [by_name[name] for name in names]


def merged_group(rule: Rule, group: Group, saved: Group) -> Group:
    """The group after loading: hyperparameters of the file, storage of this optimizer.

    Raises:
        ValueError: for a value that cannot be copied, or that nobody writes, also of an option that is not taken over.
    """
    try:
        merged = copy.deepcopy({key: value for key, value in saved.items() if key not in _OF_FILES})
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"a parameter group of the state dict cannot be copied: {shown(error)}") from None
    for key in _KEPT:
        merged[key] = group.get(key)
    for key, value in group.items():
        merged.setdefault(key, value)
    for own in ("params", "param_names"):
        merged.pop(own, None)
        if own in group:
            merged[own] = group[own]
    if isinstance(merged.get("betas"), list):
        merged["betas"] = tuple(merged["betas"])
    check_group(rule, merged)
    check_group(rule, merged | {key: saved[key] for key in _KEPT if key in saved})
    return merged
