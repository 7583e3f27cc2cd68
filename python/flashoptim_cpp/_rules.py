"""The core's table of rules: moments, hyperparameters, ranges and defaults. No other file repeats it."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from numbers import Real
from typing import Any, Final, NamedTuple

import torch

from . import _operators as ops
from .memory import has_memory

Group = dict[str, Any]


class Storage(IntEnum):
    """How moments are stored, as numbered by the operators. The names in lower case are those of formats."""

    NATIVE = 0
    PAPER = 1
    FP32 = 2


FORMATS: Final = {storage.name.lower(): storage for storage in Storage}
# The dtypes of weights and gradients, in the order of the core.
WEIGHT_DTYPES: Final = ops.DTYPES[:3]


class MomentKind(IntEnum):
    """What a moment is, as numbered by the operators."""

    SIGNED = 0
    SQUARED = 1
    SLOW = 2
    GRADIENT = 3


class MomentTraits(NamedTuple):
    """A moment of a rule."""

    name: str  # in states and in files
    kind: MomentKind
    needs: str | None  # the moment exists if this argument is not 0; None: always


class Range(NamedTuple):
    """The allowed values of a hyperparameter."""

    minimum: float
    maximum: float
    minimum_open: bool
    maximum_open: bool

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, float)
        above = value > self.minimum if self.minimum_open else value >= self.minimum
        return above and (value < self.maximum if self.maximum_open else value <= self.maximum)

    def __str__(self) -> str:
        if self.maximum == math.inf:
            return "finite and positive" if self.minimum_open else "finite and not negative"
        above = "more than" if self.minimum_open else "at least"
        return (
            f"{above} {self.minimum:g} and {'less than' if self.maximum_open else 'at most'} {self.maximum:g}"
        )


class Hyperparameter(NamedTuple):
    """A number that a rule reads."""

    name: str
    column: int  # index in a row of hyperparameters
    default: float  # in Python
    range: Range


@dataclass(eq=False)
class Rule:
    """A row of the core's table of rules."""

    number: int  # the operators' number of the rule
    name: str
    is_coupled: bool  # weight decay is an L2 term of the gradient
    moments: tuple[MomentTraits, ...]
    arguments: Mapping[str, tuple[Hyperparameter, ...]]  # Python arguments with their hyperparameters
    flags: Mapping[str, int]  # boolean Python arguments with their columns

    @property
    def divides_by_root(self) -> bool:
        """Whether the update is divided by the root of a second moment."""
        return any(moment.kind == MomentKind.SQUARED for moment in self.moments)

    @cached_property
    def filled_first(self) -> int | None:
        """The number of the moment that the first step fills, as it has no earlier value; None: no moment."""
        for n, moment in enumerate(self.moments):
            if moment.needs is not None or moment.kind == MomentKind.GRADIENT:
                return n
        return None

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The arguments that decide which moments exist."""
        return tuple({moment.needs for moment in self.moments if moment.needs is not None})

    @cached_property
    def columns(self) -> tuple[tuple[int, str, int], ...]:
        """For each hyperparameter its column, its Python argument, and its index in that argument (-1: no
        tuple).
        """
        return tuple(
            (own.column, argument, n if len(numbers) > 1 else -1)
            for argument, numbers in self.arguments.items()
            for n, own in enumerate(numbers)
        )

    def defaults(self) -> Group:
        """The defaults of all arguments."""
        group: Group = {"decouple_lr": False, **dict.fromkeys(self.flags, False)}
        for argument, numbers in self.arguments.items():
            defaults = tuple(own.default for own in numbers)
            group[argument] = defaults if len(defaults) > 1 else defaults[0]
        return group

    def moments_in(self, group: Mapping[str, Any]) -> Iterator[tuple[int, MomentTraits]]:
        """The moments of parameters in this group, with their numbers."""
        for n, moment in enumerate(self.moments):
            if moment.needs is None or group[moment.needs] != 0:
                yield n, moment


def _rule(number: int, row: Mapping[str, Any]) -> Rule:
    arguments = {h["name"]: h["python"] for h in row["hyperparameters"]}
    moments = [
        MomentTraits(m["name"], MomentKind(m["kind"]), arguments.get(m["present"])) for m in row["moments"]
    ]
    numbers: dict[str, tuple[Hyperparameter, ...]] = {}
    flags = {}
    for h in row["hyperparameters"]:
        column = _COLUMNS.index(h["name"])
        if h["flag"]:
            flags[h["python"]] = column
        if h["flag"] or column == _INITIAL_RATE:
            continue
        default = h["default"] if h.get("python_default") is None else h["python_default"]
        maximum = math.inf if h["maximum"] is None else h["maximum"]
        limits = Range(h["minimum"], maximum, h["minimum_open"], h["maximum_open"] or maximum == math.inf)
        own = Hyperparameter(h["name"], column, default, limits)
        numbers[h["python"]] = (*numbers.get(h["python"], ()), own)
    return Rule(number, row["name"], row["decay"] == "coupled", tuple(moments), numbers, flags)


_TABLE: Final = json.loads(ops.rule_table())
# The names of the columns in a row of hyperparameters.
_COLUMNS: Final = tuple(_TABLE["columns"])
# Column of initial_lr. Groups have that entry only if their weight decay is relative to it.
_INITIAL_RATE: Final = _COLUMNS.index("initial_learning_rate")
RULES: Final = {row["name"]: _rule(number, row) for number, row in enumerate(_TABLE["rules"])}
# The names of the moments, and the flags, of all rules.
MOMENTS: Final = tuple(dict.fromkeys(moment.name for rule in RULES.values() for moment in rule.moments))
FLAGS: Final = tuple(dict.fromkeys(flag for rule in RULES.values() for flag in rule.flags))


def shown(value: object) -> str:
    """A value as text for an error message of one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(value: Any) -> float:  # noqa: ANN401
    """The value of a hyperparameter, which may be a tensor of one element."""
    return float(value)


def _checked_number(value: Any, name: str) -> float:  # noqa: ANN401
    """A hyperparameter as a float; infinite if it is too large for a float.

    Raises:
        ValueError: if it is neither a real number nor a tensor of one.
    """
    if isinstance(value, torch.Tensor):
        is_number = value.numel() == 1 and value.layout == torch.strided and value.device.type != "meta"
        is_number = is_number and has_memory(value)
        if not is_number or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(
                f"{name} is a tensor of shape {tuple(value.shape)} and {value.dtype}; it must have one real "
                "number"
            )
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={shown(value)} is {type(value).__name__}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_range(value: Any, name: str, what: str, limits: Range) -> None:  # noqa: ANN401
    if _checked_number(value, name) not in limits:
        raise ValueError(f"Invalid {what}: {shown(value)}; it must be {limits}")


def check_numbers(rule: Rule, group: Mapping[str, Any]) -> None:
    """Checks every hyperparameter of a group, in torch.optim's words.

    Raises:
        ValueError: that names the argument, its value and what it may be.
    """
    for argument, numbers in rule.arguments.items():
        value = group[argument]
        if len(numbers) == 1:
            what = "learning rate" if argument == "lr" else f"{numbers[0].name} value"
            _check_range(value, argument, what, numbers[0].range)
            continue
        if not isinstance(value, tuple | list) or len(value) != len(numbers):
            raise ValueError(f"{argument}={shown(value)} must be {len(numbers)} numbers")
        one = argument.removesuffix("s")
        for n, (item, own) in enumerate(zip(value, numbers, strict=True)):
            _check_range(item, f"a {one}", f"{one} parameter at index {n}", own.range)
    if "initial_lr" in group:
        _check_range(group["initial_lr"], "initial_lr", "initial_lr", rule.arguments["lr"][0].range)
    if group["decouple_lr"]:
        if rule.is_coupled:
            others = ", ".join(other.name for other in RULES.values() if not other.is_coupled)
            raise ValueError(f"decouple_lr needs a rule with decoupled weight decay: {others}")
        if group["weight_decay"] != 0 and number(initial_lr(group)) == 0.0:
            raise ValueError(
                "decouple_lr measures weight decay by initial_lr, which is 0; set it to the schedule's peak"
            )


def initial_lr(group: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The learning rate that `decouple_lr` compares with.

    Groups with `decouple_lr` have the entry. Schedulers also add it to groups, as their base.
    """
    return group.get("initial_lr", group["lr"])


def row_of(rule: Rule, group: Mapping[str, Any], lr_is_on_gpu: bool = False) -> tuple[float, ...]:
    """A group's row of hyperparameters. NaN stands for a learning rate that kernels read on a GPU.

    Raises:
        ValueError: as :func:`check_numbers`, for what is no number.
    """
    try:
        return _row_of(rule, group, lr_is_on_gpu)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        check_numbers(rule, group)
        raise


def _row_of(rule: Rule, group: Mapping[str, Any], lr_is_on_gpu: bool) -> tuple[float, ...]:
    values = [0.0] * len(_COLUMNS)
    for column, argument, n in rule.columns:
        if argument == "lr" and lr_is_on_gpu:
            values[column] = math.nan
        else:
            values[column] = float(group[argument] if n < 0 else group[argument][n])
    for argument, column in rule.flags.items():
        values[column] = float(group[argument])
    if group["decouple_lr"]:
        values[_INITIAL_RATE] = number(initial_lr(group))
    return tuple(values)
