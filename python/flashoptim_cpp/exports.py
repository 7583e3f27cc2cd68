"""State dicts of a model in full precision: made from its weights and their corrections, and written back."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from . import fsdp
from .masters import NARROW, has_correction, master_of, refuse_fsdp1, unwrapped, wide_copies, write_masters
from .memory import is_plain
from .reading import check_is_dense
from .sharding import is_sharded, local_like, local_of, slice_of, wrap

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer

_EXTRA = "_extra_state"  # the last part of the name of what a module keeps beside its tensors


class IncompatibleKeys(NamedTuple):
    """What did not fit, as torch's load_state_dict says it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == _EXTRA


def _window(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """The memory that a tensor shows, by which an entry of a state dict is known; None if it has none."""
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


def get_fp32_model_state_dict(optimizer: "FlashOptimizer", model: torch.nn.Module) -> dict[str, Any]:
    """See FlashOptimizer."""
    refuse_fsdp1(model)
    fsdp.reshard(model)
    model = unwrapped(model)
    entries = model.state_dict()
    result: OrderedDict[str, Any] = OrderedDict.fromkeys(entries)
    if hasattr(entries, "_metadata"):
        result._metadata = copy.deepcopy(entries._metadata)  # type: ignore[attr-defined]
    parameters = [p for p in dict.fromkeys(_named(model).values()) if has_correction(optimizer, p)]
    names = [name for name, entry in entries.items() if isinstance(entry, torch.Tensor) and is_plain(entry)]
    names = [name for name in names if not _is_extra(name)]
    # With the parameters themselves, so that each entry is found beside the one whose memory it shows.
    tensors = [*(p for p in parameters if is_plain(p)), *(entries[name] for name in names)]
    before = len(tensors) - len(names)
    for numbers, values in wide_copies(optimizer, tensors):
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
        elif source is not None and has_correction(optimizer, source) and is_sharded(source):
            if source not in wide:
                wide[source] = wrap(master_of(optimizer, source), source)
            result[name] = wide[source]
        elif is_lazy(entry):
            result[name] = entry  # nothing yet
        elif name not in names:
            # Quantised weights are left to those who read them; they are dense numbers in no dtype.
            is_weight = entry.dtype in NARROW and is_sharded(entry) and not _is_extra(name)
            result[name] = entry.detach().to(torch.float32 if is_weight else entry.dtype, copy=True)
        elif source is not None and has_correction(optimizer, source) and _window(entry) not in shown:
            # A hook has copied the weight, to the CPU for instance; unless it has changed it, its master is known.
            is_same = entry.shape == source.shape and torch.equal(
                entry.to(source.device, source.dtype), source
            )
            if is_same:
                result[name] = master_of(optimizer, source).to(entry.device)
    return result


def set_fp32_model_state_dict(
    optimizer: "FlashOptimizer", model: torch.nn.Module, fp32_state_dict: Mapping[str, Any], strict: bool
) -> IncompatibleKeys:
    """See FlashOptimizer."""
    refuse_fsdp1(model)
    fsdp.reshard(model)
    wrapper, model = model, unwrapped(model)
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
    write_masters(optimizer, values)
    return IncompatibleKeys(missing, unexpected)


def _without_prefix(
    wrapper: torch.nn.Module,
    model: torch.nn.Module,
    given: Mapping[str, Any],
    known: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """The entries under the model's own names, where they have those of its wrapper (`module.`)."""
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
    """What belongs to this rank's part of a parameter or buffer.

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
    # Weights that are never narrow (float64, integers) go round in their own dtype.
    allowed = (torch.float32,) if tensor.dtype in (*NARROW, torch.float32) else (torch.float32, tensor.dtype)
    if isinstance(tensor, torch.nn.Parameter) and value.dtype not in allowed:
        raise ValueError(f"Expected fp32 value for '{name}', got {value.dtype}.")
    part = local_like(value, tensor)
    if is_sharded(tensor) and part.shape == tensor.shape:
        part = slice_of(part, tensor)
    if part.shape != local_of(tensor).shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, its fp32 value {tuple(value.shape)}")
    return part
