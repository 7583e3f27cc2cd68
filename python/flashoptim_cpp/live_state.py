"""The state of a parameter as `optimizer.state` holds it. The one file that knows how torch takes a flattened state dict apart."""

import sys
from collections.abc import Iterator
from typing import Any

from .corrections import CORRECTION, FORMER
from .moment import Moment

# What follows a moment's name where a state dict holds its codes and scales, and the entry with the weight's strides.
QUANTIZED, SCALES, STRIDES = "::quantized", "::scales", "layout_strides"

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
        names = dict.fromkeys(self.keys())
        for name, moment in self.items():
            if isinstance(moment, Moment):
                names |= dict.fromkeys((name + QUANTIZED, name + SCALES))
                if not moment.codes.is_contiguous():
                    names[STRIDES] = None
        if "step" in names:
            names[CORRECTION] = None
        return names


def _is_empty(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, dict) and not value


def without_empty(raw: dict[str, Any]) -> dict[str, Any]:
    """A state of a state dict without what a flattened one did not have: torch puts an empty dict there.

    A state in which nothing else is left was not there at all.
    """
    empty = {key for key, value in raw.items() if _is_empty(value)}
    if len(empty) == len(raw):
        return {}
    names = [key for key in raw if isinstance(key, str)]
    moments = {name.removesuffix(QUANTIZED) for name in names if name.endswith(QUANTIZED)}
    of_moments = {moment + suffix for moment in moments for suffix in ("", QUANTIZED, SCALES)}
    absent = empty & {CORRECTION, FORMER}
    if empty & of_moments:
        absent |= empty & (of_moments | {STRIDES})
    return {key: value for key, value in raw.items() if key not in absent}
