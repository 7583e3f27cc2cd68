// The memory of an optimizer's state.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "flashoptim/device.h"
#include "flashoptim/step.h"

namespace flashoptim {

/// Zeroed memory that is mapped but not yet touched, so that each page is placed near the thread that first
/// steps it (first touch). Large buffers use transparent huge pages where available. Small buffers share
/// blocks, so that thousands of them lie together like one large buffer. A block is freed with the last of
/// its buffers. A copy of an arena shares its current block: memory that was taken from the copy and freed
/// may be given again by the original, as long as nothing has been written to it.
class StateArena {
public:
    /// Takes `bytes` zeroed bytes, aligned to a cache line. @throws std::bad_alloc
    std::shared_ptr<std::byte> take(std::size_t bytes);

private:
    std::shared_ptr<std::byte> block_;
    std::size_t used_ = 0, size_ = 0;  // of the current block
    std::size_t total_ = 0;            // of all blocks
};

/// A zeroed buffer of an arena.
class StateMemory {
public:
    StateMemory() = default;
    /// Allocates a buffer on the host. `stream` is its place in the state. It staggers the buffers of one
    /// parameter, so that the same element of two buffers is not a multiple of 4 KiB apart: the processor
    /// would take loads and stores at such distances for the same address (4K aliasing).
    /// @throws std::bad_alloc
    StateMemory(StateArena& arena, const BufferPlan& plan, int stream = 0);
    /// Allocates a buffer in device memory.
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

/// The state of a parameter: the plan and the memory of each of its buffers.
struct StoredState {
    StoragePlan plan;
    std::array<StateMemory, kMaxBuffers> buffers;  // by place

    [[nodiscard]] const StateMemory& at(int place) const { return buffers[static_cast<std::size_t>(place)]; }
    [[nodiscard]] const StateMemory& correction() const { return at(kCorrectionPlace); }

    StoredState() = default;
    /// Shares with `former` the buffers that have the same plan and allocates the others. A null `device`
    /// means host memory.
    /// @throws std::bad_alloc, or the device's error if it has no memory.
    StoredState(const StoragePlan& plan, const StoredState& former, StateArena& arena, Device* device);
};

}  // namespace flashoptim
