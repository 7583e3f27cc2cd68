"""The C++ operators as typed functions: loads their library, gives torch.compile their shapes. No logic lives here.

Choices are integers, in the core's order: rule 0 SGD, 1 SGDW, 2 Adam, 3 AdamW, 4 Lion; format 0 native, 1 paper, 2 fp32;
dtype 0 float32, 1 bfloat16, 2 float16, 3 int8, 4 uint8, 5 int16; moment storage 0 native, 1 paper, 2 fp32; moment 0 first, 1 second.

A layout is a tensor of 8 int64: numel, rows, row_length, whole_numel, whole_row_length, row_offset, column_offset, one_dimensional.
A plan is one of 12: weight dtype, master_weight_bits, paper arithmetic, moment storage, correction dtype and count, dtype and count
of the first moment, count of its scales, the same three of the second moment. The table of a step has a row of 24 for each weight:
its layout, its plan, its row of hyperparameters, unfilled_at (SGD: the step count at which its momentum buffer is still to be
filled, else -1), check_gradient, rule. A row of hyperparameters is 11 float64: lr, beta1, beta2, eps, weight_decay, momentum,
dampening, initial_lr, nesterov, maximize, fully_decoupled.

Layouts, plans, tables and hyperparameters lie on the CPU. Weights, gradients, states, counts and factors lie on one device, which is
the CPU or a GPU that the build has kernels for. There a step, a count and a norm are enqueued on torch's current stream and nothing
waits. Formats are encoded, decoded, split and joined by the CPU, wherever the tensors lie.

What the core refuses raises ValueError, a moment that no step writes RuntimeError; nothing has changed then.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from . import capture

torch.ops.load_library(Path(__file__).with_name("libflashoptim_operators.so"))
# How the message of an argument that was refused begins.
_REFUSED = "flashoptim_cpp refuses: "
# What a plan says that finds no memory for its lists or kernels, before anything is enqueued.
_NO_MEMORY = re.compile(r"(cudaMalloc|the load of a step's kernels) failed with cudaErrorMemoryAllocation")
_Result = TypeVar("_Result")


def _checked(operator: Callable[..., _Result]) -> Callable[..., _Result]:
    """The operator, with a ValueError for what it refuses: torch has one type of error for all.

    Torch may hold the whole memory of a GPU without using it: then it gives back what it does not use, and the call
    is made again.
    """

    def call(*arguments: object) -> _Result:
        try:
            return operator(*arguments)
        except RuntimeError as error:
            _, refused, why = str(error).partition(_REFUSED)
            if refused:
                raise ValueError(why.partition("\n")[0]) from None
            if not _NO_MEMORY.search(str(error)) or capture.is_capturing_now():
                raise
        torch.cuda.empty_cache()
        return operator(*arguments)

    return call


_ops = torch.ops.flashoptim_cpp
_layout = _checked(_ops.layout.default)
_plan = _checked(_ops.plan.default)
_step = _checked(_ops.step_.default)
_count_bad = _checked(_ops.count_bad.default)
_grad_norm = _checked(_ops.grad_norm.default)
_check_hyperparameters = _checked(_ops.check_hyperparameters.default)
_encode_moment = _checked(_ops.encode_moment.default)
_decode_moment = _checked(_ops.decode_moment.default)
_check_moment = _checked(_ops.check_moment.default)
_split_weights = _checked(_ops.split_weights.default)
_join_weights = _checked(_ops.join_weights.default)
_correction_of = _checked(_ops.correction_of.default)
_set_threads = _checked(_ops.set_threads.default)
_backend = _checked(_ops.backend.default)
_set_backend = _checked(_ops.set_backend.default)

# 0: the build has no kernels for GPUs; 1: CUDA's; 2: emulated ones, which take tensors of the CPU as if they were a GPU's.
GPU_KERNELS: int = _ops.gpu_kernels.default()
_GPU = "cpu" if GPU_KERNELS == 2 else "cuda"

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def is_gpu(device: torch.device) -> bool:
    """Whether steps on this device are the CUDA kernels', for whose results nobody waits."""
    return device.type == _GPU


def can_step(device: torch.device) -> bool:
    """Whether this build steps anything on this device."""
    return device.type == "cpu" or (device.type == "cuda" and GPU_KERNELS == 1)


class StepPlan:
    """What a list of tensors leaves in a GPU's memory from call to call; given back with this object.

    A list serves one thread at a time. CUDA graphs in which it was used must not be replayed after it.
    """

    def __init__(self) -> None:
        self.number: int = _ops.make_step_plan.default()
        self._end = weakref.finalize(self, _ops.free_step_plan.default, self.number)
        self._end.atexit = False  # type: ignore[misc]  # the driver may be gone then


def layout(
    shape: Sequence[int],
    strides: Sequence[int],
    whole_shape: Sequence[int],
    whole_strides: Sequence[int],
    offset: Sequence[int],
) -> Tensor:
    """The layout of a dense tensor, or of a shard that begins at `offset` of the whole tensor."""
    return _layout(shape, strides, whole_shape, whole_strides, offset)


def plan(
    layout: Tensor,
    rule: int,
    momentum: float,
    format: int,
    master_weight_bits: int,
    quantize: bool,
    min_numel: int,
    min_numel_1d: int,
    weight_dtype: int,
) -> Tensor:
    """Which buffers a parameter has; `master_weight_bits` 0 for None."""
    return _plan(
        layout, rule, momentum, format, master_weight_bits, quantize, min_numel, min_numel_1d, weight_dtype
    )


def step_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    corrections: Sequence[Tensor],
    first: Sequence[Tensor],
    first_scales: Sequence[Tensor],
    second: Sequence[Tensor],
    second_scales: Sequence[Tensor],
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

    A buffer that a plan does not have is a tensor of no elements; a list of buffers is empty where no weight has one. `steps` are
    0-dimensional int64: the counts before this step, each advanced by one. Gradients may be float32, bfloat16 or float16, of any
    strides; they are multiplied by `gradient_factor * (1 / grad_scale * clip_coefficient)`, in fp32. Where `found_inf` is not 0
    nothing changes. `nonfinite` 0 skips bad elements; 1 steps nothing where there is one. Either way they are added to
    `bad_elements`. `learning_rates`, a float64 for each row of hyperparameters, take the place of rates that are NaN there. `plan`
    is the number of a StepPlan, for tensors on a GPU; without one the call waits.

    Version counters stay as they are: call torch.autograd.graph.increment_version where they matter.
    """
    _step(
        weights,
        gradients,
        corrections,
        first,
        first_scales,
        second,
        second_scales,
        steps,
        bad_elements,
        table,
        hyperparameters,
        grad_scale,
        found_inf,
        gradient_factor,
        nonfinite,
        clip_coefficient,
        learning_rates,
        plan,
    )


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
    """Bad gradient elements of each weight, int64. `corrections` only sharpen the L2 term of Adam and SGD."""
    return _count_bad(
        weights,
        gradients,
        corrections,
        table,
        hyperparameters,
        grad_scale,
        gradient_factor,
        clip_coefficient,
        plan,
    )


def grad_norm(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    table: Tensor,
    hyperparameters: Tensor,
    gradient_factor: float = 1.0,
    plan: int = 0,
) -> Tensor:
    """Euclidean norm of all gradients times the factor, float64; bad elements are left out."""
    return _grad_norm(weights, gradients, table, hyperparameters, gradient_factor, plan)


def check_hyperparameters(hyperparameters: Tensor, rule: int) -> None:
    """Refuses rows of hyperparameters that a step with this rule refuses."""
    _check_hyperparameters(hyperparameters, rule)


def encode_moment(values: Tensor, layout: Tensor, moment: int, storage: int) -> tuple[Tensor, Tensor]:
    """Codes in the shape and memory order of the fp32 `values`, and their scales, to nearest."""
    return _encode_moment(values, layout, moment, storage)


def decode_moment(codes: Tensor, scales: Tensor, layout: Tensor, moment: int, storage: int) -> Tensor:
    """The fp32 values that codes and scales stand for, in the codes' shape and memory order."""
    return _decode_moment(codes, scales, layout, moment, storage)


def check_moment(codes: Tensor, scales: Tensor, layout: Tensor, plan: Tensor, moment: int) -> None:
    """Raises RuntimeError for codes or scales that no step of this plan writes."""
    _check_moment(codes, scales, layout, plan, moment)


def split_weights(
    masters: Tensor, weight_dtype: int, master_weight_bits: int, paper: bool
) -> tuple[Tensor, Tensor]:
    """A weight and its correction (no elements where there is none) from a full-precision one, to nearest."""
    return _split_weights(masters, weight_dtype, master_weight_bits, paper)


def join_weights(weights: Tensor, corrections: Tensor, master_weight_bits: int, paper: bool) -> Tensor:
    """The full-precision weight, fp32."""
    return _join_weights(weights, corrections, master_weight_bits, paper)


def correction_of(masters: Tensor, weights: Tensor, master_weight_bits: int, paper: bool) -> Tensor:
    """The correction that brings a weight that somebody else rounded nearest to its full-precision value."""
    return _correction_of(masters, weights, master_weight_bits, paper)


def set_threads(threads: int) -> None:
    """Threads of every later step; 0: as many as torch.get_num_threads()."""
    _set_threads(threads)


def backend() -> int:
    """The instruction set that set_backend chose; 0: the fastest, or FLASHOPTIM_BACKEND's."""
    return _backend()


def set_backend(backend: int) -> None:
    """1 scalar, 2 portable, 3 avx2, 4 avx512, 5 avx512-vbmi, 6 neon; results do not depend on it."""
    _set_backend(backend)


@torch.library.register_fake("flashoptim_cpp::layout")
def _fake_layout(*_: object) -> Tensor:
    return torch.empty(8, dtype=torch.int64, device="cpu")


@torch.library.register_fake("flashoptim_cpp::plan")
def _fake_plan(*_: object) -> Tensor:
    return torch.empty(12, dtype=torch.int64, device="cpu")


def _refuse_meta(**lists: Sequence[Tensor]) -> None:
    """Fake tensors name the device that they stand for. A tensor that is on meta is a mistake: nothing would be done."""
    for name, tensors in lists.items():
        for n, tensor in enumerate(tensors):
            if tensor.is_meta:
                raise RuntimeError(
                    f"{_REFUSED}{name}[{n}] is on meta, where nothing is stepped: give it memory"
                )


@torch.library.register_fake("flashoptim_cpp::step_")
def _fake_step(weights: Sequence[Tensor], gradients: Sequence[Tensor], *_: object) -> None:
    _refuse_meta(weights=weights, gradients=gradients)


def _device_of(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> torch.device:
    _refuse_meta(weights=weights, gradients=gradients)
    return weights[0].device if weights else torch.device("cpu")


@torch.library.register_fake("flashoptim_cpp::count_bad")
def _fake_count_bad(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    corrections: Sequence[Tensor],
    table: Tensor,
    hyperparameters: Tensor,
    grad_scale: Tensor | None,
    gradient_factor: float,
    clip_coefficient: Tensor | None = None,
    plan: int = 0,
) -> Tensor:
    return torch.empty(len(weights), dtype=torch.int64, device=_device_of(weights, gradients))


@torch.library.register_fake("flashoptim_cpp::grad_norm")
def _fake_grad_norm(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    table: Tensor,
    hyperparameters: Tensor,
    gradient_factor: float,
    plan: int = 0,
) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=_device_of(weights, gradients))


@torch.library.register_fake("flashoptim_cpp::check_hyperparameters")
def _fake_check_hyperparameters(*_: object) -> None:
    return None


@torch.library.register_fake("flashoptim_cpp::encode_moment")
def _fake_encode_moment(values: Tensor, layout: Tensor, moment: int, storage: int) -> tuple[Tensor, Tensor]:
    if storage == 2:
        return torch.empty_like(values), values.new_empty(0, dtype=torch.bfloat16)
    # How many groups there are stands in the layout, which is data.
    groups = torch.library.get_ctx().new_dynamic_size()
    codes = torch.empty_like(values, dtype=torch.uint8 if moment == 1 else torch.int8)
    return codes, values.new_empty(groups, dtype=torch.bfloat16 if storage == 0 else torch.float16)


@torch.library.register_fake("flashoptim_cpp::decode_moment")
def _fake_decode_moment(codes: Tensor, scales: Tensor, layout: Tensor, moment: int, storage: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.register_fake("flashoptim_cpp::check_moment")
def _fake_check_moment(codes: Tensor, scales: Tensor, layout: Tensor, plan: Tensor, moment: int) -> None:
    return None


def _empty_correction(like: Tensor, dtype: torch.dtype, master_weight_bits: int) -> Tensor:
    if dtype == torch.float32 or master_weight_bits not in (24, 32):
        return like.new_empty(0, dtype=torch.int8)
    return torch.empty_like(like, dtype=torch.int8 if master_weight_bits == 24 else torch.int16)


@torch.library.register_fake("flashoptim_cpp::split_weights")
def _fake_split_weights(
    masters: Tensor, weight_dtype: int, master_weight_bits: int, paper: bool
) -> tuple[Tensor, Tensor]:
    dtype = _FLOATS[weight_dtype]
    return torch.empty_like(masters, dtype=dtype), _empty_correction(masters, dtype, master_weight_bits)


@torch.library.register_fake("flashoptim_cpp::join_weights")
def _fake_join_weights(weights: Tensor, corrections: Tensor, master_weight_bits: int, paper: bool) -> Tensor:
    return torch.empty_like(weights, dtype=torch.float32)


@torch.library.register_fake("flashoptim_cpp::correction_of")
def _fake_correction_of(masters: Tensor, weights: Tensor, master_weight_bits: int, paper: bool) -> Tensor:
    return _empty_correction(weights, weights.dtype, master_weight_bits)
