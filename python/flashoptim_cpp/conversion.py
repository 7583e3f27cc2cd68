"""Brings the state of a parameter, live or from a state dict, into the storage that its group asks for."""

import copy
from collections import OrderedDict
from typing import Any

import torch

from .corrections import (
    CORRECTION,
    CORRECTION_DTYPES,
    FORMER,
    WeightStorage,
    correction_in,
    join,
    ordered,
    split_over,
)
from .live_state import QUANTIZED, LiveState
from .memory import has_memory
from .moment import Moment
from .options import Group, Rule, shown
from .parameter import Parameter, Plan, State, plan_of, strides_of
from .reading import Reader, Saved, check_names, is_foreign, saved_storage, step_count
from .sharding import local_of


def wants_moments(rule: Rule, group: Group) -> bool:
    """Whether a state of this group has moments."""
    return not rule.is_sgd or group["momentum"] != 0


def is_raw(state: State, rule: Rule) -> bool:
    """Whether somebody put a state there in the form of a state dict."""
    correction = state.get(CORRECTION)
    return (isinstance(correction, torch.Tensor) and correction.is_floating_point()) or any(
        name + QUANTIZED in state or isinstance(state.get(name), torch.Tensor) for name in rule.moments
    )


def fit(parameter: Parameter, state: State, rule: Rule, group: Group, writes: bool = True) -> None:
    """Makes what is missing in a live state, and converts what is stored in another way than its group says.

    The full-precision value of a weight that was cast is written into the weight. Unless `writes` is True a correction stays as
    it is: reading must not convert it, as the weight that it belongs to may still come.

    Raises:
        ValueError: for what does not fit; the state is as it was.
    """
    plan = plan_of(rule, group, parameter.layout, parameter.local.dtype, parameter.name)
    if is_raw(state, rule):
        restored, parameter.stored_as = restore(parameter, state, saved_storage(group), rule, group)
        state.clear()
        state.update(restored)
    check_names(state.keys() - {FORMER}, rule, parameter.name)
    fitted: State = {}
    step = state.get("step", 0)
    if not isinstance(step, torch.Tensor):
        fitted["step"] = _counter(step_count(step, parameter.name), parameter)
    elif step.device != parameter.local.device:
        fitted["step"] = step.to(parameter.local.device)
    if wants_moments(rule, group):
        for kind, name in enumerate(rule.moments):
            moment = state.get(name)
            if moment is None:
                fitted[name] = parameter.moment_like(kind, plan, step_count(step, parameter.name))
            else:
                fitted[name] = _fitting(moment, parameter, plan)
    correction = correction_in(state)
    is_pending = correction is not None and parameter.stored_as not in (None, plan.weight_storage)
    if correction is None or writes or not is_pending:
        correction = _fitting_correction(parameter, state, plan)
    elif parameter.stored_as is not None and parameter.stored_as.bits in CORRECTION_DTYPES:
        _check_correction(parameter, correction, parameter.stored_as)
        correction = ordered(correction, parameter.local)
    state.pop(CORRECTION, None)
    state.pop(FORMER, None)
    if correction is not None:
        is_former = parameter.stored_as is not None and parameter.stored_as.weight_dtype != plan.weight_dtype
        fitted[FORMER if is_former else CORRECTION] = correction
    state.update(fitted)
    parameter.plan = plan


def _fitting(moment: Moment, parameter: Parameter, plan: Plan) -> Moment:
    local = parameter.local
    if moment.device != local.device:
        moment = moment.to(local.device)
    if moment.shape != tuple(local.shape):
        raise ValueError(
            f"{parameter.name}: a moment of shape {moment.shape} in its state; {tuple(local.shape)} fits"
        )
    if moment.storage == plan.storage and strides_of(moment.codes) == strides_of(local):
        return moment
    return moment.stored_as(local, parameter.layout, plan.storage)


def saved_correction(
    parameter: Parameter, state: State, group: Group
) -> tuple[torch.Tensor, WeightStorage] | None:
    """The correction as the group asks for it, of the dtype that its weight had when it was made; the state stays as it is."""
    correction, stored, bits = correction_in(state), parameter.stored_as, group["master_weight_bits"]
    if correction is None or stored is None or bits not in CORRECTION_DTYPES:
        return None
    wanted = WeightStorage(stored.weight_dtype, int(bits), int(group["format"] == "paper"))
    if wanted != stored and stored.bits in CORRECTION_DTYPES:
        correction = split_over(parameter.local, join(parameter.local, correction, stored), wanted)
    return correction, wanted


def _fitting_correction(parameter: Parameter, state: State, plan: Plan) -> torch.Tensor | None:
    """The correction of the weight as it is to be stored now, or None; the parameter knows what it belongs to."""
    correction, former = correction_in(state), parameter.stored_as or plan.weight_storage
    now = plan.weight_storage
    if correction is not None and former.bits in CORRECTION_DTYPES:
        _check_correction(parameter, correction, former)
    else:
        correction = None
    if correction is not None and former.weight_dtype != now.weight_dtype:
        correction = parameter.split(join(parameter.local, correction, former), plan)
    elif correction is not None and former != now and now.bits in CORRECTION_DTYPES:
        correction = split_over(parameter.local, join(parameter.local, correction, former), now)
    parameter.stored_as = now
    if now.bits not in CORRECTION_DTYPES:
        return None
    if correction is None or correction.numel() == 0:  # of no rows there is no correction
        dtype = CORRECTION_DTYPES[now.bits]
        return torch.zeros_like(parameter.local, dtype=dtype, requires_grad=False)
    return ordered(correction, parameter.local)


def _check_correction(parameter: Parameter, correction: torch.Tensor, storage: WeightStorage) -> None:
    wanted, shape = CORRECTION_DTYPES[storage.bits], parameter.local.shape
    if correction.dtype != wanted or correction.shape != shape:
        raise ValueError(
            f"{parameter.name}: error_bits is {correction.dtype} of shape {tuple(correction.shape)}; "
            f"master_weight_bits={storage.bits} needs {wanted} of shape {tuple(shape)}"
        )


def _counter(steps: int, parameter: Parameter) -> torch.Tensor:
    return parameter.local.detach().new_full((), steps, dtype=torch.int64)


def _copied(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    if isinstance(value, torch.Tensor):
        if not has_memory(local_of(value)):
            raise ValueError("its memory was freed")
        return value.detach().to(device, copy=True)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copied(inner, device)) for key, inner in value.items())
    if type(value) in (list, tuple):
        return type(value)(_copied(inner, device) for inner in value)
    return copy.deepcopy(value)


def foreign_entries(raw: State, device: torch.device, name: str) -> State:
    """What somebody else keeps in a state, in tensors of its own: on the parameter's device, as torch does it, else as it is.

    Raises:
        ValueError: for what cannot be copied.
    """
    entries = {}
    for key in filter(is_foreign, raw):
        try:
            entries[key] = _copied(raw[key], device)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a tensor on `meta`, a dict that holds itself, a generator, what its own __deepcopy__ says
            raise ValueError(f"{name}: {key} in its state cannot be copied: {shown(error)}") from None
    return entries


def restore(
    parameter: Parameter, raw: State, saved: Saved, rule: Rule, group: Group
) -> tuple[State, WeightStorage]:
    """The state of a parameter from what a state dict holds of it, in tensors of its own.

    Its correction is as it was saved, since the weight that it belongs to may come later. What it belongs to is returned too.

    Raises:
        ValueError: that names the key and what is wrong with it; nothing has changed.
    """
    plan = plan_of(rule, group, parameter.layout, parameter.local.dtype, parameter.name)
    reader = Reader(parameter, raw, saved, rule)
    state: State = LiveState(foreign_entries(raw, parameter.local.device, parameter.name))
    if "step" not in raw and rule.is_adam:
        raise ValueError(f"{parameter.name}: step is missing in its state; Adam's bias corrections need it")
    steps = step_count(raw.get("step", 0), parameter.name)
    state["step"] = _counter(steps, parameter)
    for kind, name in enumerate(rule.moments):
        moment = reader.moment(kind, name)
        if moment is not None:
            # A buffer that only a step without gradients has made is as good as none.
            is_filled = "step" not in raw or steps > 0 or bool(moment.codes.any())
            moment.unfilled_at = -1 if is_filled else steps
            state[name] = _fitting(moment, parameter, plan)
        elif not rule.is_sgd or (wants_moments(rule, group) and steps > 0 and saved.format is not None):
            raise ValueError(f"{parameter.name}: {name} is missing in its state")
        elif wants_moments(rule, group):
            state[name] = parameter.moment_like(kind, plan, steps)
    correction, stored_as = reader.correction(plan)
    if correction is not None:
        state[CORRECTION if stored_as.weight_dtype == plan.weight_dtype else FORMER] = correction
    return state, stored_as
