"""Times the optimizer step on a GPU beside its peers, in turns in one process, and writes JSON and a Markdown table.

Ours is called through bench/cuda_bench_c.cpp; the peers are PyTorch's fused AdamW on fp32 weights, the authors' package `flashoptim`
and the 8-bit AdamW of bitsandbytes, as far as they can be imported and fit into memory. Every figure is a median over rounds in which
all contestants and the bandwidth of a copy were measured one after another, by CUDA events. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import importlib.metadata
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
Shapes = Sequence[tuple[int, ...]]
# Bytes that a step must move for each parameter: weight, correction and moments read and written, scales, gradient read.
BYTES = {"native": 12.25, "fp32": 28.0, "authors": 12.25, "bitsandbytes": 10.0 + 16 / 256}
COPY_BYTES = 1 << 31
WARM_UPS = 3


def llama_8b() -> Shapes:
    """The parameters of Llama-3.1-8B."""
    shapes: list[tuple[int, ...]] = [(128256, 4096)]
    for _ in range(32):
        shapes += [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)]
        shapes += [(14336, 4096), (14336, 4096), (4096, 14336), (4096,), (4096,)]
    return [*shapes, (4096,), (128256, 4096)]


def cases() -> dict[str, Shapes]:
    """The parameter lists, smallest first."""
    from contestants import gpt2, resnet50

    sizes = {f"{n} M parameters": [(n * 256, 4096)] for n in (1, 16, 256)}
    sizes |= {f"{n} G parameters": [(n * 256 * 1024, 4096)] for n in (1, 4)}
    return {**sizes, "ResNet-50": resnet50(), "GPT-2 124 M": gpt2(), "Llama-3.1-8B": llama_8b()}


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
        """Raises what the library said."""
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
    """A name, the bytes that it moves for a parameter, the bytes that it keeps, its package and what makes its step."""

    name: str
    traffic: float
    memory: float
    package: str
    make: Callable[[Shapes], Callable[[], Any]]


def contestants(library: Path) -> list[Contestant]:
    """All of them, ours first."""
    return [
        Contestant(
            "ours native", BYTES["native"], 7.2, "torch", lambda shapes: Ours(library, shapes, "native")
        ),
        Contestant(
            "ours paper", BYTES["native"], 7.2, "torch", lambda shapes: Ours(library, shapes, "paper")
        ),
        Contestant("ours fp32", BYTES["fp32"], 16.0, "torch", lambda shapes: Ours(library, shapes, "fp32")),
        Contestant("torch fused fp32", BYTES["fp32"], 16.0, "torch", torch_fused),
        Contestant("authors' flashoptim", BYTES["authors"], 7.2, "flashoptim", authors),
        Contestant("bitsandbytes 8-bit", BYTES["bitsandbytes"], 6.1, "bitsandbytes", bitsandbytes),
    ]


def milliseconds(action: Callable[[], Any], least: float = 5.0) -> float:
    """Of one call, as the mean of as many as take `least` milliseconds; by CUDA events."""
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


def measure(title: str, shapes: Shapes, who: list[Contestant], rounds: int) -> dict[str, Any]:
    """Rounds in which each in turn is timed. Those that do not fit into memory together are made anew in each round."""
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
    for _ in range(rounds):
        bandwidths.append(2 * COPY_BYTES / (milliseconds(lambda: target.copy_(source)) * 1e-3))
        for c in who:
            if c.name in failures:
                continue
            step: Callable[[], Any] | None = None
            try:
                if count * c.memory > free:
                    raise MemoryError(f"needs {count * c.memory / 2**30:.0f} GiB")
                step = kept.get(c.name) or c.make(shapes)
                for _ in range(WARM_UPS if c.name not in kept else 1):
                    step()
                times[c.name].append(milliseconds(step))
                if together:
                    kept[c.name] = step
            except Exception as error:  # a peer that fails is a row of the table, not the end of it
                failures[c.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del step
            gc.collect()
            if not together:
                torch.cuda.empty_cache()
    bandwidth = statistics.median(bandwidths)
    rows: list[dict[str, Any]] = []
    for c in who:
        if c.name in failures:
            rows.append({"name": c.name, "failure": failures[c.name]})
            continue
        ms = statistics.median(times[c.name])
        rate = c.traffic * count / (ms * 1e-3)
        rows.append(
            {
                "name": c.name,
                "ms": ms,
                "bytes_per_second": rate,
                "share": rate / bandwidth,
                "times": times[c.name],
            }
        )
    return {"title": title, "parameters": count, "copy_bandwidth": bandwidth, "rows": rows}


def table(result: dict[str, Any]) -> list[str]:
    """One case as Markdown."""
    native = next((row.get("ms") for row in result["rows"] if row["name"] == "ours native"), None)
    lines = [
        f"### {result['title']}: {result['parameters']:,} parameters",
        "",
        f"Copy bandwidth {result['copy_bandwidth'] * 1e-9:,.0f} GB/s.",
        "",
        "| | ms | GB/s | of copy bandwidth | times as long as ours native |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "failure" in row:
            lines.append(f"| {row['name']} | {row['failure']} | | | |")
            continue
        over = f"{row['ms'] / native:.2f}" if native else ""
        lines.append(
            f"| {row['name']} | {row['ms']:.3f} | {row['bytes_per_second'] * 1e-9:,.0f} "
            f"| {row['share'] * 100:.0f} % | {over} |"
        )
    return [*lines, ""]


def version_of(package: str) -> str:
    """The installed version; empty where it cannot be imported."""
    try:
        importlib.import_module(package)
        return importlib.metadata.version(package)
    except Exception:  # packages that need a GPU fail in many ways
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, default=ROOT / "build/cuda/bench/libflashoptim_bench_cuda.so")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=7.0, help="no further case begins after that")
    parser.add_argument("--dry-run", action="store_true", help="say what would be timed, and what is missing")
    arguments = parser.parse_args()
    who = contestants(arguments.library)
    versions = {package: version_of(package) for package in sorted({c.package for c in who})}
    if arguments.dry_run:
        for package, version in versions.items():
            print(f"{package}: {version or 'cannot be imported'}")
        print(f"{arguments.library}: {'there' if arguments.library.exists() else 'not built'}")
        for title, shapes in cases().items():
            count = sum(math.prod(shape) for shape in shapes)
            print(f"{title}: {len(shapes)} tensors, {count:,} parameters; {', '.join(c.name for c in who)}")
        return 0
    if not versions["torch"] or not arguments.library.exists():
        sys.exit(f"cuda_compare: torch and {arguments.library} are needed; run scripts/gpu_check.sh")
    import torch

    if not torch.cuda.is_available():
        sys.exit("cuda_compare: torch sees no CUDA device")
    start = time.monotonic()
    results, left_out = [], []
    for title, shapes in cases().items():
        if time.monotonic() - start > arguments.minutes * 60:
            left_out.append(title)
            continue
        results.append(measure(title, shapes, [c for c in who if versions[c.package]], arguments.rounds))
        gc.collect()
        torch.cuda.empty_cache()
        print("\n".join(table(results[-1])), flush=True)
    gpu = torch.cuda.get_device_name()
    name = f"cuda-{gpu.replace(' ', '-').lower()}"
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": gpu,
        "versions": versions,
        "results": results,
        "left_out": left_out,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    packages = ", ".join(f"{package} {version or '(missing)'}" for package, version in versions.items())
    text = [f"{gpu}, {packages}, {document['date']}.", "", *(line for r in results for line in table(r))]
    if left_out:
        text += [f"Left out for want of time: {', '.join(left_out)}.", ""]
    (arguments.out / f"{name}.md").write_text("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
