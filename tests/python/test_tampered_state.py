"""A walk over tampered state dicts: whatever is wrong with one is a ValueError of one
line, and nothing has changed.

What a user loses if these fail: an optimizer half loaded, or codes that are read
with the scales of other rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from tampering import SOURCES, STEPS, Target, entries, options, prepared, wholes, with_entry

BF16 = torch.bfloat16
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("walk", [entries, options, wholes], ids=lambda w: w.__name__)
def test_nothing_but_a_value_error(walk: Callable[..., Iterator[tuple[str, Any]]], name: str) -> None:
    rule, saved = prepared(name)
    target = Target(rule, saved)
    cases = list(walk(saved) if walk is wholes else walk(rule, saved))
    assert len(cases) > 50
    wrong = [said for what, spoiled in cases if (said := target.refuses(what, spoiled)) is not None]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("name", SOURCES)
def test_steps(name: str) -> None:
    rule, saved = prepared(name)
    target = Target(rule, saved)
    wrong = [
        said
        for what, step in STEPS.items()
        if (said := target.refuses(what, with_entry(saved, 1, "step", step))) is not None
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("step", "count"),
    [
        (torch.tensor(2**53 + 1), 2**53 + 1),
        (torch.tensor(2**63 - 1), 2**63 - 1),
        (2**53 + 1, 2**53 + 1),
        (torch.tensor(2.0**24), 2**24),
        (torch.tensor(2.0**53, dtype=torch.float64), 2**53),
        (5, 5),
        (0, 0),
    ],
    ids=str,
)
def test_step_counts_are_exact(step: Any, count: int) -> None:
    _, saved = prepared("native")
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    optimizer.load_state_dict(with_entry(saved, 0, "step", step))
    assert int(optimizer.state[given[0]]["step"]) == count
    assert optimizer.state_dict()["state"][0]["step"].item() == count


def filled(value: float, at: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[at] = value
        return changed

    return change


VALUES: list[tuple[str, str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("native", "exp_avg::quantized", filled(-128)),
    ("native", "exp_avg_sq::quantized", filled(255)),
    *[
        (name, key, filled(value))
        for name in ("native", "paper")
        for key in ("exp_avg::scales", "exp_avg_sq::scales")
        for value in (math.nan, -1.0, -0.0)
        if name == "native" or key == "exp_avg::scales"
    ],
    ("native", "exp_avg::scales", filled(math.inf)),
    ("native", "exp_avg::scales", filled(2.0**-120)),
    ("native", "exp_avg::scales", filled(0.0)),
    ("native", "exp_avg_sq::scales", filled(0.0, at=7)),
    ("paper", "error_bits", filled(-32768)),
    ("authors", "error_bits", filled(-128)),
    ("authors", "error_bits", filled(math.nan)),
    ("authors", "error_bits", filled(math.inf)),
    ("authors", "error_bits", filled(0.5)),
    ("authors", "error_bits", filled(1000.0)),
]


@pytest.mark.parametrize(("name", "key", "change"), VALUES)
def test_values_that_nobody_writes(
    name: str, key: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    rule, saved = prepared(name)
    target = Target(rule, saved)
    value = saved["state"][0][key]
    if name == "paper":  # its bits lie under another dtype
        value = value.view(torch.float16 if key.endswith("::scales") else torch.int16)
    changed = change(value)
    if name == "paper":
        changed = changed.view(BF16)
    assert target.refuses(key, with_entry(saved, 0, key, changed)) is None


def test_strides_that_nobody_writes() -> None:
    image = torch.nn.Parameter(torch.randn(32, 16, 3, 3).to(BF16).to(memory_format=torch.channels_last))
    optimizer = flash.FlashAdamW([image])
    support.run(optimizer, [image], 2)
    saved = copy.deepcopy(optimizer.state_dict())
    strides = saved["state"][0]["layout_strides"]
    before = support.snapshot(optimizer)
    spoiled: list[Any] = [
        None,
        {},
        "x",
        strides.tolist(),
        strides.float(),
        strides[:3],
        strides[None],
        -strides,
        strides * 2,
        torch.zeros_like(strides),
        torch.full_like(strides, 2**62),
        torch.tensor([1, 1, 1, 1]),
        strides.to("meta"),
    ]
    for bad in spoiled:
        with pytest.raises(ValueError, match="layout_strides") as refused:
            optimizer.load_state_dict(with_entry(saved, 0, "layout_strides", bad))
        assert "\n" not in str(refused.value)
        support.assert_same(before, optimizer)
