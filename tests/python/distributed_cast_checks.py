"""Checks of cast_model and of exports over several ranks; see distributed_checks.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import support
import torch
from distributed_models import Network, fully_shard_by_layers, gather, step_with
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

POLICY = MixedPrecisionPolicy()


def casts_of_shards(folder: Path, rank: int, size: int) -> None:
    """The same model whether it is cast before it is sharded, after that, or
    after a forward and a backward."""
    found: list[dict[str, torch.Tensor]] = []
    for when in ("before", "after", "later"):
        torch.manual_seed(0)
        network = Network()
        if when == "before":
            flash.cast_model(network)
        network = fully_shard_by_layers(network, POLICY)
        parameters = list(network.parameters())
        if when == "later":
            network(support.batch(rank)[0].float()).sum().backward()
        if when != "before":
            parameters[0].mark = 7  # type: ignore[attr-defined]
            flash.cast_model(network)
            assert parameters[0].mark == 7  # type: ignore[attr-defined]
        assert all(p is q for p, q in zip(parameters, network.parameters(), strict=True))
        assert (
            {p.dtype for p in parameters} == {support.local(p).dtype for p in parameters} == {torch.bfloat16}
        )
        assert {p.grad.dtype for p in parameters if p.grad is not None} <= {torch.bfloat16}
        network.zero_grad()
        optimizer = flash.FlashAdamW(network.parameters(), lr=1e-2)
        for step in range(2):
            network(support.batch(step * size + rank)[0]).float().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(gather(network, optimizer))
    for other in found[1:]:
        assert not (different := support.differences(found[0], other)), different


def exports_of_wrappers(folder: Path, rank: int, size: int) -> None:
    """Ties stay ties under FSDP2; a child that is called `module` stays under DDP."""
    tied = support.tied_network()
    fully_shard(tied)
    optimizer: Any = flash.FlashAdamW(tied.parameters(), lr=1e-2)
    step_with(tied, optimizer, 0)
    taken = optimizer.get_fp32_model_state_dict(tied)
    assert support.local(taken["0.weight"]).data_ptr() == support.local(taken["1.weight"]).data_ptr()
    kept = {name: support.local(value).clone() for name, value in taken.items()}
    step_with(tied, optimizer, 1)
    optimizer.set_fp32_model_state_dict(tied, {"1.weight": taken["1.weight"]}, strict=True)
    for name, value in optimizer.get_fp32_model_state_dict(tied).items():
        assert support.same_bits(value, kept[name])
    inner = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4)).bfloat16()
    model = torch.nn.ModuleDict({"module": inner})
    model.forward = lambda x: inner(x)
    wrapped = DistributedDataParallel(model)
    optimizer = flash.FlashAdamW(wrapped.parameters(), lr=1e-2)
    step_with(wrapped, optimizer, 0)
    taken = optimizer.get_fp32_model_state_dict(wrapped)
    assert list(taken) == list(model.state_dict())
    step_with(wrapped, optimizer, 1)
    prefixed = {f"module.{name}": value for name, value in taken.items()}
    optimizer.set_fp32_model_state_dict(wrapped, prefixed, strict=True)
    for name, value in optimizer.get_fp32_model_state_dict(wrapped).items():
        assert support.same_bits(value, taken[name])
