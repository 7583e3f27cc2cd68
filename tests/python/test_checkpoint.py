"""Saving and resuming: exact by default, in plain tensors on request, to and from torch.optim.

What a user loses if these fail: the days of training before an interruption.
"""

from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import ADAM, ADAMW, RULES, SGD, Rule


def through_a_file(value: Any) -> Any:
    """What torch.load gives back, with the restrictions that protect a user from strangers' files."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


STORAGE: list[dict[str, Any]] = [
    {},
    {"master_weight_bits": 32},
    {"master_weight_bits": 16},
    {"master_weight_bits": None},
    {"quantize": False},
    {"format": "paper"},
    {"format": "paper", "master_weight_bits": 32},
]


@pytest.mark.filterwarnings("ignore:.*master_weight_bits=None:UserWarning")
@pytest.mark.parametrize("storage", STORAGE, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_resume_is_exact(rule: Rule, storage: dict[str, Any]) -> None:
    straight = support.parameters()
    first = rule(straight, **storage)
    support.run(first, straight, 3)
    saved = through_a_file({"weights": [p.detach() for p in straight], "optimizer": first.state_dict()})
    resumed = [torch.nn.Parameter(p) for p in saved["weights"]]
    second = rule(resumed, **storage)
    second.load_state_dict(saved["optimizer"])
    support.assert_same(first, second)
    support.run(first, straight, 3, first=3)
    support.run(second, resumed, 3, first=3)
    support.assert_same(first, second)


def test_resume_with_model_and_scheduler() -> None:
    """The usual loop, interrupted; the model's weights are loaded before the optimizer's state."""

    def made() -> tuple[torch.nn.Module, Any, Any]:
        network = support.model()
        optimizer = flash.FlashAdamW(network.parameters(), lr=1e-2)
        return network, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)

    def train(network: torch.nn.Module, optimizer: Any, schedule: Any, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            support.loss_of(network, step).backward()
            optimizer.step()
            schedule.step()

    straight, broken = made(), made()
    train(*straight, range(10))
    train(*broken, range(5))
    saved = through_a_file([part.state_dict() for part in broken])
    resumed = made()
    train(*resumed, range(2))  # so that there is something to replace
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    train(*resumed, range(5, 10))
    support.assert_same(straight[1], resumed[1])


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_keys_are_those_of_the_authors(rule: Rule) -> None:
    given = support.parameters(shapes=((64, 96),))
    optimizer = rule(given)
    support.run(optimizer, given, 2)
    assert set(optimizer.state[given[0]]) == {"step", "error_bits", *rule.moments}
    saved = optimizer.state_dict()
    expected = {"step", "error_bits"}
    for name in rule.moments:
        is_plain = name in support.PLAIN_MOMENTS
        expected |= {name} if is_plain else {f"{name}::quantized", f"{name}::scales"}
    assert set(saved["state"][0]) == expected
    assert int(saved["state"][0]["step"]) == 2
    group = saved["param_groups"][0]
    assert group["format"] == "native"
    assert group["master_weight_bits"] == 24
    assert group["quantize"] is True
    assert group["params"] == [0]


def test_a_state_dict_costs_no_copy_of_what_it_saves() -> None:
    """Codes and corrections in it are the optimizer's own memory, as torch's are."""
    given = support.parameters(shapes=((256, 256),))
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 1)
    first, second = optimizer.state_dict()["state"][0], optimizer.state_dict()["state"][0]
    for key in ("error_bits", "exp_avg::quantized", "exp_avg_sq::quantized"):
        assert first[key].data_ptr() == second[key].data_ptr(), key


def test_loaded_state_is_the_optimizers_own() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 2)
    saved = optimizer.state_dict()
    first, second = (flash.FlashAdamW(support.clones(given)) for _ in range(2))
    first.load_state_dict(saved)
    second.load_state_dict(saved)
    support.run(first, first.param_groups[0]["params"], 2, first=2)
    support.run(second, second.param_groups[0]["params"], 2, first=2)
    support.assert_same(first, second)


@pytest.mark.parametrize("rule", [SGD, ADAM, ADAMW], ids=support.ids([SGD, ADAM, ADAMW]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_state_goes_to_torch_and_back(rule: Rule, dtype: torch.dtype) -> None:
    ours = support.parameters(dtype)
    optimizer = rule(ours, compress_state_dict=False)
    support.run(optimizer, ours, 5)
    plain = through_a_file(optimizer.state_dict())
    for name, index in itertools.product(rule.moments, range(len(ours))):
        value = plain["state"][index][name]
        assert value.shape == ours[index].shape
        assert value.dtype == torch.float32
        assert torch.equal(value, optimizer.state[ours[index]][name].materialize())
    theirs = support.clones(ours)
    reference = rule.reference(theirs)
    reference.load_state_dict(plain)
    for name, (p, q) in itertools.product(rule.moments, zip(ours, theirs, strict=True)):
        exact = optimizer.state[p][name].materialize()
        assert torch.equal(reference.state[q][name].float(), exact.to(dtype).float())
    support.run(reference, theirs, 2, first=5)
    assert all(bool(p.isfinite().all()) for p in theirs)

    back = support.clones(theirs)
    again = rule(back)
    again.load_state_dict(through_a_file(reference.state_dict()))
    for name, (p, q) in itertools.product(rule.moments, zip(back, theirs, strict=True)):
        moment, exact = again.state[p][name], reference.state[q][name].float()
        if not moment.is_quantized():
            assert torch.equal(moment.materialize(), exact)
            continue
        # A code of the square law is at most 1/127 of the group's largest value wide
        # (1/127 of its root, twice, for v).
        error = (moment.materialize() - exact).abs().max() / exact.abs().max()
        assert float(error) < 2 / 127
    if rule is not SGD:
        assert all(int(again.state[p]["step"]) == 7 for p in back)
    support.run(again, back, 1, first=7)


def test_state_dict_fp32() -> None:
    """The same on request, from an optimizer that saves codes by default."""
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 3)
    plain = optimizer.state_dict_fp32()
    reference = torch.optim.AdamW(support.clones(given))
    reference.load_state_dict(plain)
    assert "exp_avg::quantized" in optimizer.state_dict()["state"][0]
    assert plain["state"][0]["exp_avg"].dtype == torch.float32


def test_plain_state_resumes_within_a_code() -> None:
    """Encoding again costs nothing where no scale changes: the corrections come back
    exactly, so do fp32 moments."""
    given = support.parameters()
    optimizer = flash.FlashAdamW(given, compress_state_dict=False)
    support.run(optimizer, given, 3)
    other = support.clones(given)
    resumed = flash.FlashAdamW(other, compress_state_dict=False)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for a, b in zip(support.masters(optimizer, given), support.masters(resumed, other), strict=True):
        assert support.same_bits(a, b)
    for p, q in zip(given, other, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            exact, again = optimizer.state[p][name].materialize(), resumed.state[q][name].materialize()
            assert float((exact - again).abs().max() / exact.abs().max()) < 2 / 127


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_state_without_a_step_starts_at_0_where_the_rule_needs_none(rule: Rule) -> None:
    given = support.parameters()
    optimizer = rule(given)
    support.run(optimizer, given, 2)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        del state["step"]
    other = rule(support.clones(given))
    if other.rule.divides_by_root:  # bias corrections that begin anew would go unnoticed
        with pytest.raises(ValueError, match="step is missing"):
            other.load_state_dict(saved)
        return
    other.load_state_dict(saved)
    for p in other.param_groups[0]["params"]:
        assert int(other.state[p]["step"]) == 0


def test_a_fresh_and_a_partly_trained_optimizer_are_saved_too() -> None:
    given = support.parameters()
    fresh = flash.FlashAdamW(given)
    other = flash.FlashAdamW(support.clones(given))
    support.run(other, other.param_groups[0]["params"], 2)
    other.load_state_dict(fresh.state_dict())
    assert not any(other.state.values())
    given[0].grad = torch.ones_like(given[0])
    fresh.step()
    again = flash.FlashAdamW(support.clones(given))
    again.load_state_dict(through_a_file(fresh.state_dict()))
    support.assert_same(fresh, again)
    support.run(again, again.param_groups[0]["params"], 1)


def test_options_of_the_groups_come_from_the_checkpoint() -> None:
    given = support.parameters()
    saved = flash.FlashAdamW(given, lr=3e-4, betas=(0.8, 0.9), weight_decay=0.3, eps=1e-6)
    other = flash.FlashAdamW(support.clones(given))
    other.load_state_dict(through_a_file(saved.state_dict()))
    group = other.param_groups[0]
    assert (group["lr"], tuple(group["betas"])) == (3e-4, (0.8, 0.9))
    assert (group["weight_decay"], group["eps"]) == (0.3, 1e-6)


def test_safetensors_holds_a_state(tmp_path: Path) -> None:
    """Nothing in a state is anything but a tensor of an ordinary dtype."""
    safetensors = pytest.importorskip("safetensors.torch")
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 2)
    saved = optimizer.state_dict()
    flat = {f"{i}.{k}": v.contiguous() for i, state in saved["state"].items() for k, v in state.items()}
    safetensors.save_file(flat, tmp_path / "state.safetensors")
    loaded = safetensors.load_file(tmp_path / "state.safetensors")
    state: dict[int, dict[str, Any]] = {}
    for name, value in loaded.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    other = flash.FlashAdamW(support.clones(given))
    other.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    support.assert_same(optimizer, other)


def test_resuming_warns_of_nothing() -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = flash.FlashAdamW(support.clones(given))
        other.load_state_dict(through_a_file(optimizer.state_dict()))
        support.run(other, other.param_groups[0]["params"], 1, first=2)


def test_parameters_in_another_order_are_found_by_name() -> None:
    """Two of one shape: taken by place, each would go on with the moments of the
    other, and nobody would notice."""
    given, others = (support.parameters(shapes=((64, 96), (64, 96), (130, 40))) for _ in range(2))
    names = ("first", "second", "third")
    optimizer = flash.FlashAdamW(list(zip(names, given, strict=True)))
    support.run(optimizer, given, 2)
    saved = through_a_file(optimizer.state_dict())
    turned = flash.FlashAdamW(list(zip(names, others, strict=True))[::-1])
    turned.load_state_dict(saved)
    assert turned.param_groups[0]["param_names"] == list(names[::-1])
    for p, q in zip(given, others, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert support.same_bits(optimizer.state[p][key].quantized, turned.state[q][key].quantized)
    renamed = flash.FlashAdamW([(f"module.{name}", q) for name, q in zip(names, others, strict=True)])
    renamed.load_state_dict(saved)  # other names: by place
    assert renamed.param_groups[0]["param_names"][0] == "module.first"
    for p, q in zip(given, others, strict=True):
        assert support.same_bits(
            optimizer.state[p]["exp_avg"].quantized, renamed.state[q]["exp_avg"].quantized
        )


def test_a_learning_rate_in_a_tensor_stays_that_tensor() -> None:
    """Whoever holds it, a graph or a scheduler, goes on reading and writing what the optimizer steps with."""
    lr = torch.tensor([1e-2])
    optimizer: Any = flash.FlashAdamW(support.parameters(), lr=lr)
    for given, wanted in ((torch.tensor(3e-3), 3e-3), (5e-3, 5e-3)):
        saved = flash.FlashAdamW(support.parameters(), lr=given).state_dict()
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr.tolist() == torch.tensor([wanted]).tolist()
    plain: Any = flash.FlashAdamW(support.parameters(), lr=1e-3)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["lr"] is not lr
    assert float(plain.param_groups[0]["lr"]) == float(lr)
