"""What layers in fp32 are given and hand on inside a model of 16 bits: hooks that cast what goes in and what comes out."""

import copy
from collections.abc import MutableMapping, MutableSequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn


class _Met:
    """What was met on the way: a tensor that is given twice is cast once and stays one object, and so does a container."""

    def __init__(self) -> None:
        self.tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.containers: dict[int, Any] = {}


def cast_floats(value: Any, dtype: torch.dtype, met: _Met | None = None) -> Any:  # noqa: ANN401
    """The value with every floating-point tensor in it cast: in tuples, lists, dicts and dataclasses, nested.

    A container of which nothing is cast is handed on itself; others are copied, so that the caller's stays as it is.
    """
    met = met or _Met()
    if not _has_floats(value, dtype, set()):
        return value
    if isinstance(value, torch.Tensor):
        for old, new in met.tensors:
            if old is value:
                return new
        cast = value.to(dtype)
        met.tensors.append((value, cast))
        return cast
    if torch.compiler.is_compiling():  # which knows no identity of containers
        return _rebuilt(value, dtype, met)
    if id(value) not in met.containers:
        met.containers[id(value)] = value  # for one that has itself in it
        met.containers[id(value)] = _rebuilt(value, dtype, met)
    return met.containers[id(value)]


def _items(value: Any) -> list[Any]:  # noqa: ANN401
    """What is in a container; nothing in anything else."""
    if isinstance(value, (tuple, MutableSequence)):
        return list(value)
    if isinstance(value, MutableMapping):
        return list(value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    return []


def _has_floats(value: Any, dtype: torch.dtype, seen: set[int]) -> bool:  # noqa: ANN401
    """Whether there is something to cast."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and value.dtype != dtype
    items = _items(value)
    if not items:
        return False
    if not torch.compiler.is_compiling():
        if id(value) in seen:
            return False
        seen.add(id(value))
    return any(_has_floats(item, dtype, seen) for item in items)


def _rebuilt(value: Any, dtype: torch.dtype, met: _Met) -> Any:  # noqa: ANN401
    """A container of the same kind with cast items."""
    if isinstance(value, (tuple, MutableSequence)):
        return _sequence_like(value, [cast_floats(item, dtype, met) for item in value])
    if type(value) is dict:
        return {key: cast_floats(item, dtype, met) for key, item in value.items()}
    result = copy.copy(value)
    if isinstance(value, MutableMapping):
        for key, item in value.items():
            if _has_floats(item, dtype, set()):
                result[key] = cast_floats(item, dtype, met)
        return result
    for field in fields(value):
        item = getattr(value, field.name, None)
        if _has_floats(item, dtype, set()):
            object.__setattr__(result, field.name, cast_floats(item, dtype, met))  # frozen ones too
    return result


def _sequence_like(value: Any, items: list[Any]) -> Any:  # noqa: ANN401
    if type(value) is list:
        return items
    if type(value) is tuple:
        return tuple(items)
    if isinstance(value, tuple):
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    result = copy.copy(value)
    for n, item in enumerate(items):
        result[n] = item
    return result


def widen_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook: whatever is given to the layer becomes fp32."""
    met = _Met()
    return cast_floats(args, torch.float32, met), cast_floats(kwargs, torch.float32, met)


def recast_outputs(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401
    """A forward hook: what the layer hands on has the dtype of the layers behind it."""
    if not getattr(module, "_flashoptim_recasts", True):  # full_precision(): what follows is fp32, too
        return output
    dtype: Any = module._flashoptim_output_dtype
    return cast_floats(output, dtype)


def put_hooks(module: nn.Module, output_dtype: torch.dtype | None) -> None:
    """Gives a layer its hooks, once however often it is called. `output_dtype`: None leaves the outputs in fp32."""
    if not getattr(module, "_has_fp32_input_hook", False):
        module.register_forward_pre_hook(widen_inputs, with_kwargs=True)
        module._has_fp32_input_hook = True  # type: ignore[assignment]
    if output_dtype is None:
        return
    if getattr(module, "_flashoptim_output_dtype", None) is None:
        module.register_forward_hook(recast_outputs)
    module._flashoptim_output_dtype = output_dtype  # type: ignore[assignment]
