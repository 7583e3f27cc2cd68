// fork, exec and waiting. posix_spawn cannot tie the child's life to that of its parent.
#include "subprocess.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>

#include "flashoptim/error.h"
#include "process_setup.h"
#include "stop_signals.h"

namespace flashoptim::app {
namespace {

/// While one lives, signals wait: they find a child that is known, or none.
class SignalsWait {
public:
    SignalsWait() {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, &before_);
    }
    ~SignalsWait() { end(); }
    SignalsWait(const SignalsWait&) = delete;
    SignalsWait& operator=(const SignalsWait&) = delete;
    void end() noexcept { sigprocmask(SIG_SETMASK, &before_, nullptr); }

private:
    sigset_t before_{};
};

/// Read and written end, which the programs that this one becomes do not have.
struct Pipe {
    int ends[2] = {-1, -1};
    Pipe() {
        if (pipe2(ends, O_CLOEXEC) != 0)
            throw Error(std::string("no pipe to a child process can be made: ") + std::strerror(errno) +
                        "; close other files or raise the limit on open files");
    }
    ~Pipe() {
        close(ends[0]);
        close_write();
    }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    void close_write() {
        if (ends[1] >= 0) close(ends[1]);
        ends[1] = -1;
    }
};

// Only what is safe between fork and exec of a process that has threads.
[[noreturn]] void become(char* const* argv, Output output, pid_t parent, int failed, SignalsWait& signals) {
#ifdef __linux__
    // SIGKILL, as a stopped process takes no other. Then the parent may be gone already, and nobody sends
    // anything.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
#endif
    StopSignals::reset();
    restore_write_signals();
    const int nowhere = output == Output::kBoth ? -1 : open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere >= 0) {
        dup2(nowhere, STDOUT_FILENO);
        if (output == Output::kNone) dup2(nowhere, STDERR_FILENO);
    }
    signals.end();
    execvp(argv[0], argv);
    const int reason = errno;
    static_cast<void>(!write(failed, &reason, sizeof reason));
    _exit(127);
}

int wait_for(pid_t child) {
    siginfo_t ended{};
    // Its number is not free for another process before it is known here that no signal is to be passed on to
    // it.
    while (waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
    }
    const SignalsWait signals;
    StopSignals::pass_on_to(0);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

}  // namespace

ProgramEnd run_program(const std::vector<std::string>& arguments, Output output) {
    std::vector<char*> argv;
    argv.reserve(arguments.size() + 1);
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    Pipe failure;
    pid_t child = 0;
    {
        SignalsWait signals;
        const pid_t parent = getpid();
        child = fork();
        if (child == 0) become(argv.data(), output, parent, failure.ends[1], signals);
        if (child < 0)
            throw Error("cannot start " + arguments[0] + ": " + std::strerror(errno) +
                        "; end other processes or raise the limit on them (ulimit -u)");
        StopSignals::pass_on_to(child);
    }
    failure.close_write();
    int reason = 0;
    ssize_t count = 0;
    while ((count = read(failure.ends[0], &reason, sizeof reason)) < 0 && errno == EINTR) {
    }
    const int status = wait_for(child);
    if (count == sizeof reason)
        throw Error("cannot start " + arguments[0] + ": " + std::strerror(reason) + "; check the path");
    if (WIFSIGNALED(status)) return {0, WTERMSIG(status)};
    return {WEXITSTATUS(status), 0};
}

std::string own_executable() {
    constexpr const char* kSelf = "/proc/self/exe";
    std::error_code error;
    const auto path = std::filesystem::read_symlink(kSelf, error);
    if (error) throw Error("this program cannot find itself: /proc is not there; mount it");
    return std::filesystem::equivalent(path, kSelf, error) ? path.string() : kSelf;
}

std::string own_folder() {
    std::error_code error;
    const auto path = std::filesystem::read_symlink("/proc/self/exe", error);
    return error ? std::string() : path.parent_path().string();
}

}  // namespace flashoptim::app
