"""Gradient release: backward() steps each parameter as soon as its gradient is complete, and frees it."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from .backward import is_second_step
from .memory import check_type
from .optimizer import FlashOptimizer
from .states import states_of

PreStep = Callable[[torch.Tensor, dict[str, Any]], bool]


_NO_REPLICAS = (
    "enable_gradient_release does not support DistributedDataParallel (DDP), which brings gradients back "
    "after they are freed; use FSDP2 (fully_shard), or step() and zero_grad()"
)
# The attribute of a module that keeps the optimizers of its parameters alive.
_KEPT = "_flashoptim_release"


class _Kept(list[FlashOptimizer]):
    """Optimizers that a module keeps alive. Copies of the module keep none: they have no hooks either."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return list, ()


@dataclass
class GradientReleaseHandle:
    """Ends gradient release by remove(). Dropping the handle does not end it."""

    _hooks: list[RemovableHandle] = field(repr=False)
    _optimizer: FlashOptimizer = field(repr=False)
    _keepers: list[_Kept] = field(repr=False)
    _is_active: bool = True

    def remove(self) -> None:
        """Removes the hooks. step() and zero_grad() then handle the gradients again."""
        if not self._is_active:
            return
        self._is_active = False
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for keeper in self._keepers:
            keeper.remove(self._optimizer)
        self._keepers.clear()
        states_of(self._optimizer).kept.releases -= 1

    @property
    def active(self) -> bool:
        """Whether gradients are released."""
        return self._is_active


def _refuse_second_step(optimizer: FlashOptimizer, parameter: torch.Tensor) -> None:
    if is_second_step(parameter):
        raise RuntimeError(
            f"{states_of(optimizer).name_of(parameter)} has its gradient in several pieces, one from each "
            "reentrant checkpoint that uses it, and was stepped with the first: checkpoint with "
            "use_reentrant=False, or remove() the gradient release"
        )


def _hook(optimizer: FlashOptimizer, pre_step: PreStep | None) -> Callable[[torch.Tensor], None]:
    # A weak reference, because the garbage collector cannot see cycles through hooks.
    to_optimizer = weakref.ref(optimizer)
    is_first = True

    def step_and_free(parameter: torch.Tensor) -> None:
        nonlocal is_first
        alive = to_optimizer()
        if alive is None:
            raise RuntimeError(
                "the optimizer that gradients are released to is gone, and the modules whose parameters it "
                "steps; keep the optimizer as long as its parameters are trained"
            )
        states = states_of(alive)
        # Autograd has a thread for each device.
        with states.kept.release_lock:
            if is_first:  # the model may have been wrapped after enable_gradient_release()
                _refuse_replicas({tensor for tensor, _ in states.tensors_and_groups()})
                is_first = False
            group = None if parameter.grad is None else states.group_of(parameter)
            if group is None:  # no gradient, or not in a group any more: the gradient belongs to the user
                return
            try:
                if pre_step is None or pre_step(parameter, group):
                    _refuse_second_step(alive, parameter)
                    alive.step_param(parameter, group)
            finally:
                parameter.grad = None

    return step_and_free


def _keep(optimizer: FlashOptimizer, model: torch.nn.Module, released: set[torch.Tensor]) -> list[_Kept]:
    """Makes every module with released parameters keep the optimizer alive."""
    keepers = []
    for module in model.modules():
        if released.isdisjoint(module.parameters(recurse=False)):
            continue
        if not isinstance(module.__dict__.get(_KEPT), _Kept):
            module.__dict__[_KEPT] = _Kept()
        module.__dict__[_KEPT].append(optimizer)
        keepers.append(module.__dict__[_KEPT])
    return keepers


def _refuse_wrappers(model: torch.nn.Module) -> None:
    from torch.distributed import is_available

    if not is_available():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise TypeError(_NO_REPLICAS)
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise TypeError(
            "enable_gradient_release does not support FullyShardedDataParallel (FSDP1); use FSDP2 "
            "(fully_shard)"
        )


def _is_replicated(parameters: set[torch.Tensor]) -> bool:
    """Whether a DistributedDataParallel has one of the parameters. Searches all objects, as torch has no
    list.
    """
    from torch.distributed import is_available, is_initialized

    if not (is_available() and is_initialized()):
        return False
    from torch.nn.parallel import DistributedDataParallel

    return any(
        issubclass(type(thing), DistributedDataParallel) and not parameters.isdisjoint(thing.parameters())
        for thing in gc.get_objects()
    )


def _refuse_replicas(parameters: set[torch.Tensor]) -> None:
    """Refuses DistributedDataParallel: each rank would step with its own gradients only."""
    if not _is_replicated(parameters):
        return
    gc.collect()  # the wrapper may be garbage
    if _is_replicated(parameters):
        raise TypeError(_NO_REPLICAS)


def enable_gradient_release(
    model: torch.nn.Module,
    optimizer: FlashOptimizer,
    *,
    grad_scaler: torch.amp.GradScaler | None = None,
    pre_step: PreStep | None = None,
) -> GradientReleaseHandle:
    """From now on backward() steps each parameter and frees its gradient.

    step() and zero_grad() find only what has no hook: parameters outside the model, or unfrozen or exchanged
    since. Policies for non-finite gradients hold for each parameter alone. The model may be under FSDP2.

    A parameter is stepped once in a backward(): where reentrant checkpoints bring it a gradient in pieces,
    RuntimeError.

    Args:
        model: the model.
        optimizer: the optimizer of its parameters. Other parameters of the model are left alone.
        grad_scaler: must be None.
        pre_step: called with a parameter and its group before each step; False skips the step.

    Raises:
        TypeError: for a model under DistributedDataParallel or FullyShardedDataParallel (FSDP1); the first
            backward() raises it where the model is wrapped later. For an optimizer of another package, and a
            model that is no module.
        ValueError: for an optimizer that has none of the model's parameters.
        NotImplementedError: for a grad_scaler.
    """
    if grad_scaler is not None:
        raise NotImplementedError(
            "gradients are released one by one, and GradScaler judges all of them; train in bfloat16 without "
            "it"
        )
    # A wrapper of the optimizer that has its attributes is as good as the optimizer.
    if not hasattr(optimizer, "rule"):
        raise TypeError(
            f"{type(optimizer).__name__} cannot step released gradients; use an optimizer of flashoptim_cpp"
        )
    check_type(model, torch.nn.Module, "model")
    _refuse_wrappers(model)
    states = states_of(optimizer)
    managed = {tensor for tensor, _ in states.tensors_and_groups()}
    own = list(model.parameters())
    if own and not any(parameter in managed for parameter in own):
        raise ValueError(
            "the optimizer has none of the model's parameters, so no gradient would be released: make it of "
            "model.parameters(), after the model has its final parameters"
        )
    hook = _hook(optimizer, pre_step)
    released = [p for p in own if p.requires_grad and p in managed]
    _refuse_replicas(set(released))
    hooks = [parameter.register_post_accumulate_grad_hook(hook) for parameter in released]
    states.kept.releases += 1
    return GradientReleaseHandle(hooks, optimizer, _keep(optimizer, model, set(released)))
