"""Corrections of 16-bit weights: how one is read, and how it is brought into the storage that its weight has now.

A correction stays whatever anybody writes to the weight. A stale one moves the full-precision weight by at most half a unit
in the last place of the stored weight.
"""

from typing import Any, NamedTuple

import torch

from . import _operators as ops
from .options import WEIGHT_DTYPES

# A correction of so many bits together with its weight, and its dtype.
CORRECTION_DTYPES = {24: torch.int8, 32: torch.int16}
# Where a state holds the correction of its weight, and one that belongs to the weight in the dtype that it had before.
CORRECTION, FORMER = "error_bits", "error_bits::former"


def correction_in(state: dict[str, Any]) -> torch.Tensor | None:
    """The correction that a state holds, of the weight as it is or as it was."""
    return state.get(CORRECTION, state.get(FORMER))


class WeightStorage(NamedTuple):
    """How a weight and its correction are read together."""

    weight_dtype: int  # an index of WEIGHT_DTYPES
    bits: int  # 0: there is no correction, also for fp32 weights
    paper: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight."""
        return WEIGHT_DTYPES[self.weight_dtype]


def ordered(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The same values, on the device and in the memory order of `like`."""
    if values.stride() == like.stride() and values.device == like.device:
        return values
    return torch.empty_like(like, dtype=values.dtype, requires_grad=False).copy_(values)


def join(weight: torch.Tensor, correction: torch.Tensor | None, storage: WeightStorage) -> torch.Tensor:
    """Full-precision weights, fp32, in the memory order of `weight`.

    A weight may have been cast since its correction was made: elements that the former dtype holds are joined in that dtype.
    Other elements were written since then in a higher precision and are whole.
    """
    weight = weight.detach()
    if correction is None or storage.bits not in CORRECTION_DTYPES:
        return weight.to(torch.float32, copy=True)
    narrow = weight.to(storage.dtype)
    joined = ops.join_weights(narrow, ordered(correction, narrow), storage.bits, bool(storage.paper))
    if weight.dtype == storage.dtype:
        return joined
    return torch.where(narrow.to(weight.dtype) == weight, joined, weight.float())


def split_over(weight: torch.Tensor, masters: torch.Tensor, storage: WeightStorage) -> torch.Tensor:
    """The correction that brings a weight, which stays as it is, nearest to full-precision ones."""
    narrow = weight.detach().to(storage.dtype)
    return ops.correction_of(masters, narrow, storage.bits, bool(storage.paper))
