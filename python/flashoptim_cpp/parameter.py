"""One parameter of an optimizer: the storage of its weight, the entries of its state, its buffers.

A correction stays when other code writes its weight. It then moves the full-precision weight by at most half
a unit in the last place of the stored weight.
"""

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from . import _operators as ops
from ._rules import FORMATS, MOMENTS, WEIGHT_DTYPES, Group, MomentKind, Rule, Storage, row_of, shown
from .memory import has_memory, has_several_parts
from .moment import Moment
from .sharding import is_sharded, local_of, place_of

State = dict[str, Any]

# Corrections

# The dtype of a correction, by master_weight_bits.
CORRECTION_DTYPES = {24: torch.int8, 32: torch.int16}
# The keys of the correction for the weight as it is, and of one for the dtype that the weight had before a
# cast.
CORRECTION, FORMER = "error_bits", "error_bits::former"


def correction_in(state: State) -> torch.Tensor | None:
    """The correction in a state, for the weight's current or former dtype."""
    return state.get(CORRECTION, state.get(FORMER))


class WeightStorage(NamedTuple):
    """How a weight and its correction are read together."""

    weight_dtype: int  # an index of WEIGHT_DTYPES
    bits: int  # 0: no correction, also for fp32 weights
    paper: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight."""
        return WEIGHT_DTYPES[self.weight_dtype]


def ordered(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The values on the device and in the memory order of `like`."""
    if values.stride() == like.stride() and values.device == like.device:
        return values
    return torch.empty_like(like, dtype=values.dtype, requires_grad=False).copy_(values)


def join(weight: torch.Tensor, correction: torch.Tensor | None, storage: WeightStorage) -> torch.Tensor:
    """Full-precision weights, fp32, in the memory order of `weight`.

    A weight may have been cast since its correction was made: elements that the former dtype holds are joined
    in that dtype. Other elements were written since then in a higher precision and are whole.
    """
    weight = weight.detach()
    if correction is None or storage.bits not in CORRECTION_DTYPES:
        return weight.to(torch.float32, copy=True)
    narrow = weight.to(storage.dtype)
    joined = ops.join_weights(narrow, ordered(correction, narrow), storage.bits, bool(storage.paper))
    if weight.dtype == storage.dtype:
        return joined
    return torch.where(narrow.to(weight.dtype) == weight, joined, weight.float())


def split_over(weight: torch.Tensor, masters: torch.Tensor, storage: WeightStorage) -> torch.Tensor:
    """The correction that brings an unchanged weight nearest to full-precision values."""
    narrow = weight.detach().to(storage.dtype)
    return ops.correction_of(masters, narrow, storage.bits, bool(storage.paper))


# The state

# The suffixes of a moment's codes and scales in state dicts, and the key of the strides.
QUANTIZED, SCALES, STRIDES = "::quantized", "::scales", "layout_strides"

_OF_MOMENTS = tuple(name + suffix for name in MOMENTS for suffix in ("", QUANTIZED, SCALES))
_TAKES_APART = "torch.distributed.checkpoint.state_dict"


class LiveState(dict[str, Any]):
    """Moments, step count and correction of a parameter, and entries of other code.

    A state dict has other names: it holds codes and scales apart. torch.distributed.checkpoint looks for
    nothing in a flattened state dict but the names that it finds when it iterates over this. So it finds
    every name that a state dict may have.
    """

    def __iter__(self) -> Iterator[str]:
        asks_for_names = sys._getframe(1).f_globals.get("__name__") == _TAKES_APART
        return iter(self._saved_names() if asks_for_names else self.keys())

    def _saved_names(self) -> dict[str, None]:
        # Of every rule and storage: a state may be loaded where there is none yet, or one in another storage.
        return dict.fromkeys((*self.keys(), "step", CORRECTION, STRIDES, *_OF_MOMENTS))


def _is_empty(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, dict) and not value


def without_empty(raw: dict[str, Any]) -> dict[str, Any]:
    """A state of a state dict without the empty dicts that torch puts in place of missing entries.

    If nothing else is left, the state did not exist.
    """
    empty = {key for key, value in raw.items() if _is_empty(value)}
    if len(empty) == len(raw):
        return {}
    absent = empty & {CORRECTION, FORMER}
    if sum(name in raw for name in _OF_MOMENTS) == len(_OF_MOMENTS):  # torch has asked for all names
        absent |= empty & {*_OF_MOMENTS, STRIDES}
    return {key: value for key, value in raw.items() if key not in absent}


# The first parts of the names that optimizers (of any package) give their buffers.
_OF_OPTIMIZERS = (*MOMENTS, "max_exp_avg", "state1", "state2", "__bnb_optimizer_quant_state__")
# Entries that every rule may have.
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


def is_foreign(key: object) -> bool:
    """Whether an entry of a state belongs to other code: its name is not that of any optimizer's buffer."""
    if not isinstance(key, str):
        return True
    return not (key in _OF_EVERY_RULE or key in _OF_OTHERS or key.startswith(_OF_OPTIMIZERS))


def check_names(keys: Iterable[object], rule: Rule, name: str) -> None:
    """Refuses buffers in a state that this rule does not have.

    Raises:
        ValueError: that names them.
    """
    own = {moment.name + suffix for moment in rule.moments for suffix in ("", QUANTIZED, SCALES)}
    own |= {"step", CORRECTION, STRIDES}
    others = sorted(str(key) for key in keys if key not in own and not is_foreign(key))
    if any(key.startswith("max_exp_avg") for key in others):
        raise ValueError(
            f"{name}: its state has {others[0]}, of amsgrad, which is not supported; delete these entries to "
            "go on without it"
        )
    if others:
        raise ValueError(
            f"{name}: its state has {', '.join(others)}: buffers of another optimizer; delete them, or "
            "rename what is yours"
        )


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
    """Copies of the entries of other code in a state, with tensors on the parameter's device, as torch does.

    Raises:
        ValueError: for what cannot be copied.
    """
    entries = {}
    for key in filter(is_foreign, raw):
        try:
            entries[key] = _copied(raw[key], device)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a tensor on `meta`, a dict that holds itself, its own __deepcopy__
            raise ValueError(f"{name}: {key} in its state cannot be copied: {shown(error)}") from None
    return entries


# The parameter


class MomentPlan(NamedTuple):
    """The buffers of a moment; `elements` is 0 where the parameter has no such moment."""

    dtype: torch.dtype  # of the codes
    elements: int
    scales: int


class Plan(NamedTuple):
    """The buffers of a parameter."""

    row: tuple[int, ...]  # the operators' row
    weight: WeightStorage
    storage: Storage  # storage of the moments
    correction_count: int
    moments: tuple[MomentPlan, ...]


def _plan(row: list[int]) -> Plan:
    weight_dtype, bits, paper, storage, *buffers = row
    correction, *counts = buffers[1::2]
    dtypes = [ops.DTYPES[number] for number in buffers[2::4]]
    moments = tuple(map(MomentPlan, dtypes, counts[::2], counts[1::2]))
    return Plan(tuple(row), WeightStorage(weight_dtype, bits, paper), Storage(storage), correction, moments)


def strides_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of a tensor, for the operators."""
    return tuple(tensor.stride())


def row_major(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of a contiguous tensor of this shape."""
    return tuple(torch.empty(tensor.shape, device="meta").stride())


def integers(values: Iterable[int]) -> torch.Tensor:
    """An int64 tensor on the CPU, whatever torch's default device is."""
    return torch.tensor(list(values), dtype=torch.int64, device="cpu")


def layout_of(parameter: torch.Tensor, name: str) -> torch.Tensor:
    """The layout of a parameter, or of this rank's part of it.

    Raises:
        ValueError: for memory that is not dense, or rows that are cut inside a group of 32.
    """
    local = local_of(parameter)
    shape, strides, offset = tuple(local.shape), strides_of(local), (0,) * local.dim()
    whole, whole_strides = shape, strides
    if is_sharded(parameter):
        _, offset = place_of(parameter)
        whole, whole_strides = tuple(parameter.shape), strides_of(parameter)
    try:
        with ops.real_values():
            return ops.layout(shape, strides, whole, whole_strides, offset)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def plan_of(rule: Rule, group: Group, layout: torch.Tensor, dtype: torch.dtype, name: str) -> Plan:
    """The buffers of a parameter of this layout under the options of its group.

    Raises:
        ValueError: for a weight's dtype that cannot be stepped, and a vector that is cut inside a group of
            32.
    """
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{name} is {dtype}; cast it to float32, bfloat16 or float16")
    try:
        with ops.real_values():
            row = ops.plan(
                layout,
                rule.number,
                torch.tensor([row_of(rule, group, lr_is_on_gpu=True)], dtype=torch.float64, device="cpu"),
                int(FORMATS[group["format"]]),
                group["master_weight_bits"] or 0,
                bool(group["quantize"]),
                group["min_quantized_numel"],
                group["min_quantized_numel_1d"],
                WEIGHT_DTYPES.index(dtype),
            )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return _plan(row.tolist())


class Parameter:
    """One parameter of an optimizer, with the data that is not part of its saved state."""

    def __init__(self, tensor: torch.Tensor, name: str, stored_as: WeightStorage | None = None) -> None:
        if tensor.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode(); make the model outside of it, or clone it there"
            )
        if has_several_parts(local_of(tensor)):
            kind = type(local_of(tensor)).__name__
            raise ValueError(f"{name} is a {kind}, which is made of several tensors: train a plain one")
        self.tensor = tensor
        self.name = name
        self.is_sharded = is_sharded(tensor)
        self.local = local_of(tensor)
        self.layout = layout_of(tensor, name)
        self.plan: Plan | None = None  # the plan of its state
        self.stored_as = stored_as  # storage of its correction; None: that of the weight
        self.bad_elements = 0
        self.max_abs: float | None = None  # for check_numerics
        self._shape, self._strides = tuple(self.local.shape), strides_of(self.local)

    def is_reshaped(self) -> bool:
        """Whether the tensor has another shape than when this was made."""
        return tuple(local_of(self.tensor).shape) != self._shape

    def look(self) -> None:
        """Reads the memory and layout of the tensor again.

        Raises:
            ValueError: if the parameter has another shape than before, or is not dense any more.
        """
        self.local = local_of(self.tensor)
        if tuple(self.local.shape) != self._shape:
            raise ValueError(
                f"{self.name} had the shape {self._shape} and has now {tuple(self.local.shape)}; "
                "make a new optimizer after a model was changed"
            )
        if strides_of(self.local) != self._strides:
            self.layout = layout_of(self.tensor, self.name)
            self._strides = strides_of(self.local)

    def split(self, masters: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Writes full-precision weights into the stored weight. Returns the correction (maybe empty)."""
        values = torch.empty_like(self.local, dtype=torch.float32, requires_grad=False).copy_(masters)
        weight, correction = ops.split_weights(values, *plan.weight[:2], bool(plan.weight.paper))
        with torch.no_grad():
            self.local.copy_(weight)
        if self.is_sharded:
            torch.autograd.graph.increment_version([self.tensor])
        return correction

    def write_masters(self, masters: torch.Tensor, state: State) -> None:
        """Splits full-precision weights into the stored weight and the correction in its state."""
        assert self.plan is not None
        correction = self.split(masters, self.plan)
        if CORRECTION in state and self.local.numel():
            state[CORRECTION].copy_(correction)

    def moment_of_zeros(self, n: int, kind: MomentKind, plan: Plan, steps: int) -> Moment:
        """A moment of zeros with this number, after `steps` steps without a gradient."""
        dtype, _, scales = plan.moments[n]
        return Moment.zeros(self.local, self.layout, kind, plan.storage, dtype, scales, steps)


@dataclass(eq=False)
class Counter:
    """The counts of bad elements of a list of parameters."""

    parameters: list[Parameter]
    counts: torch.Tensor  # int64, on the parameters' device
    turns: int = 0  # steps, or refusals of one
    seen_turns: int = field(default=0, repr=False)  # the turns that the host has received
    is_left: bool = False  # its list is not stepped any more
