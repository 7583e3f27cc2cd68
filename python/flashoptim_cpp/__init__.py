"""FlashOptim for PyTorch: optimizers whose weights, moments and gradients take 7 bytes per parameter."""

from .cast_model import cast_model
from .gradient_release import GradientReleaseHandle, enable_gradient_release
from .masters import compute_ecc_bits, full_precision, reconstruct_fp32_param
from .moment import Moment, dequantize, quantize
from .nonfinite import NonFiniteError
from .optimizer import FlashOptimizer
from .optimizers import FlashAdam, FlashAdamW, FlashLion, FlashSGD, FlashSGDW
from .table import NumericsError

__all__ = [
    "FlashAdam",
    "FlashAdamW",
    "FlashLion",
    "FlashOptimizer",
    "FlashSGD",
    "FlashSGDW",
    "GradientReleaseHandle",
    "Moment",
    "NonFiniteError",
    "NumericsError",
    "cast_model",
    "compute_ecc_bits",
    "dequantize",
    "enable_gradient_release",
    "full_precision",
    "quantize",
    "reconstruct_fp32_param",
]
