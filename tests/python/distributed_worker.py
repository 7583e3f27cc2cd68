"""Runs the checks of distributed_checks.py on 1, 2, 3 and 4 gloo processes and writes what came of each.

    python distributed_worker.py FOLDER

Imports torch once and forks: first every number of ranks trains and saves, then every number of
ranks loads what every number saved. FOLDER/results.json maps "check-ranks" to "ok" or to what went
wrong. Never run by pytest itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

import distributed_checks
import torch
import torch.distributed as dist

RANKS = (1, 2, 3, 4)
DEADLINE = 100.0  # seconds for all checks of a phase: what takes longer hangs


def leave(status: int) -> None:
    """gloo may abort when the interpreter ends after all work is done, so it does not end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_rank(folder: Path, phase: str, names: list[str], rank: int, size: int) -> None:
    """The named checks in one process; ends at the first that fails, as the other
    ranks may wait for it for ever."""
    torch.set_num_threads(1)
    store = folder / f"store-{phase}-{size}-{names[0]}"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for name in names:
        start = time.monotonic()
        try:
            distributed_checks.PHASES[phase][name](folder, rank, size)
        except Exception:
            (folder / f"failed-{name}-{size}-{rank}").write_text(traceback.format_exc())
            leave(1)
        dist.barrier()
        if rank == 0:
            (folder / f"done-{name}-{size}").touch()
            print(f"{time.monotonic() - start:6.1f} s  {name} on {size}", flush=True)
    dist.barrier()


def fork_rank(folder: Path, phase: str, names: list[str], rank: int, size: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            run_rank(folder, phase, names, rank, size)
        except BaseException:
            traceback.print_exc()
            leave(1)
        leave(0)
    return child


def wait(children: list[int]) -> None:
    """Until all have ended. Where one fails the others get a moment to fail too, and are
    ended by their process ids."""
    end = time.monotonic() + DEADLINE
    while children and time.monotonic() < end:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                children.remove(child)
                if status != 0:
                    end = min(end, time.monotonic() + 1)
        time.sleep(0.01)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)


def run_ranks(folder: Path, phase: str, size: int) -> dict[str, str]:
    """Runs all checks of a phase; after one that failed the others go on in fresh processes."""
    results: dict[str, str] = {}
    names = list(distributed_checks.PHASES[phase])
    while names:
        wait([fork_rank(folder, phase, names, rank, size) for rank in range(size)])
        while names and (folder / f"done-{names[0]}-{size}").exists():
            results[f"{names.pop(0)}-{size}"] = "ok"
        if names:
            name = names.pop(0)
            said = [f"{f.name}: {f.read_text()}" for f in sorted(folder.glob(f"failed-{name}-{size}-*"))]
            results[f"{name}-{size}"] = "\n".join(said) or "it ended or hung without a word"
    return results


def main() -> None:
    folder = Path(sys.argv[1])
    results: dict[str, str] = {}
    for phase in distributed_checks.PHASES:
        for size in RANKS:
            results |= run_ranks(folder, phase, size)
    (folder / "results.json").write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main()
