"""Times the optimizer step beside its peers, in turns in one process, and writes JSON, a Markdown table and a plot.

Ours is called through the C interface; the peers are PyTorch's own optimizers, its mixed-precision step with fp32 masters,
DeepSpeed's CPU Adam, and the 8-bit AdamW of bitsandbytes and torchao, as far as they can be imported. Every figure is a median
over rounds in which all contestants and the memory's bandwidth were measured one after another; ratios are medians of the ratios
within a round. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).resolve().parent.parent / "build" / "release" / "bench" / "libflashoptim_bench_c.so"
RULES = {"sgd": 0, "adamw": 3, "lion": 4}
FORMATS = {"native": 0, "paper": 1, "fp32": 2}
DTYPES = {torch.float32: 0, torch.bfloat16: 1}


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


class TensorView(ctypes.Structure):
    """flashoptim_tensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
    ]


def made_up(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Ordinary small values."""
    count = torch.Size(shape).numel()
    piece = torch.randn(min(count, 1 << 20)) * 0.01
    return piece.to(dtype).repeat(-(-count // piece.numel()))[:count].reshape(shape).clone()


class Ours:
    """An optimizer of this library over the given shapes."""

    library: ctypes.CDLL | None = None

    def __init__(
        self,
        rule: str,
        number_format: str,
        shapes: list[tuple[int, ...]],
        quantize: bool = True,
    ) -> None:
        if Ours.library is None:
            Ours.library = ctypes.CDLL(str(LIBRARY))
            Ours.library.flashoptim_last_error.restype = ctypes.c_char_p
        self.call = Ours.library
        options, hyperparameters = Options(), Hyperparameters()
        self.check(
            self.call.flashoptim_options_init(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options)))
        )
        self.check(
            self.call.flashoptim_hyperparameters_init(
                ctypes.byref(hyperparameters), ctypes.c_size_t(ctypes.sizeof(hyperparameters)), RULES[rule]
            )
        )
        options.format, options.threads, options.quantize = (
            FORMATS[number_format],
            torch.get_num_threads(),
            quantize,
        )
        hyperparameters.weight_decay = 0.01
        if rule == "sgd":
            hyperparameters.momentum = 0.9
        self.handle = ctypes.c_void_p()
        self.check(
            self.call.flashoptim_create(
                RULES[rule], ctypes.byref(hyperparameters), ctypes.byref(options), ctypes.byref(self.handle)
            )
        )
        dtype = torch.float32 if number_format == "fp32" else torch.bfloat16
        self.tensors = [(made_up(shape, dtype), made_up(shape, dtype)) for shape in shapes]
        for number, (weight, gradient) in enumerate(self.tensors):
            view, keep = self.view(weight)
            self.check(
                self.call.flashoptim_add_parameter(
                    self.handle, ctypes.byref(view), None, ctypes.c_size_t(0), None, None
                )
            )
            view, keep = self.view(gradient)
            self.check(
                self.call.flashoptim_set_gradient(self.handle, ctypes.c_size_t(number), ctypes.byref(view))
            )
            del keep

    def check(self, status: int) -> None:
        """Raises what the library had to say."""
        if status != 0:
            raise RuntimeError(self.call.flashoptim_last_error().decode())

    @staticmethod
    def view(tensor: torch.Tensor) -> tuple[TensorView, Any]:
        """The tensor for C, and what must outlive the call."""
        shape = (ctypes.c_int64 * tensor.dim())(*tensor.shape)
        return TensorView(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.dim(), shape, None), shape

    def step(self) -> None:
        """One step of all tensors."""
        self.check(self.call.flashoptim_step(self.handle, None, None))

    def __del__(self) -> None:
        self.call.flashoptim_destroy(self.handle)


class Torch:
    """A PyTorch-style optimizer over leaf tensors with gradients."""

    def __init__(
        self, make: Callable[[list[torch.Tensor]], Any], shapes: list[tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        self.parameters = [torch.nn.Parameter(made_up(shape, dtype)) for shape in shapes]
        for parameter in self.parameters:
            parameter.grad = made_up(tuple(parameter.shape), dtype)
        self.optimizer = make(self.parameters)

    def step(self) -> None:
        """One step of all tensors."""
        self.optimizer.step()


class Mixed:
    """PyTorch's usual mixed precision: cast the bf16 gradient, step the fp32 master fused, cast it to the bf16 weight."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self.weights = [made_up(shape, torch.bfloat16) for shape in shapes]
        self.gradients = [made_up(shape, torch.bfloat16) for shape in shapes]
        self.masters = [torch.nn.Parameter(weight.float()) for weight in self.weights]
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.optimizer = torch.optim.AdamW(self.masters, fused=True)

    def step(self) -> None:
        """One step of all tensors."""
        with torch.no_grad():
            for master, gradient in zip(self.masters, self.gradients, strict=True):
                assert master.grad is not None
                master.grad.copy_(gradient)
            self.optimizer.step()
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)


class Bandwidth:
    """Adds to a buffer in place."""

    def __init__(self) -> None:
        self.buffer = torch.ones(1 << 26)

    def step(self) -> None:
        """Reads and writes 256 MiB."""
        self.buffer.add_(1.0)


@dataclass
class Contestant:
    """What is timed: its name, how it is made, and the bytes that one of its parameters moves in a step."""

    name: str
    make: Callable[[], Any]
    bytes_moved: float
    times: list[float] = field(default_factory=list)
    peer: str = ""


def peers(shapes: list[tuple[int, ...]], slow: bool) -> list[Contestant]:
    """Those that can be imported here; who is missing is said on stderr."""
    single, half = torch.float32, torch.bfloat16
    found = [
        Contestant(
            "torch AdamW fused fp32",
            lambda: Torch(lambda p: torch.optim.AdamW(p, fused=True), shapes, single),
            28,
        ),
        Contestant(
            "torch AdamW foreach fp32",
            lambda: Torch(lambda p: torch.optim.AdamW(p, foreach=True), shapes, single),
            28,
        ),
        Contestant("torch AdamW mixed precision", lambda: Mixed(shapes), 40),
        Contestant(
            "torch SGD fused fp32",
            lambda: Torch(lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True), shapes, single),
            20,
        ),
    ]
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        found.append(
            Contestant(
                "DeepSpeedCPUAdam fp32", lambda: Torch(lambda p: DeepSpeedCPUAdam(p), shapes, single), 28
            )
        )
    except Exception as error:  # noqa: BLE001  # it builds itself when it is imported, and any of that may fail
        print(f"compare: no DeepSpeed: {error}", file=sys.stderr)
    if slow:
        try:
            import bitsandbytes

            found.append(
                Contestant(
                    "bitsandbytes AdamW8bit",
                    lambda: Torch(lambda p: bitsandbytes.optim.AdamW8bit(p, min_8bit_size=0), shapes, half),
                    10,
                )
            )
        except Exception as error:  # noqa: BLE001
            print(f"compare: no bitsandbytes: {error}", file=sys.stderr)
        try:
            from torchao.optim import AdamW8bit

            found.append(
                Contestant("torchao AdamW8bit", lambda: Torch(lambda p: AdamW8bit(p), shapes, half), 10)
            )
        except Exception as error:  # noqa: BLE001
            print(f"compare: no torchao: {error}", file=sys.stderr)
    return found


def ours(shapes: list[tuple[int, ...]], rules: list[str], quantize: bool = True) -> list[Contestant]:
    """Every rule in every format."""
    moved = {
        "native": {"adamw": 12.25, "sgd": 10.1, "lion": 10.1},
        "paper": {"adamw": 12.25, "sgd": 10.1, "lion": 10.1},
    }
    moved["fp32"] = {"adamw": 28.0, "sgd": 20.0, "lion": 20.0}
    if not quantize:
        moved["native"] = {"adamw": 24.0, "sgd": 16.0, "lion": 16.0}
    return [
        Contestant(
            f"ours {rule} {number_format}",
            lambda rule=rule, number_format=number_format: Ours(rule, number_format, shapes, quantize),
            moved[number_format][rule],
        )
        for rule in rules
        for number_format in (FORMATS if quantize else ["native"])
    ]


def seconds(step: Callable[[], None], least: float = 2e-3) -> float:
    """Seconds of one step, as the mean of as many as take `least`."""
    start, calls = time.perf_counter(), 0
    while True:
        step()
        calls += 1
        passed = time.perf_counter() - start
        if passed >= least:
            return passed / calls


def measure(
    title: str, contestants: list[Contestant], parameters: int, rounds: int, at_once: bool
) -> dict[str, Any]:
    """Times all in turns (at_once), or one after another with the bandwidth before and after each."""
    bandwidth = Bandwidth()
    rates: list[float] = []
    running: dict[str, Any] = {}

    def make(contestant: Contestant) -> None:
        try:
            running[contestant.name] = contestant.make()
            running[contestant.name].step()
            running[contestant.name].step()
        except (RuntimeError, MemoryError, NotImplementedError, AssertionError, ValueError) as error:
            running.pop(contestant.name, None)
            print(f"compare: {title}: {contestant.name}: {str(error).splitlines()[0]}", file=sys.stderr)

    bandwidth.step()
    if at_once:
        for contestant in contestants:
            make(contestant)
        for _ in range(rounds):
            rates.append(2 * 4 * (1 << 26) / seconds(bandwidth.step))
            for contestant in contestants:
                if contestant.name in running:
                    contestant.times.append(seconds(running[contestant.name].step))
    else:
        for contestant in contestants:
            make(contestant)
            rates.append(2 * 4 * (1 << 26) / seconds(bandwidth.step))
            if contestant.name in running:
                contestant.times.extend(seconds(running[contestant.name].step) for _ in range(rounds))
            rates.append(2 * 4 * (1 << 26) / seconds(bandwidth.step))
            running.clear()
            gc.collect()
    rate = statistics.median(rates)
    rows = []
    for contestant in contestants:
        if not contestant.times:
            continue
        median = statistics.median(contestant.times)
        rows.append(
            {
                "name": contestant.name,
                "seconds": median,
                "parameters_per_second": parameters / median,
                "bytes_per_second": contestant.bytes_moved * parameters / median,
                "share_of_bandwidth": contestant.bytes_moved * parameters / median / rate,
                "times": contestant.times,
            }
        )
    return {
        "title": title,
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "bandwidth": rate,
        "rows": rows,
    }


def ratio(result: dict[str, Any], of: str, over: str) -> float | None:
    """Median over the rounds of how many times as fast `of` was."""
    times = {row["name"]: row["times"] for row in result["rows"]}
    if of not in times or over not in times:
        return None
    return statistics.median(b / a for a, b in zip(times[of], times[over], strict=False))


def markdown(results: list[dict[str, Any]]) -> str:
    """One table for each case."""
    lines = []
    for result in results:
        lines += [
            f"### {result['title']}, {result['threads']} thread{'s' if result['threads'] > 1 else ''}",
            "",
            f"In-place bandwidth {result['bandwidth'] * 1e-9:.1f} GB/s.",
            "",
            "| | ms | Gparam/s | GB/s | of bandwidth | speed over it of ours AdamW native |",
            "|---|---|---|---|---|---|",
        ]
        for row in result["rows"]:
            over = ratio(result, "ours adamw native", row["name"])
            lines.append(
                f"| {row['name']} | {row['seconds'] * 1e3:.3f} | {row['parameters_per_second'] * 1e-9:.3f} "
                f"| {row['bytes_per_second'] * 1e-9:.1f} | {row['share_of_bandwidth'] * 100:.0f} % "
                f"| {'-' if over is None else f'{over:.2f}'} |"
            )
        lines.append("")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of parameters per second, one picture for all cases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(results), 1, figsize=(9, 3.2 * len(results)), squeeze=False)
    for axis, result in zip(axes[:, 0], results, strict=True):
        names = [row["name"] for row in result["rows"]]
        axis.barh(names, [row["parameters_per_second"] * 1e-9 for row in result["rows"]])
        axis.invert_yaxis()
        axis.set_xlabel("billion parameters per second")
        axis.set_title(f"{result['title']}, threads: {result['threads']}")
    figure.tight_layout()
    figure.savefig(path)


def gpt2() -> list[tuple[int, ...]]:
    """The parameters of GPT-2 124 M, tied."""
    shapes: list[tuple[int, ...]] = [(50257, 768), (1024, 768)]
    for _ in range(12):
        shapes += [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,)]
        shapes += [(768,), (768,), (768, 3072), (3072,), (3072, 768), (768,)]
    return [*shapes, (768,), (768,)]


def resnet50() -> list[tuple[int, ...]]:
    """The parameters of ResNet-50."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            for shape in ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: under 5 minutes")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the results")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    if not LIBRARY.exists():
        sys.exit(f"compare: {LIBRARY} is missing; run `make bench`")
    rounds = min(arguments.rounds, 5) if arguments.quick else arguments.rounds
    mega = 1 << 20
    results = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        one = [(1024, 1024)]
        results.append(
            measure("1 M parameters", ours(one, list(RULES)) + peers(one, True), mega, rounds, True)
        )
        large = [(65536, 1024)]
        results.append(
            measure(
                "64 M parameters",
                ours(large, ["adamw"]) + peers(large, True),
                64 * mega,
                rounds if not arguments.quick else 3,
                True,
            )
        )
        many, same = [(1000,)] * 10_000, [(10_000, 1000)]
        small = [
            Contestant("ours adamw native", lambda many=many: Ours("adamw", "native", many), 24),
            Contestant(
                "ours adamw, one tensor", lambda same=same: Ours("adamw", "native", same, quantize=False), 24
            ),
            *peers(many, False)[:2],
        ]
        results.append(measure("10,000 tensors of 1,000 elements", small, 10_000_000, rounds, True))
        for title, shapes in (("GPT-2 124 M", gpt2()), ("ResNet-50", resnet50())):
            count = sum(torch.Size(shape).numel() for shape in shapes)
            rows = -(-count // 1024)
            listed = [
                Contestant("ours adamw native", lambda shapes=shapes: Ours("adamw", "native", shapes), 12.25),
                Contestant(
                    "ours adamw, one tensor", lambda rows=rows: Ours("adamw", "native", [(rows, 1024)]), 12.25
                ),
                *peers(shapes, False)[:1],
            ]
            results.append(measure(title, listed, count, 5, True))
        if not arguments.quick:
            huge = [(524288, 1024)]
            results.append(
                measure("512 M parameters", ours(huge, ["adamw"]) + peers(huge, False), 512 * mega, 3, False)
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "results": results,
    }
    (arguments.out / "compare.json").write_text(json.dumps(document, indent=1) + "\n")
    table = (
        f"{document['processor']}, {document['cores']} cores, torch {torch.__version__}, {document['date']}.\n\n"
        + markdown(results)
    )
    (arguments.out / "compare.md").write_text(table)
    plot(results, arguments.out / "compare.png")
    print(table)


def processor() -> str:
    """What the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
