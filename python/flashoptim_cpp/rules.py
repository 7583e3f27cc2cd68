"""The optimizers: their arguments, in the authors' order, and their defaults."""

import inspect
from typing import Literal, TypedDict, TypeVar

import torch
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .optimizer import (
    DEFAULT_FUSED_ARGUMENT,
    DEFAULT_MASTER_WEIGHT_BITS,
    Bits,
    FlashOptimizer,
    NonFinite,
)
from .options import Rule

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


def _spell_out_options(cls: OptimizerClass) -> OptimizerClass:
    """Shows the keyword-only arguments and their defaults in the signature, for help() and editors."""
    own = inspect.signature(cls.__init__)
    common = inspect.signature(FlashOptimizer.__init__).parameters.values()
    named = [
        parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD
    ]
    named += [parameter for parameter in common if parameter.kind is parameter.KEYWORD_ONLY]
    cls.__init__.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]
    return cls


def _refuse_amsgrad(amsgrad: bool) -> None:
    if amsgrad:
        raise ValueError("amsgrad=True is not supported; leave it out")


@_spell_out_options
class FlashSGD(FlashOptimizer):
    """SGD with momentum and L2 weight decay, like `torch.optim.SGD`.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate.
        momentum: factor of the momentum buffer; 0 keeps none.
        dampening: the gradient enters the buffer times 1 - dampening. In the format "paper" from the first step on.
        weight_decay: times the weight is added to the gradient.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        options: see :class:`FlashOptimizer`.
    """

    rule = Rule.SGD

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
        master_weight_bits: Bits = DEFAULT_MASTER_WEIGHT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED_ARGUMENT,
        **options: Unpack[Options],
    ) -> None:
        defaults = {
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(
            params,
            lr,
            quantize,
            compress_state_dict,
            master_weight_bits,
            check_numerics,
            fused,
            defaults,
            **options,
        )


@_spell_out_options
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

    rule = Rule.SGDW

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
        master_weight_bits: Bits = DEFAULT_MASTER_WEIGHT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED_ARGUMENT,
        **options: Unpack[Options],
    ) -> None:
        defaults = {
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "decouple_lr": decouple_lr,
        }
        FlashOptimizer.__init__(
            self,
            params,
            lr,
            quantize,
            compress_state_dict,
            master_weight_bits,
            check_numerics,
            fused,
            defaults,
            **options,
        )


@_spell_out_options
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

    rule = Rule.ADAM

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_MASTER_WEIGHT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED_ARGUMENT,
        *,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        _refuse_amsgrad(amsgrad)
        defaults = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": False}
        super().__init__(
            params,
            lr,
            quantize,
            compress_state_dict,
            master_weight_bits,
            check_numerics,
            fused,
            defaults,
            **options,
        )


@_spell_out_options
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

    rule = Rule.ADAMW

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
        master_weight_bits: Bits = DEFAULT_MASTER_WEIGHT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED_ARGUMENT,
        *,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        _refuse_amsgrad(amsgrad)
        defaults = {
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple_lr": decouple_lr,
            "amsgrad": False,
        }
        FlashOptimizer.__init__(
            self,
            params,
            lr,
            quantize,
            compress_state_dict,
            master_weight_bits,
            check_numerics,
            fused,
            defaults,
            **options,
        )


@_spell_out_options
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

    rule = Rule.LION

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        decouple_lr: bool = False,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_MASTER_WEIGHT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED_ARGUMENT,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"betas": betas, "weight_decay": weight_decay, "decouple_lr": decouple_lr}
        super().__init__(
            params,
            lr,
            quantize,
            compress_state_dict,
            master_weight_bits,
            check_numerics,
            fused,
            defaults,
            **options,
        )
