"""Parameters and gradients of every kind that a model may hold.

What a user loses if these fail: the one layer of the model that is not a matrix in row order.
"""

from __future__ import annotations

from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import RULES, WITH_MOMENTS, Rule


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_parameters_without_gradient_stay(rule: Rule) -> None:
    given = support.parameters()
    given[1].requires_grad_(False)
    before = [p.detach().clone() for p in given]
    optimizer = rule(given)
    for p in (given[0], given[3]):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(given[1], before[1])
    assert torch.equal(given[2], before[2])
    assert given[1] not in optimizer.state
    assert given[2] not in optimizer.state
    assert support.has_moved(before[0], given[0])
    assert sorted(optimizer.state_dict()["state"]) == [0, 3]
    other = rule(support.clones(given))
    other.load_state_dict(optimizer.state_dict())
    given[1].requires_grad_(True)
    support.run(optimizer, given, 1)
    assert int(optimizer.state[given[1]]["step"]) == 1
    assert int(optimizer.state[given[0]]["step"]) == 2


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
@pytest.mark.parametrize("number_format", ["native", "paper", "fp32"])
def test_empty_and_zero_dimensional(rule: Rule, number_format: str) -> None:
    dtype = torch.float32 if number_format == "fp32" else torch.bfloat16
    given = support.parameters(dtype, shapes=((0,), (), (4, 0, 3), (1,), (1, 1, 1)))
    optimizer = rule(given, format=number_format, lr=0.5)
    before = [p.detach().clone() for p in given]
    support.run(optimizer, given, 3, scale=1.0)
    for p, q in zip(given, before, strict=True):
        assert int(optimizer.state[p]["step"]) == 3
        assert p.shape == q.shape
        assert p.numel() == 0 or support.has_moved(q, p)
    other = rule(support.clones(given), format=number_format, lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    support.assert_same(optimizer, other)


def test_a_step_with_no_gradient_anywhere_does_nothing() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    optimizer.step()
    assert not optimizer.state
    assert optimizer.state_dict()["state"] == {}


ORDERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # shape in memory order, permutation that makes the parameter
    "transposed": ((96, 64), (1, 0)),
    "channels-last": ((16, 3, 3, 32), (0, 3, 1, 2)),
    "reversed": ((12, 20, 30), (2, 1, 0)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", WITH_MOMENTS, ids=support.ids(WITH_MOMENTS))
@pytest.mark.parametrize("number_format", ["native", "paper"])
def test_other_memory_orders_have_the_bits_of_their_memory(
    order: str, rule: Rule, number_format: str
) -> None:
    shape, permutation = ORDERS[order]
    [plain] = support.parameters(shapes=(shape,))
    seen = torch.nn.Parameter(plain.detach().clone().permute(permutation))
    strides = seen.stride()
    first, second = rule([plain], format=number_format), rule([seen], format=number_format)
    for step in range(3):
        [g] = support.gradients([plain], step)
        plain.grad = g
        seen.grad = g.permute(permutation).contiguous()  # in another order than the parameter
        first.step()
        second.step()
    assert seen.stride() == strides
    back = [permutation.index(d) for d in range(len(permutation))]
    assert support.same_bits(plain, seen.permute(back))
    for name in rule.moments:
        ours, theirs = (o.state[p][name].materialize() for o, p in ((first, plain), (second, seen)))
        assert theirs.shape == seen.shape
        assert support.same_bits(ours, theirs.permute(back))
    assert support.same_bits(
        support.masters(first, [plain])[0], support.masters(second, [seen])[0].permute(back)
    )


@pytest.mark.parametrize("rule", WITH_MOMENTS, ids=support.ids(WITH_MOMENTS))
def test_state_moves_between_memory_orders(rule: Rule) -> None:
    """A checkpoint of a channels_last model goes into a contiguous one: moments
    within one code, weights exact."""
    weight = support.parameters(shapes=((16, 32, 3, 3),))[0]
    seen = torch.nn.Parameter(weight.detach().clone(memory_format=torch.channels_last))
    first = rule([seen])
    support.run(first, [seen], 3)
    plain = torch.nn.Parameter(seen.detach().clone(memory_format=torch.contiguous_format))
    second = rule([plain])
    second.load_state_dict(first.state_dict())
    assert support.same_bits(support.masters(first, [seen])[0], support.masters(second, [plain])[0])
    for name in rule.moments:
        ours, theirs = first.state[seen][name].materialize(), second.state[plain][name].materialize()
        error = (ours - theirs).abs().max() / ours.abs().max()
        assert float(error) < 1 / 60, "encoding again costs at most one of the 127 codes' width, twice over"
    again = torch.nn.Parameter(seen.detach().clone(memory_format=torch.preserve_format))
    third = rule([again])
    third.load_state_dict(first.state_dict())
    support.assert_same(first, third)


def odd_gradients(like: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values, laid out in every way that autograd may leave a gradient in."""
    g = support.gradients([like], 0)[0]
    wide = torch.zeros(like.shape[0], 2 * like.shape[1], dtype=like.dtype)
    wide[:, ::2] = g
    return {
        "transposed": g.t().contiguous().t(),
        "every second": wide[:, ::2],
        "fp32": g.float(),
        "offset": torch.cat([torch.zeros(1, dtype=g.dtype), g.flatten()])[1:].view(g.shape),
    }


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
@pytest.mark.parametrize("kind", ["transposed", "every second", "offset"])
def test_strided_gradients(rule: Rule, kind: str) -> None:
    [plain], [other] = support.parameters(shapes=((64, 96),)), support.parameters(shapes=((64, 96),))
    first, second = rule([plain]), rule([other])
    [plain.grad] = support.gradients([plain], 0)
    other.grad = odd_gradients(other)[kind]
    first.step()
    second.step()
    support.assert_same(first, second)


def test_expanded_gradients() -> None:
    """sum().backward() leaves a gradient of stride 0."""
    [p], [q] = support.parameters(shapes=((64, 96),)), support.parameters(shapes=((64, 96),))
    first, second = flash.FlashAdamW([p]), flash.FlashAdamW([q])
    p.grad = torch.ones((), dtype=p.dtype).expand(64, 96)
    q.grad = torch.ones_like(q)
    first.step()
    second.step()
    support.assert_same(first, second)


def test_what_cannot_be_stepped_is_refused_by_name() -> None:
    cases: list[tuple[torch.Tensor, str]] = [
        (torch.zeros(1, 40, dtype=torch.bfloat16).expand(30, 40), "stride|overlap|dense"),
        (torch.zeros(30, 80, dtype=torch.bfloat16)[:, ::2], "stride|dense"),
        (torch.zeros(8, 8, dtype=torch.float64), "float64|dtype"),
        (torch.zeros(8, 8, dtype=torch.complex64), "complex64|dtype"),
    ]
    for tensor, words in cases:
        p = torch.nn.Parameter(tensor)
        with pytest.raises((ValueError, TypeError, RuntimeError), match=words):
            optimizer = flash.FlashAdamW([("odd.weight", p)])
            p.grad = torch.zeros_like(tensor)
            optimizer.step()


def test_parameters_of_several_dtypes_share_an_optimizer() -> None:
    """fp16, bf16 and fp32 in one group; a checkpoint of it resumes bit for bit."""
    given = [
        *support.parameters(torch.bfloat16),
        *support.parameters(torch.float16, seed=1),
        *support.parameters(torch.float32, seed=2),
    ]
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 3)
    other = support.clones(given)
    resumed = flash.FlashAdamW(other)
    resumed.load_state_dict(optimizer.state_dict())
    support.run(optimizer, given, 2, first=3)
    support.run(resumed, other, 2, first=3)
    support.assert_same(optimizer, resumed)


def test_tied_weights_are_stepped_once() -> None:
    network = support.tied_network()
    optimizer = flash.FlashAdamW(network.parameters())
    network(torch.arange(8)).float().sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 1
    assert int(optimizer.state[network[0].weight]["step"]) == 1


def test_a_parameter_twice_is_torchs_error() -> None:
    [p] = support.parameters(shapes=((4, 4),))
    with pytest.warns(UserWarning, match="duplicate"):
        flash.FlashAdamW([p, p])
    with pytest.raises(ValueError, match="more than one"):
        flash.FlashAdamW([{"params": [p]}, {"params": [p]}])


def test_small_tensors_keep_exact_moments_by_default() -> None:
    """The threshold is the user's: 0 quantises everything, in `paper` everything always is."""
    shapes = ((63, 65), (64, 64), (65_536,), (65_537,))
    for options, quantised in (
        ({}, [False, True, False, True]),
        ({"min_quantized_numel": 0, "min_quantized_numel_1d": 0}, [True] * 4),
        ({"min_quantized_numel": 10**9, "min_quantized_numel_1d": 10**9}, [False] * 4),
        ({"format": "paper"}, [True] * 4),
        ({"quantize": False}, [False] * 4),
    ):
        given = support.parameters(shapes=shapes)
        optimizer: Any = flash.FlashAdamW(given, **options)
        support.run(optimizer, given, 1)
        assert [optimizer.state[p]["exp_avg"].is_quantized() for p in given] == quantised, options


def test_inference_tensors_are_refused_by_name() -> None:
    with torch.inference_mode():
        p = torch.nn.Parameter(torch.ones(64, 96))
    optimizer = flash.FlashAdamW([("head", p)])
    p.grad = torch.ones(64, 96)
    with pytest.raises(ValueError, match=r"head was made in torch\.inference_mode"):
        optimizer.step()
