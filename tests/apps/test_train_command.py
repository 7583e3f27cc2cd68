"""`flashoptim train`: runs that are killed, resumed, or meet a full disk.

What a user loses if these fail: hours of training at a kill.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command import (
    COMMAND,
    DEADLINE,
    assert_refused,
    last_checkpoint,
    metrics_without_times,
    needs_command,
    run,
    small,
    steps_done,
)

pytestmark = needs_command


def test_a_run_is_not_overwritten_unasked(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*small(text, "--steps", 1, "--out", out)).returncode == 0
    before = (out / "metrics.csv").read_bytes()
    assert_refused(run(*small(text, "--steps", 1, "--out", out)), str(out))
    assert (out / "metrics.csv").read_bytes() == before


def test_full_disk_is_named_and_the_last_checkpoint_stays(text: Path, full_disk: Path) -> None:
    out = full_disk / "run"
    result = run(*small(text, "--steps", 40, "--checkpoint-every", 1, "--out", out))
    assert_refused(result, str(full_disk))
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert [path for path in checkpoints if "tmp" not in path.name], "no complete checkpoint is left"
    moved = full_disk.parent / "moved"
    shutil.copytree(out, moved)
    resumed = run(*small(text, "--steps", 40, "--resume", moved, "--out", full_disk.parent / "elsewhere"))
    assert resumed.returncode == 0, resumed.stderr


def test_checkpoint_of_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*small(text, "--steps", 1, "--out", out)).returncode == 0
    result = run(
        *small(
            text,
            "--steps",
            2,
            "--untied",
            "--model",
            "llama-1m",
            "--resume",
            out,
            "--out",
            tmp_path / "other",
        )
    )
    assert_refused(result, "dim")


def test_checkpoint_of_another_optimizer_is_refused(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*small(text, "--steps", 1, "--out", out)).returncode == 0
    assert_refused(
        run(*small(text, "--steps", 2, "--optimizer", "lion", "--resume", "--out", out)), "optimizer"
    )


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_checkpoint_is_refused(text: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    assert run(*small(text, "--steps", 1, "--out", out)).returncode == 0
    file = last_checkpoint(out) / "weights.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    else:
        content[-100] ^= 1
    file.write_bytes(content)
    assert_refused(run(*small(text, "--steps", 2, "--resume", "--out", out)), "weights.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("release", [False, True])
def test_a_run_killed_twice_ends_as_one_that_was_not(
    text: Path, tmp_path: Path, optimizer: str, release: bool
) -> None:
    own = ("--optimizer", optimizer, "--clip", 0, *(("--gradient-release",) if release else ()))
    arguments = small(text, "--steps", 60, "--checkpoint-every", 5, "--eval-every", 20, *own)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*arguments, "--out", whole).returncode == 0
    wait_for = 10
    for attempt in range(2):
        resume = () if attempt == 0 else ("--resume",)
        child = subprocess.Popen(
            [COMMAND, *map(str, (*arguments, *resume, "--out", killed))], stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + DEADLINE
        # A few steps beyond a checkpoint, so that rows of lost steps are in the file.
        while child.poll() is None and steps_done(killed) < wait_for + 3 and time.monotonic() < give_up:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert steps_done(killed) >= wait_for
        wait_for = steps_done(killed) + 10
    assert run(*arguments, "--resume", "--out", killed).returncode == 0
    assert metrics_without_times(killed) == metrics_without_times(whole)
    for file in ("weights.safetensors", "optimizer.safetensors"):
        assert (last_checkpoint(killed) / file).read_bytes() == (last_checkpoint(whole) / file).read_bytes()


def test_interrupt_writes_a_checkpoint_and_resume_goes_on(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = small(text, "--steps", 100_000, "--out", out)
    child = subprocess.Popen(
        [COMMAND, *map(str, arguments)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    give_up = time.monotonic() + DEADLINE
    while child.poll() is None and steps_done(out) < 5 and time.monotonic() < give_up:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=DEADLINE) == 1
    assert last_checkpoint(out).name.endswith(str(steps_done(out)))


def test_resume_takes_every_folder_name(text: Path, tmp_path: Path) -> None:
    assert run(*small(text, "--steps", 1, "--out", "out"), cwd=tmp_path).returncode == 0
    result = run(*small(text, "--steps", 2, "--resume", "out", "--out", "other"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in metrics_without_times(tmp_path / "other")] == ["2"]
    for nothing in (("--resume",), ("--resume", "")):
        assert_refused(run(*small(text, "--steps", 2, *nothing), cwd=tmp_path), "--out")
    assert "--resume [PATH] " in run("train", "--help").stdout


def test_data_may_have_more_files_than_may_be_open_at_first(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(60):
        (folder / f"{n}.txt").write_text(f"the {n} words of file {n}\n" * 20)
    limited = ["sh", "-c", 'ulimit -S -n 32; exec "$@"', "sh", COMMAND]
    arguments = [str(part) for part in (*limited, *small(folder, "--steps", 1))]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert result.returncode == 0, result.stderr
