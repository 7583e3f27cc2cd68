"""Breaks the command at every call that changes the file system: it is killed there, the disk is full from
there on or cannot be written any more, or another command runs to its end in the same folder. Once a
checkpoint was completed one is always found, and the run that goes on ends with the bits and metrics, times
apart, of the run that was never broken.

`.venv/bin/python tests/apps/kill_sweep.py [--every N] [--how HOW] [SCENARIO...]` runs the whole sweep, in
some minutes for each scenario; the tests take a few of its points.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from command import COMMAND, TINY, metrics_without_times, run

KILL = COMMAND.parents[2] / "tests" / "support" / "kill_command"
NOT_REACHED, KILLED = 124, 137
OWN = re.compile(r"\.flashoptim-run(\.lock)?$")


def broken_at(point: int, how: str, arguments: list[object], meeting: str = "") -> tuple[bool, str]:
    """Whether the command was broken at that point, and not done before; and what it said."""
    done = subprocess.run(
        [KILL, str(point), how, COMMAND, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "KILL_COMMAND_MEETING": meeting},
    )
    if how in ("all", "one"):
        assert done.returncode in (KILLED, 0) or how == "one", (point, done.returncode, done.stderr)
        return done.returncode == KILLED, done.stderr
    assert done.returncode in (NOT_REACHED, 0, 1, 2), (how, point, done.returncode, done.stderr)
    if done.returncode in (1, 2):
        lines = [line for line in done.stderr.splitlines() if line.startswith("flashoptim: ")]
        assert len([line for line in lines if ": note: " not in line]) == 1, (how, point, done.stderr)
    return done.returncode != NOT_REACHED, done.stderr


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
    """One folder in which runs are made and broken. What they are compared with stays there, for the next."""

    def __init__(self, place: Path, points: Iterable[int], how: str = "all") -> None:
        self.place, self.wanted, self.how = place, points, how
        self.text = place / "text.txt"
        self.text.write_text("".join(f"{n} times {n} is {n * n}\n" for n in range(2000)))
        self.kills = 0

    def train(self, steps: int, *more: object) -> list[object]:
        shape = (*TINY, "--schedule", "constant", "--warmup", 0, "--checkpoint-every", 1, "--eval-every", 1)
        return ["train", "--data", self.text, *shape, "--steps", steps, *more]

    def done(self, arguments: list[object]) -> None:
        result = run(*arguments)
        assert result.returncode == 0, result.stderr

    def unbroken(self, name: str, *commands: list[object], start: Path | None = None) -> Path:
        """The folder of that name, in which these commands were never broken."""
        folder = self.place / name
        if not folder.exists():
            if start is not None:
                shutil.copytree(start, folder)
            for arguments in commands:
                self.done([*arguments, "--out", folder])
        return folder

    def points(self, attempt: Callable[[int], bool]) -> None:
        """Tries the wanted points until one is behind the last call."""
        for point in self.wanted:
            if not attempt(point):
                return
            self.kills += 1

    def has_checkpoint(self, out: Path) -> bool:
        return any((out).glob("checkpoints/**/step-*/checkpoint.json"))

    def keep_checkpoints(self) -> None:
        """A new run with --keep-checkpoints, and the run that goes on."""
        out = self.place / "run"
        train = self.train(4, "--keep-checkpoints", 2)
        expected = content(self.unbroken("kept", train))

        def attempt(point: int) -> bool:
            shutil.rmtree(out, ignore_errors=True)
            killed, _ = broken_at(point, self.how, [*train, "--out", out])
            more = "--resume" if self.has_checkpoint(out) else "--overwrite"
            self.done([*train, "--out", out, more])
            assert content(out) == expected, point
            return killed

        self.points(attempt)

    def overwrite(self) -> None:
        """A run that replaces another one with --overwrite."""
        out = self.place / "run"
        expected, done = {}, {}
        for seed in (1, 2):
            done[seed] = self.unbroken(f"seed-{seed}", self.train(3, "--seed", seed))
            longer = self.train(5, "--seed", seed, "--resume")
            expected[seed] = content(self.unbroken(f"longer-{seed}", longer, start=done[seed]))

        def attempt(point: int) -> bool:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(done[1], out)
            replacing = self.train(3, "--seed", 2, "--overwrite", "--out", out)
            killed, _ = broken_at(point, self.how, replacing)
            seed = 1
            result = run(*self.train(5, "--seed", seed, "--resume", "--out", out))
            if result.returncode == 2 and "seed is 2 there" in result.stderr:
                seed = 2
                result = run(*self.train(5, "--seed", seed, "--resume", "--out", out))
            assert result.returncode == 0, (point, result.stderr)
            assert content(out) == expected[seed], (point, seed)
            return killed

        self.points(attempt)

    def compare(self) -> None:
        """A comparison, all of whose processes are killed, or the one that made the call."""
        out = self.place / "comparison"
        shape = (*TINY, "--steps", 1, "--formats", "native,paper", "--no-plot")
        compare = ["compare", "--data", self.text, *shape]
        compared = self.unbroken("compared", compare)
        runs = [f"adamw-{name}-seed0" for name in ("native", "paper")]
        expected = {name: content(compared / name) for name in runs}
        arguments = [*compare, "--out", out]

        for how in ("all", "one") if self.how == "all" else (self.how,):

            def attempt(point: int, how: str = how) -> bool:
                shutil.rmtree(out, ignore_errors=True)
                killed, _ = broken_at(point, how, arguments)
                complete = [name for name in runs if (out / name / "summary.json").exists()]
                for name in complete:
                    assert content(out / name).items() >= expected[name].items(), (point, name)
                if complete:
                    refused = run(*arguments)
                    assert refused.returncode == 2, (point, refused.stderr)
                    assert all(name in refused.stderr for name in complete), (point, refused.stderr)
                self.done([*arguments, "--overwrite"])
                assert {name: content(out / name) for name in runs} == expected, point
                return killed

            self.points(attempt)

    def two_runs(self) -> None:
        """Another command in the same folder at every call of the first: one of the two is refused where they
        meet, and the other does not notice."""
        out, answer = self.place / "run", self.place / "answer"
        old = self.unbroken("two-steps", self.train(2))
        whole = content(self.unbroken("three-steps", self.train(3)))
        shape = (*TINY, "--steps", 1, "--formats", "native", "--no-plot")
        compare = ["compare", "--data", self.text, *shape]
        compared = content(self.unbroken("one-compared", compare))
        train, comparison = self.train(3, "--out", out), [*compare, "--out", out]
        pairs: list[tuple[bool, list[object], list[object], list[dict[str, object]]]] = [
            (False, train, train, [whole]),
            (True, [*train, "--resume"], [*train, "--resume"], [whole]),
            (True, [*train, "--overwrite"], [*train, "--resume"], [whole]),
            (True, [*train, "--resume"], [*train, "--overwrite"], [whole]),
            (False, train, comparison, [whole, compared]),
            (False, comparison, train, [whole, compared]),
            (False, comparison, [*comparison, "--overwrite"], [compared]),
        ]
        for starts_with_old, first, second, ends in pairs:

            def attempt(
                point: int,
                starts_with_old: bool = starts_with_old,
                first: list[object] = first,
                second: list[object] = second,
                ends: list[dict[str, object]] = ends,
            ) -> bool:
                shutil.rmtree(out, ignore_errors=True)
                if starts_with_old:
                    shutil.copytree(old, out)
                words = shlex.join(map(str, [COMMAND, *second]))
                met, said = broken_at(point, "meet", first, f"{words} >{answer} 2>&1; echo $? >>{answer}")
                if not met:
                    return False
                code = int(answer.read_text().splitlines()[-1])
                told = answer.read_text() + said
                assert code in (0, 2), (point, told)
                assert code == 0 or "is in use by another" in told, (point, told)
                assert content(out) in ends, (point, told)
                return True

            self.points(attempt)


SCENARIOS = {
    "keep-checkpoints": Sweep.keep_checkpoints,
    "overwrite": Sweep.overwrite,
    "compare": Sweep.compare,
    "two-runs": Sweep.two_runs,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every so many-th point")
    parser.add_argument(
        "--how", choices=["all", "full", "readonly", "meet"], default="all", help="what breaks it"
    )
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; without any: all")
    arguments = parser.parse_args()
    for name in arguments.scenarios or SCENARIOS:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=base) as place:
            sweep = Sweep(Path(place), range(0, sys.maxsize, arguments.every), arguments.how)
            SCENARIOS[name](sweep)
            print(f"{name}: {sweep.kills} points, nothing lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
