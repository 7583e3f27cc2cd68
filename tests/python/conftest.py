"""Where these tests find the package: the installed one, else the one that the build
left in build/release/python."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BUILT = Path(__file__).resolve().parents[2] / "build" / "release" / "python"

if importlib.util.find_spec("flashoptim_cpp") is None:
    sys.path.insert(0, str(BUILT))
# Where c_interface lives, which benchmarks use too.
sys.path.append(str(BUILT.parents[2] / "bench"))


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Random numbers start alike in each test, and a test that changes the number
    of threads does not keep it."""
    import torch

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
