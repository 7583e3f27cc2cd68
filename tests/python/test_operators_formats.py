"""The number formats as operators, and all operators under torch.compile and opcheck.

What a user loses if these fail: exact checkpoints and conversions, compiled training loops.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flashoptim_cpp import _operators as operators
from operator_calls import RULES, Call, layout_of, numbers
from support import same_bits

Tensor = torch.Tensor
NATIVE, PAPER, FP32 = 0, 1, 2


@pytest.mark.parametrize("storage", (NATIVE, PAPER, FP32))
@pytest.mark.parametrize("moment", (0, 1))
def test_a_moment_in_any_order_survives_its_codes(moment: int, storage: int) -> None:
    values = torch.randn(48, 70) if moment == 0 else torch.rand(48, 70)
    for given in (values, values.t(), values.reshape(2, 24, 7, 10).to(memory_format=torch.channels_last)):
        layout = layout_of(given)
        codes, scales = operators.encode_moment(given, layout, moment, storage)
        assert codes.shape == given.shape and codes.stride() == given.stride()
        decoded = operators.decode_moment(codes, scales, layout, moment, storage)
        assert decoded.shape == given.shape and decoded.stride() == given.stride()
        if storage == FP32:
            assert same_bits(decoded, given) and scales.numel() == 0
        # Both formats have at most 8 % between neighbours of the group's largest; half of
        # it, and the scale's rounding.
        assert bool(((decoded - given).abs() <= 0.05 * values.abs().max()).all())


@pytest.mark.parametrize("weight_dtype", (0, 1, 2))
@pytest.mark.parametrize("moment", (2, 3))
def test_a_moment_without_scales_survives(moment: int, weight_dtype: int) -> None:
    given = torch.randn(48, 70).t()
    layout = layout_of(given)
    dtype = torch.bfloat16 if moment == 2 else operators.DTYPES[weight_dtype]
    codes, scales = operators.encode_moment(given, layout, moment, NATIVE, weight_dtype)
    assert codes.dtype == dtype and codes.stride() == given.stride() and scales.numel() == 0
    decoded = operators.decode_moment(codes, scales, layout, moment, NATIVE, weight_dtype)
    assert same_bits(decoded, codes.float())
    torch.testing.assert_close(decoded, given, rtol=2**-8, atol=0)
    plan = operators.plan(layout, 3, numbers(), NATIVE, 24, True, 0, 0, weight_dtype)
    operators.check_moment(codes, scales, layout, plan, moment)
    codes[1, 2] = float("nan")
    with pytest.raises(RuntimeError, match="is nan"):
        operators.check_moment(codes, scales, layout, plan, moment)


def test_codes_that_no_step_writes_are_refused() -> None:
    weight = torch.randn(64, 64).bfloat16()
    layout = layout_of(weight)
    plan = operators.plan(layout, 3, numbers(), NATIVE, 24, True, 0, 0, 1)
    codes, scales = operators.encode_moment(weight.float(), layout, 0, NATIVE)
    operators.check_moment(codes, scales, layout, plan, 0)
    codes[1, 2] = -128
    with pytest.raises(RuntimeError, match="moment: element 66 has code -128"):
        operators.check_moment(codes, scales, layout, plan, 0)
    codes[1, 2] = 0
    scales[3] = float("nan")
    with pytest.raises(RuntimeError, match=r"scale 3 is .*nan"):
        operators.check_moment(codes, scales, layout, plan, 0)
    with pytest.raises(ValueError, match="scales has 127 elements: it must have 128"):
        operators.check_moment(codes, scales[1:], layout, plan, 0)
    with pytest.raises(ValueError, match="codes is int8: it must be uint8"):
        operators.check_moment(codes, scales, layout, plan, 1)
    for values, moment in ((torch.tensor([float("inf")]), 0), (torch.tensor([-1.0]), 1)):
        with pytest.raises(ValueError, match="value 0 of the moment"):
            operators.encode_moment(values, layout_of(values), moment, NATIVE)


def masters() -> Tensor:
    """Ordinary weights, a few out of the ordinary, in the order of columns."""
    values = torch.randn(50, 40).t()
    values[0, :6] = torch.tensor([0.0, -0.0, 1e-30, 3e38, float("inf"), float("nan")])
    return values


@pytest.mark.parametrize("dtype", (1, 2))
@pytest.mark.parametrize("bits", (24, 32))
@pytest.mark.parametrize("paper", (False, True))
def test_corrections_of_weights_that_the_split_rounded_are_its_own(
    dtype: int, bits: int, paper: bool
) -> None:
    given = masters()
    weights, corrections = operators.split_weights(given, dtype, bits, paper)
    assert weights.stride() == given.stride() and corrections.stride() == given.stride()
    ordinary = given.abs() < 6e4
    found = operators.correction_of(given, weights, bits, paper)
    assert torch.equal(found, corrections)
    joined = operators.join_weights(weights, corrections, bits, paper)
    if bits == 32 and dtype == 1 and not paper:
        assert same_bits(joined[~given.isnan()], given[~given.isnan()])
    # 24 bits: 8 more than the 8 of bfloat16, rounded to nearest; fp16 has 3 more, and a grid of 2^-40.
    error = (joined - given).abs()[ordinary]
    assert bool((error <= given.abs()[ordinary] * 2.0**-15.9 + 2.0**-26).all())


def test_corrections_of_weights_that_somebody_else_rounded() -> None:
    given = torch.randn(100, 100)
    for paper in (False, True):
        weights = given.bfloat16()
        joined = operators.join_weights(
            weights, operators.correction_of(given, weights, 32, paper), 32, paper
        )
        # A tie that was rounded to even may need one correction more than there is: one
        # unit of the last of 32 bits.
        assert bool(((joined - given).abs() <= given.abs() * 2.0**-22).all())
    # Further away than a correction reaches: the nearest that there is, and never over zero.
    weights = torch.tensor([1.0, 1.0, -1.0, 1.0, float("inf")]).bfloat16()
    wanted = torch.tensor([1.5, -3.0, 2.0, float("nan"), 1.0])
    assert operators.correction_of(wanted, weights, 24, False).tolist() == [127, -128, -128, 0, 0]
    assert operators.correction_of(wanted, weights, 24, True).tolist()[:4] == [127, -127, 127, -127]


def test_weights_without_corrections() -> None:
    given = torch.randn(8, 8)
    weights, corrections = operators.split_weights(given, 0, 24, False)
    assert same_bits(weights, given) and corrections.numel() == 0
    weights, corrections = operators.split_weights(given, 1, 0, False)
    assert same_bits(weights, given.bfloat16()) and corrections.numel() == 0
    assert same_bits(operators.join_weights(weights, corrections, 0, False), weights.float())
    with pytest.raises(ValueError, match="paper format has 0, 24 and 32"):
        operators.split_weights(given, 1, 16, True)
    with pytest.raises(ValueError, match="weights and corrections do not lie alike"):
        operators.join_weights(weights, torch.zeros(8, 8, dtype=torch.int8).t(), 24, False)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backend 77 .*1 \(scalar\)"):
        operators.set_backend(77)
    with pytest.raises(ValueError, match="backend 257"):
        operators.set_backend(257)
    with pytest.raises(ValueError, match="threads is -1"):
        operators.set_threads(-1)
    assert operators.backend() == 0
    weight = torch.zeros(4, 4, dtype=torch.bfloat16)
    for change in ({0: len(RULES)}, {2: 3}, {3: 8}, {7: 3}):
        choices: list[Any] = [3, numbers(0.9), 0, 24, True, 0, 0, 1]
        for position, value in change.items():
            choices[position] = value
        with pytest.raises(ValueError, match=r"must be|choose"):
            operators.plan(layout_of(weight), *choices)
    with pytest.raises(ValueError, match="not dense"):
        operators.layout([4, 4], [0, 1], [4, 4], [0, 1], [0, 0])
    with pytest.raises(ValueError, match="multiples of 32"):
        operators.layout([4, 100], [100, 1], [4, 300], [300, 1], [0, 50])
    part = operators.layout([100], [1], [300], [1], [50])
    with pytest.raises(ValueError, match="multiples of 32"):
        operators.plan(part, 3, numbers(0.9), 0, 24, True, 0, 0, 1)


def samples() -> dict[str, tuple[Any, ...]]:
    """Arguments for every operator that has a tensor among them."""
    weights = [torch.randn(48, 40).bfloat16(), torch.randn(7).bfloat16()]
    gradients = [torch.randn(48, 40), torch.randn(7)]
    call = Call(weights)
    layout, plan = call.table[0, :8].clone(), call.table[0, 8 : 8 + operators.PLAN_ROW].clone()
    table = (call.table, call.hyperparameters)
    codes, scales = operators.encode_moment(gradients[0], layout, 0, NATIVE)
    narrow, correction = operators.split_weights(gradients[0], 1, 24, False)
    return {
        "step_": (*call.arguments(gradients), torch.tensor(2.0), torch.tensor(0.0), 1.0, 0),
        "count_bad": (call.weights, gradients, call.corrections, *table, None, 1.0),
        "grad_norm": (call.weights, gradients, *table, 1.0),
        "check_hyperparameters": (call.hyperparameters, 3),
        "plan": (layout, 3, numbers(0.9), NATIVE, 24, True, 0, 0, 1),
        "encode_moment": (gradients[0], layout, 0, NATIVE),
        "decode_moment": (codes, scales, layout, 0, NATIVE),
        "check_moment": (codes, scales, layout, plan, 0),
        "split_weights": (gradients[0], 1, 24, False),
        "join_weights": (narrow, correction, 24, False),
        "correction_of": (gradients[0], narrow, 24, False),
        "layout": ([4, 5], [5, 1], [4, 5], [5, 1], [0, 0]),
    }


@pytest.mark.parametrize("name", samples())
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.flashoptim_cpp, name).default, samples()[name])


@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
def test_a_compiled_function_steps_in_one_graph(backend: str) -> None:
    weights = [torch.randn(48, 40).bfloat16(), torch.randn(7).bfloat16()]
    inputs = [torch.randn(48, 40), torch.randn(7)]
    plain, compiled = Call(weights), Call(weights)

    def train(call_arguments: tuple[Any, ...], values: list[Tensor]) -> Tensor:
        gradients = [value * 2 for value in values]
        weights, _, *rest = call_arguments
        operators.step_(weights, gradients, *rest)
        return weights[0].float().sum()

    fast = torch.compile(train, fullgraph=True, backend=backend)
    for _ in range(3):
        assert same_bits(fast(compiled.arguments(inputs), inputs), train(plain.arguments(inputs), inputs))
    for a, b in zip(compiled.tensors(), plain.tensors(), strict=True):
        assert same_bits(a, b)
    assert int(compiled.steps[0]) == 3
