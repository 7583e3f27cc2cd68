"""Layers that stay in fp32: their inputs and outputs, in containers of every kind.

What a user loses if these fail: an fp32 layer that is fed bfloat16, an error in the middle of
a model, or the caller's lists.
"""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flashoptim_cpp as flash
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

BF16, FP32 = torch.bfloat16, torch.float32


class Typed(NamedTuple):
    x: Any
    y: Any = None


Plain = namedtuple("Plain", ["x", "y"])


@dataclass
class Data:
    x: Any
    y: Any = None
    made: int = field(default=0, init=False)


@dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = None


@dataclass(slots=True)
class Slotted:
    x: Any
    y: Any = None


class OwnDict(dict):
    note = "kept"


class OwnList(list):
    note = "kept"


class Output(OrderedDict):
    """As transformers' ModelOutput: keys are attributes too."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "tensor": lambda x, y: x,
    "list": lambda x, y: [x, y],
    "tuple": lambda x, y: (x, y),
    "empty list": lambda x, y: [x, []],
    "dict": lambda x, y: {"x": x, "y": y},
    "ordered dict": lambda x, y: OrderedDict(x=x, y=y),
    "default dict": lambda x, y: defaultdict(list, x=x, y=y),
    "user dict": lambda x, y: UserDict(x=x, y=y),
    "user list": lambda x, y: UserList([x, y]),
    "own dict": lambda x, y: OwnDict(x=x, y=y),
    "own list": lambda x, y: OwnList([x, y]),
    "model output": lambda x, y: Output(x=x, y=y),
    "deque": lambda x, y: deque([x, y], maxlen=4),
    "typed tuple": Typed,
    "named tuple": Plain,
    "torch's tuple": lambda x, y: torch.topk(x, 2),
    "dataclass": Data,
    "frozen dataclass": Frozen,
    "dataclass with slots": Slotted,
    "nested": lambda x, y: {"a": [(x, {"b": Data(Typed(x, y))})], "c": None, "d": "text", "e": 3},
    "packed sequence": lambda x, y: pack_sequence([x[0], x[1]]),
}


def items_in(value: Any) -> list[Any]:
    if isinstance(value, (dict, UserDict)):
        return list(value.values())
    if isinstance(value, (list, tuple, deque, UserList)):
        return list(value)
    return [value.x, value.y] if hasattr(value, "x") else []


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in items_in(value) for tensor in tensors_in(item)]


def kinds_in(value: Any) -> list[type]:
    """The types of all containers, from the outside to the inside."""
    items = [] if isinstance(value, torch.Tensor) else items_in(value)
    if not items:
        return []
    return [type(value), *(kind for item in items for kind in kinds_in(item))]


class Recorder(nn.Module):
    """Keeps what it is given, and hands it on as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["given"] = (args, kwargs)
        return args[0] if args else kwargs["value"]


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 4, dtype=BF16, requires_grad=True), torch.arange(3)


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("recast", [False, True])
def test_every_container_both_ways(kind: str, by_name: bool, recast: bool) -> None:
    model = nn.Sequential(Recorder())
    layers = {"full_precision_recast_layers" if recast else "full_precision_layers": ["0"]}
    flash.cast_model(model, **layers)
    x, y = pair()
    value = CONTAINERS[kind](x, y)
    before = [(id(tensor), tensor.dtype) for tensor in tensors_in(value)]
    output = model[0](value=value) if by_name else model[0](value)
    args, kwargs = model[0].__dict__["given"]
    inside = kwargs["value"] if by_name else args[0]
    for tensor in tensors_in(inside):
        assert tensor.dtype in (FP32, torch.int64)
    for tensor in tensors_in(output):
        assert tensor.dtype in (BF16 if recast else FP32, torch.int64)
    assert len(tensors_in(inside)) == len(tensors_in(output)) == len(before)
    assert kinds_in(inside) == kinds_in(output) == kinds_in(value)
    assert [(id(tensor), tensor.dtype) for tensor in tensors_in(value)] == before, "the caller's own"
    first = next(tensor for tensor in tensors_in(output) if tensor.is_floating_point())
    first.sum().backward()
    assert x.grad is not None, "gradients flow through the cast"


def test_what_is_more_than_its_items_is_kept() -> None:
    model = nn.Sequential(Recorder())
    flash.cast_model(model, full_precision_layers=["0"])
    x, y = pair()
    own = OwnDict(x=x)
    own.more = "text"  # type: ignore[attr-defined]
    assert model[0](own).more == "text"
    data = Data(x)
    data.made = 7
    assert model[0](data).made == 7
    assert model[0](defaultdict(list, x=x)).default_factory is list
    assert model[0](deque([x, y], maxlen=4)).maxlen == 4
    assert model[0](Output(x=x)).x.dtype == FP32


def test_one_object_stays_one() -> None:
    """Attention asks whether query, key and value are the same object."""
    model = nn.Sequential(Recorder())
    flash.cast_model(model, full_precision_layers=["0"])
    x, _ = pair()
    shared = [x]
    model[0](x, [x, shared], again=x, more=shared)
    (first, (second, inside)), kwargs = model[0].__dict__["given"]
    assert first is second is kwargs["again"] is inside[0]
    assert inside is kwargs["more"]
    assert shared[0] is x


def test_what_needs_no_cast_is_handed_on_itself() -> None:
    model = nn.Sequential(Recorder())
    flash.cast_model(model, full_precision_layers=["0"])
    values: list[Any] = [
        [1, 2, "three"],
        {"ids": torch.arange(3), "mask": torch.ones(3, dtype=torch.bool)},
        (torch.randn(3), torch.randn(3, dtype=torch.complex64)),
        torch.Size([2, 3]),
        range(3),
        None,
        "text",
        Data(torch.randn(2)),
        object(),
    ]
    for value in values:
        model[0](value, name=value)
        args, kwargs = model[0].__dict__["given"]
        assert args[0] is value
        assert kwargs["name"] is value
    ring: list[Any] = [torch.arange(2)]
    ring.append(ring)
    assert model[0](ring) is ring


class Block(nn.Module):
    """As a layer of transformers: keywords, a mask that may be None, a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(
        self, hidden_states: torch.Tensor, *, mask: torch.Tensor | None = None, rotary: Any = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = self.linear(hidden_states)
        if rotary is not None:
            x = x * rotary[0] + rotary[1]
        return x if mask is None else x + mask, {"hidden": x}


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(8, 8), Block(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x, more = self.block(hidden_states=x, mask=torch.zeros_like(x), rotary=(torch.ones_like(x), x))
        return self.last(x + more["hidden"])


def around() -> Around:
    torch.manual_seed(0)
    model = Around()
    flash.cast_model(model, full_precision_recast_layers=["block"])
    return model


def test_a_model_of_keywords_trains() -> None:
    model, x = around(), torch.randn(4, 8, dtype=BF16)
    model(x).sum().backward()
    grads = [p.grad for p in model.parameters()]
    assert [g.dtype for g in grads if g is not None] == [BF16, BF16, FP32, FP32, BF16, BF16]
    again = around()
    checkpoint(again, x, use_reentrant=False).sum().backward()
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)


def test_copies_and_pickles_cast_as_well() -> None:
    model, x = around(), torch.randn(4, 8, dtype=BF16)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


def test_it_compiles_in_one_graph() -> None:
    model, x = around(), torch.randn(4, 8, dtype=BF16)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))


def test_later_casts_add_what_is_missing() -> None:
    """No second hook; a layer that was to stay fp32 may hand on 16 bits later,
    and other 16 bits after that."""
    model = around()
    block = model.block
    flash.cast_model(model, full_precision_layers=["block"])
    flash.cast_model(model, torch.float16, full_precision_recast_layers=["block"])
    assert (len(block._forward_pre_hooks), len(block._forward_hooks)) == (1, 1)
    assert block(torch.randn(2, 8).half())[0].dtype == torch.float16
    other = nn.Sequential(nn.Linear(4, 4))
    flash.cast_model(other, full_precision_layers=["0"])
    assert other(torch.randn(2, 4).bfloat16()).dtype == FP32
    flash.cast_model(other, full_precision_recast_layers=["0"])
    assert (len(other[0]._forward_pre_hooks), len(other[0]._forward_hooks)) == (1, 1)
    assert other(torch.randn(2, 4).bfloat16()).dtype == BF16


def test_a_layer_with_two_names_is_meant_by_either() -> None:
    for pattern in ("0", "1"):
        layer = nn.Linear(4, 4)
        model = nn.Sequential(layer, layer)
        flash.cast_model(model, full_precision_layers=[pattern])
        assert layer.weight.dtype == FP32


def test_recurrent_layers_get_states_and_packed_sequences() -> None:
    model = nn.Sequential(nn.LSTM(4, 8, batch_first=True))
    flash.cast_model(model, full_precision_recast_layers=["0"])
    x, zeros = torch.randn(3, 5, 4).bfloat16(), torch.zeros(1, 3, 8, dtype=BF16)
    out, (h, c) = model[0](x, (zeros, zeros))
    assert {out.dtype, h.dtype, c.dtype} == {BF16}
    packed, _ = model[0](pack_sequence([x[0], x[1, :3]]))
    assert packed.data.dtype == BF16
