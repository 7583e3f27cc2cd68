"""What others keep in `optimizer.state[p]`, such as the slow weights of
lookahead, is saved and loaded as it is.

What a user loses if these fail: the other half of the optimizer's state, or its precision.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
import torch.distributed.checkpoint as dcp
from support import ADAMW, LION, SGD, SGD_PLAIN, Rule
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)


def entries(p: torch.Tensor) -> dict[Any, Any]:
    """Of every kind, and of dtypes that torch would cast to the parameter's."""
    return {
        "slow_buffer": torch.randn(p.shape, dtype=torch.float32),
        "ema": torch.randn(p.shape, dtype=torch.float64),
        "half": torch.randn(p.shape).half(),
        "counts": torch.arange(5),
        "mask": torch.rand(p.shape) > 0.5,
        "codes": torch.randint(0, 255, (7,), dtype=torch.uint8),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "number": 3,
        "ratio": 0.25,
        "name": "slow",
        "nothing": None,
        "flag": True,
        "nested": {"a": torch.randn(3), "deeper": {"b": 2, "c": [torch.ones(2), 5]}},
        "pair": (1.5, torch.zeros(2, dtype=torch.bfloat16)),
        7: torch.ones(1),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and support.same_bits(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def plain(saved: Any) -> Any:
    return copy.deepcopy(saved)


def through_a_file(saved: Any) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def pickled(saved: Any) -> Any:
    return pickle.loads(pickle.dumps(saved))


@pytest.mark.parametrize("way", [plain, through_a_file, pickled], ids=lambda w: w.__name__)
@pytest.mark.parametrize("compress", [True, False], ids=["codes", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rule", [SGD, SGD_PLAIN, ADAMW, LION], ids=lambda r: r.name)
def test_foreign_entries_go_round(
    rule: Rule, dtype: torch.dtype, compress: bool, way: Callable[[Any], Any]
) -> None:
    given = support.parameters(dtype)
    optimizer = rule(given, compress_state_dict=compress)
    support.run(optimizer, given, 2)
    kept = [entries(p) for p in given]
    for p, own in zip(given, kept, strict=True):
        optimizer.state[p].update(own)
    support.run(optimizer, given, 1, first=2)
    other = support.clones(given)
    resumed = rule(other, compress_state_dict=compress)
    resumed.load_state_dict(way(optimizer.state_dict()))
    for p, q, own in zip(given, other, kept, strict=True):
        assert optimizer.state[p].keys() == resumed.state[q].keys()
        for key, value in own.items():
            assert same(value, optimizer.state[p][key]), f"{key} changed in a step"
            assert same(value, resumed.state[q][key]), key
    support.run(resumed, other, 1, first=3)
    for q, own in zip(other, kept, strict=True):
        assert all(same(value, resumed.state[q][key]) for key, value in own.items())


def test_what_is_loaded_is_a_copy() -> None:
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashAdamW([p])
    support.run(optimizer, [p], 1)
    optimizer.state[p]["slow"] = torch.zeros(3)
    optimizer.state[p]["nested"] = {"a": torch.zeros(3), "list": [1]}
    saved = optimizer.state_dict()
    assert saved["state"][0]["slow"] is optimizer.state[p]["slow"], "as the other entries"
    other = flash.FlashAdamW(support.clones([p]))
    other.load_state_dict(saved)
    [q] = other.param_groups[0]["params"]
    other.state[q]["slow"].fill_(1.0)
    other.state[q]["nested"]["a"].fill_(1.0)
    other.state[q]["nested"]["list"].append(2)
    assert not optimizer.state[p]["slow"].any()
    assert not optimizer.state[p]["nested"]["a"].any()
    assert optimizer.state[p]["nested"]["list"] == [1]


@pytest.mark.parametrize("copier", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copies_of_the_optimizer_keep_them(copier: Callable[[Any], Any]) -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 1)
    for p in network.parameters():
        optimizer.state[p]["slow"] = p.detach().double()
    copied_network, copied = copier((network, optimizer))
    for p, q in zip(network.parameters(), copied_network.parameters(), strict=True):
        assert same(optimizer.state[p]["slow"], copied.state[q]["slow"])


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_parameter_that_was_never_stepped_has_nothing_else(is_frozen: bool) -> None:
    """No moments are made for the sake of what somebody else keeps."""
    given = support.parameters()
    given[3].requires_grad_(not is_frozen)
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given[:3], 1)
    optimizer.state[given[3]]["slow"] = torch.ones(40, dtype=torch.float64)
    saved = copy.deepcopy(optimizer.state_dict())
    assert set(saved["state"][3]) == {"slow"}
    assert set(optimizer.state[given[3]]) == {"slow"}
    other = support.clones(given)
    resumed = flash.FlashAdamW(other)
    resumed.load_state_dict(saved)
    assert set(resumed.state[other[3]]) == {"slow"}
    support.run(resumed, other, 1)
    assert same(resumed.state[other[3]]["slow"], torch.ones(40, dtype=torch.float64))
    assert int(resumed.state[other[3]]["step"]) == 1


def test_entries_from_before_the_first_step() -> None:
    """Lookahead takes its slow weights when it is made."""
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    for p in given:
        optimizer.state[p]["slow_buffer"] = p.detach().float().clone()
    twin = support.clones(given)
    bare = flash.FlashAdamW(twin)
    support.run(optimizer, given, 3)
    support.run(bare, twin, 3)
    for p, q in zip(given, twin, strict=True):
        assert support.same_bits(p, q)
        assert optimizer.state[p]["slow_buffer"].dtype == torch.float32


@pytest.mark.parametrize("flatten", [False, True])
def test_through_a_distributed_checkpoint(flatten: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def made(value: float) -> tuple[torch.nn.Module, Any]:
        network = support.model()
        optimizer = flash.FlashAdamW(network.parameters())
        support.run(optimizer, list(network.parameters()), 2)
        optimizer.zero_grad()
        for p in network.parameters():
            optimizer.state[p]["slow"] = torch.full(p.shape, value, dtype=torch.float64)
            optimizer.state[p]["nested"] = {"a": torch.full((3,), value), "n": value}
        return network, optimizer

    first, second = made(0.1), made(0.0)
    dcp.save({"optimizer": get_optimizer_state_dict(*first, options=options)}, checkpoint_id=tmp_path)
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(*second, options=options)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(*second, state["optimizer"], options=options)
    for p, q in zip(first[0].parameters(), second[0].parameters(), strict=True):
        for key in ("slow", "nested"):
            assert same(first[1].state[p][key], second[1].state[q][key]), key


class Lookahead:
    """As timm and others write it: a wrapper that shares the optimizer's state."""

    def __init__(self, optimizer: Any, k: int = 2, alpha: float = 0.5) -> None:
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0

    def step(self) -> None:
        self.optimizer.step()
        self.count += 1
        if self.count % self.k:
            return
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                state = self.optimizer.state[p]
                if "lookahead_slow_buff" not in state:
                    state["lookahead_slow_buff"] = p.detach().float().clone()
                slow = state["lookahead_slow_buff"]
                slow.add_(p.detach().float() - slow, alpha=self.alpha)
                p.data.copy_(slow)


def test_lookahead_resumes_bit_for_bit() -> None:
    straight, broken = support.parameters(), support.parameters()
    first, second = (Lookahead(flash.FlashAdamW(given, lr=1e-2)) for given in (straight, broken))

    def train(lookahead: Lookahead, given: list[torch.nn.Parameter], steps: range) -> None:
        for step in steps:
            for p, g in zip(given, support.gradients(given, step), strict=True):
                p.grad = g
            lookahead.step()

    train(first, straight, range(8))
    train(second, broken, range(4))
    resumed = support.clones(broken)
    third = Lookahead(flash.FlashAdamW(resumed, lr=1e-2))
    third.optimizer.load_state_dict(through_a_file(second.optimizer.state_dict()))
    train(third, resumed, range(4, 8))
    support.assert_same(first.optimizer, third.optimizer)
    for p, q in zip(straight, resumed, strict=True):
        a, b = (o.state[t]["lookahead_slow_buff"] for o, t in ((first.optimizer, p), (third.optimizer, q)))
        assert same(a, b)


REFUSED = [
    *(
        name + suffix
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer", "max_exp_avg_sq")
        for suffix in ("", "::quantized", "::scales")
    ),
    "exp_avg_diff",
    "error_bits::former",
    "state1",
    "__bnb_optimizer_quant_state__",
    "square_avg",
    "sum",
    "mu_product",
]


@pytest.mark.parametrize("rule", [SGD, ADAMW, LION], ids=lambda r: r.name)
def test_names_of_buffers_stay_refused(rule: Rule) -> None:
    given = support.parameters()
    optimizer = rule(given)
    support.run(optimizer, given, 1)
    own = {name + suffix for name in rule.moments for suffix in ("", "::quantized", "::scales")}
    before = support.snapshot(optimizer)
    for name in REFUSED:
        if name in own:
            continue
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0][name] = torch.zeros(64, 96)
        with pytest.raises(ValueError, match=name.split("::")[0]):
            optimizer.load_state_dict(saved)
        support.assert_same(before, optimizer)


@pytest.mark.parametrize(
    "make",
    [torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adadelta, torch.optim.Adamax],
)
@pytest.mark.parametrize("rule", [SGD, ADAMW, LION], ids=lambda r: r.name)
def test_states_of_other_optimizers_of_torch_are_refused(rule: Rule, make: Callable[..., Any]) -> None:
    given = support.parameters(torch.float32)
    source = make(given)
    support.run(source, given, 1)
    optimizer = rule(support.parameters())
    with pytest.raises(ValueError, match="parameter 0"):
        optimizer.load_state_dict(source.state_dict())
    assert not any(optimizer.state.values())


def test_what_cannot_be_copied_is_refused() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    before = support.snapshot(optimizer)
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    for value in (
        torch.zeros(3, device="meta"),
        circle,
        (n for n in range(3)),
        {"deep": [print, (n for n in range(0))]},
    ):
        saved = optimizer.state_dict()
        saved["state"][0] = {**saved["state"][0], "slow": value}
        with pytest.raises(ValueError, match=r"slow.*cannot be copied") as refused:
            optimizer.load_state_dict(saved)
        assert "\n" not in str(refused.value)
        support.assert_same(before, optimizer)


def test_a_buffer_of_another_rule_in_a_live_state_is_named_at_the_next_step() -> None:
    """Not when the run is saved, or only when the file is loaded."""
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashSGD([p], momentum=0.9)
    optimizer.state[p]["exp_avg"] = torch.zeros(64, 96)
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"exp_avg.*rename"):
        optimizer.step()
