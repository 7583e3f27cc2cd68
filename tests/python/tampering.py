"""State dicts of every source, and every way to tamper with one: entries, options
and wholes of the wrong kind."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import support
import torch
from flashoptim_cpp.memory import has_memory
from support import ADAMW, LION, SGD, Rule

Saved = dict[str, Any]
BF16, FP32 = torch.bfloat16, torch.float32


class Thing:
    """Of no use in a state dict, and not to be copied."""

    def __deepcopy__(self, memo: Any) -> Thing:
        raise TypeError("a thing cannot be copied")


# What stands in the place of any entry.
class Stubborn:
    """Neither to be copied nor to be shown, with errors of its own."""

    def __deepcopy__(self, memo: Any) -> Stubborn:
        raise KeyError("no copy")

    def __repr__(self) -> str:
        raise AttributeError("no text")


def deep_list() -> list[Any]:
    """So deep that Python can neither copy nor show it."""
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    return nested


OBJECTS: dict[str, Any] = {
    "None": None,
    "text": "x",
    "bytes": b"12",
    "a list": [1, 2],
    "a tuple": (),
    "a dict": {"a": 1},
    "an empty dict": {},
    "a set": {1},
    "NaN": math.nan,
    "infinity": math.inf,
    "-infinity": -math.inf,
    "a huge integer": 10**400,
    "2^63": 2**63,
    "a negative number": -1,
    "a half": 0.5,
    "True": True,
    "a complex number": 1j,
    "a function": print,
    "a thing": Thing(),
    "a class": int,
    "a decimal": Decimal("1.5"),
    "a stubborn thing": Stubborn(),
    "a deep list": deep_list(),
}
# Kinds of tensors that are none of ours.
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.to(torch.bool),
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "int32": lambda t: t.to(torch.int32),
    "sparse": lambda t: t.float().to_sparse(),
    "sparse of its dtype": lambda t: t.to_sparse(),
    "csr": lambda t: (t.float() if t.dim() == 2 else torch.zeros(2, 2)).to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "freed": support.freed,
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t.float().reshape(-1), torch.zeros(2)]),
    "NumPy's": lambda t: t.float().numpy(),
    "storage": lambda t: t.untyped_storage(),
    "empty": lambda t: t.new_empty(0),
    "one dimension more": lambda t: t[None],
    "a dimension at the end": lambda t: t[..., None],
    "twice as many": lambda t: torch.stack([t, t]),
}
# What only a tensor with elements can become.
SHAPES: dict[str, Callable[[torch.Tensor], Any]] = {
    "a number": lambda t: t.flatten()[0],
    "a row less": lambda t: t[:-1].clone(),
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "transposed": lambda t: t.transpose(0, -1),
    "transposed and contiguous": lambda t: t.transpose(0, -1).contiguous(),
    "a view of another shape": lambda t: t.reshape(2, -1),
    "reversed shape": lambda t: t.reshape(tuple(reversed(t.shape))),
}


def source(rule: Rule, given: list[torch.nn.Parameter], **options: Any) -> Saved:
    optimizer = rule(given, **options)
    support.run(optimizer, given, 3)
    saved: Saved = copy.deepcopy(optimizer.state_dict())
    return saved


def of_torch(rule: Rule) -> Saved:
    given = support.parameters(FP32)
    optimizer = rule.reference(given)
    support.run(optimizer, given, 3)
    saved: Saved = copy.deepcopy(optimizer.state_dict())
    return saved


def of_the_authors(saved: Saved) -> Saved:
    """Corrections and scales as bfloat16, flat scales, their key of the groups."""
    for state in saved["state"].values():
        for key, value in state.items():
            if key == "error_bits":
                state[key] = value.to(BF16) if value.dtype == torch.int8 else value.view(BF16)
            elif key.endswith("::scales"):
                state[key] = value.flatten().view(BF16)
    for group in saved["param_groups"]:
        bits = group.pop("master_weight_bits")
        for key in ("format", "weight_dtype", "fused"):
            del group[key]
        group["master_bytewidth"] = bits // 8
    return saved


SOURCES: dict[str, Callable[[], tuple[Rule, Saved]]] = {
    "native": lambda: (ADAMW, source(ADAMW, support.parameters())),
    "native-32": lambda: (LION, source(LION, support.parameters(), master_weight_bits=32)),
    "paper": lambda: (ADAMW, source(ADAMW, support.parameters(), format="paper", master_weight_bits=32)),
    "plain": lambda: (SGD, source(SGD, support.parameters(), compress_state_dict=False)),
    "torch": lambda: (ADAMW, of_torch(ADAMW)),
    "authors": lambda: (ADAMW, of_the_authors(source(ADAMW, support.parameters(), format="paper"))),
}


class Target:
    """An optimizer that is to be as it was after every refusal."""

    def __init__(self, rule: Rule, saved: Saved | None) -> None:
        self.rule = rule
        self.given = support.parameters(seed=3)
        self.optimizer = rule(self.given, lr=5e-4)
        support.run(self.optimizer, self.given, 2)
        self.before = support.snapshot(self.optimizer)
        self.groups = copy.deepcopy(self.optimizer.param_groups)
        if saved is not None:  # what is not tampered with is taken
            rule(support.parameters(seed=4)).load_state_dict(copy.deepcopy(saved))

    def refuses(self, what: str, saved: Any) -> str | None:
        """What is wrong with the refusal, if something is."""
        try:
            self.optimizer.load_state_dict(saved)
        except ValueError as error:
            said = str(error)
        except Exception as error:  # any other kind is what this looks for
            return f"{what}: {type(error).__name__}: {error}"
        else:
            self.__init__(self.rule, None)  # type: ignore[misc]
            return f"{what}: taken"
        if "\n" in said.strip() or len(said) > 500:
            return f"{what}: not one line: {said}"
        if found := support.differences(self.before, support.snapshot(self.optimizer)):
            return f"{what}: changed {found}"
        if [{**g, "params": 0} for g in self.groups] != [
            {**g, "params": 0} for g in self.optimizer.param_groups
        ]:
            return f"{what}: changed a group"
        return None


def with_entry(saved: Saved, number: int, key: str, value: Any) -> Saved:
    state = {**saved["state"], number: {**saved["state"][number], key: value}}
    return {**saved, "state": state}


def with_option(saved: Saved, key: str, value: Any) -> Saved:
    return {**saved, "param_groups": [{**saved["param_groups"][0], key: value}]}


def is_the_same(value: torch.Tensor, changed: Any) -> bool:
    """In what can be checked."""
    if not isinstance(changed, torch.Tensor) or changed.is_nested or changed.is_quantized:
        return False
    return (changed.layout, changed.shape, changed.dtype, changed.device) == (
        value.layout,
        value.shape,
        value.dtype,
        value.device,
    )


def is_flat(key: str, value: torch.Tensor, changed: Any) -> bool:
    """Flat scales are read in their order, whatever shape they had."""
    is_tensor = isinstance(changed, torch.Tensor) and not changed.is_nested
    return is_tensor and key.endswith("::scales") and changed.dim() == 1 and changed.numel() == value.numel()


def is_legal(saved: Saved, key: str, name: str) -> bool:
    """torch.optim.SGD writes None where it has no momentum."""
    return key == "momentum_buffer" and name == "None" and "format" not in saved["param_groups"][0]


def entries(rule: Rule, saved: Saved) -> Iterator[tuple[str, Saved]]:
    for number in (0, 2):
        for key, value in saved["state"][number].items():
            for name, thing in OBJECTS.items():
                if not is_legal(saved, key, name):
                    yield f"{number}.{key} is {name}", with_entry(saved, number, key, thing)
            for name, change in (TENSORS | (SHAPES if value.dim() else {})).items():
                try:
                    changed = change(value)
                except (RuntimeError, IndexError, TypeError, NotImplementedError):
                    continue  # there is no such tensor
                if (name == "freed" or not is_the_same(value, changed)) and not is_flat(key, value, changed):
                    yield f"{number}.{key} becomes {name}", with_entry(saved, number, key, changed)
        for key in saved["state"][number]:
            if key == "step":
                continue  # torch's SGD and the authors' rules but Adam have none
            kept = {k: v for k, v in saved["state"][number].items() if k != key}
            if any(not k.startswith("step") for k in kept):
                yield f"{number}.{key} is missing", {**saved, "state": {**saved["state"], number: kept}}
        yield f"{number} has a stubborn thing of others", with_entry(saved, number, "slow", Stubborn())
        yield (
            f"{number} has a freed tensor of others",
            with_entry(saved, number, "slow", support.freed(torch.ones(9))),
        )
        for key in (
            "max_exp_avg_sq",
            "max_exp_avg_sq::scales",
            "exp_avg_diff",
            "exp_avg::codes",
            "error_bits::former",
            "state1",
            "__bnb_optimizer_quant_state__",
            "momentum_buffer" if rule is not SGD else "exp_avg",
            "momentum_buffer::quantized" if rule is not SGD else "exp_avg_sq::scales",
        ):
            yield f"{number} has {key}", with_entry(saved, number, key, torch.zeros(3))
    for thing in OBJECTS:
        if thing not in ("an empty dict", "a dict"):
            yield f"a state is {thing}", {**saved, "state": {**saved["state"], 0: OBJECTS[thing]}}


STEPS: dict[str, Any] = {
    "a fraction": torch.tensor(2.5),
    "negative": torch.tensor(-1),
    "negative float": torch.tensor(-1.0),
    "infinite": torch.tensor(math.inf),
    "NaN": torch.tensor(math.nan),
    "2^63 as float": torch.tensor(2.0**63),
    "2^63 as uint64": torch.tensor(2**63, dtype=torch.uint64),
    "a vector": torch.ones(3, dtype=torch.int64),
    "a vector of one": torch.ones(1, dtype=torch.int64),
    "text of a number": "3",
    **{
        str(dtype): torch.ones((), dtype=dtype)
        for dtype in (
            torch.bool,
            torch.int8,
            torch.uint8,
            torch.int16,
            torch.int32,
            torch.float16,
            torch.bfloat16,
            torch.complex64,
            torch.float8_e5m2,
        )
    },
}


def of_one_line(value: Any) -> str:
    is_shown = not isinstance(value, Stubborn) and (
        not isinstance(value, torch.Tensor) or value.is_sparse or has_memory(value)
    )
    return repr(value) if is_shown else f"a bad {type(value).__name__}"


def options(rule: Rule, saved: Saved) -> Iterator[tuple[str, Any]]:
    group = saved["param_groups"][0]
    flags = ("maximize", "amsgrad", "capturable", "differentiable", "nesterov", "decouple_lr")
    # Options that are not taken over: what nobody writes there is refused all the same.
    unused = ("quantize", "check_gradients", "accumulate_fp32", "fused", "foreach")
    sizes = ("min_quantized_numel", "min_quantized_numel_1d")
    numbers = ("lr", "weight_decay", "eps", "momentum", "dampening", "initial_lr")
    kept = {"True", "False", "None"}
    others = ("betas", "nonfinite", "format", "master_weight_bits", "master_bytewidth")
    for key in (*flags, *unused, *sizes, *numbers, *others):
        if key not in group:
            continue
        for name, thing in OBJECTS.items():
            harmless = (
                (
                    key in flags
                    and name in kept
                    and key not in ("amsgrad", "differentiable")
                    and thing is not None
                )
                or (name in ("a half", "2^63") and key in ("lr", "weight_decay", "eps", "initial_lr"))
                or (name == "a half" and key in numbers)
                or (key in unused and name == "True")
                or (key in ("fused", "foreach") and thing is None)
                or (key in ("master_weight_bits", "master_bytewidth") and thing is None)
            )
            if harmless or (key == "nesterov" and name == "True"):
                continue
            if key in ("master_weight_bits",) and "format" not in group:
                continue
            yield f"{key} is {name}", with_option(saved, key, thing)
    for key, value in (
        ("master_weight_bits", "24"),
        ("master_weight_bits", 24.0),
        ("master_weight_bits", 20),
        ("master_weight_bits", torch.tensor([24, 24])),
        ("master_bytewidth", "3"),
        ("maximize", "x"),
        ("lr", "0.1"),
        ("lr", torch.zeros(2)),
        ("lr", torch.zeros(1, device="meta")),
        ("lr", torch.ones(1, dtype=torch.complex64)),
        ("lr", torch.ones(1).to_sparse()),
        ("lr", support.freed(torch.ones(()))),
        ("betas", (0.9,)),
        ("betas", (0.9, 0.99, 0.999)),
        ("betas", 0.9),
        ("betas", ("0.9", "0.99")),
        ("betas", (0.9, 2.0)),
        ("betas", (math.nan, 0.9)),
        ("weight_dtype", "bfloat17"),
        ("weight_dtype", 16),
        ("format", "native2"),
        ("param_names", "abcd"),
        ("param_names", [1, 2, 3, 4]),
        ("params", [0, 1, 2]),
        ("params", [0, 1, 2, 3, 4]),
        ("params", [0, 1, 2, 2]),
        ("params", [0, 1, 2, 2.5]),
        ("params", [0, 1, 2, None]),
        ("params", [0, 1, 2, True]),
        ("params", [0, 1, 2, [3]]),
        ("params", [0, 1, 2, -3]),
        ("params", ["a", "b", "c", "d"]),
        ("params", "0123"),
        ("params", 4),
        ("params", {0: 1}),
        ("foreign", (n for n in range(3))),
        ("foreign", Thing()),
        ("foreign", Stubborn()),
    ):
        if key == "master_bytewidth" and "format" in group and value == "3":
            yield f"{key} is {of_one_line(value)}", with_option(saved, key, value)
        elif (key == "betas" and rule is SGD) or (key == "master_weight_bits" and "format" not in group):
            continue
        else:
            yield f"{key} is {of_one_line(value)}", with_option(saved, key, value)
    without = {k: v for k, v in group.items() if k != "params"}
    yield "no params", {**saved, "param_groups": [without]}


def wholes(saved: Saved) -> Iterator[tuple[str, Any]]:
    for name, thing in OBJECTS.items():
        yield f"the state dict is {name}", thing
        yield f"its state is {name}", {**saved, "state": thing} if name != "an empty dict" else {"state": 1}
        yield f"its groups are {name}", {**saved, "param_groups": thing}
        yield f"a group is {name}", {**saved, "param_groups": [thing]}
    yield "no state", {"param_groups": saved["param_groups"]}
    yield "no groups", {"state": saved["state"]}
    yield "no group", {**saved, "param_groups": []}
    yield "two groups", {**saved, "param_groups": saved["param_groups"] * 2}
    yield "a parameter too many", {**saved, "state": {**saved["state"], 17: saved["state"][0]}}
    yield "a number that is none", {**saved, "state": {**saved["state"], None: saved["state"][0]}}
    yield (
        "two places exchanged",
        {
            **saved,
            "state": {**saved["state"], 0: saved["state"][1], 1: saved["state"][0]},
        },
    )


@functools.cache
def prepared(name: str) -> tuple[Rule, Saved]:
    return SOURCES[name]()
