"""Demonstration: draws the losses of a model of GPT-2's size on text with fp32 AdamW and FlashAdamW, paper
and native.

    python bench/gpu_loss.py --text FOLDER                       # on a GPU; out/gpu-loss.json and .png
    python bench/gpu_loss.py --text README.md --device cpu --model tiny --steps 20 --batch 4 --sequence 64

Bytes are tokens. Every run has the same initial weights and batches. The last tenth of the text is held out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_decoder import SHAPES, make_decoder

RUNS = {
    "fp32": "torch AdamW, fp32 weights and bf16 autocast",
    "paper": "FlashAdamW paper",
    "native": "FlashAdamW native",
}
HELD_OUT_BATCHES = 16


def read_text(place: Path) -> torch.Tensor:
    """The bytes of a file, or of all .txt and .md files of a folder in the order of their names."""
    files = sorted(f for f in place.rglob("*") if f.suffix in (".txt", ".md")) if place.is_dir() else [place]
    text = b"\n".join(file.read_bytes() for file in files)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def batch(text: torch.Tensor, seed: int, arguments: argparse.Namespace) -> torch.Tensor:
    """Rows of the text at random places, (batch, sequence + 1)."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - arguments.sequence, (arguments.batch,), generator=generator)
    rows = [text[s : s + arguments.sequence + 1] for s in starts.tolist()]
    return torch.stack(rows).long().to(arguments.device)


def make_optimizer(name: str, model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """The optimizer of a run. Norm weights do not decay."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    if name == "fp32":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    import flashoptim_cpp as flash

    return flash.FlashAdamW(groups, lr=rate, betas=(0.9, 0.95), format=name)


def train(name: str, text: torch.Tensor, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run: the loss of every step, and at the end that of the held-out text."""
    device = torch.device(arguments.device)
    dtype = torch.float32 if name == "fp32" else torch.bfloat16
    model = make_decoder(SHAPES[arguments.model], device, dtype)
    optimizer = make_optimizer(name, model, arguments.lr)
    cut = len(text) * 9 // 10
    training, held_out = text[:cut], text[cut:]

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "fp32"):
            return model(tokens[:, :-1], tokens[:, 1:])

    losses: list[torch.Tensor] = []
    begin = time.perf_counter()
    for step in range(arguments.steps):
        warm_up = min(1.0, (step + 1) / max(1, arguments.steps // 20))
        decay = 0.55 + 0.45 * math.cos(math.pi * step / arguments.steps)  # decays to a tenth
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * warm_up * decay
        loss = loss_of(batch(training, step, arguments))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    with torch.no_grad():
        held = [loss_of(batch(held_out, n, arguments)).item() for n in range(HELD_OUT_BATCHES)]
    values = [loss.item() for loss in losses]
    return {
        "name": RUNS[name],
        "losses": values,
        "held_out_loss": sum(held) / len(held),
        "seconds": time.perf_counter() - begin,
    }


def draw(document: dict[str, Any], file: Path) -> None:
    """Plots all losses, each smoothed over a fiftieth of the run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for run in document["runs"]:
        losses = run["losses"]
        width = max(1, len(losses) // 50)
        smooth = [sum(losses[max(0, n - width + 1) : n + 1]) / min(n + 1, width) for n in range(len(losses))]
        axes.plot(
            range(1, len(losses) + 1), smooth, label=f"{run['name']}: {run['held_out_loss']:.4f} held out"
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per byte")
    axes.set_title(f"{document['model']}, {document['device']}")
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, required=True, help="UTF-8 text file, or a folder of .txt and .md files"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", choices=SHAPES, default="gpt2-124m")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained")
    arguments = parser.parse_args()
    if not arguments.text.exists():
        parser.exit(2, f"gpu_loss: --text {arguments.text} does not exist; give a file or folder of text\n")
    text = read_text(arguments.text)
    if len(text) < 20 * (arguments.sequence + 1):
        least = 20 * (arguments.sequence + 1)
        parser.exit(2, f"gpu_loss: --text {arguments.text} has {len(text)} bytes; give at least {least}\n")
    if arguments.dry_run:
        runs = f"{arguments.steps} steps each of {', '.join(RUNS.values())}"
        print(f"{arguments.model} on {arguments.device}, {len(text):,} bytes: {runs}")
        return 0
    is_cuda = arguments.device.startswith("cuda")
    if is_cuda and not torch.cuda.is_available():
        parser.exit(2, "gpu_loss: torch sees no CUDA device; choose --device cpu with a small --model\n")
    settings = {name: getattr(arguments, name) for name in ("model", "steps", "batch", "sequence", "lr")}
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if is_cuda else "CPU",
        "torch": torch.__version__,
        **settings,
        "runs": [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in RUNS:
        run = train(name, text, arguments)
        document["runs"].append(run)
        print(
            f"{run['name']}: held-out loss {run['held_out_loss']:.4f} after {run['seconds']:.0f} s",
            flush=True,
        )
        (arguments.out / "gpu-loss.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(document, arguments.out / "gpu-loss.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
