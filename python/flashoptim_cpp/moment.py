"""A moment of a parameter as it is stored: codes and scales, or fp32 values."""

from dataclasses import dataclass, replace

import torch

from . import _operators as ops
from .options import Storage

FIRST, SECOND = 0, 1

_CODES = {FIRST: torch.int8, SECOND: torch.uint8}
_SCALES = {Storage.NATIVE: torch.bfloat16, Storage.PAPER: torch.float16}


@dataclass(eq=False)
class Moment:
    """One moment (of this rank's part) of a parameter.

    `codes` has the parameter's shape and strides: int8 or uint8 where quantized, else fp32 values. `scales` is flat, one
    for each group, and empty where the moment is not quantized. A step writes both in place.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    layout: torch.Tensor
    kind: int
    storage: Storage
    # SGD: the step count at which no gradient has reached the momentum buffer yet; -1: one has.
    unfilled_at: int = -1

    @classmethod
    def zeros(
        cls, like: torch.Tensor, layout: torch.Tensor, kind: int, storage: Storage, groups: int, steps: int
    ) -> "Moment":
        """A moment of zeros for a weight that has done so many steps."""
        dtype = torch.float32 if storage == Storage.FP32 else _CODES[kind]
        codes = torch.zeros_like(like, dtype=dtype, requires_grad=False)
        scales = like.new_zeros(groups, dtype=_SCALES.get(storage, torch.bfloat16), requires_grad=False)
        return cls(codes, scales, layout, kind, storage, unfilled_at=steps)

    @classmethod
    def encode(cls, values: torch.Tensor, layout: torch.Tensor, kind: int, storage: Storage) -> "Moment":
        """Encodes fp32 values, which lie in the layout's memory order, to nearest.

        Raises:
            ValueError: for values that the format does not hold.
        """
        if storage == Storage.FP32:
            return cls(values, values.new_empty(0, dtype=torch.bfloat16), layout, kind, storage)
        codes, scales = ops.encode_moment(values, layout, kind, int(storage))
        return cls(codes, scales, layout, kind, storage)

    def materialize(self) -> torch.Tensor:
        """The values in fp32, in the parameter's shape; the stored tensor itself where it is not quantized."""
        if not self.is_quantized():
            return self.codes
        return ops.decode_moment(self.codes, self.scales, self.layout, self.kind, int(self.storage))

    def set_data(self, data: torch.Tensor) -> None:
        """Stores other values, encoded to nearest."""
        values = torch.empty_like(self.codes, dtype=torch.float32).copy_(data)
        encoded = Moment.encode(values, self.layout, self.kind, self.storage)
        self.codes.copy_(encoded.codes)
        self.scales.copy_(encoded.scales)
        self.unfilled_at = -1

    def stored_as(self, like: torch.Tensor, layout: torch.Tensor, storage: Storage) -> "Moment":
        """The same values in another storage, or in the memory order of another tensor of the same shape."""
        values = torch.empty_like(like, dtype=torch.float32, requires_grad=False).copy_(self.materialize())
        moment = Moment.encode(values, layout, self.kind, storage)
        moment.unfilled_at = self.unfilled_at
        return moment

    def to(self, device: torch.device) -> "Moment":
        """The same on another device."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))

    def is_quantized(self) -> bool:
        """Whether codes and scales are stored, not fp32 values."""
        return self.storage != Storage.FP32

    @property
    def quantized(self) -> torch.Tensor:
        """The codes."""
        return self.codes

    @property
    def data(self) -> torch.Tensor:
        """The stored fp32 values, or the codes."""
        return self.codes

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape (of this rank's part)."""
        return tuple(self.codes.shape)

    @property
    def device(self) -> torch.device:
        """Where it is stored."""
        return self.codes.device

    @property
    def is_cuda(self) -> bool:
        """Whether it is stored on a CUDA device."""
        return self.codes.is_cuda

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def numel(self) -> int:
        """Number of values."""
        return self.codes.numel()

    def __repr__(self) -> str:
        return f"Moment(shape={self.shape}, storage={self.storage.name.lower()})"


def scales_shape(shape: torch.Size, rows: int, groups_per_row: int) -> tuple[int, ...]:
    """Scales in as many dimensions as the parameter has, so that cutting its rows cuts them too."""
    extents = [1] * max(1, len(shape))
    long = [n for n, size in enumerate(shape) if size != 1] or [0]
    if len(long) > 1:
        extents[long[0]] = rows
    extents[long[min(1, len(long) - 1)]] = groups_per_row
    return tuple(extents)
