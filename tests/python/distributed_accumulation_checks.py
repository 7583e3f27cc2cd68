"""Checks of gradients that are accumulated in fp32 under DistributedDataParallel;
distributed_checks.py lists them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

Tensor = torch.Tensor

# The first gradient and those after it. In bfloat16 256 + 1 is 256; in fp32 the sum is 260, which bfloat16
# can hold, three times it, too: what DistributedDataParallel sends stays exact.
CONTRIBUTIONS = (256, 1, 1, 1, 1)
# Which of these backward() the ranks bring together.
MODES = {
    "each": [True] * 5,
    "last": [False] * 4 + [True],
    "mixed": [True, False, True, True, False],
    "none": [False] * 5,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket views": {"gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
    "unused, bucket views": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    "static": {"static_graph": True},
    "static, bucket views": {"static_graph": True, "gradient_as_bucket_view": True},
}


class Layers(torch.nn.Module):
    """A layer that is always used, one that some batches use on some ranks, and one in a checkpoint."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.always, self.sometimes, self.inside = (torch.nn.Linear(8, 8, bias=False) for _ in range(3))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, sometimes: bool) -> Tensor:
        y = self.always(x) + (self.sometimes(x) if sometimes else 0)
        if self.checkpointed:
            return y + checkpoint(self.inside, x, use_reentrant=False)
        return y + self.inside(x)


def summed(wrapped: Any, mode: str, varies: bool, rank: int, size: int) -> list[Tensor | None]:
    """The gradients after the backward() of a mode; only rank 0 contributes, `size`
    times what the mean is to be."""
    dtype = wrapped.module.always.weight.dtype
    for n, (value, together) in enumerate(zip(CONTRIBUTIONS, MODES[mode], strict=True)):
        x = torch.full((1, 8), value * size if rank == 0 else 0).to(dtype).requires_grad_()
        with contextlib.nullcontext() if together else wrapped.no_sync():
            wrapped(x, not varies or (n + rank) % 3 != 1).sum().backward()
    return [p.grad for p in wrapped.parameters()]


def made_in_order(
    first: str, dtype: torch.dtype, checkpointed: bool, options: dict[str, Any]
) -> tuple[Any, Any]:
    """A wrapped model and its optimizer."""
    network = Layers(checkpointed).to(dtype)
    if first == "wrapper":
        wrapped = DistributedDataParallel(network, **options)
        return wrapped, flash.FlashAdamW(wrapped.parameters(), accumulate_fp32=True)
    network.requires_grad_(first != "frozen")
    optimizer = flash.FlashAdamW(network.parameters(), accumulate_fp32=True)
    network.requires_grad_(True)
    return DistributedDataParallel(network, **options), optimizer


ORDERS = ((torch.bfloat16, "optimizer"), (torch.bfloat16, "wrapper"), (torch.float16, "frozen"))


def accumulated_under_ddp(folder: Path, rank: int, size: int) -> None:
    """The sums of an fp32 model, whatever DistributedDataParallel does with the gradients in between."""
    for name, options in OPTIONS.items():
        if size > 2 and name != "unused, bucket views":
            continue  # two ranks show the same
        for mode in MODES:
            if "static" in name and mode != "each":
                continue  # torch cannot leave out the first backward() of a static graph
            checkpointed, varies = mode == "each", "unused" in name
            exact = summed(DistributedDataParallel(Layers(checkpointed), **options), mode, varies, rank, size)
            for dtype, first in ORDERS if mode == "mixed" else ORDERS[:1]:
                what = f"{name}, {mode}, {dtype}, {first} first"
                wrapped, optimizer = made_in_order(first, dtype, checkpointed, options)
                found = summed(wrapped, mode, varies, rank, size)
                for g, e in zip(found, exact, strict=True):
                    assert (g is None) == (e is None), what
                    if g is not None and e is not None:
                        assert g.dtype == torch.float32, what
                        # Where sums are sent that bfloat16 cannot hold they are rounded once.
                        error = 2.0**-8 if varies and mode in ("last", "mixed") else 0.0
                        torch.testing.assert_close(g, e, rtol=error, atol=0, msg=what)
                optimizer.step()
                optimizer.zero_grad()
                assert {int(state["step"]) for state in optimizer.state.values()} == {1}, what


def accumulated_among_others(folder: Path, rank: int, size: int) -> None:
    """Hooks of others, a backward() that fails, gradients changed in between: as an fp32 model."""
    if size > 2:
        return

    def halved(p: Tensor) -> None:
        assert p.grad is not None
        p.grad = p.grad / 2

    def doubled(p: Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(2)

    def trained(dtype: torch.dtype, case: str) -> Tensor | None:
        layer = torch.nn.Linear(8, 8, bias=False).to(dtype)
        optimizer = (
            flash.FlashAdamW(layer.parameters(), accumulate_fp32=True) if dtype != torch.float32 else None
        )
        if case == "hooks":
            layer.weight.register_post_accumulate_grad_hook(halved)
            layer.weight.register_post_accumulate_grad_hook(doubled)
        wrapped = DistributedDataParallel(layer)
        for n, value in enumerate((256, 1, 1, 1)):
            x = torch.full((1, 8), value * size if rank == 0 else 0).to(dtype).requires_grad_()
            with wrapped.no_sync() if case == "scaled" and n == 2 else contextlib.nullcontext():
                y = wrapped(x).sum()
                if case == "fails" and n == 1:
                    layer.weight.register_post_accumulate_grad_hook(fails_once())
                    with contextlib.suppress(ArithmeticError):
                        y.backward()
                    (optimizer or layer).zero_grad()
                    del y, wrapped
                    wrapped = DistributedDataParallel(layer)
                    continue
                y.backward()
            if case == "scaled" and n == 0:
                assert layer.weight.grad is not None
                layer.weight.grad.mul_(0.5)
            if case == "cleared" and n == 0:
                layer.zero_grad(set_to_none=False)
        return layer.weight.grad

    def fails_once() -> Any:
        left = [True]

        def fail(_: Tensor) -> None:
            if left.pop() if left else False:
                raise ArithmeticError

        return fail

    for case in ("hooks", "fails", "scaled", "cleared"):
        found, exact = trained(torch.bfloat16, case), trained(torch.float32, case)
        assert found is not None
        assert exact is not None
        assert found.dtype == torch.float32
        # A sum that was changed in between is sent, and rounded once.
        torch.testing.assert_close(found, exact, rtol=2.0**-8 if case == "scaled" else 0, atol=0, msg=case)


class Checkpoints(torch.nn.Module):
    """Three layers, of which some are in reentrant checkpoints: a backward() of
    their own inside the whole one."""

    PLACES = {"whole": [(0, 3)], "each": [(0, 1), (1, 2), (2, 3)], "first": [(0, 2)], "last": [(1, 3)]}  # noqa: RUF012

    def __init__(self, place: str) -> None:
        super().__init__()
        layers = [torch.nn.Linear(8, 8, bias=False) for _ in range(3)]
        for layer in layers:
            torch.nn.init.eye_(layer.weight)
        self.layers = torch.nn.Sequential(*layers)
        self.segments = self.PLACES[place]

    def forward(self, x: Tensor) -> Tensor:
        done = 0
        for begin, end in self.segments:
            x = checkpoint(self.layers[begin:end], self.layers[done:begin](x), use_reentrant=True)
            done = end
        return self.layers[done:](x)


def accumulated_in_reentrant_checkpoints(folder: Path, rank: int, size: int) -> None:
    """The ranks average when the outermost backward() ends, and the sums of an
    fp32 model are there after it."""
    if size > 2:
        return

    def summed_up(dtype: torch.dtype, place: str, options: dict[str, Any]) -> list[Tensor | None]:
        network = Checkpoints(place).to(dtype)
        wrapped = DistributedDataParallel(network, **options)
        optimizer = flash.FlashAdamW(network.parameters(), accumulate_fp32=dtype != torch.float32)
        for value in CONTRIBUTIONS:
            x = torch.full((1, 8), value * size if rank == 0 else 0).to(dtype).requires_grad_()
            wrapped(x).sum().backward()
        found = [p.grad for p in network.parameters()]
        optimizer.step()
        return found

    for name, options in OPTIONS.items():
        if "unused" in name:
            continue  # torch does not see into such checkpoints then
        for place in Checkpoints.PLACES:
            for g, e in zip(
                summed_up(torch.bfloat16, place, options),
                summed_up(torch.float32, place, options),
                strict=True,
            ):
                assert g is not None
                assert e is not None
                assert g.dtype == torch.float32, f"{name}, {place}"
                torch.testing.assert_close(g, e, rtol=0, atol=0, msg=f"{name}, {place}")
