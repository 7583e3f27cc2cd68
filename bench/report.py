"""The measurements of compare.py as text and pictures: ratios, tables, a plot. Nothing is timed here."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Any

# Bytes per second of all memory channels, from data sheets: channels x transfers per second x 8 bytes.
MACHINES = {
    "desktop, 2 channels of DDR5-5600": 2 * 5600e6 * 8,
    "server, 8 channels of DDR5-5600": 8 * 5600e6 * 8,
    "server, 12 channels of DDR5-4800": 12 * 4800e6 * 8,
    "server, 12 channels of DDR5-6400": 12 * 6400e6 * 8,
}
BYTES_OF_ADAMW = {"ours adamw native": 12.25, "ours adamw fp32": 28.0}


def ratio(result: dict[str, Any], of: str, over: str) -> float | None:
    """The median over the rounds of the speed of `of` relative to `over`."""
    times = {row["name"]: row["times"] for row in result["rows"]}
    if of not in times or over not in times:
        return None
    return statistics.median(b / a for a, b in zip(times[of], times[over], strict=False))


def threads_of(result: dict[str, Any]) -> str:
    """ "1 thread", "2 threads"."""
    return f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"


# The ratios of the summary: case, contestant, and the contestant that it is compared with.
QUESTIONS = [
    ("1 M parameters", "ours adamw native", "ours adamw fp32"),
    ("1 M parameters", "ours adamw paper", "ours adamw native"),
    ("1 M parameters", "ours sgd native", "ours adamw native"),
    ("1 M parameters", "ours lion native", "ours adamw native"),
    ("1 M parameters", "ours adamw fp32", "torch AdamW fused fp32"),
    ("1 M parameters", "ours adamw native", "bitsandbytes AdamW8bit"),
    ("1 M parameters", "ours adamw native", "torchao AdamW8bit"),
    ("64 M parameters", "ours adamw native", "torch AdamW mixed precision"),
    ("64 M parameters", "ours adamw native", "torch AdamW fused fp32"),
    ("64 M parameters", "ours adamw native", "DeepSpeedCPUAdam fp32"),
    ("64 M parameters", "ours adamw native", "bitsandbytes AdamW8bit"),
    ("64 M parameters", "ours adamw native", "torchao AdamW8bit"),
    ("64 M parameters", "ours adamw fp32", "torch AdamW fused fp32"),
    ("512 M parameters", "ours adamw native", "torch AdamW mixed precision"),
    ("512 M parameters", "ours adamw native", "torch AdamW fused fp32"),
    ("10,000 tensors of 1,000 elements", "ours adamw, one tensor", "ours adamw native"),
    ("10,000 tensors of 1,000 elements", "ours adamw native", "torch AdamW fused fp32"),
    ("GPT-2 124 M", "ours adamw, one tensor", "ours adamw native"),
    ("ResNet-50", "ours adamw, one tensor", "ours adamw native"),
    ("Instruction sets, 1 M parameters", "ours adamw native avx2", "ours adamw native avx512"),
    ("Instruction sets, 64 M parameters", "ours adamw native avx2", "ours adamw native avx512"),
]


def summary(results: list[dict[str, Any]]) -> list[str]:
    """The ratios of QUESTIONS, one row for each."""
    lines = ["### Ratios", "", "| case | threads | | over | speed |", "|---|---|---|---|---|"]
    for title, of, over in QUESTIONS:
        for result in results:
            value = ratio(result, of, over) if result["title"] == title else None
            if value is not None:
                lines.append(f"| {title} | {result['threads']} | {of} | {over} | {value:.2f} |")
    return [*lines, ""]


def cores_to_bound(results: list[dict[str, Any]]) -> list[str]:
    """The number of such cores that use all bandwidth of a machine: bandwidth / (bytes x parameters/s per
    core).
    """
    rates = {
        row["name"]: row["parameters_per_second"]
        for result in results
        if result["title"] == "1 M parameters" and result["threads"] == 1
        for row in result["rows"]
        if row["name"] in BYTES_OF_ADAMW
    }
    if not rates:
        return []
    lines = [
        "### Cores of this kind that reach the memory bound",
        "",
        "From the speed of one thread at 1 M parameters; at most as many as the caches share well.",
        "",
        "| memory | GB/s | " + " | ".join(rates) + " |",
        "|---|---|" + "---|" * len(rates),
    ]
    for machine, bandwidth in MACHINES.items():
        cores = [f"{bandwidth / (BYTES_OF_ADAMW[name] * rate):.1f}" for name, rate in rates.items()]
        lines.append(f"| {machine} | {bandwidth * 1e-9:.0f} | " + " | ".join(cores) + " |")
    return [*lines, ""]


def tables(results: list[dict[str, Any]]) -> list[str]:
    """One table for each case."""
    lines = []
    for result in results:
        lines += [
            f"### {result['title']}, {threads_of(result)}",
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
    return lines


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of parameters per second, one picture for all cases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [0.8 + 0.2 * len(result["rows"]) for result in results]
    figure, axes = pyplot.subplots(
        len(results), 1, figsize=(9, sum(heights)), squeeze=False, height_ratios=heights
    )
    for axis, result in zip(axes[:, 0], results, strict=True):
        names = [row["name"] for row in result["rows"]]
        axis.barh(names, [row["parameters_per_second"] * 1e-9 for row in result["rows"]])
        axis.invert_yaxis()
        axis.set_xlabel("billion parameters per second")
        axis.set_title(f"{result['title']}, {threads_of(result)}")
    figure.tight_layout()
    figure.savefig(path)


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
