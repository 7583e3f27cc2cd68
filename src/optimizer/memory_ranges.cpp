// The address range of a tensor with any strides. The computation refuses strides that would overflow.
#include "memory_ranges.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "flashoptim/system/checked_arithmetic.h"

namespace flashoptim {

namespace {

/// Bytes from the data pointer to the first element in memory (at most 0) and to the last one (at least 0).
struct Reach {
    std::int64_t before = 0, behind = 0;
};
std::optional<Reach> reach_of(const TensorView& tensor) {
    const auto size = static_cast<std::int64_t>(size_of(tensor.dtype));
    Reach reach;
    for (std::size_t d = 0; d < tensor.shape.size(); ++d) {
        const auto elements = checked_multiply(tensor.shape[d] - 1, tensor.strides[d]);
        const auto bytes = elements ? checked_multiply(*elements, size) : std::nullopt;
        auto& side = bytes.value_or(0) < 0 ? reach.before : reach.behind;
        const auto sum = bytes ? checked_add(side, *bytes) : std::nullopt;
        if (!sum) return std::nullopt;
        side = *sum;
    }
    return reach;
}

}  // namespace

MemoryRange range_of(const TensorView& tensor, std::string_view name) {
    if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) return {};
    const auto reach = reach_of(tensor);
    const auto data = reinterpret_cast<std::uintptr_t>(tensor.data);
    std::uintptr_t end = 0;
    if (!reach || reach->before == INT64_MIN || data < static_cast<std::uint64_t>(-reach->before) ||
        __builtin_add_overflow(data, static_cast<std::uint64_t>(reach->behind), &end) ||
        __builtin_add_overflow(end, size_of(tensor.dtype), &end)) {
        throw InvalidArgument(std::string(name) +
                              " reaches out of the address space: check its shape and strides");
    }
    return {data - static_cast<std::uintptr_t>(-reach->before), end};
}

bool has_element_in(const MemoryRange& range, const TensorView& tensor) {
    const auto size = size_of(tensor.dtype);
    std::vector<std::int64_t> index(tensor.shape.size(), 0);
    auto at = reinterpret_cast<std::uintptr_t>(tensor.data);
    const auto move = [&](std::int64_t elements) { at += static_cast<std::uintptr_t>(elements) * size; };
    for (;;) {
        if (MemoryRange{at, at + size}.overlaps(range)) return true;
        std::size_t left = tensor.shape.size();
        for (; left > 0; --left) {
            const auto d = left - 1;
            if (++index[d] < tensor.shape[d]) {
                move(tensor.strides[d]);
                break;
            }
            index[d] = 0;
            move(-(tensor.strides[d] * (tensor.shape[d] - 1)));
        }
        if (left == 0) return false;
    }
}

}  // namespace flashoptim
