"""Finds tensors that share memory, and makes copies that share it in the same way. No models here."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy


class _Extent(NamedTuple):
    """The address range of a tensor in bytes, from its first element to the end of its last one."""

    space: tuple[object, ...]  # extents of different spaces never overlap
    begin: int
    end: int
    number: int  # index of the tensor
    storage: int


def check_type(value: object, kind: type, name: str) -> None:
    """Refuses an argument of another type.

    Raises:
        TypeError: that names the argument and what it must be.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}: it must be a {kind.__module__}.{kind.__name__}")


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether the tensor is made of other tensors (DTensor, quantised weights) and defines its operations."""
    has_own_operations = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return has_own_operations and not isinstance(tensor, FakeTensor)


def has_several_parts(tensor: torch.Tensor) -> bool:
    """Whether the tensor consists of several tensors of its shape and applies operations to each."""
    if not hasattr(type(tensor), "__tensor_flatten__") or tensor.is_nested:
        return False
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return sum(getattr(tensor, name).shape == tensor.shape for name in names) > 1


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a plain view of memory: not a wrapper, not sparse, not uninitialised."""
    if is_lazy(tensor) or is_wrapper(tensor):
        return False
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested


def _span(tensor: torch.Tensor) -> int:
    """Elements from the first one to the last one."""
    return 1 + sum(int(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether the storage holds every element. FSDP1 frees storages of live tensors; reading them would
    crash.
    """
    if not is_plain(tensor) or tensor.numel() == 0:
        return True
    end = (int(tensor.storage_offset()) + _span(tensor)) * tensor.element_size()
    return end <= tensor.untyped_storage().nbytes()


def _extent(tensor: torch.Tensor, number: int) -> _Extent:
    """The extent of a tensor. The space of a tensor without memory (meta, fake) is its storage."""
    storage = tensor.untyped_storage()
    has_memory = storage.device.type != "meta"
    space = (tensor.device,) if has_memory else (tensor.device, storage._cdata)
    size = tensor.element_size()
    begin = (storage.data_ptr() if has_memory else 0) + int(tensor.storage_offset()) * size
    return _Extent(space, begin, begin + _span(tensor) * size, number, storage._cdata)


def _runs(extents: Iterable[_Extent], may_touch: bool = False) -> Iterator[list[_Extent]]:
    """Runs of extents that overlap, or with `may_touch` are adjacent in one storage."""
    run: list[_Extent] = []
    end = 0
    for extent in sorted(extents, key=lambda extent: (repr(extent.space), extent.begin)):
        is_beside = may_touch and run and extent.begin == end and extent.storage == run[-1].storage
        if run and (extent.space != run[-1].space or not (extent.begin < end or is_beside)):
            yield run
            run = []
        end = max(end, extent.end) if run else extent.end
        run.append(extent)
    if run:
        yield run


def _find(owners: list[int], n: int) -> int:
    while owners[n] != n:
        n = owners[n]
    return n


def _by_elements(run: list[_Extent], tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Divides a run by shared elements: the extents of two columns of a matrix overlap, their elements do
    not.
    """
    first, end = run[0].begin, max(extent.end for extent in run)
    has_whole = any(
        (extent.begin, extent.end) == (first, end) and _is_dense(tensors[extent.number]) for extent in run
    )
    if len(run) == 1 or has_whole:
        return [[extent.number for extent in run]]
    unit = math.gcd(*(tensors[e.number].element_size() for e in run), *(e.begin - first for e in run))
    marks = torch.full(((end - first) // unit,), -1, dtype=torch.int32, device="cpu")
    owners = list(range(len(run)))
    for n, extent in enumerate(run):
        part = _part(marks, tensors[extent.number], (extent.begin - first) // unit, unit)
        for other in part[part >= 0].unique().tolist():
            owners[_find(owners, other)] = _find(owners, n)
        part.fill_(n)
    groups: dict[int, list[int]] = {}
    for n, extent in enumerate(run):
        groups.setdefault(_find(owners, n), []).append(extent.number)
    return list(groups.values())


def _part(marks: torch.Tensor, tensor: torch.Tensor, offset: int, unit: int) -> torch.Tensor:
    """The marks of a tensor's elements; all of its extent if its elements overlap each other."""
    units = tensor.element_size() // unit
    dims = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if s > 0 and n > 1)
    strides, sizes = [units * s for s, _ in dims], [n for _, n in dims]
    reach = 1
    for stride, size in dims:
        if stride < reach:
            return marks[offset : offset + units * _span(tensor)]
        reach += (size - 1) * stride
    return marks.as_strided([*sizes, units], [*strides, 1], offset)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.numel() == _span(tensor) and 0 not in tensor.stride()


def _laid_out(tensors: Sequence[torch.Tensor]) -> tuple[list[list[int]], list[_Extent]]:
    """Tensors without an extent (empty, not plain), grouped by object, and the extents of the others."""
    alone: dict[int, list[int]] = {}
    extents = []
    for n, tensor in enumerate(tensors):
        if is_plain(tensor) and tensor.numel():
            extents.append(_extent(tensor, n))
        else:
            alone.setdefault(id(tensor), []).append(n)
    return list(alone.values()), extents


def sharing(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """The indices of the tensors, grouped by shared elements.

    Tensors are told apart by their memory: storage, offset, shape and strides. Empty ones, and those that are
    not plain, have something in common only with themselves.
    """
    groups, extents = _laid_out(tensors)
    for run in _runs(extents):
        groups += _by_elements(run, tensors)
    return groups


def neighbours(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """The indices of the tensors, grouped if they overlap or are adjacent, so that a group is copied at once.

    A group has one dtype.
    """
    groups, extents = _laid_out(tensors)
    of_one_dtype = []
    for extent in extents:
        tensor = tensors[extent.number]
        grid = extent.begin % tensor.element_size()
        of_one_dtype.append(extent._replace(space=(*extent.space, tensor.dtype, grid)))
    return groups + [[extent.number for extent in run] for run in _runs(of_one_dtype, may_touch=True)]


@torch.no_grad()
def copies(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Copies in another dtype with the same shapes and strides, which share memory as the originals do.

    Tensors that are not plain are converted by their own `to`.
    """
    made: list[torch.Tensor | None] = [None] * len(tensors)
    for numbers in neighbours(tensors):
        first = tensors[numbers[0]]
        if not is_plain(first) or not first.numel():
            copied = [first.data.to(dtype)] * len(numbers)
        else:
            with torch._C.DisableTorchFunctionSubclass():
                copied = _copied([tensors[n] for n in numbers], dtype)
        for n, copy in zip(numbers, copied, strict=True):
            made[n] = copy
    return made  # type: ignore[return-value]


def _copied(run: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    extents = [_extent(tensor, n) for n, tensor in enumerate(run)]
    size = run[0].element_size()
    first, end = min(e.begin for e in extents), max(e.end for e in extents)
    memory = run[0].detach().new_empty(((end - first) // size,), dtype=dtype)
    done = 0
    for extent in sorted(extents, key=lambda extent: extent.begin):
        tensor = run[extent.number].detach()
        begin, stop = max(done, (extent.begin - first) // size), (extent.end - first) // size
        if begin < stop:
            offset = tensor.storage_offset() + begin - (extent.begin - first) // size
            memory[begin:stop] = tensor.as_strided((stop - begin,), (1,), offset)
            done = stop
    return [
        memory.as_strided(tensor.shape, tensor.stride(), (extent.begin - first) // size)
        for tensor, extent in zip(run, extents, strict=True)
    ]
