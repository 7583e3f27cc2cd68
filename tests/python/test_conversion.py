"""States of other formats and other packages: the authors' 0.1.3 and 0.1.4, and ours in another format.

What a user loses if these fail: the checkpoint of the package that they come from.
"""

from __future__ import annotations

import warnings
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import ADAMW, LION, SGD, SGDW, WITH_MOMENTS, Rule

Tensor = torch.Tensor


def as_theirs(optimizer: Any, version: str, compressed: bool) -> dict[str, Any]:
    """The state dict that the authors' package of that version would have saved in this optimizer's place.

    It writes corrections in the weights' dtype (24 bits by value, 32 bits by bits) and, since 0.1.4, scales
    beside bfloat16 weights as bfloat16 by bits; 0.1.3 writes uncompressed moments as bfloat16 and steps as
    floats. `step` belongs to Adam alone. Its groups know `master_bytewidth`.
    """
    saved = optimizer.state_dict()
    given = [p for group in optimizer.param_groups for p in group["params"]]
    theirs: dict[int, dict[str, Any]] = {}
    for index, state in saved["state"].items():
        dtype, made = given[index].dtype, {}
        for key, value in state.items():
            if key == "step":
                if "exp_avg_sq::quantized" in state:
                    made[key] = value.float() if version == "0.1.3" else value.long()
            elif key == "error_bits":
                made[key] = value.to(dtype) if value.dtype == torch.int8 else value.view(dtype)
            elif compressed:
                flat = value.flatten() if key.endswith("::scales") else value
                narrow = version != "0.1.3" and dtype == torch.bfloat16 and key.endswith("::scales")
                made[key] = flat.view(torch.bfloat16) if narrow else flat
            elif key.endswith("::quantized"):
                name = key.removesuffix("::quantized")
                plain = optimizer.state[given[index]][name].materialize()
                made[name] = plain.bfloat16() if version == "0.1.3" else plain
        theirs[index] = made
    groups = []
    for group in saved["param_groups"]:
        kept = {
            "lr",
            "initial_lr",
            "betas",
            "eps",
            "weight_decay",
            "momentum",
            "dampening",
            "params",
            "quantize",
        }
        bits = group["master_weight_bits"]
        groups.append(
            {key: value for key, value in group.items() if key in kept} | {"master_bytewidth": bits // 8}
        )
    return {"state": theirs, "param_groups": groups}


THEIRS = [(version, compressed) for version in ("0.1.3", "0.1.4") for compressed in (True, False)]


@pytest.mark.parametrize(
    ("version", "compressed"), THEIRS, ids=[f"{v}-{'codes' if c else 'plain'}" for v, c in THEIRS]
)
@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", [SGD, SGDW, ADAMW, LION], ids=support.ids([SGD, SGDW, ADAMW, LION]))
def test_states_of_the_authors_package(
    rule: Rule, dtype: torch.dtype, bits: int, version: str, compressed: bool
) -> None:
    given = support.parameters(dtype)
    optimizer = rule(given, format="paper", master_weight_bits=bits)
    support.run(optimizer, given, 4)
    theirs = as_theirs(optimizer, version, compressed)
    other = support.clones(given)
    resumed = rule(other, format="paper", master_weight_bits=bits)
    resumed.load_state_dict(theirs)
    for p, q in zip(given, other, strict=True):
        ours, loaded = optimizer.state[p], resumed.state[q]
        assert support.same_bits(ours["error_bits"], loaded["error_bits"])
        if rule is ADAMW:
            assert int(loaded["step"]) == 4
        for name in rule.moments:
            if compressed:
                assert support.same_bits(ours[name].quantized, loaded[name].quantized)
                assert support.same_bits(ours[name].scales.flatten(), loaded[name].scales.flatten())
            else:
                exact, again = ours[name].materialize(), loaded[name].materialize()
                # One code of the paper's laws is at most 2/127 of the largest value wide.
                assert float((exact - again).abs().max() / exact.abs().max()) < 3 / 127
    support.run(resumed, other, 1, first=4)


def conversions(found: list[warnings.WarningMessage], *names: str) -> int:
    return sum(all(name in str(warning.message) for name in names) for warning in found)


@pytest.mark.parametrize(("old", "new"), [("paper", "native"), ("native", "paper")])
@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("rule", WITH_MOMENTS, ids=support.ids(WITH_MOMENTS))
def test_formats_are_converted_with_one_warning(rule: Rule, bits: int, old: str, new: str) -> None:
    given = support.parameters()
    optimizer = rule(given, format=old, master_weight_bits=bits)
    support.run(optimizer, given, 4)
    other = support.clones(given)
    converted = rule(other, format=new, master_weight_bits=bits)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        converted.load_state_dict(optimizer.state_dict())
    assert conversions(found, old, new) == 1
    assert converted.param_groups[0]["format"] == new
    for a, b in zip(support.masters(optimizer, given), support.masters(converted, other), strict=True):
        # 24 bits of either format resolve 2^-16 of a weight.
        torch.testing.assert_close(a, b, rtol=2.0**-15, atol=0)
    for p, q in zip(given, other, strict=True):
        assert int(converted.state[q]["step"]) == 4
        for name in rule.moments:
            exact, again = optimizer.state[p][name].materialize(), converted.state[q][name].materialize()
            assert float((exact - again).abs().max() / exact.abs().max()) < 3 / 127
    support.run(converted, other, 2, first=4)
    assert all(bool(p.isfinite().all()) for p in other)


def test_a_state_of_the_authors_is_converted_to_native() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given, format="paper")
    support.run(optimizer, given, 4)
    other = support.clones(given)
    converted = flash.FlashAdamW(other)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        converted.load_state_dict(as_theirs(optimizer, "0.1.4", True))
    assert conversions(found, "paper", "native") == 1
    for a, b in zip(support.masters(optimizer, given), support.masters(converted, other), strict=True):
        torch.testing.assert_close(a, b, rtol=2.0**-15, atol=0)
    support.run(converted, other, 1, first=4)


@pytest.mark.parametrize("quantize", [True, False])
def test_quantised_and_fp32_moments_load_into_each_other(quantize: bool) -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given, quantize=quantize)
    support.run(optimizer, given, 4)
    other = support.clones(given)
    converted = flash.FlashAdamW(other, quantize=not quantize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted.load_state_dict(optimizer.state_dict())
    for p, q in zip(given, other, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            exact, again = optimizer.state[p][name].materialize(), converted.state[q][name].materialize()
            assert float((exact - again).abs().max() / exact.abs().max()) < 2 / 127
    assert converted.state[other[0]]["exp_avg"].is_quantized() is not quantize
    support.run(converted, other, 1, first=4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("old", "new"), [(24, 32), (32, 24), (24, None), (None, 24), (16, 24)])
def test_masters_of_another_width(old: int | None, new: int | None) -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given, master_weight_bits=old)
    support.run(optimizer, given, 4)
    other = support.clones(given)
    converted = flash.FlashAdamW(other, master_weight_bits=new)
    converted.load_state_dict(optimizer.state_dict())
    resolved = 2.0**-15 if old in (24, 32) and new in (24, 32) else 2.0**-7
    for a, b in zip(support.masters(optimizer, given), support.masters(converted, other), strict=True):
        torch.testing.assert_close(a, b, rtol=resolved, atol=0)
    support.run(converted, other, 1, first=4)


def test_a_checkpoint_of_narrow_weights_goes_into_fp32_ones() -> None:
    """Continuing in fp32: the master is what get_fp32_model_state_dict gives, the state follows."""
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 4)
    wide = [torch.nn.Parameter(m.clone()) for m in support.masters(optimizer, given)]
    other = flash.FlashAdamW(wide)
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(given, wide, strict=True):
        assert "error_bits" not in other.state[q]
        assert support.same_bits(
            optimizer.state[p]["exp_avg"].materialize(), other.state[q]["exp_avg"].materialize()
        )
    support.run(other, wide, 1, first=4)
