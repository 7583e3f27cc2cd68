// The memory that an optimizer keeps its state in.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "flashoptim/device.h"
#include "flashoptim/step.h"

namespace flashoptim {

/// Zeroed pages that nobody has touched yet, huge ones where the system has them and they pay: each comes to
/// lie near the thread that steps it first. Small buffers share blocks, so that thousands of them are no more
/// scattered than one large one; a block goes with the last of its buffers. What was taken from a copy of an
/// arena, and is gone, the arena itself may give again as long as nobody has written there.
class StateArena {
public:
    /// `bytes` on a cache line. @throws std::bad_alloc
    std::shared_ptr<std::byte> take(std::size_t bytes);

private:
    std::shared_ptr<std::byte> block_;
    std::size_t used_ = 0, size_ = 0;  // of the block
    std::size_t total_ = 0;            // of all blocks
};

/// A zeroed buffer of an arena.
class StateMemory {
public:
    StateMemory() = default;
    /// Buffers of one parameter differ in `stream` (their place), which keeps the same element of each from
    /// lying a multiple of 4 KiB apart: the processor takes such loads and stores for one another.
    /// @throws std::bad_alloc
    StateMemory(StateArena& arena, const BufferPlan& plan, int stream = 0);
    /// In memory of a device.
    StateMemory(Device& device, const BufferPlan& plan) : plan_(plan), data_(device.allocate(plan.bytes())) {}

    [[nodiscard]] std::byte* data() const { return data_.get(); }
    [[nodiscard]] std::size_t bytes() const { return plan_.bytes(); }
    [[nodiscard]] std::span<std::byte> span() const { return {data(), bytes()}; }
    [[nodiscard]] std::span<std::uint16_t> scales() const {
        return {reinterpret_cast<std::uint16_t*>(data()), bytes() / sizeof(std::uint16_t)};
    }
    [[nodiscard]] const BufferPlan& plan() const { return plan_; }

private:
    BufferPlan plan_;
    std::shared_ptr<std::byte> data_;
};

/// What a parameter is stored as, made together: the plan, and the memory for every buffer of it.
struct StoredState {
    StoragePlan plan;
    std::array<StateMemory, kMaxBuffers> buffers;  // by place

    [[nodiscard]] const StateMemory& at(int place) const { return buffers[static_cast<std::size_t>(place)]; }
    [[nodiscard]] const StateMemory& correction() const { return at(kCorrectionPlace); }

    StoredState() = default;
    /// Buffers that `former` has alike are shared with it. `device` is null where state
    /// lies in memory of the host.
    /// @throws std::bad_alloc, or what the device throws for want of memory
    StoredState(const StoragePlan& plan, const StoredState& former, StateArena& arena, Device* device);
};

}  // namespace flashoptim
