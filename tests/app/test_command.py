"""The flashoptim command as a person types it: bad input, killed runs, comparisons.

What a user loses if these fail: hours of training at a kill, or an evening with an error that does not say what to do.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(os.environ.get("FLASHOPTIM", ROOT / "build/release/apps/flashoptim/flashoptim"))
TIME_COLUMNS = {"tokens_per_second", "seconds", "optimizer_seconds", "resident_bytes"}
DEADLINE = 300.0

pytestmark = pytest.mark.skipif(not COMMAND.exists(), reason=f"{COMMAND} is not built")


def run(
    *arguments: object,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


TINY = ("--model", "llama-tiny", "--batch", 2, "--sequence", 32, "--eval-batches", 1, "--threads", 1)


def small(text: Path, *more: object) -> list[object]:
    """A run of seconds on one thread."""
    return ["train", "--data", text, *TINY, *more]


def small_comparison(text: Path, out: Path, *more: object) -> list[object]:
    """A comparison of one run of one step."""
    own = ("--formats", "native", "--no-plot", "--out", out)
    return ["compare", f"--data={text}", *TINY, "--steps", 1, *own, *more]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text("".join(f"{n} times {n} is {n * n}; über {n}\n" for n in range(2000)), encoding="utf-8")
    return file


def assert_refused(result: subprocess.CompletedProcess[str], *named: str) -> None:
    """Exit code 2 and one line that names the thing."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("flashoptim: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    for word in named:
        assert word in errors[0]


@pytest.mark.parametrize("command", ["train", "compare"])
def test_device_that_is_not_there_is_refused(text: Path, tmp_path: Path, command: str) -> None:
    for device, reason in (("cuda:99", "is not there"), ("tpu", "choose cpu, cuda or cuda:N")):
        arguments = ["--data", text, *TINY, "--steps", 1, "--out", tmp_path / "out", "--device", device]
        assert_refused(run(command, *arguments), f"device '{device}'", reason)


def metrics_without_times(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]


def last_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


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
        (("--gradient-release",), "clip"),
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


def test_a_run_is_not_overwritten_unasked(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*small(text, "--steps", 1, "--out", out)).returncode == 0
    before = (out / "metrics.csv").read_bytes()
    assert_refused(run(*small(text, "--steps", 1, "--out", out)), str(out))
    assert (out / "metrics.csv").read_bytes() == before


def test_out_folder_that_cannot_be_made_is_named(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(run(*small(text, "--steps", 1, "--out", tmp_path / "file" / "run")), "file")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 800 KiB: one checkpoint of the tiny model fits, two do not."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=False)


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


def test_resume_without_a_checkpoint_says_so(text: Path, tmp_path: Path) -> None:
    assert_refused(run(*small(text, "--steps", 2, "--resume", "--out", tmp_path / "nothing")), "nothing")


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


def steps_done(folder: Path) -> int:
    try:
        return max(len((folder / "metrics.csv").read_text().splitlines()) - 1, 0)
    except FileNotFoundError:
        return 0


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


def test_comparison_has_every_run_and_halves_memory_and_checkpoint(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    shape = ("--model", "llama-1m", "--batch", 1, "--sequence", 16, "--eval-batches", 1, "--threads", 1)
    arguments = (
        "compare",
        "--data",
        text,
        *shape,
        "--steps",
        2,
        "--with-gradient-release",
        "--no-plot",
        "--out",
        out,
    )
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    runs = json.loads((out / "summary.json").read_text())["runs"]
    assert [(r["format"], r["gradient_release"]) for r in runs] == [
        (format, release) for format in ("fp32", "paper", "native") for release in (False, True)
    ]
    by_name = {(r["format"], r["gradient_release"]): r for r in runs}
    total = {key: r["bytes_per_parameter"]["total"] for key, r in by_name.items()}
    # 16 bytes: fp32 weight, gradient and two moments. 7.125 and 5.125 in native, and a little for what stays in fp32 (norms).
    assert total["fp32", False] == 16.0
    assert total["fp32", True] == 12.0
    assert total["native", False] <= 7.2
    assert total["native", True] <= 5.2
    reference = by_name["fp32", False]["checkpoint_bytes"]
    assert by_name["native", False]["checkpoint_bytes"] <= 0.45 * reference
    # Released or not: the same arithmetic, the same loss to the last bit.
    for format in ("fp32", "paper", "native"):
        assert by_name[format, False]["validation_loss"] == by_name[format, True]["validation_loss"]
    assert all(r["peak_resident_bytes"] > 0 for r in runs)
    for line in ("bytes/parameter", "peak resident memory", "checkpoint", "validation loss"):
        assert line in result.stdout

    model = {
        reference: json.loads((out / name).read_text())["runs"][0]["peak_resident_bytes"]
        for reference, name in ((True, "model-fp32.json"), (False, "model-bf16.json"))
    }
    for r in runs:
        above = r["peak_resident_bytes"] - model[r["format"] == "fp32"]
        assert r["peak_above_model_bytes"] == max(above, 0)
    # Gradients and two moments of 1 M parameters in fp32 are 12 MB that the model alone does not have.
    assert by_name["fp32", False]["peak_above_model_bytes"] > 0


def test_comparison_does_not_replace_the_runs_of_one_that_was_killed(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    kept = out / "adamw-native-seed0"
    assert run(*small(text, "--steps", 1, "--out", kept)).returncode == 0
    before = (kept / "metrics.csv").read_bytes()
    assert_refused(run(*small_comparison(text, out)), str(kept), "--overwrite")
    assert (kept / "metrics.csv").read_bytes() == before
    assert last_checkpoint(kept).name == "step-00000001"
    assert run(*small_comparison(text, out, "--overwrite")).returncode == 0


def test_comparison_passes_its_arguments_on(text: Path, tmp_path: Path) -> None:
    (tmp_path / "-text.txt").write_bytes(text.read_bytes())
    out, json_file = tmp_path / "comparison", tmp_path / "results.json"
    twice = ("--lr", "1e-3", "--lr", "2e-3", "--schedule", "constant", "--json", json_file)
    flags = ("--tied=false", "--nesterov", "--activation-checkpointing=false")
    result = run(*small_comparison(Path("-text.txt"), out, *twice, *flags), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert metrics_without_times(out / "adamw-native-seed0")[0]["learning_rate"] == "0.002"
    assert json_file.read_bytes() == (out / "summary.json").read_bytes()
    untied = json.loads(json_file.read_text())["runs"][0]["parameters"]
    assert run(*small_comparison(text, tmp_path / "tied", "--tied")).returncode == 0
    tied = json.loads((tmp_path / "tied" / "summary.json").read_text())["runs"][0]["parameters"]
    assert untied == tied + 256 * 32


@pytest.mark.parametrize("arguments", [(), ("--beta1", 1)])
def test_comparison_that_is_refused_says_so_once_and_leaves_nothing(
    text: Path, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    data = text if arguments else tmp_path / "nope.txt"
    named = "beta" if arguments else "nope.txt"
    assert_refused(run(*small_comparison(data, tmp_path / "new" / "out", *arguments)), named)
    assert not (tmp_path / "new").exists()


def test_comparison_on_tokens_of_a_large_vocabulary(tmp_path: Path) -> None:
    file = tmp_path / "tokens.bin"
    file.write_bytes(array("H", (n * 7919 % 50257 for n in range(4000))).tobytes())
    result = run(*small_comparison(file, tmp_path / "out"))
    assert result.returncode == 0, result.stderr


def test_picture_of_a_comparison_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kinds = ("weights", "corrections", "moments", "scales", "gradients", "accumulators")
    runs = [
        {
            "name": format,
            "optimizer": "adamw",
            "format": format,
            "gradient_release": False,
            "bytes_per_parameter": dict.fromkeys(kinds, 1.0),
        }
        for format in ("fp32", "native")
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"runs": runs}))
    for name in ("fp32", "native"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("step,loss,validation_loss\n1,5.5,\n2,5.0,5.25\n")
    picture = tmp_path / "comparison.png"
    script = ROOT / "apps" / "flashoptim" / "plot_comparison.py"
    subprocess.run([sys.executable, script, tmp_path, picture], check=True, timeout=DEADLINE)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


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


def test_resume_takes_every_folder_name(text: Path, tmp_path: Path) -> None:
    assert run(*small(text, "--steps", 1, "--out", "out"), cwd=tmp_path).returncode == 0
    result = run(*small(text, "--steps", 2, "--resume", "out", "--out", "other"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in metrics_without_times(tmp_path / "other")] == ["2"]
    for nothing in (("--resume",), ("--resume", "")):
        assert_refused(run(*small(text, "--steps", 2, *nothing), cwd=tmp_path), "--out")
    assert "--resume [PATH] " in run("train", "--help").stdout


def test_help_names_every_subcommand_and_exit_code() -> None:
    text = run("--help").stdout
    for word in ("train", "compare", "2 bad usage"):
        assert word in text
    assert "--master-bits" in run("train", "--help").stdout


def test_models_are_listed_without_data() -> None:
    listed = run("train", "--list-models")
    assert listed.returncode == 0
    assert "llama-8b" in listed.stdout


# --- the step's speed


def test_bench_measures_what_it_is_asked_for(tmp_path: Path) -> None:
    result_file = tmp_path / "bench.json"
    choice = ("--optimizer", "adamw", "--format", "native,fp32", "--threads", "1,2", "--parameters", 1)
    result = run("bench", *choice, "--rounds", 1, "--backend", "automatic", "--json", result_file)
    assert result.returncode == 0, result.stderr
    measurements = json.loads(result_file.read_text())["measurements"]
    assert [(m["format"], m["threads"]) for m in measurements] == [
        ("native", 1),
        ("fp32", 1),
        ("native", 2),
        ("fp32", 2),
    ]
    for measurement in measurements:
        assert measurement["parameters"] == 1 << 20
        assert measurement["seconds"] > 0
        assert measurement["share_of_bandwidth"] > 0
    native, fp32 = measurements[:2]
    # Weight 2, correction 1, codes 2 and two scales for 32 elements, both ways; the gradient 2 once.
    assert native["bytes_per_parameter_moved"] == 12.25
    assert fp32["bytes_per_parameter_moved"] == 28
    assert fp32["speed_over_fp32"] == 1
    assert result.stdout.count("\n") >= 5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--backend", "sse9"), "sse9"),
        (("--optimizer", "adamm"), "adamm"),
        (("--format", "int4"), "int4"),
        (("--threads", 0), "--threads"),
        (("--parameters", 0), "--parameters"),
        (("--json", "/nowhere/x.json", "--quick", "--parameters", 1, "--rounds", 1), "/nowhere/x.json"),
    ],
)
def test_bench_names_bad_arguments(arguments: tuple[object, ...], named: str) -> None:
    result = run("bench", *arguments)
    assert result.returncode == 2
    assert named in result.stderr
    assert result.stderr.count("\n") == 1
