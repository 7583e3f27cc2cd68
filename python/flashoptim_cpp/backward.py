"""What happens inside backward(): gradients of 16-bit parameters that are added up in fp32, also under
DistributedDataParallel, and calls of backward() inside one another, as reentrant checkpoints make them.

DistributedDataParallel takes gradients of the parameter's dtype only. So where there are several processes a
gradient is fp32 between two backward() and the parameter's own dtype inside: what is new, and what is not
averaged yet. What the ranks have averaged before is put aside and added in fp32 at the end.
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

# Every call of the engine from Python has a frame of this function on its thread's stack.
_ENGINE: CodeType | None = getattr(
    getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None
)
# The oldest frame of a thread of the engine: it has one for each GPU.
_NODE: CodeType = torch.autograd.function.BackwardCFunction.apply.__code__
_KEY = "_flashoptim_stepped"


class _Stepped:
    """Parameters that were stepped in one outermost call; it lives as long as the call."""

    def __init__(self) -> None:
        self.ids: set[int] = set()


# By the number of autograd's task: one for the outermost call, and one for each that is inside.
_by_task: weakref.WeakValueDictionary[int, _Stepped] = weakref.WeakValueDictionary()


class _AtEnd:
    """Calls a function when the last reference to it is dropped: at the end of the outermost call."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def __del__(self) -> None:
        self._function()


def _calls_on(frame: FrameType | None) -> tuple[list[FrameType], bool]:
    """The engine's calls on a stack, newest first, and whether the thread is one of the engine's own."""
    calls, oldest = [], None
    while frame is not None:
        if frame.f_code is _ENGINE:
            calls.append(frame)
        oldest, frame = frame, frame.f_back
    return calls, oldest is not None and oldest.f_code is _NODE


def _outermost(calls: list[FrameType], is_engines: bool) -> dict[str, Any] | None:
    """The keyword dict of the outermost call; None where that call cannot be told."""
    if is_engines or not calls:  # the outermost call blocks in another thread
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
    """Has a function called when the outermost backward() is over; False where that one is not known.

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
        # Torch has read the keywords by now; only the frame of the call refers to this dict.
        stepped = _by_task[task] = keywords.setdefault(_KEY, _Stepped())
    return stepped


def is_second_step(parameter: torch.Tensor) -> bool:
    """Whether the parameter was stepped before in the backward() that this thread is in; from now on it was.

    A backward() brings each parameter its whole gradient at once; those that it calls inside bring pieces.
    """
    stepped = _stepped_so_far()
    if stepped is None:
        return False
    if id(parameter) in stepped.ids:
        return True
    stepped.ids.add(id(parameter))
    return False


# Sums in fp32

# On a sum: its version as it was left here, and what of it all ranks have averaged; None: the whole.
_MARK = "_flashoptim_averaged"
# DistributedDataParallel moves gradients into new buckets in the second or third forward().
_UNTIL_REBUILT = 3


def _widen(tensor: torch.Tensor) -> None:
    if tensor.grad is not None and tensor.grad.dtype != torch.float32:
        tensor.grad = tensor.grad.float()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Sum:
    """The sum of one parameter, and its parts while a backward() runs."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.handles: list[RemovableHandle] = []
        self.before: torch.Tensor | None = None
        self.averaged: torch.Tensor | None = None
        self.own: torch.Tensor | None = None  # of this rank
        self._given: tuple[torch.Tensor | None, int] = (None, 0)
        self._is_new = False
        self._average: torch.Tensor | None = None  # the last one of the first few
        self._averages = 0

    def be_last(self) -> None:
        """Lets other hooks see the new gradient first: only the average of the ranks changes it later."""
        hooks: Any = self.tensor._post_accumulate_grad_hooks
        last = self.handles[-1].id
        if next(reversed(hooks)) != last:
            hooks.move_to_end(last)

    def put_aside(self, splits: bool) -> None:
        """Leaves what is not averaged yet as the gradient, in the parameter's dtype."""
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
        """Before autograd adds a new gradient: removes the stand-in, so that nothing is added to it."""
        self.tensor.grad = None

    def take(self) -> None:
        """After autograd has added a gradient: adds it to this rank's sum in fp32."""
        new = self.tensor.grad
        if new is None:  # another hook has used it up
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
        """Leaves the whole sum as the gradient."""
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
    """The parameters of an optimizer whose gradients are added up in fp32."""

    def __init__(self) -> None:
        self._sums: dict[int, _Sum] = {}  # by the parameter's id
        self._is_open = False
        self._openings = 0  # inside of a backward()
        self._tasks: set[int] = set()  # of autograd, since it was opened
        self._lock = threading.RLock()  # autograd has a thread for each GPU

    def follow(self, wanted: Iterable[torch.Tensor]) -> None:
        """From now on the gradients of these parameters, and of no others, are fp32."""
        if self._is_open and torch._C._current_graph_task_id() == -1:  # backward() has failed
            self._end()
        tensors = list(wanted)
        numbers = set(map(id, tensors))
        for number in self._sums.keys() - numbers:
            for handle in self._sums.pop(number).handles:
                handle.remove()
        if len(self._sums) < len(numbers):
            self.add(tensors)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Adds parameters whose gradients are fp32 from now on, frozen ones as soon as they are trained."""
        for tensor in tensors:
            if id(tensor) not in self._sums and tensor.dtype != torch.float32 and tensor.is_leaf:
                self._sums[id(tensor)] = self._attach(tensor)

    def _attach(self, tensor: torch.Tensor) -> _Sum:
        own = _Sum(tensor)
        gradient, tensor.grad = tensor.grad, None
        tensor.grad_dtype = None  # any dtype is allowed
        tensor.grad = None if gradient is None else gradient.float()
        requires_grad = tensor.requires_grad
        tensor.requires_grad_(True)  # a frozen one takes no hooks
        before, after = self._hooks(id(tensor))
        if is_sharded(tensor):
            # FSDP puts gradients of the parameter's own dtype there, widened before the next is added.
            own.handles.append(tensor.register_post_accumulate_grad_hook(after))
        else:
            own.handles.append(tensor.register_hook(before))
            own.handles.append(tensor.register_post_accumulate_grad_hook(after))
        tensor.requires_grad_(requires_grad)
        return own

    def _hooks(self, number: int) -> tuple[Callable[[torch.Tensor], None], Callable[[torch.Tensor], None]]:
        # Weak: the garbage collector does not look into hooks, and the sums refer to the parameters.
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
        """Once in each call of autograd: lets all gradients be what DistributedDataParallel expects."""
        task = torch._C._current_graph_task_id()
        if task in self._tasks:
            return
        self._tasks.add(task)
        inside = is_inside()
        if not self._is_open:
            self._is_open = True
            # The ranks may average after an inner backward(): sums are whole when the outermost one ends.
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
        """Queues the end behind what DistributedDataParallel has queued."""
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._openings += 1
                self._tasks.clear()
                for own in self._sums.values():
                    own.end()
