"""cast_model: which layers become bfloat16, which stay, and what flows between them.

What a user loses if these fail: a model that does not run after being cast, or statistics in 8 bits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import flashoptim_cpp as flash
import pytest
import torch
from torch import nn

BF16, FP32 = torch.bfloat16, torch.float32


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def dtypes(module: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in module.parameters()}


def test_everything_becomes_bfloat16() -> None:
    network = named(first=nn.Linear(16, 32), act=nn.ReLU(), last=nn.Linear(32, 10))
    assert flash.cast_model(network) is None
    assert dtypes(network) == {BF16}
    assert network(torch.randn(2, 16, dtype=BF16)).dtype == BF16
    flash.cast_model(network, torch.float16)
    assert dtypes(network) == {torch.float16}


NORMS: list[tuple[Any, tuple[int, ...], bool]] = [
    (lambda: nn.BatchNorm1d(16), (4, 16), True),
    (lambda: nn.BatchNorm2d(16), (4, 16, 3, 3), True),
    (lambda: nn.InstanceNorm1d(16, affine=True), (4, 16, 8), True),
    (lambda: nn.InstanceNorm2d(16, affine=True), (4, 16, 8, 8), True),
    (lambda: nn.LayerNorm(16), (4, 16), False),
    (lambda: nn.GroupNorm(4, 16), (4, 16), False),
    (lambda: nn.RMSNorm(16), (4, 16), False),
]


@pytest.mark.parametrize(("norm", "shape", "stays"), NORMS)
def test_norms_with_running_statistics_stay_fp32(norm: Any, shape: tuple[int, ...], stays: bool) -> None:
    network = named(norm=norm())
    flash.cast_model(network)
    assert dtypes(network) == {FP32 if stays else BF16}
    for buffer in network.buffers():
        assert not buffer.is_floating_point() or buffer.dtype == FP32
    assert network(torch.randn(shape, dtype=BF16)).is_floating_point()
    flash.cast_model(network, selective=False)
    assert dtypes(network) == {BF16}
    for buffer in network.buffers():
        assert buffer.dtype in (BF16, torch.int64)


@pytest.mark.parametrize("pattern", ["head", "h*", "hea?", "[h]ead"])
def test_patterns_name_layers(pattern: str) -> None:
    network = named(body=nn.Linear(16, 16), head=nn.Linear(16, 4))
    flash.cast_model(network, full_precision_layers=[pattern])
    assert dtypes(network.get_submodule("head")) == {FP32}
    assert dtypes(network.get_submodule("body")) == {BF16}
    assert network(torch.randn(2, 16, dtype=BF16)).dtype == FP32, "the last layer's output stays fp32"


def test_patterns_see_the_whole_dotted_name() -> None:
    network = named(head=nn.Linear(4, 4), block=named(head=nn.Linear(4, 4), multi_head=nn.Linear(4, 4)))
    flash.cast_model(network, full_precision_layers=["head"])
    assert dtypes(network.get_submodule("head")) == {FP32}
    assert dtypes(network.get_submodule("block")) == {BF16}
    other = named(head=nn.Linear(4, 4), block=named(head=nn.Linear(4, 4), multi_head=nn.Linear(4, 4)))
    flash.cast_model(other, full_precision_layers=["*.head"])
    assert dtypes(other.get_submodule("block.head")) == {FP32}
    assert dtypes(other.get_submodule("block.multi_head")) == {BF16}
    assert dtypes(other.get_submodule("head")) == {BF16}


def test_modules_may_be_named_by_themselves() -> None:
    network = named(body=nn.Linear(16, 16), head=nn.Linear(16, 4))
    flash.cast_model(network, full_precision_layers=[network.get_submodule("head")])
    assert dtypes(network.get_submodule("head")) == {FP32}
    assert network(torch.randn(2, 16, dtype=BF16)).dtype == FP32


def test_recast_layers_hand_on_what_the_next_layer_takes() -> None:
    network = named(pre=nn.Linear(16, 16), norm=nn.LayerNorm(16), post=nn.Linear(16, 16))
    flash.cast_model(network, full_precision_recast_layers=["norm"])
    assert dtypes(network.get_submodule("norm")) == {FP32}
    assert dtypes(network.get_submodule("post")) == {BF16}
    assert network(torch.randn(2, 16, dtype=BF16)).dtype == BF16


class TwoInputs(nn.Module):
    """Takes tensors by position and by name, returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(x) + mask, index


def test_every_floating_input_is_cast_and_integers_pass() -> None:
    network = named(block=TwoInputs())
    block = network.get_submodule("block")
    flash.cast_model(network, full_precision_recast_layers=["block"])
    x = torch.randn(2, 8, dtype=BF16)
    values, index = block(x, x, torch.arange(2))
    assert values.dtype == BF16
    assert index.dtype == torch.int64
    keep = named(table=nn.Embedding(50, 8))
    flash.cast_model(keep, full_precision_layers=["table"])
    assert keep(torch.tensor([1, 2])).dtype == FP32


def test_a_second_cast_adds_no_second_hook() -> None:
    network = named(body=nn.Linear(16, 16), head=nn.Linear(16, 4))
    for _ in range(3):
        flash.cast_model(network, full_precision_recast_layers=["head"])
    head = network.get_submodule("head")
    assert len(head._forward_pre_hooks) == 1
    assert len(head._forward_hooks) == 1


def test_tied_weights_stay_tied() -> None:
    table = nn.Embedding(32, 16)
    head = nn.Linear(16, 32, bias=False)
    head.weight = table.weight
    network = nn.Sequential(table, head)
    flash.cast_model(network)
    assert table.weight is head.weight
    assert table.weight.dtype == BF16
    assert len(list(network.parameters())) == 1


def test_an_optimizer_made_before_still_holds_the_parameters() -> None:
    network = nn.Sequential(nn.Linear(64, 96))
    before = list(network.parameters())
    optimizer = flash.FlashAdamW(network.parameters())
    flash.cast_model(network)
    assert all(p is q for p, q in zip(before, network.parameters(), strict=True))
    network(torch.randn(2, 64, dtype=BF16)).float().sum().backward()
    optimizer.step()
    assert all("error_bits" in optimizer.state[p] for p in before)


def test_gradients_flow_and_layers_in_fp32_train() -> None:
    network = named(body=nn.Linear(64, 96), norm=nn.LayerNorm(96), head=nn.Linear(96, 4))
    flash.cast_model(network, full_precision_layers=["head"], full_precision_recast_layers=["norm"])
    optimizer = flash.FlashAdamW(network.parameters(), lr=1e-2)
    network(torch.randn(4, 64, dtype=BF16)).sum().backward()
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {BF16, FP32}
    optimizer.step()
    assert "error_bits" not in optimizer.state[network.get_submodule("head").weight]


@pytest.mark.parametrize("option", ["full_precision_layers", "full_precision_recast_layers"])
def test_a_pattern_of_no_layer_is_a_warning(option: str) -> None:
    """A misspelt head would be cast without a word."""
    network = named(body=nn.Linear(4, 4), head=nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=f"{option}.*'haed'"):
        flash.cast_model(network, **{option: ["head", "haed"]})
    assert dtypes(network.get_submodule("head")) == {FP32}
