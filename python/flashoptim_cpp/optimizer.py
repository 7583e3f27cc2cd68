"""FlashOptimizer: torch's protocol of an optimizer over the fused step. All arithmetic is in C++."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, cast

import torch
from torch.optim.optimizer import ParamsT

from . import _operators as ops
from . import masters
from . import state_dict as saving
from ._rules import Group, number
from .nonfinite import NonFiniteError, listed
from .options import POLICIES, Default, DefaultFlag, check_group
from .parameter import correction_in
from .sharding import all_reduce_max, is_sharded, local_like
from .states import Clipping, StatefulOptimizer, States, follow_zero_redundancy, states_of
from .table import Factors, check_learning_rates, judge, largest_weight

Bits = Literal[16, 24, 32] | None
NonFinite = Literal["skip_element", "skip_step", "error"]
# The defaults 24 and True, which differ from the caller's 24 and True by type.
DEFAULT_BITS = cast(Bits, Default(24))
DEFAULT_FUSED = cast(bool, DefaultFlag(True))
# If this environment variable is set, master_weight_bits may be given for fp32 parameters. The authors' name.
_ALLOW_INEFFECTIVE_BITS = "FLASHOPTIM_ALLOW_INEFFECTIVE_MASTER_WEIGHT_BITS"


class FlashOptimizer(StatefulOptimizer):
    """An optimizer whose weights, corrections, moments and gradients take 7 bytes per parameter or less.

    This class is the common part of :class:`FlashSGD`, :class:`FlashSGDW`, :class:`FlashAdam`,
    :class:`FlashAdamW` and :class:`FlashLion`. Every argument but `params`, `compress_state_dict` and
    `check_numerics` may also be given per parameter group.

    Args:
        params: parameters, (name, parameter) pairs or parameter groups.
        lr: learning rate, a number or a tensor of one element.
        quantize: keep the moments as 8-bit codes; otherwise in fp32.
        compress_state_dict: `state_dict()` holds codes and scales, so that a run resumes bit for bit;
            otherwise fp32 moments, which torch's own optimizers load.
        master_weight_bits: precision of the weights that are updated. 24 and 32 keep a correction of 1 or 2
            bytes beside each 16-bit weight, 16 rounds with dither, None to nearest.
        check_numerics: raise :class:`NumericsError` where the learning rate cannot move the largest weights.
        fused: the step is always fused. True, where it is given, lets GradScaler leave unscaling to the step,
            as with torch's fused optimizers; frameworks refuse to clip gradients by value or norm then.
        defaults: hyperparameters of the subclass.
        format: "native", "paper" (arXiv 2602.23349, its authors' package) or "fp32" (uncompressed moments).
        nonfinite: what to do with gradients that are NaN, infinite or at least 2^48: "skip_element" leaves
            those elements as they are, "skip_step" changes nothing in that step, "error" the same and raises
            :class:`NonFiniteError`. They are counted, see :meth:`bad_elements`.
        check_gradients: False takes every gradient as it is; for the format "paper" alone.
        maximize: maximize the objective.
        min_quantized_numel: smaller tensors keep fp32 moments in the native format.
        min_quantized_numel_1d: the same for tensors of one dimension.
        accumulate_fp32: gradients of 16-bit parameters are accumulated in fp32 (`.grad` is fp32).
        foreach, capturable: have no effect.
        differentiable: True is refused.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        quantize: bool = True,
        compress_state_dict: bool = True,
        master_weight_bits: Bits = DEFAULT_BITS,
        check_numerics: bool = False,
        fused: bool | None = DEFAULT_FUSED,
        defaults: dict[str, Any] | None = None,
        *,
        format: Literal["native", "paper", "fp32"] = "native",
        nonfinite: NonFinite = "skip_element",
        check_gradients: bool = True,
        maximize: bool = False,
        min_quantized_numel: int = 4096,
        min_quantized_numel_1d: int = 65537,
        accumulate_fp32: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        was_asked = not isinstance(master_weight_bits, Default)
        bits = int(master_weight_bits) if isinstance(master_weight_bits, Default) else master_weight_bits
        options = {
            "decouple_lr": False,
            "lr": lr,
            "format": format,
            "master_weight_bits": bits,
            "quantize": quantize,
            "nonfinite": nonfinite,
            "check_gradients": check_gradients,
            "maximize": maximize,
            "min_quantized_numel": min_quantized_numel,
            "min_quantized_numel_1d": min_quantized_numel_1d,
            "accumulate_fp32": accumulate_fp32,
            "foreach": foreach,
            "fused": None if isinstance(fused, Default) else fused,
            "capturable": capturable,
            "differentiable": differentiable,
            **(defaults or {}),
        }
        check_group(self.rule, options)
        self._compress_state_dict = compress_state_dict
        self._check_numerics = check_numerics
        super().__init__(params, options)
        dtypes = {tensor.dtype for tensor, _ in states_of(self).tensors_and_groups()}
        is_in_vain = dtypes == {torch.float32} and bits is not None
        if is_in_vain and was_asked and _ALLOW_INEFFECTIVE_BITS not in os.environ:
            raise ValueError(
                f"master_weight_bits={bits} has no effect when all parameters are fp32; leave it out or cast "
                "the model"
            )
        if bits is None and dtypes - {torch.float32}:
            warnings.warn(
                "master_weight_bits=None with non-fp32 parameters is pure low-precision training: updates "
                "smaller than half a unit in the last place are lost; consider master_weight_bits=24",
                stacklevel=3,
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            follow_zero_redundancy()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, which may have its own options.

        Raises:
            ValueError: for options out of range.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, not {type(param_group).__name__}")
        group = dict(param_group)
        whole = self.defaults | group
        check_group(self.rule, whole)
        if whole["decouple_lr"]:
            group.setdefault("initial_lr", number(whole["lr"]))
        super().add_param_group(group)
        if group["accumulate_fp32"]:
            states_of(self).kept.sums.add(group["params"])

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves unscaling to the step: if `fused` is given, or for fp16 gradients."""
        return any(group.get("fused") for group in self.param_groups) or any(
            tensor.dtype == torch.float16 for tensor, _ in states_of(self).tensors_and_groups()
        )

    # Steps

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Steps every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's result.

        Raises:
            NonFiniteError: for a bad gradient where `nonfinite` is "error".
            NumericsError: where `check_numerics` is set and the learning rate too small.
            ValueError: for a gradient, a state or options that do not fit. Nothing is changed in any case.
        """
        states = states_of(self)
        states.kept.opt_called = True  # learning rate schedulers check this
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        states.follow_groups()
        states.kept.options.check(self.rule, self.param_groups, self.param_groups)
        tensors, groups, gradients = [], [], []
        for group in self.param_groups:
            for tensor in group["params"]:
                gradient = tensor.grad
                if gradient is not None:
                    tensors.append(tensor)
                    groups.append(group)
                    gradients.append(gradient)
        # The clip coefficient belongs to the current gradients. A step that fails keeps it for the retry.
        clip = states.kept.clip_coefficient()
        try:
            self._step(states, list(states.kept.places), tensors, groups, gradients, clip)
        except NonFiniteError:
            states.kept.clipping = None
            raise
        states.kept.clipping = None
        return loss

    @torch._disable_dynamo
    @torch.no_grad()
    def step_param(self, p: torch.Tensor, group: dict[str, Any] | None = None) -> None:
        """Steps one parameter if it has a gradient. `nonfinite` holds for this parameter alone.

        Args:
            p: the parameter.
            group: its group; looked up if not given.

        Raises:
            ValueError: for a tensor that is not a parameter of this optimizer. See also :meth:`step`.
        """
        states = states_of(self)
        own = states.find_group(p)
        if p.grad is not None:
            states.kept.options.check(self.rule, [own if group is None else group], self.param_groups)
            # While gradients are released there is no clip coefficient.
            clip = None if states.kept.releases else states.kept.clip_coefficient()
            self._step(states, [p], [p], [own if group is None else group], [p.grad], clip)
            states.kept.opt_called = True

    def _step(
        self,
        states: States,
        judged: list[torch.Tensor],
        tensors: list[torch.Tensor],
        groups: list[Group],
        gradients: list[torch.Tensor],
        clip: torch.Tensor | None,
    ) -> None:
        if tensors and ops.is_fake(tensors[0]):
            for tensor, group in zip(tensors, groups, strict=True):
                states.prepare(tensor, group)
            return
        if _is_probe(states, tensors, gradients):
            return
        tables = states.tables_for(tensors, groups) if tensors else []
        if self._check_numerics:
            check_learning_rates(tables)
        parts = states.gradients_of(tables, tensors, gradients)
        if len(tables) > 1:  # the operator checks one table only
            for table, own in zip(tables, parts, strict=True):
                table.check(own)
        bad, factors = states.kept.bad, states.factors(clip)
        policies = {group["nonfinite"] for group in self.param_groups}
        verdict = judge(judged, tables, parts, factors, policies, bad.take_ranks())
        if verdict.policy != POLICIES[0]:
            for table, counts in zip(tables, verdict.counts, strict=True):
                bad.take_refused(table.counter, counts)
            if verdict.policy == "error":
                where = listed([states.name_of(judged[n]) for n in verdict.bad])
                raise NonFiniteError(
                    "gradients are NaN, infinite or at least 2^48: "
                    f"{where or 'of parameters of another rank'}; nothing was stepped: lower the learning "
                    'rate or the loss scale, or use nonfinite="skip_element"'
                )
            return
        factors = Factors(clip, factors.grad_scale, verdict.found_inf)
        is_captured = any(table.is_captured() for table in tables)
        for table, own in zip(tables, parts, strict=True):
            table.step(own, factors)
            if not is_captured:
                bad.take(table.counter)

    @torch.no_grad()
    def _ensure_state_initialized(self, p: torch.Tensor, hparams: dict[str, Any] | None = None) -> None:
        """Makes the state that the first step of a parameter would make. The authors' tests call it."""
        states_of(self).prepare(p)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients."""
        states = states_of(self)
        states.follow_groups()
        states.kept.clipping = None
        super().zero_grad(set_to_none=set_to_none)

    # Gradients and numerics

    @torch.no_grad()
    def grad_norm(self) -> torch.Tensor:
        """The Euclidean norm of all gradients (float64, 0-dimensional); bad elements are left out.

        It lies on the parameters' device, or on the CPU if some of them do. A collective if one is sharded.
        """
        return states_of(self).grad_norm()

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Scales the gradients of the next step to a norm of at most `max_norm`; returns the norm before.

        The gradients stay as they are: they are scaled as the step reads them. On a GPU this does not block.
        The coefficient belongs to these gradients: it is gone with them, and after :meth:`zero_grad`.

        Raises:
            RuntimeError: while gradients are released: there is no norm of all then.
            ValueError: for a norm that is negative or NaN.
        """
        states = states_of(self)
        if states.kept.releases:
            raise RuntimeError("gradients cannot be clipped by their norm while they are released one by one")
        if not float(max_norm) >= 0.0:
            raise ValueError(f"max_norm is {float(max_norm)}; give 0 or more")
        norm = self.grad_norm()
        # A quotient, as the core forms it: a number over a tensor would be a product with the reciprocal.
        coefficient = torch.full_like(norm, float(max_norm)) / (norm + 1e-6)
        gradients = (tensor.grad for tensor, _ in states.tensors_and_groups())
        states.kept.clipping = Clipping(
            coefficient.clamp(max=1.0).float(), (gradient for gradient in gradients if gradient is not None)
        )
        return norm

    def bad_elements(self) -> dict[str | int, int]:
        """The counts of gradient elements that were NaN, infinite or at least 2^48, by parameter name or
        number.

        Blocks until GPUs are done.
        """
        states = states_of(self)
        states.kept.bad.collect()
        states.follow_groups()
        counts = {}
        for tensor in states.kept.places:
            parameter = states.kept.parameters.get(tensor)
            key = states.kept.places.key(tensor, states.groups)
            counts[key] = 0 if parameter is None else parameter.bad_elements
        return counts

    @torch.no_grad()
    def recompute_param_stats(self) -> None:
        """Measures the largest weights again for `check_numerics`. The first step and a step after loading do
        so.
        """
        states = states_of(self)
        for tensor, _ in states.tensors_and_groups():
            parameter = states.kept.parameters[tensor] = states.look_at(tensor)
            parameter.max_abs = largest_weight(parameter)

    def memory_report(self) -> dict[str, float]:
        """Bytes on this rank: weights, corrections, moments, scales, gradients; their sum per parameter."""
        return states_of(self).memory()

    # State and weights

    @torch._disable_dynamo
    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The state as a dict. Its tensors are the optimizer's own; see docs/python.md for the keys."""
        return self._state_dict(self._compress_state_dict)

    @torch._disable_dynamo
    @torch.no_grad()
    def state_dict_fp32(self) -> dict[str, Any]:
        """The state in plain fp32 tensors, as the optimizer of torch.optim with the same rule loads it."""
        return self._state_dict(compress=False, plain=True)

    def _state_dict(self, compress: bool, plain: bool = False) -> dict[str, Any]:
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        result = saving.state_dict(states_of(self), compress, plain)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, result)
            result = result if changed is None else changed
        return result

    @torch._disable_dynamo
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this package, of torch.optim or of the authors' package.

        Hyperparameters come from the state dict; how states are stored is this optimizer's own affair, and
        states in another format are converted. Model and optimizer may be loaded in either order: a
        correction in another storage is converted when the state is next used.

        Raises:
            ValueError: for what does not fit; the optimizer is exactly as it was.
        """
        states_of(self).follow_groups()
        given = saving.checked_whole(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, given)
            given = given if changed is None else saving.checked_whole(changed)
        saving.load_state_dict(states_of(self), given)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def full_precision(self, model: torch.nn.Module) -> AbstractContextManager[torch.nn.Module]:
        """A context in which the model's parameters are full-precision weights: :func:`full_precision`."""
        return masters.full_precision(model, self)

    @torch.no_grad()
    def get_fp32_model_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """A copy of the model's state dict with every weight in full precision.

        Names, order, metadata and extra states are those of `model.state_dict()`. bfloat16 and float16
        entries become fp32, others keep their dtype; tied weights and views share memory as there, and
        nothing is shared with the model.

        Args:
            model: the model, or its DistributedDataParallel or DataParallel, without the prefix `module.`.

        Raises:
            TypeError: for a model under FSDP1.
        """
        return masters.get_fp32_model_state_dict(states_of(self), model)

    @torch.no_grad()
    def set_fp32_model_state_dict(
        self, model: torch.nn.Module, fp32_state_dict: Mapping[str, Any], *, strict: bool = False
    ) -> masters.IncompatibleKeys:
        """Sets weights and corrections from full-precision weights, the inverse of
        :meth:`get_fp32_model_state_dict`.

        Buffers and extra states are set, too. What the state dict does not name stays as it is; what it names
        in vain is a warning. Names may have the wrapper's prefix where the model is wrapped.

        Args:
            model: as in :meth:`get_fp32_model_state_dict`.
            fp32_state_dict: weights in fp32; buffers of any dtype.
            strict: refuse missing and unexpected names.

        Returns:
            `missing_keys` and `unexpected_keys`.

        Raises:
            ValueError: for a weight that is not fp32 or has another shape, a state dict that has none of the
                model's names, and one that is no dict of names; nothing has changed.
            TypeError: for a model under FSDP1.
        """
        return masters.set_fp32_model_state_dict(states_of(self), model, fp32_state_dict, strict)

    @torch._disable_dynamo
    @torch.no_grad()
    def refresh_masters(self, params: Iterable[torch.Tensor] | None = None) -> None:
        """Makes the stored weights the full-precision weights: clears their corrections.

        A weight that is written between steps keeps its correction, so that a clamp, a mask or an exchange of
        weights loses nothing. The correction moves the full-precision weight by at most half a unit in the
        last place of the stored weight. Call this if the written weights must be exact.

        Args:
            params: the parameters that were written; all by default.

        Raises:
            ValueError: for a tensor that is not a parameter of this optimizer; nothing has changed.
        """
        states = states_of(self)
        states.follow_groups()
        tensors = list(states.kept.places) if params is None else list(params)
        groups = [states.find_group(tensor) for tensor in tensors]
        for tensor, group in zip(tensors, groups, strict=True):
            correction = correction_in(self.state.get(tensor, {}))
            if correction is not None:
                correction.zero_()
                states.prepare(tensor, group)

    def __repr__(self) -> str:
        lines = [
            f"{type(self).__name__} (",
            f"    compress_state_dict: {self._compress_state_dict}",
            f"    check_numerics: {self._check_numerics}",
            f"    gradient_release: {states_of(self).kept.releases > 0}",
        ]
        for n, group in enumerate(self.param_groups):
            lines += ["", f"Parameter Group {n}"]
            lines += [
                f"    {key}: {group[key]}" for key in sorted(group) if key not in ("params", "param_names")
            ]
        return "\n".join([*lines, ")"])


def _is_probe(states: States, tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> bool:
    """Whether this is the step with learning rate 0 and gradients of 0 by which torch.distributed.checkpoint
    makes an optimizer create its states. It creates them, and is no step.
    """
    # The states are checked first, because reading a learning rate on a GPU blocks.
    if any(states.state.values()) or ops.is_capturing_any(tensor.device for tensor in tensors):
        return False
    if any(number(group["lr"]) != 0.0 for group in states.groups):
        return False
    if states.kept.bad.ranks is not None:  # other ranks may have gradients
        return False
    moves = any(bool(local_like(g, t).any()) for t, g in zip(tensors, gradients, strict=True))
    shared = [tensor for tensor, _ in states.tensors_and_groups() if is_sharded(tensor)]
    if shared:
        moves = bool(all_reduce_max(torch.tensor(int(moves), device=shared[0].device), shared))
    if moves:
        return False
    for tensor in tensors:
        states.prepare(tensor)
    return True
