"""Whether there is a GPU for the tests that need one, or an emulated one, and what they make there."""

from __future__ import annotations

import os

import pytest
import torch
from flashoptim_cpp import _operators as operators
from support import parameters

EMULATED = operators.GPU_KERNELS == 2
IS_REAL = operators.GPU_KERNELS == 1 and torch.cuda.is_available()
GPU = "cuda" if IS_REAL else "cpu"

if os.environ.get("FLASHOPTIM_REQUIRE_GPU") == "1" and not IS_REAL and not EMULATED:
    raise RuntimeError(
        "FLASHOPTIM_REQUIRE_GPU=1 asks for a GPU: "
        + ("torch sees none" if operators.GPU_KERNELS else "this build of flashoptim_cpp has no CUDA kernels")
    )

needs_gpu = pytest.mark.skipif(not IS_REAL and not EMULATED, reason="no CUDA device, or no CUDA kernels")
needs_real_gpu = pytest.mark.skipif(not IS_REAL, reason="no CUDA device")


def on_gpu(dtype: torch.dtype = torch.bfloat16) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().to(GPU)) for p in parameters(dtype)]


def give_gradients(given: list[torch.nn.Parameter], value: float = 1e-2) -> None:
    for parameter in given:
        parameter.grad = torch.full_like(parameter, value)
