"""Times the optimizer step beside its peers, in turns in one process. Writes JSON, a Markdown table and a
plot.

Ours is called through the C interface. The peers are PyTorch's own optimizers, its mixed-precision step with
fp32 masters, DeepSpeed's CPU Adam, and the 8-bit AdamW of bitsandbytes and torchao, if they can be imported.
Every figure is a median over rounds; a round measures all contestants and the memory bandwidth one after
another. Ratios are medians of the ratios within a round. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from c_interface import LIBRARY
from contestants import (
    RULES,
    Bandwidth,
    Contestant,
    Ours,
    OursNorm,
    every_backend,
    gpt2,
    one_of_ours,
    ours,
    peers,
    resnet50,
)
from report import cores_to_bound, plot, processor, summary, tables


def seconds(step: Callable[[], None], least: float = 2e-2, slow: float = 0.5) -> float:
    """Seconds of one step: the mean over enough steps to take `least`, after a warm-up step.

    A step slower than `slow` is timed once.
    """
    start, calls = time.perf_counter(), 0
    step()
    first = time.perf_counter() - start
    if first > slow:
        return first
    start = time.perf_counter()
    while True:
        step()
        calls += 1
        passed = time.perf_counter() - start
        if passed >= least:
            return passed / calls


def measure(
    title: str, contestants: list[Contestant], parameters: int, rounds: int, at_once: bool
) -> dict[str, Any]:
    """Times all contestants in turns (at_once), or one after another with the bandwidth before and after
    each.
    """
    print(f"compare: {title}, threads: {torch.get_num_threads()}", file=sys.stderr, flush=True)
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


def cases(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Measures all cases with torch's current number of threads."""
    mega = 1 << 20
    one, large, huge = [(1024, 1024)], [(65536, 1024)], [(524288, 1024)]
    norm = Contestant("ours grad_norm", partial(OursNorm, "adamw", "native", large), 2)
    results = [
        measure("1 M parameters", ours(one, list(RULES)) + peers(one, True), mega, rounds, True),
        measure(
            "64 M parameters",
            [*ours(large, ["adamw"] if quick else list(RULES)), norm, *peers(large, True)],
            64 * mega,
            3 if quick else rounds,
            True,
        ),
    ]
    many, same = [(1000,)] * 10_000, [(10_000, 1000)]
    small = [
        Contestant("ours adamw native", partial(Ours, "adamw", "native", many), 24),
        Contestant("ours adamw, one tensor", partial(Ours, "adamw", "native", same, quantize=False), 24),
        *peers(many, False)[:2],
    ]
    results.append(measure("10,000 tensors of 1,000 elements", small, 10_000_000, rounds, True))
    for title, shapes in (("GPT-2 124 M", gpt2()), ("ResNet-50", resnet50())):
        count = sum(torch.Size(shape).numel() for shape in shapes)
        rows = -(-count // 1024)
        listed = [
            one_of_ours("adamw", "native", shapes),
            Contestant("ours adamw, one tensor", partial(Ours, "adamw", "native", [(rows, 1024)]), 12.25),
            *peers(shapes, False)[:1],
        ]
        results.append(measure(title, listed, count, 5, True))
    if not quick:
        results += [
            measure("Instruction sets, 1 M parameters", every_backend(one), mega, rounds, True),
            measure("Instruction sets, 64 M parameters", every_backend(large), 64 * mega, 3, False),
            measure("512 M parameters", ours(huge, ["adamw"]) + peers(huge, False), 512 * mega, 3, False),
        ]
    return results


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
    results = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        results += cases(arguments.quick, min(arguments.rounds, 5) if arguments.quick else arguments.rounds)
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
        f"{document['processor']}, {document['cores']} cores, torch {torch.__version__}, "
        + f"{document['date']}.\n\n"
        + "\n".join([*summary(results), *cores_to_bound(results), *tables(results)])
    )
    (arguments.out / "compare.md").write_text(table)
    plot(results, arguments.out / "compare.png")
    print(table)


if __name__ == "__main__":
    main()
