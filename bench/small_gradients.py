"""How small a gradient may be beside the largest of its group of 32: each rule and format against fp32
moments.

    PYTHONPATH=build/release/python .venv/bin/python bench/small_gradients.py

Trains a quadratic in which one weight of each group of 32 has the curvature 1 and the others the ratio r. The
gradient is w - w* plus noise of its own size, times that curvature. Weights are fp32, so that only the
moments differ. The figure is how far the weights of ratio r end from those of fp32 moments, relative to the
distance that those have moved: 0 is the same, 1 is as if they had not moved.

With --drift there is no minimum: gradients are -0.5 plus noise of size 1, times the curvature. The second
figure is how far the weights have moved in the mean, relative to those of fp32 moments.
"""

from __future__ import annotations

import argparse
from typing import Any

import flashoptim_cpp as flash
import torch

RATIOS = (1.0, 1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 1e-7, 1e-8)
ROWS, GROUPS, GROUP = 128, 2, 32
# eps far below the smallest gradient, so that fp32 Adam trains all weights alike.
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD, momentum 0.9": (flash.FlashSGD, {"lr": 1e-2, "momentum": 0.9}),
    "Adam": (flash.FlashAdam, {"lr": 1e-2, "eps": 1e-16}),
    "AdamW": (flash.FlashAdamW, {"lr": 1e-2, "eps": 1e-16, "weight_decay": 1e-2}),
    "AdamW, betas 0.9, 0.95": (
        flash.FlashAdamW,
        {"lr": 1e-2, "eps": 1e-16, "weight_decay": 1e-2, "betas": (0.9, 0.95)},
    ),
    "Lion": (flash.FlashLion, {"lr": 1e-3, "weight_decay": 1e-2}),
}


def trained(rule: str, format: str, ratio: float, steps: int, drift: bool) -> torch.Tensor:
    """The weights of ratio r after `steps` steps from 0."""
    draw = torch.Generator().manual_seed(1)
    goal = torch.randn(ROWS, GROUPS * GROUP, generator=draw)
    curvature = torch.full((GROUPS, GROUP), ratio)
    curvature[:, 0] = 1.0
    curvature = curvature.view(-1)
    weight = torch.nn.Parameter(torch.zeros(ROWS, GROUPS * GROUP))
    make, options = RULES[rule]
    optimizer = make([weight], format=format, min_quantized_numel=0, **options)
    for _ in range(steps):
        noise = torch.randn(weight.shape, generator=draw)
        weight.grad = curvature * (noise - 0.5 if drift else weight.detach() - goal + noise)
        optimizer.step()
    return weight.detach().view(ROWS, GROUPS, GROUP)[:, :, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--drift", action="store_true", help="gradients that go on in one direction")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| rule | format | " + " | ".join(f"{ratio:g}" for ratio in RATIOS) + " |")
    print("|---|---|" + "---|" * len(RATIOS))
    for rule in RULES:
        exact = [trained(rule, "fp32", ratio, arguments.steps, arguments.drift) for ratio in RATIOS]
        for format in ("native", "paper"):
            cells = []
            for ratio, wanted in zip(RATIOS, exact, strict=True):
                away = trained(rule, format, ratio, arguments.steps, arguments.drift) - wanted
                mean = f"; {float(1 + away.mean() / wanted.mean()):.2g}" if arguments.drift else ""
                cells.append(f"{float(away.norm() / wanted.norm()):.2g}{mean}")
            print(f"| {rule} | {format} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
