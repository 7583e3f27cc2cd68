"""The flashoptim command as a person types it: bad arguments, help, and output that cannot be written.

What a user loses if these fail: an evening with an error that does not say what to do.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import TINY, assert_refused, needs_command, run, small, small_comparison

pytestmark = needs_command


@pytest.mark.parametrize("command", ["train", "compare"])
def test_device_that_is_not_there_is_refused(text: Path, tmp_path: Path, command: str) -> None:
    for device, reason in (("cuda:99", "is not there"), ("tpu", "choose cpu, cuda or cuda:N")):
        arguments = ["--data", text, *TINY, "--steps", 1, "--out", tmp_path / "out", "--device", device]
        assert_refused(run(command, *arguments), f"device '{device}'", reason)


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert_refused(run(*small(tmp_path / "no-such-file.txt", "--steps", 1)), "no-such-file.txt")


def test_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert_refused(run(*small(tmp_path / "empty.txt", "--steps", 1)), "empty.txt")


def test_text_that_is_not_utf8_is_named_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"plain text, then " + "café".encode("latin-1") + b" and more" * 500)
    assert_refused(run(*small(file, "--steps", 1)), "latin1.txt", "20")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model", "llama-9000b"), "llama-9000b"),
        (("--optimizer", "adagrad"), "adagrad"),
        (("--format", "int3"), "int3"),
        (("--schedule", "spiral"), "spiral"),
        (("--gradient-release", "--clip", 0, "--accumulation", 2), "accumulation"),
        (("--gradient-release", "--clip", 1), "clip"),
        (("--master-bits", 8), "8"),
        (("--format", "paper", "--master-bits", 16), "16"),
        (("--batch", 0), "batch"),
        (("--lr", -1), "learning rate"),
        (("--lr", "nan"), "learning rate"),
        (("--sequence", 10_000_000), "token"),
        (("--checkpoint-every", 5), "out"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_bad_arguments_are_named(text: Path, arguments: tuple[object, ...], named: str) -> None:
    assert_refused(run(*small(text, "--steps", 1, *arguments)), named)


def test_out_folder_that_cannot_be_made_is_named(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(run(*small(text, "--steps", 1, "--out", tmp_path / "file" / "run")), "file")


def test_resume_without_a_checkpoint_says_so(text: Path, tmp_path: Path) -> None:
    assert_refused(run(*small(text, "--steps", 2, "--resume", "--out", tmp_path / "nothing")), "nothing")


@pytest.mark.parametrize("reader", ["full", "gone"])
def test_progress_that_nobody_can_read_does_not_end_a_run(text: Path, tmp_path: Path, reader: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with Path("/dev/full").open("w") as full, os.fdopen(write_end, "w") as gone:
        stderr = full if reader == "full" else gone
        result = run(*small(text, "--steps", 3, "--out", tmp_path / "run"), stderr=stderr)
    assert result.returncode == 0
    assert "done after step 3" in result.stdout
    assert (tmp_path / "run" / "summary.json").exists()


def test_results_that_cannot_be_written_are_noticed(text: Path, tmp_path: Path) -> None:
    for arguments in (
        small(text, "--steps", 1),
        small_comparison(text, tmp_path / "comparison"),
        ["train", "--list-models"],
        ["train", "--help"],
    ):
        with Path("/dev/full").open("w") as full:
            assert_refused(run(*arguments, stdout=full), "standard output", "No space left")


def test_help_names_every_subcommand_and_exit_code() -> None:
    text = run("--help").stdout
    for word in ("train", "compare", "2 bad usage"):
        assert word in text
    assert "--master-bits" in run("train", "--help").stdout


def test_models_are_listed_without_data() -> None:
    listed = run("train", "--list-models")
    assert listed.returncode == 0
    assert "llama-8b" in listed.stdout
