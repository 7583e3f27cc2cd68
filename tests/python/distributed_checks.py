"""What is checked in every rank; distributed_worker.py runs it, test_distributed.py reports it.

A check takes the folder for files, its rank and the number of ranks. All ranks call it at the same time.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import distributed_accumulation_checks as accumulation
import distributed_cast_checks as casts
import distributed_checkpoint_checks as checkpoints
import distributed_cut_checks as cuts
import flashoptim_cpp as flash
import support
import torch
import torch.distributed as dist
from distributed_models import RULES, Network, fully_shard_by_layers, gather, sharded, step_with, whole
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

Tensor = torch.Tensor


def on_every_rank_the_same(tensors: list[Tensor]) -> None:
    """Bit for bit; every rank learns of a difference."""
    for tensor in tensors:
        raw = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
        everyone = [torch.empty_like(raw) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, raw)
        assert all(torch.equal(raw, other) for other in everyone)


def ddp(folder: Path, rank: int, size: int) -> None:
    """Ranks see different data and keep the same weights and states."""
    for rule in RULES:
        network = DistributedDataParallel(support.model())
        optimizer = rule(network.parameters())
        for step in range(3):
            support.loss_of(network, step * size + rank).backward()
            optimizer.step()
            optimizer.zero_grad()
        on_every_rank_the_same([p for p in network.parameters()])
        on_every_rank_the_same([o["error_bits"] for o in optimizer.state.values()])
        taken = optimizer.get_fp32_model_state_dict(network)
        assert set(taken) == set(network.module.state_dict()), "names are the module's, not the wrapper's"


def release_under_ddp(folder: Path, rank: int, size: int) -> None:
    """Each rank would step with its own gradients, whatever is given to whom and in which order."""
    for given in ("wrapper", "module", "part", "parent", "wrapped later"):
        model = support.model()
        optimizer = flash.FlashAdamW(model.parameters())
        wrapped: Any = None if given == "wrapped later" else DistributedDataParallel(model)
        part = torch.nn.Sequential(*list(model.children())[:1])
        parts = {"wrapper": wrapped, "part": part, "parent": torch.nn.ModuleList([wrapped])}
        before = [p.detach().clone() for p in model.parameters()]
        try:
            flash.enable_gradient_release(parts.get(given, model), optimizer)
            wrapped = wrapped or DistributedDataParallel(model)
            support.loss_of(wrapped, rank).backward()
        except TypeError as error:
            assert "DistributedDataParallel" in str(error)
        else:
            raise AssertionError(f"gradient release under DDP must be refused: {given}")
        assert all(map(torch.equal, before, model.parameters())), given
    model = support.model()
    wrapped = DistributedDataParallel(model)
    support.loss_of(wrapped, 0).backward()
    del wrapped
    optimizer = flash.FlashAdamW(model.parameters())
    handle = flash.enable_gradient_release(model, optimizer)  # nothing averages any more
    model.zero_grad()
    support.loss_of(model, 0).backward()
    handle.remove()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def training(folder: Path, rank: int, size: int) -> None:
    """Forward, backward and step under FSDP2, uneven and empty shards, frozen layers, gradient release."""
    for release in (False, True):
        network = sharded(torch.bfloat16)
        network.frozen.requires_grad_(False)
        kept = whole(network.frozen, network.frozen).clone()
        optimizer = flash.FlashAdamW(network.parameters(), lr=1e-2)
        handle = flash.enable_gradient_release(network, optimizer) if release else None
        for step in range(3):
            inputs, classes = support.batch(step * size + rank)
            torch.nn.functional.cross_entropy(network(inputs).float(), classes).backward()
            if not release:
                optimizer.step()
                optimizer.zero_grad()
        found = gather(network, optimizer)
        if not release:
            expected = found
        assert all(bool(value.isfinite().all()) for value in found.values())
        assert torch.equal(whole(network.frozen, network.frozen), kept)
        assert network.frozen not in optimizer.state
        if handle is not None:
            handle.remove()
            assert all(p.grad is None for p in network.parameters() if p.requires_grad)
    wrong = [key for key in expected if not support.same_bits(found[key], expected[key])]
    assert not wrong, f"released gradients give other bits: {wrong}"


def verdict_over_ranks(folder: Path, rank: int, size: int) -> None:
    """A NaN in one rank's shard stops the step on all of them, or its element only."""
    for policy in ("skip_element", "skip_step", "error"):
        network = sharded(torch.bfloat16)
        optimizer = flash.FlashAdamW(network.named_parameters(), nonfinite=policy)
        step_with(network, optimizer, 0)
        before = gather(network, optimizer)
        raised = False
        try:
            step_with(network, optimizer, 1, spoil="first.weight")
        except flash.NonFiniteError as error:
            raised = True
            assert rank < size - 1 or "first.weight" in str(error), "named where it lies"
        after = gather(network, optimizer)
        assert raised == (policy == "error")
        if policy == "skip_element":
            assert (
                sum(bool(torch.equal(before[key], after[key])) for key in before if key.endswith("master"))
                == 0
            )
            assert bool(after["first.weight.master"].isfinite().all())
        else:
            assert all(support.same_bits(before[key], after[key]) for key in before)
        steps = {int(state["step"]) for state in optimizer.state.values()}
        assert steps == ({2} if policy == "skip_element" else {1})
        counted = torch.tensor(sum(optimizer.bad_elements().values()))
        everyone = [torch.zeros_like(counted) for _ in range(size)]
        dist.all_gather(everyone, counted)
        assert sum(int(c) for c in everyone) in (1, size), "counted where it lies, or by all"


def gradient_norm(folder: Path, rank: int, size: int) -> None:
    """Over the ranks to 1e-12 of the norm of the whole gradients; clipping takes that norm."""
    network = sharded(torch.bfloat16)
    optimizer = flash.FlashAdamW(network.parameters())
    step_with(network, optimizer, 0, take=False)
    exact = sum(p.grad.full_tensor().double().square().sum() for p in network.parameters())  # type: ignore[union-attr]
    assert isinstance(exact, Tensor)
    norm = float(optimizer.grad_norm())
    assert abs(norm / float(exact.sqrt()) - 1) < 1e-12
    assert abs(float(optimizer.clip_grad_norm_(norm / 2)) / norm - 1) < 1e-12
    optimizer.step()
    on_every_rank_the_same([torch.tensor(float(optimizer.grad_norm()))])


def masters_of_shards(folder: Path, rank: int, size: int) -> None:
    """get/set_fp32_model_state_dict work on shards, also while the model holds gathered
    parameters after an evaluation."""
    network = sharded(torch.bfloat16)
    optimizer = flash.FlashAdamW(network.parameters())
    for step in range(2):
        step_with(network, optimizer, step)
    before = gather(network, optimizer)
    taken = optimizer.get_fp32_model_state_dict(network)
    assert all(value.dtype == torch.float32 for value in taken.values())
    with torch.no_grad():
        network(support.batch(0)[0])
    after = gather(network, optimizer)
    assert all(support.same_bits(before[key], after[key]) for key in before)
    kept = copy.deepcopy(taken)
    with torch.no_grad():
        for p in network.parameters():
            support.local(p).fill_(0.25)
        network(support.batch(0)[0])
    optimizer.set_fp32_model_state_dict(network, kept)
    restored = optimizer.get_fp32_model_state_dict(network)
    assert all(support.same_bits(restored[name], kept[name]) for name in kept)


def full_precision_of_shards(folder: Path, rank: int, size: int) -> None:
    """Evaluated, exported and written in fp32 under FSDP2, before the first forward,
    after it and with mixed precision.

    What comes out is what the full-precision weights give in a plain model; training
    goes on as if nothing had been.
    """
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for policy in (MixedPrecisionPolicy(), mixed):
        network, twin = (fully_shard_by_layers(Network().bfloat16(), policy) for _ in range(2))
        optimizer, other = (flash.FlashAdamW(n.parameters(), lr=1e-2) for n in (network, twin))
        for _ in range(2):
            with optimizer.full_precision(network):  # before the first forward
                assert {p.dtype for p in network.parameters()} == {torch.float32}
        inputs, classes = support.batch(rank)
        for _ in range(2):
            for module, stepper in ((network, optimizer), (twin, other)):
                torch.nn.functional.cross_entropy(module(inputs).float(), classes).backward()
                stepper.step()
                stepper.zero_grad()
            before = gather(network, optimizer)
            masters = {k: whole(v, v) for k, v in optimizer.get_fp32_model_state_dict(network).items()}
            plain = Network()
            plain.load_state_dict(masters)
            with torch.no_grad(), optimizer.full_precision(network):
                found = network(inputs.float())
                assert torch.equal(found, plain(inputs.float()))
                exported = network.state_dict()
                assert all(support.same_bits(whole(exported[k], exported[k]), v) for k, v in masters.items())
            assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
            after = gather(network, optimizer)
            assert all(support.same_bits(before[key], after[key]) for key in before)
        expected = gather(twin, other)
        assert all(support.same_bits(expected[key], after[key]) for key in expected)
        with torch.no_grad(), optimizer.full_precision(network):
            local = support.local(network.tall)
            local.fill_(0.123456)
        written = optimizer.get_fp32_model_state_dict(network)["tall"]
        # 24 bits of a weight keep 2^-16 of it.
        torch.testing.assert_close(
            support.local(written), torch.full_like(local, 0.123456), rtol=2.0**-16, atol=0
        )


def zero_redundancy(folder: Path, rank: int, size: int) -> None:
    """Each rank keeps a part of the states; weights and consolidated states are
    those of a plain optimizer."""
    network, twin = support.model(), support.model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer: Any = ZeroRedundancyOptimizer(
            network.parameters(), optimizer_class=flash.FlashAdamW, lr=1e-2
        )
    plain = flash.FlashAdamW(twin.parameters(), lr=1e-2)
    for step in range(3):
        for module, stepper in ((network, optimizer), (twin, plain)):
            for p, g in zip(
                module.parameters(), support.gradients(list(module.parameters()), step), strict=True
            ):
                p.grad = g
            stepper.step()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert support.same_bits(p, q)
    optimizer.consolidate_state_dict(to=0)
    if rank == 0:
        whole = optimizer.state_dict()
        expected = plain.state_dict()["state"]
        assert sorted(whole["state"]) == sorted(expected)
        for index, state in expected.items():
            for key, value in state.items():
                assert support.same_bits(whole["state"][index][key], value), key


def zero_redundancy_agrees(folder: Path, rank: int, size: int) -> None:
    """A NaN in a parameter that one rank steps keeps all ranks back; later steps go on,
    whatever the learning rate."""
    for policy in ("skip_step", "error"):
        network = support.model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer: Any = ZeroRedundancyOptimizer(
                network.parameters(), optimizer_class=flash.FlashAdamW, lr=0.0, nonfinite=policy
            )
        given = list(network.parameters())
        for step, lr in enumerate((0.0, 1e-2, 1e-2)):  # a warm-up
            optimizer.param_groups[0]["lr"] = lr
            for p, g in zip(given, support.gradients(given, step), strict=True):
                p.grad = g
            if lr == 0.0:
                for p in given[1:]:
                    assert p.grad is not None
                    p.grad.zero_()
            optimizer.step()
        before = [p.detach().clone() for p in given]
        assert given[0].grad is not None
        given[0].grad[0, 0] = float("nan")
        try:
            optimizer.step()
        except flash.NonFiniteError:
            assert policy == "error"
        else:
            assert policy == "skip_step"
        assert all(support.same_bits(p, q) for p, q in zip(given, before, strict=True)), policy
        for p, g in zip(given, support.gradients(given, 3), strict=True):
            p.grad = g
        optimizer.step()
        assert all(support.has_moved(q, p) for p, q in zip(given, before, strict=True))
        steps = {int(state["step"]) for state in optimizer.optim.state.values()}
        assert steps == {4}, steps


def accumulated_in_fp32(folder: Path, rank: int, size: int) -> None:
    """accumulate_fp32 under FSDP2: two backwards, one step."""
    network = sharded(torch.bfloat16)
    optimizer = flash.FlashAdamW(network.parameters(), accumulate_fp32=True, lr=1e-2)
    for step in range(2):
        inputs, classes = support.batch(step * size + rank)
        torch.nn.functional.cross_entropy(network(inputs).float(), classes).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


PHASES = {
    "train": {
        check.__name__: check
        for check in (
            ddp,
            release_under_ddp,
            cuts.same_bits_on_any_ranks,
            cuts.unsharded_has_the_same_bits,
            cuts.shards_that_cut_groups_are_refused,
            cuts.other_cuts,
            cuts.hybrid_and_tensor_parallel,
            training,
            verdict_over_ranks,
            gradient_norm,
            masters_of_shards,
            full_precision_of_shards,
            zero_redundancy,
            zero_redundancy_agrees,
            accumulated_in_fp32,
            casts.casts_of_shards,
            casts.exports_of_wrappers,
            accumulation.accumulated_under_ddp,
            accumulation.accumulated_among_others,
            accumulation.accumulated_in_reentrant_checkpoints,
            checkpoints.save,
            checkpoints.a_fresh_template_changes_nothing,
            checkpoints.full_state_dict,
            checkpoints.full_state_dict_in_paper,
            checkpoints.the_order_of_loading,
            checkpoints.flattened_save,
        )
    },
    "load": {
        check.__name__: check
        for check in (
            checkpoints.load,
            checkpoints.flattened_load,
            checkpoints.paper_under_another_cut,
            checkpoints.bad_shards_are_refused,
        )
    },
}
