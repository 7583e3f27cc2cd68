// What runs before the constructors of all libraries. Without a current folder MKL's constructor would end the
// process with a message about one of MKL's files. Without memory other constructors would call
// std::terminate. The linker and the loader must know .preinit_array. Nothing here may need a constructor.
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <exception>
#include <new>
#include <string_view>

#include "process_setup.h"

namespace flashoptim::app {
namespace {

[[noreturn]] void end(int code, std::string_view line) {
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
    ::_exit(code);
}

bool is_out_of_memory(const std::exception_ptr& thrown) {
    if (thrown == nullptr) return false;
    try {
        std::rethrow_exception(thrown);
    } catch (const std::bad_alloc&) {
        return true;
    } catch (...) {
        return false;
    }
}

// Of an exception that nobody catches: in a constructor of a library, or in one of its threads.
[[noreturn]] void end_by_exception() {
    const bool is_memory = is_out_of_memory(std::current_exception());
    if (!is_prepared()) {
        end(2, is_memory
                   ? "flashoptim: there is not enough memory to start; raise the limit (ulimit -v or -d)\n"
                   : "flashoptim: a library cannot be started; install the program anew\n");
    }
    end(1, is_memory ? "flashoptim: out of memory; use a smaller --model, --batch or --sequence\n"
                     : "flashoptim: an exception in a thread; report this with the command that you typed\n");
}

void begin() {
    std::set_terminate(end_by_exception);
    std::array<char, PATH_MAX> path;  // NOLINT(cppcoreguidelines-pro-type-member-init): written by the system
    if (::getcwd(path.data(), path.size()) != nullptr || errno != ENOENT) return;
    end(2, "flashoptim: the current folder was removed; go to another folder (cd) and start again\n");
}

#if defined(__ELF__)
[[gnu::section(".preinit_array"), gnu::used]] void (*const first)() = begin;
#endif

}  // namespace
}  // namespace flashoptim::app
