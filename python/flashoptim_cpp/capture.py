"""CUDA graphs: whether a step is being captured, and the refusal of what a graph would repeat or cannot hold."""

from collections.abc import Iterable
from typing import NoReturn

import torch


def is_capturing(device: torch.device) -> bool:
    """Whether what is enqueued there now becomes part of a CUDA graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def is_capturing_now() -> bool:
    """Whether this thread captures on the current device."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def is_capturing_any(devices: Iterable[torch.device]) -> bool:
    """Whether it does on one of these."""
    return any(map(is_capturing, set(devices)))


def refuse(what: str, remedy: str) -> NoReturn:
    """Raises RuntimeError for what must not happen in a capture; nothing has changed."""
    raise RuntimeError(f"{what}, in the capture of a CUDA graph: {remedy}")
