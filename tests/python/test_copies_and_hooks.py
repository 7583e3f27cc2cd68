"""Hooks, copies, pickles and the printed form of an optimizer.

What a user loses if these fail: frameworks around the training loop, which reach
into the optimizer in these ways.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import RULES, Rule


def hooked(optimizer: Any) -> list[str]:
    """The names of hooks as they are called; every hook that torch knows is registered."""
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("step pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("step post"))
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("state_dict pre"))
    optimizer.register_state_dict_post_hook(lambda *_: called.append("state_dict post"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda *_: called.append("load post"))
    return called


EVERY = ["step pre", "step post", "state_dict pre", "state_dict post", "load pre", "load post"]


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_hooks_are_called_once_each(rule: Rule) -> None:
    given = support.parameters()
    optimizer = rule(given)
    called = hooked(optimizer)
    support.run(optimizer, given, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == EVERY


def test_hooks_are_called_while_gradients_are_released() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    called = hooked(optimizer)
    handle = flash.enable_gradient_release(network, optimizer)
    support.loss_of(network, 0).backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == EVERY
    handle.remove()


def test_state_dict_hooks_may_replace_the_dict() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": "kept"})
    assert optimizer.state_dict()["note"] == "kept"
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {key: value for key, value in state.items() if key != "note"}
    )
    before = support.snapshot(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    support.assert_same(before, optimizer)


def test_state_dict_does_not_change_the_one_it_was_given() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 2)
    saved = optimizer.state_dict()
    keys = {index: sorted(state) for index, state in saved["state"].items()}
    other = flash.FlashAdamW(support.clones(given))
    other.load_state_dict(saved)
    assert {index: sorted(state) for index, state in saved["state"].items()} == keys
    kept = copy.deepcopy(saved)
    support.run(other, other.param_groups[0]["params"], 1, first=2)
    for index, state in saved["state"].items():
        for key, value in state.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, kept["state"][index][key]), key


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_an_optimizer_that_never_stepped_is_copied_too(rule: Rule) -> None:
    given = support.parameters()
    optimizer = rule(given)
    for other, parameters in (
        copy.deepcopy((optimizer, given)),
        pickle.loads(pickle.dumps((optimizer, given))),
    ):
        support.run(other, parameters, 2)
    support.run(optimizer, given, 2)
    support.assert_same(optimizer, other)


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_repr_says_what_it_is(rule: Rule) -> None:
    given = support.parameters()
    text = repr(rule(given))
    assert text.startswith(type(rule(given)).__name__)
    for word in ("lr", "weight_decay", "native", "Parameter Group 0"):
        assert word in text
    support.run(rule(given), given, 1)


def test_a_subclass_may_add_its_own_argument() -> None:
    class Mine(flash.FlashAdamW):
        def __init__(self, params: Any, tag: str, **more: Any) -> None:
            super().__init__(params, **more)
            self.tag = tag

    given = support.parameters()
    optimizer = Mine(given, "mine", lr=1e-3)
    support.run(optimizer, given, 1)
    assert optimizer.tag == "mine"


def test_a_copy_keeps_the_options_of_the_whole_optimizer() -> None:
    given = support.parameters()
    optimizer = flash.FlashLion(given, lr=1e-9, compress_state_dict=False, check_numerics=True)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        parameters = other.param_groups[0]["params"]
        with pytest.raises(flash.NumericsError):
            support.run(other, parameters, 1)
        other.param_groups[0]["lr"] = 1e-2
        support.run(other, parameters, 1)
        assert "exp_avg" in other.state_dict()["state"][0], "not compressed"


def test_moments_print_and_measure_like_tensors() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    for p in given:
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[p][name]
            assert tuple(moment.shape) == tuple(p.shape)
            assert moment.numel() == p.numel()
            assert moment.materialize().shape == p.shape
            assert moment.materialize().dtype == torch.float32
            assert str(tuple(p.shape)) in repr(moment) or str(list(p.shape)) in repr(moment)
    assert optimizer.state[given[0]]["exp_avg"].is_quantized()
    assert not optimizer.state[given[2]]["exp_avg"].is_quantized()
