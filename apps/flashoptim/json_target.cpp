// Whether results may go to a place, and taking them there.
#include "json_target.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/descriptor_path.h"
#include "flashoptim/system/message.h"
#include "process_setup.h"
#include "trainer/data/file_list.h"

namespace flashoptim::app {
namespace {

namespace fs = std::filesystem;
using checkpoint::path_label;

std::string label(const fs::path& file) { return "--json " + path_label(file); }

fs::path real_path_of(const fs::path& path) {
    std::error_code error;
    auto real = checkpoint::real_path(path, error);
    if (error) throw IoError("cannot find " + path_label(path) + ": " + error.message() + "; check the path");
    return real;
}

/// Throws the IoError for what the system says against the file.
[[noreturn]] void refuse_for(const fs::path& file, int error_number) {
    throw IoError("cannot write " + label(file) + ": " + std::generic_category().message(error_number) +
                  "; check the path and its permissions");
}

/// The way from `folder` to `path` if that lies below it or is the same (then "."); both are real paths.
std::optional<fs::path> way_from(const fs::path& folder, const fs::path& path) {
    auto way = path.lexically_relative(folder);
    if (way.empty() || *way.begin() == "..") return std::nullopt;
    return way;
}

/// The file that results would replace, if there is one.
class Existing {
public:
    explicit Existing(const fs::path& real) : exists_(::stat(real.c_str(), &status_) == 0) {
        if (!exists_) error_ = errno;
    }

    /// Why it cannot be told what is there; 0: it can, be it nothing.
    [[nodiscard]] int error() const { return error_ == ENOENT ? 0 : error_; }

    [[nodiscard]] mode_t type() const { return exists_ ? status_.st_mode & S_IFMT : 0; }
    [[nodiscard]] bool is(const fs::path& other) const {
        struct stat status{};
        return exists_ && ::stat(other.c_str(), &status) == 0 && status.st_dev == status_.st_dev &&
               status.st_ino == status_.st_ino;
    }
    /// The file in `place`, which may be a folder, that it is by any name.
    [[nodiscard]] std::optional<fs::path> in(const fs::path& place) const {
        if (!exists_) return std::nullopt;
        if (is(place)) return place;
        std::error_code error;
        for (fs::recursive_directory_iterator
                 entry(place, fs::directory_options::skip_permission_denied, error),
             end;
             !error && entry != end; entry.increment(error)) {
            if (is(entry->path())) return entry->path();
        }
        return std::nullopt;
    }

private:
    struct stat status_{};
    bool exists_;
    int error_ = 0;
};

[[noreturn]] void refuse(const fs::path& file, const fs::path& what, const char* kind) {
    throw InvalidArgument(label(file) + " is " + path_label(what) + ", " + kind + "; give another file");
}

void refuse_data(const fs::path& file, const fs::path& real, const Existing& existing, const fs::path& data) {
    if (const auto found = existing.in(data)) refuse(file, *found, "data that the run reads");
    if (trainer::would_be_listed(data, real)) {
        throw InvalidArgument(label(file) + " lies in the data folder " + path_label(data) +
                              ", so the next run would train on it; give another place");
    }
}

void refuse_run(const fs::path& file, const fs::path& real, const Existing& existing,
                const RunPlaces& places) {
    const auto out = real_path_of(places.out);
    const auto way = way_from(out, real);
    if (way && *way == ".") refuse(file, places.out, "the folder of the run");
    const auto name = way ? way->begin()->native() : std::string();
    if (name.starts_with(".flashoptim")) refuse(file, real, "a name that the run needs");
    for (const auto& own : places.names) {
        if (name == own) refuse(file, real, "a name that the run needs");
        if (const auto found = existing.in(out / own)) refuse(file, *found, "a file of the run");
    }
    std::error_code error;
    for (fs::directory_iterator entry(out, error), end; !error && entry != end; entry.increment(error)) {
        if (!entry->path().filename().native().starts_with(".flashoptim")) continue;
        if (const auto found = existing.in(entry->path())) refuse(file, *found, "a file of the run");
    }
}

/// Nothing of `places` is behind it.
void check_apart(const fs::path& file, const fs::path& real, const RunPlaces& places) {
    const Existing existing(real);
    for (const auto& data : places.data) {
        if (!data.empty()) refuse_data(file, real, existing, data);
    }
    if (!places.out.empty()) refuse_run(file, real, existing, places);
    if (!places.resume.empty()) {
        if (const auto found = existing.in(places.resume))
            refuse(file, *found, "a file of the run to resume");
    }
}

void check_descriptor(const fs::path& file, int descriptor) {
    const int flags = ::fcntl(descriptor, F_GETFL);
    if (flags < 0 || was_closed(descriptor)) {
        throw IoError(label(file) + " is closed; give a file, or let that go somewhere");
    }
    if ((flags & O_ACCMODE) == O_RDONLY)
        throw IoError(label(file) + " is open for reading only; give a file");
}

checkpoint::OutputFile open_pipe(const fs::path& file) {
    checkpoint::FileDescriptor pipe(::open(file.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    if (!pipe && errno == ENXIO) {
        throw IoError(label(file) + " is a pipe that nobody reads; start its reader first, or give a file");
    }
    if (!pipe) refuse_for(file, errno);
    // A slow reader is waited for from here on.
    ::fcntl(pipe.get(), F_SETFL, ::fcntl(pipe.get(), F_GETFL) & ~O_NONBLOCK);
    return {std::move(pipe), file};
}

void check_parent(const fs::path& file, const fs::path& real, const RunPlaces& places) {
    const auto parent = real.parent_path();
    if (!places.out.empty() && parent == real_path_of(places.out)) return;  // the run makes it
    std::error_code error;
    if (!fs::is_directory(parent, error)) {
        throw IoError("cannot write " + label(file) + ": there is no folder " + path_label(parent) +
                      "; make it first");
    }
    if (::access(parent.c_str(), W_OK | X_OK) != 0) refuse_for(file, errno);
    // Some folders can be written by their permissions, but take no file: those of /proc, immutable ones.
    const fs::path probe = parent / (".flashoptim-" + std::to_string(::getpid()));
    const checkpoint::FileDescriptor made(
        ::open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!made && errno != EEXIST) refuse_for(file, errno);
    if (made) ::unlink(probe.c_str());
}

}  // namespace

std::vector<std::string> names_of_run() { return {"metrics.csv", "summary.json", "checkpoints"}; }

JsonTarget::JsonTarget(const std::optional<std::string>& file, const RunPlaces& places) {
    if (!file) return;
    if (file->empty()) throw InvalidArgument("--json is empty; give the path of a file");
    file_ = *file;
    if (const auto descriptor = checkpoint::descriptor_named(file_)) {
        check_descriptor(file_, *descriptor);
        check_apart(file_, file_, places);
        return;
    }
    if (file_.native().ends_with('/'))
        throw InvalidArgument(label(file_) + " is a folder; give the path of a file");
    std::error_code error;
    const auto real = checkpoint::real_path(file_, error);
    if (error) refuse_for(file_, error.value());
    check_apart(file_, real, places);
    const Existing existing(real);
    if (existing.error() != 0) refuse_for(file_, existing.error());
    switch (existing.type()) {
        case S_IFDIR:
            throw InvalidArgument(label(file_) + " is a folder; give the path of a file");
        case S_IFBLK:
        case S_IFSOCK:
            throw InvalidArgument(label(file_) + " is a disk or a socket; give the path of a file");
        case S_IFIFO:
            pipe_.emplace(open_pipe(file_));
            break;
        case S_IFCHR:
            if (::access(real.c_str(), W_OK) != 0) refuse_for(file_, errno);
            break;
        default:
            check_parent(file_, real, places);
    }
}

void JsonTarget::write(std::string_view text) {
    if (pipe_) return pipe_->write(text);
    if (!file_.empty()) checkpoint::write_file(file_, text);
}

}  // namespace flashoptim::app
