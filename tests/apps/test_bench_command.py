"""`flashoptim bench`: it measures what it is asked for.

What a user loses if these fail: a choice of format or threads made by figures of something else.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import needs_command, run

pytestmark = needs_command


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
