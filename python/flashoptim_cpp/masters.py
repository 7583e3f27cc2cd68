"""Weights in full precision: in a model for a while, in a model's state dicts, and for single tensors."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from . import _operators as ops
from ._rules import WEIGHT_DTYPES
from .conversion import check_is_dense
from .memory import check_type, copies, is_plain, sharing
from .parameter import correction_in, join
from .sharding import exchanged, is_sharded, local_like, local_of, reshard, slice_of, wrap
from .states import StatefulOptimizer, States, states_of

WeightFormat = Literal["native", "paper"]

_NARROW = (torch.bfloat16, torch.float16)
_EXTRA = "_extra_state"  # the last part of the name of a module's extra state


# Single tensors


def _is_paper(format: str) -> bool:
    if format not in ("native", "paper"):
        raise ValueError(f'format={format!r} is unknown; use "native" or "paper"')
    return format == "paper"


def compute_ecc_bits(
    fp32_param: torch.Tensor,
    narrow_param: torch.Tensor,
    master_bytewidth: int = 4,
    *,
    format: WeightFormat = "native",
) -> torch.Tensor:
    """The correction that brings a rounded weight to its full-precision value.

    Args:
        fp32_param: weights in fp32.
        narrow_param: the same weights, rounded to bfloat16 or float16.
        master_bytewidth: bytes of both together: 3 for an int8 correction, 4 for int16.
        format: of the correction.

    Returns:
        int8 or int16 of the same shape.

    Raises:
        ValueError: for other dtypes, shapes or widths.
    """
    check_type(fp32_param, torch.Tensor, "fp32_param")
    check_type(narrow_param, torch.Tensor, "narrow_param")
    if fp32_param.dtype != torch.float32:
        raise ValueError(f"fp32_param must be float32, got {fp32_param.dtype}.")
    if narrow_param.dtype not in _NARROW:
        raise ValueError(f"narrow_param must be bf16 or fp16, got {narrow_param.dtype}.")
    if master_bytewidth not in (3, 4):
        raise ValueError(
            f"master_bytewidth={master_bytewidth} over {narrow_param.dtype} is unsupported; use 3 or 4"
        )
    if fp32_param.shape != narrow_param.shape:
        raise ValueError(
            f"fp32_param has the shape {tuple(fp32_param.shape)}, narrow_param {tuple(narrow_param.shape)}"
        )
    masters = fp32_param.detach().to(narrow_param.device).contiguous()
    return ops.correction_of(
        masters, narrow_param.detach().contiguous(), 8 * master_bytewidth, _is_paper(format)
    )


def reconstruct_fp32_param(
    param: torch.Tensor, error_bits: torch.Tensor, *, format: WeightFormat = "native"
) -> torch.Tensor:
    """Full-precision weights from rounded ones and their correction, the inverse of :func:`compute_ecc_bits`.

    Raises:
        ValueError: for other dtypes or shapes.
    """
    check_type(param, torch.Tensor, "param")
    check_type(error_bits, torch.Tensor, "error_bits")
    if param.dtype not in _NARROW:
        raise ValueError(f"param must be bf16 or fp16, which have corrections, got {param.dtype}.")
    if error_bits.dtype not in (torch.int8, torch.int16):
        raise ValueError(f"error_bits must be int8 or int16, got {error_bits.dtype}.")
    if param.shape != error_bits.shape:
        raise ValueError(f"param has the shape {tuple(param.shape)}, error_bits {tuple(error_bits.shape)}")
    bits = 24 if error_bits.dtype == torch.int8 else 32
    return ops.join_weights(param.detach().contiguous(), error_bits.contiguous(), bits, _is_paper(format))


# Models


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DistributedDataParallel or DataParallel, compiled or not; any other model itself.

    The type of the wrapper decides, because a model may have a child of its own called `module`.
    """
    inner = model
    while True:
        if isinstance(inner, (DataParallel, DistributedDataParallel)):
            inner = model = inner.module
        elif type(inner).__name__ == "OptimizedModule" and "_orig_mod" in inner._modules:
            inner = inner._orig_mod  # type: ignore[assignment]
        else:
            return model


def _refuse_fsdp1(model: torch.nn.Module) -> None:
    """Raises for what is no module, and for FullyShardedDataParallel: its parameters have no shape."""
    check_type(model, torch.nn.Module, "model")
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise TypeError(
            "full-precision weights of FullyShardedDataParallel are not known; use fully_shard (FSDP2)"
        )


def _has_correction(states: States, tensor: torch.Tensor) -> bool:
    """Whether the optimizer has a correction for this tensor."""
    return correction_in(states.state.get(tensor, {})) is not None


def _master_of(states: States, tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter in full precision."""
    if not _has_correction(states, tensor):
        return local_of(tensor).detach().float().clone()
    parameter = states.prepare(tensor, writes=False)
    assert parameter.stored_as is not None
    return join(parameter.local, correction_in(states.state[tensor]), parameter.stored_as)


def _wide_copies(
    states: States, tensors: Sequence[torch.Tensor]
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """Full-precision copies of plain tensors in fp32, which share memory as the originals do.

    Wider tensors, and those that are not floating-point, keep their dtype. Tensors that share memory are
    yielded together.
    """
    for group in sharing(tensors):
        members = [tensors[n] for n in group]
        owners = [n for n, tensor in enumerate(members) if _has_correction(states, tensor)]
        if len({(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in members}) == 1 or len(members) == 1:
            first = members[0]
            dtype = torch.float32 if first.dtype in _NARROW else first.dtype
            one = _master_of(states, members[owners[0]]) if owners else first.detach().to(dtype, copy=True)
            yield group, [one.detach() for _ in members]
            continue
        made: list[torch.Tensor] = list(members)
        for dtype in dict.fromkeys(tensor.dtype for tensor in members):
            numbers = [n for n, tensor in enumerate(members) if tensor.dtype == dtype]
            wide = torch.float32 if dtype in _NARROW else dtype
            for n, copied in zip(numbers, copies([members[n] for n in numbers], wide), strict=True):
                made[n] = copied
        for n in reversed(owners):  # so that the first one is written last and wins
            made[n].copy_(_master_of(states, members[n]))
        yield group, made


@contextmanager
def full_precision(model: torch.nn.Module, optimizer: StatefulOptimizer) -> Iterator[torch.nn.Module]:
    """Inside, the model's parameters are its full-precision weights: for evaluation, averages and export.

    On leaving, weights and corrections are as before, bit for bit; what was written inside is rounded and
    split anew. Parameters that are not the optimizer's, and buffers, are fp32 inside too; tied weights and
    views share memory inside as well. Parameters of a sharded model (FSDP2) are other tensors inside: ask the
    model for them. FSDP2 computes in fp32 then; all ranks enter and leave together.

    Raises:
        TypeError: for a model under FSDP1 or an unknown FSDP2; use get_fp32_model_state_dict.
        ValueError: on leaving, for a weight that was given another shape inside; everything is as before.
    """
    states = states_of(optimizer)
    _refuse_fsdp1(model)
    reshard(model)
    every = dict.fromkeys([*_unwrapped(model).parameters(), *_unwrapped(model).buffers()])
    narrow = [t for t in every if t.dtype in _NARROW or _has_correction(states, t)]
    plain = [tensor for tensor in narrow if is_plain(tensor)]
    whole: dict[torch.Tensor, torch.Tensor] = {}  # the stored weights of the tensors that are fp32 now
    silent = [m for m in model.modules() if "_flashoptim_recasts" not in m.__dict__]
    sharded: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    try:
        for module in silent:
            module.__dict__["_flashoptim_recasts"] = False
        for tensor in narrow:
            if is_sharded(tensor) and isinstance(tensor, torch.nn.Parameter):
                wide = wrap(_master_of(states, tensor), tensor)
                sharded[tensor] = torch.nn.Parameter(wide, tensor.requires_grad)
        for numbers, values in _wide_copies(states, plain):
            for n, value in zip(numbers, values, strict=True):
                whole[plain[n]], plain[n].data = plain[n].data, value
        with exchanged(model, sharded):
            yield model
    finally:
        for module in silent:
            module.__dict__.pop("_flashoptim_recasts", None)
        insides = {tensor: tensor.data for tensor in whole}
        for tensor, weight in whole.items():
            tensor.data = weight
        with torch.no_grad():
            _take_over(states_of(optimizer), insides | {t: local_of(wide) for t, wide in sharded.items()})


def _take_over(states: States, insides: dict[torch.Tensor, torch.Tensor]) -> None:
    """Takes over what was written into the full-precision values `insides`, after the stored weights are
    back.
    """
    written = {}
    for tensor, inside in insides.items():
        weight = local_of(tensor)
        if inside.shape != weight.shape:
            raise ValueError(
                f"a parameter of shape {tuple(weight.shape)} had the shape {tuple(inside.shape)} on leaving "
                "full_precision; write into it instead"
            )
        inside = inside.detach().to(weight.device, torch.float32)
        if not torch.equal(_master_of(states, tensor).view(torch.int32), inside.view(torch.int32)):
            written[tensor] = inside
    _write_masters(states, written)


def _write_masters(states: States, values: dict[torch.Tensor, torch.Tensor]) -> None:
    """Writes this rank's parts of full-precision values into tensors of a model and their corrections."""
    own = [t for t in values if t.dtype in WEIGHT_DTYPES and states.group_of(t) is not None]
    parameters = {tensor: states.prepare(tensor) for tensor in own}
    # Views of a parameter come before the parameter itself, because they are rounded differently from a split
    # weight.
    for tensor, value in values.items():
        if tensor not in parameters:
            local_of(tensor).copy_(value)
    for tensor, parameter in parameters.items():
        parameter.write_masters(values[tensor], states.state[tensor])


# State dicts of a model


class IncompatibleKeys(NamedTuple):
    """The names that did not fit, as torch's load_state_dict returns them."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == _EXTRA


def _window(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Identifies the memory of a tensor or of an entry of a state dict; None without memory."""
    local = local_of(tensor) if is_sharded(tensor) else tensor
    if not is_plain(local) or local.numel() == 0 or local.device.type == "meta":
        return None
    return local.device, local.data_ptr(), local.shape, local.stride(), local.dtype


def _named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by each of their names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(model.named_buffers(remove_duplicate=False)), **dict(parameters)}


def _sources(model: torch.nn.Module, entries: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The parameter or buffer behind each entry of a state dict, whatever name hooks have given it."""
    named = _named(model)
    shown = {window: tensor for tensor in named.values() if (window := _window(tensor)) is not None}
    sources = {}
    for name, entry in entries.items():
        if isinstance(entry, torch.Tensor) and not _is_extra(name):
            window = _window(entry)
            source = named.get(name) if window is None else shown.get(window, named.get(name))
            if source is not None:
                sources[name] = source
    return sources


def get_fp32_model_state_dict(states: States, model: torch.nn.Module) -> dict[str, Any]:
    """See FlashOptimizer."""
    _refuse_fsdp1(model)
    reshard(model)
    model = _unwrapped(model)
    entries = model.state_dict()
    result: OrderedDict[str, Any] = OrderedDict.fromkeys(entries)
    if hasattr(entries, "_metadata"):
        result._metadata = copy.deepcopy(entries._metadata)  # type: ignore[attr-defined]
    parameters = [p for p in dict.fromkeys(_named(model).values()) if _has_correction(states, p)]
    names = [name for name, entry in entries.items() if isinstance(entry, torch.Tensor) and is_plain(entry)]
    names = [name for name in names if not _is_extra(name)]
    # Together with the parameters, so that each entry is grouped with the parameter whose memory it shares.
    tensors = [*(p for p in parameters if is_plain(p)), *(entries[name] for name in names)]
    before = len(tensors) - len(names)
    for numbers, values in _wide_copies(states, tensors):
        for n, value in zip(numbers, values, strict=True):
            if n >= before:
                result[names[n - before]] = value
    sources = _sources(model, entries)
    shown = {_window(p) for p in parameters}
    wide: dict[torch.Tensor, torch.Tensor] = {}
    for name, entry in entries.items():
        source = sources.get(name)
        if not isinstance(entry, torch.Tensor):
            result[name] = copy.deepcopy(entry)
        elif source is not None and _has_correction(states, source) and is_sharded(source):
            if source not in wide:
                wide[source] = wrap(_master_of(states, source), source)
            result[name] = wide[source]
        elif is_lazy(entry):
            result[name] = entry  # uninitialised: it has no values yet
        elif name not in names:
            # Quantised weights are copied as they are: no floating dtype describes them.
            is_weight = entry.dtype in _NARROW and is_sharded(entry) and not _is_extra(name)
            result[name] = entry.detach().to(torch.float32 if is_weight else entry.dtype, copy=True)
        elif source is not None and _has_correction(states, source) and _window(entry) not in shown:
            # A hook may have copied the weight, for instance to the CPU. If the values are equal, its master
            # is used.
            is_same = entry.shape == source.shape and torch.equal(
                entry.to(source.device, source.dtype), source
            )
            if is_same:
                result[name] = _master_of(states, source).to(entry.device)
    return result


def set_fp32_model_state_dict(
    states: States, model: torch.nn.Module, fp32_state_dict: Mapping[str, Any], strict: bool
) -> IncompatibleKeys:
    """See FlashOptimizer."""
    _refuse_fsdp1(model)
    _refuse_unnamed(fp32_state_dict)
    reshard(model)
    wrapper, model = model, _unwrapped(model)
    entries = model.state_dict()
    targets = {**_named(model), **_sources(model, entries)}
    modules = {f"{path}.{_EXTRA}" if path else _EXTRA: module for path, module in model.named_modules()}
    extras = {name: modules[name] for name in entries if _is_extra(name) and name in modules}
    given = _without_prefix(wrapper, model, fp32_state_dict, targets.keys() | extras.keys())
    known = {name: targets[name] for name in given if name in targets}
    set_windows = {id(tensor) for tensor in known.values()}
    missing = [
        name
        for name in entries
        if name not in given and not (name in targets and id(targets[name]) in set_windows)
    ]
    unexpected = [name for name in given if name not in known and name not in extras]
    _refuse(entries, given, known, [n for n in given if n in extras], missing, unexpected, strict)
    values = {tensor: _part(name, given[name], tensor) for name, tensor in known.items()}
    for name, module in extras.items():
        if name in given:
            module.set_extra_state(copy.deepcopy(given[name]))
    _write_masters(states, values)
    return IncompatibleKeys(missing, unexpected)


def _refuse_unnamed(given: Any) -> None:  # noqa: ANN401
    if not isinstance(given, Mapping):
        raise ValueError(
            f"the state dict is a {type(given).__name__}; "
            "give a dict of tensors by name, as get_fp32_model_state_dict() returns it"
        )
    for name in given:
        if not isinstance(name, str):
            raise ValueError(
                f"a name of the state dict is of type {type(name).__name__}; "
                "names are text, as in get_fp32_model_state_dict()"
            )


def _without_prefix(
    wrapper: torch.nn.Module,
    model: torch.nn.Module,
    given: Mapping[str, Any],
    known: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """The entries under the model's own names, without the prefix of its wrapper (`module.`)."""
    prefixes = [f"{path}." for path, module in wrapper.named_modules() if module is model and path]
    prefixes += [f"{path}." for path, module in model.named_modules() if path == "_orig_mod"]
    result = {}
    for name, value in given.items():
        own = [name[len(p) :] for p in prefixes if name not in known and name.startswith(p)]
        own += [p + name for p in prefixes if name not in known]
        result[next((candidate for candidate in own if candidate in known), name)] = value
    return result


def _refuse(
    entries: Mapping[str, Any],
    given: dict[str, Any],
    known: dict[str, torch.Tensor],
    extras: list[str],
    missing: list[str],
    unexpected: list[str],
    strict: bool,
) -> None:
    if strict and (missing or unexpected):
        raise ValueError(
            f"the state dict lacks {_some(missing)} and has {_some(unexpected)}, which the model has not"
        )
    if not known and not extras:
        what = f"has none of the model's names ({_some(list(entries))})"
        has = f"it has {_some(list(given))}" if given else "it is empty"
        raise ValueError(
            f"the state dict {what}, so that nothing would be set; {has}; take off prefixes of wrappers"
        )
    if unexpected:
        warnings.warn(
            f"the model has no {_some(unexpected)}; what the state dict has there is not set", stacklevel=5
        )


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _part(name: str, value: Any, tensor: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """The value for this rank's part of a parameter or buffer.

    Raises:
        ValueError: where it does not fit.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is a tensor, its value a {type(value).__name__}")
    if is_sharded(tensor) or is_plain(tensor):
        check_is_dense(value, f"the value of {name}")
    if is_lazy(tensor) or tensor.device.type == "meta":
        raise ValueError(
            f"{name} has no memory yet; make the model's weights (to_empty, a first forward) before"
        )
    # Weights that are never narrow (float64, integers) keep their own dtype.
    allowed = (torch.float32,) if tensor.dtype in (*_NARROW, torch.float32) else (torch.float32, tensor.dtype)
    if isinstance(tensor, torch.nn.Parameter) and value.dtype not in allowed:
        raise ValueError(f"Expected fp32 value for '{name}', got {value.dtype}.")
    part = local_like(value, tensor)
    if is_sharded(tensor) and part.shape == tensor.shape:
        part = slice_of(part, tensor)
    if part.shape != local_of(tensor).shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, its fp32 value {tuple(value.shape)}")
    return part
