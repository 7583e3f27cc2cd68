"""DDP, FSDP2, ZeRO and distributed checkpoints on 1, 2, 3 and 4 gloo processes.

What a user loses if these fail: more than one device, or the checkpoint made on another number of them. The
checks stand in distributed_checks.py and run once, in one go, in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import support
import torch

HERE = Path(__file__).resolve().parent
NAMES = {
    "train": [
        "ddp",
        "release_under_ddp",
        "same_bits_on_any_ranks",
        "unsharded_has_the_same_bits",
        "shards_that_cut_groups_are_refused",
        "other_cuts",
        "hybrid_and_tensor_parallel",
        "training",
        "verdict_over_ranks",
        "gradient_norm",
        "masters_of_shards",
        "full_precision_of_shards",
        "zero_redundancy",
        "zero_redundancy_agrees",
        "accumulated_in_fp32",
        "casts_of_shards",
        "exports_of_wrappers",
        "accumulated_under_ddp",
        "accumulated_among_others",
        "accumulated_in_reentrant_checkpoints",
        "save",
        "a_fresh_template_changes_nothing",
        "full_state_dict",
        "full_state_dict_in_paper",
        "the_order_of_loading",
        "flattened_save",
    ],
    "load": ["load", "flattened_load", "paper_under_another_cut", "bad_shards_are_refused"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("distributed")
    done = subprocess.run(
        [sys.executable, str(HERE / "distributed_worker.py"), str(folder)],
        env=support.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    file = folder / "results.json"
    assert file.exists(), done.stdout + done.stderr
    found: dict[str, str] = json.loads(file.read_text())
    return found


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])
def test_distributed(name: str, ranks: int, results: dict[str, str]) -> None:
    said = results.get(f"{name}-{ranks}", "it did not finish")
    assert said == "ok", said


def test_every_check_is_reported() -> None:
    import distributed_checks

    assert {phase: list(checks) for phase, checks in distributed_checks.PHASES.items()} == NAMES
