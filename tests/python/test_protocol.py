"""What PyTorch expects of every optimizer: groups, closures, learning rates, schedulers, loss scaling.

What a user loses if these fail: a training loop written for torch.optim.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from flashoptim_cpp.states import States, states_of
from support import ADAMW, RULES, SGD, Rule


def test_every_option_holds_per_group() -> None:
    given = support.parameters()
    options: list[dict[str, Any]] = [
        {},
        {"lr": 1e-4, "weight_decay": 0.0, "betas": (0.8, 0.9), "eps": 1e-6},
        {"maximize": True},
    ]
    together = flash.FlashAdamW([{"params": [p], **o} for p, o in zip(given, options, strict=False)])
    alone = support.clones(given[:3])
    apart = [flash.FlashAdamW([p], **o) for p, o in zip(alone, options, strict=False)]
    support.run(together, given[:3], 4)
    for step in range(4):
        for p, g in zip(alone, support.gradients(alone, step), strict=True):
            p.grad = g
        for optimizer in apart:
            optimizer.step()
    for p, q in zip(given, alone, strict=False):
        assert support.same_bits(p, q)


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_groups_added_later_are_stepped(rule: Rule) -> None:
    given = support.parameters()
    optimizer = rule(given[:2])
    support.run(optimizer, given[:2], 2)
    optimizer.add_param_group({"params": given[2:], "lr": 1e-4})
    before = [p.detach().clone() for p in given]
    support.run(optimizer, given, 30, first=2, scale=1.0)
    assert all(support.has_moved(q, p) for p, q in zip(given, before, strict=True))
    assert optimizer.param_groups[1]["lr"] == 1e-4
    fresh = rule(support.clones(given[:2]))
    fresh.add_param_group({"params": support.clones(given[2:]), "lr": 1e-4})
    fresh.load_state_dict(optimizer.state_dict())
    assert len(fresh.param_groups) == 2


def test_named_parameters_are_taken() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in network.named_parameters()]
    support.loss_of(network, 0).backward()
    optimizer.step()
    assert set(optimizer.bad_elements()) <= {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_closures_are_called_with_gradients_enabled(rule: Rule) -> None:
    network = support.model()
    optimizer = rule(network.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = support.loss_of(network, 0)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    last = first
    for _ in range(30):
        last = optimizer.step(closure)
    assert last.item() < first.item()
    assert optimizer.step() is None


def test_maximize_is_the_step_of_the_negated_gradient() -> None:
    up, down = support.parameters(), support.parameters()
    first, second = flash.FlashAdamW(up, maximize=True), flash.FlashAdamW(down)
    for step in range(3):
        for p, q, g in zip(up, down, support.gradients(up, step), strict=True):
            p.grad, q.grad = g, -g
        first.step()
        second.step()
    for p, q in zip(up, down, strict=True):
        assert support.same_bits(p, q)
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, -q.grad), "gradients are the caller's"


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_lr_may_be_a_tensor(rule: Rule) -> None:
    ours, theirs = support.parameters(), support.parameters()
    lr = torch.tensor(1e-3, dtype=torch.float64)
    first, second = rule(ours, lr=lr), rule(theirs, lr=1e-3)
    support.run(first, ours, 2)
    support.run(second, theirs, 2)
    lr.fill_(2e-3)
    second.param_groups[0]["lr"] = 2e-3
    support.run(first, ours, 2, first=2)
    support.run(second, theirs, 2, first=2)
    for p, q in zip(ours, theirs, strict=True):
        assert support.same_bits(p, q)
    kept = first.state_dict()["param_groups"][0]["lr"]
    assert float(kept) == 2e-3


SCHEDULERS: dict[str, Any] = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=10),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, base_lr=1e-4, max_lr=1e-2, step_size_up=4),
    "warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            torch.optim.lr_scheduler.ConstantLR(o, 1.0),
        ],
        milestones=[3],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=support.ids([SGD, ADAMW]))
def test_schedulers_drive_ours_as_torchs(name: str, rule: Rule) -> None:
    ours, theirs = support.parameters(torch.float32), support.parameters(torch.float32)
    optimizer, reference = rule(ours, format="fp32"), rule.reference(theirs)
    if rule is ADAMW:
        # Where betas change within the first steps, the bound of Adam's update
        # (docs/formats.md) may differ from torch.
        for given, stepper in ((ours, optimizer), (theirs, reference)):
            support.run(stepper, given, 200, first=100)
    schedules = [SCHEDULERS[name](optimizer), SCHEDULERS[name](reference)]
    for step in range(10):
        for given, stepper in ((ours, optimizer), (theirs, reference)):
            support.run(stepper, given, 1, first=step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SequentialLR passes epochs
            for schedule in schedules:
                if step < 9:
                    schedule.step()
        for key in ("lr", "momentum", "betas"):
            assert optimizer.param_groups[0].get(key) == reference.param_groups[0].get(key)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)


def test_initial_lr_survives_a_scheduler_and_a_checkpoint() -> None:
    ours = support.parameters()
    optimizer = flash.FlashAdamW(ours, lr=1e-3, decouple_lr=True)
    assert optimizer.param_groups[0]["initial_lr"] == 1e-3
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    support.run(optimizer, ours, 1)
    schedule.step()
    other = flash.FlashAdamW(support.clones(ours), lr=7e-3, decouple_lr=True)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 5e-4
    assert other.param_groups[0]["initial_lr"] == 1e-3


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"fused": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_grad_scaler(unscale: bool, options: dict[str, Any], dtype: torch.dtype) -> None:
    """The bits of the unscaled step, whoever unscales: GradScaler, or the step where `fused` is asked for."""
    if dtype == torch.float16 and unscale:
        pytest.skip("GradScaler refuses to unscale fp16")
    ours, theirs = support.parameters(dtype), support.parameters(dtype)
    optimizer, plain = flash.FlashAdamW(ours, **options), flash.FlashAdamW(theirs)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for step in range(3):
        for p, q, g in zip(ours, theirs, support.gradients(ours, step), strict=True):
            p.grad, q.grad = g * 1024, (g * 1024) / 1024  # fp16 rounds small ones
        scaler.scale(torch.ones(()))  # as the loss would be
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        plain.step()
    if dtype == torch.float16:  # the step unscales in fp32
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-5)
    else:
        support.assert_same(optimizer, plain)

    before = support.snapshot(optimizer)
    for p, g in zip(ours, support.gradients(ours, 3), strict=True):
        p.grad = g
    assert ours[0].grad is not None
    ours[0].grad[0, 0] = float("inf")
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    support.assert_same(before, optimizer)
    assert scaler.get_scale() == 512.0
    assert sum(optimizer.bad_elements().values()) == 0, "found_inf is the scaler's business"


def test_unscaling_is_the_steps_only_where_it_is_asked_for() -> None:
    """Lightning and others do not clip where the flag is set; GradScaler cannot unscale fp16."""

    def flag(*parameters: torch.nn.Parameter, **options: Any) -> Any:
        return flash.FlashAdamW(parameters, **options)._step_supports_amp_scaling

    bf16, fp32, fp16 = (support.parameters(t)[0] for t in (torch.bfloat16, torch.float32, torch.float16))
    assert not any(
        (flag(bf16), flag(fp32), flag(bf16, fp32), flag(bf16, fused=None), flag(bf16, fused=False))
    )
    assert all((flag(bf16, fused=True), flag(fp32, fused=True), flag(fp16), flag(fp32, fp16, fused=False)))
    for rule in RULES:
        optimizer = rule(support.parameters())
        assert not optimizer._step_supports_amp_scaling
        assert optimizer.defaults["fused"] is None
        assert rule(support.parameters(), fused=True)._step_supports_amp_scaling

    optimizer = flash.FlashAdamW([bf16])
    asked = flash.FlashAdamW([{"params": [bf16], "fused": True}])
    assert asked._step_supports_amp_scaling
    # Whose state it was says nothing about this optimizer.
    optimizer.load_state_dict(asked.state_dict())
    asked.load_state_dict(optimizer.state_dict())
    assert not optimizer._step_supports_amp_scaling
    assert asked._step_supports_amp_scaling
    theirs = torch.optim.AdamW([fp32.clone().detach().requires_grad_()], fused=True)
    optimizer.load_state_dict(theirs.state_dict())
    assert not optimizer._step_supports_amp_scaling
    for made in (optimizer, asked):
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), copy.copy(made)):
            assert other._step_supports_amp_scaling == made._step_supports_amp_scaling
    optimizer.add_param_group({"params": [fp32]})
    assert not optimizer._step_supports_amp_scaling
    optimizer.add_param_group({"params": [fp16]})
    assert optimizer._step_supports_amp_scaling
    del optimizer.param_groups[2]
    assert not optimizer._step_supports_amp_scaling
    optimizer.param_groups[1]["fused"] = True
    assert optimizer._step_supports_amp_scaling

    class Mine(flash.FlashAdamW):
        def __init__(self, params: Any, **more: Any) -> None:
            super().__init__(params, **{"lr": 1e-2, **more})

    assert not Mine([bf16])._step_supports_amp_scaling
    assert Mine([bf16], fused=True)._step_supports_amp_scaling


def test_clipping_by_torch_and_by_ours() -> None:
    ours, theirs = support.parameters(torch.float32), support.parameters(torch.float32)
    optimizer, plain = flash.FlashAdamW(ours), flash.FlashAdamW(theirs)
    for given in (ours, theirs):
        for p, g in zip(given, support.gradients(given, 0), strict=True):
            p.grad = g
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.25)
    before = [p.grad.clone() for p in ours if p.grad is not None]
    norm = optimizer.grad_norm()
    torch.testing.assert_close(norm.float().reshape(()), expected, rtol=1e-6, atol=0.0)
    assert float(optimizer.clip_grad_norm_(0.25)) == float(norm)
    optimizer.step()
    plain.step()
    for p, q, g in zip(ours, theirs, before, strict=True):
        # The coefficient is rounded once in another place; what is stored moves by a code or an ulp at most.
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        assert p.grad is not None
        assert torch.equal(p.grad, g), "gradients are the caller's"
    support.run(optimizer, ours, 1, first=1)
    support.run(plain, theirs, 1, first=1)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # clipping holds for one step


def test_single_parameters_are_clipped_too() -> None:
    whole, single = support.parameters(), support.parameters()
    first, second = flash.FlashAdamW(whole), flash.FlashAdamW(single)
    for given, optimizer in ((whole, first), (single, second)):
        for p, g in zip(given, support.gradients(given, 0), strict=True):
            p.grad = g
        optimizer.clip_grad_norm_(0.01)
    first.step()
    for p in single:
        second.step_param(p)
    support.assert_same(first, second)


@pytest.mark.parametrize("end", ["zero_grad", "bad gradient", "refused gradient"])
def test_clipping_is_for_the_gradients_whose_norm_it_was(end: str) -> None:
    """Another attempt with the same gradients is clipped, as where torch clips
    them in place; others are not."""
    ours, theirs = support.parameters(), support.parameters()
    optimizer, plain = (flash.FlashAdamW(given, nonfinite="error") for given in (ours, theirs))
    for p, g in zip(ours, support.gradients(ours, 0), strict=True):
        p.grad = g
    for p, g in zip(theirs, support.gradients(theirs, 0), strict=True):
        p.grad = g
    optimizer.clip_grad_norm_(0.01)
    if end == "zero_grad":
        optimizer.zero_grad()
    elif end == "bad gradient":
        ours[0].grad = torch.full_like(ours[0], torch.nan)
        with pytest.raises(flash.NonFiniteError):
            optimizer.step()
    else:
        plain.clip_grad_norm_(0.01)
        whole, ours[0].grad = ours[0].grad, torch.ones_like(ours[0]).to_sparse()
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
        ours[0].grad = whole
    if end != "refused gradient":
        for p, g in zip(ours, support.gradients(ours, 0), strict=True):
            p.grad = g
    optimizer.step()
    plain.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def replace(given: list[torch.nn.Parameter], gradients: list[torch.Tensor | None]) -> None:
    for p, gradient in zip(given, gradients, strict=True):
        p.grad = gradient


FORGOTTEN: dict[str, Any] = {
    "by the model": lambda model, given: model.zero_grad(),
    "one by one": lambda model, given: replace(given, [None] * len(given)),
    "by others": lambda model, given: replace(given, [torch.zeros_like(p) for p in given]),
}


@pytest.mark.parametrize("call", ["step", "step_param"])
@pytest.mark.parametrize("way", FORGOTTEN)
def test_gradients_that_are_gone_take_their_coefficient_with_them(way: str, call: str) -> None:
    """A loop that leaves out a step and clears its gradients where the optimizer is not told of it."""
    model, other = support.model(), support.model()
    given, theirs = list(model.parameters()), list(other.parameters())
    optimizer, plain = flash.FlashAdamW(given), flash.FlashAdamW(theirs)
    for step in range(2):
        for network in (model, other):
            support.loss_of(network, step).backward()
        if step == 0:
            optimizer.clip_grad_norm_(1e-3)
            FORGOTTEN[way](model, given)
            FORGOTTEN[way](other, theirs)
    for chosen, parameters in ((optimizer, given), (plain, theirs)):
        if call == "step":
            chosen.step()
        else:
            for p in parameters:
                chosen.step_param(p)
    support.assert_same(optimizer, plain)


def test_a_coefficient_is_not_copied_without_its_gradients() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    for p, g in zip(given, support.gradients(given, 0), strict=True):
        p.grad = g
    optimizer.clip_grad_norm_(1e-3)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert states_of(twin).kept.clip_coefficient() is None
    assert states_of(optimizer).kept.clip_coefficient() is not None


@pytest.mark.parametrize("norm", [-1.0, float("nan")])
def test_what_is_no_norm_is_refused(norm: float) -> None:
    optimizer = flash.FlashAdamW(support.parameters())
    with pytest.raises(ValueError, match="max_norm is"):
        optimizer.clip_grad_norm_(norm)


def test_zero_grad() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in given)
    optimizer.zero_grad()
    assert all(p.grad is None for p in given)


def test_check_numerics() -> None:
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashLion([p], lr=1e-9, check_numerics=True, master_weight_bits=24)
    p.grad = torch.ones_like(p)
    with pytest.raises(flash.NumericsError, match=r"learning rate|Learning rate|lr"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-2
    optimizer.step()
    with torch.no_grad():
        p.mul_(1e6)
    optimizer.step()  # the measurement is cached
    optimizer.recompute_param_stats()
    with pytest.raises(flash.NumericsError):
        optimizer.step()
    assert issubclass(flash.NumericsError, RuntimeError)


def of_two_devices(monkeypatch: pytest.MonkeyPatch, given: list[torch.nn.Parameter]) -> Any:
    """An optimizer of two groups that steps the second as if it lay on another device."""
    make = States._make_tables

    def make_two(self: Any, tensors: list[torch.Tensor], groups: list[Any]) -> Any:
        first = sum(group is groups[0] for group in groups)
        rest = make(self, tensors[first:], groups[first:]) if first < len(tensors) else []
        return make(self, tensors[:first], groups[:first]) + rest

    monkeypatch.setattr(States, "_make_tables", make_two)
    optimizer = flash.FlashAdamW([{"params": given[:2]}, {"params": given[2:]}])
    support.run(optimizer, given, 2)
    assert [len(tables) for tables in states_of(optimizer).kept.tables.values()] == [2]
    return optimizer


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"lr": -1.0}, "learning_rate is -1: it must be finite and not negative"),
        ({"lr": float("nan")}, "learning_rate is nan"),
        ({"lr": torch.tensor([1e-3, 1e-3])}, "lr is a tensor of 2 elements"),
        ({"weight_decay": float("inf")}, "group 1: Invalid weight_decay value: inf"),
        ({"betas": (0.9, 1.5)}, "group 1: Invalid beta parameter at index 1: 1.5; it must be at least 0"),
    ],
)
def test_options_out_of_range_for_one_device_step_no_other(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], refusal: str
) -> None:
    given, same = support.parameters(), support.parameters()
    optimizer, reference = of_two_devices(monkeypatch, given), of_two_devices(monkeypatch, same)
    group = optimizer.param_groups[1]
    before, former = support.snapshot(optimizer), dict(group)
    group.update(options)
    for _ in range(2):
        with pytest.raises(ValueError, match=refusal):
            optimizer.step()
        support.assert_same(before, optimizer)
    group.update(former)
    for each, its in ((optimizer, given), (reference, same)):
        support.run(each, its, 1, first=2)
        each.param_groups[1]["lr"] = torch.tensor(1e-2)
        support.run(each, its, 2, first=3)
    support.assert_same(optimizer, reference)


def test_a_gradient_that_one_device_refuses_steps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    given = support.parameters()
    optimizer = of_two_devices(monkeypatch, given)
    before = support.snapshot(optimizer)
    given[3].grad = given[3].detach().to_sparse()
    with pytest.raises(RuntimeError, match="gradient of parameter 3 is sparse"):
        optimizer.step()
    support.assert_same(before, optimizer)


def test_a_device_where_nothing_is_stepped_keeps_back_the_others() -> None:
    given = [*support.parameters()[:2], torch.nn.Parameter(torch.ones(8, 64, device="meta"))]
    optimizer = flash.FlashAdamW(given, lr=1e-2)
    support.run(optimizer, given[:2], 1)
    before = [p.detach().clone() for p in given[:2]]
    for p in given:
        p.grad = torch.ones_like(p)
    with pytest.raises(
        ValueError, match="parameter 2 is on meta, where this build of flashoptim_cpp steps nothing"
    ):
        optimizer.step()
    assert all(support.same_bits(p, q) for p, q in zip(given[:2], before, strict=True))
    assert int(optimizer.state[given[0]]["step"]) == 1
