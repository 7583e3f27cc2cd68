"""Reads what a state dict holds of a parameter, and refuses what nobody writes: this package, torch.optim, the authors' package."""

import math
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

from . import _operators as ops
from . import element_scales
from .corrections import CORRECTION, CORRECTION_DTYPES, FORMER, WeightStorage
from .live_state import QUANTIZED, SCALES, STRIDES
from .memory import has_memory
from .moment import Moment, scales_shape
from .options import (
    DTYPES_BY_NAME,
    FORMATS,
    MOMENTS,
    WEIGHT_DTYPES,
    Group,
    Rule,
    Storage,
    check_bits,
    check_format,
    shown,
)
from .parameter import Parameter, Plan, State, integers, plan_of, row_major
from .sharding import is_sharded, local_like, local_of, slice_of

# Beginnings of the names under which optimizers, these and others, keep their buffers.
_OF_OPTIMIZERS = (*MOMENTS, "max_exp_avg", "state1", "state2", "__bnb_optimizer_quant_state__")
# Names of ours, and of torch.optim's other optimizers.
_OF_EVERY_RULE = ("step", CORRECTION, FORMER, STRIDES)
_OF_OTHERS = (
    "acc_delta",
    "col_var",
    "exp_inf",
    "grad_avg",
    "mu_product",
    "row_var",
    "square_avg",
    "step_size",
    "sum",
)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MOST_STEPS = 2**63 - 1


class Saved(NamedTuple):
    """How the states of a saved parameter group are stored."""

    format: str | None  # None: plain tensors, as torch.optim writes them
    bits: int  # 0: no correction
    # Of its 16-bit weights, fp32 if it has none; None if it is not said, or if it has both.
    weight_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        return f'format "{self.format}", master_weight_bits={self.bits or None}'


def saved_storage(group: Group) -> Saved:
    """Reads how a group of a state dict was stored: ours, the authors', or torch's own.

    Raises:
        ValueError: for a format, a number of bits or a dtype that is not known.
    """
    name, width = group.get("weight_dtype"), group.get("master_bytewidth")
    if not (name is None or (isinstance(name, str) and name in DTYPES_BY_NAME)):
        raise ValueError(f"weight_dtype={shown(name)} is unknown; it must be one of {tuple(DTYPES_BY_NAME)}")
    if isinstance(width, bool) or not (width is None or (isinstance(width, int) and width in (0, 2, 3, 4))):
        raise ValueError(f"master_bytewidth={shown(width)} is invalid; it must be 0, 2, 3 or 4")
    weight_dtype = None if name is None else DTYPES_BY_NAME[name]
    if "format" in group:
        bits = group.get("master_weight_bits")
        check_format(group["format"])
        check_bits(bits, group["format"])
        return Saved(group["format"], int(bits or 0), weight_dtype)
    if "master_bytewidth" in group:
        return Saved("paper", 8 * (width or 0), weight_dtype)
    return Saved(None, 0, weight_dtype)


def is_foreign(key: object) -> bool:
    """Whether an entry of a state is somebody else's: it has no name of a buffer, as these and other optimizers have them."""
    if not isinstance(key, str):
        return True
    return not (key in _OF_EVERY_RULE or key in _OF_OTHERS or key.startswith(_OF_OPTIMIZERS))


def check_names(keys: object, rule: Rule, name: str) -> None:
    """Refuses names of buffers in a state that this rule does not have.

    Raises:
        ValueError: that names them.
    """
    own = {"step", CORRECTION, STRIDES} | {
        m + suffix for m in rule.moments for suffix in ("", QUANTIZED, SCALES)
    }
    others = sorted(str(key) for key in keys if key not in own and not is_foreign(key))  # type: ignore[attr-defined]
    if any(key.startswith("max_exp_avg") for key in others):
        raise ValueError(
            f"{name}: its state has {others[0]}, of amsgrad, which is not supported; delete these entries to go on without it"
        )
    if others:
        raise ValueError(
            f"{name}: its state has {', '.join(others)}: buffers of another optimizer; delete them, or rename what is yours"
        )


def step_count(value: Any, name: str) -> int:  # noqa: ANN401
    """A step count as it stands in a state. Integers are exact.

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
    """Refuses tensors without elements of their own in memory.

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
        """A tensor that lies as the parameter lay when it was saved, and its layout."""
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
        """A tensor of the parameter's shape: this rank's part, a copy that lies as it did when it was saved."""
        return self._part(key, self._tensor(key, dtypes))

    def _part(self, key: str, whole: torch.Tensor) -> torch.Tensor:
        tensor, shape = self.parameter.tensor, self.parameter.local.shape
        wanted = (tensor.shape,) if is_sharded(whole) else (shape, tensor.shape)
        if whole.shape not in wanted:
            raise ValueError(
                f"{self.parameter.name}: {key} has the shape {tuple(whole.shape)}; it must be {tuple(tensor.shape)}"
            )
        value = local_like(whole, tensor)
        if value.shape != shape:
            value = slice_of(value, tensor)
        return torch.empty_like(self.order, dtype=value.dtype, device=self.parameter.local.device).copy_(
            value
        )

    def moment(self, kind: int, name: str) -> Moment | None:
        """The moment as it was saved, or None."""
        if name + QUANTIZED in self.raw or name + SCALES in self.raw:
            if name in self.raw:
                raise ValueError(f"{self.parameter.name}: its state has {name} both quantized and not")
            return self._quantized(kind, name)
        # torch.optim.SGD writes None where it has no momentum.
        if name not in self.raw or (self.rule.is_sgd and self.raw[name] is None):
            return None
        values = self._elements(name, _FLOATS).float()
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
        parts, wholes = self._scale_shapes(storage)
        shape, tensor = tuple(scales.shape), self.parameter.tensor
        if shape not in (wholes if is_sharded(scales) else parts + wholes):
            raise ValueError(f"{self.parameter.name}: {key} has the shape {shape}; it must be {wholes[-1]}")
        if is_sharded(scales):
            scales = local_like(scales, tensor)
        elif shape not in parts:
            scales = self._part_of_scales(scales)
        if scales.numel() != self._groups(storage):
            raise ValueError(
                f"{self.parameter.name}: {key} is cut otherwise than its parameter; give the whole of it"
            )
        scales = scales.to(self.parameter.local.device).reshape(-1).clone()
        return scales.view(torch.float16) if storage == Storage.PAPER else scales

    def _groups(self, storage: Storage) -> int:
        numel, rows, row_length, *_ = self.layout.tolist()
        if storage == Storage.PAPER:
            return -(-numel // 32)
        return rows * -(-row_length // 32)

    def _scale_shapes(self, storage: Storage) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The shapes that scales of this rank's part, and of the whole, are saved in: flat, or one for each of its groups."""
        numel, rows, row_length, whole_numel, whole_row_length, _, _, is_vector = self.layout.tolist()
        local, tensor = self.parameter.local, self.parameter.tensor
        whole_rows = 1 if is_vector else whole_numel // max(1, whole_row_length)
        per_row, whole_per_row = -(-row_length // 32), -(-whole_row_length // 32)
        parts: list[tuple[int, ...]] = [(self._groups(storage),)]
        wholes: list[tuple[int, ...]] = [(whole_rows * whole_per_row,)]
        is_row_major = is_sharded(tensor) or self.order.is_contiguous()
        if storage == Storage.PAPER and (whole_row_length % 32 != 0 or is_vector):
            wholes = [(-(-whole_numel // 32),)]
        elif is_row_major:
            parts.append(scales_shape(local.shape, rows, per_row) if numel else tuple(local.shape))
            wholes.append(scales_shape(tensor.shape, whole_rows, whole_per_row))
        return parts, wholes

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
        bits, weight, name = self.saved.bits, self.parameter.local.dtype, self.parameter.name
        is_narrow = plan.weight_dtype != 0
        if CORRECTION not in self.raw:
            if bits in CORRECTION_DTYPES and is_narrow and self.saved.weight_dtype != torch.float32:
                raise ValueError(f"{name}: {CORRECTION} is missing in its state")
            return None, plan.weight_storage
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
        """Integers that were cast to a floating dtype, as integers again."""
        largest = torch.iinfo(dtype).max
        values = correction.float()
        if not bool(((values.abs() <= largest + 1) & (values == values.round())).all()):
            raise ValueError(
                f"{self.parameter.name}: error_bits is not integers of {torch.iinfo(dtype).bits} bits"
            )
        return values.clamp(max=largest).to(dtype)
