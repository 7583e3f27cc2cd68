"""Gradients of 16-bit parameters that are added up in fp32, in one process;
distributed_accumulation_checks.py has several.

What a user loses if these fail: the small gradients of most micro-batches, to the sum of those before.
"""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch


def backward(*parameters: torch.nn.Parameter, values: tuple[int, ...] = (256, 1, 1, 1)) -> None:
    """Gradients whose sum bfloat16 has lost after the first."""
    for value in values:
        torch.stack([(p * value).sum() for p in parameters]).sum().backward()


def assert_sum(p: torch.Tensor, value: float = 259) -> None:
    assert p.grad is not None
    assert p.grad.dtype == torch.float32
    assert bool((p.grad == value).all())


@pytest.fixture
def three() -> list[torch.nn.Parameter]:
    return support.parameters(shapes=((64, 96), (7, 5), (40,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_are_fp32_however_a_parameter_comes(dtype: torch.dtype) -> None:
    """Trained from the start, frozen at first, in a group added later or by hand, with a gradient already."""
    given = support.parameters(dtype, shapes=[(64, 96)] * 6)
    trained, frozen, later, by_hand, unfrozen_by_hand, started = given
    frozen.requires_grad_(False)
    unfrozen_by_hand.requires_grad_(False)
    started.grad = torch.full_like(started, 3)
    optimizer = flash.FlashAdamW([trained, frozen, started], accumulate_fp32=True)
    assert not frozen.requires_grad
    optimizer.add_param_group({"params": [later]})
    optimizer.param_groups[0]["params"] += [by_hand, unfrozen_by_hand]
    optimizer.zero_grad(set_to_none=False)  # any call notices
    started.grad = torch.full_like(started, 3)
    frozen.requires_grad_(True)
    unfrozen_by_hand.requires_grad_(True)
    backward(*given)
    for p in given[:5]:
        assert_sum(p)
    assert_sum(started, 262)
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def test_groups_choose(three: list[torch.nn.Parameter]) -> None:
    optimizer = flash.FlashAdamW([{"params": three[:1], "accumulate_fp32": True}, {"params": three[1:]}])
    backward(*three)
    assert_sum(three[0])
    assert three[1].grad is not None
    assert three[1].grad.dtype == torch.bfloat16
    optimizer.zero_grad()
    optimizer.param_groups[0]["accumulate_fp32"] = False
    optimizer.param_groups[1]["accumulate_fp32"] = True
    optimizer.zero_grad()
    backward(*three)
    assert_sum(three[1])
    assert three[0].grad is not None
    assert three[0].grad.dtype == torch.bfloat16


def test_what_leaves_the_groups_is_torchs_again(three: list[torch.nn.Parameter]) -> None:
    optimizer = flash.FlashAdamW(three, accumulate_fp32=True)
    taken = optimizer.param_groups[0]["params"].pop(0)
    optimizer.zero_grad()
    backward(*three)
    assert taken.grad is not None
    assert taken.grad.dtype == torch.bfloat16
    assert_sum(three[1])


def test_nothing_is_kept_alive(three: list[torch.nn.Parameter]) -> None:
    optimizer = flash.FlashAdamW(three, accumulate_fp32=True)
    backward(*three)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    backward(*three, values=(1,))  # hooks that have nobody to work for
    assert_sum(three[0], 260)
    three[0].grad = None
    backward(*three, values=(1,))
    assert three[0].grad is not None
    assert three[0].grad.dtype == torch.bfloat16  # as DistributedDataParallel wants it


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_accumulate_too(how: Any, three: list[torch.nn.Parameter]) -> None:
    optimizer = flash.FlashAdamW(three, accumulate_fp32=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that hooks are not written
        _, parameters = how((optimizer, three))
    backward(*parameters)
    for p in parameters:
        assert_sum(p)
    backward(*three)
    assert_sum(three[0])


def test_released_gradients_and_hooks_of_others(three: list[torch.nn.Parameter]) -> None:
    optimizer = flash.FlashAdamW(three, accumulate_fp32=True)
    seen: list[float] = []
    three[1].register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad.max())))
    handle = flash.enable_gradient_release(torch.nn.ParameterList(three[:1]), optimizer)
    backward(*three)
    assert three[0].grad is None
    assert int(optimizer.state[three[0]]["step"]) == 4
    assert seen == [256, 257, 258, 259]
    assert_sum(three[1])
    handle.remove()


def test_parameters_of_fp32_and_sparse_gradients_are_left_alone() -> None:
    table = torch.nn.Embedding(10, 64, sparse=True).bfloat16()
    wide = torch.nn.Parameter(torch.ones(3))
    optimizer = flash.FlashAdamW([table.weight, wide], accumulate_fp32=True)
    (table(torch.tensor([1])).float().sum() + wide.sum()).backward()
    assert wide.grad is not None
    assert wide.grad.dtype == torch.float32
    with pytest.raises(RuntimeError, match="parameter 0 is sparse"):
        optimizer.step()
