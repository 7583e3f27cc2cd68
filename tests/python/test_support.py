"""The comparisons that the other tests use.

What a user loses if these fail: every test of bits passes over states that have come to NaN.
"""

from __future__ import annotations

import math

import flashoptim_cpp as flash
import pytest
import support
import torch

NUMBERS = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("place", range(3))
def test_a_nan_is_seen_in_every_place(place: int) -> None:
    bad = NUMBERS.clone()
    bad[place] = math.nan
    assert math.isnan(support.largest(bad.tolist()))
    assert not support.same_bits(bad, bad)
    assert not support.has_moved(NUMBERS, bad)
    assert not support.has_moved(bad, NUMBERS)


def test_of_numbers() -> None:
    assert support.largest([1.0, 3.0, 2.0]) == 3.0
    assert support.same_bits(NUMBERS, NUMBERS.clone())
    assert not support.has_moved(NUMBERS, NUMBERS.clone())
    assert support.has_moved(NUMBERS, NUMBERS + 1)
    assert support.same_bits(torch.tensor([-1], dtype=torch.int8), torch.tensor([-1], dtype=torch.int8))


@pytest.mark.parametrize("number_format", ["native", "paper", "fp32"])
def test_a_nan_in_any_buffer_of_a_state_is_seen(number_format: str) -> None:
    """Codes and corrections of a number are numbers; scales and fp32 moments may be NaN."""
    given = support.parameters(shapes=((64, 96), (7, 5)))
    optimizer = flash.FlashAdamW(given, format=number_format)
    support.run(optimizer, given, 2)
    kept = support.snapshot(optimizer)
    support.assert_same(kept, kept)
    floating = [
        k for k, v in kept.items() if isinstance(v, torch.Tensor) and v.is_floating_point() and v.numel()
    ]
    assert len(floating) > len(given)
    for key in floating:
        spoiled = {name: value.clone() if name == key else value for name, value in kept.items()}
        spoiled[key].view(-1)[-1] = math.nan
        with pytest.raises(AssertionError):
            support.assert_same(spoiled, spoiled)
