"""State dicts: what is written, and how one is taken in whole or not at all."""

import warnings
from typing import TYPE_CHECKING, Any

import torch

from . import element_scales
from .conversion import foreign_entries, restore, saved_correction
from .corrections import CORRECTION, WeightStorage
from .live_state import QUANTIZED, SCALES, STRIDES, LiveState, without_empty
from .moment import Moment, scales_shape
from .options import STORAGE_OPTIONS, Group, Storage
from .parameter import Parameter, State, integers, row_major, strides_of
from .reading import Saved, is_foreign, saved_storage
from .saved_groups import check_parameters_of, checked_whole, merged_group, saved_numbers
from .sharding import local_of, place_of, wrap

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer

StateDict = dict[str, Any]

# Options that torch's own optimizers do not know.
_OURS = (*STORAGE_OPTIONS, "check_gradients", "accumulate_fp32", "nonfinite", "decouple_lr")


def _saved_scales(parameter: Parameter, moment: Moment) -> torch.Tensor:
    """The scales as they are written: in a shape that can be cut as the parameter is."""
    tensor, scales = parameter.tensor, moment.scales
    numel, rows, row_length, whole_numel, whole_row_length, _, _, is_vector = moment.layout.tolist()
    in_rows = moment.storage == Storage.NATIVE or (whole_row_length % 32 == 0 and not is_vector)
    is_row_major = strides_of(parameter.local) == row_major(parameter.local)
    if moment.storage == Storage.PAPER and parameter.local.dtype == torch.bfloat16:
        scales = scales.view(torch.bfloat16)  # so that the authors' package reads the same bytes
    if not parameter.is_sharded:
        if not in_rows or not is_row_major or numel == 0:
            return scales
        return scales.view(scales_shape(tensor.shape, rows, -(-row_length // 32)))
    if not in_rows:
        return wrap(element_scales.repeated(scales, parameter.local), tensor)
    whole_rows = 1 if is_vector else whole_numel // max(1, whole_row_length)
    whole = scales_shape(tensor.shape, whole_rows, -(-whole_row_length // 32))
    part = scales_shape(tensor.shape, rows, -(-row_length // 32))
    if numel == 0:
        part = tuple(0 if n == 0 else size for n, size in zip(parameter.local.shape, part, strict=True))
    wrapped = wrap(scales.view(part), tensor, whole)
    if place_of(wrapped)[0] != part and numel > 0:
        raise ValueError(
            f"{parameter.name}: its scales cannot be cut as {tensor.placements} cuts it; "  # type: ignore[attr-defined]
            "construct the optimizer with compress_state_dict=False"
        )
    return wrapped


def _like_parameter(parameter: Parameter, value: torch.Tensor) -> torch.Tensor:
    return wrap(value, parameter.tensor) if parameter.is_sharded else value


def _saved_moment(parameter: Parameter, name: str, moment: Moment, compress: bool) -> State:
    if not compress or not moment.is_quantized():
        return {name: _like_parameter(parameter, moment.materialize())}
    codes = _like_parameter(parameter, moment.codes)
    return {name + QUANTIZED: codes, name + SCALES: _saved_scales(parameter, moment)}


def saved_state(
    parameter: Parameter, state: State, group: Group, compress: bool, corrections: bool = True
) -> State:
    """What a state dict holds of a parameter. Tensors are the optimizer's own, not copies."""
    step = state["step"]
    # torch.optim keeps counts on the CPU, and brings them to the weights itself where it wants them there.
    saved: State = {"step": step if compress else step.to("cpu", torch.float32)}
    for name, value in state.items():
        if isinstance(value, Moment):
            saved.update(_saved_moment(parameter, name, value, compress))
        elif is_foreign(name):
            saved[name] = value
    correction = saved_correction(parameter, state, group) if corrections else None
    if correction is not None:
        bits, storage = correction
        if storage.paper and bits.dtype == torch.int16:
            bits = bits.view(storage.dtype)  # as the authors' package writes it
        saved[CORRECTION] = _like_parameter(parameter, bits)
    local = parameter.local
    if compress and not parameter.is_sharded and local.numel() and strides_of(local) != row_major(local):
        saved[STRIDES] = integers(local.stride())
    return saved


def _name_of_weights(dtypes: set[torch.dtype]) -> str | None:
    """What the corrections of a group belong to: its one 16-bit dtype; float32 where it has none, None where it has both."""
    narrow = dtypes - {torch.float32} or {torch.float32}
    return str(narrow.pop()).removeprefix("torch.") if len(narrow) == 1 else None


def state_dict(optimizer: "FlashOptimizer", compress: bool, plain: bool = False) -> StateDict:
    """The state dict, hooks included. `plain` leaves out what torch's own optimizers do not know."""
    for before in optimizer._optimizer_state_dict_pre_hooks.values():
        before(optimizer)
    optimizer._follow_groups()
    numbers: dict[torch.Tensor, int] = {}
    groups = []
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            numbers.setdefault(tensor, len(numbers))
        # Every key of the group, as torch takes a flattened state dict apart by them. True would make torch's loading cast step
        # counts to fp32.
        packed = {key: value for key, value in group.items() if key != "params"} | {"fused": None}
        if plain:
            packed = {key: value for key, value in packed.items() if key not in _OURS}
        else:
            packed["master_bytewidth"] = int(group["master_weight_bits"] or 0) // 8
        groups.append(packed | {"params": [numbers[tensor] for tensor in group["params"]]})
    states = {}
    for group, packed in zip(optimizer.param_groups, groups, strict=True):
        dtypes = set()
        for tensor in group["params"]:
            dtype = tensor.dtype
            state = optimizer.state.get(tensor)
            if state and all(map(is_foreign, state.keys())):
                states[numbers[tensor]] = dict(state)
            elif state:
                parameter = optimizer._prepare(tensor, group, writes=False)
                states[numbers[tensor]] = saved_state(
                    parameter, optimizer.state[tensor], group, compress, not plain
                )
                if CORRECTION in states[numbers[tensor]] and parameter.stored_as is not None:
                    dtype = parameter.stored_as.dtype
            dtypes.add(dtype)
        if not plain:
            packed["weight_dtype"] = _name_of_weights(dtypes)
    result: StateDict = {"state": states, "param_groups": groups}
    for after in optimizer._optimizer_state_dict_post_hooks.values():
        changed = after(optimizer, result)
        result = result if changed is None else changed
    return result


def _differs(saved: Saved, group: Group) -> bool:
    if saved.format is None:
        return False
    narrow = any(tensor.dtype != torch.float32 for tensor in group["params"])
    other_bits = narrow and saved.bits != (group["master_weight_bits"] or 0)
    return saved.format != group["format"] or other_bits


def load_state_dict(optimizer: "FlashOptimizer", given: StateDict) -> None:
    """Takes in a state dict. Everything is read and checked before anything changes.

    Raises:
        ValueError: for what does not fit.
    """
    optimizer._follow_groups()
    given = checked_whole(given)
    for before in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = before(optimizer, given)
        given = given if changed is None else checked_whole(changed)
    saved_states, saved_groups = given["state"], given["param_groups"]
    check_parameters_of(optimizer.param_groups, saved_groups)
    merged = [
        merged_group(optimizer.rule, *pair) for pair in zip(optimizer.param_groups, saved_groups, strict=True)
    ]
    states: dict[torch.Tensor, State] = {}
    storages: dict[Parameter, WeightStorage] = {}
    taken = set()
    conversions: dict[str, None] = {}
    for group, saved_group in zip(merged, saved_groups, strict=True):
        storage = saved_storage(saved_group)
        for tensor, number in zip(group["params"], saved_numbers(group, saved_group), strict=True):
            taken.add(number)
            raw = saved_states.get(number, {})
            if not isinstance(raw, dict):
                name = optimizer._name_of(tensor)
                raise ValueError(f"{name}: its state is {type(raw).__name__}; it must be a dict")
            raw = without_empty(raw)
            if all(map(is_foreign, raw)):  # nothing, or what others keep of one that was never stepped
                if raw:
                    entries = foreign_entries(raw, local_of(tensor).device, optimizer._name_of(tensor))
                    states[tensor] = LiveState(entries)
                continue
            parameter = optimizer._look_at(tensor)
            states[tensor], storages[parameter] = restore(parameter, raw, storage, optimizer.rule, group)
            if _differs(storage, group):
                now = Saved(group["format"], group["master_weight_bits"] or 0)
                conversions[f"from {storage} to {now}"] = None
    unknown = [str(number) for number in saved_states if number not in taken]
    if unknown:
        raise ValueError(f"the state dict has state of parameters that no group has: {', '.join(unknown)}")
    _apply(optimizer, merged, states, storages)
    if conversions:
        warnings.warn(f"the loaded optimizer state was converted {', and '.join(conversions)}", stacklevel=4)
    for after in optimizer._optimizer_load_state_dict_post_hooks.values():
        after(optimizer)


def _apply(
    optimizer: "FlashOptimizer",
    merged: list[Group],
    states: dict[torch.Tensor, State],
    storages: dict[Parameter, WeightStorage],
) -> None:
    # In place: hooks and schedulers keep their groups.
    for group, changed in zip(optimizer.param_groups, merged, strict=True):
        lr = group["lr"]
        if isinstance(lr, torch.Tensor):  # graphs that were captured with it go on reading it
            changed["lr"] = lr.fill_(float(changed["lr"]))
        group.clear()
        group.update(changed)
    # In place, too: whatever wraps the optimizer has this very mapping.
    optimizer.state.clear()
    optimizer.state.update(states)
    optimizer._forget()
    for parameter, stored_as in storages.items():
        optimizer._parameters[parameter.tensor] = parameter
        parameter.stored_as = stored_as
