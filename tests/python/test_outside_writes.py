"""Weights written by somebody else between steps: what lies in the parameter is then the weight.

What a user loses if these fail: a loaded, clamped or re-initialised weight that carries a correction of the old one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import flashoptim_cpp as flash
import pytest
import support
import torch

Tensor = torch.Tensor


def clamp(p: Tensor) -> None:
    with torch.no_grad():
        p.clamp_(-0.5, 0.5)


def initialise(p: Tensor) -> None:
    torch.nn.init.normal_(p)


def copy(p: Tensor) -> None:
    with torch.no_grad():
        p.copy_(torch.full_like(p, 1.25))


def through_data(p: Tensor) -> None:
    p.data = torch.full_like(p, 1.25)


def scale(p: Tensor) -> None:
    with torch.no_grad():
        p.mul_(0.5)


WRITES = [clamp, initialise, copy, through_data, scale]


@pytest.mark.parametrize("write", WRITES, ids=[w.__name__ for w in WRITES])
@pytest.mark.parametrize("bits", [24, 32])
def test_a_written_weight_is_the_master(write: Callable[[Tensor], None], bits: int) -> None:
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashSGD([p], lr=1e-3, master_weight_bits=bits)
    support.run(optimizer, [p], 5)
    assert bool(optimizer.state[p]["error_bits"].any())
    write(p)
    p.grad = torch.zeros_like(p)
    written = p.detach().clone()
    optimizer.step()
    assert support.same_bits(p, written)
    [master] = support.masters(optimizer, [p])
    assert torch.equal(master, written.float())


def test_loading_a_models_weights_resets_the_corrections() -> None:
    network, other = support.model(seed=0), support.model(seed=1)
    optimizer = flash.FlashSGD(network.parameters())
    support.run(optimizer, list(network.parameters()), 3)
    network.load_state_dict(other.state_dict())
    taken = optimizer.get_fp32_model_state_dict(network)
    for name, value in other.state_dict().items():
        assert torch.equal(taken[name], value.float()), name


def test_a_resumed_model_keeps_its_corrections() -> None:
    """Loading the model's weights is a write, loading the optimizer's state after it is the remedy."""
    network, other = support.model(), support.model(seed=1)
    optimizer = flash.FlashAdamW(network.parameters())
    resumed = flash.FlashAdamW(other.parameters())
    support.run(optimizer, list(network.parameters()), 3)
    support.run(resumed, list(other.parameters()), 1)
    other.load_state_dict(network.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    support.run(optimizer, list(network.parameters()), 2, first=3)
    support.run(resumed, list(other.parameters()), 2, first=3)
    support.assert_same(optimizer, resumed)


@pytest.mark.parametrize("number_format", ["native", "paper"])
def test_writes_through_data_are_told_by_refresh_masters(number_format: str) -> None:
    """They cannot be noticed; what is left of the former correction is below the stored weight's own rounding."""
    [p, q] = support.parameters(shapes=((64, 96), (70, 80)))
    optimizer = flash.FlashAdamW([p, q], format=number_format)
    support.run(optimizer, [p, q], 3)
    _, untouched = support.masters(optimizer, [p, q])
    p.data.clamp_(-0.5, 0.5)
    [master] = support.masters(optimizer, [p])
    spacing = 2.0 ** (p.detach().float().abs().log2().floor() - 7)
    assert bool(((master - p.detach().float()).abs() <= spacing / 2).all())
    optimizer.refresh_masters([p])
    for master, expected in zip(
        support.masters(optimizer, [p, q]), (p.detach().float(), untouched), strict=True
    ):
        assert support.same_bits(master, expected)
    with pytest.raises(ValueError, match="not managed"):
        optimizer.refresh_masters([q, torch.ones(3)])
    optimizer.refresh_masters()
    [master] = support.masters(optimizer, [q])
    assert support.same_bits(master, q.detach().float())


def test_own_steps_are_not_mistaken_for_writes() -> None:
    """The master moves by 1e-6 a step, far below a bfloat16: it must arrive, but for 100 roundings of fp32."""
    p = torch.nn.Parameter(torch.ones(64, 96, dtype=torch.bfloat16))
    optimizer = flash.FlashSGD([p], lr=1e-6, master_weight_bits=32)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    [master] = support.masters(optimizer, [p])
    torch.testing.assert_close(master, torch.full_like(master, 1 - 1e-4), rtol=0, atol=100 * 2.0**-25)


def test_reading_is_no_write() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 3)
    before = support.snapshot(optimizer)
    torch.nn.utils.parameters_to_vector(network.parameters())
    network.state_dict()
    support.loss_of(network, 0).backward()
    optimizer.get_fp32_model_state_dict(network)
    support.assert_same(before, optimizer)


def test_the_version_counter_tells_autograd_of_a_step() -> None:
    """A graph that was built before a step must not be differentiated with the weights after it."""
    p = torch.nn.Parameter(torch.ones(64, 96))
    optimizer = flash.FlashSGD([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_swapped_with_an_average_and_back() -> None:
    """What frameworks do around an evaluation: after the second swap the old weights are there, without corrections."""
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashAdamW([p])
    support.run(optimizer, [p], 3)
    held, average = p.detach().clone(), torch.randn(64, 96).bfloat16()
    for value in (average, held):
        with torch.no_grad():
            p.copy_(value)
        [master] = support.masters(optimizer, [p])
        assert torch.equal(master, value.float())


@pytest.mark.parametrize("change", ["bits", "format"])
def test_a_group_changed_in_mid_run_is_carried_over_or_refused(change: str) -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 3)
    before = support.masters(optimizer, given)
    optimizer.param_groups[0].update({"master_weight_bits": 32} if change == "bits" else {"format": "paper"})
    for p in given:
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a conversion says so
            optimizer.step()
    except ValueError as error:
        assert ("master_weight_bits" if change == "bits" else "format") in str(error)
        return
    for old, new in zip(before, support.masters(optimizer, given), strict=True):
        # 24 bits of either format resolve 1.6e-5 of a weight (docs/formats.md).
        torch.testing.assert_close(old, new, rtol=2 * 1.6e-5, atol=0)


def test_a_model_that_changes_its_dtype_is_carried_over_or_refused() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.named_parameters())
    support.run(optimizer, list(network.parameters()), 3)
    network.float()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in network.parameters()]
    try:
        optimizer.step()
    except (ValueError, RuntimeError) as error:
        assert "dtype" in str(error) or "float32" in str(error)
        for p, q in zip(network.parameters(), before, strict=True):
            assert torch.equal(p, q)
        return
    for p in network.parameters():
        assert p.dtype == torch.float32
        assert "error_bits" not in optimizer.state[p]
        assert int(optimizer.state[p]["step"]) == 4
