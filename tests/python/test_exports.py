"""State dicts in full precision, exported and set, and full_precision(), for every kind of model and entry.

What a user loses if these fail: ties, half of an export, an extra state, or weights that were never set.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import flashoptim_cpp as flash
import pytest
import support
import torch
from torch import nn

BF16, FP32 = torch.bfloat16, torch.float32


class ViewsOfOne(nn.Module):
    """A weight, its transpose and its first rows in one memory; the optimizer has the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(96, 64))
        self.turned = nn.Parameter(self.weight.detach().t(), requires_grad=False)
        self.register_buffer("rows", self.weight.detach()[:5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t() @ self.turned.t()


class Extra(nn.Linear):
    """Keeps something beside its tensors, as layers in 8 bits do."""

    def __init__(self, value: Any) -> None:
        super().__init__(64, 64)
        self.value = value

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, state: Any) -> None:
        self.value = state


class Inner(nn.Module):
    """A model with a child that is called `module`, as wrappers have one."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(64, 64)
        self.head = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.module(x))


def tied() -> nn.Module:
    return support.tied_network().float()


def norms() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.LayerNorm(64), nn.Linear(64, 64))


def counted() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64))
    model.register_buffer("count", torch.tensor(3))
    model.register_buffer("mask", torch.ones(4, dtype=torch.bool))
    model.register_buffer("phase", torch.randn(4, dtype=torch.complex64))
    model.register_buffer("exact", torch.randn(4).double())
    model.register_buffer("passing", torch.randn(4), persistent=False)
    model.register_parameter("codes", nn.Parameter(torch.arange(8, dtype=torch.int8), requires_grad=False))
    return model


def extras() -> nn.Module:
    values = [{"amax": [1.0, 2.0]}, torch.randn(3).bfloat16(), None, 4.5, io.BytesIO(b"bytes")]
    return nn.Sequential(*(Extra(value) for value in values))


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)))


def shared_layer() -> nn.Module:
    layer = nn.Linear(64, 64)
    return nn.Sequential(layer, nn.ReLU(), layer)


def recurrent() -> nn.Module:
    return nn.Sequential(OrderedDict(rnn=nn.LSTM(64, 64)))


def hooked() -> nn.Module:
    """Renames an entry and leaves one out, as adapters do."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))

    def rename(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
        state[prefix + "first"] = state.pop(prefix + "0.weight")
        state.pop(prefix + "1.bias")

    model._register_state_dict_hook(rename)
    return model


def copied_by_a_hook() -> nn.Module:
    """Moves entries elsewhere, as offloading does."""
    model = nn.Sequential(nn.Linear(64, 64))

    def move(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
        for name in list(state):
            state[name] = state[name].clone()

    model._register_state_dict_hook(move)
    return model


def nothing_in_it() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64))
    model.register_parameter("empty", nn.Parameter(torch.empty(0, 4)))
    return model


MODELS: list[Callable[[], nn.Module]] = [
    tied,
    ViewsOfOne,
    norms,
    counted,
    extras,
    Inner,
    parametrized,
    shared_layer,
    recurrent,
    hooked,
    copied_by_a_hook,
    nothing_in_it,
]


def trained(make: Callable[[], nn.Module], steps: int = 3) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = make()
    flash.cast_model(model)
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = flash.FlashAdamW(chosen, lr=1e-2, master_weight_bits=32)
    support.run(optimizer, chosen, steps)
    return model, optimizer


def sharing(state: dict[str, Any]) -> set[tuple[str, str]]:
    tensors = {n: v for n, v in state.items() if isinstance(v, torch.Tensor) and v.numel()}
    pointers = {name: value.untyped_storage().data_ptr() for name, value in tensors.items()}
    return {(a, b) for a in tensors for b in tensors if pointers[a] == pointers[b]}


def bits(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()
    }


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for name in a:
        if isinstance(a[name], torch.Tensor):
            assert a[name].dtype == b[name].dtype, name
            assert torch.equal(a[name], b[name]), name
        elif isinstance(a[name], io.BytesIO):
            assert a[name].getvalue() == b[name].getvalue()
        else:
            assert a[name] == b[name], name


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_an_export_is_the_state_dict_with_all_bits(make: Callable[[], nn.Module]) -> None:
    model, optimizer = trained(make)
    state, taken = model.state_dict(), optimizer.get_fp32_model_state_dict(model)
    assert list(taken) == list(state)
    assert vars(taken) == vars(state), "the versions of its modules"
    assert sharing(taken) == sharing(state)
    live = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or name.endswith("_extra_state"):
            assert type(taken[name]) is type(value)
            continue
        wide = FP32 if value.dtype == BF16 else value.dtype
        assert taken[name].dtype == wide
        assert taken[name].shape == value.shape
        assert taken[name].untyped_storage().data_ptr() not in live, "a copy"
        # A correction is at most half a unit of the stored weight.
        torch.testing.assert_close(taken[name].to(value.dtype), value, rtol=2**-8, atol=0)
    moved = [n for n, v in taken.items() if isinstance(v, torch.Tensor) and v.dtype == FP32]
    assert any(not torch.equal(taken[n], state[n].float()) for n in moved), "the corrections are in it"
    kept = bits(taken)
    support.run(optimizer, [p for p in model.parameters() if p.requires_grad], 1, first=9)
    assert_equal(taken, kept)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_what_was_taken_is_set(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """By way of a file, into a model of other weights."""
    model, optimizer = trained(make)
    taken = optimizer.get_fp32_model_state_dict(model)
    torch.save(taken, tmp_path / "fp32.pt")
    other, its = trained(make, steps=5)
    for buffer in other.buffers():
        buffer.zero_()
    loaded = torch.load(tmp_path / "fp32.pt", weights_only=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing, unexpected = its.set_fp32_model_state_dict(other, loaded, strict=True)
    assert (missing, unexpected) == ([], [])
    again = its.get_fp32_model_state_dict(other)
    assert_equal(taken, again)
    assert sharing(again) == sharing(taken)
    for name, value in other.state_dict().items():
        if isinstance(value, torch.Tensor) and not name.endswith("_extra_state"):
            torch.testing.assert_close(value, model.state_dict()[name], rtol=2**-8, atol=0)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_full_precision_shares_as_the_model_does(make: Callable[[], nn.Module]) -> None:
    model, optimizer = trained(make)
    before = support.snapshot(optimizer)
    state, shared = bits(model.state_dict()), sharing(model.state_dict())
    taken = optimizer.get_fp32_model_state_dict(model)
    memory = [t.data_ptr() for t in (*model.parameters(), *model.buffers())]
    with pytest.raises(ZeroDivisionError), flash.full_precision(model, optimizer):
        inside = model.state_dict()
        assert sharing(inside) == shared
        assert_equal({n: inside[n] for n in taken}, taken)
        with flash.full_precision(model, optimizer):  # a second time changes nothing
            assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {FP32}
        raise ZeroDivisionError
    assert_equal(model.state_dict(), state)
    assert [t.data_ptr() for t in (*model.parameters(), *model.buffers())] == memory
    support.assert_same(before, optimizer)


def test_what_is_written_into_a_view_inside_is_the_weight() -> None:
    model, optimizer = trained(ViewsOfOne)
    written = torch.randn(64, 96)
    with flash.full_precision(model, optimizer), torch.no_grad():
        model.get_parameter("turned").copy_(written)
    taken = optimizer.get_fp32_model_state_dict(model)
    assert support.same_bits(taken["weight"], written.t().contiguous())
    assert torch.equal(taken["rows"], taken["weight"][:5])
    assert torch.equal(taken["turned"], taken["weight"].t())


def test_another_shape_inside_is_an_error_that_changes_nothing() -> None:
    model, optimizer = trained(Inner)
    before = support.snapshot(optimizer)
    with pytest.raises(ValueError, match="shape"), flash.full_precision(model, optimizer):
        model.get_parameter("head.bias").data = torch.zeros(3)
    support.assert_same(before, optimizer)


def test_failing_to_enter_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for the third copy, say."""
    model, optimizer = trained(Inner)
    before = support.snapshot(optimizer)
    calls = []
    join = flash.masters.join

    def failing(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return join(*arguments)

    monkeypatch.setattr(flash.masters, "join", failing)
    with pytest.raises(torch.OutOfMemoryError), flash.full_precision(model, optimizer):
        pass
    monkeypatch.undo()
    support.assert_same(before, optimizer)
    assert all("_flashoptim_recasts" not in module.__dict__ for module in model.modules())


WRAPPERS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda model: model, ""),
    (nn.DataParallel, ""),
    (lambda model: nn.DataParallel(nn.DataParallel(model)), ""),
    (lambda model: torch.compile(nn.DataParallel(model), backend="eager"), ""),
    (lambda model: torch.compile(model, backend="eager"), "_orig_mod."),
    (lambda model: nn.DataParallel(torch.compile(model, backend="eager")), "_orig_mod."),
    (lambda model: nn.Sequential(OrderedDict(module=model)), "module."),
    (lambda model: torch.optim.swa_utils.AveragedModel(model), "module."),
]


@pytest.mark.parametrize("number", range(len(WRAPPERS)))
@pytest.mark.parametrize("make", [Inner, tied], ids=lambda make: make.__name__)
def test_only_wrappers_are_taken_off(number: int, make: Callable[[], nn.Module]) -> None:
    wrap, prefix = WRAPPERS[number]
    torch.manual_seed(0)
    wrapped = wrap(make().bfloat16())
    optimizer = flash.FlashAdamW(wrapped.parameters(), lr=1e-2, master_weight_bits=32)
    support.run(optimizer, list(wrapped.parameters()), 2)
    taken = optimizer.get_fp32_model_state_dict(wrapped)
    names = {prefix + name for name in make().state_dict()}
    assert names <= set(taken)
    assert set(taken) - names <= {"n_averaged"}
    # Under the names of the export, of the wrapper, and of the model within.
    kept = bits(taken)
    for named in (
        taken,
        {name: taken[own] for name, own in zip(wrapped.state_dict(), taken, strict=True)},
        {name.removeprefix(prefix) if number in (4, 5) else name: value for name, value in taken.items()},
    ):
        with torch.no_grad():
            for p in wrapped.parameters():
                p.zero_()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.set_fp32_model_state_dict(wrapped, named, strict=True)
        assert_equal(optimizer.get_fp32_model_state_dict(wrapped), kept)


def test_one_name_of_a_tie_is_enough() -> None:
    """Writers of safetensors leave out the other one, whichever it is."""
    for name in ("0.weight", "1.weight"):
        model, optimizer = trained(tied)
        values = torch.randn(80, 64)
        missing, unexpected = optimizer.set_fp32_model_state_dict(model, {name: values}, strict=True)
        assert (missing, unexpected) == ([], [])
        taken = optimizer.get_fp32_model_state_dict(model)
        assert support.same_bits(taken["0.weight"], values)
        assert support.same_bits(taken["1.weight"], values)


def wrong(taken: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """State dicts that do not fit, and what the error names. Each has right entries before the wrong one."""
    rest = {name: torch.full_like(value, 0.5) for name, value in taken.items() if value.is_floating_point()}
    name = "3.weight"
    return [
        ({**rest, name: rest[name].bfloat16()}, name),
        ({**rest, name: rest[name].double()}, name),
        ({**rest, name: rest[name].int()}, name),
        ({**rest, name: rest[name][:5]}, name),
        ({**rest, name: rest[name][None]}, name),
        ({**rest, name: "text"}, name),
        ({**rest, "1.running_mean": torch.zeros(3)}, "1.running_mean"),
        ({f"module.{n}": v for n, v in rest.items()}, "module"),
        ({"other": torch.zeros(2)}, "nothing would be set"),
        ({}, "empty"),
        ({**rest, name: rest[name].to("meta")}, name),
        ({**rest, name: rest[name].to_sparse()}, name),
        ({**rest, name: support.freed(rest[name])}, name),
        ({**rest, "1.running_mean": support.freed(rest["1.running_mean"])}, "1.running_mean"),
        ({**rest, "1.running_mean": rest["1.running_mean"].to_sparse()}, "1.running_mean"),
        (cast(Any, None), "NoneType"),
        (cast(Any, list(rest.items())), "list"),
        (cast(Any, {**rest, 0: rest[name]}), "int"),
    ]


@pytest.mark.parametrize("number", range(18))
def test_what_does_not_fit_changes_nothing(number: int) -> None:
    model, optimizer = trained(norms)
    given, named = wrong(optimizer.get_fp32_model_state_dict(model))[number]
    before, state = support.snapshot(optimizer), bits(model.state_dict())
    with pytest.raises(ValueError, match=named):
        optimizer.set_fp32_model_state_dict(model, given)
    support.assert_same(before, optimizer)
    assert_equal(model.state_dict(), state)


def test_missing_and_unexpected_names() -> None:
    model, optimizer = trained(norms)
    taken = optimizer.get_fp32_model_state_dict(model)
    part = {"0.bias": torch.ones(64), "0.bais": torch.ones(64)}
    with pytest.warns(UserWarning, match=r"0\.bais"):
        missing, unexpected = optimizer.set_fp32_model_state_dict(model, part)
    assert unexpected == ["0.bais"]
    assert set(missing) == set(taken) - {"0.bias"}
    assert torch.equal(optimizer.get_fp32_model_state_dict(model)["0.bias"], torch.ones(64))
    with pytest.raises(ValueError, match=r"0\.bais"):
        optimizer.set_fp32_model_state_dict(model, {**taken, "0.bais": torch.ones(64)}, strict=True)
    with pytest.raises(ValueError, match=r"0\.weight"):
        optimizer.set_fp32_model_state_dict(model, {"0.bias": torch.ones(64)}, strict=True)


def test_what_is_not_yet_made_is_handed_on() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LazyLinear(4))
    flash.cast_model(model)
    optimizer: Any = flash.FlashAdamW(model[0].parameters(), lr=1e-2)
    support.run(optimizer, list(model[0].parameters()), 1)
    taken = optimizer.get_fp32_model_state_dict(model)
    assert taken["0.weight"].dtype == FP32
    assert nn.parameter.is_lazy(taken["1.weight"])
    with flash.full_precision(model, optimizer):
        assert model.get_parameter("0.weight").dtype == FP32
    with pytest.raises(ValueError, match=r"1\.weight.*no memory"):
        optimizer.set_fp32_model_state_dict(model, {"1.weight": torch.zeros(4, 64)})


class Quantised(support.Codes):
    """Codes that look like bfloat16."""

    looks = BF16

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        aten = torch.ops.aten
        if func in (aten.detach.default, aten.alias.default):
            return Quantised(args[0].codes)
        if func in (aten.clone.default, aten._to_copy.default) and (kwargs or {}).get("dtype") in (
            None,
            BF16,
        ):
            return Quantised(args[0].codes.clone())
        raise NotImplementedError(f"{func} of codes")


def test_frozen_quantised_weights_stay_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(64, 64).bfloat16(), nn.Linear(8, 8, bias=False))
    codes = torch.arange(64, dtype=torch.int8).view(8, 8)
    model[1].weight = nn.Parameter(Quantised(codes), requires_grad=False)
    optimizer: Any = flash.FlashAdamW(model[0].parameters(), lr=1e-2)
    support.run(optimizer, list(model[0].parameters()), 1)
    flash.cast_model(model)
    with flash.full_precision(model, optimizer):
        assert type(model[1].weight.data) is Quantised
    taken = optimizer.get_fp32_model_state_dict(model)
    assert taken["0.weight"].dtype == FP32
    assert torch.equal(taken["1.weight"].codes, codes)
    assert taken["1.weight"].codes.data_ptr() != codes.data_ptr()


def test_fsdp1_is_refused() -> None:
    """Its parameters are flat pieces; their names would say that they are weights."""

    class FullyShardedDataParallel(nn.Module):
        pass

    model, optimizer = trained(Inner)
    model.register_module("wrapped", FullyShardedDataParallel())
    for use in (
        lambda: optimizer.get_fp32_model_state_dict(model),
        lambda: optimizer.set_fp32_model_state_dict(model, {}),
        lambda: optimizer.full_precision(model).__enter__(),
    ):
        with pytest.raises(TypeError, match="fully_shard"):
            use()


def test_a_weight_without_memory_is_not_set_silently() -> None:
    with torch.device("meta"):
        model = nn.Linear(64, 64)
    optimizer = flash.FlashAdamW(model.parameters())
    with pytest.raises(ValueError, match="no memory"):
        optimizer.set_fp32_model_state_dict(model, {"weight": torch.zeros(64, 64)})


def test_a_hook_that_changes_a_weight_is_honoured() -> None:
    model, optimizer = trained(lambda: nn.Sequential(nn.Linear(64, 64)))

    def double(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
        state["0.weight"] = state["0.weight"] * 2

    model._register_state_dict_hook(double)
    taken = optimizer.get_fp32_model_state_dict(model)
    assert torch.equal(taken["0.weight"], model.state_dict()["0.weight"].float())


def test_an_export_loads_into_the_model_in_fp32() -> None:
    for make in MODELS:
        model, optimizer = trained(make)
        taken = optimizer.get_fp32_model_state_dict(model)
        torch.manual_seed(1)
        twin = make()
        if make is not hooked:
            twin.load_state_dict(copy.copy(taken))
