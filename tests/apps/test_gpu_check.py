"""What the check on a GPU goes on with where a part of it fails. All its tools are
stand-ins here: it needs no GPU.

If these fail, one broken part costs the only run on a machine that was hard to get."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each says how it was called, and fails where BREAKS is a part of that.
STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in *"${BREAKS:-nothing is broken}"*) exit 1 ;; esac
"""
CMAKE = (
    STAND_IN
    + """
folder=build/cuda-check/tests/cuda
mkdir -p "$folder"
for name in cuda_device_test c_api_on_device_test; do cp "$TOOLS/stand-in" "$folder/$name"; done
"""
)
PYTHON = STAND_IN + 'case "$*" in *cmake_prefix_path*) echo /torch ;; esac\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "gpu_check.sh", tmp_path / "scripts")
    tools = tmp_path / "tools"
    tools.mkdir()
    texts = {"cmake": CMAKE, "python3": PYTHON, "nvidia-smi": STAND_IN + "echo 9.0\n"}
    for name in ("cmake", "python3", "nvidia-smi", "nvcc", "c++", "stand-in"):
        (tools / name).write_text(texts.get(name, STAND_IN))
        (tools / name).chmod(0o755)
    return tmp_path


def check(place: Path, breaks: str = "") -> tuple[int, str, str]:
    """Exit status, what it said, and how the tools were called."""
    calls = place / "calls"
    calls.write_text("")
    environment = {"CALLS": str(calls), "TOOLS": str(place / "tools"), "BREAKS": breaks}
    environment["PATH"] = f"{place / 'tools'}:{os.environ['PATH']}"
    for name in ("PYTHON", "CXX", "PYTHONPATH"):
        environment[name] = ""
    done = subprocess.run(
        ["bash", str(place / "scripts" / "gpu_check.sh")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr, calls.read_text()


def test_everything_runs(place: Path) -> None:
    status, said, calls = check(place)
    assert status == 0, said
    assert "left out" not in said
    for part in (
        "cuda_device_test --gtest",
        "c_api_on_device_test",
        "test_gpu.py",
        "test_gpu_graphs.py",
        "cuda_compare.py",
    ):
        assert part in calls
    assert "-DFLASHOPTIM_CUDA_ARCHITECTURES=90" in calls


@pytest.mark.parametrize(
    ("breaks", "lost"),
    [
        ("flashoptim_operators", "pytest -q"),
        ("flashoptim_bench_cuda", "cuda_compare.py"),
        (["--target", "cuda_device_test"][-1], "cuda_device_test --gtest"),
        ("FLASHOPTIM_BUILD_PYTHON=ON", "pytest -q"),
    ],
)
def test_what_does_not_build_takes_nothing_else_with_it(place: Path, breaks: str, lost: str) -> None:
    status, said, calls = check(place, breaks)
    assert status == 1
    assert lost not in calls
    assert "gpu_check: was left out:" in said
    rest = {"pytest -q", "cuda_compare.py", "cuda_device_test --gtest"} - {lost}
    if breaks == "FLASHOPTIM_BUILD_PYTHON=ON":  # nobody knows which of them could not be configured
        rest -= {"cuda_device_test --gtest"}
    for part in rest:
        assert part in calls, part


@pytest.mark.parametrize("breaks", ["--gtest_brief", "test_gpu.py", "cuda_compare.py"])
def test_what_fails_is_an_error_at_the_end(place: Path, breaks: str) -> None:
    status, _, calls = check(place, breaks)
    assert status == 1
    for part in ("cuda_device_test --gtest", "test_gpu.py", "cuda_compare.py"):
        assert part in calls, part


@pytest.mark.parametrize(("breaks", "what"), [("c++", "GoogleTest"), ("-c import pytest", "pytest")])
def test_tests_that_are_left_out_are_no_success(place: Path, breaks: str, what: str) -> None:
    status, said, calls = check(place, breaks)
    assert status == 3, said
    assert what in said.splitlines()[-1]
    assert "cuda_compare.py" in calls


def test_without_a_gpu_it_says_what_is_missing(place: Path) -> None:
    status, said, calls = check(place, "torch.cuda.is_available")
    assert status == 1
    assert "missing: a Python whose torch sees a GPU" in said
    assert "cmake --build" not in calls
