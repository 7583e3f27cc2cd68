// The memory that an optimizer keeps its state in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "flashoptim/step.h"

namespace flashoptim {

/// A zeroed buffer, aligned to a cache line. Large ones are pages that nobody has touched yet, huge ones where the system has
/// them: each comes to lie near the thread that steps it first.
class StateMemory {
public:
    StateMemory() = default;
    /// Buffers of one parameter differ in `stream` (0 to 7), which keeps the same element of each from lying a multiple of
    /// 4 KiB apart: the processor takes such loads and stores for one another.
    /// @throws std::bad_alloc
    explicit StateMemory(const BufferPlan& plan, int stream = 0);

    [[nodiscard]] std::byte* data() const { return data_; }
    [[nodiscard]] std::size_t bytes() const { return plan_.bytes(); }
    [[nodiscard]] std::span<std::byte> span() const { return {data_, bytes()}; }
    [[nodiscard]] std::span<std::uint16_t> scales() const {
        return {reinterpret_cast<std::uint16_t*>(data_), bytes() / sizeof(std::uint16_t)};
    }
    [[nodiscard]] const BufferPlan& plan() const { return plan_; }

private:
    struct Free {
        std::size_t mapped_bytes;  // 0: from operator new
        void operator()(std::byte* begin) const;
    };
    BufferPlan plan_;
    std::unique_ptr<std::byte, Free> owner_;
    std::byte* data_ = nullptr;
};

}  // namespace flashoptim
