"""Where the bytes go, tensors quantised by hand, gradients accumulated in fp32, and compiled loops.

What a user loses if these fail: the memory that was promised.
"""

from __future__ import annotations

import weakref
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import ADAMW, LION, SGD, SGD_PLAIN, Rule

# Weights, corrections, moments, scales of 32, and 16-bit gradients.
ADAMW_BYTES = 2 + 1 + 2 + 2 * 2 / 32 + 2


@pytest.mark.parametrize(
    ("rule", "options", "bytes_each"),
    [
        (ADAMW, {}, ADAMW_BYTES),
        (ADAMW, {"master_weight_bits": 32}, ADAMW_BYTES + 1),
        (ADAMW, {"master_weight_bits": 16}, ADAMW_BYTES - 1),
        (ADAMW, {"quantize": False}, 2 + 1 + 8 + 2),
        (ADAMW, {"format": "paper"}, ADAMW_BYTES),
        (LION, {}, 2 + 1 + 1 + 2 / 32 + 2),
        (SGD, {}, 2 + 1 + 1 + 2 / 32 + 2),
        (SGD_PLAIN, {}, 2 + 1 + 2),
    ],
)
def test_memory_report(rule: Rule, options: dict[str, Any], bytes_each: float) -> None:
    given = support.parameters(shapes=((128, 256), (64, 64)))
    optimizer = rule(given, **options)
    support.run(optimizer, given, 1)
    report = optimizer.memory_report()
    count = sum(p.numel() for p in given)
    assert report["parameters"] == count
    assert report["weights"] == report["gradients"] == 2 * count
    kinds = ("weights", "corrections", "moments", "scales", "gradients")
    assert report["total"] == sum(report[kind] for kind in kinds)
    assert report["bytes_per_parameter"] == pytest.approx(bytes_each)
    optimizer.zero_grad()
    assert optimizer.memory_report()["gradients"] == 0
    assert optimizer.memory_report()["bytes_per_parameter"] == pytest.approx(bytes_each - 2)


def test_the_report_counts_what_is_there() -> None:
    """Every tensor of the state, byte for byte."""
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    report = optimizer.memory_report()
    state = 0
    for values in optimizer.state_dict()["state"].values():
        state += sum(v.numel() * v.element_size() for k, v in values.items() if k != "step")
    assert report["corrections"] + report["moments"] + report["scales"] == state
    fresh = flash.FlashAdamW(support.parameters())
    assert fresh.memory_report()["moments"] == 0


def test_a_step_leaves_nothing_behind() -> None:
    """Gradients and temporary tensors die with the step."""
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    grads = [weakref.ref(p.grad) for p in given]
    optimizer.step()
    for p in given:
        p.grad = None
    assert all(g() is None for g in grads)


@pytest.mark.parametrize("number_format", ["native", "paper"])
@pytest.mark.parametrize("moment", ["first", "second"])
@pytest.mark.parametrize("shape", [(64, 96), (5, 33), (130,), (8, 3, 5, 7)], ids=str)
def test_quantize_and_dequantize(number_format: str, moment: str, shape: tuple[int, ...]) -> None:
    given = torch.randn(shape) * 10 ** torch.linspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    if moment == "second":
        given = given.square()
    codes, scales = flash.quantize(given, moment=moment, format=number_format)
    assert codes.dtype == (torch.int8 if moment == "first" else torch.uint8)
    assert codes.shape == given.shape
    back = flash.dequantize(codes, scales, moment=moment, format=number_format)
    assert back.dtype == torch.float32
    assert back.shape == given.shape
    # Groups of 32 neighbours; a code is at most 2/127 of the group's largest value wide, half that off.
    rows = given.reshape(-1) if number_format == "paper" or len(shape) == 1 else given.reshape(shape[0], -1)
    length = rows.shape[-1]
    padded = torch.nn.functional.pad(rows.abs(), (0, -length % 32))
    largest = padded.unflatten(-1, (-1, 32)).amax(-1, keepdim=True).expand(*padded.shape[:-1], -1, 32)
    allowed = largest.flatten(-2)[..., :length].reshape(shape) * (2.2 / 127)
    assert bool(((back - given).abs() <= allowed).all())
    again = flash.quantize(back, moment=moment, format=number_format)
    assert torch.equal(flash.dequantize(*again, moment=moment, format=number_format).sign(), back.sign())


def test_quantised_zeros_are_zeros() -> None:
    for moment in ("first", "second"):
        codes, scales = flash.quantize(torch.zeros(64, 96), moment=moment)
        assert not codes.any()
        assert not flash.dequantize(codes, scales, moment=moment).any()


def test_quantize_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="moment"):
        flash.quantize(torch.randn(64, 96), moment="third")
    with pytest.raises(ValueError, match="bf8"):
        flash.quantize(torch.randn(64, 96), moment="first", format="bf8")


def test_gradients_accumulated_in_fp32() -> None:
    """256 gradients of 1 + 2^-8 after a large one: in bfloat16 their sum stops
    moving, in fp32 it arrives whole."""
    exact, rounded = support.parameters(shapes=((64, 96),)), support.parameters(shapes=((64, 96),))
    accumulating = flash.FlashSGD(exact, lr=1.0, accumulate_fp32=True, master_weight_bits=32)
    plain = flash.FlashSGD(rounded, lr=1.0, master_weight_bits=32)
    start = exact[0].detach().clone().float()
    for optimizer, [p] in ((accumulating, exact), (plain, rounded)):
        for size in [256.0] + [0.5] * 256:
            (p.float() * size).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    [ours], [theirs] = support.masters(accumulating, exact), support.masters(plain, rounded)
    expected = start - (256 + 128)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    assert float((theirs - expected).abs().max()) > 100
    (exact[0].float() * 2).sum().backward()
    accumulating.step()
    [again] = support.masters(accumulating, exact)
    torch.testing.assert_close(again, expected - 2, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_loop(backend: str) -> None:
    """Model and step in one compiled function train as they do without; a new lr compiles nothing anew."""
    torch._dynamo.reset()
    plain, compiled = support.model(), support.model()
    first, second = flash.FlashAdamW(plain.parameters()), flash.FlashAdamW(compiled.parameters())

    def step(network: torch.nn.Module, optimizer: Any, inputs: Any, classes: Any) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(network(inputs).float(), classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    fast = torch.compile(step, backend=backend)
    for number in range(4):
        for optimizer in (first, second):
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + number)
        step(plain, first, *support.batch(number))
        fast(compiled, second, *support.batch(number))
    assert all(int(second.state[p]["step"]) == 4 for p in compiled.parameters())
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-2)


def test_a_compiled_model_and_a_plain_step() -> None:
    torch._dynamo.reset()
    plain, compiled = support.model(), support.model()
    first, second = flash.FlashAdamW(plain.parameters()), flash.FlashAdamW(compiled.parameters())
    fast: Any = torch.compile(compiled, backend="eager")
    for number in range(3):
        for network, optimizer in ((plain, first), (fast, second)):
            support.loss_of(network, number).backward()
            optimizer.step()
            optimizer.zero_grad()
    support.assert_same(first, second)
