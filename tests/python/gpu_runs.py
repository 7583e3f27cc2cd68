"""Short trainings whose bits must be the same on the CPU and on a GPU. No test lives here.

As a program it prints a line for each: its name and a digest of all weights and states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import flashoptim_cpp as flash
import torch
from support import ADAMW, RULES, SGD, SHAPES, Rule, Tensor, gradients, local, parameters, snapshot

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STORAGES: tuple[dict[str, Any], ...] = (
    {},
    {"master_weight_bits": 32},
    {"master_weight_bits": 16},
    {"format": "paper"},
    {"format": "paper", "master_weight_bits": 32},
    {"format": "fp32"},
    {"quantize": False},
)
STEPS = 5


def made(device: str, dtype: torch.dtype = torch.bfloat16) -> list[torch.nn.Parameter]:
    """Two quantized tensors and two that are not, and one that does not lie in row order."""
    shapes = (*SHAPES, (4, 48, 5, 6))
    tensors = [p.detach().to(device) for p in parameters(dtype, shapes)]
    tensors[-1] = tensors[-1].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def set_gradients(given: list[torch.nn.Parameter], step: int, scale: float = 1.0, bad: bool = False) -> None:
    """Gradients that depend on the step only. The last one lies in row order, unlike its weight."""
    for parameter, gradient in zip(given, gradients(given, step), strict=True):
        value = gradient * scale
        if bad:
            value.view(-1)[value.numel() // 2] = float("nan")
        parameter.grad = value


def plain(optimizer: Any, given: list[torch.nn.Parameter], _: str) -> None:
    """Steps; the second has bad elements, which are left out."""
    for step in range(STEPS):
        set_gradients(given, step, bad=step == 1)
        optimizer.step()


def scaled(optimizer: Any, given: list[torch.nn.Parameter], device: str) -> None:
    """Steps as GradScaler asks for them; the first is left out."""
    optimizer.grad_scale = torch.tensor(1024.0, device=device)
    for step in range(STEPS):
        set_gradients(given, step, 1024.0, bad=step == 0)
        optimizer.found_inf = torch.tensor([1.0 if step == 0 else 0.0], device=device)
        optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


def clipped(optimizer: Any, given: list[torch.nn.Parameter], device: str) -> None:
    """Steps with gradients that are clipped by their norm."""
    for step in range(STEPS):
        set_gradients(given, step)
        norm = optimizer.clip_grad_norm_(0.03)
        assert norm.device.type == torch.device(device).type and float(norm) > 0.03
        optimizer.step()


def scheduled(optimizer: Any, given: list[torch.nn.Parameter], device: str) -> None:
    """Steps with a learning rate on the device, which is written in place."""
    optimizer.param_groups[0]["lr"] = lr = torch.tensor(1e-3, device=device)
    for step in range(STEPS):
        set_gradients(given, step)
        lr.fill_(1e-3 / (step + 1))
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-3


def released(optimizer: Any, given: list[torch.nn.Parameter], _: str) -> None:
    """Steps taken inside backward()."""
    holder = torch.nn.Module()
    for n, parameter in enumerate(given):
        holder.register_parameter(f"p{n}", parameter)
    handle = flash.enable_gradient_release(holder, optimizer)
    for step in range(STEPS):
        weights = gradients(given, step)
        loss = sum((p * w).float().sum() for p, w in zip(given, weights, strict=True))
        loss.backward()  # type: ignore[union-attr]
        assert all(p.grad is None for p in given)
    handle.remove()


Course = Callable[[Any, list[torch.nn.Parameter], str], None]
COURSES: tuple[Course, ...] = (scaled, clipped, scheduled, released)


def digest(optimizer: Any) -> str:
    """Of everything that a run has made."""
    total = hashlib.sha256()
    for name, value in sorted(snapshot(optimizer).items()):
        total.update(name.encode())
        if isinstance(value, Tensor):
            total.update(
                local(value).detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    counts = sorted(optimizer.bad_elements().items())
    return f"{total.hexdigest()[:16]} {sum(count for _, count in counts)}"


def one(rule: Rule, course: Course, device: str, dtype: torch.dtype, **options: Any) -> str:
    given = made(device, dtype)
    if dtype == torch.float32:
        options.pop("master_weight_bits", None)
    optimizer = rule(given, **options)
    course(optimizer, given, device)
    return digest(optimizer)


def runs(device: str) -> Iterator[tuple[str, str]]:
    """The name and the digest of each run on a device."""
    for rule in RULES:
        for storage in STORAGES:
            if storage.get("format") == "paper" and not rule.has_paper:
                continue
            for dtype in DTYPES:
                yield f"{rule.name} {storage} {dtype}", one(rule, plain, device, dtype, **storage)
    for rule in (SGD, ADAMW):
        for course in COURSES:
            name = f"{rule.name} {course.__name__}"
            yield name, one(rule, course, device, torch.bfloat16)
        for course in (plain, scaled):
            name = f"{rule.name} {course.__name__}, skip_step"
            yield name, one(rule, course, device, torch.bfloat16, nonfinite="skip_step")


if __name__ == "__main__":
    for line in runs("cpu"):
        print(*line, sep=": ", flush=True)
