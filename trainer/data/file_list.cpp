// Listing of data files.
#include "trainer/data/file_list.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "flashoptim/error.h"
#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/file_io.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWanted = "give a text file, a folder of text files or .bin token files";

bool hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

bool same_file(const struct stat& a, const struct stat& b) {
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// Collects the files below a folder. `above` are the folders that lead to it: a link to one of them has no
// end.
class Walk {
public:
    void into(const fs::path& folder, const struct stat& status) {
        above_.push_back(status);
        std::error_code error;
        for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
             entry.increment(error)) {
            if (!hidden(entry->path())) add(entry->path());
        }
        if (error) checkpoint::throw_io_error("list", folder, error.value());
        above_.pop_back();
    }

    std::vector<fs::path> take() {
        std::sort(files_.begin(), files_.end());
        return std::move(files_);
    }

private:
    void add(const fs::path& path) {
        struct stat status{};
        if (::stat(path.c_str(), &status) != 0) {
            const int reason = errno;
            std::error_code ignored;
            if (reason == ENOENT && fs::is_symlink(path, ignored)) {
                throw IoError(path.string() +
                              " is a link that leads nowhere; bring its file back or remove the link");
            }
            checkpoint::throw_io_error("read", path, reason);
        }
        if (S_ISDIR(status.st_mode)) {
            if (std::any_of(above_.begin(), above_.end(),
                            [&](const struct stat& folder) { return same_file(folder, status); })) {
                throw IoError(path.string() + " is a link to a folder that it lies in; remove the link");
            }
            into(path, status);
        } else if (S_ISREG(status.st_mode)) {
            files_.push_back(path);
        } else {
            throw IoError(
                path.string() +
                " is neither a file nor a folder; keep pipes, sockets and devices out of data folders");
        }
    }

    std::vector<struct stat> above_;
    std::vector<fs::path> files_;
};

// The ending of Windows' older tools counts, too.
bool has_token_ending(const fs::path& file) {
    const std::string ending = file.extension().string();
    return ending == ".bin" || ending == ".BIN";
}

fs::path real_path_of(const fs::path& path) {
    std::error_code error;
    fs::path real = checkpoint::real_path(path, error);
    if (error) checkpoint::throw_io_error("find", path, error.value());
    return real;
}

}  // namespace

std::vector<fs::path> list_files(const fs::path& path) {
    if (path.empty()) {
        throw IoError(std::string("the path of the data is empty; ") + kWanted);
    }
    struct stat status{};
    if (::stat(path.c_str(), &status) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) {
            throw IoError(path.string() + " does not exist; " + kWanted);
        }
        checkpoint::throw_io_error("read", path, errno);
    }
    if (!S_ISDIR(status.st_mode)) {
        return {path};  // a pipe or a device is named where it would be opened
    }
    Walk walk;
    walk.into(path, status);
    std::vector<fs::path> files = walk.take();
    if (files.empty()) {
        throw IoError(path.string() + " holds no file; " + kWanted);
    }
    return files;
}

bool is_token_data(const fs::path& path) {
    const std::vector<fs::path> files = list_files(path);
    const auto tokens = std::find_if(files.begin(), files.end(), has_token_ending);
    const auto other = std::find_if_not(files.begin(), files.end(), has_token_ending);
    if (tokens != files.end() && other != files.end()) {
        throw FormatError(tokens->string() + " is a token file beside " + other->string() +
                          ", which is none; give one file, or keep token files in a folder of their own");
    }
    return tokens != files.end();
}

bool would_be_listed(const fs::path& data, const fs::path& place) {
    std::error_code ignored;
    if (!fs::is_directory(data, ignored)) return false;
    const fs::path way = real_path_of(place).lexically_relative(real_path_of(data));
    if (way.empty() || *way.begin() == "..") return false;
    return std::none_of(way.begin(), way.end(),
                        [](const fs::path& part) { return hidden(part) && part != "."; });
}

}  // namespace flashoptim::trainer
