// Checks FLASHOPTIM_BACKEND, OpenMP's variables and the limit on open files.
#include "trainer/environment.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "flashoptim/error.h"
#include "flashoptim/step.h"
#include "flashoptim/system/control_groups.h"
#include "flashoptim/system/cpu_count.h"
#include "flashoptim/system/file_io.h"
#include "trainer/exact_number.h"

namespace flashoptim::trainer {
namespace {

// Accepts "4" or, with the threads of nested levels, "4,2". For any other text OpenMP would print a warning
// and use its default.
void check_omp_num_threads() {
    const char* const text = std::getenv("OMP_NUM_THREADS");
    if (text == nullptr || *text == '\0') return;
    std::string list = text;
    list.erase(std::remove(list.begin(), list.end(), ' '), list.end());
    const auto numbers = split_text(list, ",");
    const auto allowed = [](std::string_view number) {
        const auto threads = exact_whole_number(number);
        return threads && *threads >= 1 && *threads <= kMostThreads;
    };
    if (!numbers.empty() && std::all_of(numbers.begin(), numbers.end(), allowed)) return;
    throw InvalidArgument("OMP_NUM_THREADS is '" + std::string(text) +
                          "'; set it to a whole number from 1 to " + std::to_string(kMostThreads) +
                          ", unset it, or give the number of threads of the run");
}

// In bytes: "64M"; without a letter KiB. Nothing for what OpenMP does not read either, and says so.
std::optional<std::uint64_t> stack_size(std::string_view text) {
    constexpr std::string_view kUnits = "BKMG";
    const auto unit =
        text.empty() ? std::string_view::npos : kUnits.find(static_cast<char>(text.back() & ~0x20));
    const auto number = exact_whole_number(text.substr(0, text.size() - (unit == kUnits.npos ? 0 : 1)));
    const std::size_t shift = 10 * (unit == kUnits.npos ? 1 : unit);
    if (!number || *number > std::numeric_limits<std::uint64_t>::max() >> shift) return std::nullopt;
    return *number << shift;
}

// OpenMP would end the run, in its own words, when the first thread finds no room for its stack.
void check_omp_stack_size() {
    constexpr std::uint64_t kMost = std::uint64_t{1} << 30;
    for (const char* const name : {"OMP_STACKSIZE", "GOMP_STACKSIZE"}) {
        const char* const text = std::getenv(name);
        if (text == nullptr || stack_size(text).value_or(0) <= kMost) continue;
        throw InvalidArgument(std::string(name) + " is '" + text + "'; set it to at most 1G, or unset it");
    }
}

}  // namespace

void check_backend() {
    ThreadPool alone(1);
    static_cast<void>(grad_norm({}, alone));  // reads the variable
}

void check_environment(int threads) {
    check_backend();
    if (threads == 0) check_omp_num_threads();
    if (threads != 1) check_omp_stack_size();
}

void require_open_files() {
    constexpr std::size_t kFiles = 16;  // a checkpoint has about 10 files, folders and locks open at once
    std::array<checkpoint::FileDescriptor, kFiles> opened;
    for (auto& file : opened) {
        file = checkpoint::FileDescriptor(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (file || (errno != EMFILE && errno != ENFILE)) continue;
        throw IoError("a run opens " + std::to_string(kFiles) +
                      " files beside its data, and the system allows " +
                      std::to_string(&file - opened.data()) + ": " + std::generic_category().message(errno) +
                      "; close other files or raise the limit on open files (ulimit -n)");
    }
}

}  // namespace flashoptim::trainer
