// Finds tensors that share memory by the positions of their elements.
#include "shared_memory.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

namespace flashoptim::libtorch {

namespace {

/// Extents in different spaces never overlap. A space is a device, the storage of a tensor without memory
/// (meta) and, if only tensors of one dtype are grouped, the dtype and the offset within an element.
using Space = std::tuple<int, int, const void*, int, std::int64_t>;

/// The bytes that a tensor spans, from its first element to the end of its last one.
struct Extent {
    Space space;
    std::int64_t begin;
    std::int64_t end;
    std::size_t number;
};

using Run = std::vector<Extent>;
using Groups = std::vector<std::vector<std::size_t>>;

bool is_plain(const torch::Tensor& tensor) {
    return tensor.layout() == torch::kStrided && tensor.has_storage() && !tensor.is_quantized();
}

std::int64_t item_size(const torch::Tensor& tensor) {
    return static_cast<std::int64_t>(tensor.element_size());
}

/// The number of element positions from the first to the last element.
std::int64_t span_of(const torch::Tensor& tensor) {
    std::int64_t span = 1;
    for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) span += (tensor.size(dim) - 1) * tensor.stride(dim);
    return span;
}

Extent extent_of(const torch::Tensor& tensor, std::size_t number, bool by_dtype) {
    const auto& storage = tensor.storage();
    const auto* memory = storage.data();
    const auto device = tensor.device();
    const auto size = item_size(tensor);
    const auto begin =
        static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(memory)) + tensor.storage_offset() * size;
    const void* owner = memory == nullptr ? storage.unsafeGetStorageImpl() : nullptr;
    return {{static_cast<int>(device.type()), static_cast<int>(device.index()), owner,
             by_dtype ? static_cast<int>(tensor.scalar_type()) : -1, by_dtype ? begin % size : 0},
            begin,
            begin + span_of(tensor) * size,
            number};
}

/// The extents of strided tensors, in runs that overlap, and the other tensors, by object.
std::pair<Groups, std::vector<Run>> runs_of(const std::vector<torch::Tensor>& tensors, bool by_dtype) {
    std::map<const void*, std::vector<std::size_t>> alone;
    std::vector<Extent> extents;
    for (std::size_t n = 0; n < tensors.size(); ++n) {
        if (is_plain(tensors[n]) && tensors[n].numel() != 0) {
            extents.push_back(extent_of(tensors[n], n, by_dtype));
        } else {
            alone[tensors[n].unsafeGetTensorImpl()].push_back(n);
        }
    }
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
        return std::tie(a.space, a.begin, a.number) < std::tie(b.space, b.begin, b.number);
    });
    std::vector<Run> runs;
    std::int64_t end = 0;
    for (const auto& extent : extents) {
        if (runs.empty() || extent.space != runs.back().back().space || extent.begin >= end) {
            runs.emplace_back();
            end = extent.end;
        }
        end = std::max(end, extent.end);
        runs.back().push_back(extent);
    }
    Groups groups;
    for (auto& [object, numbers] : alone) groups.push_back(std::move(numbers));
    return {std::move(groups), std::move(runs)};
}

std::int64_t end_of(const Run& run) {
    std::int64_t end = run.front().end;
    for (const auto& extent : run) end = std::max(end, extent.end);
    return end;
}

/// The part of `marks` that a tensor covers, with one mark per `unit` bytes. The whole extent if elements of
/// the tensor overlap each other.
torch::Tensor part_of(const torch::Tensor& marks, const torch::Tensor& tensor, std::int64_t offset,
                      std::int64_t unit) {
    const auto units = item_size(tensor) / unit;
    std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride and size
    for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
        if (tensor.size(dim) > 1 && tensor.stride(dim) > 0)
            dims.emplace_back(tensor.stride(dim), tensor.size(dim));
    }
    std::sort(dims.begin(), dims.end());
    std::vector<std::int64_t> sizes{units};
    std::vector<std::int64_t> strides{1};
    std::int64_t reach = 1;
    for (const auto& [stride, size] : dims) {
        if (stride < reach) return marks.slice(0, offset, offset + units * span_of(tensor));
        reach += (size - 1) * stride;
        sizes.push_back(size);
        strides.push_back(units * stride);
    }
    return marks.as_strided(sizes, strides, offset);
}

std::size_t owner_of(const std::vector<std::size_t>& owners, std::size_t n) {
    while (owners[n] != n) n = owners[n];
    return n;
}

/// Splits a run into groups that share elements. Extents may overlap without that: columns of one matrix.
Groups by_elements(const Run& run, const std::vector<torch::Tensor>& tensors) {
    const auto first = run.front().begin;
    const auto end = end_of(run);
    const bool has_whole = std::any_of(run.begin(), run.end(), [&](const Extent& extent) {
        return extent.begin == first && extent.end == end &&
               tensors[extent.number].is_non_overlapping_and_dense();
    });
    if (run.size() == 1 || has_whole) {
        std::vector<std::size_t> all;
        for (const auto& extent : run) all.push_back(extent.number);
        return {all};
    }
    std::int64_t unit = 0;
    for (const auto& extent : run) {
        unit = std::gcd(std::gcd(unit, item_size(tensors[extent.number])), extent.begin - first);
    }
    const auto marks = torch::full({(end - first) / unit}, -1, torch::kInt32);
    std::vector<std::size_t> owners(run.size());
    std::iota(owners.begin(), owners.end(), std::size_t{0});
    for (std::size_t n = 0; n < run.size(); ++n) {
        const auto part = part_of(marks, tensors[run[n].number], (run[n].begin - first) / unit, unit);
        const auto met = std::get<0>(torch::_unique(part.masked_select(part.ge(0))));
        for (std::int64_t other = 0; other < met.numel(); ++other) {
            const auto owner = static_cast<std::size_t>(met[other].item<std::int64_t>());
            owners[owner_of(owners, owner)] = owner_of(owners, n);
        }
        part.fill_(static_cast<std::int64_t>(n));
    }
    std::map<std::size_t, std::vector<std::size_t>> groups;
    for (std::size_t n = 0; n < run.size(); ++n) groups[owner_of(owners, n)].push_back(run[n].number);
    Groups found;
    for (auto& [owner, numbers] : groups) found.push_back(std::move(numbers));
    return found;
}

}  // namespace

std::vector<std::vector<std::size_t>> sharing(const std::vector<torch::Tensor>& tensors) {
    auto [groups, runs] = runs_of(tensors, /*by_dtype=*/false);
    for (const auto& run : runs) {
        for (auto& group : by_elements(run, tensors)) groups.push_back(std::move(group));
    }
    return groups;
}

void copy_as(const std::vector<torch::Tensor>& tensors, torch::Dtype dtype,
             const std::function<void(std::size_t, const torch::Tensor&)>& take) {
    const torch::NoGradGuard no_gradients;
    const auto [groups, runs] = runs_of(tensors, /*by_dtype=*/true);
    for (const auto& group : groups) {
        const auto copied = tensors[group.front()].detach().to(dtype);
        for (const auto number : group) take(number, copied);
    }
    for (const auto& run : runs) {
        const auto size = item_size(tensors[run.front().number]);
        const auto first = run.front().begin;
        const auto memory =
            torch::empty({(end_of(run) - first) / size},
                         tensors[run.front().number].options().dtype(dtype).requires_grad(false));
        std::vector<torch::Tensor> copied;
        std::int64_t done = 0;
        for (const auto& extent : run) {
            const auto tensor = tensors[extent.number].detach();
            const auto start = (extent.begin - first) / size;
            const auto stop = (extent.end - first) / size;
            if (const auto begin = std::max(done, start); begin < stop) {
                const auto offset = tensor.storage_offset() + begin - start;
                memory.slice(0, begin, stop).copy_(tensor.as_strided({stop - begin}, {1}, offset));
                done = stop;
            }
            copied.push_back(memory.as_strided(tensor.sizes(), tensor.strides(), start));
        }
        for (std::size_t n = 0; n < run.size(); ++n) take(run[n].number, copied[n]);
    }
}

}  // namespace flashoptim::libtorch
