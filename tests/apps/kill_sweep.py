"""Kills the command at every call that changes the file system: once a checkpoint was completed one is always
found, and the run that goes on ends with the bits and metrics, times apart, of the run that was never killed.

`.venv/bin/python tests/apps/kill_sweep.py [--every N] [SCENARIO...]` runs the whole sweep, in some minutes
for each scenario; the tests take a few of its points.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from command import COMMAND, TINY, metrics_without_times, run

KILL = COMMAND.parents[2] / "tests" / "support" / "kill_command"
KILLED = 137
OWN = re.compile(r"\.flashoptim-run(\.lock)?$")


def killed_at(point: int, who: str, *arguments: object) -> bool:
    """Whether the command was killed at that point, and not done before."""
    done = subprocess.run(
        [KILL, str(point), who, COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (KILLED, 0), (point, done.returncode, done.stderr)
    return done.returncode == KILLED


def content(folder: Path) -> dict[str, object]:
    """Every file below a run's folder, without times and what the folder is kept by."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = None
        elif path.name == "metrics.csv":
            found[name] = metrics_without_times(path.parent)
        elif path.name in ("weights.safetensors", "optimizer.safetensors"):
            found[name] = path.read_bytes()
        elif not OWN.search(name):
            found[name] = ""
    return found


class Sweep:
    """One folder in which runs are made and killed."""

    def __init__(self, place: Path, every: int) -> None:
        self.place, self.every = place, every
        self.text = place / "text.txt"
        self.text.write_text("".join(f"{n} times {n} is {n * n}\n" for n in range(2000)))
        self.kills = 0

    def train(self, out: Path, steps: int, *more: object) -> list[object]:
        shape = (*TINY, "--schedule", "constant", "--warmup", 0, "--checkpoint-every", 1, "--eval-every", 1)
        return ["train", "--data", self.text, *shape, "--steps", steps, "--out", out, *more]

    def done(self, arguments: list[object]) -> None:
        result = run(*arguments)
        assert result.returncode == 0, result.stderr

    def points(self, attempt: Callable[[int], bool]) -> None:
        point = 0
        while attempt(point):
            self.kills += 1
            point += self.every

    def has_checkpoint(self, out: Path) -> bool:
        return any((out).glob("checkpoints/**/step-*/checkpoint.json"))

    def keep_checkpoints(self) -> None:
        """A new run with --keep-checkpoints, and the run that goes on."""
        whole, out = self.place / "whole", self.place / "run"
        self.done(self.train(whole, 4, "--keep-checkpoints", 2))
        expected = content(whole)

        def attempt(point: int) -> bool:
            shutil.rmtree(out, ignore_errors=True)
            arguments = self.train(out, 4, "--keep-checkpoints", 2)
            killed = killed_at(point, "all", *arguments)
            more = "--resume" if self.has_checkpoint(out) else "--overwrite"
            self.done([*arguments, more])
            assert content(out) == expected, point
            return killed

        self.points(attempt)

    def overwrite(self) -> None:
        """A run that replaces another one with --overwrite."""
        old, out = self.place / "old", self.place / "run"
        self.done(self.train(old, 3, "--seed", 1))
        expected = {}
        for seed in (1, 2):
            whole = self.place / f"whole-{seed}"
            self.done(self.train(whole, 3, "--seed", seed))
            self.done(self.train(whole, 5, "--seed", seed, "--resume"))
            expected[seed] = content(whole)

        def attempt(point: int) -> bool:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(old, out)
            killed = killed_at(point, "all", *self.train(out, 3, "--seed", 2, "--overwrite"))
            seed = 1
            result = run(*self.train(out, 5, "--seed", seed, "--resume"))
            if result.returncode == 2 and "seed is 2 there" in result.stderr:
                seed = 2
                result = run(*self.train(out, 5, "--seed", seed, "--resume"))
            assert result.returncode == 0, (point, result.stderr)
            assert content(out) == expected[seed], (point, seed)
            return killed

        self.points(attempt)

    def compare(self) -> None:
        """A comparison, all of whose processes are killed, or the one that made the call."""
        out = self.place / "comparison"
        shape = (*TINY, "--steps", 1, "--formats", "native,paper", "--no-plot")
        arguments = ["compare", "--data", self.text, *shape, "--out", out]
        self.done(arguments)
        runs = [f"adamw-{name}-seed0" for name in ("native", "paper")]
        expected = {name: content(out / name) for name in runs}

        for who in ("all", "one"):

            def attempt(point: int, who: str = who) -> bool:
                shutil.rmtree(out, ignore_errors=True)
                done = subprocess.run(
                    [KILL, str(point), who, COMMAND, *map(str, arguments)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                complete = [name for name in runs if (out / name / "summary.json").exists()]
                for name in complete:
                    assert content(out / name).items() >= expected[name].items(), (point, name)
                if complete:
                    refused = run(*arguments)
                    assert refused.returncode == 2, (point, refused.stderr)
                    assert all(name in refused.stderr for name in complete), (point, refused.stderr)
                self.done([*arguments, "--overwrite"])
                assert {name: content(out / name) for name in runs} == expected, point
                return done.returncode == KILLED

            self.points(attempt)

    def two_runs(self) -> None:
        """A run that is killed in the folder of one that lives, which must not notice."""
        whole, out = self.place / "whole", self.place / "run"
        steps = 4000
        self.done(self.train(whole, steps, "--checkpoint-every", 400))
        arguments = self.train(out, steps, "--checkpoint-every", 400)
        first = subprocess.Popen([COMMAND, *map(str, arguments)], stderr=subprocess.DEVNULL)
        while not self.has_checkpoint(out):
            assert first.poll() is None
        point = 0
        for more in ("--overwrite", "--resume"):
            while first.poll() is None:
                second = [KILL, str(point), "all", COMMAND, *map(str, arguments), more]
                code = subprocess.run(second, capture_output=True, check=False).returncode
                self.kills += 1
                if code != KILLED:
                    assert code == 2 or first.poll() is not None, code
                    break
                point += 1
        assert first.wait() == 0
        assert content(out) == content(whole)


SCENARIOS = {
    "keep-checkpoints": Sweep.keep_checkpoints,
    "overwrite": Sweep.overwrite,
    "compare": Sweep.compare,
    "two-runs": Sweep.two_runs,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every so many-th point")
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], default=[])
    arguments = parser.parse_args()
    for name in arguments.scenarios or SCENARIOS:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=base) as place:
            sweep = Sweep(Path(place), arguments.every)
            SCENARIOS[name](sweep)
            print(f"{name}: {sweep.kills} kills, nothing lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
