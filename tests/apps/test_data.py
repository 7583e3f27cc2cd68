"""Data as the flashoptim command gets it: what is no data, data that is changed while a run
reads it, resuming with other data.

What a user loses if these fail: a run that hangs or dies without a word, or a model that was trained on
something else. The kinds of files are walked in tests/trainer/data_*_test.cpp and in bad_data.py; here is
what needs more than a refused process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import (
    COMMAND,
    DEADLINE,
    TINY,
    assert_refused,
    last_checkpoint,
    metrics_without_times,
    needs_command,
    run,
    small,
    steps_done,
)

pytestmark = needs_command


def folder_with_fifo(folder: Path) -> Path:
    (folder / "set").mkdir()
    (folder / "set" / "good.txt").write_text("text " * 1000)
    os.mkfifo(folder / "set" / "pipe")
    return folder / "set"


def pointer(folder: Path) -> Path:
    lines = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
    (folder / "corpus.txt").write_text(lines)
    return folder / "corpus.txt"


@pytest.mark.parametrize("option", ["--data", "--validation-data"])
@pytest.mark.parametrize(
    ("make", "named", "remedy"),
    [
        (folder_with_fifo, "set/pipe", "keep pipes"),
        (pointer, "corpus.txt", "git lfs pull"),
    ],
)
def test_what_is_no_data_is_named(
    text: Path, tmp_path: Path, option: str, make: Callable[[Path], Path], named: str, remedy: str
) -> None:
    out = tmp_path / "out"
    bad = make(tmp_path)
    data = ("--data", bad) if option == "--data" else ("--data", text, option, bad)
    assert_refused(run("train", *data, *TINY, "--steps", 1, "--out", out), named, remedy)
    assert not out.exists()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not there")
def test_a_subfolder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "set" / "below"
    closed.mkdir(parents=True)
    (tmp_path / "set" / "good.txt").write_text("text " * 1000)
    closed.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(folder.stat().st_mode | 0o055)
    drop = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if drop and subprocess.run([*drop, COMMAND, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("the command cannot be started as another user here")
    arguments = ["train", "--data", str(tmp_path / "set"), *map(str, TINY), "--steps", "1"]
    result = subprocess.run(
        [*drop, COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    closed.chmod(0o700)
    assert_refused(result, str(closed), "permissions")


def test_text_from_a_pipe_is_refused_and_a_redirected_file_is_taken(text: Path, tmp_path: Path) -> None:
    command = [str(COMMAND), *map(str, small(Path("/dev/stdin"), "--steps", 1))]
    piped = subprocess.run(
        command, input=text.read_text(), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert_refused(piped, "/dev/stdin", "a pipe", "write it to a file")
    with text.open() as file:
        taken = subprocess.run(
            command, stdin=file, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
    assert taken.returncode == 0, taken.stderr


def test_data_cut_during_training_ends_the_run_with_its_last_step(text: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data.txt", tmp_path / "run"
    content = text.read_bytes()
    data.write_bytes(content)
    steps = 100_000
    with subprocess.Popen(
        [COMMAND, *map(str, small(data, "--steps", steps, "--out", out))], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + DEADLINE
        while steps_done(out) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.truncate(data, 100)
        errors = [
            line for line in process.communicate(timeout=DEADLINE)[1].splitlines() if "flashoptim: " in line
        ]
    assert process.returncode in (1, 2)
    assert len(errors) == 1
    assert f"{data} was " in errors[0]
    assert "; restore it and resume" in errors[0]
    done = steps_done(out)
    assert last_checkpoint(out).name == f"step-{done:08}"

    assert_refused(run(*small(data, "--steps", done + 1, "--resume", "--out", out)), str(data))
    data.write_bytes(content)
    resumed = run(*small(data, "--steps", done + 2, "--resume", "--out", out))
    assert resumed.returncode == 0, resumed.stderr
    assert [int(row["step"]) for row in metrics_without_times(out)] == list(range(1, done + 3))


def test_resuming_with_other_data_is_refused_unless_allowed(text: Path, tmp_path: Path) -> None:
    data, moved, out = tmp_path / "data.txt", tmp_path / "moved" / "text.txt", tmp_path / "run"
    content = text.read_bytes()
    data.write_bytes(content)
    assert run(*small(data, "--steps", 1, "--out", out)).returncode == 0
    moved.parent.mkdir()
    data.rename(moved)
    assert run(*small(moved, "--steps", 2, "--resume", "--out", out)).returncode == 0
    moved.write_bytes(content[:500] + b"X" + content[501:])
    left = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert_refused(
        run(*small(moved, "--steps", 3, "--resume", "--out", out)),
        str(moved),
        "changed",
        "--allow-other-data",
    )
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == left
    allowed = run(*small(moved, "--steps", 3, "--resume", "--allow-other-data", "--out", out))
    assert allowed.returncode == 0, allowed.stderr
    assert str(moved) in allowed.stderr
