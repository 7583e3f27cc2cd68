// What a killed save leaves beside its target, made by hand, and a folder's whole content to compare.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "flashoptim/system/atomic_path.h"
#include "support.h"

namespace flashoptim::checkpoint {

inline const std::string kRandom = "0123456789abcdef0123456789abcdef";

inline std::string name_of(const std::string& target) { return workspace_name(target, kRandom); }

inline std::string journal_of(const std::string& target, const std::vector<std::string>& names = {}) {
    std::string text = journal_opening(target, name_of(target));
    for (const std::string& name : names) text += name + '\0';
    return text;
}

/// A workspace of `target` as a killed save leaves it.
inline std::filesystem::path make_workspace(const TestFolder& folder, const std::string& target,
                                            const std::vector<std::string>& names) {
    const std::filesystem::path path = folder / name_of(target);
    std::filesystem::create_directories(path);
    write_raw(path / "journal", journal_of(target, names));
    return path;
}

/// Everything in a folder with its kind and content. Links are not followed.
inline std::map<std::string, std::string> snapshot(const std::filesystem::path& folder) {
    std::map<std::string, std::string> found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
        const std::filesystem::file_status status = entry.symlink_status();
        std::string what = std::to_string(static_cast<int>(status.type())) + " " +
                           std::to_string(static_cast<unsigned>(status.permissions()));
        if (std::filesystem::is_regular_file(status)) what += read_raw(entry.path());
        if (std::filesystem::is_symlink(status)) what += std::filesystem::read_symlink(entry.path()).string();
        found[entry.path().string().substr(folder.string().size())] = what;
    }
    return found;
}

inline const std::vector<std::string> kFiles = {"checkpoint.json", "metadata.json", "optimizer.safetensors",
                                                "weights.safetensors"};

}  // namespace flashoptim::checkpoint
