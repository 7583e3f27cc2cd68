"""The state of a parameter as `optimizer.state` holds it. The one file that knows how torch takes a flattened state dict apart."""

import sys
from collections.abc import Iterator
from typing import Any

from .corrections import CORRECTION, FORMER
from .options import MOMENTS

# What follows a moment's name where a state dict holds its codes and scales, and the entry with the weight's strides.
QUANTIZED, SCALES, STRIDES = "::quantized", "::scales", "layout_strides"

_OF_MOMENTS = tuple(name + suffix for name in MOMENTS for suffix in ("", QUANTIZED, SCALES))
_TAKES_APART = "torch.distributed.checkpoint.state_dict"


class LiveState(dict[str, Any]):
    """Moments, step count and correction of a parameter, and what others keep there.

    A state dict has other names: it holds codes and scales apart. torch.distributed.checkpoint looks for nothing in a flattened
    state dict but the names that it finds when it iterates over this. So it finds every name that a state dict may have.
    """

    def __iter__(self) -> Iterator[str]:
        asks_for_names = sys._getframe(1).f_globals.get("__name__") == _TAKES_APART
        return iter(self._saved_names() if asks_for_names else self.keys())

    def _saved_names(self) -> dict[str, None]:
        # Of every rule and storage: a state may be loaded where there is none yet, or one in another storage.
        return dict.fromkeys((*self.keys(), "step", CORRECTION, STRIDES, *_OF_MOMENTS))


def _is_empty(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, dict) and not value


def without_empty(raw: dict[str, Any]) -> dict[str, Any]:
    """A state of a state dict without what a flattened one did not have: torch puts an empty dict there.

    A state in which nothing else is left was not there at all.
    """
    empty = {key for key, value in raw.items() if _is_empty(value)}
    if len(empty) == len(raw):
        return {}
    absent = empty & {CORRECTION, FORMER}
    if sum(name in raw for name in _OF_MOMENTS) == len(_OF_MOMENTS):  # torch has asked for all of them
        absent |= empty & {*_OF_MOMENTS, STRIDES}
    return {key: value for key, value in raw.items() if key not in absent}
