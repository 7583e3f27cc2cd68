// Lists of tensors that are stepped in two ways and compared, all elements bit for bit.
#pragma once

#include <algorithm>
#include <memory>

#include "../support/step_cases.h"
#include "flashoptim/step.h"

namespace flashoptim::cuda {

/// One tensor or shard to step.
struct TensorCase {
    std::vector<std::int64_t> shape;
    std::int64_t misalignment = 0;  // elements between an aligned address and the first of every buffer
    std::vector<std::int64_t> whole_shape{}, offset{};  // of a shard
};

/// A list of tensors in memory of the host, with noise for weights and gradients.
class TensorSet {
public:
    TensorSet(const RuleCase& rule, const StorageCase& storage, DType gradient,
              const std::vector<TensorCase>& cases)
        : gradient_dtype_(gradient) {
        Noise noise(1);
        for (const auto& c : cases) {
            auto& t = *tensors_.emplace_back(std::make_unique<Buffers>());
            TensorView view{nullptr, storage.weight, c.shape, row_major_strides(c.shape)};
            t.layout =
                c.whole_shape.empty()
                    ? layout_of(view)
                    : layout_of(view, Shard{c.whole_shape, row_major_strides(c.whole_shape), c.offset});
            StepItem item;
            item.layout = &t.layout;
            item.rule = rule.rule;
            item.hyperparameters = rule.hyperparameters;
            item.plan =
                plan_storage(rule.rule, rule.hyperparameters, storage.options, storage.weight, t.layout);
            item.gradient_dtype = gradient;
            t.misalignment = c.misalignment;
            item.weight = t.add(storage.weight, t.layout.numel);
            item.gradient = t.add(gradient, t.layout.numel);
            for (int place = 0; place < kMaxBuffers; ++place) {
                const auto& plan = item.plan.at(place);
                if (plan.count != 0) item.state.at(place) = t.add(plan.dtype, plan.count);
            }
            for (std::int64_t n = 0; n < t.layout.numel; ++n) {
                set(item.weight, storage.weight, n, static_cast<float>(noise.normal()));
            }
            items_.push_back(item);
        }
    }
    /// Gradients of step t; some are bad from the second step on.
    void fill_gradients(std::int64_t t) {
        Noise noise(100 + static_cast<std::uint64_t>(t));
        for (auto& item : items_) {
            item.step = t;
            item.has_momentum = t > 1;
            const auto numel = item.layout->numel;
            for (std::int64_t n = 0; n < numel; ++n) set_gradient(item, n, noise.wide());
            if (numel == 0) continue;
            if (t == 2) set_gradient(item, numel / 2, NAN);
            if (t == 3) set_gradient(item, numel - 1, -INFINITY);
        }
    }
    void set_gradient(StepItem& item, std::int64_t n, float value) {
        set(const_cast<void*>(item.gradient), gradient_dtype_, n, value);
    }
    static void set(void* data, DType dtype, std::int64_t n, float value) {
        auto* const to = static_cast<std::byte*>(data) + n * static_cast<std::int64_t>(size_of(dtype));
        const std::uint16_t half = dtype == DType::kBFloat16 ? bfloat16(value).bits : float16(value).bits;
        if (dtype == DType::kFloat32) {
            std::memcpy(to, &value, sizeof value);
        } else {
            std::memcpy(to, &half, sizeof half);
        }
    }
    [[nodiscard]] std::vector<StepItem>& items() { return items_; }
    /// Takes over the tensors of another set.
    void append(TensorSet other) {
        for (auto& t : other.tensors_) tensors_.push_back(std::move(t));
        items_.insert(items_.end(), other.items_.begin(), other.items_.end());
    }
    /// Calls visit(data, bytes) for the memory of every buffer.
    template <class Visit>
    void for_each_buffer(Visit visit) {
        for (auto& t : tensors_) {
            for (auto& b : t->buffers) visit(b.memory.get(), static_cast<std::size_t>(b.size));
        }
    }
    /// Every byte of every buffer, with what lies around it.
    [[nodiscard]] std::vector<std::vector<std::byte>> bytes() const {
        std::vector<std::vector<std::byte>> all;
        for (const auto& t : tensors_) {
            for (const auto& b : t->buffers) all.emplace_back(b.memory.get(), b.memory.get() + b.size);
        }
        return all;
    }
    /// Whether every element of every buffer has the same bits in both, or is a NaN in both, and so
    /// have the bytes around. A NaN's payload and sign are outside of every promise: those that
    /// processors and GPUs make differ.
    [[nodiscard]] bool same_as(const TensorSet& other) const {
        return std::ranges::equal(tensors_, other.tensors_, [](const auto& a, const auto& b) {
            return std::ranges::equal(a->buffers, b->buffers, Buffer::same);
        });
    }

private:
    struct Buffer {
        std::unique_ptr<std::byte[]> memory;
        std::int64_t size;
        DType dtype;

        static bool same(const Buffer& a, const Buffer& b) {
            if (a.size != b.size || a.dtype != b.dtype) return false;
            const auto bytes = static_cast<std::int64_t>(size_of(a.dtype));
            for (std::int64_t at = 0; at < a.size; at += bytes) {
                const bool same_bits = std::memcmp(a.memory.get() + at, b.memory.get() + at,
                                                   static_cast<std::size_t>(bytes)) == 0;
                if (!same_bits && !(a.has_nan_at(at) && b.has_nan_at(at))) return false;
            }
            return true;
        }
        [[nodiscard]] bool has_nan_at(std::int64_t at) const {
            if (!is_floating(dtype)) return false;
            std::uint32_t bits = 0;
            std::memcpy(&bits, memory.get() + at, size_of(dtype));
            if (dtype == DType::kFloat32) return (bits & 0x7fffffffU) > 0x7f800000U;
            return (bits & 0x7fffU) > (dtype == DType::kBFloat16 ? 0x7f80U : 0x7c00U);
        }
    };
    struct Buffers {
        static constexpr std::int64_t kAround = 64;  // bytes before and behind, which nobody may write
        Layout layout;
        std::int64_t misalignment = 0;
        std::vector<Buffer> buffers;

        void* add(DType dtype, std::int64_t count) {
            const auto bytes = static_cast<std::int64_t>(size_of(dtype));
            const auto size = (count + misalignment) * bytes + 2 * kAround;
            buffers.push_back({std::make_unique<std::byte[]>(static_cast<std::size_t>(size)), size, dtype});
            return buffers.back().memory.get() + kAround + misalignment * bytes;
        }
    };
    DType gradient_dtype_;
    std::vector<std::unique_ptr<Buffers>> tensors_;
    std::vector<StepItem> items_;
};

}  // namespace flashoptim::cuda
