"""The processes of the command: what ends them, what they end, and what is refused before any of them trains.

What a user loses if these fail: a machine that trains on for nobody, or the runs before
one that could have been refused.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import (
    COMMAND,
    DEADLINE,
    ROOT,
    TINY,
    assert_refused,
    last_checkpoint,
    needs_command,
    run,
    small,
    small_comparison,
    steps_done,
)

pytestmark = needs_command

LONG = ("--steps", 1_000_000)
NAME = "adamw-native-seed0"


def wait_until(is_true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE
    while not is_true():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(process: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Started:
    """A command in a session of its own: no terminal ends it."""

    def __init__(self, *arguments: object, wrapper: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrapper, str(COMMAND), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.child = 0

    def wait_for_child(self) -> None:
        wait_until(lambda: bool(children(self.process.pid)) or self.process.poll() is not None)
        (self.child,) = children(self.process.pid)

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, errors


@pytest.fixture
def comparison(text: Path, tmp_path: Path) -> Iterator[Started]:
    own = ("--formats", "native,paper", "--no-plot", "--out", tmp_path / "out")
    started = Started("compare", "--data", text, *TINY, *LONG, *own)
    started.wait_for_child()
    yield started
    for process in (started.process.pid, started.child):
        if is_alive(process):
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_comparison_that_is_asked_to_stop_takes_its_run_with_it(
    comparison: Started, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    wait_until(lambda: steps_done(out / NAME) >= 1)
    comparison.process.send_signal(number)
    code, errors = comparison.end()
    assert not is_alive(comparison.child)
    assert code == 1
    told = [line for line in errors.splitlines() if line.startswith("flashoptim: ")]
    assert len(told) == 1, errors
    assert str(out) in told[0]
    assert "--overwrite" in told[0]
    assert not (out / "summary.json").exists()
    if number != signal.SIGQUIT:
        assert last_checkpoint(out / NAME).name.endswith(str(steps_done(out / NAME)))
    assert not [path for path in out.iterdir() if "paper" in path.name], "another run was begun"


@pytest.mark.parametrize("state", ["starting", "training", "parent-stopped", "both-stopped"])
def test_a_comparison_that_is_killed_leaves_no_run_behind(
    comparison: Started, tmp_path: Path, state: str
) -> None:
    if state != "starting":
        wait_until(lambda: steps_done(tmp_path / "out" / NAME) >= 1)
    if state.endswith("stopped"):
        comparison.process.send_signal(signal.SIGSTOP)
    if state == "both-stopped":
        os.kill(comparison.child, signal.SIGSTOP)
    comparison.process.send_signal(signal.SIGKILL)
    comparison.process.wait()
    wait_until(lambda: not is_alive(comparison.child))


def test_a_stopped_run_is_woken_to_stop(comparison: Started, tmp_path: Path) -> None:
    wait_until(lambda: steps_done(tmp_path / "out" / NAME) >= 1)
    os.kill(comparison.child, signal.SIGSTOP)
    comparison.process.send_signal(signal.SIGTERM)
    assert comparison.end()[0] == 1
    assert not is_alive(comparison.child)


def test_a_run_that_is_killed_ends_the_comparison_with_one_line(comparison: Started, tmp_path: Path) -> None:
    wait_until(lambda: steps_done(tmp_path / "out" / NAME) >= 1)
    os.kill(comparison.child, signal.SIGKILL)
    code, errors = comparison.end()
    assert code == 1
    assert NAME in errors.splitlines()[-1]
    assert "memory" in errors.splitlines()[-1]


@pytest.mark.parametrize("numbers", [(signal.SIGHUP,), (signal.SIGTERM, signal.SIGTERM)])
def test_a_request_to_stop_writes_a_checkpoint_also_where_it_comes_twice(
    text: Path, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    out = tmp_path / "run"
    started = Started(*small(text, *LONG, "--out", out))
    wait_until(lambda: steps_done(out) >= 1)
    for number in numbers:  # as timeout(1) does: to the process, and to its group
        started.process.send_signal(number)
        time.sleep(0.001)
    assert started.end()[0] == 1
    assert last_checkpoint(out).name.endswith(str(steps_done(out)))


def test_the_soft_limit_on_processor_time_is_a_request_to_stop(text: Path, tmp_path: Path) -> None:
    """The system repeats its signal every second: also while the checkpoint is written."""
    out = tmp_path / "run"
    limited = ("sh", "-c", 'ulimit -S -t 3; exec "$@"', "sh")
    started = Started(*small(text, *LONG, "--out", out), wrapper=limited)
    code, errors = started.end()
    assert code == 1, errors
    assert last_checkpoint(out).name.endswith(str(steps_done(out)))


def test_nohup_is_respected(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = Started(*small(text, *LONG, "--out", out), wrapper=("nohup",))
    wait_until(lambda: steps_done(out) >= 1)
    started.process.send_signal(signal.SIGHUP)
    seen = steps_done(out)
    wait_until(lambda: steps_done(out) > seen + 5)
    started.process.send_signal(signal.SIGTERM)
    assert started.end()[0] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--formats", "native,native"), "native"),
        (("--formats", "native,fp32,native"), "native"),
        (("--optimizers", "adamw,adamw"), "adamw"),
        (("--seeds", "1,2,1"), "--seeds"),
        (("--optimizers", "adamw,sgd", "--nesterov", "--momentum", 0), "momentum"),
        (("--optimizers", "adamw,sgdw", "--nesterov", "--momentum", 0), "momentum"),
        (("--beta2", 1), "beta2"),
        (("--optimizers", "sgd,adam", "--beta2", 1), "beta2"),
        (("--optimizers", "sgd,lion", "--beta1", 1.5), "beta1"),
        (("--optimizers", "sgd,adamw", "--eps", -1), "eps"),
        (("--optimizers", "adamw,sgd", "--momentum", -1), "momentum"),
        (("--formats", "native,paper", "--master-bits", 16), "16"),
        (("--optimizers", "adamw,adagrad"), "adagrad"),
        (("--formats", "native,int3"), "int3"),
        (("--with-gradient-release", "--clip", 1), "clip"),
        (("--with-gradient-release", "--accumulation", 2), "accumulation"),
    ],
)
def test_every_run_is_checked_before_the_first(
    text: Path, tmp_path: Path, arguments: tuple[object, ...], named: str
) -> None:
    out = tmp_path / "out"
    refused = run("compare", "--data", text, *TINY, "--steps", 1, "--no-plot", "--out", out, *arguments)
    assert_refused(refused, named)
    assert refused.stderr.count("\n") == 1
    assert not out.exists()


def test_a_comparison_without_matplotlib_says_so_in_one_line(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'Traceback (most recent call last):' >&2\nexit 1\n")
    broken.chmod(0o755)
    for python in ("no-such-python", str(broken)):
        monkeypatch.setenv("FLASHOPTIM_PYTHON", python)
        arguments = [a for a in small_comparison(text, tmp_path / Path(python).name[:3]) if a != "--no-plot"]
        result = run(*arguments)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        notes = [line for line in result.stderr.splitlines() if line.startswith("flashoptim: ")]
        assert len(notes) == 1
        assert python in notes[0]
        assert "FLASHOPTIM_PYTHON" in notes[0]


def test_the_picture_needs_matplotlib_and_says_so_by_its_exit_code(tmp_path: Path) -> None:
    script = ROOT / "apps" / "flashoptim" / "plot_comparison.py"
    bare = [sys.executable, "-I", "-S", str(script), str(tmp_path), str(tmp_path / "x.png")]
    result = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_what_only_another_optimizer_would_refuse_is_compared(text: Path, tmp_path: Path) -> None:
    own = ("--optimizers", "lion", "--beta1", 1)
    result = run(*small_comparison(text, tmp_path / "out", *own))
    assert result.returncode == 0, result.stderr
