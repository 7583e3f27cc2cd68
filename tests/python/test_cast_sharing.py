"""cast_model over every way in which the tensors of a model may lie in memory, and every kind of tensor.

What a user loses if these fail: ties, shapes, or weights that are not weights at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

BF16, FP32 = torch.bfloat16, torch.float32


class Holder(nn.Module):
    """A module of these tensors: parameters, and buffers where the name begins with "buffer"."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if name.startswith("buffer"):
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else weight(tensor))


def weight(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point() or tensor.is_complex())


def matrix(rows: int = 6, columns: int = 8) -> torch.Tensor:
    return torch.arange(rows * columns, dtype=FP32).view(rows, columns) + 0.001


def one_object() -> Holder:
    shared = weight(matrix())
    return Holder(a=shared, b=shared)


def two_objects() -> Holder:
    base = matrix()
    return Holder(a=base, b=base)


def transposed() -> Holder:
    base = weight(matrix())
    return Holder(a=base, b=base.detach().t())


def reshaped() -> Holder:
    base = matrix()
    return Holder(a=base, b=base.view(-1), c=base.view(2, 3, 8))


def parts_of_a_flat_one() -> Holder:
    flat = torch.randn(100)
    return Holder(a=flat[:40].view(5, 8), b=flat[40:88].view(6, 8), c=flat[88:])


def one_address_two_shapes() -> Holder:
    flat = torch.randn(100)
    return Holder(a=flat[:40], b=flat[:8], c=flat[0])


def overlapping() -> Holder:
    flat = torch.randn(100)
    return Holder(a=flat[:60], b=flat[40:])


def columns() -> Holder:
    base = matrix(6, 24)
    return Holder(q=base[:, :8], k=base[:, 8:16], v=base[:, 16:])


def interleaved() -> Holder:
    base = torch.randn(64)
    return Holder(even=base[::2], odd=base[1::2])


def expanded() -> Holder:
    row = torch.randn(8)
    return Holder(a=row.expand(6, 8), b=row)


def windows() -> Holder:
    base = torch.randn(32)
    return Holder(a=base.unfold(0, 8, 4), b=base)


def channels_last() -> Holder:
    return Holder(a=torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))


def buffer_of_a_parameter() -> Holder:
    base = weight(matrix())
    return Holder(a=base, buffer=base.detach()[2:4])


def passing_buffer_of_a_parameter() -> Holder:
    base = weight(matrix())
    holder = Holder(a=base)
    holder.register_buffer("buffer", base.detach().t(), persistent=False)
    return holder


def view_with_a_graph() -> Holder:
    base = weight(matrix())
    return Holder(a=base, buffer=base.t())


def two_storages_of_one_memory() -> Holder:
    values = torch.randn(48).numpy()
    return Holder(a=torch.from_numpy(values), b=torch.from_numpy(values[8:16]))


def nothing_in_it() -> Holder:
    return Holder(a=torch.empty(0, 4), b=torch.empty(3, 0), c=torch.randn(3))


def numbers_of_no_dimension() -> Holder:
    both = torch.randn(2)
    return Holder(a=both[0], b=both[1])


SHARING: list[Callable[[], Holder]] = [
    one_object,
    two_objects,
    transposed,
    reshaped,
    parts_of_a_flat_one,
    one_address_two_shapes,
    overlapping,
    columns,
    interleaved,
    expanded,
    windows,
    channels_last,
    buffer_of_a_parameter,
    passing_buffer_of_a_parameter,
    view_with_a_graph,
    two_storages_of_one_memory,
    nothing_in_it,
    numbers_of_no_dimension,
]


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(
        [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    )


def common(model: nn.Module) -> set[tuple[str, str]]:
    """Which tensors have elements in common, found by writing into one and looking at the others."""
    tensors = tensors_of(model)
    found = set()
    with torch.no_grad():
        for name, tensor in tensors.items():
            before = {other: value.detach().clone() for other, value in tensors.items()}
            if tensor.numel():
                # Through one element for each row of memory: expanded tensors refuse writes of their whole.
                tensor.as_strided((1,), (1,), tensor.storage_offset()).fill_(-7.0)
            for other, value in tensors.items():
                if not torch.equal(before[other], value):
                    found.add((name, other))
    return found


@pytest.mark.parametrize("make", SHARING, ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_shapes_values_and_sharing_stay(make: Callable[[], Holder], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    before = make()
    torch.manual_seed(0)
    model = make()
    objects = tensors_of(model)
    flash.cast_model(model, dtype)
    after = tensors_of(model)
    for name, tensor in tensors_of(before).items():
        assert after[name] is objects[name], "an optimizer made before would hold another one"
        assert after[name].dtype == dtype
        assert after[name].shape == tensor.shape
        assert after[name].requires_grad == tensor.requires_grad
        if tensor.numel():
            assert after[name].stride() == tensor.stride()
        assert torch.equal(after[name], tensor.to(dtype)), name
    assert common(model) == common(before)


@pytest.mark.parametrize("make", SHARING, ids=lambda make: make.__name__)
def test_memory_does_not_grow(make: Callable[[], Holder]) -> None:
    """A cast in 16 bits takes half of what the storages took, ties and views counted once."""
    model = make()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(model).values()
    }
    flash.cast_model(model)
    cast = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(model).values()}
    assert 2 * sum(cast.values()) <= sum(storages.values())


@pytest.mark.parametrize("make", [one_object, transposed, buffer_of_a_parameter, overlapping, expanded])
@pytest.mark.parametrize("which", ["first", "last"])
def test_what_one_place_keeps_is_kept_everywhere(make: Callable[[], Holder], which: str) -> None:
    """Half of a tie in another dtype would be no tie."""
    names = list(tensors_of(make()))
    kept = Holder()
    model = make()
    name = names[0] if which == "first" else names[-1]
    tensor = tensors_of(model)[name]
    if isinstance(tensor, nn.Parameter):
        kept.register_parameter("w", tensor)
    else:
        kept.register_buffer("w", tensor)
    both = nn.Sequential(model, kept)
    flash.cast_model(both, full_precision_layers=["1"])
    assert {t.dtype for t in tensors_of(both).values()} == {FP32}


def test_neighbours_of_what_is_kept_are_cast() -> None:
    """Columns of one matrix overlap as pieces of memory and have no element in common."""
    for make in (columns, interleaved, parts_of_a_flat_one):
        model = make()
        names = list(tensors_of(model))
        kept = Holder()
        kept.register_parameter("w", model.get_parameter(names[0]))
        flash.cast_model(nn.Sequential(model, kept), full_precision_layers=["1"])
        dtypes = [tensors_of(model)[name].dtype for name in names]
        assert dtypes == [FP32] + [BF16] * (len(names) - 1), make.__name__


def test_memory_that_is_seen_as_two_types_stays() -> None:
    pair = torch.randn(8, 2)
    model = Holder(a=torch.view_as_complex(pair), buffer=pair, b=torch.randn(4))
    bits = torch.randn(16)
    model.register_buffer("buffer_bits", bits.view(torch.int32))
    model.register_parameter("c", weight(bits))
    flash.cast_model(model)
    assert [t.dtype for t in tensors_of(model).values()] == [
        torch.complex64, BF16, FP32, FP32, torch.int32
    ]  # fmt: skip


@pytest.mark.parametrize("make", SHARING, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_without_memory(make: Callable[[], Holder], kind: str) -> None:
    """Large models are cast before they have weights, and memory is estimated so."""
    if make is two_storages_of_one_memory:
        pytest.skip("comes from NumPy")
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        model = make()
    wanted = {name: (t.shape, t.stride()) for name, t in tensors_of(model).items()}
    flash.cast_model(model)
    assert {name: (t.shape, t.stride()) for name, t in tensors_of(model).items()} == wanted
    assert {t.dtype for t in model.parameters()} == {BF16}
    if kind == "meta":
        assert {t.device.type for t in model.parameters()} == {"meta"}
        model.to_empty(device="cpu")


KINDS: list[tuple[torch.Tensor, torch.dtype]] = [
    (torch.randn(40), BF16),
    (torch.randn(40).double(), BF16),
    (torch.randn(40).half(), BF16),
    (torch.randn(40).bfloat16(), BF16),
    (torch.arange(1000, 1256, dtype=torch.int32), torch.int32),
    (torch.arange(1000, 1256), torch.int64),
    (torch.arange(-8, 8, dtype=torch.int8), torch.int8),
    (torch.arange(256, dtype=torch.uint8), torch.uint8),
    (torch.ones(8, dtype=torch.bool), torch.bool),
    (torch.randn(8, dtype=torch.complex64), torch.complex64),
    (torch.randn(40).to(torch.float8_e4m3fn), torch.float8_e4m3fn),
    (torch.randn(40).to(torch.float8_e5m2), torch.float8_e5m2),
]


@pytest.mark.parametrize(("values", "dtype"), KINDS, ids=[str(values.dtype) for values, _ in KINDS])
@pytest.mark.parametrize("place", ["parameter", "buffer", "passing"])
def test_only_numbers_are_cast(values: torch.Tensor, dtype: torch.dtype, place: str) -> None:
    model = nn.Module()
    if place == "parameter":
        model.register_parameter("x", nn.Parameter(values.clone(), requires_grad=False))
    else:
        model.register_buffer("x", values.clone(), persistent=place == "buffer")
    flash.cast_model(model)
    x = tensors_of(model)["x"]
    assert x.dtype == (values.dtype if place == "passing" else dtype)
    if dtype != BF16:
        assert support.same_bits(x, values) if dtype.itemsize != 8 else torch.equal(x, values)


def test_parameters_keep_what_is_theirs() -> None:
    """Attributes, hooks and the gradient, whose dtype follows the parameter's."""
    layer = nn.Linear(8, 4)
    p = layer.weight
    p.is_special = True  # type: ignore[attr-defined]
    called = []
    p.register_hook(lambda g: called.append("gradient"))
    p.register_post_accumulate_grad_hook(lambda p: called.append("accumulated"))
    layer.bias.requires_grad_(False)
    layer(torch.randn(2, 8)).sum().backward()
    gradient, values = p.grad, p.grad.clone()  # type: ignore[union-attr]
    flash.cast_model(layer)
    assert layer.weight is p
    assert p.is_special  # type: ignore[attr-defined]
    assert p.grad is gradient
    assert p.grad is not None
    assert p.grad.dtype == BF16
    assert torch.equal(p.grad, values.bfloat16())
    assert not layer.bias.requires_grad
    called.clear()
    layer(torch.randn(2, 8).bfloat16()).sum().backward()
    assert called == ["gradient", "accumulated"]
    wide = nn.Linear(8, 4).bfloat16()
    wide.weight.grad_dtype = FP32
    wide.weight.grad = torch.ones(4, 8)
    flash.cast_model(wide, torch.float16)
    assert wide.weight.grad.dtype == FP32, "asked for by the user"


def lazy() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4)), torch.randn(2, 5)


def parametrized() -> tuple[nn.Module, torch.Tensor]:
    return nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), torch.randn(2, 8)


def weight_norm() -> tuple[nn.Module, torch.Tensor]:
    return nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), torch.randn(2, 8)


def spectral_norm() -> tuple[nn.Module, torch.Tensor]:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)), torch.randn(2, 8)


def recurrent() -> tuple[nn.Module, torch.Tensor]:
    return nn.LSTM(8, 4, num_layers=2, bidirectional=True), torch.randn(3, 2, 8)


def attention() -> tuple[nn.Module, torch.Tensor]:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16)


def scripted() -> tuple[nn.Module, torch.Tensor]:
    return torch.jit.script(nn.Linear(8, 4)), torch.randn(2, 8)


def copied() -> tuple[nn.Module, torch.Tensor]:
    return copy.deepcopy(nn.Sequential(nn.Linear(8, 4))), torch.randn(2, 8)


MODELS = [lazy, weight_norm, spectral_norm, recurrent, attention, scripted, copied]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_models_run_afterwards(make: Callable[[], tuple[nn.Module, torch.Tensor]]) -> None:
    torch.manual_seed(0)
    model, x = make()
    model.eval()
    exact = copy.deepcopy(model)
    flash.cast_model(model)
    with torch.no_grad():
        out, want = model(x.bfloat16()), exact(x) if make is not lazy else None
    first: Any = out[0] if isinstance(out, tuple) else out
    assert first.dtype == BF16
    assert {p.dtype for p in model.parameters()} == {BF16}
    if want is not None:
        wanted = want[0] if isinstance(want, tuple) else want
        torch.testing.assert_close(first.float(), wanted, rtol=0.05, atol=0.05)


def test_a_parametrization_stays_one() -> None:
    model, _ = parametrized()
    flash.cast_model(model)
    assert nn.utils.parametrize.is_parametrized(model)
    assert {p.dtype for p in model.parameters()} == {BF16}


class Coded(support.Codes):
    """A quantised weight: codes and a scale that look like a tensor of floats, which any
    operation turns into plain values."""

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> Coded:
        return Coded(inner["codes"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Coded(args[0].codes)
        plain = torch.utils._pytree.tree_map(lambda x: x.codes.float() if isinstance(x, Coded) else x, args)
        return func(*plain, **(kwargs or {}))


class Stubborn(Coded):
    """One that no cast is written for."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Stubborn(args[0].codes)
        raise NotImplementedError("no such operation")


@pytest.mark.parametrize("kind", [Coded, Stubborn])
def test_quantised_weights_are_refused_by_name_before_anything_changes(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(kind(torch.arange(16, dtype=torch.int8).view(4, 4)))
    with pytest.raises(ValueError, match=r"1\.weight.*full_precision_layers"):
        flash.cast_model(model)
    assert {p.dtype for p in model.parameters()} == {FP32}
    flash.cast_model(model, full_precision_layers=["1"])
    assert type(model[1].weight.data) is kind
    assert model[0].weight.dtype == BF16


def test_a_model_made_in_inference_mode_is_refused() -> None:
    """Torch exchanges its weights and fails at the next forward."""
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="inference_mode"):
        flash.cast_model(model)
    assert model.weight.dtype == FP32
    copied = copy.deepcopy(model)
    flash.cast_model(copied)
    assert copied(torch.randn(2, 4).bfloat16()).dtype == BF16


def test_a_model_that_is_cast_in_inference_mode_trains_later() -> None:
    model = nn.Linear(4, 4)
    with torch.inference_mode():
        flash.cast_model(model)
    model(torch.randn(2, 4).bfloat16()).sum().backward()
    flash.FlashAdamW(model.parameters()).step()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="choose"):
        flash.cast_model(model, dtype)
    assert model.weight.dtype == FP32


def test_a_cast_model_is_saved_and_copied(tmp_path: Path) -> None:
    model = transposed()
    flash.cast_model(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert common(Holder(**loaded)) == common(transposed())
    tied = one_object()
    flash.cast_model(tied)
    assert common(copy.deepcopy(tied)) == common(one_object())
