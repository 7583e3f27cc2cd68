"""Numbers, memory, threads and environment of the flashoptim command: what cannot be is
refused before anything is made.

What a user loses if these fail: a crash hours into a run, or a run of other numbers than they typed.
Every option with every text that is no number: number_arguments_test.cpp; the bounds:
limits_test.cpp of the trainer.
"""

from __future__ import annotations

import os
import resource
import subprocess
import uuid
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import COMMAND, DEADLINE, TINY, assert_refused, needs_command

MIB = 1 << 20

pytestmark = needs_command


def run(*arguments: object, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, behind what `shell` does in the shell that becomes it (ulimit)."""
    return subprocess.run(
        ["sh", "-c", f'{shell or ":"}; exec "$@"', "sh", COMMAND, *map(str, arguments)],
        capture_output=True,
        env={**os.environ, **environment},
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def train(text: Path, *more: object, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return run("train", f"--data={text}", *TINY, "--steps=2", *more, shell=shell, **environment)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch=4611686018427387904"], ("--batch", "4611686018427387904", "from 1 to ")),
        (["--batch=1048576", "--sequence=4096"], ("memory", "smaller")),
        (["--sequence=9223372036854775807"], ("--sequence", "9223372036854775807", "from 1 to ")),
        (["--sequence=16777216"], ("16777216", "tokens")),
        (["--seed=-1"], ("--seed", "'-1'", "18446744073709551615")),
        (["--seed", "-1"], ("--seed", "'-1'")),
        (["--seed=18446744073709551616"], ("--seed", "'18446744073709551616'")),
        (["--steps=99999999999999999999"], ("--steps", "from 1 to ")),
        (["--steps="], ("--steps",)),
        (["--steps", ""], ("--steps",)),
        (["--threads=100000"], ("--threads", "100000", "1024")),
        (["--vocabulary-size=4294967296"], ("--vocabulary-size", "16777216")),
        (["--vocabulary-size=9223372036854775807"], ("--vocabulary-size", "16777216")),
        (["--model=llama-8b", "--vocabulary-size=16777216"], ("memory", " GiB", "smaller")),
        (["--lr=nan"], ("--lr", "learning rate", "finite")),
        (["--lr=1e400"], ("--lr", "'1e400'")),
        (["--out="], ("--out",)),
        (["--out", ""], ("--out", "empty")),
        (
            ["--steps=1000000000000", "--accumulation=1048576", "--batch=1048576", "--sequence=16777216"],
            ("tokens of all steps",),
        ),
    ],
    ids=str,
)
def test_numbers_out_of_all_bounds(text: Path, arguments: list[str], named: tuple[str, ...]) -> None:
    assert_refused(train(text, *arguments), *named)


def test_seeds_of_a_comparison(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seeds in ("1,-1", "1,0x10", "18446744073709551616", "1,2.0"):
        result = run("compare", f"--data={text}", *TINY, "--steps=1", f"--out={out}", f"--seeds={seeds}")
        assert_refused(result, "--seeds")
    assert not out.exists()


@pytest.mark.parametrize("width", [16, 32])
def test_tokens_at_the_end_of_their_type(tmp_path: Path, width: int) -> None:
    file = tmp_path / "tokens.bin"
    largest = 2**width - 1
    file.write_bytes(array("H" if width == 16 else "I", [1, 2, 3, largest] * 1000).tobytes())
    result = train(file, f"--token-width={width}")
    if width == 16:  # a large vocabulary, and one that can be had
        assert result.returncode == 0, result.stderr
    else:
        assert_refused(result, "tokens.bin", "4294967295", "width")


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("FLASHOPTIM_BACKEND", "sse9", "choose one of"),
        ("FLASHOPTIM_BACKEND", "AVX2", "choose one of"),
        ("FLASHOPTIM_BACKEND", " ", "choose one of"),
        ("OMP_NUM_THREADS", "many", "from 1 to 1024"),
        ("OMP_NUM_THREADS", "0", "from 1 to 1024"),
        ("OMP_NUM_THREADS", "-1", "from 1 to 1024"),
        ("OMP_NUM_THREADS", "100000", "from 1 to 1024"),
        ("OMP_NUM_THREADS", "1e2", "from 1 to 1024"),
        ("OMP_STACKSIZE", "999999G", "at most 1G"),
        ("OMP_STACKSIZE", "1048577", "at most 1G"),
        ("GOMP_STACKSIZE", "2g", "at most 1G"),
    ],
)
def test_environment_is_checked_before_the_first_step(
    text: Path, tmp_path: Path, variable: str, value: str, named: str
) -> None:
    out = tmp_path / "out"
    result = train(text, "--threads=0", f"--out={out}", **{variable: value})
    assert_refused(result, variable, named)
    assert not out.exists()


def test_environment_that_is_not_read_or_empty_is_none(text: Path) -> None:
    for environment in ({"OMP_NUM_THREADS": "many"}, {"FLASHOPTIM_BACKEND": ""}):
        result = train(text, "--steps=1", **environment)
        assert result.returncode == 0, result.stderr


def test_backend_of_the_environment_in_compare_and_bench(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    comparison = ("compare", f"--data={text}", *TINY, "--steps=1", f"--out={out}")
    assert_refused(run(*comparison, FLASHOPTIM_BACKEND="sse9"), "FLASHOPTIM_BACKEND")
    assert not out.exists()
    bench = ("bench", "--quick", "--rounds=1", "--parameters=1", "--threads=1", "--format=native")
    assert_refused(run(*bench, FLASHOPTIM_BACKEND="sse9"), "FLASHOPTIM_BACKEND")
    assert run(*bench, "--backend=scalar", FLASHOPTIM_BACKEND="sse9").returncode == 0


def test_benchmarks_are_refused_before_anything_is_measured() -> None:
    for arguments, named in (
        (["--parameters=16384"], "memory"),
        (["--optimizer=adamw,adamm"], "adamm"),
        (["--format=native,int4"], "int4"),
    ):
        result = run("bench", "--threads=1", "--rounds=1", *arguments)
        assert_refused(result, named)
        assert result.stdout == ""


@pytest.mark.parametrize("limit", ["-v", "-d"])
def test_memory_beyond_the_limits_of_the_process(text: Path, tmp_path: Path, limit: str) -> None:
    out = tmp_path / "out"
    arguments = ("--model=llama-300m", f"--out={out}")  # 2.2 GB of weights, gradients and state
    result = train(text, *arguments, shell=f"ulimit {limit} {1800 * MIB // 1024}")
    assert_refused(result, "memory", f"ulimit {limit}", "smaller", "GiB")
    assert not out.exists()


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group of 1 GiB of memory, version 1 or 2, below this process's root of groups."""
    for top, file in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = top / f"flashoptim-test-{uuid.uuid4().hex}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(str(1 << 30))
            yield group
        except OSError:
            continue
        finally:
            group.rmdir()
        return
    pytest.skip("no control group with a memory limit can be made here (needs root)")


def test_memory_beyond_the_control_group(text: Path, tmp_path: Path, control_group: Path) -> None:
    out = tmp_path / "out"
    enter = f"echo $$ > {control_group}/cgroup.procs"
    result = train(text, "--model=llama-300m", f"--out={out}", shell=enter)
    assert_refused(result, "memory", str(control_group), "smaller", "GiB")
    assert not out.exists()
    result = train(text, "--steps=1", shell=enter)
    assert result.returncode == 0, result.stderr


def test_threads_that_cannot_be_started(text: Path) -> None:
    """Their stacks alone do not fit."""
    result = train(text, "--threads=1024", shell=f"ulimit -v {2500 * MIB // 1024}")
    assert_refused(result, "threads", "1024", "fewer")


@pytest.mark.skipif(os.geteuid() != 0, reason="the limit does not hold for this user's own processes alone")
@pytest.mark.parametrize("most", range(1, 14))
def test_threads_beyond_the_limit_on_processes(text: Path, most: int) -> None:
    """Where a run begins it has all that LibTorch and OpenMP start, and the optimizer takes what is left."""
    nobody = 65500 + most  # one that has no other process
    text.chmod(0o644)
    arguments = ["train", "--data=/dev/stdin", *map(str, TINY), "--threads=4", "--steps=2"]
    with text.open() as data:  # the folders that it lies in are closed to others
        result = subprocess.run(
            [COMMAND, *arguments],
            stdin=data,
            capture_output=True,
            cwd="/",
            text=True,
            timeout=DEADLINE,
            check=False,
            user=nobody,
            group=nobody,
            extra_groups=[],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (most, most)),
        )
    if result.returncode != 0:
        assert most < 10, result.stderr
        assert_refused(result, "threads", "4", "fewer")


@pytest.mark.parametrize("limit", ["-v", "-d"])
def test_memory_that_does_not_suffice_to_start(limit: str) -> None:
    """The constructors of the libraries run before main: the program ends there by one line, too."""
    for mib in (32, 64, 96, 350, 375, 400, 450):
        result = run("--version", shell=f"ulimit {limit} {mib * MIB // 1024}")
        if result.returncode == 127:  # the loader's own words: the program is not there yet
            continue
        if result.returncode != 0:
            assert_refused(result, "memory", "ulimit")


def test_loss_that_is_not_finite(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = train(text, "--lr=1e39", "--steps=4", f"--out={out}")
    assert result.returncode == 3
    rows = (out / "metrics.csv").read_text().splitlines()
    step = rows[-1].split(",")[0]
    assert rows[-1].startswith(f"{step},nan,")
    assert len(rows) == 1 + int(step)
    error = result.stderr.splitlines()[-1]
    for word in ("flashoptim: ", "nan", f"step {step}", "learning rate"):
        assert word in error
    assert "done" not in result.stdout
    assert not (out / "summary.json").exists()
    assert "3 the loss" in run("--help").stdout


def test_a_finite_loss_of_a_broken_model(text: Path) -> None:
    """The loss of the only step is that before its update, and finite."""
    result = train(text, "--lr=1e39", "--clip=0", "--steps=1")
    assert result.returncode == 3
    assert "step 1 is" in result.stderr.splitlines()[-1]
    assert "done" not in result.stdout
