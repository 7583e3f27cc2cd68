"""What goes on around an optimizer: defaults of torch, forks, cleared states, layouts that
change, weights that begin in fp32.

What a user loses if these fail: an evening, to something that worked with torch.optim. Most of these were
somebody's bug report to another optimizer.
"""

from __future__ import annotations

import collections
import os
import time
import warnings
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import RULES, Rule


def trained(rule: Rule, steps: int = 3, **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    given = support.parameters()
    optimizer = rule(given, **options)
    support.run(optimizer, given, steps)
    return optimizer, given


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_of_torch_is_not_ours(rule: Rule, dtype: torch.dtype) -> None:
    plain, _ = trained(rule)
    given = support.parameters()
    grads = [support.gradients(given, step) for step in range(3)]
    torch.set_default_dtype(dtype)
    try:
        optimizer = rule(given)
        for step in range(3):
            for p, g in zip(given, grads[step], strict=True):
                p.grad = g
            optimizer.step()
        state = optimizer.state_dict()
        again = rule(support.clones(given))
        again.load_state_dict(state)
    finally:
        torch.set_default_dtype(torch.float32)
    support.assert_same(plain, optimizer)
    support.assert_same(plain, again)


def test_the_default_device_of_torch_is_not_ours() -> None:
    """`torch.set_default_device` and `with torch.device(...)` are for new tensors of the user's."""
    plain, _ = trained(support.ADAMW)
    given = support.parameters()
    grads = [support.gradients(given, step) for step in range(3)]
    with torch.device("meta"):
        optimizer = flash.FlashAdamW(given, **support.ADAMW.options)
        for step in range(3):
            for p, g in zip(given, grads[step], strict=True):
                p.grad = g
            optimizer.step()
        optimizer.memory_report()
        optimizer.grad_norm()
        optimizer.bad_elements()
        state = optimizer.state_dict()
    again = flash.FlashAdamW(support.clones(given), **support.ADAMW.options)
    with torch.device("meta"):
        again.load_state_dict(state)
    support.assert_same(plain, optimizer)
    support.assert_same(plain, again)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_steps_too() -> None:
    """Data loaders fork; so do launchers. The threads of the step do not come along and are started anew.

    Everything that torch itself computes in parallel is done before, as its OpenMP does not survive a fork.
    """
    torch.set_num_threads(2)
    given = support.parameters(shapes=((512, 512), (64, 96)))
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 2)
    for p, g in zip(given, support.gradients(given, 2), strict=True):
        p.grad = g
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process has threads
        child = os.fork()
    if child == 0:
        optimizer.step()
        os._exit(0 if int(optimizer.state[given[0]]["step"]) == 3 else 1)
    ended, status, end = 0, 1, time.monotonic() + 60
    while not ended and time.monotonic() < end:
        time.sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert (ended, status) == (child, 0)
    assert int(optimizer.state[given[0]]["step"]) == 2
    optimizer.step()
    assert int(optimizer.state[given[0]]["step"]) == 3


def clear(optimizer: Any) -> None:
    optimizer.state.clear()


def replace(optimizer: Any) -> None:
    optimizer.state = collections.defaultdict(dict)


def delete(optimizer: Any) -> None:
    for p in list(optimizer.state):
        del optimizer.state[p]


@pytest.mark.parametrize("reset", [clear, replace, delete])
@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_a_state_that_was_cleared_begins_anew(rule: Rule, reset: Any) -> None:
    """The usual way to restart the moments; weights and their corrections begin at what the weights are."""
    optimizer, given = trained(rule)
    reset(optimizer)
    fresh_parameters = support.clones(given)
    fresh = rule(fresh_parameters)
    support.run(optimizer, given, 2, first=3)
    support.run(fresh, fresh_parameters, 2, first=3)
    support.assert_same(optimizer, fresh)


def test_one_parameters_state_may_be_cleared() -> None:
    optimizer, given = trained(support.ADAMW)
    del optimizer.state[given[0]]
    support.run(optimizer, given, 1, first=3)
    assert int(optimizer.state[given[0]]["step"]) == 1
    assert int(optimizer.state[given[1]]["step"]) == 4


def test_a_model_that_becomes_channels_last_keeps_its_state() -> None:
    """`model.to(memory_format=...)` after some steps moves the weights' memory; the state follows."""
    network = torch.nn.Conv2d(32, 16, 3).bfloat16()
    optimizer = flash.FlashAdamW(network.parameters())
    given = list(network.parameters())
    support.run(optimizer, given, 3)
    masters = optimizer.get_fp32_model_state_dict(network)
    moments = [optimizer.state[p]["exp_avg"].materialize().clone() for p in given]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    for p in given:
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    optimizer.step()
    for name, value in optimizer.get_fp32_model_state_dict(network).items():
        # The write is noticed; what it wrote may be taken for the weight, or the correction be carried over.
        torch.testing.assert_close(value, masters[name], rtol=2.0**-8, atol=0)
    for p, before in zip(given, moments, strict=True):
        now = optimizer.state[p]["exp_avg"].materialize()
        assert int(optimizer.state[p]["step"]) == 4
        torch.testing.assert_close(now, 0.9 * before, rtol=0, atol=3 / 127 * float(before.abs().max()))


def test_memory_that_moves_is_followed() -> None:
    """Weights whose storage is exchanged for one of the same values, as offloading engines do."""
    optimizer, given = trained(support.ADAMW)
    plain, other = trained(support.ADAMW)
    for p in given:
        p.data = p.data.clone()
    support.run(optimizer, given, 2, first=3)
    support.run(plain, other, 2, first=3)
    for p, q in zip(given, other, strict=True):
        # What came through `.data` counts as written: half a unit of bfloat16 may be lost.
        torch.testing.assert_close(p, q, rtol=2.0**-7, atol=1e-5)
        assert int(optimizer.state[p]["step"]) == 5


def test_weights_that_begin_in_fp32_lose_nothing() -> None:
    """set_fp32_model_state_dict before the first step: the corrections hold what bfloat16 cannot."""
    trained_model = support.model(torch.float32, seed=4)
    network = support.model(torch.float32, seed=4)
    flash.cast_model(network)
    optimizer = flash.FlashAdamW(network.parameters(), master_weight_bits=32)
    optimizer.set_fp32_model_state_dict(network, trained_model.state_dict())
    for name, value in optimizer.get_fp32_model_state_dict(network).items():
        assert support.same_bits(value, trained_model.state_dict()[name]), name
    reference = torch.optim.AdamW(trained_model.parameters())
    support.run(optimizer, list(network.parameters()), 1, scale=0.0)
    support.run(reference, list(trained_model.parameters()), 1, scale=0.0)
    for name, value in optimizer.get_fp32_model_state_dict(network).items():
        torch.testing.assert_close(value, trained_model.state_dict()[name], rtol=3e-7, atol=0)


def test_groups_without_parameters() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW([{"params": []}, {"params": given}])
    support.run(optimizer, given, 2)
    other = flash.FlashAdamW([{"params": []}, {"params": support.clones(given)}])
    other.load_state_dict(optimizer.state_dict())
    support.assert_same(optimizer, other)


def test_two_optimizers_share_a_model() -> None:
    """Each has its parameters; gradients that belong to the other are left alone."""
    network = support.model()
    first = flash.FlashAdamW(network[0].parameters())
    second = flash.FlashSGD(network[2].parameters(), lr=0.1)
    for step in range(3):
        support.loss_of(network, step).backward()
        first.step()
        assert all(p.grad is not None for p in network[2].parameters())
        second.step()
        first.zero_grad()
        second.zero_grad()
    assert len(first.state) == len(second.state) == 2


def test_no_warning_in_an_ordinary_loop() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = support.model()
        optimizer = flash.FlashAdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
        for step in range(5):
            support.loss_of(network, step).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_a_step_in_inference_mode_and_without_gradients_enabled(rule: Rule) -> None:
    plain, _ = trained(rule, 2)
    given = support.parameters()
    optimizer = rule(given)
    with torch.no_grad():
        support.run(optimizer, given, 2)
    support.assert_same(plain, optimizer)
    assert all(p.requires_grad for p in given)


def test_many_steps_keep_exact_count() -> None:
    """Step counts in bfloat16 stop at 256, in fp32 at 2^24: ours are integers, also after a checkpoint."""
    given = support.parameters(shapes=((4, 4),))
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = torch.tensor(2**24 + 1)
    optimizer.load_state_dict(saved)
    support.run(optimizer, given, 2)
    assert int(optimizer.state[given[0]]["step"]) == 2**24 + 3
    assert int(optimizer.state_dict()["state"][0]["step"]) == 2**24 + 3


def test_a_step_count_as_torch_saves_it() -> None:
    """torch.optim counts in fp32 tensors, older ones in Python numbers."""
    for step in (torch.tensor(7.0), torch.tensor(7), 7):
        given = support.parameters()
        optimizer = flash.FlashAdamW(given)
        support.run(optimizer, given, 1)
        saved = optimizer.state_dict()
        for state in saved["state"].values():
            state["step"] = step
        optimizer.load_state_dict(saved)
        assert int(optimizer.state[given[0]]["step"]) == 7
