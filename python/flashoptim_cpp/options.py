"""The options of a parameter group: their names, what they become as numbers for the operators, and what is refused."""

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

import torch

Group = dict[str, Any]


class Rule(IntEnum):
    """Update rules, as the operators count them."""

    SGD = 0
    SGDW = 1
    ADAM = 2
    ADAMW = 3
    LION = 4

    @property
    def is_sgd(self) -> bool:
        """Whether the only moment is a momentum buffer, which may be absent."""
        return self in (Rule.SGD, Rule.SGDW)

    @property
    def is_adam(self) -> bool:
        """Whether there is a second moment."""
        return self in (Rule.ADAM, Rule.ADAMW)

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moments in the state, the first moment first."""
        if self.is_sgd:
            return ("momentum_buffer",)
        return ("exp_avg", "exp_avg_sq") if self.is_adam else ("exp_avg",)


class Storage(IntEnum):
    """How moments lie in memory, as the operators count it. Format names are these in lower case."""

    NATIVE = 0
    PAPER = 1
    FP32 = 2


FORMATS: Final = {"native": Storage.NATIVE, "paper": Storage.PAPER, "fp32": Storage.FP32}
POLICIES: Final = ("skip_element", "skip_step", "error")
# The core's data types, in its order.
DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int16)
WEIGHT_DTYPES: Final = DTYPES[:3]
DTYPES_BY_NAME: Final = {str(dtype).removeprefix("torch."): dtype for dtype in WEIGHT_DTYPES}

# What says how a state is stored. A loaded state dict does not change them: its state is converted.
STORAGE_OPTIONS: Final = (
    "format",
    "master_weight_bits",
    "quantize",
    "min_quantized_numel",
    "min_quantized_numel_1d",
)


class Default(int):
    """The value of an argument that the caller did not give."""


class DefaultFlag(Default):
    """A truth value that the caller did not give."""

    def __repr__(self) -> str:
        return str(bool(self))


DEFAULT_BITS: Final = Default(24)
DEFAULT_FUSED: Final = DefaultFlag(True)


def number(value: Any) -> float:  # noqa: ANN401
    """A hyperparameter, which may be a tensor of one element."""
    return float(value)


def initial_lr(group: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """What decoupled weight decay is measured by.

    It stands in groups with `decouple_lr` alone, or where a scheduler put it: a scheduler takes it for its own base.
    """
    return group.get("initial_lr", group["lr"])


def check_bits(bits: Any, format: str) -> None:  # noqa: ANN401
    """Refuses numbers of master weight bits that a format does not have."""
    allowed = (None, 24, 32) if format == "paper" else (None, 16, 24, 32)
    if bits not in allowed or isinstance(bits, bool | float):
        raise ValueError(
            f'master_weight_bits={bits} is invalid in the format "{format}"; use one of {allowed}'
        )


def check_format(format: Any) -> None:  # noqa: ANN401
    """Refuses a format that is not known."""
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; use one of {tuple(FORMATS)}")


def _check_betas(rule: Rule, betas: Any) -> None:  # noqa: ANN401
    if len(betas) != 2:
        raise ValueError(f"betas={betas} must be two numbers")
    for n, beta in enumerate(map(number, betas)):
        if not 0.0 <= beta <= 1.0 or (rule.is_adam and beta == 1.0):
            bound = "less than 1" if rule.is_adam else "at most 1"
            raise ValueError(
                f"Invalid beta parameter at index {n}: {beta}; it must be at least 0 and {bound}"
            )


def check_lr_size(group: Mapping[str, Any]) -> None:
    """Refuses a learning rate that is a tensor of more than a number."""
    if isinstance(group["lr"], torch.Tensor) and group["lr"].numel() != 1:
        raise ValueError(f"lr is a tensor of {group['lr'].numel()} elements; it must have one")


def check_group(rule: Rule, group: Mapping[str, Any]) -> None:
    """Checks every option of a parameter group.

    Raises:
        ValueError: that names the option, its value and what it may be.
    """

    def check(name: str, what: str) -> None:
        if not 0.0 <= number(group[name]) < math.inf:
            raise ValueError(f"Invalid {what}: {group[name]}; it must be finite and not negative")

    check_lr_size(group)
    check("lr", "learning rate")
    if "initial_lr" in group:
        check("initial_lr", "initial_lr")
    check("weight_decay", "weight_decay value")
    if rule.is_sgd:
        for name in ("momentum", "dampening"):
            if not 0.0 <= number(group[name]) <= 1.0:
                raise ValueError(f"Invalid {name} value: {group[name]}; it must be between 0 and 1")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    else:
        _check_betas(rule, group["betas"])
    if rule.is_adam:
        check("eps", "epsilon value")
    if group["decouple_lr"] and group["weight_decay"] != 0 and number(initial_lr(group)) == 0.0:
        raise ValueError(
            "decouple_lr measures weight decay by initial_lr, which is 0; set it to the schedule's peak"
        )
    check_format(group["format"])
    check_bits(group["master_weight_bits"], group["format"])
    if group["nonfinite"] not in POLICIES:
        raise ValueError(f"nonfinite={group['nonfinite']!r} is unknown; use one of {POLICIES}")
    if not group["check_gradients"] and group["format"] != "paper":
        raise ValueError('check_gradients=False is for format="paper" alone')
    for name in ("min_quantized_numel", "min_quantized_numel_1d"):
        if not isinstance(group[name], int) or group[name] < 0:
            raise ValueError(f"{name}={group[name]!r} must be an integer of at least 0")
    for name in ("amsgrad", "differentiable"):
        if group.get(name):
            raise ValueError(f"{name}=True is not supported; leave it out")


def hyperparameters(group: Mapping[str, Any], lr_is_on_gpu: bool = False) -> tuple[float, ...]:
    """The numbers of a group in the order in which the operators read them; NaN for a learning rate that they read on a GPU."""
    beta1, beta2 = group.get("betas", (0.9, 0.999))
    return (
        math.nan if lr_is_on_gpu else number(group["lr"]),
        number(beta1),
        number(beta2),
        number(group.get("eps", 1e-8)),
        number(group["weight_decay"]),
        number(group.get("momentum", 0.0)),
        number(group.get("dampening", 0.0)),
        number(initial_lr(group)) if group["decouple_lr"] else 0.0,
        float(group.get("nesterov", False)),
        float(group["maximize"]),
        float(group["decouple_lr"]),
    )


def storage_key(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a group decides which buffers its parameters have and how they are stepped."""
    return (
        *(group[name] for name in STORAGE_OPTIONS),
        bool(group.get("momentum", 1.0)),
        group["check_gradients"],
    )
