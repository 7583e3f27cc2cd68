"""The options of a parameter group: their names, what they become as numbers for the operators, and what is refused."""

import math
from collections.abc import Mapping
from enum import IntEnum
from numbers import Integral, Real
from typing import Any, Final

import torch

from .memory import has_memory

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


# Of all rules.
MOMENTS: Final = tuple(dict.fromkeys(name for rule in Rule for name in rule.moments))


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


# Choices of yes or no; not every rule has every one.
_FLAGS: Final = (
    "amsgrad",
    "quantize",
    "check_gradients",
    "maximize",
    "nesterov",
    "decouple_lr",
    "accumulate_fp32",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
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


def shown(value: object) -> str:
    """A value as an error of one line shows it."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checked_number(value: Any, name: str) -> float:  # noqa: ANN401
    """A hyperparameter as a float; infinite where it is too large for one.

    Raises:
        ValueError: if it is neither a real number nor a tensor of one.
    """
    if isinstance(value, torch.Tensor):
        is_number = value.numel() == 1 and value.layout == torch.strided and value.device.type != "meta"
        is_number = is_number and has_memory(value)
        if not is_number or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(
                f"{name} is a tensor of shape {tuple(value.shape)} and {value.dtype}; it must have one real number"
            )
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={shown(value)} is {type(value).__name__}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_flag(value: Any, name: str, may_be_none: bool) -> None:  # noqa: ANN401
    """Refuses what is no choice of yes or no; 0 and 1, and NumPy's, are."""
    is_flag = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if (
        not is_flag
        and not (isinstance(value, Integral) and value in (0, 1))
        and not (may_be_none and value is None)
    ):
        raise ValueError(f"{name}={shown(value)} is {type(value).__name__}; it must be True or False")


def initial_lr(group: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """What decoupled weight decay is measured by.

    It stands in groups with `decouple_lr` alone, or where a scheduler put it: a scheduler takes it for its own base.
    """
    return group.get("initial_lr", group["lr"])


def check_bits(bits: Any, format: str) -> None:  # noqa: ANN401
    """Refuses numbers of master weight bits that a format does not have."""
    allowed = (None, 24, 32) if format == "paper" else (None, 16, 24, 32)
    if not (bits is None or (isinstance(bits, Integral) and not isinstance(bits, bool) and bits in allowed)):
        raise ValueError(
            f'master_weight_bits={shown(bits)} is invalid in the format "{format}"; use one of {allowed}'
        )


def check_format(format: Any) -> None:  # noqa: ANN401
    """Refuses a format that is not known."""
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"format={shown(format)} is unknown; use one of {tuple(FORMATS)}")


def _check_betas(rule: Rule, betas: Any) -> None:  # noqa: ANN401
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas={shown(betas)} must be two numbers")
    for n, beta in enumerate(_checked_number(beta, "a beta") for beta in betas):
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
        if not 0.0 <= _checked_number(group[name], name) < math.inf:
            raise ValueError(f"Invalid {what}: {shown(group[name])}; it must be finite and not negative")

    check_lr_size(group)
    check("lr", "learning rate")
    if "initial_lr" in group:
        check("initial_lr", "initial_lr")
    check("weight_decay", "weight_decay value")
    for name in _FLAGS:
        if name in group:
            _check_flag(group[name], name, may_be_none=name in ("foreach", "fused"))
    if rule.is_sgd:
        for name in ("momentum", "dampening"):
            if not 0.0 <= _checked_number(group[name], name) <= 1.0:
                raise ValueError(f"Invalid {name} value: {shown(group[name])}; it must be between 0 and 1")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    else:
        _check_betas(rule, group["betas"])
    if rule.is_adam:
        check("eps", "epsilon value")
    if group["decouple_lr"] and rule in (Rule.SGD, Rule.ADAM):
        raise ValueError("decouple_lr needs a rule with decoupled weight decay: SGDW, AdamW or Lion")
    if group["decouple_lr"] and group["weight_decay"] != 0 and number(initial_lr(group)) == 0.0:
        raise ValueError(
            "decouple_lr measures weight decay by initial_lr, which is 0; set it to the schedule's peak"
        )
    check_format(group["format"])
    check_bits(group["master_weight_bits"], group["format"])
    if not isinstance(group["nonfinite"], str) or group["nonfinite"] not in POLICIES:
        raise ValueError(f"nonfinite={shown(group['nonfinite'])} is unknown; use one of {POLICIES}")
    if not group["check_gradients"] and group["format"] != "paper":
        raise ValueError('check_gradients=False is for format="paper" alone')
    for name in ("min_quantized_numel", "min_quantized_numel_1d"):
        value = group[name]
        if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < 2**63:
            raise ValueError(f"{name}={shown(value)} must be an integer of at least 0 and less than 2^63")
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
