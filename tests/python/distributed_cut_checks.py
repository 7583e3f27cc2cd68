"""Checks of how parameters are cut: rows, columns, blocks, copies; whatever the cut, the bits
are those of the whole tensor."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import support
import torch
from distributed_models import RULES, Network, gather, sharded, step_with, whole
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def same_bits_on_any_ranks(folder: Path, rank: int, size: int) -> None:
    """The same gradients give the same weights, masters and moments, however the parameters are cut."""
    for rule in RULES:
        for number_format in ("native", "fp32"):
            network = sharded(torch.bfloat16)
            optimizer = rule(network.parameters(), format=number_format)
            for step in range(4):
                step_with(network, optimizer, step)
            found = gather(network, optimizer)
            if rank == 0:
                file = folder / f"bits-{rule.name}-{number_format}-{size}.pt"
                torch.save(found, file)
                alone = folder / f"bits-{rule.name}-{number_format}-1.pt"
                reference = torch.load(alone)
                assert found.keys() == reference.keys()
                wrong = [key for key in found if not support.same_bits(found[key], reference[key])]
                assert not wrong, f"{rule.name} {number_format}: {wrong}"


def unsharded_has_the_same_bits(folder: Path, rank: int, size: int) -> None:
    """A plain model with the same gradients gives the bits of the sharded one."""
    for rule in RULES:
        network, plain = sharded(torch.bfloat16), Network().bfloat16()
        first, second = rule(network.parameters()), rule(plain.parameters())
        for step in range(3):
            step_with(network, first, step)
            step_with(plain, second, step)
        found, expected = gather(network, first), gather(plain, second)
        wrong = [key for key in expected if not support.same_bits(found[key], expected[key])]
        assert not wrong, f"{rule.name}: {wrong}"


def shards_that_cut_groups_are_refused(folder: Path, rank: int, size: int) -> None:
    """A long one-dimensional parameter is cut at multiples of 32 or refused by
    name; an even cut is stepped."""
    layer = torch.nn.Module()
    layer.register_parameter("table", torch.nn.Parameter(torch.ones(81920, dtype=torch.bfloat16)))
    fully_shard(layer)
    optimizer = flash.FlashAdamW(layer.named_parameters())
    even = (81920 // size) % 32 == 0 and 81920 % size == 0
    try:
        [p] = layer.parameters()
        p.grad = torch.ones_like(p)
        optimizer.step()
    except ValueError as error:
        assert not even
        assert "table" in str(error)
    else:
        assert even or not optimizer.state[p]["exp_avg"].is_quantized()


def other_cuts(folder: Path, rank: int, size: int) -> None:
    """Cuts between columns, in two dimensions, and on top of tensor
    parallelism: the bits of the whole tensor.

    A piece of a row that begins inside a group of 32 is refused by name.
    """
    grids: dict[str, tuple[tuple[int, ...], list[Any]]] = {"columns": ((size,), [Shard(1)])}
    if size == 4:
        grids["blocks"] = ((2, 2), [Shard(0), Shard(1)])
        grids["rows, twice"] = ((2, 2), [Shard(0), Shard(0)])
        grids["copies of rows"] = ((2, 2), [Replicate(), Shard(0)])
    start = support.parameters(shapes=((68, 256),))[0]
    whole_optimizer = flash.FlashAdamW([start])
    for step in range(3):
        start.grad = support.gradients([start], step)[0]
        whole_optimizer.step()
    for name, (grid, placements) in grids.items():
        mesh = init_device_mesh("cpu", grid)
        first = support.parameters(shapes=((68, 256),))[0].detach()
        p = torch.nn.Parameter(distribute_tensor(first, mesh, placements, src_data_rank=None))
        optimizer = flash.FlashAdamW([("table", p)])
        try:
            for step in range(3):
                g = support.gradients([first], step)[0]
                p.grad = distribute_tensor(g, mesh, placements, src_data_rank=None)
                optimizer.step()
        except ValueError as error:
            assert size == 3, name  # 86 columns are no multiple of 32
            assert "table" in str(error)
            continue
        assert support.same_bits(whole(p.detach(), p), start), name
        for key in ("exp_avg", "exp_avg_sq"):
            found = whole(optimizer.state[p][key].materialize(), p)
            assert support.same_bits(found, whole_optimizer.state[start][key].materialize()), f"{name}: {key}"
        norm, exact = float(optimizer.grad_norm()), float(whole_optimizer.grad_norm())
        assert abs(norm / exact - 1) < 1e-12, f"{name}: copies count once"


def hybrid_and_tensor_parallel(folder: Path, rank: int, size: int) -> None:
    """FSDP2 in copies (HSDP), and FSDP2 over tensor parallelism: trained by backward,
    checked against a plain step."""
    if size != 4:
        return
    for kind in ("hybrid", "tensor"):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)).bfloat16()
        plain = copy.deepcopy(network)
        if kind == "tensor":
            plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
            parallelize_module(network, mesh["inner"], plan)
            fully_shard(network, mesh=mesh["outer"])
        else:
            fully_shard(network, mesh=mesh)
        first, second = flash.FlashAdamW(network.named_parameters()), flash.FlashAdamW(plain.parameters())
        for step in range(3):
            inputs, _ = support.batch(step)
            network(inputs).float().square().mean().backward()
            for p, q in zip(network.parameters(), plain.parameters(), strict=True):
                assert p.grad is not None
                q.grad = whole(p.grad, p)
            first.step()
            second.step()
            first.zero_grad()
        found, expected = gather(network, first), gather(plain, second)
        wrong = [key for key in expected if not support.same_bits(found[key], expected[key])]
        assert not wrong, f"{kind}: {wrong}"
