"""The test command behind `make test` and `make sanitize`: runs each step, times it, sums up.

What is tested never stands here: the presets, tests/ and scripts/lint.py say that. The last line is always `N
passed, N failed`, with `, N skipped` where something was skipped; the exit status is 1 where something
failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import lint

ROOT = lint.ROOT
RESULTS = ROOT / "build" / "results"
SLOWEST = 10
MOST_WORKERS = 8


@dataclass(frozen=True)
class Step:
    """Something that passed, failed or was skipped: a build, a linter, or one test case."""

    name: str
    seconds: float
    outcome: str


@dataclass
class Check:
    """The steps done so far."""

    steps: list[Step] = field(default_factory=list)

    def record(self, name: str, action: Callable[[], bool]) -> bool:
        """Runs one step that counts as one."""
        print(f"== {name}", flush=True)
        start = time.monotonic()
        done = action()
        self.steps.append(Step(name, time.monotonic() - start, "passed" if done else "failed"))
        return done

    def build(self, preset: str) -> bool:
        """Configures and builds a preset in build/PRESET."""
        return self.record(
            f"build {preset}",
            lambda: (
                run("cmake", "--preset", preset, "--log-level=WARNING")
                and run("cmake", "--build", "--preset", preset)
            ),
        )

    def ctest(self, preset: str, *options: str) -> None:
        """Runs the C++ tests of a preset; each case counts."""
        reports = ROOT / "build" / preset / "test-cases"
        shutil.rmtree(reports, ignore_errors=True)
        self.cases(f"ctest {preset}", ["ctest", "--preset", preset, *options, "--output-junit"], reports)

    def pytest(self) -> None:
        """Runs the Python tests, the consumers of the installed package among them; each case counts."""
        folders = [
            str(folder) for folder in (ROOT / "tests", ROOT / "python") if any(folder.rglob("test_*.py"))
        ]
        if folders:
            # The package as the preset `release` builds it; whatever PYTHONPATH was must not stand before it.
            os.environ["PYTHONPATH"] = str(ROOT / "build" / "release" / "python")
            # Test files side by side, one for each processor.
            side_by_side = ["-n", str(min(os.cpu_count() or 1, MOST_WORKERS)), "--dist", "loadfile"]
            self.cases(
                "pytest", [sys.executable, "-m", "pytest", "-q", *side_by_side, *folders, "--junitxml"]
            )
            del os.environ["PYTHONPATH"]

    def bad_inputs(self, preset: str) -> None:
        """The list of bad inputs on the command of a preset with sanitizers, on LibTorch as it is."""
        settings = {
            "FLASHOPTIM": str(ROOT / "build" / preset / "apps" / "flashoptim" / "flashoptim"),
            # LibTorch keeps what it has until the end. The test's fork server is loaded before the
            # sanitizer's runtime.
            "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:hard_rss_limit_mb=6000",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        os.environ.update(settings)
        test = str(ROOT / "tests" / "apps" / "test_bad_inputs.py")
        self.cases(f"bad inputs {preset}", [sys.executable, "-m", "pytest", "-q", test, "--junitxml"])
        for name in settings:
            del os.environ[name]

    def cases(self, name: str, command: list[str], reports: Path | None = None) -> None:
        """Runs a test runner whose last argument is the JUnit file that it writes, and takes the cases from
        that file. A test of several cases has written them to a file of its own in `reports`."""
        print(f"== {name}", flush=True)
        report = RESULTS / f"{name.replace(' ', '-')}.xml"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        start = time.monotonic()
        succeeded = run(*command, str(report))
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        found = [step for case in cases for step in steps_of(name, case, reports)]
        if not found or (not succeeded and not any(step.outcome == "failed" for step in found)):
            found.append(Step(name, time.monotonic() - start, "failed"))
        self.steps += found

    def finish(self) -> int:
        """Prints the slowest steps, what failed and the summary line; returns the exit status."""
        print(f"\nThe {SLOWEST} slowest steps:")
        for step in sorted(self.steps, key=lambda step: -step.seconds)[:SLOWEST]:
            print(f"{step.seconds:8.1f} s  {step.name}")
        for step in self.steps:
            if step.outcome == "failed":
                print(f"failed: {step.name}")
        count = Counter(step.outcome for step in self.steps)
        skipped = f", {count['skipped']} skipped" if count["skipped"] else ""
        print(f"{count['passed']} passed, {count['failed']} failed{skipped}", flush=True)
        return 1 if count["failed"] or not count["passed"] else 0


def run(*command: str) -> bool:
    """Runs a program in the repository root with the terminal as its own; true where it exits with 0."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def title(case: ElementTree.Element) -> str:
    """The name by which a reader finds a test case again: ctest's alone, pytest's with its file."""
    name, home = case.get("name", ""), case.get("classname", "")
    return name if home in ("", name) else f"{home}.{name}"


def steps_of(name: str, case: ElementTree.Element, reports: Path | None) -> list[Step]:
    """The step of a test case, or one step for each case that a test executable ran in one process."""
    whole = Step(f"{name}: {title(case)}", float(case.get("time", 0)), outcome(case))
    report = reports / f"{title(case)}.xml" if reports else None
    if report is None or not report.exists():
        # An executable that died has written no report. What it printed last names the case.
        started = re.findall(r"^\[ RUN +\] (\S+)", case.findtext("system-out", ""), re.MULTILINE)
        died_in = whole.outcome == "failed" and started
        return [replace(whole, name=f"{whole.name} in {started[-1]}")] if died_in else [whole]
    executable = title(case).rpartition(".")[0]
    steps = [
        Step(f"{name}: {executable}.{title(single)}", float(single.get("time", 0)), outcome(single))
        for single in ElementTree.parse(report).iter("testcase")
    ]
    # It may fail after its last case, too.
    failed_elsewhere = whole.outcome == "failed" and all(step.outcome != "failed" for step in steps)
    return [*steps, whole] if failed_elsewhere or not steps else steps


def outcome(case: ElementTree.Element) -> str:
    """What a JUnit test case ended with."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
        return "skipped"
    return "passed"


def test(check: Check) -> None:
    """Everything: with and without Torch, Python, the installed package, the linters."""
    if check.build("release"):
        check.ctest("release")
    # All but what knows of CUDA is the same objects, whose tests have run.
    if check.build("no-torch"):
        check.ctest("no-torch", "-L", "capi")
    check.pytest()
    with ThreadPoolExecutor() as pool:  # all but one of them use one processor
        linters = {name: partial(linter, False) for name, linter in lint.LINTERS.items()}
        list(pool.map(check.record, linters.keys(), linters.values()))


def sanitize(check: Check) -> None:
    """The core under each sanitizer, and the command with every bad input under two of them."""
    for preset in ("asan-ubsan", "tsan"):
        if check.build(preset):
            check.ctest(preset)
    if check.build("asan-ubsan-command"):
        check.bad_inputs("asan-ubsan-command")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("test", "sanitize"))
    what = parser.parse_args().what
    os.environ["PATH"] = f"{lint.BIN}{os.pathsep}{os.environ['PATH']}"
    check = Check()
    (test if what == "test" else sanitize)(check)
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
