"""Draws what `flashoptim compare` wrote: the loss curves, and the bytes per parameter by kind.

usage: plot_comparison.py FOLDER PICTURE
Exit code 3: there is no matplotlib that works.
"""

import csv
import io
import json
import sys
from pathlib import Path

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except Exception as reason:  # not only ImportError: a broken installation fails in its own ways
    print(f"matplotlib cannot be used: {type(reason).__name__}", file=sys.stderr)
    sys.exit(3)

KINDS = ("weights", "corrections", "moments", "scales", "gradients", "accumulators")


def label_of(run: dict) -> str:
    """Name of a run in legends."""
    released = ", released" if run["gradient_release"] else ""
    return f"{run['optimizer']} {run['format']}{released}"


def read_curve(metrics: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have a value in the column."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[column]]
    return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]


def smoothed(values: list[float], window: int) -> list[float]:
    """Running mean over the last `window` values."""
    means, total = [], 0.0
    for n, value in enumerate(values):
        total += value - (values[n - window] if n >= window else 0.0)
        means.append(total / min(n + 1, window))
    return means


def main(folder: Path, picture: Path) -> None:
    runs = json.loads((folder / "summary.json").read_text())["runs"]
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(13, 5), constrained_layout=True)
    for color, run in enumerate(runs):
        metrics = folder / run["name"] / "metrics.csv"
        steps, losses = read_curve(metrics, "loss")
        window = max(1, len(losses) // 50)
        curves.plot(steps, smoothed(losses, window), color=f"C{color % 10}", alpha=0.4, linewidth=1)
        steps, losses = read_curve(metrics, "validation_loss")
        curves.plot(steps, losses, color=f"C{color % 10}", marker=".", label=label_of(run))
    curves.set(xlabel="step", ylabel="loss (nats per token)", title="validation loss (faint: training)")
    curves.legend()

    labels = [label_of(run).replace(" ", "\n", 1) for run in runs]
    bottoms = [0.0] * len(runs)
    for kind in KINDS:
        heights = [run["bytes_per_parameter"][kind] for run in runs]
        if any(heights):
            bars.bar(range(len(runs)), heights, bottom=bottoms, label=kind)
            bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
    for x, total in enumerate(bottoms):
        bars.text(x, total, f"{total:.2f}", ha="center", va="bottom")
    bars.set_xticks(range(len(runs)), labels)
    bars.set(ylabel="bytes per parameter", title="memory by kind")
    bars.legend()
    drawn = io.BytesIO()  # so that nothing is left of a picture that could not be drawn
    figure.savefig(drawn, dpi=110, format="png")
    picture.write_bytes(drawn.getvalue())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
