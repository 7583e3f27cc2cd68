// The control groups of this process, and how the short files of /proc and /sys are read. What a
// group limits is its reader's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flashoptim {

/// A file as a whole; empty where it cannot be read. @throws std::bad_alloc, as all of these
std::string read_text(const std::string& path);
/// The parts of a text between separators, empty ones left out. They point into the text.
std::vector<std::string_view> split_text(std::string_view text, std::string_view separators);
/// Nothing for what is not wholly a number, or one of more than 64 bits.
std::optional<std::int64_t> whole_number_in(std::string_view text);

/// A folder with the files of a group.
struct ControlGroup {
    std::string folder;
    bool is_v2 = false;
};

/// The groups of this process that may limit what `controller` ("cpu", "memory") is about: in each hierarchy
/// its own and those above it, up to the mount point. `root` is what all paths of the system begin with.
std::vector<ControlGroup> control_groups(std::string_view controller, const std::string& root = {});

}  // namespace flashoptim
