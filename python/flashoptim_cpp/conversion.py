"""Brings the state of a parameter into the storage that its group asks for, and reads the states of files."""

from typing import Any, NamedTuple

import torch

from . import _operators as ops
from . import element_scales
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
from .live_state import QUANTIZED, SCALES, STRIDES, LiveState
from .moment import Moment
from .options import DTYPES_BY_NAME, FORMATS, WEIGHT_DTYPES, Group, Rule, Storage, check_format
from .parameter import Parameter, Plan, State, integers, plan_of, row_major, strides_of
from .sharding import is_sharded, local_like, slice_of


class Saved(NamedTuple):
    """How the states of a saved parameter group are stored."""

    format: str | None  # None: plain tensors, as torch.optim writes them
    bits: int  # 0: no correction
    group: Group

    @property
    def weight_dtype(self) -> torch.dtype | None:
        """The dtype of its 16-bit weights, fp32 if it has none; None if it is not said, or if it has both."""
        return DTYPES_BY_NAME.get(str(self.group.get("weight_dtype")))

    def __str__(self) -> str:
        return f'format "{self.format}", master_weight_bits={self.bits or None}'


def saved_storage(group: Group) -> Saved:
    """Reads how a group of a state dict was stored: ours, the authors', or torch's own.

    Raises:
        ValueError: for a format that is not known.
    """
    if "format" in group:
        check_format(group["format"])
        return Saved(group["format"], int(group.get("master_weight_bits") or 0), group)
    if "master_bytewidth" in group:
        return Saved("paper", 8 * int(group["master_bytewidth"] or 0), group)
    return Saved(None, 0, group)


def wants_moments(rule: Rule, group: Group) -> bool:
    """Whether a state of this group has moments."""
    return not rule.is_sgd or group["momentum"] != 0


def is_raw(state: State, rule: Rule) -> bool:
    """Whether somebody put a state there in the form of a state dict."""
    return any(
        name + QUANTIZED in state or isinstance(state.get(name), torch.Tensor) for name in rule.moments
    )


def fit(parameter: Parameter, state: State, rule: Rule, group: Group, writes: bool = True) -> None:
    """Makes what is missing in a live state, and converts what is stored in another way than its group says.

    The full-precision value of a weight that was cast is written into the weight, unless `writes` is False: then its correction
    stays one of the former dtype, in the width and format that the group asks for.

    Raises:
        ValueError: for what does not fit; the state is as it was.
    """
    plan = plan_of(rule, group, parameter.layout, parameter.local.dtype, parameter.name)
    if is_raw(state, rule):
        restored, parameter.stored_as = restore(parameter, state, saved_storage(group), rule, group)
        state.clear()
        state.update(restored)
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
    correction = _fitting_correction(parameter, state, group, plan, writes)
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


def _fitting_correction(
    parameter: Parameter, state: State, group: Group, plan: Plan, writes: bool
) -> torch.Tensor | None:
    """The correction of the weight as it is to be stored now, or None; the parameter knows what it belongs to."""
    correction, former = correction_in(state), parameter.stored_as or plan.weight_storage
    now = plan.weight_storage
    if correction is not None and former.bits in CORRECTION_DTYPES:
        _check_correction(parameter, correction, former)
        bits = group["master_weight_bits"]
        if former.weight_dtype != now.weight_dtype and bits in CORRECTION_DTYPES and not writes:
            now = WeightStorage(former.weight_dtype, bits, int(group["format"] == "paper"))
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


def step_count(value: Any, name: str) -> int:  # noqa: ANN401
    """A step count as it stands in a state.

    Raises:
        ValueError: if it is not an integer of at least 0.
    """
    is_number = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float)
    number = float(value) if is_number else -1.0
    if not number >= 0.0 or number != int(number):
        raise ValueError(f"{name}: step is {value}; it must be one integer of at least 0")
    return int(number)


def restore(
    parameter: Parameter, raw: State, saved: Saved, rule: Rule, group: Group
) -> tuple[State, WeightStorage]:
    """The state of a parameter from what a state dict holds of it, in tensors of its own.

    Its correction is as it was saved, since the weight that it belongs to may come later. What it belongs to is returned too.

    Raises:
        ValueError: that names the key and what is wrong with it; nothing has changed.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{parameter.name}: its state is {type(raw).__name__}; it must be a dict")
    plan = plan_of(rule, group, parameter.layout, parameter.local.dtype, parameter.name)
    reader = _Reader(parameter, raw, saved, rule)
    state: State = LiveState()
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


class _Reader:
    """Reads and checks the entries of one parameter of a state dict."""

    def __init__(self, parameter: Parameter, raw: State, saved: Saved, rule: Rule) -> None:
        self.parameter, self.raw, self.saved, self.rule = parameter, raw, saved, rule
        if "max_exp_avg_sq" in raw:
            raise ValueError(
                f"{parameter.name}: its state has max_exp_avg_sq, that of amsgrad, which is not supported; "
                "delete these entries to go on without it"
            )
        known = {"step", "error_bits", STRIDES}
        known |= {name + suffix for name in rule.moments for suffix in ("", QUANTIZED, SCALES)}
        unknown = sorted(map(str, set(raw) - known))
        if unknown:
            raise ValueError(f"{parameter.name}: its state has unknown keys: {', '.join(unknown)}")
        self.order, self.layout = self._saved_order()

    def _saved_order(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A tensor that lies as the parameter lay when it was saved, and its layout."""
        local = self.parameter.local
        if STRIDES in self.raw:
            strides = [int(n) for n in self.raw[STRIDES]]
        elif is_sharded(self.parameter.tensor):
            return local, self.parameter.layout
        else:
            strides = list(row_major(local))
        if strides == list(local.stride()) or local.numel() == 0:
            return local, self.parameter.layout
        shape = tuple(local.shape)
        if len(strides) != len(shape):
            raise ValueError(
                f"{self.parameter.name}: {STRIDES} is {strides} for a parameter of shape {shape}"
            )
        layout = ops.layout(shape, strides, shape, strides, (0,) * len(shape))
        return torch.empty_strided(shape, strides, dtype=torch.int8, device=local.device), layout

    def _tensor(self, key: str, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
        value = self.raw.get(key)
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{self.parameter.name}: {key} is missing in its state")
        if value.dtype not in dtypes:
            raise ValueError(
                f"{self.parameter.name}: {key} is {value.dtype}; it must be {' or '.join(map(str, dtypes))}"
            )
        return value.detach()

    def _elements(self, key: str, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
        """A tensor of the parameter's shape: this rank's part, a copy that lies as it did when it was saved."""
        return self._part(key, self._tensor(key, dtypes))

    def _part(self, key: str, whole: torch.Tensor) -> torch.Tensor:
        tensor = self.parameter.tensor
        value = local_like(whole, tensor)
        shape = self.parameter.local.shape
        if value.shape != shape and is_sharded(tensor) and value.shape == tensor.shape:
            value = slice_of(value, tensor)
        if value.shape != shape:
            raise ValueError(
                f"{self.parameter.name}: {key} has the shape {tuple(value.shape)}; it must be {tuple(shape)}"
            )
        return torch.empty_like(self.order, dtype=value.dtype, device=self.parameter.local.device).copy_(
            value
        )

    def moment(self, kind: int, name: str) -> Moment | None:
        """The moment as it was saved, or None."""
        if name + QUANTIZED in self.raw or name + SCALES in self.raw:
            if self.raw.get(name) is not None:
                raise ValueError(f"{self.parameter.name}: its state has {name} both quantized and not")
            return self._quantized(kind, name)
        if self.raw.get(name) is None:
            return None
        values = self._elements(name, (torch.float32, torch.bfloat16, torch.float16, torch.float64)).float()
        moment = Moment.encode(values, self.layout, kind, Storage.FP32)
        self._check(moment, name)
        return moment

    def _quantized(self, kind: int, name: str) -> Moment:
        if self.saved.format not in ("native", "paper"):
            raise ValueError(
                f"{self.parameter.name}: {name} is quantized, and its group does not name a format"
            )
        storage = FORMATS[self.saved.format]
        codes = self._elements(name + QUANTIZED, (torch.uint8 if kind else torch.int8,))
        scales = self._saved_scales(name + SCALES, storage)
        by_element = self._by_element(name + SCALES, scales) if storage == Storage.PAPER else None
        if by_element is None:
            flat = self._flat_scales(name + SCALES, scales, storage)
        else:
            groups = element_scales.of_groups(by_element)
            if groups is None:  # cut otherwise
                values = element_scales.decode(
                    codes, by_element, kind, lambda moment: self._check(moment, name)
                )
                return Moment.encode(values, self.layout, kind, Storage.FP32)
            flat = groups
        moment = Moment(codes, flat, self.layout, kind, storage)
        self._check(moment, name)
        return moment

    def _saved_scales(self, key: str, storage: Storage) -> torch.Tensor:
        if storage == Storage.NATIVE:
            return self._tensor(key, (torch.bfloat16,))
        # The bytes of fp16 scales are saved as bf16 beside bf16 weights, as the authors' package does.
        return self._tensor(key, (torch.float16, torch.bfloat16))

    def _by_element(self, key: str, scales: torch.Tensor) -> torch.Tensor | None:
        """The scale of each element of this rank's part, or None where there are scales of its groups."""
        tensor = self.parameter.tensor
        if scales.shape != tensor.shape:
            *_, whole_row_length, _, _, is_vector = self.layout.tolist()
            in_rows = whole_row_length % element_scales.GROUP == 0 and not is_vector
            if (
                not is_sharded(tensor)
                or in_rows
                or scales.numel() != -(-tensor.numel() // element_scales.GROUP)
            ):
                return None
            # The groups run over the whole tensor: it was saved by one that had it whole.
            if is_sharded(scales):
                scales = scales.full_tensor()  # type: ignore[attr-defined]
            whole = torch.empty(tensor.shape, dtype=torch.int8, device=scales.device)
            scales = element_scales.repeated(scales.reshape(-1), whole)
        return self._part(key, scales).view(torch.float16)

    def _flat_scales(self, key: str, scales: torch.Tensor, storage: Storage) -> torch.Tensor:
        groups = self._groups(storage)
        if is_sharded(scales):
            scales = local_like(scales, self.parameter.tensor)
        elif scales.numel() != groups and is_sharded(self.parameter.tensor):
            scales = self._part_of_scales(scales)
        if scales.numel() != groups:
            raise ValueError(
                f"{self.parameter.name}: {key} has {scales.numel()} scales; it must have {groups}"
            )
        scales = scales.to(self.parameter.local.device).reshape(-1).clone()
        return scales.view(torch.float16) if storage == Storage.PAPER else scales

    def _groups(self, storage: Storage) -> int:
        numel, rows, row_length, *_ = self.layout.tolist()
        if storage == Storage.PAPER:
            return -(-numel // 32)
        return rows * -(-row_length // 32)

    def _part_of_scales(self, scales: torch.Tensor) -> torch.Tensor:
        """This rank's rows and columns of the scales of a whole tensor."""
        _, rows, row_length, _, whole_row_length, row, column, _ = self.layout.tolist()
        per_row = -(-whole_row_length // 32)
        if scales.numel() % per_row != 0:
            return scales
        first = column // 32
        return scales.reshape(-1, per_row)[row : row + rows, first : first + -(-row_length // 32)]

    def _check(self, moment: Moment, name: str) -> None:
        """Whether a step could have written this."""
        base: Group = dict(
            min_quantized_numel=0, min_quantized_numel_1d=0, master_weight_bits=None, momentum=1.0
        )
        base["format"] = self.saved.format or "native"
        base["quantize"] = moment.is_quantized()
        if moment.storage == Storage.FP32 and base["format"] == "native":
            base["format"] = "fp32"
        plan = integers(plan_of(self.rule, base, moment.layout, torch.float32, name))
        try:
            ops.check_moment(moment.codes, moment.scales, moment.layout, plan, moment.kind)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.parameter.name}: {name}: {error}") from None

    def correction(self, plan: Plan) -> tuple[torch.Tensor | None, WeightStorage]:
        """The correction as it was saved, and what it belongs to."""
        bits, weight = self.saved.bits, self.parameter.local.dtype
        is_narrow = plan.weight_dtype != 0
        if self.raw.get("error_bits") is None:
            if bits in CORRECTION_DTYPES and is_narrow and self.saved.weight_dtype != torch.float32:
                raise ValueError(f"{self.parameter.name}: error_bits is missing in its state")
            return None, plan.weight_storage
        if bits not in CORRECTION_DTYPES:
            raise ValueError(
                f"{self.parameter.name}: its state has error_bits, and its group master_weight_bits={bits or None}"
            )
        wanted = CORRECTION_DTYPES[bits]
        is_paper = self.saved.format == "paper"
        correction = self._elements("error_bits", (wanted, *WEIGHT_DTYPES[1:]))
        saved_dtype = self.saved.weight_dtype
        if saved_dtype not in WEIGHT_DTYPES[1:]:
            saved_dtype = weight if is_narrow else torch.bfloat16
        if (
            correction.dtype != wanted
        ):  # torch casts what it loads to the weight's dtype; paper's 16 bits are a view
            saved_dtype = correction.dtype
            correction = (
                correction.view(wanted) if is_paper and bits == 32 else self._rounded(correction, wanted)
            )
        return correction, WeightStorage(WEIGHT_DTYPES.index(saved_dtype), bits, int(is_paper))

    def _rounded(self, correction: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Integers that were cast to a floating dtype, as integers again."""
        largest = torch.iinfo(dtype).max
        values = correction.float()
        if not bool(((values.abs() <= largest + 1) & (values == values.round())).all()):
            raise ValueError(
                f"{self.parameter.name}: error_bits is not integers of {torch.iinfo(dtype).bits} bits"
            )
        return values.clamp(-largest, largest).to(dtype)
