"""Calls of backward() inside one another, as reentrant checkpoints make them: what was stepped in the outermost one, and its
end.
"""

import sys
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch

# Every call of the engine from Python has a frame of this function on its thread's stack.
_ENGINE: CodeType | None = getattr(
    getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None
)
# The oldest frame of a thread of the engine: it has one for each GPU.
_NODE: CodeType = torch.autograd.function.BackwardCFunction.apply.__code__
_KEY = "_flashoptim_stepped"


class _Stepped:
    """Parameters that were stepped in one outermost call. It lives as long as the call."""

    def __init__(self) -> None:
        self.ids: set[int] = set()


# By the number of autograd's task: one for the outermost call, and one for each that is inside.
_by_task: weakref.WeakValueDictionary[int, _Stepped] = weakref.WeakValueDictionary()


class _AtEnd:
    """Calls a function when the outermost call is over, which drops this."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def __del__(self) -> None:
        self._function()


def _calls_on(frame: FrameType | None) -> tuple[list[FrameType], bool]:
    """The calls of the engine on a stack, the newest first, and whether the thread is one of the engine's own."""
    calls, oldest = [], None
    while frame is not None:
        if frame.f_code is _ENGINE:
            calls.append(frame)
        oldest, frame = frame, frame.f_back
    return calls, oldest is not None and oldest.f_code is _NODE


def _outermost(calls: list[FrameType], is_engines: bool) -> dict[str, Any] | None:
    """The keywords of the outermost call, its own dict; None where it is not known which one it is."""
    if is_engines or not calls:  # it waits in another thread
        stacks = [_calls_on(frame) for frame in sys._current_frames().values()]
        others = [found[-1] for found, engines in stacks if found and not engines]
        if len(others) != 1:
            return None
        calls = others
    keywords = calls[-1].f_locals.get("kwargs")
    return keywords if isinstance(keywords, dict) else None


def is_inside() -> bool:
    """Whether this thread is in a backward() that another one has called."""
    calls, is_engines = _calls_on(sys._getframe(1))
    return len(calls) > 1 or (is_engines and bool(calls))


def call_at_end(function: Callable[[], None]) -> bool:
    """Has a function called when the outermost backward() is over; False where it is not known which one that is.

    Autograd's own callbacks are called at the end of the innermost one.
    """
    keywords = _outermost(*_calls_on(sys._getframe(1)))
    if keywords is None:
        return False
    end = _AtEnd(function)
    keywords[f"{_KEY}_{id(end)}"] = end
    return True


def _stepped_so_far() -> _Stepped | None:
    task = torch._C._current_graph_task_id()
    stepped = _by_task.get(task)
    if stepped is None:
        keywords = _outermost(*_calls_on(sys._getframe(1)))
        if keywords is None:
            return None
        # Torch has taken the call's keywords over before; nothing else than the frame refers to this dict.
        stepped = _by_task[task] = keywords.setdefault(_KEY, _Stepped())
    return stepped


def is_second_step(parameter: torch.Tensor) -> bool:
    """Whether the parameter was stepped before in the backward() that this thread is in; from now on it was.

    A backward() as such brings each parameter its whole gradient at once. Those that it calls inside bring pieces.
    """
    stepped = _stepped_so_far()
    if stepped is None:
        return False
    if id(parameter) in stepped.ids:
        return True
    stepped.ids.add(id(parameter))
    return False
