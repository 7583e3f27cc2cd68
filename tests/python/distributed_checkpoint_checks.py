"""Checks of torch.distributed.checkpoint: saved by any number of ranks, loaded by any other, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import support
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_models import RULES, Network, gather, sharded, step_with
from support import ADAMW, LION, SGD, Rule
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

STEPS, MORE = 3, 2
CASES: dict[str, tuple[Rule, dict[str, Any]]] = {
    "adamw": (ADAMW, {}),
    "adamw-32": (ADAMW, {"master_weight_bits": 32}),
    "adamw-plain": (ADAMW, {"compress_state_dict": False, "quantize": False}),
    "lion": (LION, {}),
    "sgd": (SGD, {}),
    "adamw-paper": (ADAMW, {"format": "paper"}),
}
# Of a group's largest value: half a code of a first moment, where its law is steepest (1/127), and
# a half of fp16 in the scale.
PAPER_ROUNDING = 0.0085


def save(folder: Path, rank: int, size: int) -> None:
    """Trains, saves, trains on; the end of the straight run is what every resumed run must reach."""
    for name, (rule, storage) in CASES.items():
        network = sharded(torch.bfloat16)
        optimizer = rule(network.parameters(), **storage)
        for step in range(STEPS):
            step_with(network, optimizer, step)
        before = gather(network, optimizer)
        state = {
            "model": get_model_state_dict(network),
            "optimizer": get_optimizer_state_dict(network, optimizer),
        }
        after = gather(network, optimizer)
        assert all(support.same_bits(before[key], after[key]) for key in before), "saving changes nothing"
        dcp.save(state, checkpoint_id=folder / f"dcp-{name}-{size}")
        if rank == 0:
            torch.save(before, folder / f"saved-{name}-{size}.pt")
        for step in range(STEPS, STEPS + MORE):
            step_with(network, optimizer, step)
        end = gather(network, optimizer)
        if rank == 0:
            torch.save(end, folder / f"end-{name}-{size}.pt")


def resumed(folder: Path, name: str, saved: int) -> tuple[torch.nn.Module, Any]:
    """A network and an optimizer with what so many ranks saved."""
    rule, storage = CASES[name]
    network = sharded(torch.bfloat16)
    with torch.no_grad():
        for p in network.parameters():
            support.local(p).zero_()
    optimizer = rule(network.parameters(), **storage)
    state: dict[str, Any] = {
        "model": get_model_state_dict(network),
        "optimizer": get_optimizer_state_dict(network, optimizer),
    }
    dcp.load(state, checkpoint_id=folder / f"dcp-{name}-{saved}")
    set_model_state_dict(network, state["model"])
    set_optimizer_state_dict(network, optimizer, state["optimizer"])
    return network, optimizer


def load(folder: Path, rank: int, size: int) -> None:
    """Loads what 1, 2, 3 and 4 ranks saved (the other cases: one other number),
    and trains on to the same bits.

    The groups of `paper` run over the part of a rank: there the same number of ranks saves and loads.
    """
    for name in CASES:
        others = (size,) if name == "adamw-paper" else (size % 4 + 1,)
        for saved in (1, 2, 3, 4) if name == "adamw" else others:
            network, optimizer = resumed(folder, name, saved)
            for step in range(STEPS, STEPS + MORE):
                step_with(network, optimizer, step)
            found = gather(network, optimizer)
            expected = torch.load(folder / f"end-{name}-{saved}.pt")
            wrong = [key for key in expected if not support.same_bits(found[key], expected[key])]
            assert not wrong, f"{name}: saved by {saved}, loaded by {size}: {wrong}"


FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
FLATTENED: dict[str, tuple[Rule, dict[str, Any]]] = {
    "adamw": (ADAMW, {}),
    "lion": (LION, {"master_weight_bits": 32}),
    "sgd": (SGD, {}),
    "adamw-paper": (ADAMW, {"format": "paper"}),
}


def in_groups(network: torch.nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in network.parameters() if p.dim() > 1]
    return [
        {"params": matrices, "weight_decay": 0.2},
        {"params": [p for p in network.parameters() if p.dim() == 1], "lr": 2e-3},
    ]


def flattened_save(folder: Path, rank: int, size: int) -> None:
    """Saves flattened state dicts, trains on, and keeps the end of the straight run."""
    for name, (rule, storage) in FLATTENED.items():
        network = sharded(torch.bfloat16)
        optimizer = rule(in_groups(network), **storage)
        for step in range(STEPS):
            step_with(network, optimizer, step)
        state = {
            "model": get_model_state_dict(network),
            "optimizer": get_optimizer_state_dict(network, optimizer, options=FLAT),
        }
        dcp.save(state, checkpoint_id=folder / f"flat-{name}-{size}")
        for step in range(STEPS, STEPS + MORE):
            step_with(network, optimizer, step)
        end = gather(network, optimizer)
        if rank == 0:
            torch.save(end, folder / f"flat-end-{name}-{size}.pt")


def flattened_load(folder: Path, rank: int, size: int) -> None:
    """Loads what another number of ranks saved, and trains on to the same bits;
    `paper` under the same cut."""
    for name, (rule, storage) in FLATTENED.items():
        others = (1, 2, 3, 4) if name == "adamw" and size == 2 else (size % 4 + 1,)
        for saved in (size,) if name == "adamw-paper" else others:
            network = sharded(torch.bfloat16)
            optimizer = rule(in_groups(network), **storage)
            state: dict[str, Any] = {
                "model": get_model_state_dict(network),
                "optimizer": get_optimizer_state_dict(network, optimizer, options=FLAT),
            }
            dcp.load(state, checkpoint_id=folder / f"flat-{name}-{saved}")
            set_optimizer_state_dict(network, optimizer, copy.deepcopy(state["optimizer"]), options=FLAT)
            set_model_state_dict(network, state["model"])
            for step in range(STEPS, STEPS + MORE):
                step_with(network, optimizer, step)
            found = gather(network, optimizer)
            expected = torch.load(folder / f"flat-end-{name}-{saved}.pt")
            wrong = [key for key in expected if not support.same_bits(found[key], expected[key])]
            assert not wrong, f"{name}: saved by {saved}, loaded by {size}: {wrong}"


def the_order_of_loading(folder: Path, rank: int, size: int) -> None:
    """set_state_dict() loads the optimizer before the model: the run goes on bit for
    bit, in other storages too."""
    storages: list[Any] = [({}, {}), ({"format": "paper"}, {}), ({}, {"master_weight_bits": 32})]
    for old, new in storages[: 1 if size == 4 else 3]:
        network = sharded(torch.bfloat16)
        optimizer = flash.FlashAdamW(network.parameters(), **old)
        for step in range(STEPS):
            step_with(network, optimizer, step)
        before = gather(network, optimizer)
        model, state = copy.deepcopy(get_state_dict(network, optimizer))
        found = []
        for is_model_first in (False, True):
            target = sharded(torch.bfloat16)
            with torch.no_grad():
                for p in target.parameters():
                    support.local(p).fill_(0.5)
            loaded = flash.FlashAdamW(target.parameters(), **new)
            if is_model_first:
                set_model_state_dict(target, copy.deepcopy(model))
                set_optimizer_state_dict(target, loaded, copy.deepcopy(state))
            else:
                given = copy.deepcopy((model, state))
                set_state_dict(target, loaded, model_state_dict=given[0], optim_state_dict=given[1])
            if old == new:
                now = gather(target, loaded)
                assert all(support.same_bits(before[key], now[key]) for key in before)
            for step in range(STEPS, STEPS + MORE):
                step_with(target, loaded, step)
            found.append(gather(target, loaded))
        wrong = [key for key in found[0] if not support.same_bits(found[0][key], found[1][key])]
        assert not wrong, (old, new, wrong)


def paper_under_another_cut(folder: Path, rank: int, size: int) -> None:
    """Weights and masters are exact; moments whose groups are cut otherwise now are
    decoded and encoded once more."""
    for saved in (1, 2, 3, 4):
        network, optimizer = resumed(folder, "adamw-paper", saved)
        found = gather(network, optimizer)
        expected = torch.load(folder / f"saved-adamw-paper-{saved}.pt")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if saved == size or not key.endswith(("exp_avg", "exp_avg_sq")):
                assert support.same_bits(found[key], value), f"saved by {saved}, loaded by {size}: {key}"
            else:
                bound = PAPER_ROUNDING * float(value.abs().max())
                worst = float((found[key] - value).abs().max())
                assert worst <= bound, (
                    f"saved by {saved}, loaded by {size}: {key} is {worst / bound} bounds off"
                )
        assert all(
            moment.is_quantized()
            for state in optimizer.state.values()
            for moment in state.values()
            if isinstance(moment, flash.Moment)
        )


def a_fresh_template_changes_nothing(folder: Path, rank: int, size: int) -> None:
    """get_optimizer_state_dict makes a fresh optimizer step once with lr 0 and zero gradients."""
    for rule in RULES:
        network = sharded(torch.bfloat16)
        optimizer = rule(network.parameters())
        before = {name: support.local(p).detach().clone() for name, p in network.named_parameters()}
        rate = optimizer.param_groups[0]["lr"]
        state: Any = get_optimizer_state_dict(network, optimizer)
        for name, p in network.named_parameters():
            assert support.same_bits(support.local(p), before[name]), name
            assert p.grad is None
        assert optimizer.param_groups[0]["lr"] == rate
        for key, value in state["state"].items():
            moments = [v for k, v in value.items() if "exp_avg" in k or "momentum" in k]
            assert all(not support.local(v).any() for v in moments), key


def full_state_dict(folder: Path, rank: int, size: int) -> None:
    """A state gathered whole on every rank goes into an optimizer that knows no ranks, and back."""
    options = StateDictOptions(full_state_dict=True)
    network = sharded(torch.bfloat16)
    optimizer = flash.FlashAdamW(network.parameters())
    for step in range(STEPS):
        step_with(network, optimizer, step)
    weights = get_model_state_dict(network, options=options)
    state = get_optimizer_state_dict(network, optimizer, options=options)
    plain = Network().bfloat16()
    alone = flash.FlashAdamW(plain.parameters())
    set_model_state_dict(plain, weights)
    set_optimizer_state_dict(plain, alone, copy.deepcopy(state))
    again = sharded(torch.bfloat16)
    other = flash.FlashAdamW(again.parameters())
    set_model_state_dict(again, weights, options=options)
    set_optimizer_state_dict(again, other, copy.deepcopy(state), options=options)
    for step in range(STEPS, STEPS + MORE):
        step_with(network, optimizer, step)
        step_with(plain, alone, step)
        step_with(again, other, step)
    expected = gather(network, optimizer)
    for found in (gather(plain, alone), gather(again, other)):
        wrong = [key for key in expected if not support.same_bits(found[key], expected[key])]
        assert not wrong, wrong


def full_state_dict_in_paper(folder: Path, rank: int, size: int) -> None:
    """The same for groups that run over the part of a rank: exact into the same cut,
    encoded once more into another."""
    options = StateDictOptions(full_state_dict=True)
    network, plain = sharded(torch.bfloat16), Network().bfloat16()
    optimizer = flash.FlashAdamW(network.parameters(), format="paper")
    alone = flash.FlashAdamW(plain.parameters(), format="paper")
    for step in range(STEPS):
        step_with(network, optimizer, step)
        step_with(plain, alone, step)
    for module, source in ((network, optimizer), (plain, alone)):
        expected = gather(module, source)
        for target, is_same_cut in (
            (sharded(torch.bfloat16), module is network),
            (Network().bfloat16(), module is plain),
        ):
            loaded = flash.FlashAdamW(target.parameters(), format="paper")
            weights = get_model_state_dict(module, options=options)
            state = copy.deepcopy(get_optimizer_state_dict(module, source, options=options))
            to = options if isinstance(next(target.parameters()), DTensor) else StateDictOptions()
            set_model_state_dict(target, weights, options=to)
            set_optimizer_state_dict(target, loaded, state, options=to)
            found = gather(target, loaded)
            for key, value in expected.items():
                if is_same_cut or size == 1 or not key.endswith(("exp_avg", "exp_avg_sq")):
                    assert support.same_bits(found[key], value), key
                else:
                    bound = PAPER_ROUNDING * float(value.abs().max())
                    torch.testing.assert_close(found[key], value, rtol=0, atol=bound)


def bad_shards_are_refused(folder: Path, rank: int, size: int) -> None:
    """A state of another shape is refused on every rank, and nothing changes."""
    network = sharded(torch.bfloat16)
    optimizer = flash.FlashAdamW(network.parameters())
    step_with(network, optimizer, 0)
    before = gather(network, optimizer)
    state = optimizer.state_dict()
    index = next(iter(state["state"]))
    state["state"][index] = dict(state["state"][index])
    state["state"][index]["exp_avg::quantized"] = torch.zeros(2, 2, dtype=torch.int8)
    try:
        optimizer.load_state_dict(state)
    except (ValueError, TypeError):
        pass
    else:
        raise AssertionError("a state of another shape was taken")
    after = gather(network, optimizer)
    assert all(support.same_bits(before[key], after[key]) for key in before)
    dist.barrier()
