"""The quality study: every optimizer in every format from several seeds on one text, with paired differences.

    .venv/bin/python bench/quality.py --data TEXT --out out/quality --table docs/quality-table.md

Each run is `flashoptim train` on one thread; --jobs runs at a time. Finished runs are kept, so an interrupted
study continues. For AdamW the native format is also trained with the loss and eps times 1e-2 and 1e-5, which
exact Adam does not notice.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """Learning rate and clipping norm (0: none) of an optimizer, the same in every format."""

    rate: float
    clip: float


# AdamW is not clipped, because its loss is also scaled. SGD and Lion are clipped. Without that, each seed
# leaves the first plateau at another time, and that spread hides every other effect.
OPTIMIZERS = {"sgd": Setting(0.1, 1.0), "adamw": Setting(1e-3, 0.0), "lion": Setting(1e-3, 1.0)}
FORMATS = ("fp32", "paper", "native")
LOSS_FACTORS = (1e-2, 1e-5)
EPSILON = 1e-8
ALLOWED_NATS = 0.02
ALLOWED_ERRORS = 3.0


@dataclass(frozen=True)
class Case:
    """One row of the table: an optimizer, a format and a factor of the loss."""

    optimizer: str
    format: str
    loss_factor: float = 1.0

    @property
    def name(self) -> str:
        factor = "" if self.loss_factor == 1.0 else f"-loss{self.loss_factor:g}"
        return f"{self.optimizer}-{self.format}{factor}"


def cases() -> list[Case]:
    """All rows, references first."""
    rows = [Case(optimizer, format) for optimizer in OPTIMIZERS for format in FORMATS]
    return rows + [Case("adamw", "native", factor) for factor in LOSS_FACTORS]


def train(arguments: argparse.Namespace, case: Case, seed: int) -> dict:
    """Trains one run, or reads a finished one. Returns its object in summary.json."""
    folder = arguments.out / f"{case.name}-seed{seed}"
    summary = folder / "summary.json"
    if not summary.exists():
        setting = OPTIMIZERS[case.optimizer]
        options = {
            "data": arguments.data,
            "model": arguments.model,
            "steps": arguments.steps,
            "batch": 8,
            "sequence": 128,
            "warmup": arguments.steps // 10,
            "optimizer": case.optimizer,
            "format": case.format,
            "lr": setting.rate,
            "clip": setting.clip,
            "seed": seed,
            "threads": 1,
            "eval-every": arguments.steps,
            "eval-batches": 64,
            "loss-factor": repr(case.loss_factor),
            "eps": repr(EPSILON * case.loss_factor),
            "out": folder,
        }
        command = [str(arguments.command), "train", "--no-final-checkpoint", "--overwrite"]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        with (arguments.out / f"{case.name}-seed{seed}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        print(f"{case.name} seed {seed} done", flush=True)
    return json.loads(summary.read_text())["runs"][0]


def standard_error(values: list[float]) -> float:
    """The standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def table(arguments: argparse.Namespace, losses: dict[Case, list[float]]) -> tuple[str, bool]:
    """The Markdown table, and whether every native row is within the bound."""
    lines = [
        "| optimizer | format | loss and eps times | validation loss, mean | spread (standard deviation) "
        "| minus fp32, paired | standard error | within the bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    all_within = True
    for case, values in losses.items():
        row = [
            case.optimizer,
            case.format,
            f"{case.loss_factor:g}",
            f"{statistics.mean(values):.4f}",
            f"{statistics.stdev(values):.4f}",
        ]
        if case.format == "fp32":
            row += ["", "", ""]
        else:
            differences = [a - b for a, b in zip(values, losses[Case(case.optimizer, "fp32")], strict=True)]
            mean, error = statistics.mean(differences), standard_error(differences)
            within = abs(mean) <= max(ALLOWED_NATS, ALLOWED_ERRORS * error)
            all_within = all_within and (within or case.format != "native")
            row += [f"{mean:+.4f}", f"{error:.4f}", "yes" if within else "no"]
        lines.append("| " + " | ".join(row) + " |")
    lines.append("")
    seeds = ", ".join(map(str, arguments.seeds))
    lines.append(
        f"{arguments.model}, {arguments.steps} steps of 8 x 128 tokens, seeds {seeds}; bound: "
        f"{ALLOWED_NATS} nats or {ALLOWED_ERRORS:g} standard errors of the paired differences, "
        "whichever is larger."
    )
    return "\n".join(lines) + "\n", all_within


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="UTF-8 text file or folder")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    parser.add_argument("--table", type=Path, help="write the table to this Markdown file too")
    parser.add_argument("--command", type=Path, default=Path("build/release/apps/flashoptim/flashoptim"))
    parser.add_argument("--model", default="llama-1m")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    plan = [(case, seed) for case in cases() for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.jobs) as executor:
        results = list(executor.map(lambda run: train(arguments, *run), plan))
    losses: dict[Case, list[float]] = {case: [] for case in cases()}
    for (case, _), result in zip(plan, results, strict=True):
        losses[case].append(result["validation_loss"])
    text, within = table(arguments, losses)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
