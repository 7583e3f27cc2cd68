"""The C++ operators as typed functions: loads their library and registers their shapes.

Choices are integers in the core's order. A rule is its place in rule_table(). Format 0 native, 1 paper, 2
fp32, and storage of moments the same. Dtype 0 float32, 1 bfloat16, 2 float16, 3 int8, 4 uint8, 5 int16.

A layout is a tensor of 8 int64: numel, rows, row_length, whole_numel, whole_row_length, row_offset,
column_offset, one_dimensional. A plan is one of PLAN_ROW: weight dtype, master_weight_bits, paper arithmetic,
moment storage, then dtype and count of the buffer at each place. Place 0 is the correction's, 1 + 2n that of
the codes (or fp32 values) of moment n, 2 + 2n that of its scales. The table of a step has a row for each
weight: its layout, its plan, its row of hyperparameters, unfilled_at (SGD: the step count at which its
momentum buffer is still to be filled, else -1), check_gradient, rule. A row of hyperparameters has one
float64 for each of the "columns" of rule_table(), flags as 0 and 1.

Layouts, plans, tables and hyperparameters lie on the CPU. Weights, gradients, states, counts and factors lie
on one device: the CPU, or a GPU that the build has kernels for. On a GPU a step, a count and a norm are
enqueued on torch's current stream and do not block. The CPU encodes, decodes, splits and joins formats,
wherever the tensors lie.

What the core refuses raises ValueError, a moment that no step writes RuntimeError. Nothing has changed then.
"""

from __future__ import annotations

import inspect
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

# mypy: disable-error-code="empty-body"
# The functions below without a body are signatures: _operator replaces them by the operators of their names.

torch.ops.load_library(Path(__file__).with_name("libflashoptim_operators.so"))
# The first words of a message about a refused argument.
_REFUSED = "flashoptim_cpp refuses: "
# The error of a plan that has no memory for its lists or kernels. It is raised before anything is enqueued.
_NO_MEMORY = re.compile(r"(cudaMalloc|the load of a step's kernels) failed with cudaErrorMemoryAllocation")
# Columns of a plan: four, and two for each place of a state.
PLAN_ROW = 4 + 2 * 9
# In the order of the core's numbers.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int16)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_ops = torch.ops.flashoptim_cpp


def _checked(operator: Callable[..., _Result]) -> Callable[..., _Result]:
    """The operator, raising ValueError for refused arguments: torch turns every error into RuntimeError.

    Torch's cache may hold all memory of a GPU. If a call finds no memory, the cache is emptied and the call
    is repeated.
    """

    def call(*arguments: object, **named: object) -> _Result:
        try:
            return operator(*arguments, **named)
        except RuntimeError as error:
            _, refused, why = str(error).partition(_REFUSED)
            if refused:
                raise ValueError(why.partition("\n")[0]) from None
            if not _NO_MEMORY.search(str(error)) or is_capturing_now():
                raise
        torch.cuda.empty_cache()
        return operator(*arguments, **named)

    return call


def _operator(signature: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The operator with the signature's name, argument order and defaults."""
    overload = getattr(_ops, signature.__name__).default
    operator: Callable[..., _Result] = _checked(overload)
    parameters = inspect.signature(signature).parameters.values()
    names = [parameter.name for parameter in parameters]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    takes_all_in_order = len(names) if [own.name for own in overload._schema.arguments] == names else -1

    def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        if len(arguments) == takes_all_in_order:  # looking up names costs a microsecond or more
            return operator(*arguments)
        return operator(**{**defaults, **dict(zip(names, arguments, strict=False)), **named})

    call.__name__, call.__doc__ = signature.__name__, signature.__doc__
    return call


# 0: the build has no kernels for GPUs; 1: those for CUDA; 2: emulated ones, which treat CPU tensors as on a
# GPU.
GPU_KERNELS: int = _ops.gpu_kernels.default()
_GPU = "cpu" if GPU_KERNELS == 2 else "cuda"


def is_gpu(device: torch.device) -> bool:
    """Whether the CUDA kernels make the steps on this device. Those steps do not block."""
    return device.type == _GPU


def can_step(device: torch.device) -> bool:
    """Whether this build can step tensors on this device."""
    return device.type == "cpu" or (device.type == "cuda" and GPU_KERNELS == 1)


class StepPlan:
    """The data that a list of tensors keeps in a GPU's memory from call to call. It is freed with this
    object.

    A plan serves one thread at a time. CUDA graphs that captured it must not be replayed after it is gone.
    """

    def __init__(self) -> None:
        self.number: int = _ops.make_step_plan.default()
        self._end = weakref.finalize(self, _ops.free_step_plan.default, self.number)
        self._end.atexit = False  # type: ignore[misc]  # the driver may be gone then


# CUDA graphs


def is_capturing(device: torch.device) -> bool:
    """Whether work enqueued on this device now is captured in a CUDA graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def is_capturing_now() -> bool:
    """Whether this thread is capturing a CUDA graph on the current device."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def is_capturing_any(devices: Iterable[torch.device]) -> bool:
    """Whether this thread is capturing a CUDA graph on any of these devices."""
    return any(map(is_capturing, set(devices)))


def refuse_in_capture(what: str, remedy: str) -> NoReturn:
    """Raises RuntimeError for an action that is not possible in a capture. Nothing has changed."""
    raise RuntimeError(f"{what}, in the capture of a CUDA graph: {remedy}")


# Fake tensors (torch's FakeTensorMode): shapes without memory, with which tools estimate memory use


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor, or the local part of a DTensor, has a device but no memory. Imports nothing."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    return fakes is not None and fakes.is_fake(tensor)


def is_fake_mode_on() -> bool:
    """Whether new tensors are fake now."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


@contextmanager
def real_values() -> Iterator[None]:
    """A context in which new tensors have values even under FakeTensorMode, for layouts and plans."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    if fakes is None:
        yield
    else:
        with fakes.unset_fake_temporarily():
            yield


# The operators


@_operator
def layout(
    shape: Sequence[int],
    strides: Sequence[int],
    whole_shape: Sequence[int],
    whole_strides: Sequence[int],
    offset: Sequence[int],
) -> Tensor:
    """The layout of a dense tensor, or of a shard that begins at `offset` of the whole tensor."""


@_operator
def plan(
    layout: Tensor,
    rule: int,
    hyperparameters: Tensor,
    format: int,
    master_weight_bits: int,
    quantize: bool,
    min_numel: int,
    min_numel_1d: int,
    weight_dtype: int,
) -> Tensor:
    """The buffers of a parameter. `master_weight_bits` is 0 for None; `hyperparameters` is one row."""


@_operator
def step_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: Sequence[Tensor],
    places: Sequence[int],
    steps: Sequence[Tensor],
    bad_elements: Tensor,
    table: Tensor,
    hyperparameters: Tensor,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    gradient_factor: float = 1.0,
    nonfinite: int = 0,
    clip_coefficient: Tensor | None = None,
    learning_rates: Tensor | None = None,
    plan: int = 0,
) -> None:
    """One step of every weight, in place.

    `state` has the buffers of all weights at the first of `places`, then those at the second, and so on. A
    buffer that a plan does not have is a tensor of no elements; a place that no weight has may be left out.
    `steps` are 0-dimensional int64: the counts before this step, each advanced by one. Gradients may
    be float32, bfloat16 or float16, of any strides. They are multiplied by `gradient_factor * (1 / grad_scale
    * clip_coefficient)`, in fp32. Where `found_inf` is not 0 nothing changes. `nonfinite` 0 skips bad
    elements; 1 steps nothing where there is one. Either way they are added to `bad_elements`.
    `learning_rates`, a float64 for each row of hyperparameters, take the place of rates that are NaN there.
    `plan` is the number of a StepPlan, for tensors on a GPU; without one the call blocks.

    Version counters stay as they are: call torch.autograd.graph.increment_version where they matter.
    """


@_operator
def update_moments_(
    directions: Sequence[Tensor],
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: Sequence[Tensor],
    places: Sequence[int],
    steps: Sequence[Tensor],
    bad_elements: Tensor,
    table: Tensor,
    hyperparameters: Tensor,
    grad_scale: Tensor | None = None,
    gradient_factor: float = 1.0,
) -> Tensor:
    """The first of two passes of a step, on the CPU: computes new moments and a direction for each weight.

    The arguments are those of step_, and `directions`: float32 or bfloat16, in the shape and memory order of
    the weights. A direction may be its gradient itself. Steps advance here. Weights stay as they are; a bad
    element has the direction NaN. Returns the scalars that apply_update_ takes: for each weight the learning
    rate with the rule's bias corrections, and the factor of decoupled weight decay. The paper's format has no
    such pass.
    """


@_operator
def apply_update_(
    weights: Sequence[Tensor],
    corrections: Sequence[Tensor],
    directions: Sequence[Tensor],
    steps: Sequence[Tensor],
    bad_elements: Tensor,
    table: Tensor,
    hyperparameters: Tensor,
    scalars: Tensor,
) -> None:
    """The second pass: w = w * factor - learning rate * direction, in place, on the CPU.

    `directions` are those of update_moments_, or what the caller made of them: float32 or bfloat16, of any
    strides. With those of update_moments_ in float32 both passes give the bits of step_. An element whose
    direction is NaN keeps its weight and is added to `bad_elements`. `corrections` may be empty where no
    weight has one. `steps` are the counts that the first pass has advanced.
    """


@_operator
def count_bad(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    table: Tensor,
    hyperparameters: Tensor,
    grad_scale: Tensor | None = None,
    gradient_factor: float = 1.0,
    corrections: Sequence[Tensor] = (),
    clip_coefficient: Tensor | None = None,
    plan: int = 0,
) -> Tensor:
    """The number of bad gradient elements of each weight, int64. `corrections` are for the L2 term only."""


@_operator
def grad_norm(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    table: Tensor,
    hyperparameters: Tensor,
    gradient_factor: float = 1.0,
    plan: int = 0,
) -> Tensor:
    """Euclidean norm of all gradients times the factor, float64; bad elements are left out."""


@_operator
def rule_table() -> str:
    """The core's table of rules as JSON: "columns" are the hyperparameters of a row in order, "rules" the
    rules.
    """


@_operator
def check_hyperparameters(hyperparameters: Tensor, rule: int) -> None:
    """Raises ValueError for rows of hyperparameters that are out of this rule's ranges."""


@_operator
def encode_moment(
    values: Tensor, layout: Tensor, moment: int, storage: int, weight_dtype: int = 0
) -> tuple[Tensor, Tensor]:
    """Encodes fp32 `values` to nearest: codes in their shape and memory order, and scales.

    `moment` is the kind: 0 signed, 1 squared, 2 slow, 3 gradient. The last alone depends on `weight_dtype`.
    """


@_operator
def decode_moment(
    codes: Tensor, scales: Tensor, layout: Tensor, moment: int, storage: int, weight_dtype: int = 0
) -> Tensor:
    """Decodes codes and scales to fp32 values in the codes' shape and memory order."""


@_operator
def check_moment(codes: Tensor, scales: Tensor, layout: Tensor, plan: Tensor, moment: int) -> None:
    """Raises RuntimeError for codes or scales that no step of this plan writes."""


@_operator
def split_weights(
    masters: Tensor, weight_dtype: int, master_weight_bits: int, paper: bool
) -> tuple[Tensor, Tensor]:
    """Splits full-precision weights, to nearest, into weights and corrections (empty if there are none)."""


@_operator
def join_weights(weights: Tensor, corrections: Tensor, master_weight_bits: int, paper: bool) -> Tensor:
    """Joins weights and corrections to full-precision weights in fp32."""


@_operator
def correction_of(masters: Tensor, weights: Tensor, master_weight_bits: int, paper: bool) -> Tensor:
    """The correction that brings a weight rounded by other code nearest to its full-precision value."""


@_operator
def set_threads(threads: int) -> None:
    """Sets the threads of every later step; 0: as many as torch.get_num_threads()."""


@_operator
def backend() -> int:
    """The backend that set_backend chose; 0: that of FLASHOPTIM_BACKEND, or the fastest."""


@_operator
def set_backend(backend: int) -> None:
    """Sets the backend: 1 scalar, 2 portable, 3 avx2, 4 avx512, 5 avx512-vbmi, 6 neon. All give the same
    bits.
    """


# Shapes of the operators' results, for torch.compile and FakeTensorMode


def _register_fake(name: str, shapes: Callable[..., object]) -> None:
    torch.library.register_fake(f"flashoptim_cpp::{name}", shapes)


def _refuse_meta(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Refuses tensors on meta. Fake tensors name a real device, so a tensor on meta is a mistake."""
    for name, tensors in (("weights", weights), ("gradients", gradients)):
        for n, tensor in enumerate(tensors):
            if tensor.is_meta:
                raise RuntimeError(
                    f"{_REFUSED}{name}[{n}] is on meta, where nothing is stepped: give it memory"
                )


def _device_of(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> torch.device:
    _refuse_meta(weights, gradients)
    return weights[0].device if weights else torch.device("cpu")


def _fake_step(weights: Sequence[Tensor], gradients: Sequence[Tensor], *_: object, **__: object) -> None:
    _refuse_meta(weights, gradients)


def _fake_count(weights: Sequence[Tensor], gradients: Sequence[Tensor], *_: object, **__: object) -> Tensor:
    return torch.empty(len(weights), dtype=torch.int64, device=_device_of(weights, gradients))


def _fake_norm(weights: Sequence[Tensor], gradients: Sequence[Tensor], *_: object, **__: object) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=_device_of(weights, gradients))


def _fake_directions(directions: Sequence[Tensor], weights: Sequence[Tensor], *_: object) -> Tensor:
    _refuse_meta(weights, directions)
    return torch.empty(len(weights), 2, dtype=torch.float64, device="cpu")


def _fake_update(
    weights: Sequence[Tensor], corrections: Sequence[Tensor], directions: Sequence[Tensor], *_: object
) -> None:
    _refuse_meta(weights, directions)


def _fake_encode(
    values: Tensor, layout: Tensor, moment: int, storage: int, weight_dtype: int = 0
) -> tuple[Tensor, Tensor]:
    dtype = {2: torch.bfloat16, 3: DTYPES[weight_dtype]}.get(moment) if storage == 0 else None
    if storage == 2:
        dtype = torch.float32
    if dtype is not None:
        return torch.empty_like(values, dtype=dtype), values.new_empty(0, dtype=torch.bfloat16)
    # The number of groups depends on the layout's values, which are not known here.
    groups = torch.library.get_ctx().new_dynamic_size()
    codes = torch.empty_like(values, dtype=torch.uint8 if moment == 1 else torch.int8)
    return codes, values.new_empty(groups, dtype=torch.bfloat16 if storage == 0 else torch.float16)


def _empty_correction(like: Tensor, dtype: torch.dtype, master_weight_bits: int) -> Tensor:
    if dtype == torch.float32 or master_weight_bits not in (24, 32):
        return like.new_empty(0, dtype=torch.int8)
    return torch.empty_like(like, dtype=torch.int8 if master_weight_bits == 24 else torch.int16)


def _fake_split(
    masters: Tensor, weight_dtype: int, master_weight_bits: int, paper: bool
) -> tuple[Tensor, Tensor]:
    dtype = DTYPES[weight_dtype]
    return torch.empty_like(masters, dtype=dtype), _empty_correction(masters, dtype, master_weight_bits)


def _fake_correction(masters: Tensor, weights: Tensor, master_weight_bits: int, paper: bool) -> Tensor:
    return _empty_correction(weights, weights.dtype, master_weight_bits)


_register_fake("layout", lambda *_: torch.empty(8, dtype=torch.int64, device="cpu"))
_register_fake("plan", lambda *_: torch.empty(PLAN_ROW, dtype=torch.int64, device="cpu"))
_register_fake("step_", _fake_step)
_register_fake("update_moments_", _fake_directions)
_register_fake("apply_update_", _fake_update)
_register_fake("count_bad", _fake_count)
_register_fake("grad_norm", _fake_norm)
_register_fake("check_hyperparameters", lambda *_: None)
_register_fake("encode_moment", _fake_encode)
_register_fake("decode_moment", lambda codes, *_: torch.empty_like(codes, dtype=torch.float32))
_register_fake("check_moment", lambda *_: None)
_register_fake("split_weights", _fake_split)
_register_fake("join_weights", lambda weights, *_: torch.empty_like(weights, dtype=torch.float32))
_register_fake("correction_of", _fake_correction)
