"""Lets a package of Triton kernels run on CPU tensors under Triton's interpreter: IEEE fp32, nothing fused.

Import it before the package. It replaces parts of torch and triton for the whole process, so it belongs into
generators of reference data only, never into a test or a program that measures. For triton 3.9 and torch
2.13.
"""

import os
import types
from collections.abc import Callable

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
# Torch's AVX kernels fuse the multiplication and addition of add(alpha); its baseline ones do not.
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import numpy as np
import torch
import triton
import triton.language as tl
import triton.language.extra.libdevice as libdevice
from triton.runtime import KernelInterface, interpreter


class _Untuned:
    """Takes the place of an autotuned kernel: every launch uses the first configuration."""

    def __init__(self, kernel: KernelInterface, meta: dict[str, object]) -> None:
        self._kernel = kernel
        self._meta = meta

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: object, **kwargs: object) -> None:
            self._kernel[grid](*args, **{**self._meta, **kwargs})

        return launch


def _autotune(configs: list[triton.Config], **_: object) -> Callable[[KernelInterface], _Untuned]:
    return lambda kernel: _Untuned(kernel, dict(configs[0].kwargs))


def _tensor(values: np.ndarray, kind: tl.dtype) -> tl.tensor:
    return tl.tensor(interpreter.TensorHandle(values, tl.float32), kind)


def _pretend_cuda() -> None:
    """CPU tensors pass for device tensors of a GPU with a single multiprocessor."""
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=1)
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.is_cuda = property(lambda self: True)


def _power(base: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """The correctly rounded fp32 power: numpy's own fp32 power depends on the processor."""
    return np.power(np.float64(base), np.float64(exponent)).astype(np.float32)


def _device_function(function: Callable[..., np.ndarray]) -> Callable[..., tl.tensor]:
    """A libdevice function over the numpy arrays that the interpreter's tensors wrap."""

    def call(*args: object) -> tl.tensor:
        values = [arg.handle.data if isinstance(arg, tl.tensor) else np.asarray(arg) for arg in args]
        result = np.asarray(function(*values), dtype=np.float32)
        blocks = [arg.type for arg in args if isinstance(arg, tl.tensor) and arg.type.is_block()]
        if not blocks:
            return _tensor(result.reshape(-1), tl.float32)
        return _tensor(result, tl.block_type(tl.float32, blocks[0].shape))

    return call


def _exp2(_builder: object, arg: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """Powers of two only, exactly: the one use the kernels make of exp2."""
    exponent = arg.data.astype(np.int32)
    if np.any(exponent != arg.data):
        raise ValueError("exp2 of a value that is no integer: extend triton_on_cpu.py")
    return interpreter.TensorHandle(np.ldexp(np.float32(1), exponent), arg.dtype.scalar)


_convert_float = interpreter._convert_float


def _convert(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: object) -> np.ndarray:
    """bf16 as hardware converts it: the interpreter truncates going down and mangles subnormals going up."""
    if source == tl.float32 and target == tl.bfloat16:
        narrow = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return narrow.view(torch.uint16).numpy()
    if source == tl.bfloat16 and target == tl.float32:
        return values.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return _convert_float(values, source, target, rounding)


_implicit_conversion = interpreter._implicit_cvt


def _argument(arg: object) -> object:
    """A compiled kernel takes Python floats as fp32; the interpreter would compute with the doubles."""
    if isinstance(arg, float):
        return _tensor(np.array([arg], dtype=np.float32), tl.float32)
    return _implicit_conversion(arg)


triton.autotune = _autotune
libdevice.pow = _device_function(_power)
libdevice.copysign = _device_function(np.copysign)
interpreter.InterpreterBuilder.create_exp2 = _exp2
interpreter._convert_float = _convert
interpreter._implicit_cvt = _argument
_pretend_cuda()
