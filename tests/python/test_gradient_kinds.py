"""Gradients and weights of every kind that torch can make: stepped, or refused by name with nothing changed.

What a user loses if these fail: a step that is left out without a word, or an error that does not say where.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from flashoptim_cpp.states import States
from support import RULES, Rule
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

Tensor = torch.Tensor
SHAPE = (64, 96)


def values() -> Tensor:
    return torch.full(SHAPE, 0.5, dtype=torch.bfloat16)


class Marked(torch.Tensor):
    """A subclass that has nothing of its own."""


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "coo": (lambda: values().to_sparse(), RuntimeError, "is sparse: make it dense"),
    "csr": (lambda: values().to_sparse_csr(), RuntimeError, "is sparse"),
    "csc": (lambda: values().to_sparse_csc(), RuntimeError, "is sparse"),
    "bsr": (lambda: values().to_sparse_bsr((8, 8)), RuntimeError, "is sparse"),
    "bsc": (lambda: values().to_sparse_bsc((8, 8)), RuntimeError, "is sparse"),
    "float64": (lambda: values().double(), ValueError, "is .*float64: give float32"),
    "int32": (lambda: values().int(), ValueError, "dtype: give float32|int32"),
    "bool": (lambda: values().bool(), ValueError, "dtype: give float32|bool"),
    "complex": (lambda: values().to(torch.complex64), ValueError, "dtype: give float32|complex"),
    "float8": (lambda: values().to(torch.float8_e4m3fn), ValueError, "dtype: give float32|float8"),
    "quantized": (
        lambda: torch.quantize_per_tensor(values().float(), 0.1, 0, torch.qint8),
        ValueError,
        "dtype: give float32|qint8",
    ),
    "meta": (lambda: values().to("meta"), ValueError, "is on meta"),
    "fake": (lambda: FakeTensorMode().from_tensor(values()), ValueError, "is fake"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(96)] * 64), ValueError, "is a nested tensor"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(96)] * 64, layout=torch.jagged),
        ValueError,
        "is a nested tensor",
    ),
    "masked": (
        lambda: torch.masked.masked_tensor(values().float(), values() > 0),
        ValueError,
        "is a MaskedTensor",
    ),
    "two tensors": (lambda: TwoTensor(values(), values()), ValueError, "is a TwoTensor: give a plain tensor"),
    "another shape": (lambda: torch.zeros(3, 3), ValueError, "shape"),
    "as many elements": (lambda: values().reshape(96, 64), ValueError, "shape"),
    "a scalar": (lambda: torch.tensor(1.0), ValueError, "shape"),
    "no tensor": (lambda: 0.5, ValueError, "is a float: give a tensor"),
}

STEPPED: dict[str, Callable[[], Tensor]] = {
    "negated view": lambda: torch._neg_view(-values()),
    "inference": lambda: torch.inference_mode()(values)(),
    "subclass": lambda: values().as_subclass(Marked),
    "parameter": lambda: torch.nn.Parameter(values()),
    "graph": lambda: values().requires_grad_() * 1,
    "fp32": lambda: values().float(),
    "fp16": lambda: values().half(),
    "expanded": lambda: values()[:1, :1].expand(SHAPE),
    "every second": lambda: torch.full((64, 192), 0.5)[:, ::2],
    "columns": lambda: values().t().contiguous().t(),
}


def released(optimizer: Any) -> None:
    """What a hook of backward() does."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.step_param(p, group)


CALLS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: o.step(),
    "step_param": lambda o: o.step_param(o.param_groups[0]["params"][2]),
    "released": released,
    "grad_norm": lambda o: o.grad_norm(),
    "clip_grad_norm_": lambda o: o.clip_grad_norm_(1.0),
}


def given_gradient(monkeypatch: pytest.MonkeyPatch, p: Tensor, value: Any) -> None:
    """Torch itself refuses most of these where a gradient is set; a subclass of a
    tensor may still bring one."""
    monkeypatch.setattr(torch.Tensor, "grad", property(lambda q: value if q is p else torch.zeros_like(q)))


@pytest.mark.parametrize(("devices", "policy"), [(1, "skip_element"), (2, "skip_step")])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stepped_is_named_and_nothing_changes(
    kind: str, devices: int, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On no device, whichever has it: each has a table of its own, made here of two halves."""
    make, error, message = REFUSED[kind]
    given = support.parameters(shapes=[SHAPE] * 4)
    optimizer: Any = flash.FlashAdamW([(f"layer{n}", p) for n, p in enumerate(given)], nonfinite=policy)
    whole = States._make_tables

    def halves(self: Any, tensors: list[Any], groups: list[Any]) -> list[Any]:
        if len(tensors) == 1:
            return whole(self, tensors, groups)
        return [*whole(self, tensors[:2], groups[:2]), *whole(self, tensors[2:], groups[2:])]

    if devices == 2:
        monkeypatch.setattr(States, "_make_tables", halves)
    support.run(optimizer, given, 1)
    before = support.snapshot(optimizer)
    value = make()
    for name, call in CALLS.items():
        with monkeypatch.context() as patch:
            given_gradient(patch, given[2], value)
            if name == "released":
                optimizer.param_groups[0]["params"] = given[2:]
            with pytest.raises(
                error, match=f"the gradient of layer2 .*{message}|parameter 0 .*{message}"
            ) as refused:
                call(optimizer)
            optimizer.param_groups[0]["params"] = given
        assert "\n" not in str(refused.value)
        assert isinstance(refused.value, ValueError) != (error is RuntimeError)
        support.assert_same(before, optimizer)


def test_weights_made_of_several_tensors_are_refused() -> None:
    """Torch does an operation to each part: the state of both would be stepped twice."""
    weights = TwoTensor(values(), values())
    p = torch.nn.Parameter(weights)
    p.grad = values()
    optimizer = flash.FlashAdamW([p])
    with pytest.raises(ValueError, match="parameter 0 is a TwoTensor, which is made of several tensors"):
        optimizer.step()
    assert torch.equal(weights.a, values())


@pytest.mark.parametrize("kind", STEPPED)
def test_what_has_the_values_is_stepped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("step", "released"):
        given, other = (support.parameters(shapes=[SHAPE] * 3) for _ in range(2))
        optimizer, plain = flash.FlashAdamW(given), flash.FlashAdamW(other)
        for each, p, value in ((optimizer, given[2], STEPPED[kind]()), (plain, other[2], values())):
            with monkeypatch.context() as patch:
                given_gradient(patch, p, value)
                CALLS[call](each)
        support.assert_same(optimizer, plain)


def test_sparse_gradients_of_an_embedding() -> None:
    table = torch.nn.Embedding(100, 64, sparse=True)
    optimizer = flash.FlashAdamW(table.named_parameters())
    before = table.weight.detach().clone()
    handle = None
    for release in (False, True):
        if release:
            optimizer.zero_grad()
            handle = flash.enable_gradient_release(table, optimizer)
        with pytest.raises(RuntimeError, match="the gradient of weight is sparse"):
            table(torch.tensor([1, 2])).sum().backward()
            optimizer.step()
        assert torch.equal(table.weight, before)
    assert handle is not None
    handle.remove()


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_gradients_by_hand_are_stepped(rule: Rule) -> None:
    """Evolution strategies and zeroth-order training need no autograd; torch steps what has a gradient."""
    plain, frozen = support.parameters(), support.parameters()
    for p in frozen:
        p.requires_grad_(False)
    tensors: list[Any] = [p.detach().clone() for p in plain]
    optimizers = [rule(plain), rule(frozen), rule(tensors)]
    sets: list[list[Any]] = [plain, frozen, tensors]
    for given, optimizer in zip(sets, optimizers, strict=True):
        support.run(optimizer, given, 2)
        optimizer.clip_grad_norm_(1e-3)
        optimizer.step()
        for p in given:
            optimizer.step_param(p)
        optimizer.zero_grad()
        assert all(p.grad is None for p in given)
    support.assert_same(optimizers[0], optimizers[1])
    support.assert_same(optimizers[0], optimizers[2])


@pytest.mark.parametrize("call", CALLS)
def test_weights_on_meta_are_refused_by_name(call: str) -> None:
    for others in (0, 2):
        given = support.parameters(shapes=[SHAPE] * others)
        on_meta = [torch.nn.Parameter(torch.ones(SHAPE, device="meta")) for _ in range(3 - others)]
        optimizer = flash.FlashAdamW([*given, *on_meta])
        if given:
            support.run(optimizer, given, 1)
        before = [p.detach().clone() for p in given]
        for p in (*given, *on_meta):
            p.grad = torch.ones_like(p)
        with pytest.raises(ValueError, match=r"parameter \d is on meta, where .*: give it memory \(to_empty"):
            if call == "released":
                optimizer.step_param(on_meta[0])
            else:
                CALLS[call](optimizer)
        assert all(support.same_bits(p, q) for p, q in zip(given, before, strict=True))
        assert not any(optimizer.state.get(p) for p in on_meta)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("number_format", ["native", "paper", "fp32"])
@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_fake_tensors_take_the_memory_that_real_ones_take(
    rule: Rule, number_format: str, device: str
) -> None:
    """What estimates memory runs a training on fake tensors, also for a GPU that is not there."""
    given = support.parameters()
    optimizer = rule(given, format=number_format)
    support.run(optimizer, given, 1)
    expected = optimizer.memory_report()
    for in_mode in (True, False):
        mode = FakeTensorMode()
        with mode:
            imagined = [torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device)) for p in given]
            gradients = [torch.empty_like(p) for p in imagined]
        fake = rule(imagined, format=number_format)
        for p, g in zip(imagined, gradients, strict=True):
            p.grad = g
        with mode if in_mode else contextlib.nullcontext():
            fake.step_param(imagined[0])
            assert fake.clip_grad_norm_(1.0).shape == ()
            fake.step()
            assert fake.memory_report() == expected
            assert len(fake.state_dict()["state"]) == 4
            fake.zero_grad()
        held = [value for state in fake.state.values() for value in state.values()]
        assert all(value.device.type == device for value in held)


def test_a_fake_model_is_trained() -> None:
    """As estimators do it: forward, backward and step in the mode, gradients released or not."""
    for release in (False, True):
        with FakeTensorMode():
            network = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 4))
            optimizer = flash.FlashAdamW(network.parameters())
            if release:
                flash.enable_gradient_release(network, optimizer)
            for _ in range(2):
                network(torch.zeros(16, 64)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            assert optimizer.memory_report()["moments"] > 0


@pytest.mark.parametrize("call", CALLS)
def test_weights_with_memory_are_refused_under_fake_mode(call: str) -> None:
    """Their states would be fake for good."""
    given = support.parameters(shapes=[SHAPE] * 3)
    optimizer = flash.FlashAdamW(given)
    for p in given:
        p.grad = torch.ones_like(p)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(ValueError, match=r"parameter \d has memory"),
    ):
        CALLS[call](optimizer)
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}
