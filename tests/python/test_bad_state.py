"""States that do not fit: a clear error, and an optimizer that is as it was.

What a user loses if these fail: an afternoon with a network that trains a little worse, and no word why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch

State = dict[str, Any]
FIRST = "exp_avg::quantized"
SCALES = "exp_avg::scales"
SECOND = "exp_avg_sq::quantized"


def changed(key: str, change: Callable[[Any], Any], index: int = 0) -> Callable[[State], None]:
    def apply(saved: State) -> None:
        saved["state"][index][key] = change(saved["state"][index][key])

    return apply


def without(*keys: str) -> Callable[[State], None]:
    def apply(saved: State) -> None:
        for key in keys:
            del saved["state"][0][key]

    return apply


def added(key: str, value: Any) -> Callable[[State], None]:
    def apply(saved: State) -> None:
        saved["state"][0][key] = value

    return apply


def grouped(key: str, value: Any) -> Callable[[State], None]:
    def apply(saved: State) -> None:
        saved["param_groups"][0][key] = value

    return apply


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[1] = value
        return tensor

    return change


def more_groups(saved: State) -> None:
    saved["param_groups"].append(copy.deepcopy(saved["param_groups"][0]))


def fewer_parameters(saved: State) -> None:
    saved["param_groups"][0]["params"].pop()


def swapped(saved: State) -> None:
    saved["state"][0], saved["state"][1] = saved["state"][1], saved["state"][0]


def of_sgd(saved: State) -> None:
    for state in saved["state"].values():
        for key in [key for key in state if key.startswith("exp_avg")]:
            if key.startswith("exp_avg_sq"):
                del state[key]
            else:
                state[key.replace("exp_avg", "momentum_buffer")] = state.pop(key)


BAD: dict[str, tuple[Callable[[State], None], str]] = {
    # what was done to a good state, words of which one must be in the message
    "unknown format": (grouped("format", "bf8"), "bf8"),
    "format of a newer version": (grouped("format", "native2"), "native2"),
    "two parameters swapped": (swapped, "shape|64|130"),
    "another shape": (changed(FIRST, lambda t: t[:32].clone()), "exp_avg|shape"),
    "transposed codes": (changed(FIRST, lambda t: t.t().contiguous()), "exp_avg|shape"),
    "codes of another dtype": (changed(FIRST, lambda t: t.to(torch.int16)), "exp_avg|dtype"),
    "unsigned codes of m": (changed(FIRST, lambda t: t.view(torch.uint8)), "exp_avg|dtype"),
    "signed codes of v": (changed(SECOND, lambda t: t.view(torch.int8)), "exp_avg_sq|dtype"),
    "code -128": (changed(FIRST, filled(-128)), "exp_avg|128"),
    "code 255": (changed(SECOND, filled(255)), "exp_avg_sq|255"),
    "no scales": (without(SCALES), "scales"),
    "no codes": (without(FIRST), "exp_avg"),
    "fewer scales": (changed(SCALES, lambda t: t.flatten()[:-1].clone()), "scales"),
    "scales of another dtype": (changed(SCALES, lambda t: t.double()), "scales|dtype"),
    "a NaN scale": (changed(SCALES, filled(float("nan"))), "scale"),
    "an infinite scale": (changed(SCALES, filled(float("inf"))), "scale"),
    "a negative scale": (changed(SCALES, filled(-1.0)), "scale"),
    "no second moment": (
        without(SECOND, "exp_avg_sq::scales"),
        "exp_avg_sq",
    ),
    "no moments": (
        without(FIRST, SCALES, SECOND, "exp_avg_sq::scales"),
        "exp_avg",
    ),
    "codes and plain values": (added("exp_avg", torch.zeros(64, 96)), "exp_avg"),
    "plain values of another shape": (
        changed("exp_avg", lambda t: torch.zeros(3, 3), index=2),
        "exp_avg|shape",
    ),
    "plain integers": (changed("exp_avg", lambda t: t.to(torch.int32), index=2), "exp_avg|dtype"),
    "an unknown key": (added("exp_avg_diff", torch.zeros(64, 96)), "exp_avg_diff"),
    "amsgrad": (added("max_exp_avg_sq", torch.zeros(64, 96)), "max_exp_avg_sq|amsgrad"),
    "corrections of another shape": (changed("error_bits", lambda t: t[:32].clone()), "error_bits|shape"),
    "corrections of another dtype": (changed("error_bits", lambda t: t.to(torch.int32)), "error_bits|dtype"),
    "half a step": (changed("step", lambda _: torch.tensor(2.5)), "step"),
    "a negative step": (changed("step", lambda _: torch.tensor(-1)), "step"),
    "a NaN step": (changed("step", lambda _: torch.tensor(float("nan"))), "step"),
    "a step that is a vector": (changed("step", lambda _: torch.ones(3, dtype=torch.int64)), "step"),
    "a step that is text": (changed("step", lambda _: "2"), "step"),
    "a state that is no dict": (lambda saved: saved["state"].update({0: torch.zeros(3)}), ".+"),
    "another rule's state": (of_sgd, "momentum_buffer|exp_avg"),
    "more groups": (more_groups, "group"),
    "fewer parameters": (fewer_parameters, "group|size"),
    "a parameter that is not there": (lambda saved: saved["state"].update({17: saved["state"][0]}), "17"),
    "no groups": (lambda saved: saved.pop("param_groups"), "param_groups"),
    "no state": (lambda saved: saved.pop("state"), "state"),
    "wrong bits": (grouped("master_weight_bits", 20), "master_weight_bits|20"),
    "a negative lr": (grouped("lr", -1.0), "lr|learning rate"),
    "bits that are text": (grouped("master_weight_bits", "24"), "master_weight_bits"),
    "a choice that is text": (grouped("maximize", "x"), "maximize"),
    "scales of a transposed shape": (changed(SCALES, lambda t: t.t()), "scales|shape"),
    "a scale of 0 with codes": (changed(SCALES, filled(0.0)), "is 0, and the codes"),
    "a beta of 2": (grouped("betas", (0.9, 2.0)), "beta"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_state_is_refused_and_nothing_changes(name: str) -> None:
    spoil, words = BAD[name]
    given = support.parameters()
    source = flash.FlashAdamW(given)
    support.run(source, given, 2)
    saved = copy.deepcopy(source.state_dict())
    spoil(saved)
    ours = support.parameters(seed=3)
    optimizer = flash.FlashAdamW(ours, lr=5e-4)
    support.run(optimizer, ours, 3)
    before, groups = support.snapshot(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=words) as refused:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(refused.value).strip(), "one line"
    support.assert_same(before, optimizer)
    assert optimizer.state_dict()["param_groups"] == groups
    twin = support.parameters(seed=3)
    undisturbed = flash.FlashAdamW(twin, lr=5e-4)
    support.run(undisturbed, twin, 4)
    support.run(optimizer, ours, 1, first=3)
    support.assert_same(undisturbed, optimizer)


def test_the_message_names_the_parameter() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.named_parameters())
    support.run(optimizer, list(network.parameters()), 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg::quantized"] = torch.zeros(3, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"0\.weight"):
        optimizer.load_state_dict(saved)


def test_weights_of_nan_are_no_bad_state() -> None:
    """What training made of the weights is the user's; only the encoding can be wrong."""
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashAdamW([p])
    support.run(optimizer, [p], 1)
    with torch.no_grad():
        p[0, 0] = float("nan")
    other = flash.FlashAdamW(support.clones([p]))
    other.load_state_dict(optimizer.state_dict())
