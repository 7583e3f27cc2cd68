"""Basics of the optimizers: what they notice between two steps, and what they refuse.

What a user loses if these fail: wrong weights after something else has touched a state, a weight or a group.
"""

from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch


def _parameter(rows: int = 96) -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(rows, 96).bfloat16())


def _step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    for n, group in enumerate(optimizer.param_groups):
        for m, p in enumerate(group["params"]):
            generator = torch.Generator().manual_seed(1000 * seed + 10 * n + m)
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()


def test_a_correction_that_somebody_puts_there_is_used() -> None:
    """As the documentation of compute_ecc_bits does it, before the first step and after it."""
    for steps in (0, 2):
        p = _parameter()
        optimizer = flash.FlashAdamW([p], lr=0.0, weight_decay=0.0)
        for n in range(steps):
            _step(optimizer, n)
        masters = p.detach().float() * 1.001
        with torch.no_grad():
            p.copy_(masters)
        optimizer.state[p]["error_bits"] = flash.compute_ecc_bits(masters, p, 3)
        found = flash.reconstruct_fp32_param(p, optimizer.state[p]["error_bits"])
        # An 8-bit correction of a bfloat16 resolves 2^-17 of it; a weight rounded to even may miss one more.
        torch.testing.assert_close(found, masters, rtol=2.0**-15, atol=0)
    with pytest.raises(ValueError, match="error_bits"):
        optimizer.state[p]["error_bits"] = flash.compute_ecc_bits(masters, p, 4)
        _step(optimizer, 9)


def test_weights_that_share_memory_are_refused() -> None:
    """They are written at the same time."""
    whole = torch.randn(10, 10)
    first, second = torch.nn.Parameter(whole[:6]), torch.nn.Parameter(whole[4:])
    optimizer = flash.FlashSGD([first, second])
    before = whole.clone()
    with pytest.raises(ValueError, match="shares memory"):
        _step(optimizer, 0)
    assert torch.equal(whole, before)


def test_a_parameter_moves_between_groups() -> None:
    """The options of its present group hold, also where nothing else has changed."""
    p, q = _parameter(), _parameter(64)
    groups: list[dict[str, Any]] = [{"params": [p]}, {"params": [q], "lr": 0.0}]
    optimizer = flash.FlashSGD(groups, lr=1e-2)
    _step(optimizer, 0)
    first, second = optimizer.param_groups
    first["params"], second["params"] = [q], [p]
    kept, moved = p.detach().clone(), q.detach().clone()
    _step(optimizer, 1)
    assert torch.equal(p, kept)
    assert support.has_moved(moved, q)


def test_sets_of_gradients_alternate() -> None:
    """Parameters without a gradient rest, and steps of the others are those of an optimizer of their own."""
    p, q = _parameter(), _parameter(64)
    alone_p, alone_q = torch.nn.Parameter(p.detach().clone()), torch.nn.Parameter(q.detach().clone())
    together = flash.FlashAdamW([p, q])
    apart = [flash.FlashAdamW([alone_p]), flash.FlashAdamW([alone_q])]
    for n in range(6):
        chosen, other = (p, alone_p) if n % 2 else (q, alone_q)
        gradient = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(n)).bfloat16()
        p.grad = q.grad = None
        chosen.grad, other.grad = gradient, gradient.clone()
        together.step()
        apart[0 if n % 2 else 1].step()
    assert torch.equal(p, alone_p)
    assert torch.equal(q, alone_q)


def test_groups_may_join_while_gradients_are_released() -> None:
    """They have no hooks: step() steps them."""
    layer = torch.nn.Linear(96, 96)
    optimizer = flash.FlashSGD(layer.parameters(), lr=1.0)
    handle = flash.enable_gradient_release(layer, optimizer)
    other = _parameter()
    before = other.detach().clone()
    optimizer.add_param_group({"params": [other]})
    (layer(torch.ones(1, 96)).sum() + other.sum()).backward()
    assert torch.equal(other, before)
    optimizer.step()
    assert not torch.equal(other, before)
    handle.remove()


def test_a_state_in_the_form_of_a_file_is_taken_in() -> None:
    """ZeroRedundancyOptimizer puts states there as state_dict() gives them."""
    p = _parameter()
    q = torch.nn.Parameter(p.detach().clone())
    optimizer, other = flash.FlashAdamW([p]), flash.FlashAdamW([q])
    for n in range(3):
        _step(optimizer, n)
    with torch.no_grad():
        q.copy_(p)
    other.state[q] = {key: value.clone() for key, value in optimizer.state_dict()["state"][0].items()}
    _step(optimizer, 3)
    _step(other, 3)
    assert torch.equal(p, q)
    assert torch.equal(optimizer.state[p]["exp_avg"].codes, other.state[q]["exp_avg"].codes)


def test_a_state_is_made_before_the_first_step_by_the_authors_name() -> None:
    """Their tests look at moments of zeros this way."""
    p = torch.nn.Parameter(torch.randn(64, 96).bfloat16())
    optimizer = flash.FlashAdamW([p])
    optimizer._ensure_state_initialized(p, hparams={})
    assert not optimizer.state[p]["exp_avg"].materialize().any()
    assert int(optimizer.state[p]["step"]) == 0
    with pytest.raises(ValueError, match="not managed"):
        optimizer._ensure_state_initialized(torch.ones(3))
