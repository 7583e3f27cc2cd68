"""Parameters that are parts of larger ones (DTensor): the local part, its place in the whole, sums over its ranks."""

from collections.abc import Iterable
from typing import Any

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this is a DTensor. Costs no import where torch.distributed.tensor is not used."""
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
    if not is_sharded(parameter):
        return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    if is_sharded(tensor):
        if tensor.device_mesh != parameter.device_mesh:  # type: ignore[attr-defined]
            return slice_of(tensor.full_tensor(), parameter)  # type: ignore[attr-defined]
        if tensor.placements != parameter.placements:  # type: ignore[attr-defined]
            tensor = tensor.redistribute(parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
        return local_of(tensor)
    return tensor


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
    """A DTensor of this local part, cut as `like` is. `shape` is the whole's, `like`'s own by default.

    Without shape and strides an uneven cut would silently get a wrong whole shape.
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
    """The largest value over all ranks that hold a part of these parameters; a collective where one is sharded."""
    import torch.distributed as dist

    seen: list[tuple[Any, int]] = []
    for parameter in parameters:
        for place in _mesh_dims(parameter, only_sharded=False):
            if place not in seen:
                seen.append(place)
                dist.all_reduce(value, dist.ReduceOp.MAX, group=place[0].get_group(place[1]))
    return value


def sum_over_shards(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks that hold different parts of this parameter; a collective where it is sharded."""
    import torch.distributed as dist

    if is_sharded(parameter):
        for mesh, dim in _mesh_dims(parameter, only_sharded=True):
            dist.all_reduce(value, group=mesh.get_group(dim))
    return value


def shard_key(parameter: torch.Tensor) -> tuple[Any, ...]:
    """Equal for parameters whose parts lie on the same ranks in the same way."""
    if not is_sharded(parameter):
        return ()
    return tuple((id(mesh), dim) for mesh, dim in _mesh_dims(parameter, only_sharded=True))
