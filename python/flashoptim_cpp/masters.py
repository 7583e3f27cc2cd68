"""Weights in full precision: their corrections, state dicts of them, and a context that puts them into the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from . import _operators as ops
from . import fsdp
from .corrections import WeightStorage, correction_in, join
from .options import WEIGHT_DTYPES
from .parameter import Parameter
from .sharding import is_sharded, local_like, local_of, slice_of, wrap

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer

WeightFormat = Literal["native", "paper"]

_NARROW = (torch.bfloat16, torch.float16)


def _is_paper(format: str) -> bool:
    if format not in ("native", "paper"):
        raise ValueError(f'format={format!r} is unknown; use "native" or "paper"')
    return format == "paper"


def compute_ecc_bits(
    fp32_param: torch.Tensor,
    narrow_param: torch.Tensor,
    master_bytewidth: int = 4,
    *,
    format: WeightFormat = "native",
) -> torch.Tensor:
    """The correction that brings a rounded weight to its full-precision value.

    Args:
        fp32_param: weights in fp32.
        narrow_param: the same weights, rounded to bfloat16 or float16.
        master_bytewidth: bytes of both together: 3 for an int8 correction, 4 for int16.
        format: of the correction.

    Returns:
        int8 or int16 of the same shape.

    Raises:
        ValueError: for other dtypes, shapes or widths.
    """
    if fp32_param.dtype != torch.float32:
        raise ValueError(f"fp32_param must be float32, got {fp32_param.dtype}.")
    if narrow_param.dtype not in _NARROW:
        raise ValueError(f"narrow_param must be bf16 or fp16, got {narrow_param.dtype}.")
    if master_bytewidth not in (3, 4):
        raise ValueError(
            f"master_bytewidth={master_bytewidth} over {narrow_param.dtype} is unsupported; use 3 or 4"
        )
    if fp32_param.shape != narrow_param.shape:
        raise ValueError(
            f"fp32_param has the shape {tuple(fp32_param.shape)}, narrow_param {tuple(narrow_param.shape)}"
        )
    masters = fp32_param.detach().to(narrow_param.device).contiguous()
    return ops.correction_of(
        masters, narrow_param.detach().contiguous(), 8 * master_bytewidth, _is_paper(format)
    )


def reconstruct_fp32_param(
    param: torch.Tensor, error_bits: torch.Tensor, *, format: WeightFormat = "native"
) -> torch.Tensor:
    """Full-precision weights from rounded ones and their correction, the inverse of :func:`compute_ecc_bits`.

    Raises:
        ValueError: for other dtypes or shapes.
    """
    if param.dtype not in _NARROW:
        raise ValueError(f"param must be bf16 or fp16, which have corrections, got {param.dtype}.")
    if error_bits.dtype not in (torch.int8, torch.int16):
        raise ValueError(f"error_bits must be int8 or int16, got {error_bits.dtype}.")
    if param.shape != error_bits.shape:
        raise ValueError(f"param has the shape {tuple(param.shape)}, error_bits {tuple(error_bits.shape)}")
    bits = 24 if error_bits.dtype == torch.int8 else 32
    return ops.join_weights(param.detach().contiguous(), error_bits.contiguous(), bits, _is_paper(format))


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, torch.nn.Module) else model


def _master(optimizer: "FlashOptimizer", tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter in full precision."""
    if correction_in(optimizer.state.get(tensor, {})) is None:
        return local_of(tensor).detach().float().clone()
    parameter = _prepared(optimizer, tensor, writes=False)
    return join(parameter.local, correction_in(optimizer.state[tensor]), _storage_of(parameter))


def _prepared(optimizer: "FlashOptimizer", tensor: torch.Tensor, writes: bool = True) -> Parameter:
    return optimizer._prepare(tensor, optimizer._find_group(tensor), writes)


def _storage_of(parameter: Parameter) -> WeightStorage:
    assert parameter.stored_as is not None
    return parameter.stored_as


def get_fp32_model_state_dict(optimizer: "FlashOptimizer", model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """See FlashOptimizer."""
    model = _unwrapped(model)
    result = {
        name: value.detach().float() if value.is_floating_point() else value.detach()
        for name, value in model.state_dict().items()
    }
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name in result and correction_in(optimizer.state.get(tensor, {})) is not None:
            master = _master(optimizer, tensor)
            result[name] = wrap(master, tensor) if is_sharded(tensor) else master
    return result


def set_fp32_model_state_dict(
    optimizer: "FlashOptimizer", model: torch.nn.Module, fp32_state_dict: dict[str, torch.Tensor]
) -> None:
    """See FlashOptimizer."""
    fsdp.reshard(model)
    values = {}
    for name, tensor in _unwrapped(model).named_parameters():
        if name not in fp32_state_dict:
            continue
        value = fp32_state_dict[name]
        if value.dtype != torch.float32:
            raise ValueError(f"Expected fp32 value for '{name}', got {value.dtype}.")
        part = local_like(value, tensor)
        if is_sharded(tensor) and part.shape == tensor.shape:
            part = slice_of(part, tensor)
        if part.shape != local_of(tensor).shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}, its fp32 value {tuple(value.shape)}"
            )
        values[tensor] = part
    managed = {tensor for tensor, _ in optimizer._tensors_and_groups()}
    for tensor, value in values.items():
        if tensor in managed and tensor.dtype in WEIGHT_DTYPES:
            _prepared(optimizer, tensor).write_masters(value, optimizer.state[tensor])
        else:
            local_of(tensor).copy_(value)


@contextmanager
def full_precision(model: torch.nn.Module, optimizer: "FlashOptimizer") -> Iterator[torch.nn.Module]:
    """Inside, the model's parameters are its full-precision weights: for evaluation, averages of weights and export.

    On leaving, weights and corrections are as before, bit for bit; what was written inside is rounded and split anew.
    Parameters that are not the optimizer's, and buffers, are fp32 inside too. Parameters of a sharded model (FSDP2) are other tensors
    inside: ask the model for them. FSDP2 computes in fp32 then, whatever its mixed precision; all ranks enter and leave together.

    Raises:
        TypeError: for a model under FSDP2 of a torch version that works in another way; use get_fp32_model_state_dict.
    """
    fsdp.reshard(model)
    tensors = [p for p in dict.fromkeys(_unwrapped(model).parameters()) if p.dtype in _NARROW]
    buffers = [b for b in dict.fromkeys(_unwrapped(model).buffers()) if b.dtype in _NARROW]
    whole = {tensor: tensor.data for tensor in (*tensors, *buffers) if not is_sharded(tensor)}
    sharded = {
        tensor: torch.nn.Parameter(wrap(_master(optimizer, tensor), tensor), tensor.requires_grad)
        for tensor in tensors
        if is_sharded(tensor)
    }
    for module in model.modules():
        module.__dict__["_flashoptim_recasts"] = False
    for tensor in whole:
        tensor.data = _master(optimizer, tensor)
    try:
        with fsdp.exchanged(model, sharded):
            yield model
    finally:
        for module in model.modules():
            module.__dict__.pop("_flashoptim_recasts", None)
        with torch.no_grad():
            for tensor, weight in whole.items():
                inside, tensor.data = tensor.data, weight
                _take_over(optimizer, tensor, inside)
            for tensor, wide in sharded.items():
                _take_over(optimizer, tensor, local_of(wide))


def _take_over(optimizer: "FlashOptimizer", tensor: torch.Tensor, inside: torch.Tensor) -> None:
    """After the stored weight was put back: what was written into its full-precision value `inside`."""
    if torch.equal(_master(optimizer, tensor).view(torch.int32), inside.view(torch.int32)):
        return
    if optimizer._group_of(tensor) is not None:
        _prepared(optimizer, tensor).write_masters(inside, optimizer.state[tensor])
    else:
        local_of(tensor).copy_(inside)
