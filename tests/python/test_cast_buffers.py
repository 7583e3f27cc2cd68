"""cast_model over the buffers that models have: which become 16 bits, which stay, and
how the caller says otherwise.

What a user loses if these fail: rotary angles that are wrong from position 256 on,
schedules and averages in 8 bits.
"""

from __future__ import annotations

import math
from typing import Any

import flashoptim_cpp as flash
import pytest
import torch
from torch import nn

BF16, FP32 = torch.bfloat16, torch.float32


def frequencies(size: int = 32) -> torch.Tensor:
    return 1.0 / 10000.0 ** (torch.arange(0, size, 2).float() / size)


def sinusoids(positions: int = 64, size: int = 16) -> torch.Tensor:
    angles = torch.arange(positions)[:, None] * frequencies(size)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def causal(size: int = 8) -> torch.Tensor:
    return torch.full((size, size), -math.inf).triu(1)


# Name, values, whether it is persistent, its dtype afterwards.
BUFFERS: list[tuple[str, torch.Tensor, bool, torch.dtype]] = [
    ("inv_freq", frequencies(), False, FP32),
    ("inv_freq_saved", frequencies(), True, BF16),
    ("cos_cached", sinusoids().cos(), False, FP32),
    ("freqs_cis", torch.polar(torch.ones(8, 4), torch.randn(8, 4)), False, torch.complex64),
    ("position_table", sinusoids(), False, FP32),
    ("position_table_saved", sinusoids(), True, BF16),
    ("position_ids", torch.arange(512)[None], True, torch.int64),
    ("token_type_ids", torch.zeros(1, 512, dtype=torch.int64), False, torch.int64),
    ("causal_mask", torch.ones(8, 8, dtype=torch.bool).tril(), False, torch.bool),
    ("causal_mask_saved", torch.ones(8, 8, dtype=torch.bool).tril(), True, torch.bool),
    ("float_mask", causal(), False, FP32),
    ("float_mask_saved", causal(), True, BF16),
    ("ema_shadow", torch.randn(64), True, BF16),
    ("num_batches_tracked", torch.tensor(1000), True, torch.int64),
    ("betas", torch.linspace(1e-4, 0.02, 1000), True, BF16),
    ("alphas_cumprod", (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0), True, BF16),
    ("relative_position_index", torch.arange(49 * 49).view(49, 49), True, torch.int64),
    ("relative_coords_table", torch.randn(1, 13, 13, 2), False, FP32),
    ("weight_scale", torch.rand(16), True, BF16),
    ("zero_point", torch.zeros(16, dtype=torch.int32), True, torch.int32),
    ("seed", torch.tensor(5, dtype=torch.uint8), True, torch.uint8),
    ("double_table", torch.linspace(0, 1, 8).double(), False, torch.float64),
    ("double_table_saved", torch.linspace(0, 1, 8).double(), True, BF16),
]


def model_with(name: str, values: torch.Tensor, is_saved: bool) -> nn.Sequential:
    inner = nn.Linear(4, 4)
    inner.register_buffer(name, values.clone(), persistent=is_saved)
    return nn.Sequential(nn.ModuleDict({"block": inner}))


@pytest.mark.parametrize(("name", "values", "is_saved", "dtype"), BUFFERS, ids=[row[0] for row in BUFFERS])
def test_every_buffer_and_both_patterns(
    name: str, values: torch.Tensor, is_saved: bool, dtype: torch.dtype
) -> None:
    is_number = values.dtype in (FP32, torch.float64)
    path = f"0.block.{name}"
    # Options, and what is expected: by the buffer's name, its end, a module around it, that module itself.
    ways: list[tuple[dict[str, Any], torch.dtype]] = [({}, dtype)]
    for pattern in (path, f"*.{name}", "0.block", "0*", "*"):
        ways.append(({"keep_buffers": [pattern]}, values.dtype))
        ways.append(({"cast_buffers": [pattern]}, BF16 if is_number else values.dtype))
    ways.append(({"keep_buffers": [path], "cast_buffers": ["*"]}, values.dtype))
    ways.append(({"full_precision_layers": ["0.block"], "cast_buffers": ["*"]}, values.dtype))
    for options, wanted in ways:
        model = model_with(name, values, is_saved)
        flash.cast_model(model, **options)
        buffer = model.get_buffer(path)
        assert buffer.dtype == wanted, options
        assert torch.equal(buffer, values.to(wanted)), options
    for option in ("keep_buffers", "cast_buffers"):
        model = model_with(name, values, is_saved)
        inner = model.get_submodule("0.block")
        flash.cast_model(model, **{option: [inner]})
        keeps = option == "keep_buffers" or not is_number
        assert model.get_buffer(path).dtype == (values.dtype if keeps else BF16)
        assert inner.get_parameter("weight").dtype == BF16, "a pattern of buffers is none of weights"


@pytest.mark.parametrize("option", ["keep_buffers", "cast_buffers"])
@pytest.mark.parametrize("pattern", ["inv_frequency", "0", "*.weight", nn.Linear(4, 4)])
def test_patterns_of_nothing_are_refused(option: str, pattern: str | nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("inv_freq", frequencies(), persistent=False)
    with pytest.raises(ValueError, match=f"{option}.*no buffer"):
        flash.cast_model(model, **{option: [pattern]})
    assert model.get_parameter("0.weight").dtype == FP32


class Additive(nn.Module):
    """Adds a table that is not saved, as sinusoidal positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(), persistent=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.get_buffer("table")[: x.shape[0]])


def test_an_additive_table_is_cast_by_its_name() -> None:
    """bfloat16 and fp32 give fp32, which the next layer refuses: the one table that has to be named."""
    model = Additive()
    flash.cast_model(model)
    with pytest.raises(RuntimeError, match="dtype"):
        model(torch.randn(8, 16).bfloat16())
    flash.cast_model(model, cast_buffers=["table"])
    assert model(torch.randn(8, 16).bfloat16()).dtype == BF16


class Rotary(nn.Module):
    """Angles from frequencies, as transformers computes them."""

    def __init__(self, is_saved: bool) -> None:
        super().__init__()
        self.register_buffer("inv_freq", frequencies(), persistent=is_saved)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return (positions[:, None].float() * self.get_buffer("inv_freq").float()).cos()


@pytest.mark.parametrize("is_saved", [False, True])
def test_rotary_angles_stay_exact(is_saved: bool) -> None:
    model = Rotary(is_saved)
    positions = torch.arange(4096)
    exact = model(positions)
    flash.cast_model(model, keep_buffers=["*inv_freq"] if is_saved else [])
    assert torch.equal(model(positions), exact)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(16), nn.InstanceNorm1d(16, track_running_stats=True)])
def test_statistics_and_patterns(norm: nn.Module) -> None:
    """Layers with statistics stay whole, unless `selective` is off; then patterns hold."""
    flash.cast_model(nn.Sequential(norm), cast_buffers=["*"])
    assert {b.dtype for b in norm.buffers()} == {FP32, torch.int64}
    flash.cast_model(nn.Sequential(norm), selective=False, keep_buffers=["*running_var"])
    assert norm.get_buffer("running_mean").dtype == BF16
    assert norm.get_buffer("running_var").dtype == FP32
    assert norm.get_buffer("num_batches_tracked").dtype == torch.int64


@pytest.mark.parametrize("layer", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_vectors_of_a_spectral_norm_follow_their_weight(layer: Any) -> None:
    model = nn.Sequential(layer(nn.Linear(8, 4)))
    flash.cast_model(model)
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {BF16}
    model(torch.randn(2, 8).bfloat16()).sum().backward()


def test_a_buffer_in_two_places_is_meant_by_either_name() -> None:
    shared = torch.rand(8)
    for pattern in ("0.scale", "1.scale"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        for layer in model:
            layer.register_buffer("scale", shared)
        flash.cast_model(model, keep_buffers=[pattern])
        assert model.get_buffer("0.scale").dtype == model.get_buffer("1.scale").dtype == FP32
