"""The optimizers' arithmetic with nothing compressed, against torch.optim and Lion's paper in float64.

What a user loses if these fail: training with ours is not training with the optimizer of that name.
"""

from __future__ import annotations

import math
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import ADAM, ADAMW, ADAN, ADEMAMIX, LION, SGD, SGDW, Rule, Tensor

EPS = 2.0**-24  # half a unit in the last place of fp32, relative
STEPS = 50


def moving_gradients(given: list[torch.nn.Parameter], step: int) -> list[Tensor]:
    """Magnitudes from 0.5 to 1.5 of either sign, so that no root of a variance is
    small against its gradients."""
    made = torch.Generator().manual_seed(step)
    signed = (torch.rand(p.shape, generator=made) * 2 - 1 for p in given)
    return [(value.sign() * 0.5 + value).to(p.dtype) for p, value in zip(given, signed, strict=True)]


def bound(weights: list[torch.nn.Parameter], lr: float, largest: float) -> float:
    """What rounding can do in STEPS steps.

    A step rounds a weight at most four times, and its update carries an error of less than 128
    roundings of the largest update: a moment sums up to 1/(1 - beta) = 10 terms, three
    roundings each, a variance's likewise.
    """
    magnitude = support.largest(float(w.detach().abs().max()) for w in weights) + STEPS * lr * largest
    return STEPS * EPS * (4 * magnitude + 128 * lr * largest)


TORCH_CASES: list[tuple[str, Rule, dict[str, Any], float]] = [
    # name, rule, options, the largest update in units of lr
    ("sgd", SGD, {"momentum": 0.0}, 1.5),
    ("sgd-l2", SGD, {"momentum": 0.0, "weight_decay": 0.1}, 2.0),
    ("momentum", SGD, {}, 15.0),
    ("dampening", SGD, {"dampening": 0.3}, 15.0),
    ("nesterov", SGD, {"nesterov": True}, 15.0),
    ("momentum-l2", SGD, {"weight_decay": 0.1}, 20.0),
    ("adam", ADAM, {"weight_decay": 0.0}, 3.0),
    ("adam-l2", ADAM, {}, 3.0),
    ("adam-eps", ADAM, {"eps": 1e-3, "betas": (0.8, 0.95)}, 3.0),
    ("adamw", ADAMW, {}, 3.0),
    ("adamw-no-decay", ADAMW, {"weight_decay": 0.0}, 3.0),
    ("adamw-betas", ADAMW, {"betas": (0.7, 0.9)}, 3.0),
    ("adamw-maximize", ADAMW, {"maximize": True}, 3.0),
    ("momentum-maximize", SGD, {"maximize": True}, 15.0),
]
UNCOMPRESSED: list[dict[str, Any]] = [
    {"format": "fp32"},
    {"quantize": False},
    {"quantize": False, "format": "paper"},
]


# `paper` dampens the first step too, as its authors do.
AS_TORCH = [
    pytest.param(rule, options, largest, storage, id=f"{name}-{storage.get('format', 'native')}")
    for name, rule, options, largest in TORCH_CASES
    for storage in UNCOMPRESSED
    if not (storage.get("format") == "paper" and options.get("dampening"))
]


@pytest.mark.parametrize(("rule", "options", "largest", "storage"), AS_TORCH)
def test_as_torch_in_fp32(
    rule: Rule, options: dict[str, Any], largest: float, storage: dict[str, Any]
) -> None:
    ours = support.parameters(torch.float32)
    exact = support.clones(ours, torch.float64)
    optimizer = rule(ours, **{**options, **storage})
    reference = rule.reference(exact, **options)
    for step in range(STEPS):
        for p, q, g in zip(ours, exact, moving_gradients(ours, step), strict=True):
            p.grad, q.grad = g, g.double()
        optimizer.step()
        reference.step()
    allowed = bound(ours, rule.options["lr"], largest)
    moved = rule.options["lr"] * STEPS
    assert allowed < 0.01 * moved, "the bound would not notice a wrong step"
    for p, q in zip(ours, exact, strict=True):
        assert float((p.detach().double() - q.detach()).abs().max()) <= allowed


@pytest.mark.parametrize("rule", [SGD, ADAM, ADAMW], ids=support.ids([SGD, ADAM, ADAMW]))
def test_moments_are_those_of_torch(rule: Rule) -> None:
    ours = support.parameters(torch.float32)
    theirs = support.clones(ours)
    optimizer, reference = rule(ours, format="fp32"), rule.reference(theirs)
    support.run(optimizer, ours, 20)
    support.run(reference, theirs, 20)
    for p, q in zip(ours, theirs, strict=True):
        assert int(optimizer.state[p]["step"]) == 20
        for name in rule.moments:
            ours_now, theirs_now = optimizer.state[p][name].materialize(), reference.state[q][name]
            # 20 terms of at most the largest moment's size, a few roundings each, in either of the two.
            allowed = 200 * EPS * float(theirs_now.abs().max())
            torch.testing.assert_close(ours_now, theirs_now, rtol=0, atol=allowed)


def exact_step(
    rule: str, w: Tensor, m: Tensor, g: Tensor, lr: float, decay: float, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Lion (arXiv 2302.06675, algorithm 2) and SGD with decoupled decay, in float64."""
    if rule == "lion":
        beta1, beta2 = options.get("betas", (0.9, 0.99))
        c = beta1 * m + (1 - beta1) * g
        return w * (1 - decay) - lr * c.sign(), beta2 * m + (1 - beta2) * g
    m = options["momentum"] * m + g
    update = g + options["momentum"] * m if options.get("nesterov") else m
    return w * (1 - decay) - lr * update, m


DECOUPLED: list[tuple[str, Rule, dict[str, Any], float]] = [
    ("lion", LION, {}, 1.0),
    ("lion-betas", LION, {"betas": (0.5, 0.75)}, 1.0),
    ("lion-decoupled-lr", LION, {"decouple_lr": True, "weight_decay": 1e-3}, 1.0),
    ("sgdw", SGDW, {}, 15.0),
    ("sgdw-nesterov", SGDW, {"nesterov": True}, 30.0),
    ("sgdw-decoupled-lr", SGDW, {"decouple_lr": True, "weight_decay": 1e-3}, 15.0),
]


@pytest.mark.parametrize(
    ("rule", "options", "largest"), [case[1:] for case in DECOUPLED], ids=[c[0] for c in DECOUPLED]
)
def test_lion_and_sgdw_in_float64(rule: Rule, options: dict[str, Any], largest: float) -> None:
    options = {**rule.options, **options}
    ours = support.parameters(torch.float32)
    optimizer = rule.make(ours, **options, format="fp32")
    exact = [p.detach().double() for p in ours]
    momenta = [torch.zeros_like(w) for w in exact]
    for step in range(STEPS):
        lr = options["lr"] * (1 - step / (2 * STEPS))  # so that lr and its first value differ
        decay = options["weight_decay"] * (lr / options["lr"] if options.get("decouple_lr") else lr)
        optimizer.param_groups[0]["lr"] = lr
        for i, (p, g) in enumerate(zip(ours, moving_gradients(ours, step), strict=True)):
            p.grad = g
            kind = "lion" if rule is LION else "sgdw"
            exact[i], momenta[i] = exact_step(kind, exact[i], momenta[i], g.double(), lr, decay, options)
        optimizer.step()
    allowed = bound(ours, options["lr"], largest)
    for p, q in zip(ours, exact, strict=True):
        assert float((p.detach().double() - q).abs().max()) <= allowed


class ExactAdemamix:
    """AdEMAMix as its authors' code computes it (github.com/apple/ml-ademamix), in float64."""

    def __init__(self, w: Tensor) -> None:
        self.w, self.fast, self.slow, self.squares = w, *(torch.zeros_like(w) for _ in range(3))

    def step(self, g: Tensor, t: int, lr: float, decay: float, options: dict[str, Any]) -> None:
        beta1, beta2, final = options.get("betas", (0.9, 0.999, 0.9999))
        alpha, beta3 = options.get("alpha", 2.0), final
        if t < options.get("alpha_warmup", 0):
            alpha *= t / options["alpha_warmup"]
        if t < options.get("beta3_warmup", 0):
            half_lives = [math.log(0.5) / math.log(beta + 1e-8) - 1 for beta in (beta1, final)]
            done = t / options["beta3_warmup"]
            beta3 = 0.5 ** (1 / ((1 - done) * half_lives[0] + done * half_lives[1] + 1))
        self.fast = beta1 * self.fast + (1 - beta1) * g
        self.squares = beta2 * self.squares + (1 - beta2) * g * g
        self.slow = beta3 * self.slow + (1 - beta3) * g
        root = (self.squares / (1 - beta2**t)).sqrt() + 1e-8
        self.w = self.w * (1 - decay) - lr * (self.fast / (1 - beta1**t) + alpha * self.slow) / root


class ExactAdan:
    """Adan as its authors' code computes it (github.com/sail-sg/Adan), in float64."""

    def __init__(self, w: Tensor) -> None:
        self.w, self.mean, self.difference, self.squares = w, *(torch.zeros_like(w) for _ in range(3))
        self.last: Tensor | None = None

    def step(self, g: Tensor, t: int, lr: float, decay: float, options: dict[str, Any]) -> None:
        beta1, beta2, beta3 = options.get("betas", (0.98, 0.92, 0.99))
        change = torch.zeros_like(g) if self.last is None else g - self.last
        self.last = g
        self.mean = beta1 * self.mean + (1 - beta1) * g
        self.difference = beta2 * self.difference + (1 - beta2) * change
        self.squares = beta3 * self.squares + (1 - beta3) * (g + beta2 * change) ** 2
        root = (self.squares / (1 - beta3**t)).sqrt() + 1e-8
        ahead = beta2 * self.difference / (1 - beta2**t)
        update = lr * (self.mean / (1 - beta1**t) + ahead) / root
        if options.get("no_prox"):
            self.w = self.w * (1 - decay) - update
        else:
            self.w = (self.w - update) / (1 + decay)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (ADEMAMIX, {}),
        (ADEMAMIX, {"alpha": 8.0, "betas": (0.8, 0.95, 0.99), "alpha_warmup": 30, "beta3_warmup": 20}),
        (ADEMAMIX, {"decouple_lr": True, "weight_decay": 1e-3}),
        (ADAN, {}),
        (ADAN, {"no_prox": True}),
        (ADAN, {"betas": (0.9, 0.8, 0.95), "decouple_lr": True, "weight_decay": 1e-3}),
    ],
)
def test_ademamix_and_adan_in_float64(rule: Rule, options: dict[str, Any]) -> None:
    options = {**rule.options, **options}
    ours = support.parameters(torch.float32)
    optimizer = rule.make(ours, **options, format="fp32")
    exact = [(ExactAdemamix if rule is ADEMAMIX else ExactAdan)(p.detach().double()) for p in ours]
    late = 5  # the last parameter gets its first gradient later
    for step in range(STEPS):
        lr = options["lr"] * (1 - step / (2 * STEPS))
        decay = options["weight_decay"] * (lr / options["lr"] if options.get("decouple_lr") else lr)
        optimizer.param_groups[0]["lr"] = lr
        for p, reference, g in zip(ours, exact, moving_gradients(ours, step), strict=True):
            p.grad = None if p is ours[-1] and step < late else g
            t = step + 1 - (late if p is ours[-1] else 0)
            if t > 0:
                reference.step(g.double(), t, lr, decay, options)
        optimizer.step()
    allowed = bound(
        ours, options["lr"], 20.0
    )  # alpha times the slow mean, or the difference of two gradients
    for p, reference in zip(ours, exact, strict=True):
        assert float((p.detach().double() - reference.w).abs().max()) <= allowed


def test_adamw_with_decoupled_lr() -> None:
    """weight_decay * lr / initial_lr is AdamW with weight_decay / initial_lr, for any lr."""
    ours = support.parameters(torch.float32)
    theirs = support.clones(ours, torch.float64)
    optimizer = flash.FlashAdamW(ours, lr=1e-3, weight_decay=1e-3, decouple_lr=True, format="fp32")
    reference = torch.optim.AdamW(theirs, lr=1e-3, weight_decay=1.0)
    for step in range(STEPS):
        for group in (optimizer.param_groups[0], reference.param_groups[0]):
            group["lr"] = 1e-3 * (1 - step / (2 * STEPS))
        for p, q, g in zip(ours, theirs, moving_gradients(ours, step), strict=True):
            p.grad, q.grad = g, g.double()
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert float((p.detach().double() - q.detach()).abs().max()) <= bound(ours, 1e-3, 3.0)


@pytest.mark.parametrize("rule", support.RULES, ids=support.ids(support.RULES))
@pytest.mark.parametrize("number_format", ["native", "paper", "fp32"])
def test_training_lowers_the_loss(rule: Rule, number_format: str) -> None:
    dtype = torch.float32 if number_format == "fp32" else torch.bfloat16
    network = support.model(dtype)
    more = {"lr": 0.1} if rule is support.SGD_PLAIN else {}
    optimizer = rule(network.parameters(), format=number_format, **more)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = support.loss_of(network, step, dtype)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
