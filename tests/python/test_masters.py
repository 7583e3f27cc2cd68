"""The full-precision weights behind narrow ones: splitting, joining, reading, writing, averaging.

What a user loses if these fail: the bits that the corrections are paid for.
"""

from __future__ import annotations

import copy
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from support import RULES, Rule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

NARROW = [torch.bfloat16, torch.float16]


def values() -> torch.Tensor:
    """fp32 numbers of an ordinary layer, with zeros, ties and powers of two among them."""
    usual = torch.randn(5000) * 0.05
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 1.00390625, 1.001953125, 255.0, 1e-3, 65000.0])
    return torch.cat([usual, special])


@pytest.mark.parametrize("number_format", ["native", "paper"])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize(("bytewidth", "kind"), [(3, torch.int8), (4, torch.int16)])
def test_split_and_joined(number_format: str, dtype: torch.dtype, bytewidth: int, kind: torch.dtype) -> None:
    exact = values().view(501, 10)
    narrow = exact.to(dtype)
    correction = flash.compute_ecc_bits(exact, narrow, bytewidth, format=number_format)
    assert correction.dtype == kind
    assert correction.shape == exact.shape
    joined = flash.reconstruct_fp32_param(narrow, correction, format=number_format)
    assert joined.dtype == torch.float32
    assert joined.shape == exact.shape
    # Half a unit of the narrow type is 2^-9 (2^-12) of a weight; a correction divides it by 127 (32767) at
    # least, and a weight that was rounded to even rather than away can exceed its range by one step.
    unit = (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11) / (127 if bytewidth == 3 else 32767)
    smallest = torch.finfo(dtype).tiny  # below it the narrow type's spacing stays the same
    assert float(((joined - exact).abs() / exact.abs().clamp_min(smallest)).max()) <= unit * 1.1


def test_32_bits_over_bfloat16_restore_every_weight_exactly() -> None:
    exact = torch.cat([values(), torch.tensor([1e38, -1e-30, 3.0e-39])])
    narrow = exact.bfloat16()
    ties = (
        exact.view(torch.int32) & 0xFFFF
    ) == 0x8000  # rounded to even by torch, away from zero by the split
    correction = flash.compute_ecc_bits(exact, narrow, 4)
    joined = flash.reconstruct_fp32_param(narrow, correction)
    assert torch.equal(joined[~ties], exact[~ties])
    # The default of master_bytewidth is 4, that of format is native.
    assert torch.equal(correction, flash.compute_ecc_bits(exact, narrow, master_bytewidth=4, format="native"))


def test_wrong_arguments_are_refused() -> None:
    exact = torch.randn(8)
    for arguments in (
        (exact.double(), exact.bfloat16(), 4),
        (exact, exact, 4),
        (exact, exact.bfloat16(), 2),
        (exact, exact.bfloat16(), 5),
        (exact, exact[:4].bfloat16(), 4),
    ):
        with pytest.raises(ValueError, match=r".+"):
            flash.compute_ecc_bits(*arguments)
    narrow, correction = exact.bfloat16(), torch.zeros(8, dtype=torch.int8)
    for pair in (
        (exact, correction),
        (narrow, correction.int()),
        (narrow, correction[:4]),
        (narrow.double(), correction),
    ):
        with pytest.raises(ValueError, match=r".+"):
            flash.reconstruct_fp32_param(*pair)
    with pytest.raises(ValueError, match="bf8"):
        flash.reconstruct_fp32_param(narrow, correction, format="bf8")


@pytest.mark.parametrize("number_format", ["native", "paper"])
@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_fp32_state_dict_goes_round(number_format: str, bits: int, dtype: torch.dtype) -> None:
    network = support.model(dtype)
    network.register_buffer("count", torch.tensor(7))
    optimizer = flash.FlashAdamW(network.parameters(), master_weight_bits=bits, format=number_format)
    support.run(optimizer, list(network.parameters()), 4)
    taken = optimizer.get_fp32_model_state_dict(network)
    assert set(taken) == set(network.state_dict())
    for name, p in network.named_parameters():
        assert taken[name].dtype == torch.float32
        error_bits = optimizer.state[p]["error_bits"]
        joined = flash.reconstruct_fp32_param(p.detach(), error_bits, format=number_format)
        assert support.same_bits(joined, taken[name])
    before = copy.deepcopy(taken)
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(0.123)
    optimizer.set_fp32_model_state_dict(network, taken)
    for name, value in optimizer.get_fp32_model_state_dict(network).items():
        # Encoding again changes nothing in native; in `paper` up to 1.5e-5 of a
        # 24-bit weight (docs/formats.md).
        lost = 0.0 if number_format == "native" else 1.6e-5 if bits == 24 else 1e-6
        torch.testing.assert_close(value, before[name], rtol=lost, atol=0)
    twin = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 4))
    twin.register_buffer("count", torch.tensor(0.0))
    twin.load_state_dict(taken)


def test_setting_takes_fp32_only_and_leaves_out_what_is_missing() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 1)
    taken = optimizer.get_fp32_model_state_dict(network)
    before = support.snapshot(optimizer)
    with pytest.raises(ValueError, match=r"0\.weight"):
        optimizer.set_fp32_model_state_dict(network, {**taken, "0.weight": taken["0.weight"].bfloat16()})
    support.assert_same(before, optimizer)
    optimizer.set_fp32_model_state_dict(network, {"2.bias": torch.ones(4)})
    assert torch.equal(network.get_parameter("2.bias").detach().float(), torch.ones(4))
    assert torch.equal(optimizer.get_fp32_model_state_dict(network)["0.weight"], taken["0.weight"])


def test_a_model_in_full_precision_starts_without_loss() -> None:
    """set_fp32_model_state_dict of a trained fp32 model, before the first step:
    the corrections hold the rest."""
    trained = support.model(torch.float32, seed=4)
    network = support.model(seed=5)
    optimizer = flash.FlashAdamW(network.parameters(), master_weight_bits=32, weight_decay=0.0, lr=0.0)
    support.run(optimizer, list(network.parameters()), 1, scale=0.0)
    optimizer.set_fp32_model_state_dict(network, trained.state_dict())
    taken = optimizer.get_fp32_model_state_dict(network)
    for name, value in trained.state_dict().items():
        assert support.same_bits(taken[name], value)
    support.run(optimizer, list(network.parameters()), 1, scale=0.0)
    for name, value in optimizer.get_fp32_model_state_dict(network).items():
        assert support.same_bits(taken[name], value)


@pytest.mark.parametrize("rule", RULES, ids=support.ids(RULES))
def test_full_precision_for_a_while(rule: Rule) -> None:
    network, twin = support.model(), support.model()
    first, second = rule(network.parameters()), rule(twin.parameters())
    for optimizer, module in ((first, network), (second, twin)):
        support.run(optimizer, list(module.parameters()), 3)
    before = support.snapshot(first)
    masters = first.get_fp32_model_state_dict(network)
    with flash.full_precision(network, first):
        for name, p in network.named_parameters():
            assert p.dtype == torch.float32
            assert support.same_bits(p, masters[name])
        assert network(torch.randn(2, 64)).dtype == torch.float32
    support.assert_same(before, first)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    support.run(first, list(network.parameters()), 2, first=3)
    support.run(second, list(twin.parameters()), 2, first=3)
    support.assert_same(first, second)


def test_buffers_are_in_full_precision_too() -> None:
    """A product of a bfloat16 buffer and an fp32 weight would be an error; what is written
    into a buffer inside is kept."""
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)).bfloat16()
    network[0].register_buffer("mask", torch.eye(64, dtype=torch.bfloat16))
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 1)
    mask, mean = network[0].mask, network[1].running_mean
    assert isinstance(mask, torch.Tensor)
    assert isinstance(mean, torch.Tensor)
    before = mean.clone()
    with optimizer.full_precision(network):
        assert (torch.ones(2, 64) @ mask).dtype == torch.float32
        network(torch.ones(4, 64))
    assert mask.dtype == mean.dtype == torch.bfloat16
    assert torch.equal(mask, torch.eye(64, dtype=torch.bfloat16))
    assert support.has_moved(before, mean)


def test_full_precision_ends_after_an_error_too() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 2)
    before = support.snapshot(optimizer)
    with pytest.raises(ZeroDivisionError), flash.full_precision(network, optimizer):
        raise ZeroDivisionError
    support.assert_same(before, optimizer)


def test_what_is_written_in_full_precision_is_kept() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters(), master_weight_bits=32)
    support.run(optimizer, list(network.parameters()), 2)
    written = torch.randn(96, 64)
    with flash.full_precision(network, optimizer), torch.no_grad():
        network.get_parameter("0.weight").copy_(written)
    taken = optimizer.get_fp32_model_state_dict(network)
    assert support.same_bits(taken["0.weight"], written)
    assert network.get_parameter("0.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_averages_are_of_the_masters(kind: str) -> None:
    """Averages of bfloat16 weights would lose everything below 2^-9; the masters' do not."""
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters(), lr=1e-4)
    function: Any = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if kind == "ema" else {}
    with flash.full_precision(network, optimizer):
        average = AveragedModel(network, **function)
    exact: dict[str, torch.Tensor] = {}
    for step in range(5):
        support.run(optimizer, list(network.parameters()), 1, first=step)
        with flash.full_precision(network, optimizer):
            average.update_parameters(network)
        for name, value in optimizer.get_fp32_model_state_dict(network).items():
            if kind == "swa":
                exact[name] = exact.get(name, torch.zeros(()).double()) + value.double() / 5
            else:
                old = exact.get(name, value.double())
                exact[name] = 0.9 * old + 0.1 * value.double()
    for name, p in average.module.named_parameters():
        assert p.dtype == torch.float32
        # Five roundings of fp32 each.
        torch.testing.assert_close(p.detach().double(), exact[name], rtol=10 * 2.0**-24, atol=1e-9)
    with flash.full_precision(network, optimizer):
        average(torch.randn(2, 64))


def test_export_of_the_masters(tmp_path: Any) -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 2)
    with flash.full_precision(network, optimizer):
        torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in optimizer.get_fp32_model_state_dict(network).items():
        assert support.same_bits(loaded[name], value)
