"""The contestants of bench/cuda_compare.py on a GPU, and the timing of one parameter list."""

from __future__ import annotations

import ctypes
import gc
import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contestants import gpt2, resnet50

if TYPE_CHECKING:
    import torch

Shapes = Sequence[tuple[int, ...]]
# Bytes that a step moves per parameter: weight, correction, moments and scales are read and written, the
# gradient is read.
BYTES = {"native": 12.25, "fp32": 28.0, "authors": 12.25, "bitsandbytes": 10.0 + 16 / 256}
COPY_BYTES = 1 << 31
# Triton compiles the authors' kernels again for a step count that is a multiple of 16. Warm-up steps keep
# that out of the timing, unless the list is so large that it does not matter.
WARM_UPS = 17
WARM_UPS_OF_LARGE = 3
LARGE = 1 << 29


def llama_8b() -> Shapes:
    """The parameters of Llama-3.1-8B."""
    shapes: list[tuple[int, ...]] = [(128256, 4096)]
    for _ in range(32):
        shapes += [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)]
        shapes += [(14336, 4096), (14336, 4096), (4096, 14336), (4096,), (4096,)]
    return [*shapes, (4096,), (128256, 4096)]


def cases() -> dict[str, Shapes]:
    """The parameter lists, the most important first. No tensor has 2^31 elements, because peers count in 32
    bits.
    """
    return {
        "1 G parameters": [(262144, 4096)],
        "Llama-3.1-8B": llama_8b(),
        "ResNet-50": resnet50(),
        "GPT-2 124 M": gpt2(),
        "4 G parameters": [(262144, 4096)] * 4,
        "1 M parameters": [(256, 4096)],
        "16 M parameters": [(4096, 4096)],
        "256 M parameters": [(65536, 4096)],
    }


class Ours:
    """The C++ step over bfloat16 tensors of torch."""

    def __init__(self, library: Path, shapes: Shapes, format_name: str) -> None:
        import torch

        c = ctypes.CDLL(str(library))
        c.cuda_bench_new.restype = ctypes.c_void_p
        c.cuda_bench_error.restype = ctypes.c_char_p
        self.c, self.time = c, 0
        self.handle = ctypes.c_void_p(c.cuda_bench_new(0, {"native": 0, "paper": 1, "fp32": 2}[format_name]))
        self.check(0 if self.handle else 1)
        dtype = torch.float32 if format_name == "fp32" else torch.bfloat16
        self.weights = [torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes]
        self.gradients = [torch.randn(shape, device="cuda", dtype=dtype) * 1e-3 for shape in shapes]
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            shape = (ctypes.c_int64 * weight.dim())(*weight.shape)
            pointers = ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(gradient.data_ptr())
            full = int(format_name == "fp32")
            self.check(c.cuda_bench_add(self.handle, shape, weight.dim(), full, *pointers))

    def check(self, status: int) -> None:
        """Raises the message of a failure."""
        if status:
            raise RuntimeError(self.c.cuda_bench_error().decode())

    def __call__(self) -> None:
        import torch

        self.time += 1
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.check(self.c.cuda_bench_step(self.handle, ctypes.c_int64(self.time), stream))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.c.cuda_bench_delete(self.handle)


def parameters(shapes: Shapes, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Parameters of torch with gradients."""
    import torch

    made = []
    for shape in shapes:
        parameter = torch.nn.Parameter(torch.randn(shape, device="cuda", dtype=dtype))
        parameter.grad = torch.randn(shape, device="cuda", dtype=dtype) * 1e-3
        made.append(parameter)
    return made


def package(shapes: Shapes) -> Callable[[], Any]:
    """This project's Python package: the same kernels, called from PyTorch."""
    import torch

    module = importlib.import_module("flashoptim_cpp")
    return module.FlashAdamW(parameters(shapes, torch.bfloat16), lr=1e-4, weight_decay=0.1).step


def torch_fused(shapes: Shapes) -> Callable[[], Any]:
    """torch.optim.AdamW(fused=True) on fp32 weights: the masters of mixed precision."""
    import torch

    return torch.optim.AdamW(parameters(shapes, torch.float32), lr=1e-4, weight_decay=0.1, fused=True).step


def authors(shapes: Shapes) -> Callable[[], Any]:
    """The authors' FlashAdamW (Triton), with the defaults of their package."""
    import torch

    module = importlib.import_module("flashoptim")
    return module.FlashAdamW(parameters(shapes, torch.bfloat16), lr=1e-4, weight_decay=0.1).step


def bitsandbytes(shapes: Shapes) -> Callable[[], Any]:
    """The 8-bit AdamW of bitsandbytes on bfloat16 weights, without masters."""
    import torch

    module = importlib.import_module("bitsandbytes")
    return module.optim.AdamW8bit(parameters(shapes, torch.bfloat16), lr=1e-4, weight_decay=0.1).step


@dataclass(frozen=True)
class Contestant:
    """A contestant: name, bytes moved and bytes kept for a parameter, package, and a function that makes its
    step."""

    name: str
    traffic: float
    memory: float
    package: str
    make: Callable[[Shapes], Callable[[], Any]]


def contestants(library: Path) -> list[Contestant]:
    """All contestants, this library first."""
    native, fp32, peer = BYTES["native"], BYTES["fp32"], BYTES["authors"]
    return [
        Contestant("ours native", native, 7.2, "torch", lambda shapes: Ours(library, shapes, "native")),
        Contestant("ours native from PyTorch", native, 7.2, "flashoptim_cpp", package),
        Contestant("ours paper", native, 7.2, "torch", lambda shapes: Ours(library, shapes, "paper")),
        Contestant("ours fp32", fp32, 16.0, "torch", lambda shapes: Ours(library, shapes, "fp32")),
        Contestant("torch fused fp32", fp32, 16.0, "torch", torch_fused),
        Contestant("authors' flashoptim", peer, 7.2, "flashoptim", authors),
        Contestant("bitsandbytes 8-bit", BYTES["bitsandbytes"], 6.1, "bitsandbytes", bitsandbytes),
    ]


def milliseconds(action: Callable[[], Any], least: float = 5.0) -> float:
    """Milliseconds of one call: the mean over enough calls to take `least`, measured by CUDA events."""
    import torch

    calls = 1
    while True:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            action()
        end.record()
        end.synchronize()
        passed = begin.elapsed_time(end)
        if passed >= least:
            return passed / calls
        calls = max(calls + 1, math.ceil(calls * min(10.0, 1.2 * least / max(passed, 1e-3))))


class DeviceLost(Exception):
    """A contestant has broken the device's context, so nothing can run in this process any more."""


def still_runs() -> None:
    """Raises DeviceLost if an earlier call has broken the device's context."""
    import torch

    try:
        torch.cuda.synchronize()
    except Exception as error:
        raise DeviceLost(str(error).splitlines()[0]) from error


def measure(
    title: str, shapes: Shapes, who: list[Contestant], rounds: int, begin: Callable[[str], None]
) -> dict[str, Any]:
    """Times each contestant in turn, in rounds. `begin` is called with the name of each. Contestants that do
    not fit into memory together are made again in each round."""
    import torch

    count = sum(math.prod(shape) for shape in shapes)
    free = torch.cuda.mem_get_info()[0] - 2 * COPY_BYTES - (4 << 30)
    together = count * sum(c.memory for c in who) < free
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times: dict[str, list[float]] = {c.name: [] for c in who}
    failures: dict[str, str] = {}
    bandwidths: list[float] = []
    kept: dict[str, Callable[[], Any]] = {}
    warm_ups = WARM_UPS if count < LARGE else WARM_UPS_OF_LARGE
    target.copy_(source)
    for _ in range(rounds):
        bandwidths.append(2 * COPY_BYTES / (milliseconds(lambda: target.copy_(source)) * 1e-3))
        for c in who:
            if c.name in failures:
                continue
            begin(c.name)
            step: Callable[[], Any] | None = None
            try:
                if count * c.memory > free:
                    raise MemoryError(f"needs {count * c.memory / 2**30:.0f} GiB")
                step = kept.get(c.name) or c.make(shapes)
                for _ in range(warm_ups if c.name not in kept else 1):
                    step()
                times[c.name].append(milliseconds(step))
                if together:
                    kept[c.name] = step
            except Exception as error:  # a peer that fails is a row of the table
                failures[c.name] = f"{type(error).__name__}: {error}".splitlines()[0]
                still_runs()
            del step
            gc.collect()
            if not together:
                torch.cuda.empty_cache()
    bandwidth = statistics.median(bandwidths)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    rows: list[dict[str, Any]] = []
    for c in who:
        if c.name in failures:
            rows.append({"name": c.name, "failure": failures[c.name]})
            continue
        ms = statistics.median(times[c.name])
        row: dict[str, Any] = {"name": c.name, "ms": ms, "times": times[c.name]}
        # A list that fits into the cache is not read from memory, so no share of the bandwidth is given.
        if c.traffic * count >= 4 * cache:
            rate = c.traffic * count / (ms * 1e-3)
            row |= {"bytes_per_second": rate, "share": rate / bandwidth}
        rows.append(row)
    gpu = torch.cuda.get_device_name()
    return {"title": title, "parameters": count, "gpu": gpu, "copy_bandwidth": bandwidth, "rows": rows}
