"""The folder of a run as processes leave it that were killed, had no room on the disk, or met another one. A
few points of the sweep in kill_sweep.py, which takes all of them.

What a user loses if these fail: a run, or the one that it was to replace.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from command import needs_command
from kill_sweep import KILL, SCENARIOS, Sweep

pytestmark = [needs_command, pytest.mark.skipif(not KILL.exists(), reason=f"{KILL} is not built")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs lie that were never broken, made once for all tests."""
    return tmp_path_factory.mktemp("sweep")


# Points apart for each way of breaking: a call behind which the first checkpoint is, and one before.
@pytest.mark.parametrize(
    ("scenario", "points", "how"),
    [
        ("keep-checkpoints", (131, 262), "all"),
        ("keep-checkpoints", (90, 210), "full"),
        ("overwrite", (131, 180), "all"),
        ("overwrite", (90, 262), "full"),
        ("overwrite", (150,), "readonly"),
        ("compare", (250,), "all"),
        ("compare", (331,), "full"),
        ("two-runs", (60,), "meet"),
    ],
)
def test_broken_command_loses_nothing(place: Path, scenario: str, points: tuple[int, ...], how: str) -> None:
    sweep = Sweep(place, points, how)
    SCENARIOS[scenario](sweep)
    assert sweep.kills >= len(points)
