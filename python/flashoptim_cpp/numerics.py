"""The check that a learning rate can move the weights at all in the precision that they are stored in."""

import math

import torch

from .capture import refuse
from .errors import NumericsError
from .options import Group, Rule, number
from .parameter import Parameter
from .sharding import all_reduce_max, local_of
from .table import Table

_EXPONENT_BITS = {torch.float16: 5, torch.bfloat16: 8, torch.float32: 8}
# A step of just less than half a unit in the last place is lost.
_ROUNDED_AWAY = 0.49
# Adam's update is |m|/sqrt(v) times the learning rate, which may be small; a tenth is the authors' guess.
_ADAM_STEP = 0.1


def measure(parameter: Parameter) -> float:
    """The largest absolute weight; a collective where the parameter is sharded."""
    local = local_of(parameter.tensor).detach()
    largest = local.abs().max().float() if local.numel() else torch.zeros((), device=local.device)
    if parameter.is_sharded:
        largest = all_reduce_max(largest, [parameter.tensor])
    return float(largest)


def check_learning_rates(rule: Rule, tables: list[Table]) -> None:
    """Checks each parameter of a step.

    Raises:
        NumericsError: where the learning rate is too small for one. Nothing was changed.
    """
    for table in tables:
        waits_for_lr = any(map(table.lr_is_on_gpu, table.groups))
        if (waits_for_lr or any(p.max_abs is None for p in table.parameters)) and table.is_captured():
            refuse(
                "check_numerics would wait for " + ("lr" if waits_for_lr else "the largest weights"),
                "use check_numerics=False, or a number as lr and a step before",
            )
        for parameter, n in zip(table.parameters, table.group_of, strict=True):
            check_learning_rate(rule, parameter, table.groups[n])


def check_learning_rate(rule: Rule, parameter: Parameter, group: Group) -> None:
    """Compares the smallest step with the distance between neighbouring weights at the largest.

    Raises:
        NumericsError: where the step is smaller. Nothing was changed.
    """
    if parameter.max_abs is None:
        parameter.max_abs = measure(parameter)
    largest, lr = parameter.max_abs, number(group["lr"])
    if lr == 0.0 or largest <= 0.0 or not math.isfinite(largest):
        return
    dtype = parameter.tensor.dtype
    bits = max(8 * dtype.itemsize, group["master_weight_bits"] or 0)
    mantissa_bits = bits - 1 - _EXPONENT_BITS[dtype] + math.log2(_ROUNDED_AWAY)
    resolution = 2.0 ** (math.floor(math.log2(largest)) - mantissa_bits)
    step = lr * (_ADAM_STEP if rule.is_adam else 1.0)
    if resolution > step:
        raise NumericsError(
            f"{parameter.name}: learning rate {lr:.3g} makes steps of {step:.5g}, less than the resolution "
            f"{resolution:.5g} of its largest weight {largest:.5g} ({dtype}, master_weight_bits={bits}); raise the "
            "learning rate or master_weight_bits, or set check_numerics=False"
        )
