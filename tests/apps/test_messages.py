"""What the command says, and where: unknown options, names that would break a line,
closed descriptors, results files.

What a user loses if these fail: the remedy, or a file that was read or written by the same run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from command import COMMAND, TINY, assert_refused, metrics_without_times, needs_command, run, small

pytestmark = needs_command

ONE_STEP = ("--steps", 1)


@pytest.mark.parametrize(
    ("line", "unknown", "near"),
    [
        ("train --stpes 5", "--stpes", "did you mean --steps?"),
        ("train --data x --step 5", "--step", "did you mean --steps?"),
        ("train --Steps=5", "--Steps", "did you mean --steps?"),
        ("train -steps 5", "-steps", "did you mean --steps?"),
        ("train --batch_size 4", "--batch_size", "did you mean --batch?"),
        ("train --learning-rate 1e-3", "--learning-rate", "did you mean --lr?"),
        ("train --gradientrelease", "--gradientrelease", "did you mean --gradient-release?"),
        ("train --no-final-chekpoint", "--no-final-chekpoint", "did you mean --no-final-checkpoint?"),
        ("train --formats native", "--formats", "belongs to compare; did you mean --format?"),
        ("compare --optimizer adamw", "--optimizer", "belongs to train; did you mean --optimizers?"),
        ("compare --ouput x", "--ouput", "did you mean --out?"),
        ("bench --paramters 4", "--paramters", "did you mean --parameters?"),
        ("train --xyzzy --batch many", "--xyzzy", "flashoptim train --help"),
        ("--data x train", "--data", "move it behind train"),
        ("trian --steps 5", "--steps", "move it behind train"),
        ("trian", "trian", "did you mean train?"),
        ("frobnicate", "frobnicate", "choose one of train, compare, bench"),
        ("train text.txt", "text.txt", "--data"),
        ("train '--a\nb\x1b[31m'", "--a\\nb\\x1b[31m", "--help"),
    ],
)
def test_what_is_unknown_is_named_first_with_what_was_near(line: str, unknown: str, near: str) -> None:
    result = run(*shlex.split(line))
    assert_refused(result, f"'{unknown}'", near)
    assert result.stderr.count("\n") == 1
    assert "required" not in result.stderr


def test_every_mistyped_option_is_answered_by_the_right_one() -> None:
    options = sorted(
        set(re.findall(r"^  (?:-\S,)?(--[a-z0-9-]+)", run("train", "--help").stdout, re.MULTILINE))
    )
    assert len(options) > 35
    for option in options[:: max(len(options) // 8, 1)]:
        if len(option) < 7:
            continue
        swapped = option[:4] + option[5] + option[4] + option[6:]
        if swapped in options:
            continue
        assert_refused(run("train", swapped), f"'{swapped}'", f"did you mean {option}?")


NAMES = {
    "newline": (b"a\nb", "a\\nb"),
    "escape": (b"\x1b[31mred", "\\x1b[31mred"),
    "bell": (b"a\x07b", "a\\x07b"),
    "no-utf8": (b"caf\xe9", "caf\\xe9"),
    "c1": ("a\x9bb".encode(), "a\\x9bb"),
    "direction": ("a\u202eb".encode(), "a\\u202eb"),
    "line-separator": ("a\u2028b".encode(), "a\\u2028b"),
    "plain": ("über 日本".encode(), "über 日本"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_shown_on_one_line_and_uncut(tmp_path: Path, kind: str) -> None:
    name, shown = NAMES[kind]
    path = os.fsencode(tmp_path) + b"/" + name
    result = subprocess.run(
        [COMMAND, "train", "--data", path, "--steps", "1"], capture_output=True, check=False
    )
    assert result.returncode == 2
    line = result.stderr.decode()
    assert line.count("\n") == 1
    assert len(line.splitlines()) == 1
    assert shown in line
    assert "give " in line, "the remedy is lost"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_not_taken_by_a_file(text: Path, tmp_path: Path, closed: str) -> None:
    def start(*arguments: object) -> int:
        script = f'exec "$@" {closed}'
        command: list[str | Path] = ["sh", "-c", script, "sh", COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    arguments = small(text, "--steps", 4, "--checkpoint-every", 2)
    out = tmp_path / "run"
    assert start(*arguments, "--out", out) == 0
    assert [row["step"] for row in metrics_without_times(out)] == ["1", "2", "3", "4"]
    lines = (out / "metrics.csv").read_text().splitlines()
    assert all(line.count(",") == lines[0].count(",") for line in lines)
    if "2>&-" in closed:
        again = tmp_path / "comparison"
        comparison = ("--formats", "native", "--no-plot", *TINY, "--steps", 2)
        assert start("compare", "--data", text, *comparison, "--out", again) == 0
        assert len(metrics_without_times(again / "adamw-native-seed0")) == 2


def folders_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*") if not p.is_fifo()}


@pytest.fixture
def place(tmp_path: Path, text: Path) -> Path:
    """What --json may not be, each under its name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.txt").write_bytes(text.read_bytes())
    (tmp_path / "validation.txt").write_bytes(text.read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "soft.json").symlink_to(tmp_path / "data" / "text.txt")
    (tmp_path / "hard.json").hardlink_to(tmp_path / "data" / "text.txt")
    (tmp_path / "circle.json").symlink_to("circle.json")
    (tmp_path / "nowhere.json").symlink_to("no/such/x.json")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    return tmp_path


TARGETS = {
    "": "--json",
    "folder": "folder",
    "folder/": "folder",
    "data": "data",
    "data/text.txt": "text.txt",
    "data/new.json": "data",
    "./folder/../data/text.txt": "text.txt",
    "validation.txt": "validation.txt",
    "soft.json": "text.txt",
    "hard.json": "text.txt",
    "circle.json": "circle.json",
    "nowhere.json": "no/such",
    "no/such/x.json": "no/such",
    "n" * 300: "nnnn",
    "validation.txt/x.json": "validation.txt",
    "pipe": "reader",
    "socket": "socket",
    "run": "run",
    "run/metrics.csv": "metrics.csv",
    "run/summary.json": "summary.json",
    "run/checkpoints": "checkpoints",
    "run/checkpoints/x.json": "checkpoints",
    "run/.flashoptim-run": ".flashoptim-run",
    "folder/../run/./metrics.csv": "metrics.csv",
}


@pytest.mark.parametrize("target", TARGETS)
def test_results_take_the_place_of_nothing_that_the_run_needs(place: Path, target: str) -> None:
    before = folders_below(place)
    arguments = small(Path("data"), *ONE_STEP, "--validation-data", "validation.txt", "--out", "run")
    result = run(*arguments, "--json", target, cwd=place)
    assert_refused(result, "--json", TARGETS[target])
    assert result.stderr.count("\n") == 1, "a step was made before"
    assert folders_below(place) == before


def test_results_of_a_run_that_is_there_are_not_replaced(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*small(text, *ONE_STEP, "--out", out)).returncode == 0
    links = {"metrics": out / "metrics.csv", "weights": out / "checkpoints/step-00000001/weights.safetensors"}
    for name, file in links.items():
        (tmp_path / name).hardlink_to(file)
        (tmp_path / f"{name}-link").symlink_to(file)
        before = file.read_bytes()
        for target in (name, f"{name}-link"):
            for again in (("--resume", "--out", out), ("--resume", out, "--out", tmp_path / "new")):
                refused = run(*small(text, "--steps", 2, *again), "--json", tmp_path / target)
                assert_refused(refused, "--json", file.name)
        assert file.read_bytes() == before


@pytest.mark.parametrize("way", ["file", "replaced", "in-out", "stdout", "substitution", "fifo", "device"])
def test_results_arrive(text: Path, tmp_path: Path, way: str) -> None:
    arguments = [str(a) for a in small(text, *ONE_STEP, "--out", tmp_path / "run")]
    command = [str(COMMAND), *arguments, "--json"]
    result = tmp_path / "result.json"
    if way == "fifo":
        os.mkfifo(tmp_path / "pipe")
        reader = threading.Thread(target=lambda: result.write_bytes((tmp_path / "pipe").read_bytes()))
        reader.start()
        subprocess.run([*command, tmp_path / "pipe"], check=True, capture_output=True)
        reader.join()
    elif way == "substitution":
        script = f'"$@" >(cat > {shlex.quote(str(result))}); sleep 0.2'
        subprocess.run(["bash", "-c", script, "bash", *command], check=True, capture_output=True)
    elif way == "stdout":
        with result.open("w") as out:
            subprocess.run([*command, "/dev/stdout"], check=True, stdout=out, stderr=subprocess.DEVNULL)
        text_of = result.read_text()
        result.write_text(text_of[: text_of.rindex("}") + 1])
    elif way == "device":
        subprocess.run([*command, "/dev/null"], check=True, capture_output=True)
        return
    else:
        if way == "replaced":
            result.write_text("the results of yesterday")
        if way == "in-out":
            result = tmp_path / "run" / "result.json"
        subprocess.run([*command, result], check=True, capture_output=True)
    assert json.loads(result.read_text())["runs"][0]["steps"] == 1


def test_results_whose_reader_went_away_are_told(text: Path) -> None:
    script = '"$@" --json >(true)'
    command: list[str] = ["bash", "-c", script, "bash", str(COMMAND), *map(str, small(text, *ONE_STEP))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused(result, "/dev/fd/", "reader")


def test_results_file_stays_where_the_disk_is_full(full_disk: Path) -> None:
    result = full_disk / "bench.json"
    result.write_text("the results of yesterday")
    with (full_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    choice = ("--optimizer", "sgd", "--format", "native", "--threads", 1, "--parameters", 1, "--rounds", 1)
    assert_refused(run("bench", *choice, "--json", result), "bench.json", "no space left")
    assert result.read_text() == "the results of yesterday"


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_limit_on_file_sizes_is_one_line(text: Path, tmp_path: Path, size: int) -> None:
    script = f'ulimit -f {size}; exec "$@"'
    arguments = small(text, "--steps", 20, "--checkpoint-every", 5, "--out", tmp_path / "run")
    result = subprocess.run(
        ["bash", "-c", script, "bash", COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert_refused(result, str(tmp_path / "run"), "ulimit -f")


def test_clipping_has_one_default_and_is_told(text: Path, tmp_path: Path) -> None:
    clipped, released = "clipped at norm 1", "gradients not clipped"
    assert clipped in run(*small(text, *ONE_STEP)).stdout
    assert released in run(*small(text, *ONE_STEP, "--gradient-release")).stdout
    compare = (
        "compare",
        "--data",
        text,
        *TINY,
        *ONE_STEP,
        "--formats",
        "native",
        "--no-plot",
        "--no-checkpoint",
    )
    assert clipped in run(*compare, "--out", tmp_path / "one").stdout
    assert json.loads((tmp_path / "one" / "summary.json").read_text())["runs"][0]["clip_norm"] == 1
    assert released in run(*compare, "--with-gradient-release", "--out", tmp_path / "two").stdout


def test_help_shows_options_as_they_are_typed() -> None:
    for command in ("train", "compare", "bench"):
        text = run(command, "--help").stdout
        assert "{false}" not in text
        assert "{true}" not in text
        assert "2 bad usage" in text


def test_resume_without_out_is_refused(text: Path, tmp_path: Path) -> None:
    assert run(*small(text, *ONE_STEP, "--out", tmp_path / "run")).returncode == 0
    refused = run(*small(text, "--steps", 2, "--resume", tmp_path / "run"))
    assert_refused(refused, "--resume", "--out")
