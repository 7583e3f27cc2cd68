"""A model and its optimizer are loaded in either order, by whatever loads them, with the same bits.

What a user loses if these fail: the resume that torch documents, whose
set_state_dict() loads the optimizer first.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
import torch.distributed.checkpoint as dcp
from support import ADAMW, LION, RULES, SGD, Rule
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

pytestmark = pytest.mark.filterwarnings("ignore")

Pair = tuple[torch.nn.Module, Any]
STEPS, MORE = 4, 3


def train(pair: Pair, steps: int, first: int = 0) -> Pair:
    network, optimizer = pair
    support.run(optimizer, list(network.parameters()), steps, first=first)
    optimizer.zero_grad()
    return pair


def make(
    rule: Callable[..., Any] = ADAMW, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> Pair:
    network = support.model(dtype, seed)
    return network, rule(network.parameters(), **options)


# Loaders: what takes a saved pair into a fresh one.


def by_set_state_dict(target: Pair, source: Pair, folder: Path) -> None:
    model, optimizer = copy.deepcopy(get_state_dict(*source))
    set_state_dict(*target, model_state_dict=model, optim_state_dict=optimizer)


def by_set_state_dict_of_full_ones(target: Pair, source: Pair, folder: Path) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = copy.deepcopy(get_state_dict(*source, options=options))
    set_state_dict(*target, model_state_dict=model, optim_state_dict=optimizer, options=options)


def optimizer_then_model(target: Pair, source: Pair, folder: Path) -> None:
    model = copy.deepcopy(get_model_state_dict(source[0]))
    set_optimizer_state_dict(*target, copy.deepcopy(get_optimizer_state_dict(*source)))
    set_model_state_dict(target[0], model)


def model_then_optimizer(target: Pair, source: Pair, folder: Path) -> None:
    set_model_state_dict(target[0], copy.deepcopy(get_model_state_dict(source[0])))
    set_optimizer_state_dict(*target, copy.deepcopy(get_optimizer_state_dict(*source)))


def plain_model_first(target: Pair, source: Pair, folder: Path) -> None:
    target[0].load_state_dict(copy.deepcopy(source[0].state_dict()))
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))


def plain_optimizer_first(target: Pair, source: Pair, folder: Path) -> None:
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    target[0].load_state_dict(copy.deepcopy(source[0].state_dict()))


def optimizer_first_and_copied(target: Pair, source: Pair, folder: Path) -> None:
    """The optimizer is pickled with its model before the weights are there, as a launcher may do."""
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    network, optimizer = pickle.loads(pickle.dumps(copy.deepcopy(target)))
    network.load_state_dict(source[0].state_dict())
    # Back into the given pair, with the optimizer first again.
    target[1].load_state_dict(optimizer.state_dict())
    target[0].load_state_dict(network.state_dict())


def optimizer_twice(target: Pair, source: Pair, folder: Path) -> None:
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    target[0].load_state_dict(source[0].state_dict())


def looked_at_between(target: Pair, source: Pair, folder: Path) -> None:
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    target[1].memory_report()
    repr(target[1])
    target[1].bad_elements()
    target[0].load_state_dict(source[0].state_dict())


def weights_written_through_data(target: Pair, source: Pair, folder: Path) -> None:
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    for p, q in zip(target[0].parameters(), source[0].parameters(), strict=True):
        p.data = q.data.clone()


def weights_assigned_by_vector(target: Pair, source: Pair, folder: Path) -> None:
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    vector = torch.nn.utils.parameters_to_vector(source[0].parameters())
    torch.nn.utils.vector_to_parameters(vector.detach(), target[0].parameters())


def through_a_file(target: Pair, source: Pair, folder: Path) -> None:
    file = io.BytesIO()
    torch.save({"optimizer": source[1].state_dict(), "model": source[0].state_dict()}, file)
    file.seek(0)
    for key, value in torch.load(file, weights_only=True).items():
        (target[1] if key == "optimizer" else target[0]).load_state_dict(value)


class AppState(Stateful):
    """As torch's tutorial of distributed checkpoints has it."""

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optimizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optim"],
        )


def by_app_state(target: Pair, source: Pair, folder: Path) -> None:
    dcp.save({"app": AppState(*source)}, checkpoint_id=folder)
    dcp.load({"app": AppState(*target)}, checkpoint_id=folder)


LOADERS = [
    by_set_state_dict,
    by_set_state_dict_of_full_ones,
    optimizer_then_model,
    model_then_optimizer,
    plain_model_first,
    plain_optimizer_first,
    optimizer_first_and_copied,
    optimizer_twice,
    looked_at_between,
    weights_written_through_data,
    weights_assigned_by_vector,
    through_a_file,
    by_app_state,
]
STORAGES: list[dict[str, Any]] = [{}, {"master_weight_bits": 32}, {"format": "paper"}]


@pytest.mark.parametrize("load", LOADERS, ids=[load.__name__ for load in LOADERS])
@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("rule", [SGD, ADAMW, LION], ids=support.ids([SGD, ADAMW, LION]))
def test_a_run_goes_on_bit_for_bit(
    load: Callable[[Pair, Pair, Path], None],
    rule: Rule,
    storage: dict[str, Any],
    tmp_path: Path,
) -> None:
    source = train(make(rule, **storage), STEPS)
    target = make(rule, seed=1, **storage)
    if rule is ADAMW:  # the others are loaded into a fresh optimizer
        train(target, 1)
    load(target, source, tmp_path)
    support.assert_same(source[1], target[1])
    train(source, MORE, first=STEPS)
    train(target, MORE, first=STEPS)
    support.assert_same(source[1], target[1])


def test_hundreds_of_tiny_updates_survive_resumes() -> None:
    """400 updates of 1e-5 with a resume every 50 move the weights by 0.004."""
    network = torch.nn.Linear(64, 64, bias=False).bfloat16()
    with torch.no_grad():
        network.weight.fill_(1.0)
    optimizer = flash.FlashSGD(network.parameters(), lr=1e-5, master_weight_bits=32)
    for step in range(400):
        if step % 50 == 49:
            model, state = copy.deepcopy(get_state_dict(network, optimizer))
            network = torch.nn.Linear(64, 64, bias=False).bfloat16()
            optimizer = flash.FlashSGD(network.parameters(), lr=1e-5, master_weight_bits=32)
            set_state_dict(network, optimizer, model_state_dict=model, optim_state_dict=state)
        network.weight.grad = torch.ones_like(network.weight)
        optimizer.step()
    moved = 1.0 - optimizer.get_fp32_model_state_dict(network)["weight"]
    # Each step rounds to fp32 near 1, by 2^-25 at most.
    torch.testing.assert_close(moved, torch.full_like(moved, 0.004), rtol=0, atol=400 * 2.0**-25)


# How a run is saved, and how the optimizer that goes on stores: dtype of the weights and options.
Storage = tuple[torch.dtype, dict[str, Any]]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
STORED: dict[str, Storage] = {
    "bf16-24": (BF16, {}),
    "bf16-32": (BF16, {"master_weight_bits": 32}),
    "bf16-16": (BF16, {"master_weight_bits": 16}),
    "bf16-none": (BF16, {"master_weight_bits": None}),
    "bf16-paper": (BF16, {"format": "paper"}),
    "bf16-paper-32": (BF16, {"format": "paper", "master_weight_bits": 32}),
    "fp16-24": (FP16, {}),
    "fp16-paper-32": (FP16, {"format": "paper", "master_weight_bits": 32}),
    "fp32": (FP32, {}),
    "fp32-paper": (FP32, {"format": "paper"}),
}


def resumed(source: Pair, storage: Storage, order: str) -> Pair:
    dtype, options = storage
    target = make(seed=1, dtype=dtype, **options)
    model = copy.deepcopy(source[0].state_dict())
    state = copy.deepcopy(source[1].state_dict())
    if order == "model first":
        target[0].load_state_dict(model)
    target[1].load_state_dict(state)
    if order == "read in between":
        read(*target)
    if order != "model first":
        target[0].load_state_dict(model)
    return target


def read(network: torch.nn.Module, optimizer: Any) -> None:
    """What progress bars, memory reports and exports do; none of it may use up what waits for the weights."""
    optimizer.state_dict()
    optimizer.state_dict_fp32()
    optimizer.memory_report()
    optimizer.get_fp32_model_state_dict(network)
    with optimizer.full_precision(network):
        pass


@pytest.mark.parametrize("new", STORED)
@pytest.mark.parametrize("old", STORED)
def test_conversions_do_not_depend_on_the_order(old: str, new: str) -> None:
    dtype, options = STORED[old]
    source = train(make(dtype=dtype, **options), STEPS)
    expected = support.masters(source[1], source[0].parameters())
    first = resumed(source, STORED[new], "model first")
    second = resumed(source, STORED[new], "optimizer first")
    third = resumed(source, STORED[new], "read in between")
    for target in (first, second, third):
        masters = support.masters(target[1], target[0].parameters())
        for p, master, found in zip(source[0].parameters(), expected, masters, strict=True):
            # 24 bits hold 1.6e-5 of a weight (docs/formats.md), 16 bits half a unit of bfloat16 beside one of
            # fp16. What lies below fp16's normal numbers has a spacing of 2^-24.
            bound = 2 * 1.6e-5 if keeps_masters(STORED[old], STORED[new]) else 2.0**-8 + 2.0**-11
            least = 2.0**-24 if FP16 in (dtype, STORED[new][0]) else 0.0
            assert bool(((found - master).abs() <= bound * master.abs() + least).all()), p.shape
    # Steps make the bits comparable beyond what a state dict holds, and use what was pending.
    train(first, MORE, first=STEPS)
    for target in (second, third):
        train(target, MORE, first=STEPS)
        support.assert_same(first[1], target[1])


def keeps_masters(old: Storage, new: Storage) -> bool:
    """Whether weights in full precision go over: not if the new weights are
    narrower, or have no corrections."""
    (old_dtype, _), (new_dtype, new_options) = old, new
    if new_dtype == FP32:
        return True
    has_corrections = new_options.get("master_weight_bits", 24) in (24, 32)
    return has_corrections and (old_dtype == new_dtype or (old_dtype, new_dtype) == (BF16, FP16))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("rule", [r for r in RULES if r.torch_make], ids=lambda r: r.name)
def test_states_of_torch_do_not_depend_on_the_order(rule: Rule, dtype: torch.dtype) -> None:
    network = support.model(FP32)
    source = train((network, rule.reference(network.parameters())), STEPS)
    pairs = []
    for order in ("model first", "optimizer first"):
        target = make(rule, seed=1, dtype=dtype)
        parts = [(target[0], source[0]), (target[1], source[1])]
        for to, given in parts if order == "model first" else reversed(parts):
            to.load_state_dict(copy.deepcopy(given.state_dict()))
        pairs.append(train(target, MORE, first=STEPS))
    support.assert_same(pairs[0][1], pairs[1][1])


def test_a_pending_correction_waits_for_its_weights_whatever_copies_it() -> None:
    """bf16 with 24 bits, loaded into fp32 weights that come later: the masters are there at the first use."""
    source = train(make(), STEPS)
    expected = support.masters(source[1], source[0].parameters())
    network, optimizer = make(seed=1, dtype=FP32)
    optimizer.load_state_dict(source[1].state_dict())
    network, optimizer = pickle.loads(pickle.dumps(copy.deepcopy((network, optimizer))))
    assert optimizer.memory_report()["corrections"] > 0
    network.load_state_dict(source[0].state_dict())
    for found, master in zip(support.masters(optimizer, network.parameters()), expected, strict=True):
        assert support.same_bits(found, master)
    with flash.full_precision(network, optimizer):
        pass
    again, resumed_again = make(seed=2, dtype=FP32)
    resumed_again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # saved while it waits
    again.load_state_dict(network.state_dict())
    for p in again.parameters():
        p.grad = torch.zeros_like(p)
    resumed_again.grad_norm()
    for p, master in zip(again.parameters(), expected, strict=True):
        assert support.same_bits(p, master)


def test_a_refresh_drops_what_is_pending() -> None:
    source = train(make(), STEPS)
    network, optimizer = make(seed=1, dtype=FP32)
    optimizer.load_state_dict(source[1].state_dict())
    network.load_state_dict(source[0].state_dict())
    optimizer.refresh_masters()
    for found, p in zip(
        support.masters(optimizer, network.parameters()), source[0].parameters(), strict=True
    ):
        assert support.same_bits(found, p.detach().float())


def test_masters_that_are_set_replace_what_is_pending() -> None:
    source = train(make(), STEPS)
    network, optimizer = make(seed=1, master_weight_bits=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load_state_dict(source[1].state_dict())
    exact = {name: torch.randn_like(p, dtype=FP32) for name, p in network.named_parameters()}
    optimizer.set_fp32_model_state_dict(network, exact)
    for name, value in optimizer.get_fp32_model_state_dict(network).items():
        assert torch.equal(value, exact[name])
