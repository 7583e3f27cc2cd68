"""The network of the distributed checks, its whole gradients, and what of it is compared."""

from __future__ import annotations

from typing import Any

import torch
from support import ADAMW, LION, SGD
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

Tensor = torch.Tensor
RULES = (ADAMW, LION, SGD)


class Network(torch.nn.Module):
    """Even and uneven rows, fewer rows than ranks, moments in codes and in fp32, a layer of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(64, 96)  # 96 rows: even
        self.second = torch.nn.Linear(96, 67)  # 67 rows: uneven
        self.last = torch.nn.Linear(67, 4)
        self.frozen = torch.nn.Parameter(torch.randn(3, 1500))  # 3 rows: empty on the last of 4 ranks
        self.tall = torch.nn.Parameter(torch.randn(3, 1500) * 0.01)
        self.block = torch.nn.Parameter(torch.randn(9, 5, 100) * 0.01)  # three dimensions

    def forward(self, inputs: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(inputs))))
        rest = (self.tall * self.frozen).sum() * 1e-3 + self.block.sum() * 1e-3
        return self.last(x) + rest


def sharded(dtype: torch.dtype) -> Network:
    network = Network().to(dtype)
    fully_shard(network)
    return network


def fully_shard_by_layers(network: Network, policy: MixedPrecisionPolicy) -> Network:
    """As large models are cut: layers apart, the rest with the whole."""
    for layer in (network.first, network.second):
        fully_shard(layer, mp_policy=policy)
    fully_shard(network, mp_policy=policy)
    return network


def step_with(
    network: torch.nn.Module, optimizer: Any, step: int, spoil: str | None = None, take: bool = True
) -> None:
    """Gives every parameter its part of a gradient that depends on the step and the
    name's place alone, and steps."""
    for place, (name, p) in enumerate(network.named_parameters()):
        made = torch.Generator().manual_seed(100 * step + place)
        whole = (torch.randn(p.shape, generator=made) * 1e-2).to(p.dtype)
        if name == spoil:
            whole.view(-1)[-1] = float("nan")  # on the last rank
        p.grad = (
            distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
            if isinstance(p, DTensor)
            else whole
        )
    if take:
        optimizer.step()


def whole(value: Tensor, like: Tensor) -> Tensor:
    """The whole of what each rank holds a part of."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if not isinstance(like, DTensor):
        return value
    mesh, placements = like.device_mesh, like.placements
    stride = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(
        value, mesh, placements, run_check=False, shape=like.shape, stride=stride
    ).full_tensor()


def gather(network: torch.nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Whole weights, masters and moments by name. A collective."""
    found: dict[str, Tensor] = {}
    masters = optimizer.get_fp32_model_state_dict(network)
    for name, p in network.named_parameters():
        found[f"{name}.weight"] = whole(p.detach(), p).clone()
        if p not in optimizer.state:
            continue
        found[f"{name}.master"] = whole(masters[name], p).clone()
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            if key in optimizer.state[p]:
                found[f"{name}.{key}"] = whole(optimizer.state[p][key].materialize(), p).clone()
    return found
