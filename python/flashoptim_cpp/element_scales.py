"""Scales of the format "paper" repeated for each element, which can be cut as the parameter is: the paper's groups run over
the part of a rank, so its scales alone have no place in the whole tensor.
"""

from collections.abc import Callable

import torch

from . import _operators as ops
from .moment import Moment
from .options import Storage

GROUP = 32  # elements that share a scale (docs/formats.md)
# Elements that are decoded at a time: each takes a group of its own, 5 bytes for each of its 32 places.
_CHUNK = 1 << 16


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor as they lie."""
    return tensor.as_strided((tensor.numel(),), (1,))


def repeated(scales: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The scale of each element, in the shape and the memory order of `like`, from one for each group."""
    by_element = torch.empty_like(like, dtype=scales.dtype, requires_grad=False)
    in_memory_order(by_element).copy_(scales.repeat_interleave(GROUP)[: like.numel()])
    return by_element


def of_groups(by_element: torch.Tensor) -> torch.Tensor | None:
    """One scale for each group again; None where a group has several: it was cut otherwise when it was saved."""
    bits = in_memory_order(by_element).view(torch.int16)
    missing = -bits.numel() % GROUP
    groups = torch.cat([bits, bits[-1:].expand(missing)]).view(-1, GROUP)
    if not torch.equal(groups, groups[:, :1].expand_as(groups)):
        return None
    return groups[:, 0].contiguous().view(by_element.dtype)


def decode(
    codes: torch.Tensor, by_element: torch.Tensor, kind: int, check: Callable[[Moment], None]
) -> torch.Tensor:
    """The fp32 values of codes that have a scale each, in their shape and memory order.

    `check` sees the codes and scales first, as moments in which every element has a group of its own.
    """
    values = torch.empty_like(codes, dtype=torch.float32)
    flat, scales, result = map(in_memory_order, (codes, by_element, values))
    for start in range(0, codes.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        alone = flat.new_zeros(flat[part].numel(), GROUP)
        alone[:, 0] = flat[part]
        shape = (alone.numel(),)
        layout = ops.layout(shape, (1,), shape, (1,), (0,))
        moment = Moment(alone.view(-1), scales[part].clone(), layout, kind, Storage.PAPER)
        check(moment)
        result[part] = moment.materialize().view(-1, GROUP)[:, 0]
    return values
