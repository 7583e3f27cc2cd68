"""A step in two passes by the operators: the bits of one step, and what a matrix rule does in between.

What a user loses if these fail: rules that need a matrix product, or weights that such a rule moved wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from flashoptim_cpp import _operators as operators
from operator_calls import RULES, Call
from support import same_bits

Tensor = torch.Tensor
SHAPES = ((64, 96), (33, 41), (5000,), (400, 3), (7, 5), (), (0, 3))

pytestmark = pytest.mark.skipif(operators.GPU_KERNELS == 2, reason="a step in two passes is the CPU's")


@pytest.fixture(autouse=True)
def automatic_backend() -> Iterator[None]:
    yield
    operators.set_backend(0)


def random(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=made) * scale).to(dtype) for shape in SHAPES]


def empty_directions(call: Call, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.empty_like(weight, dtype=dtype) for weight in call.weights]


def first_pass(call: Call, gradients: list[Tensor], directions: list[Tensor]) -> Tensor:
    return operators.update_moments_(directions, *call.arguments(gradients))


def second_pass(call: Call, directions: list[Tensor], scalars: Tensor, bad: Tensor | None = None) -> None:
    bad = torch.zeros_like(call.bad) if bad is None else bad
    rest = (call.steps, bad, call.table, call.hyperparameters, scalars)
    operators.apply_update_(call.weights, call.corrections, directions, *rest)


def assert_same(a: Call, b: Call) -> None:
    pairs = zip(a.tensors(), b.tensors(), strict=True)
    assert [n for n, (x, y) in enumerate(pairs) if not same_bits(x, y)] == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("format", ["native", "fp32"])
def test_both_passes_give_the_bits_of_one_step(rule: str, format: str) -> None:
    for dtype, bits in ((torch.bfloat16, 24), (torch.bfloat16, 0), (torch.float16, 32), (torch.float32, 0)):
        one, two = (Call(random(dtype, 0), rule, format, bits) for _ in range(2))
        for step in range(3):
            gradients = random(dtype, 1 + step, 1e-2)
            gradients[0][step, step] = float("nan")
            one.step(gradients)
            directions, before = empty_directions(two), [weight.clone() for weight in two.weights]
            scalars = first_pass(two, gradients, directions)
            assert scalars.shape == (len(SHAPES), 2) and scalars.dtype == torch.float64
            assert all(map(same_bits, two.weights, before))
            bad = torch.zeros_like(two.bad)
            second_pass(two, directions, scalars, bad)
            assert bad.tolist() == [1, 0, 0, 0, 0, 0, 0]
            assert_same(one, two)


def test_tensors_in_another_order_and_directions_over_gradients() -> None:
    weights = [
        torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last).bfloat16(),
        torch.randn(64, 64).bfloat16().t(),
    ]
    gradients = [torch.randn(8, 4, 3, 3), torch.randn(64, 64)]
    one, two, over = (Call(weights) for _ in range(3))
    one.step(gradients)
    directions = empty_directions(two)
    scalars = first_pass(two, gradients, directions)
    second_pass(two, [direction.contiguous() for direction in directions], scalars)
    assert_same(one, two)
    own = [torch.empty_like(w, dtype=torch.float32).copy_(g) for w, g in zip(weights, gradients, strict=True)]
    second_pass(over, own, first_pass(over, own, own))
    assert_same(one, over)


def test_a_direction_in_bfloat16_is_rounded() -> None:
    exact, rounded = (Call(random(torch.bfloat16, 0)) for _ in range(2))
    gradients = random(torch.bfloat16, 1)
    directions, short = empty_directions(exact), empty_directions(rounded, torch.bfloat16)
    first_pass(exact, gradients, directions)
    scalars = first_pass(rounded, gradients, short)
    assert all(same_bits(a.bfloat16(), b) for a, b in zip(directions, short, strict=True))
    second_pass(rounded, short, scalars)


def orthogonal(matrix: Tensor) -> Tensor:
    """Newton-Schulz iterations, as Muon's authors have them (Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def test_muon_is_made_of_the_two_passes() -> None:
    """SGD's momentum, a matrix product on it, the update: the weights of a float64 reference, to fp32."""
    torch.manual_seed(0)
    weight = torch.randn(48, 64)
    master, momentum = weight.double(), torch.zeros(48, 64, dtype=torch.float64)
    call = Call([weight], "sgdw", "fp32", 0, 0.95, lr=0.02, nesterov=1)
    for _ in range(20):
        gradient = torch.randn(48, 64)
        directions = empty_directions(call)
        scalars = first_pass(call, [gradient], directions)
        second_pass(call, [orthogonal(directions[0])], scalars)
        momentum = 0.95 * momentum + gradient.double()
        master = master * (1 - 0.02 * 0.1) - 0.02 * orthogonal(gradient.double() + 0.95 * momentum)
    assert (call.weights[0].double() - master).norm() < 1e-4 * (master - weight.double()).norm()


def test_what_is_refused_changes_nothing() -> None:
    call = Call(random(torch.bfloat16, 0))
    gradients, directions = random(torch.bfloat16, 1), empty_directions(call)
    scalars = torch.ones(len(SHAPES), 2, dtype=torch.float64)
    before = call.copies()

    def refused(part: str, directions: list[Tensor]) -> None:
        with pytest.raises(ValueError, match=part):
            first_pass(call, gradients, directions)
        assert all(map(same_bits, call.tensors(), before))

    refused("directions needs one tensor for each weight", directions[1:])
    refused("does not lie as its weight", [torch.empty(96, 64).t(), *directions[1:]])
    refused("does not lie as its weight", [torch.empty(64, 95), *directions[1:]])
    refused("directions must be float32 or bfloat16", empty_directions(call, torch.float16))
    refused(r"directions\[0\]", [torch.empty(64, 96, dtype=torch.int32), *directions[1:]])
    with pytest.raises(ValueError, match=r"steps\[0\] is 0"):
        second_pass(call, directions, scalars)
    first_pass(call, gradients, directions)
    before = call.copies()
    with pytest.raises(ValueError, match="scalars has 2 elements"):
        second_pass(call, directions, scalars[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        second_pass(call, [torch.empty(3), *directions[1:]], scalars)
    with pytest.raises(ValueError, match="directions must be float32 or bfloat16"):
        second_pass(call, empty_directions(call, torch.float16), scalars)
    assert all(map(same_bits, call.tensors(), before))
    paper = Call(random(torch.bfloat16, 0), format="paper")
    with pytest.raises(ValueError, match="no step in two passes"):
        first_pass(paper, gradients, directions)


def test_fake_tensors_have_shapes_alone() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    call = Call(random(torch.bfloat16, 0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = [torch.empty(shape, dtype=torch.bfloat16) for shape in SHAPES]
        directions = [torch.empty(shape) for shape in SHAPES]
        scalars = torch.ops.flashoptim_cpp.update_moments_.default(
            directions,
            fakes,
            fakes,
            [],
            [],
            call.steps,
            call.bad,
            call.table,
            call.hyperparameters,
            None,
            1.0,
        )
        assert scalars.shape == (len(SHAPES), 2)
