"""Names, defaults and switches of the constructors, and values that they refuse.

What a user loses if these fail: the port by changing one import.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from flashoptim_cpp._rules import RULES, Range, Rule

THEIR_DEFAULTS: dict[str, dict[str, Any]] = {
    "FlashSGD": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    "FlashSGDW": {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "decouple_lr": False,
    },
    "FlashAdam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "FlashAdamW": {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "decouple_lr": False,
    },
    "FlashLion": {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0, "decouple_lr": False},
}
THEIR_STORAGE = {"quantize": True, "compress_state_dict": True, "check_numerics": False, "fused": True}


@pytest.mark.parametrize("name", THEIR_DEFAULTS)
def test_arguments_and_defaults_are_those_of_the_authors(name: str) -> None:
    signature = inspect.signature(getattr(flash, name)).parameters
    positional = [key for key, value in signature.items() if value.kind is value.POSITIONAL_OR_KEYWORD]
    storage = ["quantize", "compress_state_dict", "master_weight_bits", "check_numerics", "fused"]
    assert positional == ["params", *THEIR_DEFAULTS[name], *storage]
    for key, value in {**THEIR_DEFAULTS[name], **THEIR_STORAGE}.items():
        assert signature[key].default == value, key
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = getattr(flash, name)([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["error_bits"].dtype == torch.int8, "24 bits by default"
    with pytest.raises(TypeError):  # what is ours on top has no position
        getattr(flash, name)([p], *[signature[key].default for key in positional[1:]], "native")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_optimizer_has_the_arguments_and_defaults_of_its_rule(rule: Rule) -> None:
    make = getattr(flash, f"Flash{rule.name}")
    assert make.rule is rule
    signature = inspect.signature(make).parameters
    for argument, numbers in rule.arguments.items():
        defaults = tuple(number.default for number in numbers)
        assert signature[argument].default == (defaults if len(defaults) > 1 else defaults[0]), argument
    assert all(signature[flag].default is False for flag in rule.flags)
    assert ("decouple_lr" in signature) is not rule.is_coupled


def edges(limits: Range) -> tuple[list[float], list[float]]:
    """Numbers at the ends of a range: those within, and those just outside."""
    within: list[float] = []
    outside = [math.nan, math.inf]
    for end, is_open, beyond in (
        (limits.minimum, limits.minimum_open, -math.inf),
        (limits.maximum, limits.maximum_open, math.inf),
    ):
        if math.isfinite(end):
            (outside if is_open else within).append(end)
            (within if is_open else outside).append(math.nextafter(end, -beyond if is_open else beyond))
    return within, outside


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_optimizer_takes_the_ranges_of_its_rule(rule: Rule) -> None:
    for argument, numbers in rule.arguments.items():
        for n, number in enumerate(numbers):

            def make(value: float, at: int = n, name: str = argument, own: Any = numbers) -> Any:
                values = [value if k == at else other.default for k, other in enumerate(own)]
                given = {name: values[0] if len(values) == 1 else tuple(values)}
                return getattr(flash, f"Flash{rule.name}")(support.parameters(shapes=((8, 8),)), **given)

            within, outside = edges(number.range)
            for value in within:
                make(value)
            for value in outside:
                with pytest.raises(ValueError, match="Invalid"):
                    make(value)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (flash.FlashSGD, {"lr": -1e-3}),
        (flash.FlashSGD, {"weight_decay": -1.0}),
        (flash.FlashSGD, {"nesterov": True}),
        (flash.FlashSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        (flash.FlashAdam, {"eps": -1e-8}),
        (flash.FlashAdam, {"betas": (1.1, 0.9)}),
        (flash.FlashAdamW, {"betas": (0.9, -0.1)}),
        (flash.FlashAdamW, {"weight_decay": -1.0}),
        (flash.FlashAdamW, {"master_weight_bits": 20}),
        (flash.FlashAdamW, {"format": "bf8"}),
        (flash.FlashAdamW, {"nonfinite": "ignore"}),
        (flash.FlashLion, {"betas": (0.9, 1.5)}),
        (flash.FlashLion, {"weight_decay": -1.0}),
        (flash.FlashAdamW, {"lr": float("nan")}),
    ],
    ids=str,
)
def test_wrong_values_are_refused(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make(support.parameters(), **wrong)


def test_no_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        flash.FlashAdamW([])


def test_master_bits_of_fp32_parameters_are_refused_only_where_asked_for() -> None:
    given = support.parameters(torch.float32)
    flash.FlashAdamW(given)
    with pytest.raises(ValueError, match="master_weight_bits"):
        flash.FlashAdamW(given, master_weight_bits=24)
    mixed = [*given, *support.parameters()]
    flash.FlashAdamW(mixed, master_weight_bits=24)


def test_gradients_that_require_grad_are_refused_or_differentiated_nowhere() -> None:
    """`differentiable` asks for a step through which autograd goes; there is none here."""
    with pytest.raises((ValueError, NotImplementedError, RuntimeError), match="differentiable"):
        flash.FlashAdamW(support.parameters(), differentiable=True)


def test_switches_of_torch_optim_are_answered() -> None:
    for options in ({"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}):
        given, other = support.parameters(), support.parameters()
        optimizer = flash.FlashAdamW(given, **options)
        support.run(optimizer, given, 2)
        plain = flash.FlashAdamW(other)
        support.run(plain, other, 2)
        for p, q in zip(given, other, strict=True):
            assert support.same_bits(p, q), options
    flash.FlashAdamW(support.parameters(), amsgrad=False, capturable=False)
    with pytest.raises((ValueError, NotImplementedError), match="amsgrad"):
        flash.FlashAdamW(support.parameters(), amsgrad=True)


ARGUMENTS: dict[str, list[Any]] = {
    "lr": ["0.1", None, True, 1j, [0.1], math.nan, 10**400, torch.zeros(2), object()],
    "betas": [0.9, (0.9,), "ab", (None, 0.9), ("0.9", "0.99"), {0.9, 0.99}],
    "eps": ["1e-8", None, True, math.inf],
    "weight_decay": ["0", None, -1.0, 1j],
    "maximize": ["x", None, 2, 0.5],
    "quantize": ["no", None],
    "master_weight_bits": ["24", 24.0, 20, True],
    "format": [None, 1, "bf8"],
    "nonfinite": [None, 1, "x", ["error"]],
    "min_quantized_numel": ["1", 1.5, -1, True, 2**63],
    "min_quantized_numel_1d": [None],
    "check_gradients": ["yes"],
    "accumulate_fp32": ["yes", None],
    "foreach": ["x"],
    "capturable": ["x", None],
    "amsgrad": ["x"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("in_group", [False, True])
def test_arguments_of_another_type(name: str, in_group: bool) -> None:
    for value in ARGUMENTS[name]:
        [p] = support.parameters(shapes=((8, 8),))
        with pytest.raises(ValueError) as refused:
            if in_group:
                flash.FlashAdamW([{"params": [p], name: value}])
            else:
                flash.FlashAdamW([p], **{name: value})
        assert "\n" not in str(refused.value)


def test_numbers_of_other_libraries_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    [p] = support.parameters(shapes=((64, 96),))
    options: dict[str, Any] = {
        "lr": numpy.float32(1e-3),
        "betas": [numpy.float64(0.9), torch.tensor(0.999)],
        "weight_decay": 0,
        "master_weight_bits": numpy.int64(24),
        "min_quantized_numel": numpy.int32(7),
        "maximize": numpy.bool_(True),
    }
    optimizer = flash.FlashAdamW([p], **options)
    support.run(optimizer, [p], 1)
    flash.FlashAdamW(support.clones([p])).load_state_dict(optimizer.state_dict())
