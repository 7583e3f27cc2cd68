// Reads /proc/self/cgroup and /proc/self/mountinfo (cgroups(7), proc(5)).
#include "flashoptim/system/control_groups.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>

namespace flashoptim {

std::string read_text(const std::string& path) {
    std::string text;
    std::ifstream file(path, std::ios::binary);
    std::array<char, 4096> part{};
    while (file) {
        file.read(part.data(), part.size());
        text.append(part.data(), static_cast<std::size_t>(file.gcount()));
    }
    return text;
}

std::vector<std::string_view> split_text(std::string_view text, std::string_view separators) {
    std::vector<std::string_view> parts;
    while (!text.empty()) {
        const auto end = std::min(text.find_first_of(separators), text.size());
        if (end != 0) parts.push_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return parts;
}
std::optional<std::int64_t> whole_number_in(std::string_view text) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return number;
}

namespace {

bool has_item(std::string_view comma_separated, std::string_view wanted) {
    const auto items = split_text(comma_separated, ",");
    return std::find(items.begin(), items.end(), wanted) != items.end();
}

/// Decodes the octal escapes of the kernel's mount table: "\040" is a space.
std::string unescaped(std::string_view path) {
    std::string plain;
    for (std::size_t n = 0; n < path.size(); ++n) {
        unsigned code = 0;
        if (path[n] == '\\' && n + 3 < path.size() &&
            std::from_chars(&path[n + 1], &path[n + 4], code, 8).ptr == &path[n] + 4) {
            plain += static_cast<char>(code);
            n += 3;
        } else {
            plain += path[n];
        }
    }
    return plain;
}

/// A mounted hierarchy of control groups that may have the controller.
struct Hierarchy {
    bool is_v2 = false;
    std::string group_at_mount;  // the group at the mount point
    std::string mount;
};

/// The hierarchies in /proc/self/mountinfo (proc(5)).
std::vector<Hierarchy> mounted_hierarchies(std::string_view mountinfo, std::string_view controller) {
    std::vector<Hierarchy> found;
    for (const auto line : split_text(mountinfo, "\n")) {
        const auto middle = line.find(" - ");
        if (middle == std::string_view::npos) continue;
        const auto before = split_text(line.substr(0, middle), " "),
                   after = split_text(line.substr(middle + 3), " ");
        if (before.size() < 5 || after.empty()) continue;
        const bool is_v2 = after[0] == "cgroup2";
        const bool is_v1 = after[0] == "cgroup" && after.size() > 2 && has_item(after[2], controller);
        if (is_v1 || is_v2) found.push_back({is_v2, unescaped(before[3]), unescaped(before[4])});
    }
    return found;
}

/// The path of a group below the mount point. Empty if it is the group at the mount point. Also empty if the
/// group is outside of the mount, as in a container without its own cgroup namespace.
std::string below_mount(std::string_view group, std::string_view group_at_mount) {
    if (group_at_mount != "/") {
        if (group.substr(0, group_at_mount.size()) != group_at_mount) return {};
        group.remove_prefix(group_at_mount.size());
        if (!group.empty() && group[0] != '/') return {};
    }
    std::string path;
    for (const auto part : split_text(group, "/")) {
        if (part == "..") return {};
        path.append("/").append(part);
    }
    return path;
}

/// The usual mount points, used if mountinfo has none.
std::vector<Hierarchy> usual_hierarchies(std::string_view controllers, std::string_view controller) {
    const std::string top = "/sys/fs/cgroup";
    std::vector<Hierarchy> usual = {{true, "/", top}, {false, "/", top + "/" + std::string(controller)}};
    if (controllers != controller) usual.push_back({false, "/", top + "/" + std::string(controllers)});
    return usual;
}

}  // namespace

std::vector<ControlGroup> control_groups(std::string_view controller, const std::string& root) {
    const auto groups = read_text(root + "/proc/self/cgroup");
    const auto mountinfo = read_text(root + "/proc/self/mountinfo");
    const auto mounted = mounted_hierarchies(mountinfo, controller);
    std::vector<ControlGroup> found;
    for (const auto line : split_text(groups, "\n")) {  // "4:cpu,cpuacct:/group"; v2: "0::/group"
        const auto first = line.find(':');
        const auto second = first == std::string_view::npos ? first : line.find(':', first + 1);
        if (second == std::string_view::npos) continue;
        const auto controllers = line.substr(first + 1, second - first - 1);
        const bool is_v2 = controllers.empty();
        if (!is_v2 && !has_item(controllers, controller)) continue;
        for (const auto& hierarchy : mounted.empty() ? usual_hierarchies(controllers, controller) : mounted) {
            if (hierarchy.is_v2 != is_v2) continue;
            auto below = below_mount(line.substr(second + 1), hierarchy.group_at_mount);
            for (;;) {
                found.push_back({root + hierarchy.mount + below, is_v2});
                if (below.empty()) break;
                below.erase(below.rfind('/'));
            }
        }
    }
    return found;
}

}  // namespace flashoptim
