"""What is given in place of a model, a tensor or an optimizer: one TypeError that names the argument.

What a user loses if these fail: an AttributeError from inside the library, and a search for its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch

NARROW = torch.ones(8, dtype=torch.bfloat16)
OPTIMIZER = flash.FlashAdamW(support.parameters())
# The argument's name, and a call with `value` in its place.
CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "cast_model": ("model", flash.cast_model),
    "enable_gradient_release": ("model", lambda value: flash.enable_gradient_release(value, OPTIMIZER)),
    "full_precision": ("model", lambda value: flash.full_precision(value, OPTIMIZER).__enter__()),
    "get_fp32_model_state_dict": ("model", OPTIMIZER.get_fp32_model_state_dict),
    "set_fp32_model_state_dict": ("model", lambda value: OPTIMIZER.set_fp32_model_state_dict(value, {})),
    "compute_ecc_bits": ("fp32_param", lambda value: flash.compute_ecc_bits(value, NARROW)),
    "compute_ecc_bits-narrow": (
        "narrow_param",
        lambda value: flash.compute_ecc_bits(torch.ones(8), value),
    ),
    "reconstruct_fp32_param": (
        "param",
        lambda value: flash.reconstruct_fp32_param(value, torch.ones(8, dtype=torch.int8)),
    ),
    "reconstruct_fp32_param-bits": (
        "error_bits",
        lambda value: flash.reconstruct_fp32_param(NARROW, value),
    ),
}


@pytest.mark.parametrize("value", [None, 1, "model", [], {}], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_it_is_named(call: str, value: Any) -> None:
    name, function = CALLS[call]
    with pytest.raises(TypeError, match=rf"^{name} is a {type(value).__name__}: it must be a torch\."):
        function(value)


def test_gradients_of_another_model_are_not_released_in_silence() -> None:
    model, other = support.model(), support.model()
    optimizer = flash.FlashAdamW(other.parameters())
    with pytest.raises(ValueError, match="the optimizer has none of the model's parameters"):
        flash.enable_gradient_release(model, optimizer)
    # A part of the model is enough, and a model without parameters has nothing to release.
    flash.enable_gradient_release(torch.nn.Sequential(model, other), optimizer).remove()
    flash.enable_gradient_release(torch.nn.Identity(), optimizer).remove()
