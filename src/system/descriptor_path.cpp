// Recognises the paths under which the system shows the descriptors of a process.
#include "flashoptim/system/descriptor_path.h"

#include <charconv>
#include <string>
#include <system_error>

namespace flashoptim::checkpoint {

namespace fs = std::filesystem;

std::optional<int> descriptor_named(const fs::path& path) {
    constexpr int kMostLinks = 40;
    std::error_code error;
    fs::path place = fs::absolute(path, error);
    for (int links = 0; !error && links < kMostLinks; ++links) {
        const fs::path parent = fs::canonical(place.parent_path(), error);
        if (error) break;
        const std::string name = place.filename().string();
        int number = -1;
        const auto [end, fault] = std::from_chars(name.data(), name.data() + name.size(), number);
        const bool is_number = fault == std::errc() && end == name.data() + name.size() && number >= 0;
        std::error_code ignored;
        for (const char* folder : {"/proc/self/fd", "/dev/fd"}) {
            if (is_number && parent == fs::canonical(folder, ignored)) return number;
        }
        if (!fs::is_symlink(fs::symlink_status(place, ignored))) break;
        place = parent / fs::read_symlink(place, error);
    }
    return std::nullopt;
}

}  // namespace flashoptim::checkpoint
