"""Times the step of the Python package beside torch.optim.AdamW over many small tensors, where Python costs
the most.

    PYTHONPATH=build/release/python python bench/python_step.py

Every figure is a median over rounds; a round measures all contestants one after another. Ratios are medians
of the ratios within a round. One and two threads by default. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import flashoptim_cpp as flash
import torch


def stepper(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    tensors: int,
    numel: int,
    dtype: torch.dtype,
) -> torch.optim.Optimizer:
    """An optimizer with gradients that has made its first step."""
    parameters = [torch.nn.Parameter(torch.randn(numel).to(dtype)) for _ in range(tensors)]
    for p in parameters:
        p.grad = torch.randn(numel).to(dtype)
    optimizer = make(parameters)
    for _ in range(5):
        optimizer.step()
    return optimizer


def seconds(optimizer: torch.optim.Optimizer, calls: int) -> float:
    """Seconds of one step: the mean over `calls` steps."""
    start = time.perf_counter()
    for _ in range(calls):
        optimizer.step()
    return (time.perf_counter() - start) / calls


CONTESTANTS: dict[str, tuple[Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], torch.dtype]] = {
    "ours, bfloat16": (flash.FlashAdamW, torch.bfloat16),
    "ours, fp32": (flash.FlashAdamW, torch.float32),
    "torch fused, fp32": (lambda p: torch.optim.AdamW(p, fused=True), torch.float32),
    "torch fused, bfloat16": (lambda p: torch.optim.AdamW(p, fused=True), torch.bfloat16),
    "torch foreach, fp32": (lambda p: torch.optim.AdamW(p, foreach=True), torch.float32),
}
OURS, THEIRS = "ours, bfloat16", ("torch fused, fp32", "torch fused, bfloat16", "torch foreach, fp32")


def measure(arguments: argparse.Namespace, threads: int) -> dict[str, list[float]]:
    """Seconds of a step of each contestant, in each round."""
    torch.set_num_threads(threads)
    running = {
        name: stepper(make, arguments.tensors, arguments.numel, dtype)
        for name, (make, dtype) in CONTESTANTS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(arguments.rounds):
        for name, optimizer in running.items():
            times[name].append(seconds(optimizer, arguments.calls))
    return times


def report(arguments: argparse.Namespace, threads: int, times: dict[str, list[float]]) -> None:
    """Prints the medians and the ratios to the other contestants."""
    print(f"{arguments.tensors} tensors of {arguments.numel} elements, {threads} thread(s)")
    for name, taken in times.items():
        print(f"{name:24}{statistics.median(taken) * 1e6:10.1f} us a step")
    for name in THEIRS:
        ratio = statistics.median(a / b for a, b in zip(times[OURS], times[name], strict=True))
        print(f"{OURS} / {name}: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", type=int, default=300)
    parser.add_argument("--numel", type=int, default=64, help="elements of each tensor")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=20, help="steps of each contestant in a round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    for n, threads in enumerate(arguments.threads):
        print(end="\n" if n else "")
        report(arguments, threads, measure(arguments, threads))


if __name__ == "__main__":
    main()
