"""The optimizers: their arguments, in the authors' order, and their defaults."""

import functools
import inspect
from typing import Any, Literal, TypedDict, TypeVar

import torch
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ._rules import RULES
from .optimizer import DEFAULT_BITS, DEFAULT_FUSED, Bits, FlashOptimizer, NonFinite

OptimizerClass = TypeVar("OptimizerClass", bound=type[FlashOptimizer])


class Options(TypedDict, total=False):
    """The keyword-only arguments of every optimizer; :class:`FlashOptimizer` says what they do."""

    format: Literal["native", "paper", "fp32"]
    nonfinite: NonFinite
    check_gradients: bool
    maximize: bool
    min_quantized_numel: int
    min_quantized_numel_1d: int
    accumulate_fp32: bool
    foreach: bool | None
    capturable: bool
    differentiable: bool


def _optimizer(cls: OptimizerClass) -> OptimizerClass:
    """Gives a class a constructor with the signature of its `__init__`, which has no body.

    Arguments that :class:`FlashOptimizer` does not take are hyperparameters. The signature lists all
    keyword-only arguments, for help() and editors.
    """
    declared = cls.__init__
    signature = inspect.signature(declared)
    common = inspect.signature(FlashOptimizer.__init__).parameters

    @functools.wraps(declared)
    def construct(*given: Any, **named: Any) -> None:  # noqa: ANN401
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        arguments = bound.arguments
        options = arguments.pop("options")
        hyperparameters = {name: arguments.pop(name) for name in [*arguments] if name not in common}
        FlashOptimizer.__init__(**arguments, **options, defaults=hyperparameters)

    own = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]
    own += [parameter for parameter in common.values() if parameter.kind is parameter.KEYWORD_ONLY]
    construct.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    cls.__init__ = construct  # type: ignore[method-assign]
    return cls


@_optimizer
class FlashSGD(FlashOptimizer):
    """SGD with momentum and L2 weight decay, like `torch.optim.SGD`.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        momentum: factor of the momentum buffer; 0 keeps none.
        dampening: the gradient enters the buffer times 1 - dampening, in "paper" from the first step on.
        weight_decay: times the weight is added to the gradient.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        options: see :class:`FlashOptimizer`.
    """

    rule = RULES["SGD"]

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        **options: Unpack[Options],
    ) -> None: ...


@_optimizer
class FlashSGDW(FlashSGD):
    """SGD with momentum and decoupled weight decay.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        momentum: see :class:`FlashSGD`.
        dampening: see :class:`FlashSGD`.
        weight_decay: weights are multiplied by 1 - lr * weight_decay.
        nesterov: see :class:`FlashSGD`.
        decouple_lr: they are multiplied by 1 - lr / initial_lr * weight_decay instead.
        options: see :class:`FlashOptimizer`.
    """

    rule = RULES["SGDW"]

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        decouple_lr: bool = False,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        **options: Unpack[Options],
    ) -> None: ...


@_optimizer
class FlashAdam(FlashOptimizer):
    """Adam with L2 weight decay, like `torch.optim.Adam`.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        betas: decay of the first and of the second moment, at least 0 and less than 1.
        eps: added to the root of the second moment.
        weight_decay: times the weight is added to the gradient.
        amsgrad: True is refused.
        options: see :class:`FlashOptimizer`.
    """

    rule = RULES["Adam"]

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        *,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None: ...


@_optimizer
class FlashAdamW(FlashAdam):
    """Adam with decoupled weight decay, like `torch.optim.AdamW`.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        betas: see :class:`FlashAdam`.
        eps: see :class:`FlashAdam`.
        weight_decay: weights are multiplied by 1 - lr * weight_decay.
        decouple_lr: they are multiplied by 1 - lr / initial_lr * weight_decay instead.
        amsgrad: True is refused.
        options: see :class:`FlashOptimizer`.
    """

    rule = RULES["AdamW"]

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        decouple_lr: bool = False,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        *,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None: ...


@_optimizer
class FlashLion(FlashOptimizer):
    """Lion (arXiv 2302.06675) with decoupled weight decay.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        betas: weight of the moment in the update, and decay of the moment.
        weight_decay: weights are multiplied by 1 - lr * weight_decay.
        decouple_lr: they are multiplied by 1 - lr / initial_lr * weight_decay instead.
        options: see :class:`FlashOptimizer`.
    """

    rule = RULES["Lion"]

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        decouple_lr: bool = False,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        **options: Unpack[Options],
    ) -> None: ...


@_optimizer
class FlashAdEMAMix(FlashOptimizer):
    """AdEMAMix (arXiv 2409.03137): AdamW with a second, slower mean of the gradients.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        betas: decay of the fast mean, of the second moment and of the slow mean, at least 0 and less than 1.
        alpha: weight of the slow mean in the update.
        beta3_warmup: steps in which the decay of the slow mean grows from that of the fast one; 0: none.
        alpha_warmup: steps in which alpha grows from 0; 0: none.
        eps: added to the root of the second moment.
        weight_decay: weights are multiplied by 1 - lr * weight_decay.
        decouple_lr: they are multiplied by 1 - lr / initial_lr * weight_decay instead.
        options: see :class:`FlashOptimizer`. There is no format "paper".
    """

    rule = RULES["AdEMAMix"]

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        beta3_warmup: float = 0,
        alpha_warmup: float = 0,
        eps: float = 1e-8,
        weight_decay: float = 0,
        decouple_lr: bool = False,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        **options: Unpack[Options],
    ) -> None: ...


@_optimizer
class FlashAdan(FlashOptimizer):
    """Adan (arXiv 2208.06677): Nesterov momentum from the difference to the last gradient.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        betas: decay of the gradients, of their differences and of the squares, at least 0 and less than 1.
        eps: added to the root of the squares.
        weight_decay: new weights are divided by 1 + lr * weight_decay.
        no_prox: old weights are multiplied by 1 - lr * weight_decay instead.
        decouple_lr: lr / initial_lr takes the place of lr in weight decay.
        options: see :class:`FlashOptimizer`. There is no format "paper".
    """

    rule = RULES["Adan"]

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0,
        no_prox: bool = False,
        decouple_lr: bool = False,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        **options: Unpack[Options],
    ) -> None: ...
