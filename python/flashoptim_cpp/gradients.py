"""Gradients: their norm over all parameters and ranks, and accumulation in fp32."""

from typing import TYPE_CHECKING

import torch

from .sharding import is_sharded, local_like, local_of, shard_key, sum_over_shards

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer


def _widen(tensor: torch.Tensor) -> None:
    if tensor.grad is not None and tensor.grad.dtype != torch.float32:
        tensor.grad = tensor.grad.float()


def accumulate_in_fp32(tensor: torch.Tensor) -> None:
    """From now on `tensor.grad` is fp32, and later contributions are added to it in fp32."""
    if tensor.dtype == torch.float32 or not tensor.requires_grad:
        return
    if is_sharded(tensor):
        # FSDP puts gradients of the parameter's own dtype there; they are widened before the next is added.
        tensor.grad_dtype = None
        _widen(tensor)
        tensor.register_post_accumulate_grad_hook(_widen)
        return
    gradient, tensor.grad = tensor.grad, None
    tensor.grad_dtype = torch.float32
    tensor.grad = None if gradient is None else gradient.float()


def _home(devices: list[torch.device]) -> torch.device:
    """Where parts of a norm are brought together: on the first GPU where all are on GPUs, so that nobody waits for them."""
    cpu = torch.device("cpu")
    return cpu if cpu in devices or not devices else devices[0]


def grad_norm(optimizer: "FlashOptimizer") -> torch.Tensor:
    """The Euclidean norm of all gradients, float64, on their device; a collective where parameters are sharded."""
    home = _home([local_of(tensor).device for tensor, _ in optimizer._tensors_and_groups()])
    by_place: dict[object, list[tuple[torch.Tensor, dict]]] = {}
    for tensor, group in optimizer._tensors_and_groups():
        by_place.setdefault(shard_key(tensor), []).append((tensor, group))
    total = torch.zeros((), dtype=torch.float64, device=home)
    for members in by_place.values():
        chosen = [(t, g) for t, g in members if t.grad is not None and t.requires_grad]
        square = torch.zeros((), dtype=torch.float64, device=home)
        tensors = [tensor for tensor, _ in chosen]
        for table in optimizer._tables_for(tensors, [group for _, group in chosen]) if chosen else ():
            gradients = [local_like(tensor.grad, tensor) for tensor in table.tensors]  # type: ignore[arg-type]
            norm = table.grad_norm(gradients)
            square += norm.to(home, non_blocking=home.type != "cpu") ** 2
        total += sum_over_shards(square, members[0][0])
    return total.sqrt()
