"""Casts a model to 16 bits, but for the layers and buffers that should stay as they are."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatch

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from . import fsdp
from .layer_casts import put_hooks
from .memory import copies, is_wrapper, neighbours, sharing

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

# Numbers in themselves. Floating-point types of 8 bits and less are codes that belong to scales, as integers do.
_CASTABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Layers = Sequence[str | nn.Module]


class _Wish(IntEnum):
    """What is to become of a tensor. The largest of all places where its memory is used holds."""

    FOLLOW = 0  # stays, unless its memory is that of a tensor that is cast
    CAST = 1
    KEEP = 2


@dataclass
class _Patterns:
    """Patterns of names, or modules themselves, and which of them have matched."""

    option: str
    patterns: Layers
    used: set[int] = field(default_factory=set)

    def match(self, names: Sequence[str], modules: Sequence[nn.Module]) -> bool:
        """Whether one of the names or modules is meant."""
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
        """What has matched nothing. A misspelt pattern changes what was to stay, or the other way round."""
        left = [pattern for n, pattern in enumerate(self.patterns) if n not in self.used]
        return [
            repr(pattern) if isinstance(pattern, str) else f"a {type(pattern).__name__}" for pattern in left
        ]


def _refuse_unused(*options: _Patterns) -> None:
    for patterns in options:
        if left := patterns.unused():
            raise ValueError(
                f"{patterns.option} has {left[0]}, which matches no buffer of the model; write names as named_buffers() gives them"
            )


def _layers(model: nn.Module, option: str, patterns: Layers | None) -> list[nn.Module]:
    """The layers that are meant, by any of their names. As the authors' package has no error here, a misspelt one warns."""
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
    """Each tensor of the model, once for each place where it is used."""
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
    """A module's dotted name and those of the modules that it is in; the model's own, which is empty, too."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]


def _to_cast(
    places: list[tuple[str, torch.Tensor, _Wish]], dtype: torch.dtype
) -> tuple[list[str], list[torch.Tensor]]:
    """Names and tensors, each once, of all memory that is to be cast."""
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
        # What sees one memory as two types would come apart: it stays.
        is_one_type = len({tensors[key].dtype for key in members}) == 1
        if is_one_type and max(wishes[key] for key in members) is _Wish.CAST:
            chosen += [key for key in members if tensors[key].dtype != dtype]
    return [names[key] for key in chosen], [tensors[key] for key in chosen]


def _converted(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that is made of others, in another dtype.

    Raises:
        ValueError: where its type cannot do that, or would become another type (a quantised weight its plain values).
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
    """Gives a tensor, which stays the same object, another value of another dtype, and its gradient that dtype."""
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
    """As nn.Module.to does it: what such a tensor is made of cannot be exchanged through `.data`."""
    former = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    torch.utils.swap_tensors(tensor, former)
    for key, attribute in former.__dict__.items():
        tensor.__dict__.setdefault(key, attribute)
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if getattr(former, hooks, None):
            setattr(tensor, hooks, getattr(former, hooks))


def _cast_in_place(names: list[str], tensors: list[torch.Tensor], dtype: torch.dtype) -> None:
    # What may be refused comes first; one after the other then, so that old and new weights never exist together.
    special = [n for n, tensor in enumerate(tensors) if is_wrapper(tensor)]
    converted = {n: _converted(names[n], tensors[n], dtype) for n in special}
    for group in neighbours(tensors):
        members = [tensors[n] for n in group]
        values = [converted.pop(n) for n in group if n in converted] or copies(members, dtype)
        for tensor, value in zip(members, values, strict=True):
            _exchange(tensor, value)


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

    Integers, booleans, complex numbers and floating-point types of 8 bits stay as they are, and so do buffers that are not
    persistent: they are tables that the model computes (rotary frequencies), which 16 bits do not hold. Tensors that share
    memory (tied weights, views, transposed ties) share it afterwards; if one of them is to stay, all of them do. Parameters
    stay the same objects, with their attributes and hooks, and gradients follow them, as in `model.to(dtype)`. A model on
    `meta` and one under FSDP2 are cast in the same way.

    Args:
        model: the model.
        dtype: what to cast to: float64, float32, bfloat16 or float16.
        selective: leave batch and instance norms, which keep running statistics, as they are.
        full_precision_layers: layers that stay in fp32, by patterns of `fnmatch` on their dotted names or by themselves
            ("head" is `model.head` alone; `"*.head"` the heads of all parts). The floating-point tensors that they are given are
            cast to fp32, by position or by keyword, inside of tuples, lists, dicts and dataclasses too.
        full_precision_recast_layers: the same, and their outputs are cast to `dtype` for the layers behind them.
        keep_buffers: buffers that stay although they are persistent, by patterns on their dotted names or those of
            modules around them, or by modules: averages (EMA), schedules, quantisation scales. It wins over `cast_buffers`.
        cast_buffers: buffers that are cast although they are not persistent: tables that are added to activations.

    Raises:
        ValueError: for another dtype, a pattern in `keep_buffers` or `cast_buffers` that matches no buffer, and a tensor
            that cannot be cast (of quantised weights, made in inference mode). Nothing has changed.
    """
    if dtype not in _CASTABLE:
        raise ValueError(
            f"a model cannot be cast to {dtype}; choose torch.bfloat16, float16, float32 or float64"
        )
    fsdp.reshard(model)
    wide = _layers(model, "full_precision_layers", full_precision_layers)
    recast = _layers(model, "full_precision_recast_layers", full_precision_recast_layers)
    keep, cast = _Patterns("keep_buffers", keep_buffers), _Patterns("cast_buffers", cast_buffers)
    places = list(_places(model, selective, [*wide, *recast], keep, cast))
    _refuse_unused(keep, cast)
    names, tensors = _to_cast(places, dtype)
    for name, tensor in zip(names, tensors, strict=True):
        if not is_lazy(tensor) and tensor.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode(), where it cannot be exchanged; make the model outside of it, or "
                "deep-copy it there"
            )
    # Ordinary tensors, to be trained later, wherever this is called.
    with torch.inference_mode(False), torch.no_grad():
        _cast_in_place(names, tensors, dtype)
    fsdp.notice_dtypes(model)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    for module in wide:
        put_hooks(module, None)
    for module in recast:
        put_hooks(module, dtype)
