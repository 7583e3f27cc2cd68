"""Stepping inside backward, each gradient freed as soon as its parameter has moved.

What a user loses if these fail: the 2 bytes per parameter that gradients cost, or
the right result without them.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import warnings
import weakref
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import RULES, Rule
from torch.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def loud() -> Any:
    """There is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def train(network: torch.nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        support.loss_of(network, step).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_the_bits_are_those_of_step(rule: Rule) -> None:
    plain, released = support.model(), support.model()
    first, second = rule(plain.parameters()), rule(released.parameters())
    handle = flash.enable_gradient_release(released, second)
    assert isinstance(handle, flash.GradientReleaseHandle)
    assert handle.active
    train(plain, first, range(3))
    train(released, second, range(3))
    support.assert_same(first, second)
    assert all(p.grad is None for p in released.parameters())
    handle.remove()
    assert not handle.active
    train(plain, first, range(3, 5))
    train(released, second, range(3, 5))
    support.assert_same(first, second)


def test_step_and_zero_grad_find_nothing_left() -> None:
    """A loop written for step() goes on as it is, without a word."""
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    with flash_release(network, optimizer):
        support.loss_of(network, 0).backward()
        before = support.snapshot(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        support.assert_same(before, optimizer)


class flash_release:
    """enable_gradient_release as a context."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.handle = flash.enable_gradient_release(*arguments, **options)

    def __enter__(self) -> Any:
        return self.handle

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_no_gradient_outlives_its_step() -> None:
    """While a parameter steps, the gradients of the layers behind it are gone already."""
    network = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(6)]).bfloat16()
    optimizer = flash.FlashAdamW(network.parameters())
    alive: list[int] = []

    def count(_: torch.Tensor, __: dict[str, Any]) -> bool:
        alive.append(sum(p.grad is not None for p in network.parameters()))
        return True

    with flash_release(network, optimizer, pre_step=count):
        network(torch.randn(4, 64).bfloat16()).float().sum().backward()
    assert len(alive) == 12
    assert max(alive) <= 2, "a layer's weight and bias at most"


def test_pre_step_may_refuse() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    kept = network.get_parameter("0.weight").detach().clone()
    with flash_release(network, optimizer, pre_step=lambda p, _: p is not network.get_parameter("0.weight")):
        train(network, optimizer, range(2))
    assert torch.equal(network.get_parameter("0.weight"), kept)
    assert network.get_parameter("0.weight") not in optimizer.state
    assert len(optimizer.state) == 3
    assert network.get_parameter("0.weight").grad is None


def test_pre_step_gets_the_group() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(
        [{"params": network[0].parameters()}, {"params": network[2].parameters(), "lr": 1e-2}]
    )
    rates: list[float] = []

    def note(_: torch.Tensor, group: dict[str, Any]) -> bool:
        rates.append(group["lr"])
        return True

    with flash_release(network, optimizer, pre_step=note):
        train(network, optimizer, range(1))
    assert sorted(rates) == [1e-3, 1e-3, 1e-2, 1e-2]


def test_a_scheduler_goes_on_while_gradients_are_released() -> None:
    plain, released = support.model(), support.model()
    optimizers = [flash.FlashAdamW(n.parameters(), lr=1e-2) for n in (plain, released)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]
    with flash_release(released, optimizers[1]):
        for step in range(3):
            for network, optimizer, schedule in zip((plain, released), optimizers, schedules, strict=True):
                train(network, optimizer, range(step, step + 1))
                schedule.step()
    support.assert_same(*optimizers)


def test_tied_weights_step_once() -> None:
    network = support.tied_network()
    optimizer = flash.FlashAdamW(network.parameters())
    calls: list[torch.Tensor] = []

    def note(p: torch.Tensor, _: dict[str, Any]) -> bool:
        calls.append(p)
        return True

    with flash_release(network, optimizer, pre_step=note):
        for step in range(3):
            network(torch.arange(8)).float().sum().backward()
            assert len(calls) == step + 1
    assert int(optimizer.state[network[0].weight]["step"]) == 3


def test_frozen_and_foreign_parameters_are_left_alone() -> None:
    network = support.model()
    network.get_parameter("0.weight").requires_grad_(False)
    optimizer = flash.FlashAdamW([network.get_parameter("0.weight"), network.get_parameter("2.weight")])
    with flash_release(network, optimizer):
        train(network, optimizer, range(1))
    assert list(optimizer.state) == [network.get_parameter("2.weight")]
    assert network.get_parameter("2.bias").grad is not None, (
        "not the optimizer's: its gradient stays the user's"
    )


def test_a_state_dict_of_a_released_optimizer_resumes() -> None:
    straight, broken = support.model(), support.model()
    first, second = flash.FlashAdamW(straight.parameters()), flash.FlashAdamW(broken.parameters())
    with flash_release(straight, first), flash_release(broken, second):
        train(straight, first, range(4))
        train(broken, second, range(2))
        resumed = support.model(seed=5)
        resumed.load_state_dict(broken.state_dict())
        third = flash.FlashAdamW(resumed.parameters())
        with flash_release(resumed, third):
            third.load_state_dict(second.state_dict())
            train(resumed, third, range(2, 4))
    support.assert_same(first, third)


@pytest.mark.parametrize("policy", ["skip_element", "skip_step", "error"])
def test_policies_hold_per_parameter(policy: str) -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.named_parameters(), nonfinite=policy)
    network.get_parameter("2.weight").register_hook(lambda grad: grad.clone().fill_(float("nan")))
    before = network.get_parameter("2.weight").detach().clone()
    with flash_release(network, optimizer):
        loss = support.loss_of(network, 0)
        if policy == "error":
            with pytest.raises(flash.NonFiniteError, match=r"2\.weight"):
                loss.backward()
        else:
            loss.backward()
            assert int(optimizer.state[network.get_parameter("0.weight")]["step"]) == 1
    assert torch.equal(network.get_parameter("2.weight"), before)
    assert optimizer.bad_elements()["2.weight"] == network.get_parameter("2.weight").numel()


def test_a_model_keeps_what_steps_it() -> None:
    """Nobody else keeps the optimizer or the handle; both go with the model."""
    network, same = support.model(), support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    flash.enable_gradient_release(network, optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    reference = flash.FlashAdamW(same.parameters())
    train(same, reference, range(3))
    for step in range(3):
        support.loss_of(network, step).backward()
    for p, q in zip(network.parameters(), same.parameters(), strict=True):
        assert support.same_bits(p, q)
        assert p.grad is None
    del network, p
    gc.collect()
    assert gone() is None


def test_a_copy_of_the_model_keeps_nothing() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    with flash_release(network, optimizer):
        for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            support.loss_of(copied, 0).backward()
            assert all(p.grad is not None for p in copied.parameters())
            other = flash.FlashAdamW(copied.parameters())
            with flash_release(copied, other):
                train(copied, other, range(1))
            assert len(other.state) == 4
    assert not optimizer.state


class Segments(torch.nn.Module):
    """Two layers of one or of two weights, each in a checkpoint or not."""

    def __init__(self, tied: bool, inside: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(64, 64)
        self.second = self.first if tied else torch.nn.Linear(64, 64)
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for n, layer in enumerate((self.first, self.second)):
            if self.inside == "no checkpoint" or self.inside == ("the second", "the first")[n]:
                x = layer(x).tanh()
            elif self.inside == "nested":
                whole = lambda y, layer=layer: checkpoint(layer, y, use_reentrant=True).tanh()  # noqa: E731
                x = checkpoint(whole, x, use_reentrant=True)
            else:
                x = checkpoint(layer, x, use_reentrant=self.inside != "not reentrant").tanh()
        return x


def given_inputs() -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize(
    "inside", ["no checkpoint", "not reentrant", "reentrant", "the first", "the second", "nested"]
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_backward_steps_a_parameter_once_or_is_refused(tied: bool, inside: str) -> None:
    """Reentrant checkpoints call backward() inside of backward(), and bring a weight that is used in several
    places (two of them; one of them and outside, before or after) several gradients.
    """
    # Torch notices by itself where the weight of a layer outside has been stepped before that layer's turn.
    refused = r"in several pieces.*use_reentrant=False|modified by an inplace operation"
    in_pieces = tied and inside in ("reentrant", "the first", "the second", "nested")
    plain, released = Segments(tied, inside), Segments(tied, inside)
    first, second = (flash.FlashAdamW(n.parameters()) for n in (plain, released))
    with flash_release(released, second):
        for _ in range(3):
            plain(given_inputs()).sum().backward()
            first.step()
            first.zero_grad()
            loss = released(given_inputs()).sum()
            if in_pieces:
                with pytest.raises(RuntimeError, match=refused):
                    loss.backward()
            else:
                loss.backward()
                second.step()
                second.zero_grad()
    if not in_pieces:
        support.assert_same(first, second)


@pytest.mark.parametrize("inside", ["no checkpoint", "not reentrant", "reentrant", "nested"])
def test_each_backward_is_a_step(inside: str) -> None:
    """Of one loss again, of two losses, and of one while another graph is kept:
    none is mistaken for a piece."""
    network = Segments(False, inside)
    optimizer = flash.FlashAdamW(network.parameters())
    counts = []
    with flash_release(network, optimizer):
        y = network(given_inputs())
        kept = network(given_inputs())
        for _ in range(3):
            if inside in ("no checkpoint", "not reentrant"):  # which notice that the weights have changed
                network(given_inputs()).sum().backward(retain_graph=True)
            else:
                y.sum().backward(retain_graph=True)
            counts.append({int(state["step"]) for state in optimizer.state.values()})
        if inside in ("reentrant", "nested"):
            kept.sum().backward()
        else:
            network(given_inputs()).sum().backward()
        torch.autograd.backward(network(given_inputs()).sum())
    assert counts == [{1}, {2}, {3}]
    assert {int(state["step"]) for state in optimizer.state.values()} == {5}


def test_pieces_that_pre_step_refuses_are_no_steps() -> None:
    network = Segments(True, "reentrant")
    optimizer = flash.FlashAdamW(network.parameters())
    with flash_release(network, optimizer, pre_step=lambda *_: False):
        network(given_inputs()).sum().backward()
    assert not optimizer.state


def test_a_thread_of_the_engine_knows_its_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's nodes run in a thread of the engine's, whose stack begins there.
    Here a thread stands in for it."""
    from flashoptim_cpp import backward as backward_calls

    found: list[bool] = []
    p = torch.nn.Parameter(torch.ones(3))

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 1

        @staticmethod
        def backward(_: Any, grad: torch.Tensor) -> torch.Tensor:
            def inside() -> None:
                for _ in range(2):
                    (p.detach().clone().requires_grad_() * 1).sum().backward()

            thread = threading.Thread(target=inside)
            thread.start()
            thread.join()
            return grad

    def hook(_: torch.Tensor) -> None:
        found.append(backward_calls.is_second_step(p))

    whole = backward_calls._calls_on

    def of_engine(frame: Any) -> Any:
        calls, _ = whole(frame)
        while frame is not None and frame.f_code.co_name != "inside":
            frame = frame.f_back
        return calls, frame is not None

    x = torch.ones(3, requires_grad=True)
    original = torch.Tensor.backward

    def backward(self: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self.register_hook(hook)
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(backward_calls, "_calls_on", of_engine)
    for _ in range(2):
        Outer.apply(x).sum().backward()
    assert found == [False, True, False, True]


def test_threads_of_autograd_step_one_after_another() -> None:
    """A model over two GPUs has a thread of autograd for each of them."""
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    inside: list[bool] = []
    met: list[int] = []

    def note(_: torch.Tensor, __: dict[str, Any]) -> bool:
        inside.append(True)
        time.sleep(0.01)
        met.append(len(inside))
        inside.pop()
        return True

    def release(p: torch.nn.Parameter) -> None:
        for hook in p._post_accumulate_grad_hooks.values():
            hook(p)

    with flash_release(network, optimizer, pre_step=note):
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        threads = [threading.Thread(target=release, args=(p,)) for p in network.parameters()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert met == [1] * 4
    assert [int(optimizer.state[p]["step"]) for p in network.parameters()] == [1] * 4


def test_the_optimizer_may_go_first() -> None:
    """After remove() nothing of it is left in the model."""
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    handle = flash.enable_gradient_release(network, optimizer)
    before = [p.detach().clone() for p in network.parameters()]
    handle.remove()
    del optimizer, handle
    gc.collect()
    support.loss_of(network, 0).backward()
    for p, q in zip(network.parameters(), before, strict=True):
        assert torch.equal(p, q)
        assert p.grad is not None


def test_scalers_and_wrappers_are_refused_as_the_authors_do() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    with pytest.raises(NotImplementedError, match=r"[Ss]caler"):
        flash.enable_gradient_release(network, optimizer, grad_scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("of_another", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_of_another_package_is_refused(of_another: Any) -> None:
    network = support.model()
    optimizer = of_another(network.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=rf"{of_another.__name__}.*flashoptim_cpp"):
        flash.enable_gradient_release(network, optimizer)
    support.loss_of(network, 0).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_accumulation_and_release_exclude_each_other() -> None:
    """Two backwards are two steps: whoever accumulates must know."""
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    with flash_release(network, optimizer):
        support.loss_of(network, 0).backward()
        support.loss_of(network, 1).backward()
    assert int(optimizer.state[network.get_parameter("0.weight")]["step"]) == 2
