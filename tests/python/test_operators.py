"""The C++ operators by themselves: the core's bits whatever the backend, gradients of any strides,
errors before anything changes.

What a user loses if these fail: steps that depend on the machine, a compiled training loop,
memory, or a crash for a message.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flashoptim_cpp import _operators as operators
from operator_calls import BACKENDS, DTYPES, FORMATS, RULES, Call
from support import same_bits

Tensor = torch.Tensor

# Rows of whole and of broken groups, one dimension, rows too short to quantise, no dimension, no element.
SHAPES = ((64, 96), (33, 41), (5000,), (400, 3), (7, 5), (), (0, 3))


def random(dtype: torch.dtype = torch.bfloat16, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=made) * scale).to(dtype) for shape in SHAPES]


def run(backend: str, dtype: torch.dtype, rule: str, format: str, bits: int) -> Call:
    """Three steps on one backend, one gradient of which is bad."""
    operators.set_backend(BACKENDS[backend])
    call = Call(random(dtype), rule, format, bits)
    for step in range(3):
        gradients = random(dtype, 1 + step, 1e-2)
        gradients[0][step, step] = float("nan")
        call.step(gradients)
    return call


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert [n for n, (x, y) in enumerate(zip(a, b, strict=True)) if not same_bits(x, y)] == []


def available() -> list[str]:
    """The backends that this processor runs, but the scalar one."""
    names = []
    for name, number in BACKENDS.items():
        try:
            operators.set_backend(number)
        except ValueError:
            continue
        names.append(name)
    operators.set_backend(0)
    return names[1:]


@pytest.fixture(autouse=True)
def automatic_backend() -> Iterator[None]:
    yield
    operators.set_backend(0)
    operators.set_threads(0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_backend_gives_the_bits_of_the_scalar_one(rule: str, format: str) -> None:
    if format == "paper" and rule in ("ademamix", "adan"):
        pytest.skip("the paper has no such rule")
    for dtype, bits in ((torch.bfloat16, 24), (torch.float16, 32), (torch.float32, 0)):
        expected = run("scalar", dtype, rule, format, bits)
        assert expected.bad.tolist() == [3, 0, 0, 0, 0, 0, 0]
        assert [int(step) for step in expected.steps] == [3] * len(SHAPES)
        for backend in available():
            assert_same(run(backend, dtype, rule, format, bits).tensors(), expected.tensors())


def test_threads_do_not_change_the_bits() -> None:
    calls = []
    for threads in (1, 2, 5):
        operators.set_threads(threads)
        calls.append(run("scalar", torch.bfloat16, "adamw", "native", 24))
    assert_same(calls[1].tensors(), calls[0].tensors())
    assert_same(calls[2].tensors(), calls[0].tensors())


def test_calls_from_several_threads_at_once_do_not_disturb_each_other() -> None:
    expected = Call(random()).step(random(seed=1)).tensors()
    calls = [Call(random()) for _ in range(4)]
    workers = [threading.Thread(target=call.step, args=(random(seed=1),)) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for call in calls:
        assert_same(call.tensors(), expected)


def strided(gradient: Tensor) -> list[Tensor]:
    """The same values in other memory: in columns, with holes, of every other element, negated lazily."""
    holes = torch.zeros(*gradient.shape[:-1], 3 * gradient.shape[-1], dtype=gradient.dtype)
    holes[..., ::3] = gradient
    lazy = torch.complex(torch.zeros_like(gradient), -gradient).conj().imag
    return [gradient.t().contiguous().t(), holes[..., ::3], lazy]


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_gradients_may_have_any_strides_and_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 96).bfloat16()
    gradient = torch.randn(64, 96).to(dtype).float()  # lazy negation is for fp32 only
    expected = Call([weight]).step([gradient]).tensors()
    for other in strided(gradient):
        assert_same(Call([weight]).step([other]).tensors(), expected)
    assert_same(Call([weight]).step([gradient.to(dtype)]).tensors(), expected)
    row = torch.randn(96).to(dtype)
    expected = Call([weight]).step([row.repeat(64, 1)]).tensors()
    assert_same(Call([weight]).step([row.expand(64, 96)]).tensors(), expected)


def test_a_transposed_weight_is_stepped_where_it_lies() -> None:
    weight, gradient = torch.randn(64, 96).bfloat16(), torch.randn(64, 96)
    plain = Call([weight]).step([gradient])
    turned = Call([weight.t()]).step([gradient.t()])
    assert turned.weights[0].stride() == (1, 96)
    assert same_bits(turned.weights[0].t(), plain.weights[0])
    assert same_bits(turned.first[0].t(), plain.first[0])
    with pytest.raises(ValueError, match=r"exp_avg\[0\] .*does not lie as its weight"):
        turned.first[0] = turned.first[0].contiguous()
        turned.step([gradient.t()])


def test_grad_scale_and_the_factor_scale_what_is_read() -> None:
    # Powers of two, so that scaling loses no bit.
    expected = Call(random()).step(random(seed=1)).tensors()
    scaled = [gradient * 64 for gradient in random(seed=1)]
    scale = torch.tensor(256.0)
    call = Call(random()).step(scaled, grad_scale=scale, gradient_factor=4.0)
    assert_same(call.tensors(), expected)
    assert_same(Call(random()).step(scaled, grad_scale=scale[None].double() / 4).tensors(), expected)
    with pytest.raises(ValueError, match="gradient_factor is not finite"):
        call.step(scaled, gradient_factor=float("inf"))


def test_found_inf_changes_nothing_at_all() -> None:
    call = Call(random())
    before = call.copies()
    gradients = random(seed=1)
    gradients[0][0, 0] = float("inf")
    call.step(gradients, found_inf=torch.tensor(1.0))
    assert_same(call.tensors(), before)
    call.step(gradients, found_inf=torch.tensor([0.0]))
    assert int(call.steps[0]) == 1 and int(call.bad[0]) == 1


def test_nonfinite_1_steps_nothing_but_counts() -> None:
    call = Call(random())
    before = call.copies()
    gradients = random(seed=1)
    gradients[1][2, 3] = float("nan")
    gradients[2][:4] = 2.0**49
    call.step(gradients, nonfinite=1)
    assert call.bad.tolist() == [0, 1, 4, 0, 0, 0, 0]
    assert_same(call.tensors()[:-1], before[:-1])
    counted = operators.count_bad(call.weights, gradients, call.table, call.hyperparameters)
    assert counted.tolist() == call.bad.tolist()
    assert_same(
        call.step(random(seed=1), nonfinite=1).tensors()[:-1],
        Call(random()).step(random(seed=1)).tensors()[:-1],
    )


def test_count_bad_sees_the_l2_term_of_full_precision_weights() -> None:
    weight, gradient = torch.full((2, 40), 2.0**48), torch.zeros(2, 40)
    call = Call([weight], "adam", weight_decay=1.0)
    counts = operators.count_bad(call.weights, [gradient], call.table, call.hyperparameters)
    assert counts.tolist() == [80]
    # In bfloat16 with 24 bits: just below the limit, and its 16 bits alone are at it.
    master = torch.full((2, 40), 2.0**48 * (1 - 2.0**-14))
    split, correction = operators.split_weights(master, 1, 24, False)
    call = Call([split], "adam", weight_decay=1.0)
    arguments = ([split], [gradient], call.table, call.hyperparameters)
    assert operators.count_bad(*arguments).tolist() == [80]
    assert operators.count_bad(*arguments, corrections=[correction]).tolist() == [0]


def test_grad_norm() -> None:
    call = Call(random())
    gradients = random(seed=1)
    gradients[0][0, 0] = float("nan")
    norm = operators.grad_norm(call.weights, gradients, call.table, call.hyperparameters, 0.5)
    gradients[0][0, 0] = 0.0
    expected = 0.5 * sum(float(g.double().square().sum()) for g in gradients) ** 0.5
    # Both add squares in float64 and differ in the order only: n terms, each sum off by 2^-53 relatively.
    assert norm.dtype == torch.float64 and float(norm) == pytest.approx(expected, rel=2.0**-40)


def test_lists_may_be_empty() -> None:
    empty = Call([])
    operators.step_(*empty.arguments([]))
    arguments: tuple[Any, ...] = ([], [], empty.table, empty.hyperparameters)
    assert operators.count_bad(*arguments).tolist() == []
    assert float(operators.grad_norm(*arguments)) == 0.0
    # No weight has a second moment or scales here: the lists need no tensors.
    call, other = (Call(random(torch.float32)[3:4], "lion") for _ in range(2))
    call.corrections = call.first_scales = call.second = call.second_scales = []
    assert same_bits(call.step(random()[3:4]).first[0], other.step(random()[3:4]).first[0])


WRONG: list[tuple[str, Any, str]] = [
    ("gradients", lambda t: t.double(), r"gradients\[1\] is float64: give float32, bfloat16 or float16"),
    ("gradients", lambda t: t[:3], r"gradients\[1\] is of shape \[3, 41\].*must have one shape"),
    ("gradients", lambda t: t.to_sparse(), r"gradients\[1\] is sparse"),
    ("weights", lambda t: t.float(), r"weights\[1\] is float32: it must be bfloat16"),
    ("weights", lambda t: t[:3], r"weights\[1\] has 123 elements: it must have 1353"),
    ("weights", lambda t: t[:1].expand(33, 41), r"weights\[1\] .* is not dense in memory"),
    ("corrections", lambda t: t.short(), r"error_bits\[1\] is int16: it must be int8"),
    ("corrections", lambda t: t[:0], r"error_bits\[1\] has 0 elements: it must have 1353"),
    ("first", lambda t: t[..., :1], r"exp_avg\[1\] has 33 elements"),
    ("first_scales", lambda t: t.half(), r"exp_avg_scales\[1\] is float16: it must be bfloat16"),
    ("second_scales", lambda t: t.repeat_interleave(2)[::2], r"exp_avg_sq_scales\[1\] is not contiguous"),
    ("steps", lambda t: t.float(), r"steps\[1\] is float32: .*int64"),
    ("steps", lambda t: t - 1, r"steps\[1\] must be one integer that is not negative"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_a_wrong_tensor_is_refused_by_name(name: str, change: Any, message: str) -> None:
    call, gradients = Call(random()), random(seed=1)
    given = gradients if name == "gradients" else getattr(call, name)
    right = given[1]
    before = call.copies()
    given[1] = change(right)
    with pytest.raises(ValueError, match=message):
        call.step(gradients)
    given[1] = right
    assert_same(call.tensors(), before)


def test_tables_that_contradict_themselves_are_refused() -> None:
    call, gradients = Call(random()), random(seed=1)
    before = call.copies()
    good = call.table.clone()
    for column, value in (
        (0, 1),
        (1, 7),
        (2, 0),
        (8, 3),
        (9, 32),
        (11, 1),
        (15, 1),
        (30, 1),
        (33, 5),
        (33, 4),
    ):
        call.table = good.clone()
        call.table[1, column] = value
        with pytest.raises(ValueError, match=r"layout|plan|group|rule|weight_dtype|elements"):
            operators.step_(*call.arguments(gradients))
    call.table = good[:2]
    with pytest.raises(ValueError, match="a row of 34 for each weight"):
        operators.step_(*call.arguments(gradients))
    call.table = good
    call.hyperparameters[0, 2] = 1.0
    with pytest.raises(ValueError, match="beta2 is 1"):
        operators.step_(*call.arguments(gradients))
    with pytest.raises(ValueError, match="7 weights and 6 gradients"):
        operators.step_(*call.arguments(gradients[1:]))
    assert_same(call.tensors(), before)


def test_momentum_that_came_needs_a_new_plan() -> None:
    call = Call(random(), "sgd", momentum=0.0)
    call.hyperparameters[0, 5] = 0.9
    with pytest.raises(ValueError, match=r"plan does not fit its layout, rule or hyperparameters"):
        call.step(random(seed=1))


def test_a_full_gpu_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch may hold memory that it does not use, where the kernels' own runtime finds none."""
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    full = "cudaMalloc failed with cudaErrorMemoryAllocation (out of memory): see whether memory is free"

    def failing(times: int, why: str = full) -> Any:
        calls: list[int] = []

        def operator(value: int) -> int:
            calls.append(value)
            if len(calls) <= times:
                raise RuntimeError(why)
            return len(calls)

        return operators._checked(operator)

    assert failing(1)(7) == 2
    assert failing(1, full.replace("cudaMalloc", "the load of a step's kernels"))(7) == 2
    assert len(emptied) == 2
    with pytest.raises(RuntimeError, match="cudaMalloc failed"):
        failing(2)(7)
    assert len(emptied) == 3
    with pytest.raises(RuntimeError, match="launch"):  # tensors may have been stepped
        failing(1, "the launch of a step's kernel failed with cudaErrorMemoryAllocation (out of memory)")(7)
    monkeypatch.setattr(operators, "is_capturing_now", lambda: True)
    with pytest.raises(RuntimeError, match="cudaMalloc failed"):
        failing(1)(7)
    assert len(emptied) == 3


def test_nothing_is_kept_of_a_call_whether_it_succeeds_or_not() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        call, gradients = Call(random()), [g.to(dtype) for g in random(seed=1)]
        try:
            call.step(gradients)
        except ValueError:
            assert dtype == torch.float64
        seen = [weakref.ref(tensor) for tensor in call.tensors() + gradients + [call.table]]
        del call, gradients
        gc.collect()
        assert [n for n, tensor in enumerate(seen) if tensor() is not None] == []
