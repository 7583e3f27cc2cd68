"""FlashOptim for PyTorch: optimizers whose weights, moments and gradients take 7 bytes per parameter."""

# The modules, lowest layer first. Each imports only modules of earlier lines
# (tests/python/test_package_layers.py).
#   _operators, memory, sharding        the C++ operators; torch's tensors, DTensor and FSDP2
#   _rules, options                     the core's table of rules; the other options of a parameter group
#   moment, parameter, conversion       what a state holds, and how any state is brought into that form
#   table, nonfinite, backward          one step and what forbids it; bad elements; fp32 sums of gradients
#   states                              all of it for one optimizer: what the modules below work on
#   masters, state_dict, optimizer      full-precision weights, saved states, torch's protocol of an optimizer
#   optimizers, gradient_release, cast_model    what a user calls
from .cast_model import cast_model
from .gradient_release import GradientReleaseHandle, enable_gradient_release
from .masters import compute_ecc_bits, full_precision, reconstruct_fp32_param
from .moment import Moment, dequantize, quantize
from .nonfinite import NonFiniteError
from .optimizer import FlashOptimizer
from .optimizers import FlashAdam, FlashAdamW, FlashAdan, FlashAdEMAMix, FlashLion, FlashSGD, FlashSGDW
from .table import NumericsError

__all__ = [
    "FlashAdEMAMix",
    "FlashAdam",
    "FlashAdamW",
    "FlashAdan",
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
