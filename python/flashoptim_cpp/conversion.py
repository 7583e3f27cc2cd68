"""Converts the state of a parameter, live or from a state dict, to the storage that its group asks for.

It reads state dicts of this package, of torch.optim and of the authors' package, and refuses values that no
step writes.
"""

import math
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

from . import _operators as ops
from ._rules import FORMATS, WEIGHT_DTYPES, Group, MomentTraits, Rule, Storage, shown
from .memory import has_memory
from .moment import (
    GROUP,
    Layout,
    Moment,
    codes_dtype,
    decode_by_element,
    scales_by_element,
    scales_by_group,
)
from .options import check_bits, check_format
from .parameter import (
    CORRECTION,
    CORRECTION_DTYPES,
    FORMER,
    QUANTIZED,
    SCALES,
    STRIDES,
    LiveState,
    Parameter,
    Plan,
    State,
    WeightStorage,
    check_names,
    correction_in,
    foreign_entries,
    integers,
    join,
    ordered,
    plan_of,
    row_major,
    split_over,
    strides_of,
)
from .sharding import is_sharded, local_like, local_of, slice_of

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MOST_STEPS = 2**63 - 1
_DTYPES_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in WEIGHT_DTYPES}


class Saved(NamedTuple):
    """How the states of a saved parameter group are stored."""

    format: str | None  # None: plain tensors, as torch.optim writes them
    bits: int  # 0: no correction
    # The dtype of its 16-bit weights; fp32 if it has none. None if the group does not say, or has both.
    weight_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        return f'format "{self.format}", master_weight_bits={self.bits or None}'


def saved_storage(group: Group) -> Saved:
    """Reads how the states of a saved group are stored (this package, the authors' package or torch.optim).

    Raises:
        ValueError: for a format, a number of bits or a dtype that is not known.
    """
    name, width = group.get("weight_dtype"), group.get("master_bytewidth")
    if not (name is None or (isinstance(name, str) and name in _DTYPES_BY_NAME)):
        raise ValueError(f"weight_dtype={shown(name)} is unknown; it must be one of {tuple(_DTYPES_BY_NAME)}")
    if isinstance(width, bool) or not (width is None or (isinstance(width, int) and width in (0, 2, 3, 4))):
        raise ValueError(f"master_bytewidth={shown(width)} is invalid; it must be 0, 2, 3 or 4")
    weight_dtype = None if name is None else _DTYPES_BY_NAME[name]
    if "format" in group:
        bits = group.get("master_weight_bits")
        check_format(group["format"])
        check_bits(bits, group["format"])
        return Saved(group["format"], int(bits or 0), weight_dtype)
    if "master_bytewidth" in group:
        return Saved("paper", 8 * (width or 0), weight_dtype)
    return Saved(None, 0, weight_dtype)


def step_count(value: Any, name: str) -> int:  # noqa: ANN401
    """The step count in a state. Integers are exact.

    Raises:
        ValueError: if it is not an integer of at least 0 and less than 2^63.
    """
    number = value
    if isinstance(value, torch.Tensor):
        check_is_dense(value, f"{name}: step")
        is_count = value.dtype in (torch.int64, torch.float32, torch.float64) and value.dim() == 0
        number = value.item() if is_count else None
    if isinstance(number, float) and math.isfinite(number) and number == int(number):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _MOST_STEPS:
        text = f"a tensor of {value.dtype}" if number is None and value is not None else shown(number)
        raise ValueError(f"{name}: step is {text}; it must be one integer of at least 0 and less than 2^63")
    return number


def check_is_dense(value: torch.Tensor, what: str) -> None:
    """Refuses tensors that are not dense in memory.

    Raises:
        ValueError: that says what kind of tensor it is.
    """
    kind = None
    if value.layout != torch.strided or value.is_nested:
        kind = "sparse or nested"
    elif value.is_quantized:
        kind = "a quantized tensor of torch"
    elif value.device.type == "meta" or isinstance(value, FakeTensor):
        kind = "without values (meta or fake)"
    elif not has_memory(local_of(value)):
        kind = "without memory: its storage was freed"
    if kind is not None:
        raise ValueError(f"{what} is {kind}; it must be an ordinary dense tensor")


class Reader:
    """Reads and checks the entries of one parameter of a state dict."""

    def __init__(self, parameter: Parameter, raw: State, saved: Saved, rule: Rule) -> None:
        self.parameter, self.raw, self.saved, self.rule = parameter, raw, saved, rule
        check_names(raw, rule, parameter.name)
        self.order, self.layout = self._saved_order()

    def _saved_order(self) -> tuple[torch.Tensor, torch.Tensor]:
        """An empty tensor in the memory order that the parameter had when it was saved, and its layout."""
        name, local = self.parameter.name, self.parameter.local
        shape = tuple(local.shape)
        if STRIDES in self.raw:
            given = self._tensor(STRIDES, (torch.int64,))
            strides = given.tolist() if given.dim() == 1 else []
            if len(strides) != len(shape) or any(stride < 0 for stride in strides):
                raise ValueError(
                    f"{name}: {STRIDES} is {shown(given.tolist())} for a parameter of shape {shape}"
                )
        elif is_sharded(self.parameter.tensor):
            return local, self.parameter.layout
        else:
            strides = list(row_major(local))
        if strides == list(local.stride()) or local.numel() == 0:
            return local, self.parameter.layout
        try:
            layout = ops.layout(shape, strides, shape, strides, (0,) * len(shape))
        except ValueError as error:
            raise ValueError(f"{name}: {STRIDES}: {error}") from None
        return torch.empty_strided(shape, strides, dtype=torch.int8, device=local.device), layout

    def _tensor(self, key: str, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
        what = f"{self.parameter.name}: {key}"
        if key not in self.raw:
            raise ValueError(f"{what} is missing in its state")
        value = self.raw[key]
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{what} is {type(value).__name__}; it must be a tensor")
        check_is_dense(value, what)
        if value.dtype not in dtypes:
            raise ValueError(
                f"{self.parameter.name}: {key} is {value.dtype}; it must be {' or '.join(map(str, dtypes))}"
            )
        return value.detach()

    def _elements(self, key: str, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
        """A tensor of the parameter's shape: this rank's part, copied, in the memory order that was saved."""
        return self._part(key, self._tensor(key, dtypes))

    def _part(self, key: str, whole: torch.Tensor) -> torch.Tensor:
        tensor, shape = self.parameter.tensor, self.parameter.local.shape
        wanted = (tensor.shape,) if is_sharded(whole) else (shape, tensor.shape)
        if whole.shape not in wanted:
            raise ValueError(
                f"{self.parameter.name}: {key} has the shape {tuple(whole.shape)}; it must be "
                f"{tuple(tensor.shape)}"
            )
        value = local_like(whole, tensor)
        if value.shape != shape:
            value = slice_of(value, tensor)
        return torch.empty_like(self.order, dtype=value.dtype, device=self.parameter.local.device).copy_(
            value
        )

    def moment(self, n: int) -> Moment | None:
        """The rule's moment of this number as it was saved, or None."""
        traits = self.rule.moments[n]
        name = traits.name
        if name + QUANTIZED in self.raw or name + SCALES in self.raw:
            if name in self.raw:
                raise ValueError(f"{self.parameter.name}: its state has {name} both quantized and not")
            return self._quantized(n, traits)
        # torch.optim.SGD writes None where it has no momentum.
        if name not in self.raw or (traits.needs is not None and self.raw[name] is None):
            return None
        values = self._elements(name, _FLOATS).float()
        return self._checked(Moment.encode(values, self.layout, traits.kind, Storage.FP32), n)

    def _quantized(self, n: int, traits: MomentTraits) -> Moment:
        name, kind = traits.name, traits.kind
        if self.saved.format not in ("native", "paper"):
            raise ValueError(
                f"{self.parameter.name}: {name} is quantized, and its group does not name a format"
            )
        storage = FORMATS[self.saved.format]
        codes = self._elements(name + QUANTIZED, (codes_dtype(kind),))
        scales = self._saved_scales(name + SCALES, storage)
        by_element = self._by_element(name + SCALES, scales) if storage == Storage.PAPER else None
        if by_element is None:
            flat = self._flat_scales(name + SCALES, scales, storage)
        else:
            groups = scales_by_group(by_element)
            if groups is None:  # saved with another sharding
                values = decode_by_element(codes, by_element, kind, lambda part: self._checked(part, n))
                return Moment.encode(values, self.layout, kind, Storage.FP32)
            flat = groups
        return self._checked(Moment(codes, flat, self.layout, kind, storage), n)

    def _saved_scales(self, key: str, storage: Storage) -> torch.Tensor:
        if storage == Storage.NATIVE:
            return self._tensor(key, (torch.bfloat16,))
        # The bytes of fp16 scales are saved as bf16 beside bf16 weights, as the authors' package does.
        return self._tensor(key, (torch.float16, torch.bfloat16))

    def _by_element(self, key: str, scales: torch.Tensor) -> torch.Tensor | None:
        """The scale of each element of this rank's part, or None if the scales are per group."""
        tensor = self.parameter.tensor
        if scales.shape != tensor.shape:
            in_rows = Layout(*self.layout.tolist()).has_scales_in_rows(Storage.PAPER)
            if not is_sharded(tensor) or in_rows or scales.numel() != -(-tensor.numel() // GROUP):
                return None
            # Groups over the whole tensor: a process that had the whole tensor saved it.
            if is_sharded(scales):
                scales = scales.full_tensor()  # type: ignore[attr-defined]
            whole = torch.empty(tensor.shape, dtype=torch.int8, device=scales.device)
            scales = scales_by_element(scales.reshape(-1), whole)
        return self._part(key, scales).view(torch.float16)

    def _flat_scales(self, key: str, scales: torch.Tensor, storage: Storage) -> torch.Tensor:
        """This rank's scales as a flat tensor, from any of the shapes in which scales are saved."""
        local, tensor, layout = self.parameter.local, self.parameter.tensor, Layout(*self.layout.tolist())
        part, whole = layout.scales_of_part(local.shape), layout.scales_of_whole(tensor.shape)
        parts: list[tuple[int, ...]] = [(layout.groups(storage),)]
        wholes: list[tuple[int, ...]] = [(math.prod(whole),)]
        if not layout.has_scales_in_rows(storage):
            wholes = [(-(-layout.whole_numel // GROUP),)]
        elif is_sharded(tensor) or self.order.is_contiguous():
            parts.append(part if layout.numel else tuple(local.shape))
            wholes.append(whole)
        shape = tuple(scales.shape)
        if shape not in (wholes if is_sharded(scales) else parts + wholes):
            raise ValueError(f"{self.parameter.name}: {key} has the shape {shape}; it must be {wholes[-1]}")
        if is_sharded(scales):
            scales = local_like(scales, tensor)
        elif shape not in parts:
            scales = layout.cut(scales)
        if scales.numel() != layout.groups(storage):
            raise ValueError(
                f"{self.parameter.name}: {key} is cut otherwise than its parameter; give the whole of it"
            )
        scales = scales.to(local.device).reshape(-1).clone()
        return scales.view(torch.float16) if storage == Storage.PAPER else scales

    def _checked(self, moment: Moment, n: int) -> Moment:
        """Returns the moment if a step could have written it, else raises."""
        name, is_fp32 = self.rule.moments[n].name, moment.storage == Storage.FP32
        base: Group = self.rule.defaults() | {own.needs: 1.0 for own in self.rule.moments if own.needs}
        base |= dict(min_quantized_numel=0, min_quantized_numel_1d=0, master_weight_bits=None)
        base |= dict(format=self.saved.format or "native", quantize=moment.is_quantized())
        if is_fp32 and base["format"] == "native":
            base["format"] = "fp32"
        plan = integers(plan_of(self.rule, base, moment.layout, torch.float32, name).row)
        try:
            ops.check_moment(moment.codes, moment.scales, moment.layout, plan, int(moment.kind))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.parameter.name}: {name}: {error}") from None
        return moment

    def correction(self, plan: Plan) -> tuple[torch.Tensor | None, WeightStorage]:
        """The correction as it was saved, and the weight storage that it belongs to."""
        bits, weight, name = self.saved.bits, self.parameter.local.dtype, self.parameter.name
        is_narrow = plan.weight.weight_dtype != 0
        if CORRECTION not in self.raw:
            if bits in CORRECTION_DTYPES and is_narrow and self.saved.weight_dtype != torch.float32:
                raise ValueError(f"{name}: {CORRECTION} is missing in its state")
            return None, plan.weight
        if bits not in CORRECTION_DTYPES or self.saved.weight_dtype == torch.float32:
            raise ValueError(
                f"{name}: its state has {CORRECTION}, and its group says that its weights have none"
            )
        wanted = CORRECTION_DTYPES[bits]
        is_paper = self.saved.format == "paper"
        correction = self._elements(CORRECTION, (wanted, *WEIGHT_DTYPES[1:]))
        saved_dtype = self.saved.weight_dtype
        if saved_dtype not in WEIGHT_DTYPES[1:]:
            saved_dtype = weight if is_narrow else torch.bfloat16
        # torch casts what it loads to the weight's dtype. The 16 bits of the format paper are a view.
        if correction.dtype != wanted:
            saved_dtype = correction.dtype
            is_view = is_paper and bits == 32
            correction = correction.view(wanted) if is_view else self._rounded(correction, wanted)
        if is_paper and bool((correction == torch.iinfo(wanted).min).any()):
            raise ValueError(
                f"{name}: {CORRECTION} has {torch.iinfo(wanted).min}, which the format paper never writes"
            )
        return correction, WeightStorage(WEIGHT_DTYPES.index(saved_dtype), bits, int(is_paper))

    def _rounded(self, correction: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Restores integers that were cast to a floating dtype."""
        largest = torch.iinfo(dtype).max
        values = correction.float()
        if not bool(((values.abs() <= largest + 1) & (values == values.round())).all()):
            raise ValueError(
                f"{self.parameter.name}: error_bits is not integers of {torch.iinfo(dtype).bits} bits"
            )
        return values.clamp(max=largest).to(dtype)


# A parameter's state


def _is_raw(state: State, rule: Rule) -> bool:
    """Whether this state has the form of a state dict, because other code assigned it."""
    correction = state.get(CORRECTION)
    return (isinstance(correction, torch.Tensor) and correction.is_floating_point()) or any(
        moment.name + QUANTIZED in state or isinstance(state.get(moment.name), torch.Tensor)
        for moment in rule.moments
    )


def fit(parameter: Parameter, state: State, rule: Rule, group: Group, writes: bool = True) -> None:
    """Makes what is missing in a live state, and converts what is stored in another way than its group says.

    The full-precision value of a weight that was cast is written into the weight. Unless `writes` is True a
    correction stays as it is: reading must not convert it, as the weight that it belongs to may still come.

    Raises:
        ValueError: for what does not fit; the state is as it was.
    """
    plan = plan_of(rule, group, parameter.layout, parameter.local.dtype, parameter.name)
    if _is_raw(state, rule):
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
    for n, traits in rule.moments_in(group):
        moment = state.get(traits.name)
        if moment is None:
            steps = step_count(step, parameter.name)
            fitted[traits.name] = parameter.moment_of_zeros(n, traits.kind, plan, steps)
        else:
            fitted[traits.name] = _fitting(n, moment, parameter, plan)
    correction = correction_in(state)
    is_pending = correction is not None and parameter.stored_as not in (None, plan.weight)
    if correction is None or writes or not is_pending:
        correction = _fitting_correction(parameter, state, plan)
    elif parameter.stored_as is not None and parameter.stored_as.bits in CORRECTION_DTYPES:
        _check_correction(parameter, correction, parameter.stored_as)
        correction = ordered(correction, parameter.local)
    state.pop(CORRECTION, None)
    state.pop(FORMER, None)
    if correction is not None:
        is_former = (
            parameter.stored_as is not None and parameter.stored_as.weight_dtype != plan.weight.weight_dtype
        )
        fitted[FORMER if is_former else CORRECTION] = correction
    state.update(fitted)
    parameter.plan = plan


def _fitting(n: int, moment: Moment, parameter: Parameter, plan: Plan) -> Moment:
    local = parameter.local
    if moment.device != local.device:
        moment = moment.to(local.device)
    if moment.shape != tuple(local.shape):
        raise ValueError(
            f"{parameter.name}: a moment of shape {moment.shape} in its state; {tuple(local.shape)} fits"
        )
    dtype = plan.moments[n].dtype
    if (
        moment.codes.dtype == dtype
        and moment.storage == plan.storage
        and strides_of(moment.codes) == strides_of(local)
    ):
        return moment
    return moment.stored_as(local, parameter.layout, plan.storage)


def _fitting_correction(parameter: Parameter, state: State, plan: Plan) -> torch.Tensor | None:
    """The correction for the weight as it is stored now, or None. Sets what the correction belongs to."""
    correction, former = correction_in(state), parameter.stored_as or plan.weight
    now = plan.weight
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
    if correction is None or correction.numel() == 0:  # a part without rows
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


def restore(
    parameter: Parameter, raw: State, saved: Saved, rule: Rule, group: Group
) -> tuple[State, WeightStorage]:
    """The state of a parameter from what a state dict holds of it, in tensors of its own.

    Its correction is as it was saved, as its weight may come later. What it belongs to is returned too.

    Raises:
        ValueError: that names the key and what is wrong with it; nothing has changed.
    """
    plan = plan_of(rule, group, parameter.layout, parameter.local.dtype, parameter.name)
    reader = Reader(parameter, raw, saved, rule)
    state: State = LiveState(foreign_entries(raw, parameter.local.device, parameter.name))
    if "step" not in raw and rule.divides_by_root:
        raise ValueError(f"{parameter.name}: step is missing in its state; bias corrections need it")
    steps = step_count(raw.get("step", 0), parameter.name)
    state["step"] = _counter(steps, parameter)
    wanted = dict(rule.moments_in(group))
    for n, traits in enumerate(rule.moments):
        name, moment = traits.name, reader.moment(n)
        if moment is not None:
            # A buffer made by a step without gradients counts as not filled.
            is_filled = "step" not in raw or steps > 0 or bool(moment.codes.any())
            moment.unfilled_at = -1 if is_filled else steps
            state[name] = _fitting(n, moment, parameter, plan)
        elif traits.needs is None or (n in wanted and steps > 0 and saved.format is not None):
            raise ValueError(f"{parameter.name}: {name} is missing in its state")
        elif n in wanted:
            state[name] = parameter.moment_of_zeros(n, traits.kind, plan, steps)
    correction, stored_as = reader.correction(plan)
    if correction is not None:
        state[CORRECTION if stored_as.weight_dtype == plan.weight.weight_dtype else FORMER] = correction
    return state, stored_as
