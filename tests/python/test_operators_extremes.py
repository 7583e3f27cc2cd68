"""Numbers and addresses at their ends, given to the operators: each is refused by name or stepped right, and
nothing has changed after a refusal.

What a user loses if these fail: a crash, or wrong weights, for a damaged file or a
tensor over somebody else's memory.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from flashoptim_cpp import _operators as operators
from operator_calls import Call, layout_of, numbers
from support import same_bits

Tensor = torch.Tensor
MOST = 2**63 - 1
ENDS = (-(2**63), -1, 0, 1, 2**31, 2**32 + 24, 2**62, MOST - 31, MOST - 1, MOST)
GPU = operators.GPU_KERNELS == 2


def at_odd_address(values: Tensor) -> Tensor:
    """The same values one byte behind a multiple of their size."""
    memory = bytearray(values.numel() * values.element_size() + 64)
    begin = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    offset = -begin % 64 + 1
    odd = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=offset)
    odd = odd.view(values.shape)
    odd.copy_(values)
    assert odd.data_ptr() % values.element_size() == 1
    return odd


def unchanged(call: Call, before: list[Tensor]) -> bool:
    return all(same_bits(a, b) for a, b in zip(call.tensors(), before, strict=True))


@pytest.mark.skipif(GPU, reason="a count on a GPU is not read by the host")
@pytest.mark.parametrize("count", ENDS)
def test_step_counts_are_refused_or_advance_by_one(count: int) -> None:
    call = Call([torch.ones(64, 96).bfloat16()])
    call.steps[0].fill_(count)
    before = call.copies()
    if 0 <= count < MOST:
        call.step([torch.ones(64, 96)])
        assert int(call.steps[0]) == count + 1 and bool(call.weights[0].isfinite().all())
    else:
        with pytest.raises(ValueError, match=r"steps\[0\]"):
            call.step([torch.ones(64, 96)])
        assert unchanged(call, before)


def test_counts_of_bad_elements_stay_at_the_most() -> None:
    call = Call([torch.ones(64, 96).bfloat16()])
    if not GPU:
        call.bad.fill_(MOST - 1)
        call.step([torch.full((64, 96), float("nan"))])
        assert call.bad.tolist() == [MOST]


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("value", ENDS)
def test_layouts_are_what_a_tensor_has(column: int, value: int) -> None:
    weight = torch.ones(64, 96).bfloat16()
    layout = layout_of(weight)
    layout[column] = value
    call = Call([weight])
    call.table[0, column] = value
    before = call.copies()
    for use in (
        lambda: operators.plan(layout, 3, numbers(), 0, 24, True, 0, 0, 1),
        lambda: operators.encode_moment(torch.ones(64, 96), layout, 0, 0),
        lambda: call.step([torch.ones(64, 96)]),
    ):
        try:
            use()
        except ValueError as error:
            assert "\n" not in str(error)
            assert unchanged(call, before)


@pytest.mark.parametrize("shape", [*product((0, 3, MOST), repeat=2), (MOST,), (0, MOST, MOST), (-1,)])
def test_shapes_are_refused_or_multiplied_right(shape: tuple[int, ...]) -> None:
    strides = [1] * len(shape)
    try:
        layout = operators.layout(shape, strides, shape, strides, [0] * len(shape))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        numel = 1
        for extent in shape:
            numel *= extent
        assert int(layout[0]) == numel


@pytest.mark.parametrize("bits", ENDS)
def test_bits_are_not_cut_to_fewer(bits: int) -> None:
    weight = torch.ones(64, 96).bfloat16()
    if bits == 0:
        operators.plan(layout_of(weight), 3, numbers(), 0, bits, True, 0, 0, 1)
        return
    with pytest.raises(ValueError, match="master_weight_bits"):
        operators.plan(layout_of(weight), 3, numbers(), 0, bits, True, 0, 0, 1)
    with pytest.raises(ValueError, match="master_weight_bits"):
        operators.split_weights(weight.float(), 1, bits, False)
    with pytest.raises(ValueError, match="master_weight_bits"):
        operators.join_weights(weight, torch.zeros(0, dtype=torch.int8), bits, False)


def test_choices_are_what_there_is() -> None:
    layout = layout_of(torch.ones(64, 96))
    for value in ENDS:
        if not 0 <= value <= 2:
            with pytest.raises(ValueError):
                operators.plan(layout, 3, numbers(), value, 24, True, 0, 0, 1)
            with pytest.raises(ValueError):
                operators.plan(layout, 3, numbers(), 0, 24, True, 0, 0, value)
            with pytest.raises(ValueError):
                operators.encode_moment(torch.ones(64, 96), layout, 0, value)
            with pytest.raises(ValueError):
                operators.encode_moment(torch.ones(64, 96), layout, 0, 0, value)
        if not 0 <= value <= 3:
            with pytest.raises(ValueError):
                operators.encode_moment(torch.ones(64, 96), layout, value, 0)
        if not 0 <= value <= 4096:
            with pytest.raises(ValueError):
                operators.set_threads(value)
            with pytest.raises(ValueError):
                operators.set_backend(value)


def test_empty_tensors_may_have_any_strides() -> None:
    empty = torch.empty(0).as_strided((0, 5), (MOST, MOST)).bfloat16()
    call = Call([empty]).step([torch.empty(0).as_strided((0, 5), (MOST, MOST))])
    assert int(call.steps[0]) == 1


def test_gradients_at_odd_addresses_are_read_right() -> None:
    weight = torch.randn(64, 96).bfloat16()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        gradient = torch.randn(64, 96).to(dtype)
        expected = Call([weight]).step([gradient])
        got = Call([weight]).step([at_odd_address(gradient)])
        assert unchanged(got, expected.tensors())


@pytest.mark.parametrize("name", ("weights", "corrections", "first_scales", "steps"))
def test_what_is_written_in_place_must_be_aligned(name: str) -> None:
    call = Call([torch.randn(64, 96).bfloat16()], bits=32)
    getattr(call, name)[0] = at_odd_address(getattr(call, name)[0])
    before = call.copies()
    shown = {"corrections": "error_bits", "first_scales": "exp_avg_scales"}.get(name, name)
    with pytest.raises(ValueError, match=rf"{shown}\[0\] lies at an address"):
        call.step([torch.ones(64, 96)])
    assert unchanged(call, before)
