"""Fake tensors (torch's FakeTensorMode): shapes without memory, by which tools estimate what a training takes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor, or the local part of a DTensor, has no memory but a device. Costs no import where none has."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    return fakes is not None and fakes.is_fake(tensor)


def is_mode_on() -> bool:
    """Whether new tensors are fake here."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


@contextmanager
def real_values() -> Iterator[None]:
    """Inside, new tensors have values also under FakeTensorMode: those that say how a fake one would lie in memory."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    if fakes is None:
        yield
    else:
        with fakes.unset_fake_temporarily():
            yield
