// The control groups of this process, and functions that read the short files of /proc and /sys. Callers
// interpret the limits of a group.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flashoptim {

/// The content of a file; empty if it cannot be read. @throws std::bad_alloc, as all functions here
std::string read_text(const std::string& path);
/// The parts of a text between separators, without empty ones. They point into the text.
std::vector<std::string_view> split_text(std::string_view text, std::string_view separators);
/// The number that the whole text is; empty for other text or more than 64 bits.
std::optional<std::int64_t> whole_number_in(std::string_view text);

/// A folder with the files of a group.
struct ControlGroup {
    std::string folder;
    bool is_v2 = false;
};

/// The groups of this process that may have limits of `controller` ("cpu", "memory"): in each hierarchy its
/// own group and those above it, up to the mount point. `root` is prepended to all system paths.
std::vector<ControlGroup> control_groups(std::string_view controller, const std::string& root = {});

}  // namespace flashoptim

#endif
