"""Moments as they are stored: codes and scales, or fp32 values. Also quantize and dequantize."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from . import _operators as ops
from ._rules import FORMATS, WEIGHT_DTYPES, MomentKind, Storage

GROUP = 32  # elements that share a scale (docs/formats.md)
_SCALES = {Storage.NATIVE: torch.bfloat16, Storage.PAPER: torch.float16}


def codes_dtype(kind: MomentKind) -> torch.dtype:
    """The dtype of the 8-bit codes of a moment."""
    return torch.uint8 if kind == MomentKind.SQUARED else torch.int8


@dataclass(eq=False)
class Moment:
    """One moment (of this rank's part) of a parameter.

    `codes` has the parameter's shape and strides: int8 or uint8 where quantized, else the values. `scales` is
    flat, one for each group, and empty where the moment is not quantized. A step writes both in place.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    layout: torch.Tensor
    kind: MomentKind
    storage: Storage
    # Of a moment that the first step fills: the step count at which it is not filled yet; -1: it is filled.
    unfilled_at: int = -1

    @classmethod
    def zeros(
        cls,
        like: torch.Tensor,
        layout: torch.Tensor,
        kind: MomentKind,
        storage: Storage,
        dtype: torch.dtype,
        groups: int,
        steps: int,
    ) -> "Moment":
        """A moment of zeros for a weight that has made `steps` steps. `dtype` is that of the codes."""
        codes = torch.zeros_like(like, dtype=dtype, requires_grad=False)
        scales = like.new_zeros(groups, dtype=_SCALES.get(storage, torch.bfloat16), requires_grad=False)
        return cls(codes, scales, layout, kind, storage, unfilled_at=steps)

    @classmethod
    def encode(
        cls,
        values: torch.Tensor,
        layout: torch.Tensor,
        kind: MomentKind,
        storage: Storage,
        weight_dtype: torch.dtype = torch.float32,
    ) -> "Moment":
        """Encodes fp32 values in the layout's memory order, rounding to nearest.

        Raises:
            ValueError: for values that the format does not hold.
        """
        if storage == Storage.FP32:
            return cls(values, values.new_empty(0, dtype=torch.bfloat16), layout, kind, storage)
        number = WEIGHT_DTYPES.index(weight_dtype)
        encoded = ops.encode_moment(values, layout, int(kind), int(storage), number)
        return cls(*encoded, layout, kind, storage)

    def materialize(self) -> torch.Tensor:
        """The values in fp32, in the parameter's shape; the stored tensor itself if it is fp32."""
        if not self.is_quantized():
            return self.codes.float()
        return ops.decode_moment(self.codes, self.scales, self.layout, int(self.kind), int(self.storage))

    def set_data(self, data: torch.Tensor) -> None:
        """Replaces the values, encoded to nearest."""
        values = torch.empty_like(self.codes, dtype=torch.float32).copy_(data)
        if self.is_quantized():
            encoded = Moment.encode(values, self.layout, self.kind, self.storage)
        else:
            encoded = Moment.encode(values, self.layout, self.kind, Storage.FP32)
        self.codes.copy_(encoded.codes)
        self.scales.copy_(encoded.scales)
        self.unfilled_at = -1

    def stored_as(self, like: torch.Tensor, layout: torch.Tensor, storage: Storage) -> "Moment":
        """The values in another storage, for a weight `like` of the same shape, in its memory order."""
        values = torch.empty_like(like, dtype=torch.float32, requires_grad=False).copy_(self.materialize())
        moment = Moment.encode(values, layout, self.kind, storage, like.dtype)
        moment.unfilled_at = self.unfilled_at
        return moment

    def to(self, device: torch.device) -> "Moment":
        """The moment on another device."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))

    def is_quantized(self) -> bool:
        """Whether 8-bit codes and scales are stored, and not the values."""
        return not self.codes.is_floating_point()

    @property
    def quantized(self) -> torch.Tensor:
        """The codes."""
        return self.codes

    @property
    def data(self) -> torch.Tensor:
        """The stored values, or the codes."""
        return self.codes

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape (of this rank's part)."""
        return tuple(self.codes.shape)

    @property
    def device(self) -> torch.device:
        """The device of the codes."""
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


# Scales in state dicts


class Layout(NamedTuple):
    """The fields of an operator's layout, and the shapes of the scales of a part and of the whole tensor."""

    numel: int
    rows: int
    row_length: int
    whole_numel: int
    whole_row_length: int
    row: int  # first row of the part
    column: int
    is_vector: int

    def has_scales_in_rows(self, storage: Storage) -> bool:
        """Whether each group lies within one row."""
        return storage == Storage.NATIVE or (self.whole_row_length % GROUP == 0 and not self.is_vector)

    def groups(self, storage: Storage) -> int:
        """Number of scales of the part."""
        return _groups_in(self.numel) if storage == Storage.PAPER else self.rows * _groups_in(self.row_length)

    def scales_of_part(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of the scales of a part of this shape: cutting rows of the whole cuts them too."""
        return _scales_shape(shape, self.rows, _groups_in(self.row_length))

    def scales_of_whole(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of the scales of the whole tensor."""
        rows = 1 if self.is_vector else self.whole_numel // max(1, self.whole_row_length)
        return _scales_shape(shape, rows, _groups_in(self.whole_row_length))

    def cut(self, scales: torch.Tensor) -> torch.Tensor:
        """The part's rows and columns of the whole tensor's scales; all of them if they have no rows."""
        per_row, first = _groups_in(self.whole_row_length), self.column // GROUP
        if scales.numel() % per_row != 0:
            return scales
        rows = scales.reshape(-1, per_row)[self.row : self.row + self.rows]
        return rows[:, first : first + _groups_in(self.row_length)]


def _groups_in(elements: int) -> int:
    return -(-elements // GROUP)


def _scales_shape(shape: torch.Size, rows: int, groups_per_row: int) -> tuple[int, ...]:
    """The shape of scales, with as many dimensions as the parameter."""
    extents = [1] * max(1, len(shape))
    long = [n for n, size in enumerate(shape) if size != 1] or [0]
    if len(long) > 1:
        extents[long[0]] = rows
    extents[long[min(1, len(long) - 1)]] = groups_per_row
    return tuple(extents)


# The groups of the format "paper" run over the part of a rank, so its scales alone have no place in the whole
# tensor. They are repeated for each element, which can be cut as the parameter is. That many elements are
# decoded at a time: each takes a group of its own, 5 bytes for each of its 32 places.
_CHUNK = 1 << 16


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def scales_by_element(scales: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The scale of each element, in the shape and the memory order of `like`, from one for each group."""
    by_element = torch.empty_like(like, dtype=scales.dtype, requires_grad=False)
    _in_memory_order(by_element).copy_(scales.repeat_interleave(GROUP)[: like.numel()])
    return by_element


def scales_by_group(by_element: torch.Tensor) -> torch.Tensor | None:
    """One scale for each group; None if a group has several, because it was saved with another sharding."""
    bits = _in_memory_order(by_element).view(torch.int16)
    missing = -bits.numel() % GROUP
    groups = torch.cat([bits, bits[-1:].expand(missing)]).view(-1, GROUP)
    if not torch.equal(groups, groups[:, :1].expand_as(groups)):
        return None
    return groups[:, 0].contiguous().view(by_element.dtype)


def decode_by_element(
    codes: torch.Tensor, by_element: torch.Tensor, kind: MomentKind, check: Callable[[Moment], object]
) -> torch.Tensor:
    """Decodes codes with one scale each to fp32 values, in their shape and memory order.

    `check` sees the codes and scales first, as moments in which every element has a group of its own.
    """
    values = torch.empty_like(codes, dtype=torch.float32)
    flat, scales, result = map(_in_memory_order, (codes, by_element, values))
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


# The public functions


def _choices(moment: str, format: str) -> tuple[MomentKind, Storage]:
    if moment not in ("first", "second"):
        raise ValueError(f'moment={moment!r} is unknown; use "first" or "second"')
    if format not in ("native", "paper"):
        raise ValueError(f'format={format!r} is unknown; use "native" or "paper"')
    return MomentKind.SIGNED if moment == "first" else MomentKind.SQUARED, FORMATS[format]


def _layout(tensor: torch.Tensor) -> torch.Tensor:
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return ops.layout(shape, strides, shape, strides, (0,) * len(shape))


def quantize(
    tensor: torch.Tensor,
    *,
    moment: Literal["first", "second"] = "first",
    format: Literal["native", "paper"] = "native",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes values to nearest, in groups of 32.

    Args:
        tensor: floating-point values; dense, in any memory order. A second moment is not negative.
        moment: the law: "first" signed, int8 codes; "second" of the root, uint8 codes.
        format: of the codes.

    Returns:
        Codes in the tensor's shape and memory order, one scale for each group (bfloat16, "paper": float16).

    Raises:
        ValueError: for values that the format does not hold.
    """
    kind, storage = _choices(moment, format)
    values = tensor.detach().float()
    return ops.encode_moment(values, _layout(values), int(kind), int(storage))


def dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    moment: Literal["first", "second"] = "first",
    format: Literal["native", "paper"] = "native",
) -> torch.Tensor:
    """Decodes what :func:`quantize` returned, to fp32.

    Raises:
        ValueError: for codes or scales of another dtype or size.
    """
    kind, storage = _choices(moment, format)
    return ops.decode_moment(codes, scales.reshape(-1), _layout(codes), int(kind), int(storage))
