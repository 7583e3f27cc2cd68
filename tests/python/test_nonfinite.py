"""Gradients that are NaN, infinite or absurd: what each policy does, what is counted, who is told.

What a user loses if these fail: a run of days, to one bad batch.
"""

from __future__ import annotations

import warnings
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import RULES, Rule

BAD = [float("nan"), float("inf"), -float("inf"), 2.0**48]


def with_bad(value: float, where: int = 0) -> list[torch.nn.Parameter]:
    given = support.parameters()
    for p, g in zip(given, support.gradients(given, 0), strict=True):
        p.grad = g
    grad = given[where].grad
    assert grad is not None
    grad.view(-1)[7] = value
    return given


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_a_bad_element_is_left_out_and_counted(rule: Rule, value: float) -> None:
    given, good = with_bad(value), with_bad(0.0)
    optimizer, plain = rule(given), rule(good)
    before = given[0].detach().clone()
    optimizer.step()
    plain.step()
    same = given[0].detach() == good[0].detach()
    assert given[0].view(-1)[7] == before.view(-1)[7]
    assert int((~same).sum()) <= 1, "its neighbours step as if it were 0"
    for p, q in zip(given[1:], good[1:], strict=True):
        assert support.same_bits(p, q)
    assert list(optimizer.bad_elements().values()).count(1) == 1
    assert sum(optimizer.bad_elements().values()) == 1
    assert sum(plain.bad_elements().values()) == 0
    assert all(int(optimizer.state[p]["step"]) == 1 for p in given)


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("number_format", ["native", "paper", "fp32"])
@pytest.mark.parametrize("policy", ["skip_step", "error"])
def test_the_whole_step_is_skipped(policy: str, number_format: str, value: float) -> None:
    given = with_bad(value, where=2)
    optimizer = flash.FlashAdamW(given, nonfinite=policy, format=number_format)
    grads = [p.grad for p in given]
    for p in given:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, g in zip(given, grads, strict=True):
        p.grad = g
    before = support.snapshot(optimizer)
    if policy == "error":
        with pytest.raises(flash.NonFiniteError, match="2"):
            optimizer.step()
    else:
        optimizer.step()
    support.assert_same(before, optimizer)
    assert sum(optimizer.bad_elements().values()) == 1
    support.run(optimizer, given, 1)
    assert all(int(optimizer.state[p]["step"]) == 2 for p in given)


def test_an_error_names_the_parameter() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.named_parameters(), nonfinite="error")
    support.loss_of(network, 0).backward()
    bad = network[2].bias
    assert isinstance(bad, torch.nn.Parameter)
    assert bad.grad is not None
    bad.grad[1] = float("nan")
    with pytest.raises(flash.NonFiniteError, match=r"2\.bias"):
        optimizer.step()
    assert optimizer.bad_elements()["2.bias"] == 1
    assert issubclass(flash.NonFiniteError, RuntimeError)


@pytest.mark.parametrize("policy", ["skip_element", "skip_step"])
def test_several_skips_in_a_row_are_told(policy: str) -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.named_parameters(), nonfinite=policy)

    def step(bad: bool) -> list[str]:
        optimizer.zero_grad()
        support.loss_of(network, 0).backward()
        if bad:
            grad = network[0].weight.grad
            assert isinstance(grad, torch.Tensor)
            grad[0, 0] = float("nan")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            optimizer.step()
        return [str(warning.message) for warning in found]

    assert not step(bad=True), "one bad batch is no news"
    for _ in range(50):
        assert not step(bad=False)
    told: list[str] = []
    for _ in range(50):
        told += step(bad=True)
    assert told, "50 bad batches in a row are"
    assert len(told) < 25, "but not every time"
    assert "0.weight" in told[0]
    assert "\n" not in told[0]


def test_counters_survive_a_copy_but_not_a_fresh_start() -> None:
    given = with_bad(float("nan"))
    optimizer = flash.FlashAdamW([("first", given[0])])
    optimizer.step()
    optimizer.step()
    assert optimizer.bad_elements() == {"first": 2}
    assert flash.FlashAdamW([("first", given[0])]).bad_elements() == {"first": 0}


def test_names_come_from_the_groups_and_numbers_stand_in_for_them() -> None:
    given = with_bad(float("nan"), where=1)
    optimizer = flash.FlashAdamW([{"params": given[:1]}, {"params": given[1:]}])
    optimizer.step()
    counts = optimizer.bad_elements()
    assert len(counts) == 4
    assert list(counts.values()) == [0, 1, 0, 0]
    assert set(counts) == {0, 1, 2, 3} or set(counts) == {"0", "1", "2", "3"}


@pytest.mark.filterwarnings("ignore:gradients were:UserWarning")
@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_weights_of_nan_or_infinity_stay_alone(rule: Rule) -> None:
    """A weight that is lost already does not take its neighbours along."""
    given = support.parameters()
    with torch.no_grad():
        given[0][0, 0], given[0][0, 1] = float("nan"), float("inf")
    optimizer = rule(given)
    support.run(optimizer, given, 3)
    assert int((~given[0].isfinite()).sum()) == 2
    assert all(bool(p.isfinite().all()) for p in given[1:])


def test_the_l2_term_and_maximize_belong_to_the_judged_gradient() -> None:
    """Finite gradient, finite weight, their sum beyond 2^48: judged as what it is."""
    p = torch.nn.Parameter(torch.full((64, 96), 2.0**40, dtype=torch.bfloat16))
    optimizer = flash.FlashSGD([p], lr=1e-9, weight_decay=2.0**10)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert sum(optimizer.bad_elements().values()) == p.numel()


def test_a_found_inf_of_a_framework_stops_everything() -> None:
    """Frameworks that unscale themselves set `found_inf` and `grad_scale`, as torch's scaler does."""
    given: list[Any] = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    before = support.snapshot(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    support.assert_same(before, optimizer)
    optimizer.found_inf.fill_(0.0)
    optimizer.step()
    assert int(optimizer.state[given[0]]["step"]) == 2
    del optimizer.grad_scale, optimizer.found_inf
