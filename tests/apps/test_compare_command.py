"""`flashoptim compare`: every run is there, none is replaced unasked, and the table tells memory apart.

What a user loses if these fail: the runs of a night, or a choice made by wrong figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from command import (
    DEADLINE,
    ROOT,
    assert_refused,
    last_checkpoint,
    metrics_without_times,
    needs_command,
    run,
    small,
    small_comparison,
)

pytestmark = needs_command


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
    # 16 bytes: fp32 weight, gradient and two moments. 7.125 and 5.125 in native, and a little
    # for what stays in fp32 (norms).
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
    assert_refused(run(*small_comparison(text, out)), str(out), f"complete: {kept.name}", "--overwrite")
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


def test_comparison_names_the_run_whose_loss_is_not_finite(text: Path, tmp_path: Path) -> None:
    own = ("--optimizers", "lion,adamw", "--lr", "1e39", "--steps", 4)
    result = run(*small_comparison(text, tmp_path / "out", *own))
    assert result.returncode == 3, result.stderr
    last = result.stderr.splitlines()[-1]
    assert "-native-seed0" in last
    assert "not finite" in last
    assert "stay in" in last


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
