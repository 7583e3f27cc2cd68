"""The examples run as their first lines say, and tell a user in one line what is wrong.

What a user loses if these fail: the first thing that they try.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gpu_llama
import pytest
import support
import torch

ROOT = Path(__file__).resolve().parents[2]
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("transformers", "tqdm"))
needs_transformers = pytest.mark.skipif(not HAS_TRANSFORMERS, reason="transformers is not installed")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """An example with the package that these tests found."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)


def write_idx(file: Path, header: int, values: torch.Tensor) -> None:
    file.write_bytes(bytes(header) + bytes(values.flatten().to(torch.uint8).tolist()))


def test_mnist(tmp_path: Path) -> None:
    done = run(ROOT / "examples" / "mnist.py")
    assert done.returncode == 0, done.stderr
    assert "synthetic" in done.stdout
    share = re.search(r"([\d.]+) % right", done.stdout)
    assert share is not None
    assert float(share[1]) > 90
    for part, count in (("train", 256), ("t10k", 64)):
        labels = torch.arange(count) % 10
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", 8, labels)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", 16, labels[:, None].expand(-1, 784) * 25)
    done = run(ROOT / "examples" / "mnist.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    done = run(ROOT / "examples" / "mnist.py", tmp_path / "nowhere")
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nowhere" in done.stderr


FINETUNE = ROOT / "examples" / "finetune_llm.py"
SHORT = ("--steps", 4, "--batch", 2, "--sequence", 32)


def bytes_per_parameter(printed: str) -> dict[str, float]:
    """The last column of the table."""
    rows = re.findall(r"^(\w+) +[\d.]+ +([\d.]+)$", printed, re.MULTILINE)
    return {kind: float(size) for kind, size in rows}


@needs_transformers
@pytest.mark.parametrize(
    ("options", "total"),
    [(("--optimizer", "ours"), 7.2), (("--optimizer", "torch"), 16.01), (("--gradient-release",), 5.2)],
    ids=["ours", "torch", "released"],
)
def test_finetune(options: tuple[str, ...], total: float) -> None:
    done = run(FINETUNE, *SHORT, *options)
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    assert "step" in done.stderr, "the progress bar"
    assert 0.95 * total < bytes_per_parameter(done.stdout)["total"] <= total


@needs_transformers
def test_finetune_on_two_processes_from_a_folder(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizers = pytest.importorskip("tokenizers")
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=200, **size, **heads)).save_pretrained(tmp_path)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "the": 1, "a": 2}, unk_token="<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    done = run(*launch, FINETUNE, *SHORT, "--model", tmp_path, "--gradient-release")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 1, "one process reports"
    assert bytes_per_parameter(done.stdout)["gradients"] == 0


@needs_transformers
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--text", "no-such-file.txt"), "no-such-file.txt"),
        (("--model", "no-such-folder"), "no-such-folder"),
        (("--optimizer", "adagrad"), "adagrad"),
        (("--steps", "0"), "steps"),
        (("--lr", "-1"), "lr"),
        (("--sequence", "10000000"), "sequence"),
        (("--optimizer", "torch", "--gradient-release"), "gradient-release"),
        (("--no-such-flag",), "no-such-flag"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_named_in_one_line(options: tuple[str, ...], named: str) -> None:
    done = run(FINETUNE, *options)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("finetune_llm: ")]
    assert len(lines) == 1, done.stderr
    assert named in lines[0]


@pytest.mark.parametrize("row", gpu_llama.ROWS)
def test_every_row_of_the_demonstration_trains(row: str) -> None:
    """Nobody keeps what make_step returns but the loop."""
    is_reference = row == "torch-fp32"
    model = gpu_llama.make_decoder(
        gpu_llama.SHAPES["tiny"], torch.device("cpu"), torch.float32 if is_reference else torch.bfloat16
    )
    before = [p.detach().clone() for p in model.parameters()]
    step = gpu_llama.make_step(row, model, 1e-2)
    gc.collect()
    tokens = torch.arange(33)[None]
    for _ in range(2):
        step(model(tokens[:, :-1], tokens[:, 1:]))
    assert all(support.has_moved(q, p) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


# What a rented hour on a GPU is for must not end in a typing error.
def test_demonstrations_for_a_gpu(tmp_path: Path) -> None:
    tiny = (
        "--device",
        "cpu",
        "--model",
        "tiny",
        "--steps",
        2,
        "--batch",
        1,
        "--sequence",
        32,
        "--out",
        tmp_path,
    )
    done = run(ROOT / "bench" / "gpu_loss.py", "--text", ROOT / "README.md", *tiny)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "gpu-loss.json").read_text())["runs"]
    assert [len(r["losses"]) for r in runs] == [2, 2, 2]
    first = [r["losses"][0] for r in runs]
    assert support.largest(first) + support.largest(-loss for loss in first) < 0.02  # the same beginning
    assert (tmp_path / "gpu-loss.png").stat().st_size > 0
    done = run(ROOT / "bench" / "gpu_llama.py", *tiny)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu-llama.json").read_text())["rows"]
    assert len(rows) == 3
    assert all(row["peak_bytes"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    done = run(ROOT / "bench" / "gpu_loss.py", "--text", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
