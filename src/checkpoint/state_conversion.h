// Converts the saved state of one parameter to the storage that the optimizer uses now. Works on bytes in
// memory; reads no files.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "flashoptim/layout.h"
#include "flashoptim/step.h"

namespace flashoptim::checkpoint {

/// The plan and the layout of a parameter's buffers.
struct StateLayout {
    StoragePlan plan;
    Layout layout;
};

/// The buffers, with the sizes of a StoragePlan. If `weight` is empty, the weight in memory stays as it is.
struct StateBytes {
    std::vector<std::byte> weight;
    std::array<std::vector<std::byte>, kMaxBuffers> buffers;  // in the order of StoragePlan

    [[nodiscard]] std::vector<std::byte>& at(int place) { return buffers[static_cast<std::size_t>(place)]; }
    [[nodiscard]] const std::vector<std::byte>& at(int place) const {
        return buffers[static_cast<std::size_t>(place)];
    }
};

/// Throws FormatError, with `label`, if the codes or scales are some that the format never writes.
void check_state(Rule rule, const StateLayout& layout, const StateBytes& state, const std::string& label);

/// Returns `state`, which is stored as `from` says, in the storage of `to`. If the format is the same,
/// weights, corrections and fp32 moments are only reordered. Quantised moments are decoded, then encoded to
/// nearest. If the correction has another format, it is joined with its weight (`state.weight`, or
/// `weight_in_memory` if that is empty) and split again; the result then has a weight. Throws FormatError,
/// with `label`, if the new format cannot hold a value.
StateBytes convert_state(Rule rule, StateBytes state, const StateLayout& from, const StateLayout& to,
                         const std::vector<std::int64_t>& shape, const void* weight_in_memory,
                         const std::string& label);

}  // namespace flashoptim::checkpoint
