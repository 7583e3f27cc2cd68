"""The folder of a run as processes leave it that were killed. A few points of the sweep in
kill_sweep.py, which takes all of them.

What a user loses if these fail: a run, or the one that it was to replace.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from command import needs_command
from kill_sweep import KILL, SCENARIOS, Sweep

pytestmark = [needs_command, pytest.mark.skipif(not KILL.exists(), reason=f"{KILL} is not built")]


@pytest.mark.parametrize(
    ("scenario", "every"), [("keep-checkpoints", 131), ("overwrite", 131), ("compare", 331)]
)
def test_killed_command_loses_nothing(tmp_path: Path, scenario: str, every: int) -> None:
    sweep = Sweep(tmp_path, every)
    SCENARIOS[scenario](sweep)
    assert sweep.kills >= 1
