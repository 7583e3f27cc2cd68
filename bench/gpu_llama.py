"""Demonstration: trains an 8 B Llama with random weights for some steps on one GPU, by the Python package and
by torch.

    python bench/gpu_llama.py                                    # on a GPU; out/gpu-llama.json and .md
    python bench/gpu_llama.py --device cpu --model tiny --steps 3 --sequence 64

Each row is a process of its own: peak memory of torch's allocator (on the CPU: of the process) and tokens per
second. A contestant that does not fit has a row too. All of them checkpoint activations; the data are random
tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_decoder import SHAPES, make_decoder

# fp32 is the usual mixed precision: fp32 weights, gradients and moments, products in bf16 by autocast.
ROWS = {
    "native-release": "FlashAdamW native, gradient release",
    "native": "FlashAdamW native",
    "torch-fp32": "torch AdamW fused, fp32 weights and bf16 autocast",
}


def make_step(row: str, model: torch.nn.Module, rate: float) -> Callable[[torch.Tensor], None]:
    """The function that calls backward() and steps the optimizer."""
    if row == "torch-fp32":
        reference = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, fused=True)

        def step(loss: torch.Tensor) -> None:
            loss.backward()
            reference.step()
            reference.zero_grad()

        return step
    import flashoptim_cpp as flash

    ours = flash.FlashAdamW(model.parameters(), lr=rate, weight_decay=0.1)
    if row == "native-release":
        flash.enable_gradient_release(model, ours)
        return lambda loss: loss.backward()

    def step_ours(loss: torch.Tensor) -> None:
        loss.backward()
        ours.step()
        ours.zero_grad()

    return step_ours


def train(row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains in this process and returns the figures of the row."""
    device = torch.device(arguments.device)
    shape = SHAPES[arguments.model]
    is_reference = row == "torch-fp32"
    model = make_decoder(shape, device, torch.float32 if is_reference else torch.bfloat16, checkpointing=True)
    step = make_step(row, model, 1e-5)
    size = (arguments.batch, arguments.sequence + 1)
    seconds, losses = [], []
    for n in range(arguments.steps):
        generator = torch.Generator().manual_seed(n)
        tokens = torch.randint(shape.vocabulary, size, generator=generator).to(device)
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=is_reference):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        step(loss)
        losses.append(loss.item())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    warm = seconds[min(2, len(seconds) - 1) :]  # the first steps allocate
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_bytes": peak,
        "tokens_per_second": arguments.batch * arguments.sequence / statistics.median(warm),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def run_row(row: str, arguments: list[str], limit: float) -> dict[str, Any]:
    """Runs the row in a process of its own. A failure is a row too."""
    command = [sys.executable, __file__, *arguments, "--row", row]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"name": ROWS[row], "failure": f"not done after {limit:.0f} s"}
    if done.returncode == 0:
        return {"name": ROWS[row], **json.loads(done.stdout.splitlines()[-1])}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    failure = "out of memory" if "OutOfMemoryError" in done.stderr or done.returncode == -9 else last
    return {"name": ROWS[row], "failure": failure}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | peak GiB | bytes per parameter | tokens/s | loss, first and last |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "failure" in row:
            lines.append(f"| {row['name']} | {row['failure']} | | | |")
            continue
        lines.append(
            f"| {row['name']} | {row['peak_bytes'] / 2**30:.1f} "
            f"| {row['peak_bytes'] / row['parameters']:.2f} "
            f"| {row['tokens_per_second']:,.0f} | {row['first_loss']:.3f}, {row['last_loss']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", choices=SHAPES, default="llama-8b")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--minutes", type=float, default=10.0, help="at most, for each row")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)  # for the process of a row
    arguments = parser.parse_args()
    if arguments.dry_run:
        runs = ", ".join(ROWS.values())
        print(f"{arguments.model} on {arguments.device}: {arguments.steps} steps each of {runs}")
        return 0
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(2, "gpu_llama: torch sees no CUDA device; choose --device cpu with a small --model\n")
    if arguments.row:
        print(json.dumps(train(arguments.row, arguments)))
        return 0
    gpu = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    rows = [run_row(row, sys.argv[1:], arguments.minutes * 60) for row in ROWS]
    settings = {name: getattr(arguments, name) for name in ("model", "steps", "batch", "sequence")}
    document = {"device": gpu, "torch": torch.__version__, **settings, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu-llama.json").write_text(json.dumps(document, indent=1) + "\n")
    batches = f"batches of {arguments.batch} x {arguments.sequence} tokens"
    text = f"{arguments.model}, {gpu}, {batches}\n\n{table(rows)}"
    (arguments.out / "gpu-llama.md").write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
