"""Writes state dicts, and loads a state dict completely or not at all."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ._rules import Group, Rule, Storage, shown
from .conversion import Saved, restore, saved_storage
from .moment import Layout, Moment, scales_by_element
from .options import STORAGE_OPTIONS, check_group
from .parameter import (
    CORRECTION,
    CORRECTION_DTYPES,
    QUANTIZED,
    SCALES,
    STRIDES,
    LiveState,
    Parameter,
    State,
    WeightStorage,
    correction_in,
    foreign_entries,
    integers,
    is_foreign,
    join,
    row_major,
    split_over,
    strides_of,
    without_empty,
)
from .sharding import local_of, place_of, wrap
from .states import States

StateDict = dict[str, Any]

# Options that torch.optim does not know.
_OURS = (*STORAGE_OPTIONS, "check_gradients", "accumulate_fp32", "nonfinite", "decouple_lr")


def _saved_scales(parameter: Parameter, moment: Moment) -> torch.Tensor:
    """The scales for a state dict, in a shape that can be sharded as the parameter is."""
    tensor, scales = parameter.tensor, moment.scales
    layout = Layout(*moment.layout.tolist())
    in_rows = layout.has_scales_in_rows(moment.storage)
    is_row_major = strides_of(parameter.local) == row_major(parameter.local)
    if moment.storage == Storage.PAPER and parameter.local.dtype == torch.bfloat16:
        scales = scales.view(torch.bfloat16)  # so that the authors' package reads the same bytes
    if not parameter.is_sharded:
        if not in_rows or not is_row_major or layout.numel == 0:
            return scales
        return scales.view(layout.scales_of_part(tensor.shape))
    if not in_rows:
        return wrap(scales_by_element(scales, parameter.local), tensor)
    part = layout.scales_of_part(tensor.shape)
    if layout.numel == 0:
        part = tuple(0 if n == 0 else size for n, size in zip(parameter.local.shape, part, strict=True))
    wrapped = wrap(scales.view(part), tensor, layout.scales_of_whole(tensor.shape))
    if place_of(wrapped)[0] != part and layout.numel > 0:
        raise ValueError(
            f"{parameter.name}: its scales cannot be cut as {getattr(tensor, 'placements', None)} cuts it; "
            "construct the optimizer with compress_state_dict=False"
        )
    return wrapped


def _like_parameter(parameter: Parameter, value: torch.Tensor) -> torch.Tensor:
    return wrap(value, parameter.tensor) if parameter.is_sharded else value


def _saved_moment(parameter: Parameter, name: str, moment: Moment, compress: bool) -> State:
    if not compress:
        return {name: _like_parameter(parameter, moment.materialize())}
    if not moment.is_quantized():
        return {name: _like_parameter(parameter, moment.codes)}
    codes = _like_parameter(parameter, moment.codes)
    return {name + QUANTIZED: codes, name + SCALES: _saved_scales(parameter, moment)}


def _saved_correction(
    parameter: Parameter, state: State, group: Group
) -> tuple[torch.Tensor, WeightStorage] | None:
    """The correction in the group's storage, and the weight dtype that it is for."""
    correction, stored, bits = correction_in(state), parameter.stored_as, group["master_weight_bits"]
    if correction is None or stored is None or bits not in CORRECTION_DTYPES:
        return None
    wanted = WeightStorage(stored.weight_dtype, int(bits), int(group["format"] == "paper"))
    if wanted != stored and stored.bits in CORRECTION_DTYPES:
        correction = split_over(parameter.local, join(parameter.local, correction, stored), wanted)
    return correction, wanted


def _saved_state(
    parameter: Parameter, state: State, group: Group, compress: bool, corrections: bool = True
) -> State:
    """The saved state of a parameter. Tensors are the optimizer's own, not copies."""
    step = state["step"]
    # torch.optim keeps counts on the CPU and moves them to the weights itself where needed.
    saved: State = {"step": step if compress else step.to("cpu", torch.float32)}
    for name, value in state.items():
        if isinstance(value, Moment):
            saved.update(_saved_moment(parameter, name, value, compress))
        elif is_foreign(name):
            saved[name] = value
    correction = _saved_correction(parameter, state, group) if corrections else None
    if correction is not None:
        bits, storage = correction
        if storage.paper and bits.dtype == torch.int16:
            bits = bits.view(storage.dtype)  # as in the authors' package
        saved[CORRECTION] = _like_parameter(parameter, bits)
    local = parameter.local
    if compress and not parameter.is_sharded and local.numel() and strides_of(local) != row_major(local):
        saved[STRIDES] = integers(local.stride())
    return saved


def _name_of_weights(dtypes: set[torch.dtype]) -> str | None:
    """The single 16-bit dtype of a group's weights; float32 if it has none, None if it has both."""
    narrow = dtypes - {torch.float32} or {torch.float32}
    return str(narrow.pop()).removeprefix("torch.") if len(narrow) == 1 else None


def state_dict(states: States, compress: bool, plain: bool = False) -> StateDict:
    """The state dict of an optimizer. `plain` leaves out options that torch.optim does not know."""
    states.follow_groups()
    numbers: dict[torch.Tensor, int] = {}
    groups = []
    for group in states.groups:
        for tensor in group["params"]:
            numbers.setdefault(tensor, len(numbers))
        # Every key of the group, because torch unflattens state dicts by these keys. `fused` is None, because
        # True would make torch's loading cast step counts to fp32.
        packed = {key: value for key, value in group.items() if key != "params"} | {"fused": None}
        if plain:
            packed = {key: value for key, value in packed.items() if key not in _OURS}
        else:
            packed["master_bytewidth"] = int(group["master_weight_bits"] or 0) // 8
        groups.append(packed | {"params": [numbers[tensor] for tensor in group["params"]]})
    entries = {}
    for group, packed in zip(states.groups, groups, strict=True):
        dtypes = set()
        for tensor in group["params"]:
            dtype, number = tensor.dtype, numbers[tensor]
            state = states.state.get(tensor)
            if state and all(map(is_foreign, state.keys())):
                entries[number] = dict(state)
            elif state:
                parameter = states.prepare(tensor, group, writes=False)
                entries[number] = _saved_state(parameter, states.state[tensor], group, compress, not plain)
                if CORRECTION in entries[number] and parameter.stored_as is not None:
                    dtype = parameter.stored_as.dtype
            dtypes.add(dtype)
        if not plain:
            packed["weight_dtype"] = _name_of_weights(dtypes)
    return {"state": entries, "param_groups": groups}


# Loading

# Options of this optimizer that a state dict does not change.
_KEPT = (*STORAGE_OPTIONS, "check_gradients", "accumulate_fp32", "fused")
# Entries of saved groups that describe their states, or options of another rule of torch.
_OF_FILES = ("params", "master_bytewidth", "weight_dtype", "decoupled_weight_decay")


def checked_whole(given: Any) -> dict[str, Any]:  # noqa: ANN401
    """A copy of a state dict, after checking the types of its states and parameter groups.

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


def _check_parameters_of(groups: list[Group], saved: list[Group]) -> None:
    """Refuses a different number of groups or parameters.

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


def _saved_numbers(group: Group, saved: Group) -> list[int | str]:
    """The number in the state dict of each parameter of the group: by name where both have the same names,
    else by place.

    torch.distributed.checkpoint has names there, in this optimizer's order.
    """
    names, saved_names = group.get("param_names") or [], saved.get("param_names") or []
    numbers = list(saved["params"])
    if any(isinstance(number, str) for number in numbers):
        return numbers
    if sorted(names) != sorted(saved_names) or len(names) != len(numbers):
        return numbers
    by_name = dict(zip(saved_names, numbers, strict=True))
    return [by_name[name] for name in names]


def _merged_group(rule: Rule, group: Group, saved: Group) -> Group:
    """The group after loading: hyperparameters of the state dict, storage options of this optimizer.

    Raises:
        ValueError: for a value that cannot be copied or is out of range, also of an option that is kept.
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
    for argument, numbers in rule.arguments.items():
        if len(numbers) > 1 and isinstance(merged.get(argument), list):
            merged[argument] = tuple(merged[argument])
    check_group(rule, merged)
    check_group(rule, merged | {key: saved[key] for key in _KEPT if key in saved})
    return merged


def _differs(saved: Saved, group: Group) -> bool:
    if saved.format is None:
        return False
    narrow = any(tensor.dtype != torch.float32 for tensor in group["params"])
    other_bits = narrow and saved.bits != (group["master_weight_bits"] or 0)
    return saved.format != group["format"] or other_bits


def load_state_dict(states: States, given: StateDict) -> None:
    """Loads a state dict from `checked_whole`. Everything is checked before anything changes.

    Raises:
        ValueError: for what does not fit.
    """
    saved_states, saved_groups = given["state"], given["param_groups"]
    _check_parameters_of(states.groups, saved_groups)
    merged = [_merged_group(states.rule, *pair) for pair in zip(states.groups, saved_groups, strict=True)]
    restored: dict[torch.Tensor, State] = {}
    storages: dict[Parameter, WeightStorage] = {}
    taken = set()
    conversions: dict[str, None] = {}
    for group, saved_group in zip(merged, saved_groups, strict=True):
        storage = saved_storage(saved_group)
        for tensor, number in zip(group["params"], _saved_numbers(group, saved_group), strict=True):
            taken.add(number)
            raw = saved_states.get(number, {})
            if not isinstance(raw, dict):
                name = states.name_of(tensor)
                raise ValueError(f"{name}: its state is {type(raw).__name__}; it must be a dict")
            raw = without_empty(raw)
            if all(map(is_foreign, raw)):  # a parameter that was never stepped
                if raw:
                    entries = foreign_entries(raw, local_of(tensor).device, states.name_of(tensor))
                    restored[tensor] = LiveState(entries)
                continue
            parameter = states.look_at(tensor)
            restored[tensor], storages[parameter] = restore(parameter, raw, storage, states.rule, group)
            if _differs(storage, group):
                now = Saved(group["format"], group["master_weight_bits"] or 0)
                conversions[f"from {storage} to {now}"] = None
    unknown = [str(number) for number in saved_states if number not in taken]
    if unknown:
        raise ValueError(f"the state dict has state of parameters that no group has: {', '.join(unknown)}")
    _apply(states, merged, restored, storages)
    if conversions:
        warnings.warn(f"the loaded optimizer state was converted {', and '.join(conversions)}", stacklevel=4)


def _apply(
    states: States,
    merged: list[Group],
    restored: dict[torch.Tensor, State],
    storages: dict[Parameter, WeightStorage],
) -> None:
    # In place, because hooks and schedulers hold references to the groups.
    for group, changed in zip(states.groups, merged, strict=True):
        lr = group["lr"]
        if isinstance(lr, torch.Tensor):  # captured CUDA graphs read this tensor
            changed["lr"] = lr.fill_(float(changed["lr"]))
        group.clear()
        group.update(changed)
    # In place, because wrappers of the optimizer hold references to this mapping.
    states.state.clear()
    states.state.update(restored)
    states.forget()
    for parameter, stored_as in storages.items():
        states.kept.parameters[parameter.tensor] = parameter
        parameter.stored_as = stored_as
