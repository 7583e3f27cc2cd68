"""The options of a parameter group other than its hyperparameters: their names and checks."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from operator import is_
from typing import Any, Final

import torch

from ._rules import FLAGS, FORMATS, Rule, check_numbers, shown

POLICIES: Final = ("skip_element", "skip_step", "error")
# Options that decide how a state is stored. Loading a state dict does not change them; the state is
# converted.
STORAGE_OPTIONS: Final = (
    "format",
    "master_weight_bits",
    "quantize",
    "min_quantized_numel",
    "min_quantized_numel_1d",
)
# Boolean options. Not every rule has every one.
_FLAGS: Final = (
    *FLAGS,
    "amsgrad",
    "quantize",
    "check_gradients",
    "accumulate_fp32",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
)


_USUAL_RATES: Final = (float, int, torch.Tensor)


class Default(int):
    """The default of an argument, which differs by type from a value that the caller gives."""


class DefaultFlag(Default):
    """The default of a boolean argument."""

    def __repr__(self) -> str:
        return str(bool(self))


def _check_flag(value: Any, name: str) -> None:  # noqa: ANN401
    """Refuses a value other than True, False, 0 and 1 (also NumPy's), and None if the option has no such
    value.
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return
    if isinstance(value, Integral) and value in (0, 1):
        return
    if value is not None or name not in ("foreach", "fused"):
        raise ValueError(f"{name}={shown(value)} is {type(value).__name__}; it must be True or False")


def check_bits(bits: Any, format: str) -> None:  # noqa: ANN401
    """Refuses master weight bits that the format does not have."""
    allowed = (None, 24, 32) if format == "paper" else (None, 16, 24, 32)
    if not (bits is None or (isinstance(bits, Integral) and not isinstance(bits, bool) and bits in allowed)):
        raise ValueError(
            f'master_weight_bits={shown(bits)} is invalid in the format "{format}"; use one of {allowed}'
        )


def check_format(format: Any) -> None:  # noqa: ANN401
    """Refuses an unknown format."""
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"format={shown(format)} is unknown; use one of {tuple(FORMATS)}")


def check_lr_size(group: Mapping[str, Any]) -> None:
    """Refuses a learning rate that is a tensor of several elements."""
    if isinstance(group["lr"], torch.Tensor) and group["lr"].numel() != 1:
        raise ValueError(f"lr is a tensor of {group['lr'].numel()} elements; it must have one")


def check_group(rule: Rule, group: Mapping[str, Any]) -> None:
    """Checks every option of a parameter group.

    Raises:
        ValueError: that names the option, its value and what it may be.
    """
    for name in (*rule.arguments, *STORAGE_OPTIONS, "check_gradients", "nonfinite", "decouple_lr"):
        if name not in group:
            raise ValueError(f"{name} is missing in a parameter group; give it a value")
    check_lr_size(group)
    for name in _FLAGS:
        if name in group:
            _check_flag(group[name], name)
    check_numbers(rule, group)
    if group.get("nesterov") and (group["momentum"] == 0 or group["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
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


class CheckedOptions:
    """The options of the groups as they were last checked.

    Callers may edit `param_groups` between steps. A step checks again only what is another object than
    before. A learning rate of a usual type is left out: it changes in every step, and the step itself checks
    its value.
    """

    def __init__(self) -> None:
        self._checked: dict[int, list[Any]] = {}  # by the group's id; equal options need no second check

    def check(
        self, rule: Rule, groups: Iterable[Mapping[str, Any]], all_groups: Iterable[Mapping[str, Any]]
    ) -> None:
        """Checks those of `groups` that have changed.

        Raises:
            ValueError: as :func:`check_group`; it names the group by its place in `all_groups`.
        """
        for group in groups:
            values = [value for name, value in group.items() if name not in ("params", "lr")]
            known = self._checked.get(id(group))
            is_usual = type(group.get("lr")) in _USUAL_RATES
            if is_usual and known is not None and len(known) == len(values) and all(map(is_, known, values)):
                continue
            try:
                check_group(rule, group)
            except ValueError as error:
                place = next((n for n, other in enumerate(all_groups) if other is group), "given")
                raise ValueError(f"parameter group {place}: {error}") from None
            self._checked[id(group)] = values


def storage_key(rule: Rule, group: Mapping[str, Any]) -> tuple[Any, ...]:
    """The options of a group that decide which buffers its parameters have and how they are stepped."""
    chosen = [group[name] for name in STORAGE_OPTIONS]
    return (*chosen, group["check_gradients"], *[group[name] != 0 for name in rule.needed])
