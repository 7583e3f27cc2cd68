"""What happens inside backward(): gradients of 16-bit parameters that are added up in fp32, also under
DistributedDataParallel, and calls of backward() inside one another, as reentrant checkpoints make them.

DistributedDataParallel takes gradients of the parameter's dtype only. So with several processes a gradient is
fp32 between two backward() calls. During backward() it has the parameter's dtype and holds only what is not
averaged yet. The part that the ranks have averaged before is set aside and added in fp32 at the end.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle, unserializable_hook

from .sharding import is_sharded

# Calls of backward() inside one another

# Every Python call of the autograd engine has a frame of this function on its thread's stack.
_ENGINE: CodeType | None = getattr(
    getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None
)
# The oldest Python frame of an engine thread. The engine has a thread for each GPU.
_NODE: CodeType = torch.autograd.function.BackwardCFunction.apply.__code__
_KEY = "_flashoptim_stepped"


class _Stepped:
    """The parameters that were stepped in one outermost backward(). It lives as long as that call."""

    def __init__(self) -> None:
        self.ids: set[int] = set()


# By autograd's task number. The outermost call and each call inside it have a number of their own.
_by_task: weakref.WeakValueDictionary[int, _Stepped] = weakref.WeakValueDictionary()


class _AtEnd:
    """Calls a function when its last reference is dropped, at the end of the outermost backward()."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def __del__(self) -> None:
        self._function()


def _calls_on(frame: FrameType | None) -> tuple[list[FrameType], bool]:
    """The engine calls on a stack, newest first, and whether the thread belongs to the engine."""
    calls, oldest = [], None
    while frame is not None:
        if frame.f_code is _ENGINE:
            calls.append(frame)
        oldest, frame = frame, frame.f_back
    return calls, oldest is not None and oldest.f_code is _NODE


def _outermost(calls: list[FrameType], is_engines: bool) -> dict[str, Any] | None:
    """The keyword dict of the outermost call; None if that call cannot be determined."""
    if is_engines or not calls:  # the outermost call is waiting in another thread
        stacks = [_calls_on(frame) for frame in sys._current_frames().values()]
        others = [found[-1] for found, engines in stacks if found and not engines]
        if len(others) != 1:
            return None
        calls = others
    keywords = calls[-1].f_locals.get("kwargs")
    return keywords if isinstance(keywords, dict) else None


def is_inside() -> bool:
    """Whether this thread is in a backward() that was called inside another backward()."""
    calls, is_engines = _calls_on(sys._getframe(1))
    return len(calls) > 1 or (is_engines and bool(calls))


def call_at_end(function: Callable[[], None]) -> bool:
    """Registers a function to call after the outermost backward(). Returns False if that call is not known.

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
        # Torch has already read the keywords, so only the frame of the call refers to this dict.
        stepped = _by_task[task] = keywords.setdefault(_KEY, _Stepped())
    return stepped


def is_second_step(parameter: torch.Tensor) -> bool:
    """Whether the parameter was already stepped in the current outermost backward(). Marks it as stepped.

    A backward() delivers the whole gradient of a parameter at once. Calls of backward() inside it deliver
    parts.
    """
    stepped = _stepped_so_far()
    if stepped is None:
        return False
    if id(parameter) in stepped.ids:
        return True
    stepped.ids.add(id(parameter))
    return False


# Sums in fp32

# An attribute of a sum: its version counter when it was stored, and the part that all ranks have averaged
# (None: all of it).
_MARK = "_flashoptim_averaged"
# DistributedDataParallel rebuilds its buckets, and so copies gradients, in the second or third forward().
_UNTIL_REBUILT = 3


def _widen(tensor: torch.Tensor) -> None:
    if tensor.grad is not None and tensor.grad.dtype != torch.float32:
        tensor.grad = tensor.grad.float()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Sum:
    """The fp32 sum of one parameter's gradients, and its parts while a backward() runs."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.handles: list[RemovableHandle] = []
        self.before: torch.Tensor | None = None
        self.averaged: torch.Tensor | None = None
        self.own: torch.Tensor | None = None  # the part of this rank
        self._given: tuple[torch.Tensor | None, int] = (None, 0)
        self._is_new = False
        self._average: torch.Tensor | None = None  # the latest sum, until DDP has rebuilt its buckets
        self._averages = 0

    def be_last(self) -> None:
        """Moves this hook behind all others, so that they have already changed the new gradient."""
        hooks: Any = self.tensor._post_accumulate_grad_hooks
        last = self.handles[-1].id
        if next(reversed(hooks)) != last:
            hooks.move_to_end(last)

    def put_aside(self, splits: bool) -> None:
        """Sets the gradient, in the parameter's dtype, to the part of the sum that is not averaged yet."""
        grad, average, self._average = self.tensor.grad, self._average, None
        if average is not None and grad is not None and grad is not average:
            is_moved = grad.dtype != average.dtype and torch.equal(grad, average.to(grad.dtype))
            grad = average if is_moved else grad
        self.before, self.averaged, self.own = grad, None, None
        self._is_new = False
        if grad is not None:
            version, averaged = getattr(grad, _MARK, (-1, None))
            if (
                not splits or version != grad._version
            ):  # others have written into it, perhaps not on all ranks
                self.own = grad.float()
            elif isinstance(averaged, torch.Tensor):
                self.averaged, self.own = averaged, grad - averaged
            else:
                self.averaged = grad
        self._give(None if self.own is None else self.own.to(self.tensor.dtype))

    def remove_stand_in(self) -> None:
        """Before autograd adds a new gradient: removes the stand-in, so that autograd does not add to it."""
        self.tensor.grad = None

    def take(self) -> None:
        """After autograd has added a gradient: adds it to this rank's sum in fp32."""
        new = self.tensor.grad
        if new is None:  # another hook has consumed the gradient
            self.before = self.averaged = self.own = None
            self._give(None)
            return
        self._is_new = True
        if self.own is None:
            self.own = new.to(torch.float32, copy=True)
            self._give(new)
        else:
            self.own = self.own + new
            self._give(self.own.to(self.tensor.dtype))

    def _give(self, grad: torch.Tensor | None) -> None:
        self.tensor.grad = grad
        self._given = grad, 0 if grad is None else grad._version

    def end(self) -> None:
        """Sets the gradient to the whole sum."""
        grad, (given, version) = self.tensor.grad, self._given
        before, averaged, own = self.before, self.averaged, self.own
        self.before = self.averaged = self.own = None
        self._given = None, 0
        if grad is None and given is not None:
            return  # the gradient was cleared
        is_averaged = grad is not None and (grad is not given or grad._version != version)
        if is_averaged:
            assert grad is not None
            own = grad.to(torch.float32, copy=True)
        if own is None or not (is_averaged or self._is_new):
            self.tensor.grad = before
            return
        total = own if averaged is None else own + averaged
        if is_averaged or averaged is not None:
            setattr(total, _MARK, (total._version, None if is_averaged else averaged))
        self.tensor.grad = total
        if is_averaged and self._averages < _UNTIL_REBUILT:
            self._average, self._averages = total, self._averages + 1


class Fp32Sums:
    """The parameters of an optimizer whose gradients are accumulated in fp32."""

    def __init__(self) -> None:
        self._sums: dict[int, _Sum] = {}  # by id of the parameter
        self._is_open = False
        self._openings = 0  # counts openings, to recognise an outdated end
        self._tasks: set[int] = set()  # autograd's task numbers since it was opened
        self._lock = threading.RLock()  # autograd has a thread for each GPU

    def follow(self, wanted: Iterable[torch.Tensor]) -> None:
        """Makes the gradients of exactly these parameters fp32 from now on."""
        if self._is_open and torch._C._current_graph_task_id() == -1:  # a backward() has failed
            self._end()
        tensors = list(wanted)
        numbers = set(map(id, tensors))
        for number in self._sums.keys() - numbers:
            for handle in self._sums.pop(number).handles:
                handle.remove()
        if len(self._sums) < len(numbers):
            self.add(tensors)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Makes the gradients of these parameters fp32 from now on; of frozen ones as soon as they are
        trained.
        """
        for tensor in tensors:
            if id(tensor) not in self._sums and tensor.dtype != torch.float32 and tensor.is_leaf:
                self._sums[id(tensor)] = self._attach(tensor)

    def _attach(self, tensor: torch.Tensor) -> _Sum:
        own = _Sum(tensor)
        gradient, tensor.grad = tensor.grad, None
        tensor.grad_dtype = None  # any dtype is allowed
        tensor.grad = None if gradient is None else gradient.float()
        requires_grad = tensor.requires_grad
        tensor.requires_grad_(True)  # a frozen parameter accepts no hooks
        before, after = self._hooks(id(tensor))
        if is_sharded(tensor):
            # FSDP assigns gradients of the parameter's dtype. They are widened before the next one is added.
            own.handles.append(tensor.register_post_accumulate_grad_hook(after))
        else:
            own.handles.append(tensor.register_hook(before))
            own.handles.append(tensor.register_post_accumulate_grad_hook(after))
        tensor.requires_grad_(requires_grad)
        return own

    def _hooks(self, number: int) -> tuple[Callable[[torch.Tensor], None], Callable[[torch.Tensor], None]]:
        # A weak reference, because the garbage collector cannot see cycles through hooks.
        to_sums = weakref.ref(self)

        @unserializable_hook
        def before(_: torch.Tensor) -> None:
            sums = to_sums()
            if sums is None:
                return
            if not _is_distributed():
                _widen(sums._sums[number].tensor)
                return
            with sums._lock:
                sums._open()
                sums._sums[number].remove_stand_in()

        def after(tensor: torch.Tensor) -> None:
            sums = to_sums()
            if sums is None:  # the optimizer is gone, and others may train the parameter
                return
            if is_sharded(tensor) or not sums._is_open:
                _widen(tensor)
            else:
                with sums._lock:
                    sums._sums[number].take()

        return before, after

    def _open(self) -> None:
        """Once in each call of autograd: gives all gradients the dtype that DDP expects."""
        task = torch._C._current_graph_task_id()
        if task in self._tasks:
            return
        self._tasks.add(task)
        inside = is_inside()
        if not self._is_open:
            self._is_open = True
            # The ranks may average after an inner backward(). The sums are complete when the outermost one
            # ends.
            ends_outside = inside and self._end_outside()
            for own in self._sums.values():
                own.be_last()
                own.put_aside(splits=ends_outside or not inside)
            if ends_outside:
                return
        elif inside:
            return
        if task != -1:
            torch.autograd.Variable._execution_engine.queue_callback(self._almost_end)

    def _end_outside(self) -> bool:
        self._openings += 1
        opening, to_sums = self._openings, weakref.ref(self)

        def end() -> None:
            sums = to_sums()
            if sums is not None and sums._openings == opening:
                sums._end()

        return call_at_end(end)

    def _almost_end(self) -> None:
        """Queues _end() behind the callbacks of DistributedDataParallel."""
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._openings += 1
                self._tasks.clear()
                for own in self._sums.values():
                    own.end()
