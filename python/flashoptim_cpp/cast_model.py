"""Casts a model to 16 bits, except for layers and buffers that should keep their dtype."""

import copy
import warnings
from collections.abc import Iterator, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import IntEnum
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .memory import check_type, copies, is_wrapper, neighbours, sharing
from .sharding import notice_dtypes, reshard

# Layers with running statistics. These are averages over many steps, for which 16 bits are too few.
_WITH_STATISTICS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)

# Dtypes that are cast. Floating-point types of 8 bits and less hold codes, as integers do.
_CASTABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Layers = Sequence[str | nn.Module]


class _Wish(IntEnum):
    """What happens to a tensor. If its memory is used in several places, the largest wish wins."""

    FOLLOW = 0  # keeps its dtype, unless it shares memory with a tensor that is cast
    CAST = 1
    KEEP = 2


@dataclass
class _Patterns:
    """Name patterns and modules, with a record of those that have matched."""

    option: str
    patterns: Layers
    used: set[int] = field(default_factory=set)

    def match(self, names: Sequence[str], modules: Sequence[nn.Module]) -> bool:
        """Whether a pattern matches one of the names or modules."""
        found = False
        for n, pattern in enumerate(self.patterns):
            if isinstance(pattern, nn.Module):
                is_meant = any(module is pattern for module in modules)
            else:
                is_meant = any(fnmatch(name, pattern) for name in names)
            if is_meant:
                self.used.add(n)
                found = True
        return found

    def unused(self) -> list[str]:
        """The patterns that matched nothing. They are probably misspelt."""
        left = [pattern for n, pattern in enumerate(self.patterns) if n not in self.used]
        return [
            repr(pattern) if isinstance(pattern, str) else f"a {type(pattern).__name__}" for pattern in left
        ]


def _refuse_unused(*options: _Patterns) -> None:
    for patterns in options:
        if left := patterns.unused():
            raise ValueError(
                f"{patterns.option} has {left[0]}, which matches no buffer of the model; write names as "
                "named_buffers() gives them"
            )


def _layers(model: nn.Module, option: str, patterns: Layers | None) -> list[nn.Module]:
    """The layers that match by any of their names. Warns of a pattern without a match."""
    wanted = _Patterns(option, patterns or ())
    found = {
        id(module): module
        for name, module in model.named_modules(remove_duplicate=False)
        if wanted.match([name], [module])
    }
    if left := wanted.unused():
        warnings.warn(f"{option} has {left[0]}, which matches no layer of the model", stacklevel=3)
    return list(found.values())


def _places(
    model: nn.Module, selective: bool, kept_layers: list[nn.Module], keep: _Patterns, cast: _Patterns
) -> Iterator[tuple[str, torch.Tensor, _Wish]]:
    """Yields each tensor of the model, once for each place where it is used."""
    kept = {id(part) for layer in kept_layers for part in layer.modules()}
    parents: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    tensor: torch.Tensor
    for path, module in parents.items():
        is_kept = id(module) in kept or (selective and isinstance(module, _WITH_STATISTICS))
        prefix = f"{path}." if path else ""
        for key, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            stays = is_kept or tensor.dtype not in _CASTABLE
            yield prefix + key, tensor, _Wish.KEEP if stays else _Wish.CAST
        around = _names_around(path)
        modules = [parents[name] for name in around]
        passing = getattr(module, "_non_persistent_buffers_set", ())
        for key, tensor in module.named_buffers(recurse=False, remove_duplicate=False):
            names = [prefix + key, *filter(None, around)]
            is_named, is_cast = keep.match(names, modules), cast.match(names, modules)
            if is_kept or is_named or tensor.dtype not in _CASTABLE:
                yield prefix + key, tensor, _Wish.KEEP
            else:
                yield prefix + key, tensor, _Wish.CAST if is_cast or key not in passing else _Wish.FOLLOW


def _names_around(path: str) -> list[str]:
    """The dotted names of a module and of all modules around it, with the model's empty name."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]


def _to_cast(
    places: list[tuple[str, torch.Tensor, _Wish]], dtype: torch.dtype
) -> tuple[list[str], list[torch.Tensor]]:
    """The names and tensors to cast, each tensor once."""
    names: dict[int, str] = {}
    wishes: dict[int, _Wish] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor, wish in places:
        key = id(tensor)
        names.setdefault(key, name)
        tensors[key] = tensor
        wishes[key] = max(wish, wishes.get(key, _Wish.FOLLOW))
    keys = list(tensors)
    chosen = []
    for group in sharing(list(tensors.values())):
        members = [keys[n] for n in group]
        # Views of one memory with different dtypes cannot be cast together, so they stay.
        is_one_type = len({tensors[key].dtype for key in members}) == 1
        if is_one_type and max(wishes[key] for key in members) is _Wish.CAST:
            chosen += [key for key in members if tensors[key].dtype != dtype]
    return [names[key] for key in chosen], [tensors[key] for key in chosen]


def _converted(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Casts a wrapper tensor, which is made of other tensors.

    Raises:
        ValueError: where its type cannot do that, or would become another (a quantised weight its values).
    """
    kind = type(tensor.data).__name__
    remedy = "cast the model before its weights become that, or name its layer in full_precision_layers"
    try:
        (converted,) = copies([tensor.data], dtype)
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name} is a {kind}, which cannot be cast to {dtype}: {reason}; {remedy}"
        ) from error
    if type(converted) is not type(tensor.data) or converted.dtype != dtype:
        becomes = f"{type(converted).__name__} of {converted.dtype}"
        raise ValueError(f"{name} is a {kind}, which cast to {dtype} becomes a {becomes}; {remedy}")
    return converted


def _exchange(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Gives the same tensor object a value of another dtype, and its gradient that dtype."""
    gradient, tensor.grad = tensor.grad if tensor.is_leaf else None, None
    if is_wrapper(tensor):
        _swap(tensor, value)
    else:
        tensor.data = value
    if gradient is None:
        return
    wanted = getattr(tensor, "grad_dtype", tensor.dtype)
    if wanted is not None and gradient.dtype != wanted:
        if is_wrapper(gradient):
            gradient = gradient.to(wanted)
        else:
            gradient.data = gradient.data.to(wanted)
    tensor.grad = gradient


def _swap(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Exchanges a wrapper tensor as nn.Module.to does, because `.data` cannot exchange its inner tensors."""
    former = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    torch.utils.swap_tensors(tensor, former)
    for key, attribute in former.__dict__.items():
        tensor.__dict__.setdefault(key, attribute)
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if getattr(former, hooks, None):
            setattr(tensor, hooks, getattr(former, hooks))


def _cast_in_place(names: list[str], tensors: list[torch.Tensor], dtype: torch.dtype) -> None:
    # Tensors that may be refused are converted first. The others follow one by one, so that old and new
    # weights never exist together.
    special = [n for n, tensor in enumerate(tensors) if is_wrapper(tensor)]
    converted = {n: _converted(names[n], tensors[n], dtype) for n in special}
    for group in neighbours(tensors):
        members = [tensors[n] for n in group]
        values = [converted.pop(n) for n in group if n in converted] or copies(members, dtype)
        for tensor, value in zip(members, values, strict=True):
            _exchange(tensor, value)


# Inputs and outputs of layers in fp32 inside a model of 16 bits


class _Met:
    """Tensors and containers seen so far. A repeated one is cast once and stays one object."""

    def __init__(self) -> None:
        self.tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.containers: dict[int, Any] = {}


def _cast_floats(value: Any, dtype: torch.dtype, met: _Met | None = None) -> Any:  # noqa: ANN401
    """The value with every floating-point tensor in it cast: in tuples, lists, dicts and dataclasses, nested.

    A container with nothing to cast is returned unchanged. Other containers are copied, so the caller's do
    not change.
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
    if torch.compiler.is_compiling():  # the compiler does not support the identity of containers
        return _rebuilt(value, dtype, met)
    if id(value) not in met.containers:
        met.containers[id(value)] = value  # for a container that contains itself
        met.containers[id(value)] = _rebuilt(value, dtype, met)
    return met.containers[id(value)]


def _items(value: Any) -> list[Any]:  # noqa: ANN401
    """The items of a container; empty for any other value."""
    if isinstance(value, (tuple, MutableSequence)):
        return list(value)
    if isinstance(value, MutableMapping):
        return list(value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name, None) for one in fields(value)]
    return []


def _has_floats(value: Any, dtype: torch.dtype, seen: set[int]) -> bool:  # noqa: ANN401
    """Whether the value has a tensor to cast."""
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
        return _sequence_like(value, [_cast_floats(item, dtype, met) for item in value])
    if type(value) is dict:
        return {key: _cast_floats(item, dtype, met) for key, item in value.items()}
    result = copy.copy(value)
    if isinstance(value, MutableMapping):
        for key, item in value.items():
            if _has_floats(item, dtype, set()):
                result[key] = _cast_floats(item, dtype, met)
        return result
    for one in fields(value):
        item = getattr(value, one.name, None)
        if _has_floats(item, dtype, set()):
            object.__setattr__(result, one.name, _cast_floats(item, dtype, met))  # frozen ones too
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


def _widen_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook that casts the layer's inputs to fp32."""
    met = _Met()
    return _cast_floats(args, torch.float32, met), _cast_floats(kwargs, torch.float32, met)


def _recast_outputs(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401
    """A forward hook that casts the layer's outputs to the dtype of the following layers."""
    if not getattr(module, "_flashoptim_recasts", True):  # full_precision(): so are the next layers
        return output
    dtype: Any = module._flashoptim_output_dtype
    return _cast_floats(output, dtype)


def _put_hooks(module: nn.Module, output_dtype: torch.dtype | None) -> None:
    """Gives a layer its hooks once. `output_dtype` None leaves the outputs in fp32."""
    if not getattr(module, "_has_fp32_input_hook", False):
        module.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
        module._has_fp32_input_hook = True  # type: ignore[assignment]
    if output_dtype is None:
        return
    if getattr(module, "_flashoptim_output_dtype", None) is None:
        module.register_forward_hook(_recast_outputs)
    module._flashoptim_output_dtype = output_dtype  # type: ignore[assignment]


# The whole model


def cast_model(
    model: nn.Module,
    dtype: torch.dtype = torch.bfloat16,
    selective: bool = True,
    full_precision_layers: list[str | nn.Module] | None = None,
    full_precision_recast_layers: list[str | nn.Module] | None = None,
    *,
    keep_buffers: Layers = (),
    cast_buffers: Layers = (),
) -> None:
    """Casts floating-point parameters and persistent buffers in place.

    Integers, booleans, complex numbers and floating-point types of 8 bits stay as they are, and so do buffers
    that are not persistent: they are tables that the model computes (rotary frequencies), which 16 bits do
    not hold. Tensors that share memory (tied weights, views, transposed ties) share it afterwards; if one of
    them is to stay, all of them do. Parameters stay the same objects, with their attributes and hooks, and
    gradients follow them, as in `model.to(dtype)`. A model on `meta` and one under FSDP2 are cast in the same
    way.

    Args:
        model: the model.
        dtype: what to cast to: float64, float32, bfloat16 or float16.
        selective: leave batch and instance norms, which keep running statistics, as they are.
        full_precision_layers: layers that stay in fp32, by patterns of `fnmatch` on their dotted names or by
            themselves ("head" is `model.head` alone; `"*.head"` the heads of all parts). The floating-point
            tensors that they are given are cast to fp32, by position or by keyword, inside of tuples, lists,
            dicts and dataclasses too.
        full_precision_recast_layers: the same, and their outputs are cast to `dtype`.
        keep_buffers: buffers that stay although they are persistent, by patterns on their dotted names or
            those of modules around them, or by modules: averages (EMA), schedules, quantisation scales. It
            wins over `cast_buffers`.
        cast_buffers: buffers that are cast although they are not persistent: tables added to activations.

    Raises:
        TypeError: for a model that is no module.
        ValueError: for another dtype, a pattern in `keep_buffers` or `cast_buffers` that matches no buffer,
            and a tensor that cannot be cast (of quantised weights, made in inference mode). Nothing has
            changed.
    """
    check_type(model, nn.Module, "model")
    if dtype not in _CASTABLE:
        raise ValueError(
            f"a model cannot be cast to {dtype}; choose torch.bfloat16, float16, float32 or float64"
        )
    reshard(model)
    wide = _layers(model, "full_precision_layers", full_precision_layers)
    recast = _layers(model, "full_precision_recast_layers", full_precision_recast_layers)
    keep, cast = _Patterns("keep_buffers", keep_buffers), _Patterns("cast_buffers", cast_buffers)
    places = list(_places(model, selective, [*wide, *recast], keep, cast))
    _refuse_unused(keep, cast)
    names, tensors = _to_cast(places, dtype)
    for name, tensor in zip(names, tensors, strict=True):
        if not is_lazy(tensor) and tensor.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode(), where it cannot be exchanged; make the model "
                "outside of it, or deep-copy it there"
            )
    # Ordinary tensors, to be trained later, wherever this is called.
    with torch.inference_mode(False), torch.no_grad():
        _cast_in_place(names, tensors, dtype)
    notice_dtypes(model)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    for module in wide:
        _put_hooks(module, None)
    for module in recast:
        _put_hooks(module, dtype)
