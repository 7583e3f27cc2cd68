"""Other parameters in the places of a sharded model's, for a while. The one file that knows the inside of FSDP2."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

Exchange = dict[torch.nn.Parameter, torch.nn.Parameter]

# What FSDP2 derives from a parameter and its dtype. It makes what is missing of the second line at the next forward.
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
    """Lets the model have its sharded parameters, those of the optimizer: after a forward alone it has whole ones."""
    for module in _sharded_modules(model):
        module.reshard()


def notice_dtypes(model: torch.nn.Module) -> None:
    """After the parameters of a model were cast in place: FSDP2 looks at them anew, as after `model.to(dtype)`."""
    for module in _sharded_modules(model):
        for group in _groups(module._get_fsdp_state()):
            for shard in group.fsdp_params:
                shard.reset_sharded_param()
                shard.__dict__.pop("_unsharded_param", None)
                shard.all_gather_outputs = []
            if hasattr(group.comm_ctx, "device_handle"):  # else the first forward does
                group._init_mp_dtypes()


def _kept(thing: object, names: tuple[str, ...]) -> dict[str, Any]:
    missing = [name for name in names if name not in thing.__dict__ and name not in _OF_GATHERING]
    if missing:
        raise TypeError(
            f"full_precision does not know FSDP2 of torch {torch.__version__}, which has no {missing[0]}; use "
            "optimizer.get_fp32_model_state_dict"
        )
    return {name: thing.__dict__[name] for name in names if name in thing.__dict__}


def _restore(thing: object, names: tuple[str, ...], kept: dict[str, Any]) -> None:
    for name in names:
        thing.__dict__.pop(name, None)
    thing.__dict__.update(kept)


def _take(shard: Any, exchange: Exchange) -> None:  # noqa: ANN401
    """Lets FSDP2's view of one parameter be that of another one; it is gathered in the dtype that it has."""
    shard.sharded_param = exchange.get(shard.sharded_param, shard.sharded_param)
    shard.orig_dtype, shard.param_dtype, shard.all_gather_outputs = shard.sharded_param.dtype, None, []
    shard.__dict__.pop("_unsharded_param", None)
    shard.reset_sharded_param()


@contextmanager
def exchanged(model: torch.nn.Module, exchange: Exchange) -> Iterator[None]:
    """Inside, the model has the values of `exchange` for its keys, in their own dtype, mixed precision or not.

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
