"""Flattened state dicts of torch.distributed.checkpoint, as pipeline and torchtitan runs save them.
More ranks: test_distributed.py.

What a user loses if these fail: a checkpoint that is written and can never be loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
import torch.distributed.checkpoint as dcp
from support import ADAMW, LION, RULES, SGD, SGD_PLAIN, SGDW, Rule
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*converted.*:UserWarning", "ignore::FutureWarning")

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Network(torch.nn.Module):
    """Quantised and small tensors, one of other strides, one that is frozen, one that is
    shared, and names with dots."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Embedding(80, 64)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(64, 96), torch.nn.Linear(96, 64)])
        self.image = torch.nn.Parameter(torch.randn(32, 16, 3, 3).to(memory_format=torch.channels_last))
        self.frozen = torch.nn.Parameter(torch.randn(8), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.randn(()))
        self.head = torch.nn.Linear(64, 80, bias=False)
        self.head.weight = self.table.weight
        self.to(dtype)


def in_one_group(network: torch.nn.Module) -> Any:
    return network.parameters()


def named(network: torch.nn.Module) -> Any:
    return network.named_parameters()


def in_groups(network: torch.nn.Module) -> Any:
    """With other hyperparameters, and one that is not compressed."""
    given = list(network.parameters())
    return [
        {"params": [p for p in given if p.dim() > 1], "lr": 2e-3, "weight_decay": 0.2},
        {"params": [p for p in given if p.dim() == 1], "lr": 3e-3},
        {"params": [p for p in given if p.dim() == 0], "quantize": False, "maximize": True},
    ]


def step(network: torch.nn.Module, optimizer: Any, steps: range) -> None:
    given = [p for p in network.parameters() if p.requires_grad]
    support.run(optimizer, given, len(steps), first=steps.start)
    optimizer.zero_grad()


def go_on(
    first: tuple[torch.nn.Module, Any], second: tuple[torch.nn.Module, Any], steps: range = range(3, 5)
) -> None:
    support.assert_same(first[1], second[1])
    step(*first, steps)
    step(*second, steps)
    support.assert_same(first[1], second[1])


STORAGES: list[dict[str, Any]] = [
    {},
    {"format": "paper"},
    {"format": "paper", "master_weight_bits": 32},
    {"format": "fp32"},
    {"min_quantized_numel": 10**6},
    {"compress_state_dict": False, "quantize": False},
    {"master_weight_bits": None},
]


@pytest.mark.filterwarnings("ignore:.*pure low-precision:UserWarning")
@pytest.mark.parametrize("groups", [in_one_group, named, in_groups], ids=lambda g: g.__name__)
@pytest.mark.parametrize(
    ("rule", "storage"),
    [(rule, storage) for rule in RULES for storage in (STORAGES if rule is ADAMW else STORAGES[:2])],
    ids=str,
)
def test_a_flattened_state_goes_round(
    rule: Rule, storage: dict[str, Any], groups: Callable[[torch.nn.Module], Any]
) -> None:
    network = Network()
    optimizer = rule(groups(network), **storage)
    step(network, optimizer, range(3))
    flat = copy.deepcopy(get_optimizer_state_dict(network, optimizer, options=FLAT))
    other = Network(seed=1)
    resumed = rule(groups(other), **storage)
    set_optimizer_state_dict(other, resumed, flat, options=FLAT)
    other.load_state_dict(network.state_dict())
    go_on((network, optimizer), (other, resumed))
    for group, loaded in zip(optimizer.param_groups, resumed.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in loaded.items() if k != "params"
        }


@pytest.mark.parametrize("storage", [{}, {"format": "paper"}], ids=str)
@pytest.mark.parametrize("rule", [SGD, ADAMW, LION], ids=support.ids([SGD, ADAMW, LION]))
def test_through_a_distributed_checkpoint(rule: Rule, storage: dict[str, Any], tmp_path: Path) -> None:
    """The template of a fresh optimizer has every name that was saved."""
    network = Network()
    optimizer = rule(in_groups(network), **storage)
    step(network, optimizer, range(3))
    saved = {
        "model": network.state_dict(),
        "optimizer": get_optimizer_state_dict(network, optimizer, options=FLAT),
    }
    dcp.save(saved, checkpoint_id=tmp_path)
    other = Network(seed=1)
    resumed = rule(in_groups(other), **storage)
    state: dict[str, Any] = {
        "model": other.state_dict(),
        "optimizer": get_optimizer_state_dict(other, resumed, options=FLAT),
    }
    dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, state["optimizer"], options=FLAT)
    other.load_state_dict(state["model"])
    go_on((network, optimizer), (other, resumed))


@pytest.mark.parametrize("old", ["native", "paper", "fp32"])
@pytest.mark.parametrize("new", ["native", "paper", "fp32"])
@pytest.mark.parametrize("compress", [True, False])
def test_into_another_format(old: Any, new: Any, compress: bool) -> None:
    """As the state dict that was not flattened does it, bit for bit."""
    network = Network()
    optimizer = flash.FlashAdamW(network.parameters(), format=old, compress_state_dict=compress)
    step(network, optimizer, range(3))
    results = []
    for options in (FLAT, StateDictOptions()):
        state = copy.deepcopy(get_optimizer_state_dict(network, optimizer, options=options))
        other = Network()
        other.load_state_dict(network.state_dict())
        resumed = flash.FlashAdamW(other.parameters(), format=new)
        set_optimizer_state_dict(other, resumed, state, options=options)
        results.append((other, resumed))
    go_on(results[0], results[1])


def test_a_parameter_without_state_stays_without() -> None:
    network = Network()
    optimizer = flash.FlashAdamW(network.parameters())
    given = [p for p in network.parameters() if p.requires_grad]
    support.run(optimizer, given[:-1], 3)
    flat = copy.deepcopy(get_optimizer_state_dict(network, optimizer, options=FLAT))
    other = Network()
    resumed = flash.FlashAdamW(other.parameters())
    set_optimizer_state_dict(other, resumed, flat, options=FLAT)
    assert not resumed.state.get([p for p in other.parameters() if p.requires_grad][-1])
    assert len(resumed.state_dict()["state"]) == len(given) - 1


def resume_and_go_on(first: Any, second: Any) -> None:
    """Loads the flattened state and the weights of `first` into `second`, which
    then steps as `first` does."""
    flat = copy.deepcopy(get_optimizer_state_dict(first[0], first[1], options=FLAT))
    set_optimizer_state_dict(second[0], second[1], flat, options=FLAT)
    second[0].load_state_dict(first[0].state_dict())
    go_on(first, second)


def test_a_state_goes_where_there_is_none_yet() -> None:
    """A layer that had no gradient in the run that loads, such as an expert that was not chosen."""
    network, other = Network(), Network(seed=1)
    optimizer, resumed = flash.FlashAdamW(network.parameters()), flash.FlashAdamW(other.parameters())
    step(network, optimizer, range(3))
    given = [p for p in other.parameters() if p.requires_grad]
    support.run(resumed, given[:2], 1)
    resume_and_go_on((network, optimizer), (other, resumed))


def test_a_momentum_goes_where_there_is_none_yet() -> None:
    network, other = Network(), Network(seed=1)
    optimizer = flash.FlashSGD(network.parameters(), lr=1e-2, momentum=0.9)
    resumed = flash.FlashSGD(other.parameters(), lr=1e-2)
    step(network, optimizer, range(3))
    resume_and_go_on((network, optimizer), (other, resumed))


def test_names_are_found_in_another_order() -> None:
    """torch matches them by name; so must we where the optimizers knew their names in other orders."""
    network, other = Network(), Network(seed=1)
    optimizer = flash.FlashAdamW(network.named_parameters())
    resumed = flash.FlashAdamW(list(reversed(list(other.named_parameters()))))
    step(network, optimizer, range(3))
    for options in (FLAT, StateDictOptions()):
        state = copy.deepcopy(get_optimizer_state_dict(network, optimizer, options=options))
        set_optimizer_state_dict(other, resumed, state, options=options)
        theirs = dict(other.named_parameters())
        for name, p in network.named_parameters():
            if p.requires_grad:
                a, b = optimizer.state[p]["exp_avg"], resumed.state[theirs[name]]["exp_avg"]
                assert support.same_bits(a.materialize(), b.materialize()), name


def test_the_live_state_is_a_dict_for_everybody_else() -> None:
    """Its names are those of the documents, and copies and updates of it keep them."""
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashAdamW([p])
    support.run(optimizer, [p], 1)
    state = optimizer.state[p]
    names = {"step", "exp_avg", "exp_avg_sq", "error_bits"}
    assert set(state) == set(list(state)) == set(state.keys()) == set(dict(state)) == set({**state}) == names
    assert set(sorted(state)) == {key for key in state} == set(copy.deepcopy(state)) == names
    assert len(state) == 4
    assert isinstance(state, dict)


@pytest.mark.parametrize("rule", [SGD_PLAIN, SGDW], ids=lambda r: r.name)
def test_a_spoiled_flattened_state_is_refused(rule: Rule) -> None:
    network = Network()
    optimizer = rule(network.parameters())
    step(network, optimizer, range(2))
    flat: Any = get_optimizer_state_dict(network, optimizer, options=FLAT)
    spoiled = {key: value for key, value in copy.deepcopy(flat).items() if "error_bits" not in key}
    before = support.snapshot(optimizer)
    with pytest.raises(ValueError, match="error_bits"):
        set_optimizer_state_dict(network, optimizer, spoiled, options=FLAT)
    support.assert_same(before, optimizer)
