"""Groups whose lists are changed by hand between two calls: each call works on what the lists contain then.

What a user loses if these fail: parameters that are pruned, split, grown or unfrozen while
they train, as torch.optim allows.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch

Tensor = torch.Tensor
Parameter = torch.nn.Parameter


def make(shape: tuple[int, ...] = (64, 96), seed: int = 0) -> Parameter:
    return Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


class Side:
    """An optimizer, ours or torch's, of two groups of two parameters; and every
    parameter that it ever had."""

    def __init__(self, cls: Any, **options: Any) -> None:
        self.known = [make(seed=n) for n in range(4)]
        groups = [{"params": self.known[:2], "lr": 0.5}, {"params": self.known[2:], "lr": 0.125}]
        self.optimizer = cls(groups, **options)
        self.spare = [make(seed=10), make((80, 64), seed=11)]

    def lists(self) -> list[Any]:
        return [group["params"] for group in self.optimizer.param_groups]

    def everything(self) -> list[Parameter]:
        return [*self.known, *self.spare]

    def give_gradients(self, seed: int) -> None:
        for n, p in enumerate(self.everything()):
            made = torch.Generator().manual_seed(100 * seed + n)
            p.grad = torch.randn(p.shape, generator=made).to(p.dtype)


def exchange(side: Side) -> None:
    side.lists()[0][0] = side.spare[0]


def exchange_for_another_shape(side: Side) -> None:
    side.lists()[1][1] = side.spare[1]


def new_list(side: Side) -> None:
    side.optimizer.param_groups[0]["params"] = [side.spare[0], side.known[1]]


def all_new(side: Side) -> None:
    side.optimizer.param_groups[0]["params"] = list(side.spare)


def a_tuple(side: Side) -> None:
    side.optimizer.param_groups[0]["params"] = (side.spare[0], side.known[0])


def append(side: Side) -> None:
    side.lists()[1].append(side.spare[0])


def append_and_delete(side: Side) -> None:
    side.lists()[0].append(side.spare[0])
    del side.lists()[0][0]


def pop_and_insert(side: Side) -> None:
    side.lists()[1].insert(0, side.lists()[0].pop())


def change_places(side: Side) -> None:
    first, second = side.lists()
    first[0], second[0] = second[0], first[0]


def change_places_by_new_lists(side: Side) -> None:
    a, b, c, d = side.known
    side.optimizer.param_groups[0]["params"], side.optimizer.param_groups[1]["params"] = [c, b], [a, d]


def change_whole_lists(side: Side) -> None:
    groups = side.optimizer.param_groups
    groups[0]["params"], groups[1]["params"] = groups[1]["params"], groups[0]["params"]


def reverse(side: Side) -> None:
    side.lists()[0].reverse()


def replace_a_group(side: Side) -> None:
    side.optimizer.param_groups[0] = {**side.optimizer.param_groups[0], "lr": 0.25}


def remove_a_group(side: Side) -> None:
    del side.optimizer.param_groups[0]


def add_a_group(side: Side) -> None:
    side.optimizer.param_groups.append(
        {**side.optimizer.param_groups[0], "params": [side.spare[0]], "lr": 1.0}
    )


def reverse_the_groups(side: Side) -> None:
    side.optimizer.param_groups.reverse()


def other_groups(side: Side) -> None:
    first, second = side.optimizer.param_groups
    side.optimizer.param_groups = [{**second, "params": [side.spare[0]]}, first]


def empty_a_group(side: Side) -> None:
    side.lists()[0].clear()


def take_out_and_back(side: Side) -> None:
    """A step is made in between."""
    taken = side.lists()[0].pop(0)
    side.give_gradients(50)
    side.optimizer.step()
    side.lists()[1].append(taken)


def drop_the_state_too(side: Side) -> None:
    side.optimizer.state.pop(side.known[0], None)
    side.lists()[0][0] = side.spare[0]


def hand_the_state_on(side: Side) -> None:
    """As Gaussian splatting does where it splits points: the state goes to the new parameter."""
    state = side.optimizer.state.pop(side.known[0])
    side.lists()[0][0] = side.spare[0]
    side.optimizer.state[side.spare[0]] = state


EDITS: list[Callable[[Side], None]] = [
    exchange,
    exchange_for_another_shape,
    new_list,
    all_new,
    a_tuple,
    append,
    append_and_delete,
    pop_and_insert,
    change_places,
    change_places_by_new_lists,
    change_whole_lists,
    reverse,
    replace_a_group,
    remove_a_group,
    add_a_group,
    reverse_the_groups,
    other_groups,
    empty_a_group,
    take_out_and_back,
    drop_the_state_too,
    hand_the_state_on,
]


def step(side: Side) -> Any:
    side.optimizer.step()


def clip_and_step(side: Side) -> Any:
    if isinstance(side.optimizer, flash.FlashOptimizer):
        norm = side.optimizer.clip_grad_norm_(1.0)
    else:
        norm = torch.nn.utils.clip_grad_norm_([p for members in side.lists() for p in members], 1.0)
    side.optimizer.step()
    return round(float(norm), 3)


def step_one_by_one(side: Side) -> Any:
    if not isinstance(side.optimizer, flash.FlashOptimizer):
        side.optimizer.step()
        return
    for p in side.everything():
        if any(p is member for members in side.lists() for member in members):
            side.optimizer.step_param(p)
        else:
            with pytest.raises(ValueError, match="not managed"):
                side.optimizer.step_param(p)


def zero_grad(side: Side) -> Any:
    side.optimizer.zero_grad()
    return [p.grad is None for p in side.everything()]


def save(side: Side) -> Any:
    for p in list(side.optimizer.state):  # torch cannot save the state of a parameter that is in no group
        if not any(p is member for members in side.lists() for member in members):
            del side.optimizer.state[p]
    saved = side.optimizer.state_dict()
    return sorted(saved["state"]), [group["params"] for group in saved["param_groups"]]


def save_and_load(side: Side) -> Any:
    found = save(side)
    side.optimizer.load_state_dict(side.optimizer.state_dict())
    side.optimizer.step()
    return found


CALLS = [step, clip_and_step, step_one_by_one, zero_grad, save, save_and_load]


@pytest.mark.parametrize("edit", EDITS, ids=[edit.__name__ for edit in EDITS])
def test_every_call_is_about_the_lists_as_they_are(edit: Callable[[Side], None]) -> None:
    """Beside torch.optim: the same parameters move in the same way, have states, are cleared and saved."""
    for call in CALLS:
        sides = [Side(flash.FlashAdamW, format="fp32"), Side(torch.optim.AdamW)]
        found = []
        for side in sides:
            side.give_gradients(0)
            side.optimizer.step()
            if isinstance(side.optimizer, flash.FlashOptimizer):
                side.optimizer.bad_elements()  # asks for names, which must not be kept
            edit(side)
            side.give_gradients(1)
            found.append(call(side))
        what = f"{edit.__name__}, {call.__name__}"
        assert found[0] == found[1], what
        for p, q in zip(*(side.everything() for side in sides), strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=2e-6), what
            if "step" in (reference := sides[1].optimizer.state.get(q, {})):
                assert int(sides[0].optimizer.state[p]["step"]) == int(reference["step"]), what


@pytest.mark.parametrize("edit", EDITS, ids=[edit.__name__ for edit in EDITS])
def test_released_gradients_follow_the_lists(edit: Callable[[Side], None]) -> None:
    """What has a hook is stepped in backward(), what came by hand in step(); the rest keeps its gradient."""
    sides = [Side(flash.FlashAdamW, format="fp32"), Side(torch.optim.AdamW)]
    holder = torch.nn.ParameterList(sides[0].known)
    handle = flash.enable_gradient_release(holder, sides[0].optimizer)
    for side in sides:
        side.give_gradients(0)
        side.optimizer.step()
        edit(side)
        for p in side.everything():
            p.grad = None
    weights = [torch.randn(p.shape) for p in sides[0].everything()]
    for side in sides:
        loss = torch.stack([(p * w).sum() for p, w in zip(side.everything(), weights, strict=True)])
        loss.sum().backward()
        side.optimizer.step()
        side.optimizer.zero_grad()
    for p, q in zip(*(side.everything() for side in sides), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)
        assert (p.grad is None) == (q.grad is None)
    handle.remove()


@pytest.mark.filterwarnings("ignore:gradients were NaN")
def test_names_follow_the_lists() -> None:
    """Where names and parameters are not as many, numbers stand in for the names."""
    given = support.parameters(shapes=[(64, 96)] * 4)
    optimizer = flash.FlashAdamW([(f"layer{n}", p) for n, p in enumerate(given)])
    group = optimizer.param_groups[0]
    spoilt = torch.full_like(given[3], torch.nan)

    def bad() -> dict[str | int, int]:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
        given[3].grad = spoilt
        optimizer.step()
        return {key: count // spoilt.numel() for key, count in optimizer.bad_elements().items() if count}

    assert bad() == {"layer3": 1}
    del group["params"][0]
    assert bad() == {2: 2}
    del group["param_names"][0]
    assert bad() == {"layer3": 3}
    group["params"].insert(0, make(seed=7))
    given[3].grad = given[3].detach().to_sparse()
    with pytest.raises(RuntimeError, match="gradient of parameter 3 is sparse"):
        optimizer.step()
    group["params"].reverse()
    with pytest.raises(RuntimeError, match="gradient of parameter 0 is sparse"):
        optimizer.step()
    optimizer.param_groups.insert(0, {**group, "params": [make(seed=8)], "param_names": None})
    with pytest.raises(RuntimeError, match="gradient of parameter 1 is sparse"):
        optimizer.step()
    assert len(optimizer.bad_elements()) == 5


NEXT = {
    "step": lambda o: o.step(),
    "zero_grad": lambda o: o.zero_grad(),
    "state_dict": lambda o: o.state_dict(),
    "load_state_dict": lambda o: o.load_state_dict(o.state_dict()),
    "grad_norm": lambda o: o.grad_norm(),
    "bad_elements": lambda o: o.bad_elements(),
    "refresh_masters": lambda o: o.refresh_masters(),
}


@pytest.mark.filterwarnings("ignore:gradients were NaN")
@pytest.mark.parametrize("pop", ["before", "after"])
@pytest.mark.parametrize("call", NEXT)
def test_what_is_in_no_group_is_freed(call: str, pop: str) -> None:
    """As soon as its state is gone, too, and the optimizer is called for
    anything. torch lets go of the same."""
    for in_place in (True, False):
        given = support.parameters(shapes=[(64, 96)] * 3)
        optimizer = flash.FlashAdamW(given)
        for released in (False, True):  # tables of many and of one
            if released:
                flash.enable_gradient_release(torch.nn.ParameterList(given), optimizer).remove()
                optimizer.step_param(given[0])
            else:
                support.run(optimizer, given, 4, scale=float("nan") if call == "step" else 1.0)
        group, new = optimizer.param_groups[0], make(seed=5)
        moments = weakref.ref(optimizer.state[given[0]]["exp_avg"].codes)
        if in_place:
            group["params"][0] = new
        else:
            group["params"] = [new, *given[1:]]
        if pop == "after":
            NEXT[call](optimizer)
        optimizer.state.pop(given[0], None)
        gone = weakref.ref(given[0])
        given[0] = new
        new.grad = torch.ones_like(new)
        NEXT[call](optimizer)
        gc.collect()
        assert gone() is None
        assert moments() is None
        support.run(optimizer, given, 1)


def test_states_that_were_dropped_are_freed() -> None:
    """The parameters stay; what one of them had is let go of with the next list that is stepped."""
    given = support.parameters(shapes=[(64, 96)] * 3)
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    moments = weakref.ref(optimizer.state[given[0]]["exp_avg"].codes)
    given[0].grad = None
    given[0].requires_grad_(False)
    optimizer.state.pop(given[0])
    optimizer.step()
    gc.collect()
    assert moments() is None


def test_a_parameter_that_comes_back_goes_on() -> None:
    """Out of the groups with its state kept, and back in a group that stores states in another way."""
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 3)
    before = support.masters(optimizer, given)[0]
    taken = optimizer.param_groups[0]["params"].pop(0)
    optimizer.step()
    optimizer.add_param_group({"params": [taken], "format": "paper", "lr": 0.0})
    taken.grad = torch.zeros_like(taken)
    optimizer.step()
    assert int(optimizer.state[taken]["step"]) == 4
    after = support.masters(optimizer, given)[0]
    # 24 bits of either format resolve 1.6e-5 of a weight (docs/formats.md).
    torch.testing.assert_close(before, after, rtol=2 * 1.6e-5, atol=0)


def test_a_list_is_read_in_linear_time() -> None:
    """Nothing is asked of each parameter about all the others: counted in comparisons of the lists."""
    asked = 0

    class Counting(list[Any]):
        def __getitem__(self, n: Any) -> Any:
            nonlocal asked
            asked += 1
            return super().__getitem__(n)

    given: list[Tensor] = [Parameter(torch.ones(1)) for _ in range(500)]
    optimizer = flash.FlashSGD(given)
    optimizer.param_groups[0]["params"] = Counting(given)
    handle = flash.enable_gradient_release(torch.nn.ParameterList(given), optimizer)
    torch.cat(list(given)).sum().backward()
    optimizer.step()
    handle.remove()
    assert asked <= 8 * len(given)


def test_a_parameter_that_stands_twice_is_named() -> None:
    """Torch would step it twice; a fused step writes all weights at once."""
    p, q = support.parameters(shapes=[(64, 96)] * 2)
    optimizer = flash.FlashAdamW([("p", p), ("q", q)])
    optimizer.param_groups[0]["params"].append(p)
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    with pytest.raises(ValueError, match="stands in the groups more than once"):
        optimizer.step()
    assert torch.equal(p, before)
