"""Helpers of the tests of the flashoptim command: starting it, short runs, checks of
refusals and of what a run left."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(os.environ.get("FLASHOPTIM", ROOT / "build/release/apps/flashoptim/flashoptim"))
TIME_COLUMNS = {"tokens_per_second", "seconds", "optimizer_seconds", "resident_bytes"}
DEADLINE = 300.0

# Every test file of this folder has it as its `pytestmark`.
needs_command = pytest.mark.skipif(not COMMAND.exists(), reason=f"{COMMAND} is not built")

TINY = ("--model", "llama-tiny", "--batch", 2, "--sequence", 32, "--eval-batches", 1, "--threads", 1)


def run(
    *arguments: object,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def small(text: Path, *more: object) -> list[object]:
    """A run of seconds on one thread."""
    return ["train", "--data", text, *TINY, *more]


def small_comparison(text: Path, out: Path, *more: object) -> list[object]:
    """A comparison of one run of one step."""
    own = ("--formats", "native", "--no-plot", "--out", out)
    return ["compare", f"--data={text}", *TINY, "--steps", 1, *own, *more]


def assert_refused(result: subprocess.CompletedProcess[str], *named: str) -> None:
    """Exit code 2 and one line that names the thing."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("flashoptim: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    for word in named:
        assert word in errors[0]


def metrics_without_times(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]


def last_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def steps_done(folder: Path) -> int:
    try:
        return max(len((folder / "metrics.csv").read_text().splitlines()) - 1, 0)
    except FileNotFoundError:
        return 0
