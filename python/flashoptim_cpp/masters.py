"""Weights in full precision: their corrections, copies with all bits, and a context that puts them into the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from . import _operators as ops
from . import fsdp
from .corrections import correction_in, join
from .memory import copies, is_plain, sharing
from .options import WEIGHT_DTYPES
from .parameter import Parameter
from .sharding import is_sharded, local_of, wrap

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer

WeightFormat = Literal["native", "paper"]

NARROW = (torch.bfloat16, torch.float16)


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
    if narrow_param.dtype not in NARROW:
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
    if param.dtype not in NARROW:
        raise ValueError(f"param must be bf16 or fp16, which have corrections, got {param.dtype}.")
    if error_bits.dtype not in (torch.int8, torch.int16):
        raise ValueError(f"error_bits must be int8 or int16, got {error_bits.dtype}.")
    if param.shape != error_bits.shape:
        raise ValueError(f"param has the shape {tuple(param.shape)}, error_bits {tuple(error_bits.shape)}")
    bits = 24 if error_bits.dtype == torch.int8 else 32
    return ops.join_weights(param.detach().contiguous(), error_bits.contiguous(), bits, _is_paper(format))


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DistributedDataParallel or DataParallel, compiled or not; any other model itself.

    It is told by the type of the wrapper: a model may have a child of its own that is called `module`.
    """
    inner = model
    while True:
        if isinstance(inner, (DataParallel, DistributedDataParallel)):
            inner = model = inner.module
        elif type(inner).__name__ == "OptimizedModule" and "_orig_mod" in inner._modules:
            inner = inner._orig_mod  # type: ignore[assignment]
        else:
            return model


def refuse_fsdp1(model: torch.nn.Module) -> None:
    """Raises for FullyShardedDataParallel, whose parameters are pieces without a shape."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise TypeError(
            "full-precision weights of FullyShardedDataParallel are not known; use fully_shard (FSDP2)"
        )


def has_correction(optimizer: "FlashOptimizer", tensor: torch.Tensor) -> bool:
    """Whether the optimizer has more bits of this tensor than it shows."""
    return correction_in(optimizer.state.get(tensor, {})) is not None


def master_of(optimizer: "FlashOptimizer", tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter in full precision."""
    if not has_correction(optimizer, tensor):
        return local_of(tensor).detach().float().clone()
    parameter = prepared(optimizer, tensor, writes=False)
    assert parameter.stored_as is not None
    return join(parameter.local, correction_in(optimizer.state[tensor]), parameter.stored_as)


def prepared(optimizer: "FlashOptimizer", tensor: torch.Tensor, writes: bool = True) -> Parameter:
    """The optimizer's parameter with a state."""
    return optimizer._prepare(tensor, optimizer._find_group(tensor), writes)


def wide_copies(
    optimizer: "FlashOptimizer", tensors: Sequence[torch.Tensor]
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """Copies of plain tensors in fp32, with the bits that the optimizer has of them, that share memory as these do.

    Those of more than 16 bits, and what is no number, keep their dtype. They come as numbers and copies of those that belong
    together.
    """
    for group in sharing(tensors):
        members = [tensors[n] for n in group]
        owners = [n for n, tensor in enumerate(members) if has_correction(optimizer, tensor)]
        if len({(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in members}) == 1 or len(members) == 1:
            first = members[0]
            dtype = torch.float32 if first.dtype in NARROW else first.dtype
            one = master_of(optimizer, members[owners[0]]) if owners else first.detach().to(dtype, copy=True)
            yield group, [one.detach() for _ in members]
            continue
        made: list[torch.Tensor] = list(members)
        for dtype in dict.fromkeys(tensor.dtype for tensor in members):
            numbers = [n for n, tensor in enumerate(members) if tensor.dtype == dtype]
            wide = torch.float32 if dtype in NARROW else dtype
            for n, copied in zip(numbers, copies([members[n] for n in numbers], wide), strict=True):
                made[n] = copied
        for n in reversed(owners):  # the first one's bits hold
            made[n].copy_(master_of(optimizer, members[n]))
        yield group, made


@contextmanager
def full_precision(model: torch.nn.Module, optimizer: "FlashOptimizer") -> Iterator[torch.nn.Module]:
    """Inside, the model's parameters are its full-precision weights: for evaluation, averages of weights and export.

    On leaving, weights and corrections are as before, bit for bit; what was written inside is rounded and split anew.
    Parameters that are not the optimizer's, and buffers, are fp32 inside too; tied weights and views share memory inside as well.
    Parameters of a sharded model (FSDP2) are other tensors inside: ask the model for them. FSDP2 computes in fp32 then, whatever
    its mixed precision; all ranks enter and leave together.

    Raises:
        TypeError: for a model under FSDP1, or under FSDP2 of a torch version that works in another way; use
            get_fp32_model_state_dict.
        ValueError: on leaving, for a weight that was given another shape inside; everything is as before.
    """
    refuse_fsdp1(model)
    fsdp.reshard(model)
    every = dict.fromkeys([*unwrapped(model).parameters(), *unwrapped(model).buffers()])
    narrow = [t for t in every if t.dtype in NARROW or has_correction(optimizer, t)]
    plain = [tensor for tensor in narrow if is_plain(tensor)]
    whole: dict[torch.Tensor, torch.Tensor] = {}  # the stored weights of those that are fp32 now
    silent = [m for m in model.modules() if "_flashoptim_recasts" not in m.__dict__]
    sharded: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    try:
        for module in silent:
            module.__dict__["_flashoptim_recasts"] = False
        for tensor in narrow:
            if is_sharded(tensor) and isinstance(tensor, torch.nn.Parameter):
                wide = wrap(master_of(optimizer, tensor), tensor)
                sharded[tensor] = torch.nn.Parameter(wide, tensor.requires_grad)
        for numbers, values in wide_copies(optimizer, plain):
            for n, value in zip(numbers, values, strict=True):
                whole[plain[n]], plain[n].data = plain[n].data, value
        with fsdp.exchanged(model, sharded):
            yield model
    finally:
        for module in silent:
            module.__dict__.pop("_flashoptim_recasts", None)
        insides = {tensor: tensor.data for tensor in whole}
        for tensor, weight in whole.items():
            tensor.data = weight
        with torch.no_grad():
            _take_over(optimizer, insides | {t: local_of(wide) for t, wide in sharded.items()})


def _take_over(optimizer: "FlashOptimizer", insides: dict[torch.Tensor, torch.Tensor]) -> None:
    """After the stored weights were put back: what was written into their full-precision values `insides`."""
    written = {}
    for tensor, inside in insides.items():
        weight = local_of(tensor)
        if inside.shape != weight.shape:
            raise ValueError(
                f"a parameter of shape {tuple(weight.shape)} had the shape {tuple(inside.shape)} on leaving full_precision; "
                "write into it instead"
            )
        inside = inside.detach().to(weight.device, torch.float32)
        if not torch.equal(master_of(optimizer, tensor).view(torch.int32), inside.view(torch.int32)):
            written[tensor] = inside
    write_masters(optimizer, written)


def write_masters(optimizer: "FlashOptimizer", values: dict[torch.Tensor, torch.Tensor]) -> None:
    """Writes full-precision values, this rank's parts, into tensors of a model and what the optimizer has of them."""
    own = [t for t in values if t.dtype in WEIGHT_DTYPES and optimizer._group_of(t) is not None]
    parameters = {tensor: prepared(optimizer, tensor) for tensor in own}
    # Views of a parameter before the parameter itself: they are rounded otherwise than the half of a split.
    for tensor, value in values.items():
        if tensor not in parameters:
            local_of(tensor).copy_(value)
    for tensor, parameter in parameters.items():
        parameter.write_masters(values[tensor], optimizer.state[tensor])
