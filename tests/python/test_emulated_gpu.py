"""The package over the emulated CUDA kernels, which take tensors of the CPU for a GPU's: what a
machine without one can prove of it.

What a user loses if these fail: the same bits on a GPU, or an optimizer that works there at all. The package
runs in processes of its own, as its operators cannot be loaded beside the others.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support import child

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "release"
EMULATED = BUILD / "python-emulated"
LIBRARY = EMULATED / "flashoptim_cpp" / "libflashoptim_operators.so"

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built")

# Tests of what an optimizer does that hold wherever its kernels run.
SUITES = (
    "test_gpu.py",
    "test_gpu_graphs.py",
    "test_checkpoint.py",
    "test_gradient_release.py",
    "test_nonfinite.py",
    "test_protocol.py",
)


def run(package: Path, *arguments: str) -> str:
    """What a Python program prints that imports the package from this folder."""
    return child(*arguments, PYTHONPATH=str(package))


def test_every_run_has_the_bits_of_the_cpu() -> None:
    on_cpu, on_gpu = (run(package, "gpu_runs.py") for package in (BUILD / "python", EMULATED))
    assert on_gpu.splitlines() == on_cpu.splitlines()
    assert len(on_cpu.splitlines()) > 100


@pytest.mark.parametrize("suite", SUITES)
def test_optimizers_work_over_the_kernels(suite: str) -> None:
    said = run(EMULATED, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite)
    assert " passed" in said
