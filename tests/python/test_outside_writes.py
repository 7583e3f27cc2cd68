"""Weights that somebody else writes, exchanges or casts between steps keep what is below their precision.

What a user loses if these fail: a clamp, a mask or an average in the loop, and training below bfloat16's
precision stops without a word.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch

Tensor = torch.Tensor
Network = Any  # a module with a weight

# Stored bfloat16 weights are 1, and their spacing is 2^-7 above it and 2^-8 below; 40 updates of 2^-13 below
# it arrive only in the corrections until then.
UPDATES, UPDATE = 40, 2.0**-13


class Layer(torch.nn.Module):
    """One weight of ones, which a lookup or a product could read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(64, 96, dtype=torch.bfloat16))


def clamp(layer: Network) -> None:
    layer.weight.clamp_(-4.0, 4.0)


def clamp_through_data(layer: Network) -> None:
    layer.weight.data.clamp_(-4.0, 4.0)


def mask(layer: Network) -> None:
    layer.weight.mul_(torch.ones_like(layer.weight))


def sharpness_aware(layer: Network) -> None:
    """Up to where the loss is largest nearby, and back to the same bits."""
    before = layer.weight.clone()
    layer.weight.add_(0.05)
    layer.weight.copy_(before)


def max_norm(layer: Network) -> None:
    torch.nn.functional.embedding(torch.arange(8), layer.weight, max_norm=1000.0)


def data_cloned(layer: Network) -> None:
    layer.weight.data = layer.weight.data.clone()


def swapped_with_an_average(layer: Network) -> None:
    held = layer.weight.detach().clone()
    layer.weight.copy_(torch.randn_like(held))
    layer.weight.copy_(held)


def swapped_through_data(layer: Network) -> None:
    held, layer.weight.data = layer.weight.data, torch.randn_like(layer.weight)
    layer.weight.data = held


def storage_resized(layer: Network) -> None:
    """As FSDP frees and refills what it gathers."""
    held = layer.weight.detach().clone()
    size = layer.weight.untyped_storage().nbytes()
    layer.weight.untyped_storage().resize_(0)
    layer.weight.untyped_storage().resize_(size)
    layer.weight.copy_(held)


def set_(layer: Network) -> None:
    layer.weight.data.set_(layer.weight.detach().clone())


def model_loaded(layer: Network) -> None:
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))


def model_loaded_by_assignment_into_the_same(layer: Network) -> None:
    layer.load_state_dict(layer.state_dict(), assign=False)


def through_a_vector(layer: Network) -> None:
    vector = torch.nn.utils.parameters_to_vector(layer.parameters())
    torch.nn.utils.vector_to_parameters(vector.clone(), layer.parameters())


def functional(layer: Network) -> None:
    other = {"weight": torch.zeros_like(layer.weight)}
    torch.func.functional_call(
        _Product(layer), {f"inner.{k}": v for k, v in other.items()}, (torch.ones(96),)
    )


class _Product(torch.nn.Module):
    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner: Any = inner

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.inner.weight @ x.bfloat16()
        return product


def shared(layer: Network) -> None:
    layer.share_memory()


def moved_there_and_back(layer: Network) -> None:
    layer.to("cpu", non_blocking=True)


def float_and_back(layer: Network) -> None:
    layer.float()
    layer.bfloat16()


def other_strides_and_back(layer: Network) -> None:
    layer.weight.data = layer.weight.data.t().contiguous().t()


def swapped_modules(layer: Network) -> None:
    """`torch.__future__.set_swap_module_params_on_conversion`: conversions
    exchange the tensors themselves."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.to(torch.float32)
        layer.to(torch.bfloat16)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def swap_tensors(layer: Network) -> None:
    other = torch.nn.Parameter(layer.weight.detach().clone())
    torch.utils.swap_tensors(layer.weight, other)


def forwards(layer: Network) -> None:
    _Product(layer)(torch.ones(96)).sum()
    copy.deepcopy(layer)


KEEPS = [
    clamp,
    clamp_through_data,
    mask,
    sharpness_aware,
    max_norm,
    data_cloned,
    swapped_with_an_average,
    swapped_through_data,
    storage_resized,
    set_,
    model_loaded,
    model_loaded_by_assignment_into_the_same,
    through_a_vector,
    functional,
    shared,
    moved_there_and_back,
    float_and_back,
    other_strides_and_back,
    swapped_modules,
    swap_tensors,
    forwards,
]


def small_updates(
    optimizer: Any, layer: Network, between: Callable[[Network], None] | None = None, steps: int = UPDATES
) -> None:
    optimizer.zero_grad()
    for _ in range(steps):
        layer.weight.grad = torch.full_like(layer.weight, UPDATE)
        optimizer.step()
        optimizer.zero_grad()
        if between is not None:
            with torch.no_grad():
                between(layer)


def make(**options: Any) -> tuple[Any, Any]:
    layer = Layer()
    return layer, flash.FlashSGD(layer.parameters(), lr=1.0, **options)


@pytest.mark.parametrize("write", KEEPS, ids=[w.__name__ for w in KEEPS])
@pytest.mark.parametrize("number_format", ["native", "paper"])
def test_training_below_the_stored_precision_goes_on(
    write: Callable[[Network], None], number_format: str
) -> None:
    """The same bits as without the write, which leaves the stored weight as it was."""
    layer, optimizer = make(format=number_format)
    straight, undisturbed = make(format=number_format)
    small_updates(optimizer, layer, write)
    small_updates(undisturbed, straight)
    assert torch.equal(layer.weight, straight.weight)
    [master] = support.masters(optimizer, [layer.weight])
    [expected] = support.masters(undisturbed, [straight.weight])
    assert support.same_bits(master.contiguous(), expected)
    assert float((1.0 - master).min()) > 0.9 * UPDATES * UPDATE


def test_a_parametrized_weight_goes_on() -> None:
    """The tensor that is trained is the parametrization's original then."""
    layer, optimizer = make()
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    original = layer.parametrizations.weight.original
    assert original is optimizer.param_groups[0]["params"][0]
    for _ in range(UPDATES):
        layer.weight.sum().backward()
        original.grad.fill_(UPDATE)
        optimizer.step()
        optimizer.zero_grad()
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    [master] = support.masters(optimizer, [layer.weight])
    assert float((1.0 - master).min()) > 0.9 * UPDATES * UPDATE


def test_hooks_that_write_are_followed() -> None:
    layer, optimizer = make()

    def write(*_: Any) -> None:
        layer.weight.data.clamp_(-4.0, 4.0)

    optimizer.register_step_pre_hook(write)
    optimizer.register_step_post_hook(write)
    small_updates(optimizer, layer)
    [master] = support.masters(optimizer, [layer.weight])
    assert float((1.0 - master).min()) > 0.9 * UPDATES * UPDATE


def fill(p: Tensor) -> None:
    p.fill_(1.25)


def prune(p: Tensor) -> None:
    p.mul_(torch.rand_like(p) > 0.5)


def scale(p: Tensor) -> None:
    p.mul_(0.5)


def initialise(p: Tensor) -> None:
    torch.nn.init.normal_(p)


def through_data(p: Tensor) -> None:
    p.data = torch.full_like(p, 1.25)


def power_of_two(p: Tensor) -> None:
    p.copy_(2.0 ** torch.randint(-8, 8, p.shape))


def tiny(p: Tensor) -> None:
    p.fill_(torch.finfo(p.dtype).smallest_normal)


def huge(p: Tensor) -> None:
    p.fill_(torch.finfo(p.dtype).max)


WRITES = [fill, prune, scale, initialise, through_data, power_of_two, tiny, huge]


def half_a_unit(p: Tensor) -> Tensor:
    """Half the distance from a stored weight to its neighbour away from zero."""
    wide = p.detach().double().abs()
    info = torch.finfo(p.dtype)
    exponent = torch.where(wide > 0, wide, wide.new_full((), info.tiny)).log2().floor()
    exponent = exponent.clamp_min(torch.tensor(info.tiny, dtype=torch.float64).log2())
    return info.eps * 2.0**exponent / 2


@pytest.mark.parametrize("write", WRITES, ids=[w.__name__ for w in WRITES])
@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("number_format", ["native", "paper"])
def test_a_stale_correction_is_at_most_half_a_unit(
    write: Callable[[Tensor], None], bits: int, dtype: torch.dtype, number_format: str
) -> None:
    [p, other] = support.parameters(dtype, shapes=((64, 96), (70, 80)))
    optimizer = flash.FlashAdamW([p, other], master_weight_bits=bits, format=number_format)
    support.run(optimizer, [p, other], 5)
    assert bool(optimizer.state[p]["error_bits"].any())
    with torch.no_grad():
        write(p)
    [master, untouched] = support.masters(optimizer, [p, other])
    moved = (master.double() - p.detach().double()).abs()
    assert bool((moved <= half_a_unit(p) * (1 + 2.0**-20)).all()), float((moved / half_a_unit(p)).max())
    optimizer.refresh_masters([p])
    [exact, same] = support.masters(optimizer, [p, other])
    assert torch.equal(exact, p.detach().float())  # in `paper` a zero loses its sign
    assert support.same_bits(same, untouched)


def test_refresh_masters_takes_parameters_of_the_optimizer() -> None:
    [p, q] = support.parameters(shapes=((64, 96), (70, 80)))
    optimizer = flash.FlashAdamW([p, q])
    support.run(optimizer, [p, q], 3)
    before = support.snapshot(optimizer)
    with pytest.raises(ValueError, match="not managed"):
        optimizer.refresh_masters([q, torch.ones(3)])
    support.assert_same(before, optimizer)
    optimizer.refresh_masters()
    for stored, master in zip((p, q), support.masters(optimizer, [p, q]), strict=True):
        assert support.same_bits(master, stored.detach().float())


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("number_format", ["native", "paper"])
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("through", ["model", "data", "swap"])
def test_a_weight_that_is_cast_to_fp32_becomes_its_master(
    bits: int, number_format: str, copied: bool, through: str
) -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters(), master_weight_bits=bits, format=number_format)
    support.run(optimizer, list(network.parameters()), 4)
    expected = support.masters(optimizer, network.parameters())
    torch.__future__.set_swap_module_params_on_conversion(through == "swap")
    try:
        if through == "data":
            for p in network.parameters():
                p.data = p.data.float()
                p.grad = None
        else:
            network.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    if copied:
        network, optimizer = copy.deepcopy((network, optimizer))
        network, optimizer = pickle.loads(pickle.dumps((network, optimizer)))
    for found, master in zip(support.masters(optimizer, network.parameters()), expected, strict=True):
        assert support.same_bits(found, master)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0].update(lr=0.0)
    optimizer.step()
    for p, master in zip(network.parameters(), expected, strict=True):
        assert support.same_bits(p, master)
        assert "error_bits" not in optimizer.state[p]


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("number_format", ["native", "paper"])
def test_a_weight_that_is_cast_from_bf16_to_fp16_keeps_its_master(bits: int, number_format: str) -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters(), master_weight_bits=bits, format=number_format)
    support.run(optimizer, list(network.parameters()), 4)
    masters = support.masters(optimizer, network.parameters())
    fits = [
        p.half().bfloat16() == p for p in network.parameters()
    ]  # others are below fp16's range, and are rounded
    network.half()
    for p, chosen, master in zip(network.parameters(), fits, masters, strict=True):
        [found] = support.masters(optimizer, [p])
        assert support.same_bits(found[chosen], master[chosen])
        assert float(chosen.float().mean()) > 0.9
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0].update(lr=0.0)
    optimizer.step()
    for p, chosen, master in zip(network.parameters(), fits, masters, strict=True):
        [found] = support.masters(optimizer, [p])
        # 24 bits resolve 2^-11 / 254 of an fp16 weight; below 2^-14 fp16 has steps of 2^-24.
        bound = (2.0**-11 * master.abs()).clamp_min(2.0**-25) / 100
        assert bool(((found - master).abs() <= bound)[chosen].all())
        assert bool(((p.float() - master).abs() <= 101 * bound)[chosen].all()), "the stored weight is rounded"


def test_elements_written_after_a_cast_are_whole() -> None:
    """In fp32 a written element holds everything; the others are joined with their corrections."""
    [p] = support.parameters(shapes=((64, 96),))
    optimizer = flash.FlashAdamW([p])
    support.run(optimizer, [p], 4)
    [expected] = support.masters(optimizer, [p])
    p.data = p.data.float()
    p.grad = None
    with torch.no_grad():
        p[:8] = 0.123456
    [master] = support.masters(optimizer, [p])
    assert torch.equal(master[:8], torch.full((8, 96), 0.123456))
    assert support.same_bits(master[8:], expected[8:])


def test_a_cast_model_is_saved_with_its_corrections() -> None:
    """state_dict() writes no weight: the model may have been saved before it."""
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 4)
    expected = support.masters(optimizer, network.parameters())
    network.float()
    weights = copy.deepcopy(network.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    other = support.model(torch.float32, seed=1)
    resumed = flash.FlashAdamW(other.parameters())
    resumed.load_state_dict(saved)
    other.load_state_dict(weights)
    for found, master in zip(support.masters(resumed, other.parameters()), expected, strict=True):
        assert support.same_bits(found, master)


def test_own_steps_are_kept() -> None:
    """The master moves by 1e-6 a step, far below a bfloat16: it must arrive,
    but for 100 roundings of fp32."""
    p = torch.nn.Parameter(torch.ones(64, 96, dtype=torch.bfloat16))
    optimizer = flash.FlashSGD([p], lr=1e-6, master_weight_bits=32)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    [master] = support.masters(optimizer, [p])
    torch.testing.assert_close(master, torch.full_like(master, 1 - 1e-4), rtol=0, atol=100 * 2.0**-25)


def test_reading_is_no_write() -> None:
    network = support.model()
    optimizer = flash.FlashAdamW(network.parameters())
    support.run(optimizer, list(network.parameters()), 3)
    before = support.snapshot(optimizer)
    torch.nn.utils.parameters_to_vector(network.parameters())
    network.state_dict()
    support.loss_of(network, 0).backward()
    optimizer.get_fp32_model_state_dict(network)
    optimizer.memory_report()
    with flash.full_precision(network, optimizer):
        optimizer.state_dict()
        optimizer.get_fp32_model_state_dict(network)
    support.assert_same(before, optimizer)


def test_a_step_inside_full_precision_is_kept() -> None:
    [p] = support.parameters(shapes=((64, 96),))
    holder = torch.nn.ParameterList([p])
    optimizer = flash.FlashAdamW([p], master_weight_bits=32)
    support.run(optimizer, [p], 3)
    p.grad = None
    with flash.full_precision(holder, optimizer):
        support.run(optimizer, [p], 1, first=3)
        inside = p.detach().clone()
        p.grad = None
    [master] = support.masters(optimizer, [p])
    torch.testing.assert_close(master, inside, rtol=2.0**-24, atol=0)


def test_the_version_counter_tells_autograd_of_a_step() -> None:
    """A graph that was built before a step must not be differentiated with the weights after it."""
    p = torch.nn.Parameter(torch.ones(64, 96))
    optimizer = flash.FlashSGD([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("change", ["bits", "format"])
def test_a_group_changed_in_mid_run_is_carried_over(change: str) -> None:
    given = support.parameters()
    optimizer = flash.FlashAdamW(given)
    support.run(optimizer, given, 3)
    before = support.masters(optimizer, given)
    optimizer.param_groups[0].update({"master_weight_bits": 32} if change == "bits" else {"format": "paper"})
    for p in given:
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a conversion may say so
        optimizer.step()
    for old, new in zip(before, support.masters(optimizer, given), strict=True):
        # 24 bits of either format resolve 1.6e-5 of a weight (docs/formats.md).
        torch.testing.assert_close(old, new, rtol=2 * 1.6e-5, atol=0)
