"""Gradients: which can be stepped, and their norm over all parameters and ranks."""

from typing import TYPE_CHECKING

import torch

from .fake import is_fake
from .memory import has_several_parts
from .options import WEIGHT_DTYPES
from .parameter import Parameter
from .sharding import local_like, local_of, shard_key, sum_over_shards

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer


_SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
_PLAIN = torch.Tensor.__torch_dispatch__


def refusal_of(gradient: torch.Tensor, parameter: Parameter) -> Exception | None:
    """Why a gradient, or this rank's part of one, cannot be stepped; None where it can."""
    name, local = f"the gradient of {parameter.name}", parameter.local
    if not isinstance(gradient, torch.Tensor):
        return ValueError(f"{name} is a {type(gradient).__name__}: give a tensor")
    if gradient.is_nested:
        return ValueError(f"{name} is a nested tensor: give a dense one")
    if gradient.layout in _SPARSE:
        return RuntimeError(f"{name} is sparse: make it dense (for an embedding: sparse=False)")
    if gradient.layout != torch.strided:
        return ValueError(f"{name} has the layout {gradient.layout}: make it strided")
    if gradient.device != local.device:
        return ValueError(f"{name} is on {gradient.device}: it must be on {local.device}")
    if gradient.dtype not in WEIGHT_DTYPES:
        return ValueError(f"{name} is {gradient.dtype}: give float32, bfloat16 or float16")
    if gradient.shape != local.shape:
        return ValueError(f"{name} has the shape {tuple(gradient.shape)}: it must be {tuple(local.shape)}")
    if is_fake(gradient) != is_fake(local):
        return ValueError(f"{name} is fake, and its weight is not, or the other way round: give both memory")
    if hasattr(type(gradient), "__tensor_flatten__") or type(gradient).__torch_dispatch__ is not _PLAIN:
        return ValueError(f"{name} is a {type(gradient).__name__}: give a plain tensor")
    return None


def refuse_several_parts(gradients: list[torch.Tensor], parameters: list[Parameter]) -> None:
    """A step with such a gradient would be several, and nothing would say so."""
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if isinstance(gradient, torch.Tensor) and has_several_parts(gradient):
            kind = type(gradient).__name__
            raise ValueError(f"the gradient of {parameter.name} is a {kind}: give a plain tensor")


def _home(devices: list[torch.device]) -> torch.device:
    """Where parts of a norm are brought together: on the first GPU where all are on GPUs, so that nobody waits for them."""
    cpu = torch.device("cpu")
    return cpu if cpu in devices or not devices else devices[0]


def grad_norm(optimizer: "FlashOptimizer") -> torch.Tensor:
    """The Euclidean norm of all gradients, float64, on their device; a collective where parameters are sharded."""
    optimizer._follow_groups()
    home = _home([local_of(tensor).device for tensor, _ in optimizer._tensors_and_groups()])
    first = next(iter(optimizer._places), None)
    if first is not None and is_fake(first):
        return local_of(first).detach().new_zeros((), dtype=torch.float64)
    by_place: dict[object, list[tuple[torch.Tensor, dict]]] = {}
    for tensor, group in optimizer._tensors_and_groups():
        by_place.setdefault(shard_key(tensor), []).append((tensor, group))
    total = torch.zeros((), dtype=torch.float64, device=home)
    for members in by_place.values():
        chosen = [(t, g) for t, g in members if t.grad is not None]
        square = torch.zeros((), dtype=torch.float64, device=home)
        tensors = [tensor for tensor, _ in chosen]
        for table in optimizer._tables_for(tensors, [group for _, group in chosen]) if chosen else ():
            gradients = [local_like(tensor.grad, tensor) for tensor in table.tensors]  # type: ignore[arg-type]
            refuse_several_parts(gradients, table.parameters)
            norm = table.grad_norm(gradients)
            square += norm.to(home, non_blocking=home.type != "cpu") ** 2
        total += sum_over_shards(square, members[0][0])
    return total.sqrt()
