"""A parameter as the optimizer sees it: where its memory lies, how it is stored, what its state holds."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from . import _operators as ops
from .corrections import WeightStorage
from .fake import real_values
from .memory import has_several_parts
from .moment import Moment
from .options import FORMATS, WEIGHT_DTYPES, Group, Rule, Storage, number
from .sharding import is_sharded, local_of, place_of

State = dict[str, Any]


class Plan(NamedTuple):
    """Which buffers a parameter has: a plan of the operators by name."""

    weight_dtype: int
    bits: int  # effective: 0 also for fp32 weights
    paper: int
    moments: int
    correction_dtype: int
    correction_count: int
    first_dtype: int
    first_count: int
    first_groups: int
    second_dtype: int
    second_count: int
    second_groups: int

    @property
    def storage(self) -> Storage:
        """How the moments lie."""
        return Storage(self.moments)

    @property
    def weight_storage(self) -> WeightStorage:
        """What says how weight and correction are to be read together."""
        return WeightStorage(self.weight_dtype, self.bits, self.paper)

    def groups(self, kind: int) -> int:
        """Scales of a moment."""
        return self.second_groups if kind else self.first_groups


def strides_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides as the operators take them."""
    return tuple(tensor.stride())


def row_major(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides that a contiguous tensor of this shape has."""
    return tuple(torch.empty(tensor.shape, device="meta").stride())


def integers(values: Iterable[int]) -> torch.Tensor:
    """Whole numbers as the operators take them: on the CPU, whatever torch's default device is."""
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
        with real_values():
            return ops.layout(shape, strides, whole, whole_strides, offset)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def plan_of(rule: Rule, group: Group, layout: torch.Tensor, dtype: torch.dtype, name: str) -> Plan:
    """The buffers of a parameter of this layout under the options of its group.

    Raises:
        ValueError: for a weight's dtype that cannot be stepped, and a vector that is cut inside a group of 32.
    """
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{name} is {dtype}; cast it to float32, bfloat16 or float16")
    try:
        with real_values():
            row = ops.plan(
                layout,
                int(rule),
                number(group.get("momentum", 0.0)),
                int(FORMATS[group["format"]]),
                group["master_weight_bits"] or 0,
                bool(group["quantize"]),
                group["min_quantized_numel"],
                group["min_quantized_numel_1d"],
                WEIGHT_DTYPES.index(dtype),
            )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Plan(*row.tolist())


class Parameter:
    """One parameter of an optimizer, with what is not part of its saved state."""

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
        self.plan: Plan | None = None  # that its state was made by
        self.stored_as = stored_as  # what the correction in its state belongs to; None: the weight as it is
        self.bad_elements = 0
        self.max_abs: float | None = None  # for check_numerics
        self._shape, self._strides = tuple(self.local.shape), strides_of(self.local)

    def is_reshaped(self) -> bool:
        """Whether the tensor has another shape than when this was made."""
        return tuple(local_of(self.tensor).shape) != self._shape

    def look(self) -> None:
        """Finds the memory anew.

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
        """Writes full-precision weights into the stored weight; returns their correction, of no elements if there is none."""
        values = torch.empty_like(self.local, dtype=torch.float32, requires_grad=False).copy_(masters)
        weight, correction = ops.split_weights(values, plan.weight_dtype, plan.bits, bool(plan.paper))
        with torch.no_grad():
            self.local.copy_(weight)
        if self.is_sharded:
            torch.autograd.graph.increment_version([self.tensor])
        return correction

    def write_masters(self, masters: torch.Tensor, state: State) -> None:
        """Splits full-precision weights into the stored weight and the correction in its state."""
        assert self.plan is not None
        correction = self.split(masters, self.plan)
        if "error_bits" in state and self.local.numel():
            state["error_bits"].copy_(correction)

    def moment_like(self, kind: int, plan: Plan, steps: int) -> Moment:
        """A moment of zeros, after so many steps."""
        return Moment.zeros(self.local, self.layout, kind, plan.storage, plan.groups(kind), steps)
