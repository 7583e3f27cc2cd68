// Lists of tensors to step in two ways: what is compared are all their bytes.
#pragma once

#include <memory>

#include "../core/support.h"
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
            const auto buffer = [&](const BufferPlan& plan) {
                return plan.count == 0 ? nullptr : t.add(plan.dtype, plan.count);
            };
            item.state = {buffer(item.plan.correction), buffer(item.plan.first),
                          buffer(item.plan.first_scales), buffer(item.plan.second),
                          buffer(item.plan.second_scales)};
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
            for (auto& [memory, size] : t->buffers) visit(memory.get(), static_cast<std::size_t>(size));
        }
    }
    /// Every byte of every buffer, with what lies around it.
    [[nodiscard]] std::vector<std::vector<std::byte>> bytes() const {
        std::vector<std::vector<std::byte>> all;
        for (const auto& t : tensors_) {
            for (const auto& [memory, size] : t->buffers) all.emplace_back(memory.get(), memory.get() + size);
        }
        return all;
    }

private:
    struct Buffers {
        static constexpr std::int64_t kAround = 64;  // bytes before and behind, which nobody may write
        Layout layout;
        std::int64_t misalignment = 0;
        std::vector<std::pair<std::unique_ptr<std::byte[]>, std::int64_t>> buffers;

        void* add(DType dtype, std::int64_t count) {
            const auto bytes = static_cast<std::int64_t>(size_of(dtype));
            const auto size = (count + misalignment) * bytes + 2 * kAround;
            auto& memory =
                buffers.emplace_back(std::make_unique<std::byte[]>(static_cast<std::size_t>(size)), size);
            return memory.first.get() + kAround + misalignment * bytes;
        }
    };
    DType gradient_dtype_;
    std::vector<std::unique_ptr<Buffers>> tensors_;
    std::vector<StepItem> items_;
};

}  // namespace flashoptim::cuda
