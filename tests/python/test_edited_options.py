"""Options that a caller edits in `param_groups` between steps: checked as the constructor checks them.

What a user loses if these fail: a typing mistake in a schedule ends in an error from inside the library, or
is taken for something else without a word.
"""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from support import ADAMW, SGD, Rule

# Option, values that no option may have.
WRONG: list[tuple[str, list[Any]]] = [
    ("lr", [None, "0.1", -1.0, float("nan"), 2**2000, True, (1e-3,), torch.ones(2)]),
    ("betas", [(0.9,), (0.9, 0.99, 0.999), 0.9, None, (0.9, 1.0), (0.9, "x"), (0.9, float("nan")), []]),
    ("eps", [None, -1e-8, "1e-8", 10**400]),
    ("weight_decay", [None, -0.1, float("inf"), "0"]),
    ("format", ["zzz", None, 0, "Native"]),
    ("master_weight_bits", ["24", 20, 24.0, True]),
    ("quantize", ["no", None, 2, 1.0]),
    ("min_quantized_numel", [1.5, -1, None, True, 2**63]),
    ("min_quantized_numel_1d", [1.5, -1, None, True, 2**63]),
    ("nonfinite", ["zzz", None, 0]),
    ("check_gradients", ["x", None, False]),
    ("maximize", ["x", None, 2]),
    ("decouple_lr", ["x", None]),
    ("accumulate_fp32", ["x", None]),
    ("amsgrad", [True, "x"]),
    ("differentiable", [True, "x"]),
]
SGD_WRONG: list[tuple[str, list[Any]]] = [
    ("momentum", [None, -0.1, 1.5, "0.9"]),
    ("dampening", [None, -0.1, "0"]),
    ("nesterov", ["x", None]),
]
CASES = [(ADAMW, name, value) for name, values in WRONG for value in values]
CASES += [(SGD, name, value) for name, values in SGD_WRONG for value in values]


def stepped(rule: Rule) -> tuple[Any, list[torch.nn.Parameter]]:
    given = support.parameters()
    optimizer = rule([{"params": given[:1]}, {"params": given[1:]}])
    support.run(optimizer, given, 2)
    return optimizer, given


@pytest.mark.parametrize(("rule", "name", "value"), CASES, ids=[f"{c[1]}={str(c[2])[:20]}" for c in CASES])
@pytest.mark.parametrize("is_new", [False, True], ids=["stepped", "new"])
def test_an_option_that_the_constructor_refuses_stops_the_step(
    rule: Rule, name: str, value: Any, is_new: bool
) -> None:
    optimizer, given = (rule(support.parameters()), []) if is_new else stepped(rule)
    given = given or optimizer.param_groups[0]["params"]
    group = optimizer.param_groups[-1]
    former, had = group.get(name), name in group
    for p, g in zip(given, support.gradients(given, 7), strict=True):
        p.grad = g
    before = [p.detach().clone() for p in given]
    group[name] = value
    with pytest.raises(ValueError, match=r"\S") as caught:
        optimizer.step()
    said = str(caught.value)
    assert "\n" not in said
    short = {"lr": "learning rate|learning_rate|lr", "eps": "eps|epsilon", "betas": "beta"}.get(name, name)
    assert any(word in said for word in short.split("|")), said
    assert all(torch.equal(p, q) for p, q in zip(given, before, strict=True)), (
        "a refused step changes nothing"
    )
    if had:
        group[name] = former
    else:
        del group[name]
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(given, before, strict=True))


@pytest.mark.parametrize(
    "name", ["lr", "betas", "eps", "format", "quantize", "nonfinite", "master_weight_bits"]
)
def test_an_option_that_is_deleted_is_named(name: str) -> None:
    optimizer, given = stepped(ADAMW)
    support.run(optimizer, given, 1)
    del optimizer.param_groups[1][name]
    for p, g in zip(given, support.gradients(given, 7), strict=True):
        p.grad = g
    with pytest.raises(ValueError, match=name):
        optimizer.step()


def test_the_group_is_named_by_its_place() -> None:
    optimizer, given = stepped(ADAMW)
    optimizer.param_groups[1]["nonfinite"] = "zzz"
    for p, g in zip(given, support.gradients(given, 7), strict=True):
        p.grad = g
    with pytest.raises(ValueError, match=r"^parameter group 1: nonfinite='zzz' is unknown"):
        optimizer.step()


def test_what_a_schedule_writes_is_taken() -> None:
    """Numbers of other types, and tensors of one element."""
    optimizer, given = stepped(ADAMW)
    for lr in (1, torch.tensor(1e-3), torch.tensor([1e-3], dtype=torch.float64), 0.0):
        optimizer.param_groups[0]["lr"] = lr
        support.run(optimizer, given, 1)
    optimizer.param_groups[0]["betas"] = [0.8, 0.9]
    support.run(optimizer, given, 1)
