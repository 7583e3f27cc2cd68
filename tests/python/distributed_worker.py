"""Runs the checks of distributed_checks.py on 1, 2, 3 and 4 gloo processes and writes what came of each.

    python distributed_worker.py FOLDER

Imports torch once and forks: first every number of ranks trains and saves, then every number of ranks loads what every
number saved. FOLDER/results.json maps "check-ranks" to "ok" or to what went wrong. Never run by pytest itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import distributed_checks
import torch
import torch.distributed as dist

RANKS = (1, 2, 3, 4)
DEADLINE = 100.0  # seconds for one number of ranks: what takes longer hangs

Check = Callable[[Path, int, int], None]


def leave(status: int) -> None:
    """gloo may abort when the interpreter ends after all work is done, so it does not end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_rank(folder: Path, phase: str, rank: int, size: int) -> None:
    """All checks of a phase in one process. After one that failed on any rank the others still run."""
    torch.set_num_threads(1)
    store = folder / f"store-{phase}-{size}"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    results: dict[str, str] = {}
    for name, check in distributed_checks.PHASES[phase].items():
        try:
            check(folder, rank, size)
            said = "ok"
        except Exception:
            said = traceback.format_exc()
        everyone: list[str] = [""] * size
        dist.all_gather_object(everyone, said)
        wrong = [f"rank {r}: {text}" for r, text in enumerate(everyone) if text != "ok"]
        results[f"{name}-{size}"] = "\n".join(wrong) or "ok"
        if rank == 0:
            (folder / f"{phase}-{size}.json").write_text(json.dumps(results))
    dist.barrier()


def run_ranks(folder: Path, phase: str, size: int) -> None:
    """Forks the ranks and waits; ranks that hang are ended by their process ids."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                run_rank(folder, phase, rank, size)
            except BaseException:
                traceback.print_exc()
                leave(1)
            leave(0)
        children.append(child)
    end = time.monotonic() + DEADLINE
    while children and time.monotonic() < end:
        children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
        time.sleep(0.02)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)


def main() -> None:
    folder = Path(sys.argv[1])
    for phase in distributed_checks.PHASES:
        for size in RANKS:
            run_ranks(folder, phase, size)
    results: dict[str, str] = {}
    for phase in distributed_checks.PHASES:
        for size in RANKS:
            file = folder / f"{phase}-{size}.json"
            results |= json.loads(file.read_text()) if file.exists() else {}
    (folder / "results.json").write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main()
