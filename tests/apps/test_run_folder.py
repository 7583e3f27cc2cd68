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


@pytest.mark.parametrize(
    ("scenario", "every", "how"),
    [
        ("keep-checkpoints", 131, "all"),
        ("overwrite", 131, "all"),
        ("compare", 331, "all"),
        ("keep-checkpoints", 131, "full"),
        ("overwrite", 131, "full"),
        ("overwrite", 131, "readonly"),
        ("compare", 331, "full"),
        ("two-runs", 131, "meet"),
    ],
)
def test_broken_command_loses_nothing(tmp_path: Path, scenario: str, every: int, how: str) -> None:
    sweep = Sweep(tmp_path, every, how)
    SCENARIOS[scenario](sweep)
    assert sweep.kills >= 1
