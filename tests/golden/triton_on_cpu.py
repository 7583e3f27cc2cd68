"""Lets a package of Triton kernels run on CPU tensors under Triton's interpreter, in IEEE fp32 with one rounding per operation.

Import it before the package. It replaces parts of torch and triton for the whole process, so it belongs into generators
of reference data only, never into a test or a program that measures. Written against triton 3.9 and torch 2.13.
"""

import os
import types
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
os.environ["ATEN_CPU_CAPABILITY"] = "default"  # torch's own AVX kernels of add(alpha) fuse; its baseline ones do not

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
import triton.language.extra.libdevice as libdevice  # noqa: E402
from triton.runtime import interpreter  # noqa: E402


class _Untuned:
    """Takes the place of an autotuned kernel: every launch uses the first configuration."""

    def __init__(self, kernel: Any, meta: dict[str, Any]) -> None:
        self._kernel = kernel
        self._meta = meta

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self._kernel[grid](*args, **{**self._meta, **kwargs})

        return launch


def _autotune(configs: list[Any], key: list[str], **_: Any) -> Callable[[Any], _Untuned]:
    return lambda kernel: _Untuned(kernel, dict(configs[0].kwargs))


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

    def call(*args: Any) -> tl.tensor:
        values = [arg.handle.data if isinstance(arg, tl.tensor) else np.asarray(arg) for arg in args]
        result = np.asarray(function(*values), dtype=np.float32)
        blocks = [arg.type for arg in args if isinstance(arg, tl.tensor) and arg.type.is_block()]
        if blocks:
            return tl.tensor(interpreter.TensorHandle(result, tl.float32), tl.block_type(tl.float32, blocks[0].shape))
        return tl.tensor(interpreter.TensorHandle(result.reshape(-1), tl.float32), tl.float32)

    return call


def _exp2(_builder: Any, arg: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """Powers of two only, exactly: the one use the kernels make of exp2."""
    exponent = arg.data.astype(np.int32)
    if np.any(exponent != arg.data):
        raise ValueError("exp2 of a value that is no integer: extend triton_on_cpu.py")
    return interpreter.TensorHandle(np.ldexp(np.float32(1), exponent), arg.dtype.scalar)


_convert_float = interpreter._convert_float


def _convert(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """bf16 as hardware converts it: the interpreter truncates on the way down and mangles subnormals on the way up."""
    if source == tl.float32 and target == tl.bfloat16:
        narrow = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return narrow.view(torch.uint16).numpy()
    if source == tl.bfloat16 and target == tl.float32:
        return values.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return _convert_float(values, source, target, rounding)


_implicit_conversion = interpreter._implicit_cvt


def _argument(arg: Any) -> Any:
    """A compiled kernel takes Python floats as fp32; the interpreter would compute with the doubles."""
    if isinstance(arg, float):
        return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
    return _implicit_conversion(arg)


triton.autotune = _autotune
libdevice.pow = _device_function(_power)
libdevice.copysign = _device_function(np.copysign)
interpreter.InterpreterBuilder.create_exp2 = _exp2
interpreter._convert_float = _convert
interpreter._implicit_cvt = _argument
_pretend_cuda()
