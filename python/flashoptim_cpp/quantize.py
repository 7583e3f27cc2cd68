"""The moments' formats as functions on tensors."""

from typing import Literal

import torch

from . import _operators as ops
from .moment import FIRST, SECOND
from .options import FORMATS, Storage

_MOMENTS = {"first": FIRST, "second": SECOND}


def _choices(moment: str, format: str) -> tuple[int, Storage]:
    if moment not in _MOMENTS:
        raise ValueError(f'moment={moment!r} is unknown; use "first" or "second"')
    if format not in ("native", "paper"):
        raise ValueError(f'format={format!r} is unknown; use "native" or "paper"')
    return _MOMENTS[moment], FORMATS[format]


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
        Codes in the tensor's shape and memory order, and one scale for each group (bfloat16, in "paper" float16).

    Raises:
        ValueError: for values that the format does not hold.
    """
    kind, storage = _choices(moment, format)
    values = tensor.detach().float()
    return ops.encode_moment(values, _layout(values), kind, int(storage))


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
    return ops.decode_moment(codes, scales.reshape(-1), _layout(codes), kind, int(storage))
