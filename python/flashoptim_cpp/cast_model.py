"""Casts a model to 16 bits, but for the layers that should stay in fp32."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

# Their running statistics are averages over many steps, which 16 bits do not hold.
_WITH_STATISTICS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)

Layers = Sequence[str | nn.Module]


def _matches(name: str, module: nn.Module, layers: Layers) -> bool:
    return any(module is layer if isinstance(layer, nn.Module) else fnmatch(name, layer) for layer in layers)


def _cast(value: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value


def _widen_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_cast(value, torch.float32) for value in args)


def _recast_outputs(dtype: torch.dtype) -> Callable[[nn.Module, Any, Any], Any]:
    def recast(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401
        if not getattr(module, "_flashoptim_recasts", True):  # full_precision(): what follows is fp32, too
            return output
        if isinstance(output, tuple):
            return tuple(_cast(value, dtype) for value in output)
        return _cast(output, dtype)

    return recast


def _kept(model: nn.Module, layers: Layers) -> set[torch.Tensor]:
    """Parameters and buffers of the layers that match, and of all that is in them."""
    kept: set[torch.Tensor] = set()
    for name, module in model.named_modules():
        if _matches(name, module, layers):
            kept.update(module.parameters())
            kept.update(module.buffers())
    return kept


def cast_model(
    model: nn.Module,
    dtype: torch.dtype = torch.bfloat16,
    selective: bool = True,
    full_precision_layers: list[str | nn.Module] | None = None,
    full_precision_recast_layers: list[str | nn.Module] | None = None,
) -> None:
    """Casts parameters and floating-point buffers in place.

    Args:
        model: the model. Shared parameters stay shared.
        dtype: what to cast to.
        selective: leave batch and instance norms, which keep running statistics, as they are.
        full_precision_layers: layers that stay in fp32, by patterns of `fnmatch` on their dotted names or by themselves
            ("head" is `model.head` alone; "*.head" the heads of all parts). Their inputs are cast to fp32.
        full_precision_recast_layers: the same, and their outputs are cast to `dtype` for the layers behind them.
    """
    wide, recast = full_precision_layers or [], full_precision_recast_layers or []
    kept = _kept(model, [*wide, *recast])
    # By address, which the first tensor keeps from being given away.
    done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in model.modules():
        if selective and isinstance(module, _WITH_STATISTICS):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            is_parameter = isinstance(tensor, nn.Parameter)
            if tensor in kept or not (is_parameter or tensor.is_floating_point()):
                continue
            pointer = tensor.data_ptr()
            if pointer not in done or tensor.numel() == 0:
                done[pointer] = tensor.data, tensor.data.to(dtype)
            tensor.data = done[pointer][1]
    for name, module in model.named_modules():
        is_recast = _matches(name, module, recast)
        if not (is_recast or _matches(name, module, wide)) or getattr(module, "_has_fp32_input_hook", False):
            continue
        module.register_forward_pre_hook(_widen_inputs)
        if is_recast:
            module.register_forward_hook(_recast_outputs(dtype))
        module._has_fp32_input_hook = True
