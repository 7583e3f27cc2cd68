"""The core through its C interface, for benchmarks and tests that must not go through a torch operator."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).resolve().parents[1] / "build" / "release" / "bench" / "libflashoptim_bench_c.so"
RULES = {"sgd": 0, "sgdw": 1, "adam": 2, "adamw": 3, "lion": 4}
FORMATS = {"native": 0, "paper": 1, "fp32": 2}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BACKENDS = {"automatic": 0, "scalar": 1, "portable": 2, "avx2": 3, "avx512": 4, "avx512-vbmi": 5, "neon": 6}


class Options(ctypes.Structure):
    """flashoptim_options."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        *[
            (name, ctypes.c_int32)
            for name in (
                "format",
                "master_weight_bits",
                "quantize",
                "nonfinite",
                "check_gradients",
                "threads",
                "backend",
                "reserved",
            )
        ],
        ("min_quantized_numel", ctypes.c_int64),
        ("min_quantized_numel_1d", ctypes.c_int64),
    ]


class Hyperparameters(ctypes.Structure):
    """flashoptim_hyperparameters."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        *[
            (name, ctypes.c_double)
            for name in (
                "learning_rate",
                "beta1",
                "beta2",
                "epsilon",
                "weight_decay",
                "momentum",
                "dampening",
                "initial_learning_rate",
            )
        ],
        *[(name, ctypes.c_int32) for name in ("nesterov", "maximize", "fully_decoupled", "reserved")],
    ]


class Description(ctypes.Structure):
    """flashoptim_tensor."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
    ]


def describe(tensor: torch.Tensor) -> Description:
    """A tensor for C. The caller keeps it alive during the call."""
    shape = (ctypes.c_int64 * tensor.dim())(*tensor.shape)
    strides = (ctypes.c_int64 * tensor.dim())(*tensor.stride())
    return Description(
        ctypes.sizeof(Description), tensor.data_ptr(), DTYPES[tensor.dtype], tensor.dim(), shape, strides
    )


class Core:
    """An optimizer of the core over tensors that the caller keeps alive."""

    def __init__(
        self,
        rule: str,
        tensors: list[torch.Tensor],
        options: dict[str, int],
        hyperparameters: dict[str, float],
    ) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.flashoptim_last_error.restype = ctypes.c_char_p
        self.tensors = tensors
        chosen, rates = Options(), Hyperparameters()
        self.call("options_init", ctypes.byref(chosen), ctypes.c_size_t(ctypes.sizeof(chosen)))
        self.call(
            "hyperparameters_init", ctypes.byref(rates), ctypes.c_size_t(ctypes.sizeof(rates)), RULES[rule]
        )
        for structure, values in ((chosen, options), (rates, hyperparameters)):
            for name, value in values.items():
                setattr(structure, name, value)
        self.handle = ctypes.c_void_p()
        self.call("create", RULES[rule], ctypes.byref(rates), ctypes.byref(chosen), ctypes.byref(self.handle))
        for index, tensor in enumerate(tensors):
            self.call(
                "add_parameter",
                self.handle,
                ctypes.byref(describe(tensor)),
                f"p{index}".encode(),
                ctypes.c_size_t(0),
                None,
                None,
            )

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401
        """Calls a function of the C interface. Raises the message of a failure."""
        if getattr(self.library, f"flashoptim_{name}")(*arguments) != 0:
            raise RuntimeError(self.library.flashoptim_last_error().decode())

    def set_gradients(self, gradients: list[torch.Tensor]) -> None:
        """Sets the gradients of every following step. The caller keeps them alive."""
        for index, gradient in enumerate(gradients):
            self.call("set_gradient", self.handle, ctypes.c_size_t(index), ctypes.byref(describe(gradient)))

    def step(self) -> None:
        """One step of all tensors."""
        self.call("step", self.handle, None, None)

    def grad_norm(self) -> float:
        """The norm of all gradients."""
        norm = ctypes.c_double()
        self.call("grad_norm", self.handle, ctypes.byref(norm))
        return norm.value

    def masters(self, index: int) -> torch.Tensor:
        """Full-precision weights in memory order."""
        values = torch.empty(self.tensors[index].numel())
        place = ctypes.c_void_p(values.data_ptr())
        count = ctypes.c_size_t(values.numel())
        self.call("copy_master", self.handle, ctypes.c_size_t(index), place, count)
        return values

    def moment(self, index: int, moment: int) -> torch.Tensor:
        """Decoded values of the first (0) or second (1) moment in memory order."""
        values = torch.empty(self.tensors[index].numel())
        place = ctypes.c_void_p(values.data_ptr())
        count = ctypes.c_size_t(values.numel())
        self.call("copy_moment", self.handle, ctypes.c_size_t(index), moment, place, count)
        return values

    def close(self) -> None:
        """Destroys the optimizer."""
        self.library.flashoptim_destroy(self.handle)
