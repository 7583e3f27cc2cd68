"""Wrappers that take over an optimizer's class, attributes or both: each method may be
called on them or on the optimizer.

What a user loses if these fail: clipping, a loaded state or a schedule, without a word, as
Lightning, Fabric and others wrap.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch


class Copying:
    """As Lightning's: the attributes of the optimizer at that time, and its class."""

    def __init__(self, optimizer: Any) -> None:
        self.__dict__ = {
            key: value for key, value in optimizer.__dict__.items() if key not in ("step", "__del__")
        }
        self.__class__ = type("Copying" + type(optimizer).__name__, (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


class Forwarding:
    """As Fabric's: the class of the optimizer; what it does not have it asks the optimizer for."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Forwarding" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class Delegating:
    """Another class, which asks the optimizer for everything."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class Inheriting(Copying):
    """The attributes alone, and the methods of the optimizer's class, step() too."""

    def step(self, closure: Any = None) -> Any:
        return type(self._optimizer).step(self, closure)


WRAPPERS: list[Callable[[Any], Any]] = [Copying, Forwarding, Delegating, Inheriting]


class World:
    """A model and its optimizer; `on` says which of the two is called."""

    def __init__(self, wrap: Callable[[Any], Any] | None) -> None:
        self.network = support.model()
        self.optimizer: Any = flash.FlashAdamW(self.network.named_parameters(), lr=1e-2)
        self.step = 0
        self.backward()
        self.optimizer.step()
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        self.wrapper = self.optimizer if wrap is None else wrap(self.optimizer)

    def backward(self) -> None:
        self.network.zero_grad()
        support.loss_of(self.network, self.step).backward()
        self.step += 1


def clip(world: World, on: Any) -> Any:
    world.backward()
    return on.clip_grad_norm_(1e-3)


def clip_and_clear(world: World, on: Any) -> Any:
    world.backward()
    world.optimizer.clip_grad_norm_(1e-3)
    on.zero_grad()
    world.backward()


def clear(world: World, on: Any) -> Any:
    on.zero_grad()
    return [p.grad is None for p in world.network.parameters()]


def step(world: World, on: Any) -> Any:
    world.backward()
    on.step()


def step_one(world: World, on: Any) -> Any:
    world.backward()
    on.step_param(world.network.get_parameter("0.weight"))


def load(world: World, on: Any) -> Any:
    on.load_state_dict(world.saved)


def replace_states(world: World, on: Any) -> Any:
    """What one writes into the states the other steps."""
    on.state[world.network.get_parameter("0.weight")]["step"].fill_(5)


def save(world: World, on: Any) -> Any:
    return sorted(on.state_dict()["state"][0])


def unscale_in_the_step(world: World, on: Any) -> Any:
    """As GradScaler does where the flag says so."""
    world.backward()
    for p in world.network.parameters():
        assert p.grad is not None
        p.grad.mul_(64)
    on.grad_scale, on.found_inf = torch.tensor(64.0), torch.tensor(0.0)
    world.optimizer.step()
    del on.grad_scale, on.found_inf
    return hasattr(world.optimizer, "grad_scale"), getattr(on, "found_inf", "none")


def scaler(world: World, on: Any) -> Any:
    """With fp16 weights or fused=True it leaves unscaling to the step."""
    world.optimizer.param_groups[0]["fused"] = True
    made = torch.amp.GradScaler("cpu", init_scale=64.0)
    world.network.zero_grad()
    made.scale(support.loss_of(world.network, 40)).backward()
    made.step(on)
    made.update()
    return made.get_scale()


def add_group(world: World, on: Any) -> Any:
    on.add_param_group({"params": [("more", torch.nn.Parameter(torch.ones(64, 96)))], "lr": 0.5})
    world.optimizer.param_groups[1]["params"][0].grad = torch.ones(64, 96)


def release(world: World, on: Any) -> Any:
    handle = flash.enable_gradient_release(world.network, on)
    with pytest.raises(RuntimeError, match="released"):
        world.optimizer.clip_grad_norm_(1.0)
    world.backward()
    handle.remove()


def masters(world: World, on: Any) -> Any:
    kept = on.get_fp32_model_state_dict(world.network)
    on.set_fp32_model_state_dict(world.network, {key: value * 1.001 for key, value in kept.items()})
    with on.full_precision(world.network):
        return world.network.get_parameter("0.weight").sum().item()


def refresh(world: World, on: Any) -> Any:
    on.refresh_masters()
    on.recompute_param_stats()


def reports(world: World, on: Any) -> Any:
    return on.memory_report(), on.bad_elements(), float(on.grad_norm()), on._step_supports_amp_scaling


def exchange(world: World, on: Any) -> Any:
    """In the lists of one, which are those of the other."""
    new = torch.nn.Parameter(torch.ones(96, dtype=torch.bfloat16))
    on.param_groups[0]["params"][1] = new
    new.grad = torch.ones_like(new)
    world.optimizer.step()
    return on.bad_elements()


CALLS = [
    clip,
    clip_and_clear,
    clear,
    step,
    step_one,
    load,
    replace_states,
    save,
    unscale_in_the_step,
    scaler,
    add_group,
    release,
    masters,
    refresh,
    reports,
    exchange,
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=[wrap.__name__ for wrap in WRAPPERS])
@pytest.mark.parametrize("call", CALLS, ids=[call.__name__ for call in CALLS])
def test_a_wrapper_and_its_optimizer_are_one(call: Callable[[World, Any], Any], wrap: Any) -> None:
    """The call made on the wrapper, what comes after on the optimizer, and the other way round."""
    if wrap is Delegating and call in (unscale_in_the_step, scaler, release):
        pytest.skip("nobody can set an attribute through it, for torch.optim neither")
    plain = World(None)
    expected = call(plain, plain.optimizer)
    plain.optimizer.step()
    plain.backward()
    plain.optimizer.step()
    for on_wrapper in (True, False):
        world = World(wrap)
        found = call(world, world.wrapper if on_wrapper else world.optimizer)
        other = world.optimizer if on_wrapper else world.wrapper
        other.step()
        world.backward()
        other.step()
        assert str(found) == str(expected)
        support.assert_same(plain.optimizer, world.optimizer)
        assert set(other.state) == set(world.optimizer.state)


@pytest.mark.parametrize("released", [False, True])
def test_schedulers_do_not_warn_that_a_wrapper_steps(released: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrap in (None, *WRAPPERS):
            world = World(wrap)
            schedule = torch.optim.lr_scheduler.ExponentialLR(world.optimizer, 0.5)
            if released and wrap is not Delegating:
                flash.enable_gradient_release(world.network, world.wrapper)
            world.backward()
            if not released or wrap is Delegating:
                world.wrapper.step()
            schedule.step()
            assert world.wrapper.param_groups[0]["lr"] == 5e-3


def test_a_scheduler_still_warns_where_nothing_stepped() -> None:
    optimizer = flash.FlashAdamW(support.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with pytest.warns(UserWarning, match=r"lr_scheduler\.step\(\)` before"):
        schedule.step()
