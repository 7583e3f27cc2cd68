// One parameter's saved state brought into the storage that the optimizer has now. Works on
// bytes in memory; reads no files.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "flashoptim/layout.h"
#include "flashoptim/step.h"

namespace flashoptim::checkpoint {

/// How a parameter's buffers lie.
struct StateLayout {
    StoragePlan plan;
    Layout layout;
};

/// The buffers, in the sizes of a StoragePlan. An empty weight: the one in memory stays as it is.
struct StateBytes {
    std::vector<std::byte> weight;
    std::array<std::vector<std::byte>, kMaxBuffers> buffers;  // by place

    [[nodiscard]] std::vector<std::byte>& at(int place) { return buffers[static_cast<std::size_t>(place)]; }
    [[nodiscard]] const std::vector<std::byte>& at(int place) const {
        return buffers[static_cast<std::size_t>(place)];
    }
};

/// Throws FormatError, with `label`, for codes and scales that the format never writes.
void check_state(Rule rule, const StateLayout& layout, const StateBytes& state, const std::string& label);

/// `state` as `to` wants it. Weights, corrections and fp32 moments only change places where the storage is
/// the same; moments of another format or order are decoded and encoded to nearest. A correction of
/// another format is joined with its weight (the one in `state`, or `weight_in_memory` where that is
/// empty) and split again: the result then has a weight. Throws FormatError, with `label`, for values that
/// the new format cannot hold.
StateBytes convert_state(Rule rule, StateBytes state, const StateLayout& from, const StateLayout& to,
                         const std::vector<std::int64_t>& shape, const void* weight_in_memory,
                         const std::string& label);

}  // namespace flashoptim::checkpoint
