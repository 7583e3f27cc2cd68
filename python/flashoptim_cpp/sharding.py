"""DTensors: the local part, its place in the whole tensor, sums over ranks. Also FSDP2's internals."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this is a DTensor. Does not import torch.distributed.tensor if the program does not."""
    return hasattr(tensor, "device_mesh")


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of this rank: the tensor itself, or the local part of a DTensor."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        local = tensor.to_local()  # type: ignore[attr-defined]
    return local.wait() if hasattr(local, "trigger_wait") else local


def local_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The part of a gradient or a state that belongs to this rank's part of the parameter.

    `tensor` may be a DTensor in any placement, the local part, or the whole tensor.
    """
    given, like = cast(Any, tensor), cast(Any, parameter)
    if not is_sharded(parameter):
        return given.full_tensor() if is_sharded(tensor) else tensor
    if not is_sharded(tensor):
        return tensor
    if given.device_mesh != like.device_mesh:
        return slice_of(given.full_tensor(), parameter)
    same = given.placements == like.placements
    return local_of(given if same else given.redistribute(like.device_mesh, like.placements))


def place_of(parameter: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and offset of the local part of a DTensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape,
        parameter.device_mesh,  # type: ignore[attr-defined]
        parameter.placements,  # type: ignore[attr-defined]
    )
    return tuple(shape), tuple(offset)


def slice_of(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor of the parameter's shape."""
    shape, offset = place_of(parameter)
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        whole = whole.narrow(dim, start, size)
    return whole


def wrap(local: torch.Tensor, like: torch.Tensor, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A DTensor of this local part with the placements of `like`. `shape` is the whole shape (default:
    `like`'s).

    Shape and strides are passed, because torch would infer a wrong whole shape for uneven parts.
    """
    from torch.distributed.tensor import DTensor

    whole = like.shape if shape is None else torch.Size(shape)
    strides = like.stride() if shape is None else torch.empty(whole, device="meta").stride()
    return DTensor.from_local(
        local,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=whole,
        stride=strides,
    )


def _is_cut(placement: Any) -> bool:  # noqa: ANN401
    return not placement.is_replicate() and not placement.is_partial()


def _mesh_dims(parameter: torch.Tensor, only_sharded: bool) -> list[tuple[Any, int]]:
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return [(mesh, n) for n, placement in enumerate(placements) if not only_sharded or _is_cut(placement)]


def all_reduce_max(value: torch.Tensor, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """The largest value over all ranks that hold a part of the parameters; a collective if one is sharded."""
    import torch.distributed as dist

    seen: list[tuple[Any, int]] = []
    for parameter in parameters:
        for place in _mesh_dims(parameter, only_sharded=False):
            if place not in seen:
                seen.append(place)
                dist.all_reduce(value, dist.ReduceOp.MAX, group=place[0].get_group(place[1]))
    return value


def sum_over_shards(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks that hold different parts of the parameter; a collective if it is sharded."""
    import torch.distributed as dist

    if is_sharded(parameter):
        for mesh, dim in _mesh_dims(parameter, only_sharded=True):
            dist.all_reduce(value, group=mesh.get_group(dim))
    return value


def shard_key(parameter: torch.Tensor) -> tuple[Any, ...]:
    """A key that is equal for parameters with the same placements on the same ranks."""
    if not is_sharded(parameter):
        return ()
    return tuple((id(mesh), dim) for mesh, dim in _mesh_dims(parameter, only_sharded=True))


# FSDP2

Exchange = dict[torch.nn.Parameter, torch.nn.Parameter]

# Attributes that FSDP2 derives from a parameter and its dtype. Its next forward computes them again.
_OF_PARAMETER = (
    "sharded_param",
    "_sharded_param_data",
    "_sharding_spec",
    "orig_dtype",
    "param_dtype",
    "reduce_dtype",
)
_OF_GATHERING = ("all_gather_outputs", "_unsharded_param")
_OF_GROUP = ("mp_policy", "_orig_dtype", "_reduce_dtype")
_OF_STATE = ("_mp_policy",)


def _sharded_modules(model: torch.nn.Module) -> list[Any]:
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def reshard(model: torch.nn.Module) -> None:
    """Gives the model its sharded parameters again: after a forward without backward it has whole ones."""
    for module in _sharded_modules(model):
        module.reshard()


def notice_dtypes(model: torch.nn.Module) -> None:
    """Makes FSDP2 read the dtypes of parameters again after an in-place cast, as after `model.to(dtype)`."""
    for module in _sharded_modules(model):
        for group in _groups(module._get_fsdp_state()):
            for shard in group.fsdp_params:
                shard.reset_sharded_param()
                shard.__dict__.pop("_unsharded_param", None)
                shard.all_gather_outputs = []
            if hasattr(group.comm_ctx, "device_handle"):  # else the first forward does so
                group._init_mp_dtypes()


def _kept(thing: object, names: tuple[str, ...]) -> dict[str, Any]:
    missing = [name for name in names if name not in thing.__dict__ and name not in _OF_GATHERING]
    if missing:
        raise TypeError(
            f"full_precision does not know FSDP2 of torch {torch.__version__}, which has no {missing[0]}; "
            "use optimizer.get_fp32_model_state_dict"
        )
    return {name: thing.__dict__[name] for name in names if name in thing.__dict__}


def _restore(thing: object, names: tuple[str, ...], kept: dict[str, Any]) -> None:
    for name in names:
        thing.__dict__.pop(name, None)
    thing.__dict__.update(kept)


def _take(shard: Any, exchange: Exchange) -> None:  # noqa: ANN401
    """Replaces a parameter inside FSDP2 by another one, which is gathered in its own dtype."""
    shard.sharded_param = exchange.get(shard.sharded_param, shard.sharded_param)
    shard.orig_dtype, shard.param_dtype, shard.all_gather_outputs = shard.sharded_param.dtype, None, []
    shard.__dict__.pop("_unsharded_param", None)
    shard.reset_sharded_param()


@contextmanager
def exchanged(model: torch.nn.Module, exchange: Exchange) -> Iterator[None]:
    """A context in which the model has the values of `exchange` in place of its keys, in their own dtype.

    The model must be resharded.

    Raises:
        TypeError: for an FSDP2 that has another inside.
    """
    modules = _sharded_modules(model)
    states = [module._get_fsdp_state() for module in modules]
    groups = [group for state in states for group in _groups(state)]
    for group in groups:
        group.lazy_init()
    shards = [shard for group in groups for shard in group.fsdp_params]
    names = [(shards, _OF_PARAMETER + _OF_GATHERING), (groups, _OF_GROUP), (states, _OF_STATE)]
    kept = [(thing, own, _kept(thing, own)) for things, own in names for thing in things]
    places = [
        (module._parameters, name, p)
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None and p in exchange
    ]
    try:
        for parameters, name, p in places:
            parameters[name] = exchange[p]
        for state in states:
            state._mp_policy = replace(state._mp_policy, param_dtype=None)
        for group in groups:
            group.mp_policy = replace(group.mp_policy, param_dtype=None)
        for shard in shards:
            _take(shard, exchange)
        yield
    finally:
        for module in modules:
            module.reshard()
        for thing, own, values in kept:
            _restore(thing, own, values)
        for parameters, name, p in places:
            parameters[name] = p


def _groups(state: Any) -> list[Any]:  # noqa: ANN401
    many = getattr(state, "_fsdp_param_groups", None)
    if many is not None:
        return list(many)
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []
